"""The generator of two populations, what it is judged by, and how it learns."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from exafield.optim import Adam
from exafield.report import Report
from exafield.subsurface.critic import critic_loss
from exafield.subsurface.facies_generator import FaciesGenerator, Populations
from exafield.subsurface.facies_problem import FaciesProblem
from exafield.subsurface.generated import box
from exafield.subsurface.image_critic import ImageCritic
from exafield.subsurface.lines import STEPS, Lines, nearest
from exafield.subsurface.nongaussian import Realisation, TruncatedGaussian, realise
from exafield.subsurface.site import Site
from exafield.trainer import Trainer
from exafield.world import World

FAMILY = TruncatedGaussian()


@pytest.fixture(scope="module")
def site() -> Site:
    return box(16, 12)


@pytest.fixture(scope="module")
def images(site: Site) -> np.ndarray:
    mesh = site.mesh
    return np.stack([realise(Realisation(FAMILY, mesh.centres, mesh.areas, 5, i))[0] for i in range(160)])


def test_two_populations_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    inside = rng.random(100_000) < 0.3
    values = np.where(inside, rng.normal(9.5, 0.6, 100_000), rng.normal(5.5, 0.8, 100_000))
    found = Populations.of(values.reshape(100, 1000))
    assert found.inside == pytest.approx((9.5, 0.6), abs=0.03)
    assert found.outside == pytest.approx((5.5, 0.8), abs=0.03)
    assert found.proportion == pytest.approx(0.3, abs=0.01)
    with pytest.raises(ValueError, match="two populations"):
        Populations.of(np.full((2, 3), 4.0))
    with pytest.raises(ValueError, match="two populations"):
        Populations.of(np.array([1.0, math.nan]))


def test_its_fields_have_the_proportion_and_both_means(site: Site) -> None:
    generator = FaciesGenerator(site.mesh, Populations((9.5, 0.6), (5.5, 0.8), 0.3)).requires_grad_(False)
    noise = torch.randn(2000, generator.noise, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fields = generator(noise).numpy()
    # A cell's share of 2,000 fields has a standard deviation of 0.01; the mean over cells has far less.
    assert (fields > 7.5).mean() == pytest.approx(0.3, abs=0.015)
    assert np.abs((fields > 7.5).mean(0) - 0.3).max() < 0.055
    found = Populations.of(fields)
    assert found.inside == pytest.approx((9.5, 0.6), abs=0.08)
    assert found.outside == pytest.approx((5.5, 0.8), abs=0.08)
    # Few cells lie between the populations.
    assert ((fields > 7.3) & (fields < 7.7)).mean() < 0.02


def test_the_shape_is_stationary_and_can_turn(site: Site) -> None:
    """A stretch along x makes it long along x, at every place, up to the boundary."""
    shape = FaciesGenerator(site.mesh, Populations((9.5, 0.6), (5.5, 0.8), 0.3)).shape
    shape.requires_grad_(False)
    shape.stretch.copy_(torch.tensor([[8.0, 0.0], [0.0, 2.0]], dtype=torch.float64))
    matrix = shape.matrix()
    covariance = (matrix @ matrix.T).numpy().reshape(12, 16, 12, 16)
    one = covariance.reshape(192, 192)
    np.testing.assert_allclose(np.diag(one), 1.0, atol=1e-12)
    along = [covariance[row, column, row, column + 3] for row in (0, 6) for column in (0, 5)]
    across = [covariance[row, column, row + 3, column] for row in (0, 6) for column in (0, 5)]
    assert np.ptp(along) < 1e-9
    assert np.ptp(across) < 1e-9
    assert along[0] > across[0] + 0.3


def test_lines_run_straight_and_stay_on_the_mesh(site: Site) -> None:
    across = nearest(site.mesh, np.array([[1.0, 0.0], [0.0, 1.0]]))
    number = np.arange(192).reshape(12, 16)
    np.testing.assert_array_equal(across[:, 0].reshape(12, 16)[:, :-1], number[:, 1:])
    np.testing.assert_array_equal(across[:, 1].reshape(12, 16)[:-1], number[1:])
    assert (across[:, 0].reshape(12, 16)[:, -1] == -1).all()
    # Of a field that is x, a line along x rises by its length: ends, middle, least, mean.
    x = torch.from_numpy(site.mesh.centres[:, 0] / 1000.0)[None]
    found = Lines(site.mesh).sample(x, 0, 4, 50, 1)
    np.testing.assert_allclose(found[:, 1] - found[:, 0], 4.0)
    np.testing.assert_allclose(found[:, 2] - found[:, 0], 2.0)
    np.testing.assert_allclose(found[:, 3], found[:, 0])
    np.testing.assert_allclose(found[:, 4], found[:, 2])
    # Lines that are too long for the mesh are as long as it allows: 15 cells along x, where 16 are asked for.
    longest = Lines(site.mesh).sample(x, 0, STEPS, 50, 1)
    np.testing.assert_allclose(longest[:, 1] - longest[:, 0], 15.0)


def test_the_critic_sees_neighbourhoods_and_learns_to_tell_fields(site: Site, images: np.ndarray) -> None:
    torch.manual_seed(0)
    critic = ImageCritic(site.mesh, float(images.mean()), float(images.std()))
    real = torch.from_numpy(images[:32]).float()
    # The same values in other cells: single values cannot tell.
    shuffled = real[:, torch.randperm(site.cells)]
    optimiser = torch.optim.Adam(critic.parameters(), 5e-3, (0.0, 0.9))
    for _ in range(20):
        optimiser.zero_grad()
        critic_loss(critic, real, shuffled, 10.0).backward()
        optimiser.step()
    held = torch.from_numpy(images[32:64]).float()
    with torch.no_grad():
        one, other = critic(held), critic(held[:, torch.randperm(site.cells)])
    assert float((one > other.median()).float().mean()) > 0.9


@pytest.mark.heavy
def test_training_finds_the_law(site: Site, images: np.ndarray) -> None:
    """From a level and a mean that are wrong: both come back, and so does the proportion."""
    problem = FaciesProblem(site, images[:110], images[110:], optimiser=Adam(learning_rate=0.05))
    with World.single() as world:
        trainer = Trainer(problem, world, batch_size=24, report=Report(show=False))
        try:
            assert problem.model is not None
            generator = problem.model.module
            assert isinstance(generator, FaciesGenerator)
            start = float(generator.level), float(generator.outside.mean)
            with torch.no_grad():
                generator.level.add_(0.7)
                generator.outside.mean.add_(0.6)
            problem.model.update(0)
            before = problem.evaluate(world)["lines"]
            for _ in range(30):
                trainer.step()
            problem.model.update(0)  # the average is now the last
            after = problem.evaluate(world)["lines"]
            found = problem.evaluate(world)
        finally:
            trainer.close()
    # 50 held-back fields against 256 drawn are some way apart even for one law.
    assert after < 0.7 * before
    assert abs(float(generator.level) - start[0]) < 0.35
    assert abs(float(generator.outside.mean) - start[1]) < 0.3
    assert found["learned_proportion"] == pytest.approx(found["held_proportion"], abs=0.05)


def test_critic_and_generator_move_and_a_picture_is_drawn(site: Site, images: np.ndarray, tmp_path: Path) -> None:
    problem = FaciesProblem(site, images[:100], images[100:], critic_weight=0.05)
    with World.single() as world:
        trainer = Trainer(problem, world, batch_size=8, report=Report(show=False))
        try:
            assert [player.name for player in problem.players(world)] == ["critic", "generator"]
            assert problem.model is not None
            before = {name: value.clone() for name, value in problem.model.module.named_parameters()}
            for _ in range(3):
                trainer.step()
            moved = [name for name, value in problem.model.module.named_parameters() if (value != before[name]).any()]
            assert {"level", "shape.stretch", "inside.log_length", "outside.mean"} <= set(moved)
            problem.picture(tmp_path / "fields.png")
        finally:
            trainer.close()
    assert (tmp_path / "fields.png").stat().st_size > 10_000


def test_distance_along_lines_tells_connected_from_broken(site: Site, images: np.ndarray) -> None:
    """Zero on average for the same law; above for fields of the same values shuffled among fields cell by cell."""
    torch.manual_seed(0)
    problem = FaciesProblem(site, images[:100], images[100:])
    one, other = torch.from_numpy(images[:64]), torch.from_numpy(images[96:160])
    rng = np.random.default_rng(0)
    broken = torch.from_numpy(rng.permuted(images[96:160], axis=0))
    same = np.mean([float(problem.along_lines(one, other)) for _ in range(3)])
    apart = np.mean([float(problem.along_lines(one, broken)) for _ in range(3)])
    assert apart > 5 * abs(same)


def test_what_cannot_be_learned_from_is_refused(site: Site, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="hold back"):
        FaciesProblem(site, images, images[:1])
    with pytest.raises(ValueError, match="critic_weight"):
        FaciesProblem(site, images, images[:2], critic_weight=-1.0)
    wrong = images[:3].copy()
    wrong[1, 3] = math.nan
    with pytest.raises(ValueError, match="snapshot 1 is nan at sensor 3"):
        FaciesProblem(site, wrong, images[:2])
