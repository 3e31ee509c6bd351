"""Realisations that are generated: kept, gone on with, and the same whatever makes them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from exafield.engine import map_engine
from exafield.store import StoreError
from exafield.subsurface import darcy
from exafield.subsurface.generate import Generation, default_path, generate, load, realisation
from exafield.subsurface.site import Site

SERIAL = map_engine("serial", None)


def test_more_can_be_added_and_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.h5"
    assert generate(path, Generation(train=3, test=2), SERIAL) == 5
    assert generate(path, Generation(train=3, test=2), SERIAL) == 0
    assert generate(path, Generation(train=4, test=3), SERIAL) == 2
    train, test = load(path, Generation(train=4, test=2))
    assert train.y.shape == (4, 768)
    assert test.u.shape == (2, 768)
    assert not np.array_equal(train.y[0], test.y[0])
    with pytest.raises(StoreError):
        generate(path, Generation(train=3, test=2, correlation=900.0), SERIAL)


def test_heads_are_those_of_the_field() -> None:
    sample = realisation((Generation(), 7))
    solved = darcy.solve(Site.load("box"), torch.from_numpy(sample["y"]).double())
    np.testing.assert_allclose(sample["u"], solved.numpy(), atol=1e-3)


def test_a_sample_depends_on_seed_and_number_alone() -> None:
    first, again = (realisation((Generation(train=n), 7))["y"] for n in (3, 9))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, realisation((Generation(seed=1), 7))["y"])


def test_the_law_is_the_one_asked_for() -> None:
    wanted = Generation(mean=5.0, variance=1.0, correlation=700.0)
    values = np.stack([realisation((wanted, number))["y"] for number in range(60)])
    assert values.mean() == pytest.approx(5.0, abs=0.1)
    assert values.var() == pytest.approx(1.0, abs=0.1)


def test_facies_have_two_populations() -> None:
    values = np.stack([realisation((Generation(kind="facies"), number))["y"] for number in range(20)])
    low, high = (values < 7.5).mean(), (values > 7.5).mean()
    assert 0.5 < low < 0.85
    assert 0.15 < high < 0.5
    assert np.mean((values > 7) & (values < 8)) < 0.1


def test_a_changed_site_is_another_store(tmp_path: Path) -> None:
    (tmp_path / "site.npz").write_bytes(b"one")
    first = default_path(Generation(site=str(tmp_path / "site.npz")))
    (tmp_path / "site.npz").write_bytes(b"two")
    assert default_path(Generation(site=str(tmp_path / "site.npz"))) != first
