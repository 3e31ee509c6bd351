"""Physics-informed GANs in the papers' style: groups of sensors, and what is learned of a law."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from exafield.optim import Adam
from exafield.report import Report
from exafield.subsurface.checks import SiteError
from exafield.subsurface.coordinate import Coordinate
from exafield.subsurface.generated import box
from exafield.subsurface.paper import PaperProblem, Scales, on_site
from exafield.subsurface.paper_fields import Collocation
from exafield.subsurface.paper_groups import Group, GroupSource
from exafield.subsurface.random_fields import MeshSpectrum, SpectralField
from exafield.subsurface.snapshots import simulated
from exafield.trainer import Trainer
from exafield.world import World
from ranks import run_ranks

# ---- groups ----


def test_groups_say_what_does_not_fit() -> None:
    at = torch.zeros(2, 1)
    with pytest.raises(SiteError, match="same quantities"):
        Group({"y": at}, {"u": np.zeros((3, 2))})
    with pytest.raises(SiteError, match="2 sensors"):
        Group({"y": at}, {"y": np.zeros((3, 1))})
    with pytest.raises(SiteError, match="snapshot 1 is nan at sensor 0"):
        Group({"y": at}, {"y": np.array([[0.0, 1.0], [np.nan, 1.0]])})
    with pytest.raises(SiteError, match="as many of each"):
        Group({"y": at, "u": at}, {"y": np.zeros((3, 2)), "u": np.zeros((4, 2))})
    with pytest.raises(ValueError, match="no group"):
        PaperProblem(line_fields, {})


def test_short_groups_come_round_evenly_and_single_rows_stay() -> None:
    at = torch.zeros(1, 1)
    short = Group({"y": at, "f": at}, {"y": np.arange(4.0)[:, None], "f": np.full((1, 1), 9.0)})
    source = GroupSource({"long": Group({"u": at}, {"u": np.arange(6.0)[:, None]}), "short": short})
    seen = [source.batch(range(6), epoch) for epoch in range(2)]
    assert set(seen[0]) == set(source.fields) == {"long.u", "short.y", "short.f"}
    counts = torch.cat([batch["short.y"] for batch in seen]).long().flatten().bincount()
    assert counts.tolist() == [3, 3, 3, 3]
    assert (seen[0]["short.f"] == 9).all()


# ---- learning ----


def line(rows: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Places in [-1, 1], and realisations of ln k, u and f there: -0.1 d/dx(k u') = f with u = 0 at both ends.

    After the forward problem of arXiv:1811.02033: ln k about a sine and f about 1/2 are Gaussian with Gaussian
    covariance; the figures are our choice.
    """
    x, rng = np.linspace(-1, 1, 201), np.random.default_rng(seed)
    apart = (x[:, None] - x) ** 2

    def draw(variance: float, sharpness: float) -> np.ndarray:
        values, vectors = np.linalg.eigh(variance * np.exp(-sharpness * apart))
        return rng.standard_normal((rows, len(x))) @ (vectors * np.sqrt(np.maximum(values, 0))).T

    y, f = np.sin(1.5 * np.pi * (x + 1)) / 5 + draw(0.16, 1.0), 0.5 + draw(0.0225, 25.0)
    step = x[1] - x[0]

    def integral(values: np.ndarray) -> np.ndarray:
        parts = np.cumsum((values[:, 1:] + values[:, :-1]) * step / 2, axis=1)
        return np.concatenate([np.zeros((len(values), 1)), parts], axis=1)

    # k u' = c - 10 times the integral of f, with c such that u ends at 0.
    inverse, source = integral(np.exp(-y)), integral(f * 10)
    weighted = integral(np.exp(-y) * source)
    u = weighted[:, -1:] / inverse[:, -1:] * inverse - weighted
    return x, {"y": y, "u": u, "f": f}


def line_fields(scales: Scales, noise: int = 10, width: int = 48) -> Collocation:
    ends = torch.tensor([[-1.0], [1.0]])
    y, u = (Coordinate(ends, noise, offset=scales[k][0], scale=scales[k][1], width=width) for k in "yu")
    return Collocation(y, u, factor=-0.1)


