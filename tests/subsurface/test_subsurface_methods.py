"""Ways to the posterior: each exact where it can be, all for any generator, and refusals in plain words."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exafield.subsurface import hmc, rml
from exafield.subsurface.covariance import Matern
from exafield.subsurface.diagnostics import convergence
from exafield.subsurface.generated import box
from exafield.subsurface.kriging import Readings, WellError, krige
from exafield.subsurface.latent import Generator, Latent, LinearPrior, PosteriorError
from exafield.subsurface.methods import METHODS
from exafield.subsurface.montecarlo import WeightWarning, weigh
from exafield.subsurface.posterior import corrected, infer, maximum, perturbed
from exafield.subsurface.random_fields import karhunen_loeve
from exafield.subsurface.site import Site

MEAN, LAW = 7.8, Matern(2.0, 3_000.0)


@pytest.fixture(scope="module")
def site() -> Site:
    return box(8, 6)


@pytest.fixture(scope="module")
def prior(site: Site) -> LinearPrior:
    expansion = karhunen_loeve(site.mesh.centres, site.mesh.areas, LAW)
    return LinearPrior(torch.full((site.cells,), MEAN, dtype=torch.float64), expansion.modes)


class Bent(nn.Module):
    """A generator in float32 that is not linear: two layers on the modes of a linear one."""

    def __init__(self, prior: LinearPrior, noise: int = 12) -> None:
        super().__init__()
        self.modes = nn.Parameter(prior.modes[:, :noise].float())  # asks for derivatives, as one in training does

    @property
    def noise(self) -> int:
        return int(self.modes.shape[1])

    def forward(self, z: Tensor) -> Tensor:
        return MEAN + 2 * torch.tanh(z @ self.modes.T / 2) + 0.1 * z[:, :1].square()


def readings_of(site: Site, seed: int = 0, heads: int = 4, error: float = 0.1) -> tuple[Readings, Readings]:
    rng = np.random.default_rng(seed)
    assert site.log_transmissivity is not None
    assert site.head is not None
    cells = rng.permutation(site.cells)
    return tuple(  # type: ignore[return-value]
        Readings(at, values[at] + error * rng.standard_normal(len(at)), np.full(len(at), error))
        for at, values in ((np.sort(cells[:6]), site.log_transmissivity), (np.sort(cells[6 : 6 + heads]), site.head))
    )


def test_chains_find_the_law_of_kriging(site: Site, prior: LinearPrior) -> None:
    y, _ = readings_of(site)
    kriged = krige(LAW, y, site.mesh.centres, mean=MEAN)
    latent = Latent(site, prior, y, None)
    found = hmc.sample(latent, maximum(latent), chains=8, warm_up=30, draws=1600, most=1600)
    assert found.convergence.reached, str(found.convergence)
    assert found.acceptance > 0.6
    fields = latent.fields(torch.from_numpy(found.noise.reshape(-1, latent.noise))).numpy()
    # Some thousand effective draws: five standard errors of a mean are below 0.1 std, of a std below 0.07.
    assert np.abs((fields.mean(0) - kriged.mean) / kriged.std).max() < 0.1
    np.testing.assert_allclose(fields.std(0), kriged.std, rtol=0.07)


@pytest.mark.heavy
def test_chains_and_weighted_draws_agree_where_flow_is_not_linear(site: Site, prior: LinearPrior) -> None:
    """Two exact methods with nothing in common but the likelihood."""
    y, u = readings_of(site, heads=3, error=0.5)
    chains = hmc.infer(site, prior, y, u, samples=2000, chains=8, warm_up=30, draws=500, most=1000)
    assert chains.note.startswith("converged"), chains.note
    weighed = weigh(site, prior, y, u, samples=4000)
    spread = chains.log_transmissivity.std(0)
    assert np.abs((chains.log_transmissivity.mean(0) - weighed.log_transmissivity.mean(0)) / spread).max() < 0.35
    assert (
        np.sqrt((((chains.log_transmissivity.mean(0) - weighed.log_transmissivity.mean(0)) / spread) ** 2).mean()) < 0.1
    )
    nearly = infer(site, prior, y, u, samples=2000)
    assert (
        np.sqrt((((chains.log_transmissivity.mean(0) - nearly.log_transmissivity.mean(0)) / spread) ** 2).mean()) < 0.3
    )


def test_chains_too_short_say_so(site: Site, prior: LinearPrior) -> None:
    y, _ = readings_of(site)
    told: list[str] = []
    with pytest.warns(hmc.ChainWarning, match="NOT converged"):
        found = hmc.infer(site, prior, y, samples=10, chains=3, warm_up=10, draws=6, most=12, say=told.append)
    assert "NOT converged" in found.note
    assert len(found.log_transmissivity) == 10
    assert any(text.startswith("hmc: 3 chains, warm-up 3 of 3, path 10 of 10") for text in told)
    assert "hmc: 3 chains, draw 6 of 12 at most, looked at after 6" in told
    assert told[-1].startswith("hmc: 3 chains, draw 12 of 12 at most, looked at after 12; after 6 R-hat ")


@pytest.mark.parametrize("bent", [False, True])
def test_each_optimum_is_one(site: Site, prior: LinearPrior, bent: bool) -> None:
    given: Generator = Bent(prior) if bent else prior
    latent = Latent(site, given, *readings_of(site))
    best = maximum(latent)
    drawn, wanted = perturbed(latent, 4, torch.Generator().manual_seed(2))
    z = rml.optima(latent, best, drawn, wanted)
    slopes = []
    for at in (z, corrected(latent, best, drawn, wanted, 0)):
        at = at.detach().requires_grad_()
        objective = latent.objective(at, latent.predict(at), drawn, wanted)
        (slope,) = torch.autograd.grad(objective.sum(), at)
        slopes.append(float(slope.norm()))
    assert slopes[0] < 0.1 * slopes[1]


def test_derivatives_of_any_generator(site: Site, prior: LinearPrior) -> None:
    bent = Bent(prior)
    latent = Latent(site, bent, *readings_of(site))
    z = torch.linspace(-1, 1, bent.noise, dtype=torch.float64)
    point = latent.linearised(z)
    for number in (0, len(latent.at_y)):  # of ln T, and of a head
        step = 1e-2 * torch.eye(bent.noise, dtype=torch.float64)  # float32 inside bears no smaller one
        slope = (latent.predict(z + step) - latent.predict(z - step))[:, number] / 2e-2
        np.testing.assert_allclose(point.jacobian[number], slope, rtol=0.02, atol=0.02 * float(slope.abs().max()))


@pytest.mark.parametrize("name", list(METHODS))
def test_all_methods_take_any_generator(site: Site, prior: LinearPrior, name: str) -> None:
    y, u = readings_of(site, heads=3, error=0.3)
    for given in (prior, Bent(prior)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", (hmc.ChainWarning, WeightWarning))
            if name == "hmc":
                found = hmc.infer(site, given, y, u, samples=20, chains=3, warm_up=12, draws=8, most=8)
            else:
                found = METHODS[name](site, given, y, u, samples=20)
        assert found.log_transmissivity.shape == found.head.shape == (20, site.cells)
        assert np.isfinite(found.head).all()
        if name != "montecarlo" or given is prior:  # whose draws know of no reading: too few of them fit
            assert found.log_transmissivity.std(0).max() > 0.05
        if name in ("laplace", "rml", "hmc"):
            assert 0.4 < found.misfit < 2.0


@pytest.mark.parametrize("name", ["laplace", "rml"])
def test_heads_alone(site: Site, prior: LinearPrior, name: str) -> None:
    _, u = readings_of(site, heads=5)
    found = METHODS[name](site, prior, None, u, samples=40)
    assert found.misfit < 2.0
    assert 0.1 < found.log_transmissivity.std(0).mean() < 1.1 * LAW.variance**0.5


def test_weights_on_few_draws_are_told(site: Site, prior: LinearPrior) -> None:
    y, u = readings_of(site, heads=30, error=0.01)
    with pytest.warns(WeightWarning, match="no posterior"):
        assert "effective" in weigh(site, prior, y, u, samples=10).note


def test_flux_of_a_reach(site: Site, prior: LinearPrior) -> None:
    found = infer(site, prior, *readings_of(site), samples=50)
    entering = float(site.inflows.sum() + site.source.sum()) if site.source is not None else 0.0
    whole = found.flux(site, site.fixed_faces)
    np.testing.assert_allclose(whole.samples, -entering, rtol=1e-9)  # what enters leaves, whatever ln T is
    reach = found.flux(site, site.fixed_faces[: len(site.fixed_faces) // 2])
    assert reach.low < reach.mean < reach.high
    mask = np.zeros(len(site.mesh.boundary_cells), dtype=bool)
    mask[site.fixed_faces[: len(site.fixed_faces) // 2]] = True
    np.testing.assert_array_equal(found.flux(site, mask).samples, reach.samples)
    for faces in (np.array([-1]), np.array([len(mask)]), np.zeros(0, dtype=np.int64), mask[1:]):
        with pytest.raises(ValueError, match="boundary faces"):
            found.flux(site, faces)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": [1, 48]}, r"number 1 \(cell 48.*outside the mesh of 48 cells"),
        ({"cells": [-1, 5]}, r"number 0 \(cell -1.*outside the mesh"),
        ({"values": [7.0, np.nan]}, r"number 1 \(cell 5.*not finite \(NaN\)"),
        ({"errors": [0.0, 0.1]}, "not above 0"),
        ({"errors": [0.1, -0.1]}, "not above 0"),
        ({"errors": [0.1, np.nan]}, "not above 0"),
        ({"cells": [5, 5]}, "cell 5 has 2 readings.*kriging.readings"),
    ],
)
@pytest.mark.parametrize("name", list(METHODS))
def test_readings_that_are_refused(
    site: Site, prior: LinearPrior, name: str, change: dict[str, list[float]], message: str
) -> None:
    known = {"cells": [1, 5], "values": [7.0, 8.0], "errors": [0.1, 0.1]} | change
    bad = Readings(np.array(known["cells"]), np.array(known["values"]), np.array(known["errors"]))
    with pytest.raises(WellError, match=message):
        METHODS[name](site, prior, bad)


@pytest.mark.parametrize("name", list(METHODS))
def test_no_readings_are_refused(site: Site, prior: LinearPrior, name: str) -> None:
    with pytest.raises(ValueError, match="no readings"):
        METHODS[name](site, prior)


def test_a_failed_solve_names_realisation_and_cell(site: Site, prior: LinearPrior) -> None:
    y, _ = readings_of(site)
    wild = LinearPrior(prior.mean, 400 * prior.modes)
    with pytest.raises((ValueError, PosteriorError), match=r"realisation .* cell"):
        infer(site, wild, Readings(y.cells[:1], y.values[:1], y.errors[:1]), samples=5)


def test_convergence_of_known_chains() -> None:
    rng = np.random.default_rng(0)
    memory, chains, count = 0.7, 8, 2000
    walk = np.zeros((chains, count, 3))
    walk[:, 0] = rng.standard_normal((chains, 3))
    for step in range(1, count):
        shock = np.sqrt(1 - memory**2) * rng.standard_normal((chains, 3))
        walk[:, step] = memory * walk[:, step - 1] + shock
    found = convergence(walk)
    # Of a first-order autoregression: count (1 - a) / (1 + a).
    assert found.ess == pytest.approx(chains * count * (1 - memory) / (1 + memory), rel=0.15)
    assert found.reached
    for spoilt in (walk + 0.5 * (np.arange(chains) == 0)[:, None, None], walk + np.linspace(0, 1, count)[:, None]):
        assert convergence(spoilt).rhat > 1.01
    wide = walk.copy()
    wide[0] *= 2  # chains of one mean and different spread: only ranks of distances from the median tell
    assert convergence(wide).rhat > 1.01
    heavy = np.tan(np.pi * (rng.random((4, 1000, 1)) - 0.5))  # a law without mean
    assert convergence(heavy).reached
    with pytest.raises(ValueError, match="2 chains"):
        convergence(walk[:1])
    with pytest.raises(ValueError, match="not finite"):
        convergence(np.full((2, 10, 1), np.nan))
