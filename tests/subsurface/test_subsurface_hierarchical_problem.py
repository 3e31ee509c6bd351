"""The hierarchical game: the same numbers on any layout, bytes as billed, resumed, refused, ended when a rank dies."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from exafield.precision import Precision
from exafield.store import RunFolder
from exafield.subsurface import darcy
from exafield.subsurface.exchange import HUB, STRIPS, WHOLE, Layout, fine, judge, roles
from exafield.subsurface.judging import StripJudge
from exafield.trainer import Trainer
from exafield.world import World, WorldAborted
from ranks import run_ranks
from subsurface_game import ROWS, learnt, parameters, small, trainer

# The law itself is not looked at here.
pytestmark = pytest.mark.filterwarnings("ignore::exafield.subsurface.snapshots.SnapshotWarning")

STEPS, MOVES = 4, 2
APART = {role: int(role.startswith("judge")) for role in roles(4)}


def state(made: Trainer) -> dict[str, Tensor]:
    """Of all players here."""
    return {name: parameters(seat.player.module) for name, seat in made.seats.here.items()}


def play(world: World, folder: str, seats: str = "") -> None:
    """One rank of a game; judges and generators on ranks of their own if `seats` is "apart"."""
    layout = Layout((APART,)) if seats == "apart" else None
    made = small(critic_moves=MOVES, seats=layout)
    game = trainer(made, world)
    for _ in range(STEPS):
        game.step()
    who = made.layout(world)
    assert set(game.seats.here) == set(who.plays(world.rank))
    safetensors.torch.save_file(state(game), f"{folder}/{world.size}.{world.rank}")
    # Bytes: what went over the links is what the bill says.
    assert made.relay is not None
    billed = made.bill(world)
    assert {link for link in billed if link[0] == world.rank} == {(world.rank, to) for to in made.relay.links.sent}
    for to, sent in made.relay.links.sent.items():
        assert sent == STEPS * billed[world.rank, to]
    # What each rank can show is the same, and what the owners have.
    averages = learnt(made, world)
    mine = {role: average.average() for role, average in made.averages.items() if role in game.seats.here}
    for role, values in mine.items():
        prefix = "coarse." if role == HUB else f"fine.{role.removeprefix('fine-')}."
        for name, value in values.items():
            assert torch.equal(averages[prefix + name], value)
    total = torch.cat([value.flatten().double() for value in averages.values()])
    assert len({str(float(x)) for x in world.all_gather_objects(float(total.sum()))}) == 1
    errors = made.evaluate(world)
    assert errors == {**errors, **world.broadcast_object(errors)}
    game.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Tensor]:
    """What one process learns."""
    folder = tmp_path_factory.mktemp("alone")
    with World.single() as world:
        play(world, str(folder))
    return safetensors.torch.load_file(folder / "1.0")


def check_same(folder: Path, size: int, alone: Mapping[str, Tensor]) -> None:
    found: dict[str, Tensor] = {}
    for rank in range(size):
        found |= safetensors.torch.load_file(folder / f"{size}.{rank}")
    assert set(found) == set(alone) == set(roles(4))
    for role, values in alone.items():
        assert torch.equal(found[role], values), role


def two(world: World, folder: str) -> None:
    """Judges apart from generators; and then every rank a replica."""
    play(world, folder, "apart")
    made = small(replicas=2)
    game = trainer(made, world)
    for _ in range(2):
        game.step()
    assert made.relay is not None
    assert not made.relay.links.sent
    field = made.relay._made[HUB].detach()
    safetensors.torch.save_file({**state(game), "field": field}, f"{folder}/replica.{world.rank}")
    game.close()


def test_judges_apart_give_the_same_numbers_and_replicas_learn_together(
    tmp_path: Path, alone: Mapping[str, Tensor]
) -> None:
    run_ranks(2, two, str(tmp_path))
    check_same(tmp_path, 2, alone)
    one, other = (safetensors.torch.load_file(tmp_path / f"replica.{rank}") for rank in range(2))
    assert not torch.equal(one.pop("field"), other.pop("field"))  # noise is of each replica's own
    for role, values in one.items():
        assert torch.equal(other[role], values), role


@pytest.mark.heavy
@pytest.mark.parametrize("size", [3, 4, 8])
def test_any_layout_gives_the_same_numbers(size: int, tmp_path: Path, alone: Mapping[str, Tensor]) -> None:
    run_ranks(size, play, str(tmp_path), timeout=300)
    check_same(tmp_path, size, alone)


def test_everyone_has_learnt_something(alone: Mapping[str, Tensor]) -> None:
    made = small(critic_moves=MOVES)
    with World.single() as world:
        before = state(trainer(made, world))
    for role, values in alone.items():
        assert (values - before[role]).abs().max() > 1e-4, role


def test_gradients_are_those_of_the_sum_of_all_judgements() -> None:
    """By autograd through everything at once, on one process."""
    made = small()
    with World.single() as world:
        players = {player.name: player for player in made.players(world)}
        relay = made.relay
        assert relay is not None
        batch = made.source.batch(range(ROWS), 0)
        relay.begin(0)
        for role in relay.judges:
            players[role].loss(batch)
        found = {}
        for role in (HUB, *(fine(n) for n in range(4))):
            loss = players[role].loss(batch)
            found[role] = torch.autograd.grad(loss, list(players[role].module.parameters())[:2])
        # Anew, without messages.
        first, white = relay._noise()
        hierarchy = made.hierarchy
        coarse = hierarchy.coarse(first)
        fines = [f(white[:, f.cells], coarse.detach()[:, f.cells], first) for f in hierarchy.fines()]
        joined = torch.cat(fines, dim=1)
        whole = hierarchy.assembled(coarse, joined)
        head = darcy.solve(made.site, whole)
        total = torch.zeros(())
        for role, module in relay.judges.items():
            with relay._drawing(role, 0):
                total = total + module.judgement(batch, module.see(whole, head, coarse, joined))
        for role, made_by in [(HUB, hierarchy.coarse), *((fine(n), f) for n, f in enumerate(hierarchy.fines()))]:
            expected = torch.autograd.grad(total, list(made_by.parameters())[:2], retain_graph=True)
            for one, other in zip(found[role], expected, strict=True):
                assert other.abs().max() > 0
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def run(folder: Path, parts: list[int]) -> dict[str, Tensor]:
        for number, steps in enumerate(parts):
            with World.single() as world:
                game = trainer(small(), world, folder=RunFolder(folder))
                if number:
                    assert game.resume()
                for _ in range(steps):
                    game.step()
                game.save()
                found = state(game)
                game.close()
        return found

    whole, halves = run(tmp_path / "whole", [4]), run(tmp_path / "halves", [2, 2])
    assert all(torch.equal(whole[role], halves[role]) for role in whole)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_stays_finite(precision: Precision) -> None:
    made = small()
    with World.single() as world:
        game = trainer(made, world, precision=precision)
        for _ in range(6):
            game.step()
        metrics = game.metrics()
        game.close()
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(bool(torch.isfinite(values).all()) for values in state(game).values())


def test_strips_see_values_and_fluxes_of_both_sides() -> None:
    made = small()
    judges = made.judges()
    strips = judges[STRIPS]
    assert isinstance(strips, StripJudge)
    cut, mesh = made.partition, made.site.mesh
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(3, made.site.cells, generator=generator)
    detail = torch.randn(3, made.site.cells, generator=generator)
    agree = torch.cat([detail[:, part.cells] for part in cut.extended], dim=1)
    seen = strips.see(coarse, coarse, coarse, agree)
    assert seen.shape == (3, strips.columns)
    sensors, faces = strips.sensors.shape[-1], strips.faces.shape[-1]
    assert faces >= 2 * len(cut.strips)
    one, other, differences, fluxes = seen.split([sensors, sensors, 2 * faces, faces], dim=1)
    torch.testing.assert_close(one, (coarse + detail)[:, strips.sensors[1]])
    torch.testing.assert_close(one, other)
    assert differences.abs().max() < 1e-6
    assert fluxes.abs().max() < 1e-6
    # One subdomain more permeable than its neighbours by a factor e: so is its conductance.
    start = sum(len(part.cells) for part in cut.extended[:1])
    louder = agree.clone()
    louder[:, start : start + len(cut.extended[1].cells)] += 1.0
    seen = strips.see(coarse, coarse, coarse, louder)
    _, _, differences, fluxes = seen.split([sensors, sensors, 2 * faces, faces], dim=1)
    owners = cut.owner[mesh.neighbours.T]
    pairs = strips.faces[0]
    named = torch.from_numpy(cut.owner)[pairs]
    assert set(map(tuple, named.T.tolist())) <= {tuple(pair) for pair in owners.T.tolist()}
    changed = (named == 1).any(0)
    expected = torch.where(changed, (np.e - 1) / (np.e + 1), 0.0).expand(3, faces)
    torch.testing.assert_close(fluxes.abs(), expected.float(), rtol=1e-4, atol=1e-6)
    real = strips.read(made.source.batch(range(5), 0))
    assert real.shape == (5, strips.columns)
    assert (real[:, 2 * sensors :] == 0).all()


def test_what_cannot_be_played_is_refused() -> None:
    with pytest.raises(ValueError, match="critic_weight must be above 0"):
        small(critic_weight=0.0)
    with pytest.raises(ValueError, match="overlap by 1 layer"):
        small(overlap=0)
    with pytest.raises(ValueError, match="4 rows or more, got 1 and 2"):
        small(rows=2)
    with World.single() as world:
        game = trainer(small(), world, batch_size=ROWS + 1)
        with pytest.raises(ValueError, match=f"set batch_size to {ROWS}"):
            game.step()
        game.close()
        game = trainer(small(), world, accumulate=2)
        with pytest.raises(ValueError, match="set accumulate to 1"):
            game.step()
        game.close()
    made = small()
    few = made.groups[""].at(y_cells=made.groups[""].y_cells[:2])
    made.groups[""] = few
    with pytest.raises(ValueError, match="no sensor in the subdomain 1"):
        made.judges()


def one_dies(world: World) -> None:
    game = trainer(small(), world)
    game.step()
    if world.rank == 1:
        raise RuntimeError("enough of this")
    try:
        while True:
            game.step()
    except WorldAborted as error:
        print("told:", error)
        raise SystemExit(3) from error


def test_nobody_waits_for_a_rank_that_ended() -> None:
    with pytest.raises(AssertionError) as caught:
        run_ranks(2, one_dies)
    text = str(caught.value)
    assert text.startswith("a rank failed")
    # Either the lost link is noticed first, or what the watchdog says of the other rank.
    assert "told: rank " in text


def test_a_fake_world_is_all_replicas() -> None:
    made = small()
    with World.fake(4) as world:
        game = trainer(made, world)
        game.step()
        game.close()
    assert [set(seats.values()) for seats in made.layout(world).seats] == [{0}, {1}, {2}, {3}]
    assert judge(0) in game.seats.here
    assert WHOLE in game.seats.here