def chosen(x: np.ndarray, values: dict[str, np.ndarray], sensors: dict[str, int]) -> Group:
    """Evenly spread sensors; two of u are the ends."""
    at = {k: np.linspace(0, len(x) - 1, count).round().astype(int) for k, count in sensors.items()}
    places = {k: torch.tensor(x[cells, None], dtype=torch.float32) for k, cells in at.items()}
    return Group(places, {k: values[k][:, cells] for k, cells in at.items()})


def forward_problem(width: int = 48) -> PaperProblem:
    x, values = line(500, 0)
    _, truth = line(1000, 1)
    return PaperProblem(
        lambda scales: line_fields(scales, width=width),
        {"sensors": chosen(x, values, {"y": 13, "u": 2, "f": 21})},
        test=chosen(x, truth, {"y": 41, "u": 41, "f": 41}),
        optimiser=Adam(1e-3, (0.0, 0.9)),
        critic_optimiser=Adam(1e-3, (0.0, 0.9)),
        critic_moves=3,
    )


def trained(problem: PaperProblem, steps: int, batch: int = 64) -> tuple[dict[str, float], dict[str, float]]:
    """Errors before and after."""
    with World.single() as world:
        trainer = Trainer(problem, world, batch_size=batch, report=Report(show=False), log_every=steps)
        before = trainer.evaluate()
        return before, trainer.fit(steps=steps)


KINDS = {
    "forward": {"y": 13, "u": 2, "f": 21},
    "inverse": {"u": 13, "f": 21},
    "mixed": {"y": 5, "u": 6, "f": 21},
}


@pytest.mark.parametrize("kind", KINDS)
def test_sensors_say_what_kind_of_problem_it_is(kind: str) -> None:
    """Both networks learn by the critic's word, also the one without sensors: the equation ties it to the others."""
    x, values = line(40, 0)

    def make(scales: Scales) -> Collocation:
        return line_fields({"y": (0.0, 0.5), "u": (0.0, 1.0)} | dict(scales), width=12)

    problem = PaperProblem(make, {"sensors": chosen(x, values, KINDS[kind])})
    torch.manual_seed(0)
    with World.single() as world:
        *critics, generators = problem.players(world)
    assert [player.name for player in critics] == ["critic-sensors"]
    batch = problem.source.batch(range(8), 0)
    assert {name: values.shape[1] for name, values in batch.items()} == {
        f"sensors.{key}": count for key, count in KINDS[kind].items()
    }
    generators.loss(batch).backward()
    assert problem.fields is not None
    for network in (problem.fields.y, problem.fields.u):
        assert isinstance(network, Coordinate)
        slope = network.network.first.weight.grad
        assert slope is not None
        assert slope.abs().max() > 1e-6
    assert all(parameter.isfinite().all() for parameter in generators.module.parameters())


def test_fields_are_made_in_single_precision_whatever_surrounds_them() -> None:
    problem = forward_problem(width=12)
    with World.single() as world:
        trainer = Trainer(problem, world, batch_size=8, precision="bf16", report=Report(show=False))
        after = trainer.fit(steps=3)
        generators = trainer.seats.players[-1]
        torch.manual_seed(1)
        batch = problem.source.batch(range(8), 0)
        with torch.autocast("cpu", torch.bfloat16):
            seen: list[Tensor] = []
            hook = problem.critics["sensors"].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
            generators.loss(batch)
            hook.remove()
    assert all(np.isfinite(list(after.values())))
    assert seen[0].dtype == torch.float32
    assert (seen[0] != seen[0].bfloat16().float()).float().mean() > 0.9  # no digits were lost on the way


def test_a_short_game_moves_the_induced_generator_towards_its_data(tmp_path: Path) -> None:
    """f is generated by no network: it is what the equation makes of the other two."""
    problem = forward_problem()
    before, after = trained(problem, 100)
    assert before["f_mean"] > 0.9
    assert after["f_mean"] < before["f_mean"] / 2
    assert after["f_std"] < before["f_std"] / 2
    assert set(after) == {f"{key}_{what}" for key in "yuf" for what in ("mean", "std")}
    problem.picture(tmp_path / "line.png")
    assert (tmp_path / "line.png").stat().st_size > 10_000


