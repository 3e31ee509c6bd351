"""Snapshots of sensors: sources that deal them alike, and refuse what is not whole."""

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from exafield.subsurface.checks import SiteError
from exafield.subsurface.generated import box
from exafield.subsurface.laws import Law
from exafield.subsurface.snapshots import Groups, Snapshots, SnapshotWarning, simulated

LAW = Law(7.8, (2.6,), (1900.0,), (2.5,))


def some(rows: int = 200, y: int = 30, u: int = 10, seed: int = 0) -> Snapshots:
    rng = np.random.default_rng(seed)
    return Snapshots.of(
        y_cells=np.arange(y), y=rng.normal(size=(rows, y)), u_cells=np.arange(u), u=rng.normal(110, 1, size=(rows, u))
    )


def test_a_sample_is_what_the_sensors_read() -> None:
    part = some()
    batch = part.batch([3, 7], epoch=5)
    assert {name: tuple(values.shape) for name, values in batch.items()} == {"y": (2, 30), "u": (2, 10)}
    np.testing.assert_allclose(batch["u"].numpy(), part.u[[3, 7]], rtol=1e-7)
    assert set(part.fields) == {"y", "u"}
    alone = part.at(y_cells=[4, 2])
    assert set(alone.batch([0], 0)) == {"y"} == set(alone.fields)
    np.testing.assert_array_equal(alone.y, part.y[:, [4, 2]])


@pytest.mark.parametrize("name", ["y", "u"])
def test_a_missing_reading_is_refused_by_snapshot_and_sensor(name: str) -> None:
    values = np.zeros((6, 3))
    values[4, 1] = np.nan
    given: dict[str, Any] = {f"{name}_cells": [11, 12, 13], name: values}
    with pytest.raises(SiteError, match=r"snapshot 4 is nan at sensor 1 \(cell 12\); 1 such"):
        Snapshots.of(**given)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(SiteError, match="no sensors"):
        Snapshots.of()
    with pytest.raises(SiteError, match="two sensors of ln T are in cell 5"):
        Snapshots.of(y_cells=[5, 5], y=np.zeros((3, 2)))
    with pytest.raises(SiteError, match=r"got shape \(3, 2\) for 1 cells"):
        Snapshots.of(y_cells=[5], y=np.zeros((3, 2)))
    with pytest.raises(SiteError, match="ln T has 3 and heads have 4"):
        Snapshots.of(y_cells=[5], y=np.zeros((3, 1)), u_cells=[5], u=np.zeros((4, 1)))
    with pytest.raises(SiteError, match="no sensor of heads is in cell 99"):
        some().at(u_cells=[99])
    with pytest.raises(SiteError, match=r"ln T is in cell 24, and site 'box' has cells 0\.\.23"):
        some().check(box(6, 4))


def test_few_sensors_and_few_snapshots_are_told_of_with_what_they_leave_open() -> None:
    site = box(16, 12)
    whole = simulated(site, LAW.field(site), 120, seed=1)
    cells = np.random.default_rng(0).choice(site.cells, 30, replace=False)
    with pytest.warns(SnapshotWarning, match=r"4 sensors of ln T are few .* length is .* m to ") as caught:
        whole.at(y_cells=cells[:4]).warn(site)
    low, high = (float(found.replace(",", "")) for found in re.findall(r"([\d,]+) m", str(caught[0].message)))
    assert 0 < low < 1900 < high
    with pytest.warns(SnapshotWarning, match="length stays open"):
        whole.at(y_cells=cells[:2]).warn(site)
    with pytest.warns(SnapshotWarning, match=r"50 snapshots are few .* 0\.84 to 1\.16"):
        whole.rows(slice(50)).at(y_cells=cells).warn(site)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole.at(y_cells=cells).warn(site)


def test_short_groups_come_round_equally_often() -> None:
    groups = Groups({"long": some(7, 3, 0), "short": some(3, 2, 1)})
    assert len(groups) == 7
    assert set(groups.fields) == {"long.y", "short.y", "short.u"}
    seen = np.zeros(3)
    first = some(3, 2, 1).batch(range(3), 0)["y"][:, 0]
    for epoch in range(3):
        for value in groups.batch(range(7), epoch)["short.y"][:, 0]:
            seen[int((first == value).nonzero())] += 1
    np.testing.assert_array_equal(seen, 7)


def test_simulated_snapshots_have_the_law_and_its_heads() -> None:
    site = box(12, 9)
    made = simulated(site, LAW.field(site), 300, seed=1)
    assert made.y.mean() == pytest.approx(7.8, abs=0.15)
    assert made.y.std(0) == pytest.approx(np.sqrt(2.6), rel=0.15)
    from exafield.subsurface.darcy import solve

    np.testing.assert_allclose(made.u[5], solve(site, torch.tensor(made.y[5])).numpy(), atol=1e-9)
    again = simulated(site, LAW.field(site), 300, seed=1)
    np.testing.assert_array_equal(made.u, again.u)
