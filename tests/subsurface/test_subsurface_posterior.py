"""The posterior: exact where everything is linear, and honest where it is not."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from exafield.subsurface import darcy, scores
from exafield.subsurface.covariance import Matern
from exafield.subsurface.generated import box
from exafield.subsurface.kriging import Readings, krige
from exafield.subsurface.posterior import LinearPrior, Posterior, infer
from exafield.subsurface.random_fields import karhunen_loeve
from exafield.subsurface.site import Site
from exafield.subsurface.study import study
from exafield.subsurface.wells import Wells

MEAN, LAW = 7.8, Matern(2.0, 2_000.0)


@pytest.fixture(scope="module")
def site() -> Site:
    return box(16, 12)


@pytest.fixture(scope="module")
def prior(site: Site) -> LinearPrior:
    expansion = karhunen_loeve(site.mesh.centres, site.mesh.areas, LAW)
    return LinearPrior(torch.full((site.cells,), MEAN, dtype=torch.float64), expansion.modes)


def read(values: np.ndarray, cells: np.ndarray, error: float, rng: np.random.Generator) -> Readings:
    return Readings(cells, values[cells] + error * rng.standard_normal(len(cells)), np.full(len(cells), error))


def test_without_heads_it_is_kriging(site: Site, prior: LinearPrior) -> None:
    rng = np.random.default_rng(0)
    assert site.log_transmissivity is not None
    known = read(site.log_transmissivity, np.sort(rng.permutation(site.cells)[:20]), 0.1, rng)
    kriged = krige(LAW, known, site.mesh.centres, mean=MEAN)
    found = infer(site, prior, known, samples=1500, seed=1)
    np.testing.assert_allclose(found.best, kriged.mean, atol=1e-5)
    # 1,500 samples have a mean within std / 39 and a std within 1.8 % of the law's, each one standard error.
    assert np.abs((found.log_transmissivity.mean(0) - kriged.mean) / kriged.std).max() < 5 / 39
    np.testing.assert_allclose(found.log_transmissivity.std(0), kriged.std, rtol=0.1)
    assert found.misfit == pytest.approx(1.0, abs=0.15)
    heads = darcy.solve(site, torch.from_numpy(found.log_transmissivity[:3]))
    np.testing.assert_allclose(found.head[:3], heads.numpy(), atol=1e-9)


def test_the_maximum_is_one(site: Site, prior: LinearPrior) -> None:
    """The gradient of the objective, by the adjoint of the solver, vanishes there."""
    rng = np.random.default_rng(1)
    assert site.log_transmissivity is not None
    assert site.head is not None
    y = read(site.log_transmissivity, np.sort(rng.permutation(site.cells)[:15]), 0.1, rng)
    u = read(site.head, site.well_cells, 0.1, rng)
    found = infer(site, prior, y, u, samples=2)
    field = torch.from_numpy(found.best)
    z = torch.linalg.lstsq(prior.modes, (field - prior.mean)[:, None]).solution[:, 0]
    gradients = []
    for start in (z, torch.zeros_like(z)):
        at = start.clone().requires_grad_()
        fields = prior(at[None])
        heads = darcy.solve(site, fields)[0]
        objective = at.square().sum()
        for values, known in ((fields[0], y), (heads, u)):
            off = (values[known.cells.tolist()] - torch.tensor(known.values)) / torch.tensor(known.errors)
            objective = objective + off.square().sum()
        (gradient,) = torch.autograd.grad(objective, at)
        gradients.append(float(gradient.norm()))
    assert gradients[0] < 1e-2 * gradients[1]
    assert found.steps > 1


def test_samples_honour_the_data_and_their_spread_is_right(site: Site, prior: LinearPrior) -> None:
    rng = np.random.default_rng(2)
    covered, errors, kriged_errors, misfits, plain = [], [], [], [], []
    for _ in range(12):  # truths of the prior: intervals must hold what they say
        truth = prior(torch.from_numpy(rng.standard_normal(prior.modes.shape[1])))
        head = darcy.solve(site, truth[None])[0].numpy()
        cells = rng.permutation(site.cells)
        y, u = read(truth.numpy(), np.sort(cells[:15]), 0.05, rng), read(head, np.sort(cells[15:45]), 0.1, rng)
        found = infer(site, prior, y, u, samples=150)
        low, high = found.interval()
        rest = np.setdiff1d(np.arange(site.cells), y.cells)
        covered.append(((truth.numpy() >= low) & (truth.numpy() <= high))[rest].mean())
        errors.append(scores.rmse(found.log_transmissivity.mean(0)[rest], truth.numpy()[rest]))
        kriged_errors.append(scores.rmse(krige(LAW, y, site.mesh.centres, mean=MEAN).mean[rest], truth.numpy()[rest]))
        misfits.append(found.misfit)
        plain.append(infer(site, prior, y, u, samples=150, corrections=0).misfit)
    assert 0.84 < np.mean(covered) < 0.95
    assert np.mean(errors) < 0.95 * np.mean(kriged_errors)
    assert 0.8 < np.median(misfits) < 1.3
    assert np.median(misfits) < np.median(plain)


def test_what_is_refused(site: Site, prior: LinearPrior) -> None:
    some = Readings(np.array([1, 5]), np.array([7.0, 8.0]), np.array([0.1, 0.1]))
    with pytest.raises(ValueError, match="no readings"):
        infer(site, prior)
    with pytest.raises(ValueError, match="above 0"):
        infer(site, prior, Readings(some.cells, some.values, np.zeros(2)))
    with pytest.raises(ValueError, match="samples must be 2 or more"):
        infer(site, prior, some, samples=1)
    with pytest.raises(ValueError, match="modes"):
        LinearPrior(prior.mean[:-1], prior.modes)


def test_the_same_seed_gives_the_same(site: Site, prior: LinearPrior) -> None:
    some = Readings(np.array([1, 5]), np.array([7.0, 8.0]), np.array([0.1, 0.1]))
    one, same, other = (infer(site, prior, some, samples=3, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.log_transmissivity, same.log_transmissivity)
    assert np.abs(one.log_transmissivity - other.log_transmissivity).max() > 0.1


def test_a_misfit_names_the_well_and_a_dry_aquifer_the_cell() -> None:
    site = replace(box(6, 4), source=np.where(np.arange(24) == 7, -1e6, 0.0), head=None)
    assert site.log_transmissivity is not None
    y = np.stack([site.log_transmissivity] * 2)
    heads = darcy.solve(site, y).numpy()
    wells = Wells(None, Readings(np.array([3, 9]), heads[0, [3, 9]] + [0.0, 7.0], np.array([0.1, 0.1]), ("A", "B")))
    judged = study(site, Posterior(y[0], y, heads, misfit=50.0, steps=1), wells)
    assert "Worst: head of B (cell 9) reads" in judged.doubt
    assert re.match(r"heads fall to -[\d,.]+ m in cell 7, .* pumped from cell 7, 1,000,000 m3/d", judged.dry)
    assert any(judged.dry in line for line in judged.lines())
    usual = box(6, 4)
    assert usual.head is not None
    assert not study(usual, Posterior(y[0], y, np.stack([usual.head] * 2), misfit=1.0, steps=1), wells).dry
