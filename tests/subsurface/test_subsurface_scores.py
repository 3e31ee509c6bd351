"""Scores against closed forms, against what defines them, and on laws that are known."""

import math

import numpy as np
import pytest
import torch

from exafield.subsurface import scores
from exafield.subsurface.covariance import Matern, matern
from exafield.subsurface.random_fields import karhunen_loeve
from subsurface_grid import grid

RNG = np.random.default_rng


def test_errors() -> None:
    guess, truth = np.array([1.0, 2.0, 3.0]), np.array([1.0, 0.0, 4.0])
    assert scores.rmse(guess, truth) == pytest.approx(math.sqrt(5 / 3))
    assert scores.relative_l2(guess, truth) == pytest.approx(math.sqrt(5 / 17))
    # Two members, two data: misfits of 1, 2, 0 and 2 errors.
    predictions = np.array([[1.1, 4.0], [1.0, 4.0]])
    assert scores.misfit(predictions, np.array([1.0, 3.0]), np.array([0.1, 0.5])) == pytest.approx(math.sqrt(9 / 4))


def test_crps_of_an_ensemble_is_its_definition() -> None:
    members, truth = RNG(0).standard_normal((7, 3, 2)), RNG(1).standard_normal((3, 2))
    pairs = np.abs(members[:, None] - members[None]).sum((0, 1))
    first = np.abs(members - truth).mean(0)
    np.testing.assert_allclose(scores.crps_ensemble(members, truth), first - pairs / (2 * 49))
    np.testing.assert_allclose(scores.crps_ensemble(members, truth, fair=True), first - pairs / (2 * 42))
    with pytest.raises(ValueError, match="2 members or more"):
        scores.crps_ensemble(members[:1], truth, fair=True)


def test_crps_of_gaussians_is_the_limit_of_ensembles() -> None:
    mean, std, truth = np.array([1.0, -2.0, 0.0]), np.array([0.5, 3.0, 1.0]), np.array([1.7, -2.0, 4.0])
    members = mean + std * RNG(2).standard_normal((40_000, 3))
    np.testing.assert_allclose(scores.crps_ensemble(members, truth), scores.crps_gaussian(mean, std, truth), rtol=0.02)
    # At the mean it is (sqrt 2 - 1) / sqrt pi of the standard deviation; with none, the error.
    assert scores.crps_gaussian(mean, std, mean)[1] == pytest.approx(3 * (math.sqrt(2) - 1) / math.sqrt(math.pi))
    assert scores.crps_gaussian(mean, 0 * std, truth)[0] == pytest.approx(0.7)


def test_fair_crps_does_not_depend_on_the_ensemble_size() -> None:
    rng = RNG(3)
    truth = rng.standard_normal(20_000)
    fair = [scores.crps_ensemble(rng.standard_normal((n, 20_000)), truth, fair=True).mean() for n in (3, 30)]
    plain = [scores.crps_ensemble(rng.standard_normal((n, 20_000)), truth).mean() for n in (3, 30)]
    # That of a calibrated Gaussian is 1 / sqrt pi.
    np.testing.assert_allclose(fair, 1 / math.sqrt(math.pi), rtol=0.02)
    assert plain[0] > 1.2 * fair[0]


@pytest.mark.parametrize("members", [19, 60])
def test_coverage_of_a_calibrated_ensemble(members: int) -> None:
    rng = RNG(4)
    drawn, truth = rng.standard_normal((members, 20_000)), rng.standard_normal(20_000)
    # A standard error of 0.002.
    assert scores.coverage(drawn, truth) == pytest.approx(0.9, abs=0.01)
    assert scores.coverage(0.5 * drawn, truth) < 0.65
    one, none = np.ones(20_000), np.zeros(20_000)
    assert scores.coverage_gaussian(none, one, truth) == pytest.approx(0.9, abs=0.01)
    assert scores.coverage_gaussian(none, 0.5 * one, truth) == pytest.approx(0.589, abs=0.015)


def test_rank_histogram_is_flat_if_calibrated() -> None:
    rng = RNG(5)
    drawn, truth = rng.standard_normal((24, 10_000)), rng.standard_normal(10_000)
    # 25 ranks in 10 bins: some hold three, some two.
    flat = scores.rank_histogram(drawn, truth)
    assert flat.counts.sum() == 10_000
    assert sorted(set((flat.expected / 400).round(6))) == [2, 3]
    assert flat.p_value > 0.01
    assert abs(flat.excess) < 0.1
    bowl = scores.rank_histogram(0.5 * drawn, truth)
    assert bowl.p_value < 1e-6
    assert bowl.excess > 0.5
    # Ties are spread over all ranks they could be.
    tied = scores.rank_histogram(np.zeros((9, 5000)), np.zeros(5000))
    assert tied.p_value > 0.01
    with pytest.raises(ValueError, match="bins must be 2 to 25"):
        scores.rank_histogram(drawn, truth, bins=40)


@pytest.mark.parametrize("power", [1, 2])
def test_one_dimension_has_a_closed_form(power: int) -> None:
    rng = RNG(6)
    a, b = (torch.from_numpy(rng.standard_normal((n, 2))) for n in (6, 4))
    # Both as samples of twelve, where sorting is enough.
    same = scores.wasserstein_1d(a.repeat_interleave(2, 0), b.repeat_interleave(3, 0), power)
    torch.testing.assert_close(scores.wasserstein_1d(a, b, power), same)
    shifted = scores.wasserstein_1d(a, a.flip(0) + 3.0, power)
    torch.testing.assert_close(shifted, torch.full((2,), 3.0**power, dtype=torch.float64))