@pytest.mark.heavy
def test_a_longer_game_finds_the_unread_solution() -> None:
    """u has sensors at both ends only."""
    before, after = trained(forward_problem(), 800)
    assert before["u_mean"] > 0.9
    assert after["u_mean"] < 0.25
    assert after["f_mean"] < 0.25
    assert after["u_std"] < before["u_std"]


def made_on_site(style: str, **settings: object) -> PaperProblem:
    """Two groups: ln T and heads were not read together."""
    site = box(6, 5)
    field = SpectralField(MeshSpectrum.of(site.mesh), (2000.0,), (1.0,), mean=7.0)
    full = simulated(site, field, 120)
    some = np.arange(0, site.cells, 3)
    groups = {"logs": full.at(y_cells=some), "heads": full.at(u_cells=some[1:])}
    return on_site(site, groups, style, noise=6, test=full, **settings)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::exafield.subsurface.snapshots.SnapshotWarning")
@pytest.mark.parametrize("style", ["coordinate", "separable", "modes"])
def test_a_site_is_learned_with_a_critic_for_each_group(style: str, tmp_path: Path) -> None:
    problem = made_on_site(style, optimiser=Adam(1e-3, (0.0, 0.9)), critic_moves=1)
    before, after = trained(problem, 5, batch=8)
    assert set(problem.critics) == {"logs", "heads"}
    assert set(after) == {"y_mean", "y_std", "u_mean", "u_std", "f_rms", "head_apart"}
    assert all(np.isfinite(list(after.values())))
    assert after != before
    problem.picture(tmp_path / "site.png")


@pytest.mark.filterwarnings("ignore::exafield.subsurface.snapshots.SnapshotWarning")
def test_heads_that_are_not_read_begin_about_those_that_are_given() -> None:
    site = box(6, 5)
    full = simulated(site, SpectralField(MeshSpectrum.of(site.mesh), (2000.0,), (1.0,), mean=7.0), 40)
    problem = on_site(site, {"logs": full.at(y_cells=np.arange(9))}, "modes")
    with World.single() as world:
        problem.players(world)
    assert problem.fields is not None
    heads = problem.fields.u(torch.randn(32, 20)).mean()
    assert site.fixed_heads.min() - 5 < heads < site.fixed_heads.max() + 5


def test_what_is_held_back_is_not_trained_with() -> None:
    at = torch.zeros(1, 1)
    group = Group({"y": at, "f": at}, {"y": np.arange(50.0)[:, None], "f": np.zeros((1, 1))})
    problem = PaperProblem(line_fields, {"one": group})
    kept, apart = problem.groups["one"].readings["y"], problem.test[0].readings["y"]
    assert len(apart) == 5
    assert sorted(np.concatenate([kept, apart]).ravel()) == list(range(50))
    with pytest.raises(ValueError, match="too few"):
        PaperProblem(line_fields, {"one": group.rows(np.arange(3))})


def play(world: World, folder: str) -> None:
    """One of two ranks."""
    problem = forward_problem(width=16)
    trainer = Trainer(problem, world, batch_size=8, report=Report(show=False), log_every=2)
    before, after = trainer.evaluate(), trainer.fit(steps=4)
    assert problem.fields is not None
    torch.save([before, after, problem.fields.state_dict()], f"{folder}/{world.rank}")
    trainer.close()


def test_two_ranks_learn_one_law(tmp_path: Path) -> None:
    run_ranks(2, play, str(tmp_path))
    one, two = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert one[1] == two[1]
    assert all(torch.equal(one[2][name], two[2][name]) for name in one[2])
    with World.single() as world:
        trainer = Trainer(forward_problem(width=16), world, batch_size=16, report=Report(show=False))
        alone = trainer.evaluate()
    for name, value in alone.items():  # moments of the same draws, made by one rank or shared by two
        assert one[0][name] == pytest.approx(value, rel=1e-5)
        assert one[1][name] != value
