"""The posterior of a field of two populations: what is known in closed form, and that it beats a Gaussian one."""

import numpy as np
import pytest
import torch

from exafield.subsurface import darcy, scores
from exafield.subsurface.facies_generator import FaciesGenerator, Populations
from exafield.subsurface.generated import box
from exafield.subsurface.kriging import Readings
from exafield.subsurface.nonlinear_inference import given_logs, infer_facies, shapes_at_wells
from exafield.subsurface.posterior import LinearPrior, infer
from exafield.subsurface.site import Site


@pytest.fixture(scope="module")
def site() -> Site:
    return box(16, 12)


@pytest.fixture(scope="module")
def prior(site: Site) -> FaciesGenerator:
    return FaciesGenerator(site.mesh, Populations((9.5, 0.6), (5.5, 0.8), 0.35)).requires_grad_(False)


def drawn(prior: FaciesGenerator, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    fields: torch.Tensor = prior(torch.randn(count, prior.noise, generator=generator, dtype=torch.float64))
    return fields


def read(values: np.ndarray, cells: np.ndarray, error: float, rng: np.random.Generator) -> Readings:
    return Readings(cells, values[cells] + error * rng.standard_normal(len(cells)), np.full(len(cells), error))


def test_shapes_at_wells_have_the_truncated_law() -> None:
    """Two wells, one known to be inside, one not known: chances by quadrature of the bivariate normal law."""
    rng = np.random.default_rng(0)
    covariance, level = np.array([[1.0, 0.8], [0.8, 1.0]]), 0.4
    found = shapes_at_wells(covariance, level, np.array([1.0, 0.5]), 4000, rng)
    assert (found[:, 0] > level).all()
    pairs = rng.multivariate_normal([0, 0], covariance, 400_000)
    # A strip about the level is left out on both sides.
    pairs = pairs[(pairs[:, 0] > level + 0.1) & (np.abs(pairs[:, 1] - level) > 0.1)]
    # 4,000 samples know a chance of 0.78 to 0.0066, and means to about 0.01.
    assert (found[:, 1] > level).mean() == pytest.approx((pairs[:, 1] > level).mean(), abs=0.025)
    np.testing.assert_allclose(found.mean(0), pairs.mean(0), atol=0.05)
    # A reading that outweighs its neighbour is followed, however unlikely.
    against = shapes_at_wells(covariance, level, np.array([1.0, 0.0]), 200, rng)
    assert ((against[:, 0] > level) & (against[:, 1] < level)).all()


def test_without_heads_readings_are_kept_and_what_is_far_is_as_before(site: Site, prior: FaciesGenerator) -> None:
    rng = np.random.default_rng(1)
    truth = drawn(prior, 1, 1)[0].numpy()
    y = read(truth, np.array([0, 3, 17, 33, 50]), 0.02, rng)  # all in one corner
    found = infer_facies(site, prior, y, samples=600, seed=1)
    off = (found.log_transmissivity[:, y.cells] - y.values) / y.errors
    assert np.sqrt((off**2).mean()) < 1.6  # steps at wells are not quite over, which adds to the readings' own error
    assert found.misfit == pytest.approx(np.sqrt((off**2).mean()))
    far = found.log_transmissivity[:, -1] > 7.5
    assert far.mean() == pytest.approx(0.35, abs=0.1)  # 600 samples know it to 0.02; the site is not endless
    assert found.steps == 0
    heads = darcy.solve(site, torch.from_numpy(found.log_transmissivity[:2]))
    np.testing.assert_allclose(found.head[:2], heads.numpy(), atol=1e-9)


def test_textures_are_kriged_from_their_own_facies(site: Site, prior: FaciesGenerator) -> None:
    """A high reading inside a body says nothing of the texture outside."""
    y = Readings(np.array([90]), np.array([10.5]), np.array([0.02]))
    latent = given_logs(prior, y, 50, 0)
    shape, inside, outside = latent.start[:, :, 90].unbind(1)
    assert bool((shape > prior.level).all())
    np.testing.assert_allclose(inside, 1.0, atol=0.01)
    np.testing.assert_allclose(outside, 0.0, atol=1e-4)


def test_it_beats_a_gaussian_law_and_is_calibrated(site: Site, prior: FaciesGenerator) -> None:
    images = drawn(prior, 1500, 7).numpy()
    mean = images.mean(0)
    _, power, terms = np.linalg.svd((images - mean) / np.sqrt(len(images)), full_matrices=False)
    gaussian = LinearPrior(torch.from_numpy(mean), torch.from_numpy(np.ascontiguousarray(terms.T * power)))
    ratios, covered, misfits = [], [], []
    for number in range(3):
        rng = np.random.default_rng(number)
        truth = drawn(prior, 1, 100 + number)[0].numpy()
        cells = rng.permutation(site.cells)
        y = read(truth, np.sort(cells[:20]), 0.02, rng)
        u = read(darcy.solve(site, truth).numpy(), np.sort(cells[20:40]), 0.1, rng)
        rest = np.sort(cells[20:])
        found, other = infer_facies(site, prior, y, u, samples=20, seed=1), infer(site, gaussian, y, u, samples=100)
        own, its = (
            scores.crps_ensemble(x.log_transmissivity[:, rest], truth[rest], fair=True).mean() for x in (found, other)
        )
        ratios.append(own / its)
        covered.append(scores.coverage(found.log_transmissivity[:, rest], truth[rest]))
        misfits.append(found.misfit)
        assert found.steps > 0
    assert np.mean(ratios) < 0.9
    assert 0.8 < np.mean(covered) < 0.98
    assert np.mean(misfits) < 2.5  # of 5 and above where textures do not take up what the narrow step leaves


def test_samples_do_not_depend_on_how_many_there_are(site: Site, prior: FaciesGenerator) -> None:
    rng = np.random.default_rng(3)
    truth = drawn(prior, 1, 3)[0].numpy()
    u = read(darcy.solve(site, truth).numpy(), np.arange(5, 190, 20), 0.1, rng)
    told: list[str] = []
    found = infer_facies(site, prior, head=u, samples=3, seed=4, say=told.append)
    assert told[-1] == "facies: sample 3 of 3"
    again = infer_facies(site, prior, head=u, samples=4, seed=4)
    np.testing.assert_allclose(found.log_transmissivity, again.log_transmissivity[:3], atol=1e-6)


def test_what_cannot_be_used_is_refused(site: Site, prior: FaciesGenerator) -> None:
    exact = Readings(np.array([1]), np.array([5.0]), np.array([0.0]))
    with pytest.raises(ValueError, match="no readings"):
        infer_facies(site, prior)
    with pytest.raises(ValueError, match="above 0"):
        infer_facies(site, prior, exact)
    with pytest.raises(ValueError, match="samples must be 2"):
        infer_facies(site, prior, exact, samples=1)