def test_sliced_wasserstein_of_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2000, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    shift = torch.tensor([1.0, -2.0, 0.0, 0.5, 0.0], dtype=torch.float64)
    # A shift by s costs |s| / sqrt(dimensions) on the mean over directions; scaling by c costs |c - 1|.
    far = scores.sliced_wasserstein(a, b + shift, projections=1000, generator=generator)
    assert float(far) == pytest.approx(float(shift.norm()) / math.sqrt(5), rel=0.06)
    wide = scores.sliced_wasserstein(a, 1.5 * b, projections=200, generator=generator)
    assert float(wide) == pytest.approx(0.5, rel=0.1)
    assert float(scores.sliced_wasserstein(a, b, generator=generator)) < 0.1
    # Of unequal numbers, too.
    fewer = scores.sliced_wasserstein(a, (b + shift)[:701], projections=1000, generator=generator)
    assert float(fewer) == pytest.approx(float(far), rel=0.08)


def test_sliced_wasserstein_pulls_samples_together() -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(200, 3, generator=generator) * 2 + 1
    moving = torch.randn(150, 3, generator=generator).requires_grad_()
    optimiser = torch.optim.Adam([moving], lr=0.1)
    before = float(scores.sliced_wasserstein(moving.detach(), target, generator=generator))
    for _ in range(120):
        optimiser.zero_grad()
        loss = scores.sliced_wasserstein(moving, target, projections=32, generator=generator)
        loss.backward()
        optimiser.step()
    assert float(scores.sliced_wasserstein(moving.detach(), target, generator=generator)) < 0.2 * before
    same = moving.detach().clone().requires_grad_()
    scores.sliced_wasserstein(same, moving.detach()).backward()
    assert same.grad is not None
    assert torch.isfinite(same.grad).all()
    for arguments, message in ({"power": 3}, "power must be 1 or 2"), ({}, "needs a sample"):
        with pytest.raises(ValueError, match=message):
            scores.sliced_wasserstein(moving[: 3 if arguments else 0], target, **arguments)


def test_sliced_wasserstein_is_that_of_pot() -> None:
    ot = pytest.importorskip("ot", reason="POT is not installed")
    rng = RNG(7)
    a, b = rng.standard_normal((50, 4)), rng.standard_normal((70, 4)) + 0.5
    directions = rng.standard_normal((4, 60))
    directions /= np.linalg.norm(directions, axis=0)
    own = scores.sliced_wasserstein(*map(torch.from_numpy, (a, b)), projections=torch.from_numpy(directions))
    assert float(own) == pytest.approx(ot.sliced_wasserstein_distance(a, b, projections=directions), rel=1e-9)


def fields(law: Matern, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    mesh = grid(24, 24)
    expansion = karhunen_loeve(mesh.centres, mesh.areas, law)
    noise = torch.from_numpy(RNG(8).standard_normal((count, expansion.terms)))
    made = 3.0 + expansion.sample(noise).numpy()
    return made, mesh.centres, mesh.areas, mesh.neighbours, expansion.eigenvalues.numpy()


def test_correlation_is_that_of_the_law() -> None:
    law = Matern(2.0, 3.0, 1.5)
    made, centres, areas, neighbours, eigenvalues = fields(law, 2000)
    # Neighbours are 1 apart: the standard error is below 0.005 over so many faces.
    assert scores.neighbour_correlation(made, neighbours) == pytest.approx(
        float(matern(np.array(1 / 3), 1.5)), abs=0.01
    )
    found = scores.correlogram(made, centres, np.linspace(0, 12, 25))
    usable = found.pairs > 0
    np.testing.assert_allclose(found.correlation[usable], matern(found.distance[usable] / 3, 1.5), atol=0.02)
    # (1 + z) exp(-z) is 1/e at z = 2.146193.
    assert found.length == pytest.approx(3 * 2.146193 / math.sqrt(3), rel=0.03)
    spectrum = scores.covariance_spectrum(made, areas)
    assert spectrum.sum() == pytest.approx(2.0, rel=0.03)
    np.testing.assert_allclose(spectrum[:10], eigenvalues[:10], rtol=0.2)
    few = scores.correlogram(made, centres, np.linspace(0, 12, 25), cells=200)
    assert few.pairs.sum() < 200 * 200 / 2
    assert few.length == pytest.approx(found.length, rel=0.05)


def test_correlogram_of_one_field_and_of_none() -> None:
    law = Matern(2.0, 2.0, 1.5)
    made, centres, _, neighbours, _ = fields(law, 2)
    one = scores.correlogram(made[:1], centres, np.linspace(0, 9, 10))
    assert one.length == pytest.approx(2 * 2.146193 / math.sqrt(3), rel=0.4)
    assert math.isnan(scores.correlogram(np.tile(centres[:, 0], (1, 1)), centres, np.array([0.0, 1.5])).length)
    for function, rest in ((scores.neighbour_correlation, neighbours), (scores.covariance_spectrum, np.ones(576))):
        with pytest.raises(ValueError, match="2 samples or more, got 1"):
            function(made[:1], rest)
