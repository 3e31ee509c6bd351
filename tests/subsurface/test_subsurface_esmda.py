"""ES-MDA against the exact posterior where there is one, and what it says where it fails."""

import math

import numpy as np
import pytest
import torch

from exafield.subsurface.covariance import Matern
from exafield.subsurface.esmda import EnsembleError, EnsembleWarning, correlation_taper, esmda, gaspari_cohn
from exafield.subsurface.kriging import krige, readings
from exafield.subsurface.random_fields import karhunen_loeve
from subsurface_grid import grid

MESH = grid(6, 5)
LAW = Matern(1.0, 2.0)
OPERATOR = torch.randn(8, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / math.sqrt(30)
ERRORS = torch.linspace(0.1, 0.4, 8, dtype=torch.float64)
DATA = torch.linspace(-1, 1, 8, dtype=torch.float64)


def linear(members: torch.Tensor) -> torch.Tensor:
    return members @ OPERATOR.T


def prior(count: int, seed: int) -> torch.Tensor:
    expansion = karhunen_loeve(MESH.centres, MESH.areas, LAW)
    generator = torch.Generator().manual_seed(seed)
    return expansion.sample(torch.randn(count, expansion.terms, generator=generator, dtype=torch.float64))


def posterior() -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance, exact."""
    covariance = torch.from_numpy(LAW(MESH.centres, MESH.centres))
    gain = covariance @ OPERATOR.T @ torch.linalg.inv(OPERATOR @ covariance @ OPERATOR.T + torch.diag(ERRORS**2))
    return gain @ DATA, covariance - gain @ OPERATOR @ covariance


@pytest.mark.parametrize("steps", [1, 4, [9.333, 7.0, 4.0, 2.0]])
def test_a_linear_problem_has_the_exact_posterior(steps: int | list[float]) -> None:
    count = 20_000
    generator = torch.Generator().manual_seed(1)
    if isinstance(steps, list):
        steps = [1 / (x / sum(1 / s for s in steps)) for x in (1 / s for s in steps)]
    found = esmda(prior(count, 2), linear, DATA, ERRORS, steps=steps, generator=generator)
    mean, covariance = posterior()
    # Six standard errors of the mean of so many members, and of their covariance; the gain's own error is as large.
    assert float((found.members.mean(0) - mean).abs().max()) < 6 * 2 / math.sqrt(count)
    assert float((torch.cov(found.members.T) - covariance).abs().max()) < 6 * 2 / math.sqrt(count)
    # The prior is far from it by the same measure.
    assert float((prior(count, 2).mean(0) - mean).abs().max()) > 0.3
    assert float((torch.from_numpy(LAW(MESH.centres, MESH.centres)) - covariance).abs().max()) > 0.3
    np.testing.assert_allclose(found.predictions, linear(found.members))
    assert len(found.misfits) == 1 + (steps if isinstance(steps, int) else len(steps))
    assert found.misfits[0] > 2 * found.misfits[-1]


def test_several_steps_help_where_the_problem_is_not_linear() -> None:
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    data, errors = torch.tensor([8.0], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    one, many = (esmda(start, torch.exp, data, errors, steps=n, generator=generator).misfits[-1] for n in (1, 8))
    assert many < 0.5 * one


def test_kriged_start_and_indirect_data() -> None:
    # Values in some cells by kriging, then other data: the same posterior as all at once.
    rng = np.random.default_rng(4)
    cells = np.array([3, 17, 25])
    kriged = krige(LAW, readings(cells, np.array([1.0, -0.5, 0.3]), 0.05), MESH.centres, mean=0.0)
    start = torch.from_numpy(kriged.sample(20_000, rng))
    found = esmda(start, linear, DATA, ERRORS, generator=torch.Generator().manual_seed(5))
    covariance = torch.from_numpy(kriged.covariance)
    gain = covariance @ OPERATOR.T @ torch.linalg.inv(OPERATOR @ covariance @ OPERATOR.T + torch.diag(ERRORS**2))
    exact = torch.from_numpy(kriged.mean) + gain @ (DATA - OPERATOR @ torch.from_numpy(kriged.mean))
    assert float((found.members.mean(0) - exact).abs().max()) < 0.08
    assert float(found.members[:, cells].std(0).max()) < 0.06


def test_localisation_keeps_small_ensembles_from_chance() -> None:
    # Each datum is one of many independent parameters: all other updates are chance.
    generator = torch.Generator().manual_seed(6)
    start = torch.randn(40, 300, generator=generator, dtype=torch.float64)
    data, errors = torch.ones(20, dtype=torch.float64), torch.full((20,), 0.5, dtype=torch.float64)
    right = torch.zeros(300, 20, dtype=torch.float64)
    right[torch.arange(20), torch.arange(20)] = 1.0

    def unobserved(localisation: torch.Tensor | str | None) -> float:
        found = esmda(start, lambda x: x[:, :20], data, errors, localisation=localisation, generator=generator)
        return float(found.members[:, 20:].std(0).mean())

    assert unobserved(right) == pytest.approx(1.0, abs=0.03)
    chance = unobserved(None)
    assert chance < 0.75
    assert unobserved("correlation") > chance + 0.1


def test_tapers() -> None:
    r = torch.linspace(0, 3, 301, dtype=torch.float64)
    taper = gaspari_cohn(r, 1.0)
    assert float(taper[0]) == 1
    assert float(taper[r >= 2].abs().max()) < 1e-12
    assert (taper.diff() <= 1e-12).all()
    # Both branches meet, at 5/24.
    assert float(gaspari_cohn(torch.tensor([1 - 1e-9, 1.0], dtype=torch.float64), 1.0).sub(5 / 24).abs().max()) < 1e-8
    # A correlation function: no negative eigenvalue.
    points = torch.linspace(0, 5, 60, dtype=torch.float64)
    assert float(torch.linalg.eigvalsh(gaspari_cohn((points[:, None] - points).abs(), 1.0)).min()) > -1e-10
    with pytest.raises(ValueError, match="radius must be above 0"):
        gaspari_cohn(r, 0.0)
    members = torch.randn(200, 50, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    found = correlation_taper(members, members[:, :2])
    assert found[0, 0] == 1
    assert float(found[2:].mean()) < 0.15


def test_limits_hold_and_collapse_is_told() -> None:
    limits = (torch.tensor(-0.5, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))
    found = esmda(prior(50, 8), linear, DATA, ERRORS, limits=limits)
    assert float(found.members.abs().max()) <= 0.5
    sharp = torch.full((30,), 1e-6, dtype=torch.float64)
    with pytest.warns(EnsembleWarning, match="collapsed"):
        esmda(prior(200, 9), lambda x: x, torch.zeros(30, dtype=torch.float64), sharp)


def test_failures_are_named() -> None:
    start = prior(10, 10)

    def broken(members: torch.Tensor) -> torch.Tensor:
        predictions = linear(members).clone()
        predictions[4, 2] = math.nan
        return predictions

    holed = DATA.clone()
    holed[3] = math.nan
    for arguments, settings, message in (
        ((start, broken, DATA, ERRORS), {}, "before step 1 the prediction of member 4 for datum 2 is not finite"),
        ((start, lambda x: x, DATA, ERRORS), {}, r"must return 10 members x 8 data, got \(10, 30\)"),
        ((start, linear, holed, ERRORS), {}, "datum 3 has a reading of nan"),
        ((start, linear, DATA, 0 * ERRORS), {}, r"datum 0 has an error of 0.* \(8 such\)"),
        ((start[:1], linear, DATA, ERRORS), {}, "2 members or more"),
        ((start, linear, DATA, ERRORS), {"steps": [2.0, 3.0]}, "inverses sum to 1"),
        ((start, linear, DATA, ERRORS), {"steps": 0}, "steps=4"),
    ):
        with pytest.raises(EnsembleError, match=message):
            esmda(*arguments, **settings)
