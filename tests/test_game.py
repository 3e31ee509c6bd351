"""Three players on overlapping sub-worlds of four processes learn what one process doing the whole game learns."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from exafield.field import Field
from exafield.optim import SGD, Adam, Constant, Optimiser, Schedule, Staircase
from exafield.problem import Player
from exafield.reduce import Bitvector, Fused, GraphAware, Grouped, Reducer, Static, Tree
from exafield.report import Report
from exafield.source import Sampler
from exafield.trainer import Trainer
from exafield.world import World
from ranks import run_ranks

BATCH, STEPS, MOVES = 3, 6, 2
REDUCERS = {
    "static": Reducer(Static(), GraphAware(groups=2)),
    "bitvector": Reducer(Bitvector(), Grouped(3)),
    "tree": Reducer(Tree(radix=2), Fused(mb=1e-4)),
}
OPTIMISERS: dict[str, tuple[Optimiser, Schedule, int]] = {
    "left": (SGD(learning_rate=0.05, momentum=0.9), Constant(warmup=3), MOVES),
    "right": (Adam(learning_rate=0.02), Staircase(every=2), 1),
    "whole": (Adam(learning_rate=0.01), Constant(), 1),
}


class Points:
    """Points in a square with a value each."""

    fields: Mapping[str, Field] = {"x": Field("x", ("coordinate",), "m"), "y": Field("y", ("value",), "1")}

    def __len__(self) -> int:
        return 50

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        x = torch.stack(
            [
                torch.rand(2, dtype=torch.float64, generator=torch.Generator().manual_seed(i + 1000 * epoch))
                for i in indices
            ]
        )
        return {"x": x, "y": torch.sin(3 * x).sum(1, keepdim=True)}


class Game:
    """Two players each fit their half of the samples beside a third, which all ranks share and which fits both."""

    name = "game"

    def __init__(self, side: Callable[[int], tuple[slice, slice]]) -> None:
        self.source = Points()
        self.side = side  # which rows of a batch belong to the left and right players

    def make(self) -> dict[str, nn.Module]:
        torch.manual_seed(5)
        return {
            name: nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 1)).double()
            for name in ("left", "right", "whole")
        }

    def players(self, world: World) -> list[Player]:
        self.nets = self.make()
        sides = {"left": (0, 1), "right": (2, 3), "whole": None} if world.size == 4 else {}
        return [
            Player(name, self.nets[name], self.loss(name), *OPTIMISERS[name], ranks=sides.get(name))
            for name in ("left", "whole", "right")
        ]

    def error(self, batch: Mapping[str, Tensor], name: str, rows: slice) -> Tensor:
        """Squared errors of a half's player and the shared one together, coupled by their product."""
        x, y = batch["x"][rows], batch["y"][rows]
        mine, whole = self.nets[name](x), self.nets["whole"](x)
        return ((mine + whole - y) ** 2 + 0.1 * (mine * whole) ** 2).flatten()

    def loss(self, name: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
        def of_half(batch: Mapping[str, Tensor]) -> Tensor:
            left, right = self.side(len(batch["x"]))
            return self.error(batch, name, left if name == "left" else right).mean()

        def of_whole(batch: Mapping[str, Tensor]) -> Tensor:
            rows = zip(("left", "right"), self.side(len(batch["x"])), strict=True)
            return torch.cat([self.error(batch, half, part) for half, part in rows if part.stop > part.start]).mean()

        return of_whole if name == "whole" else of_half

    def evaluate(self, world: World) -> dict[str, float]:
        return {"nothing": 0.0}

    def picture(self, path: object) -> None:
        raise AssertionError("no picture was asked for")


def halves(length: int) -> tuple[slice, slice]:
    return slice(0, length // 2), slice(length // 2, length)


def by_hand() -> dict[str, nn.Module]:
    """The whole game in a plain loop, without trainer, reducer, loader or schedule objects."""
    game = Game(halves)
    game.nets = game.make()
    sampler, source = Sampler(50, 4 * BATCH, seed=3), Points()
    rates = {
        "left": lambda t: 0.05 * min(1, (t + 1) / 3),
        "right": lambda t: 0.02 * 0.5 ** (t // 2),
        "whole": lambda t: 0.01,
    }
    optimisers = {
        "left": torch.optim.SGD(game.nets["left"].parameters(), lr=1.0, momentum=0.9),
        "right": torch.optim.Adam(game.nets["right"].parameters()),
        "whole": torch.optim.Adam(game.nets["whole"].parameters()),
    }
    for step in range(STEPS):
        draws = []
        for _ in range(MOVES):
            parts = [source.batch(indices, epoch) for epoch, indices in sampler.draw()]
            draws.append({key: torch.cat([part[key] for part in parts]) for key in ("x", "y")})
        for name in ("left", "whole", "right"):
            for move in range(MOVES if name == "left" else 1):
                parameters = list(game.nets[name].parameters())
                gradients = torch.autograd.grad(game.loss(name)(draws[move]), parameters)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimisers[name].param_groups[0]["lr"] = rates[name](step)
                optimisers[name].step()
    return game.nets


def play(world: World, folder: str) -> None:
    """One rank of the game, with each reducer in turn."""
    mine = (slice(0, BATCH), slice(0, 0)) if world.rank < 2 else (slice(0, 0), slice(0, BATCH))
    for label, reducer in REDUCERS.items():
        trainer = Trainer(
            Game(lambda length: mine), world, reducer, batch_size=BATCH, seed=3, report=Report(show=False), log_every=4
        )
        before = {player.name: copy.deepcopy(player.module.state_dict()) for player in trainer.seats.players}
        trainer.fit(steps=STEPS)
        seated = set(trainer.seats.here)
        assert seated == ({"left", "whole"} if world.rank < 2 else {"right", "whole"})
        for player in trainer.seats.players:
            state = player.module.state_dict()
            if player.name in seated:
                safetensors.torch.save_file(state, f"{folder}/{label}.{player.name}.{world.rank}")
            else:  # described only: nobody has touched it
                assert all(torch.equal(state[key], before[player.name][key]) for key in state)
                assert all(p.grad is None for p in player.module.parameters())
        assert trainer.meter.flops > 0
        trainer.close()


@pytest.fixture(scope="module")
def reference() -> dict[str, dict[str, Tensor]]:
    return {name: net.state_dict() for name, net in by_hand().items()}


def test_four_processes_learn_what_one_does(tmp_path: Path, reference: dict[str, dict[str, Tensor]]) -> None:
    start = Game(halves).make()
    run_ranks(4, play, str(tmp_path))
    ranks = {"left": (0, 1), "right": (2, 3), "whole": (0, 1, 2, 3)}
    for label in REDUCERS:
        for name, expected in reference.items():
            for rank in ranks[name]:
                found = safetensors.torch.load_file(tmp_path / f"{label}.{name}.{rank}")
                for key, value in expected.items():
                    torch.testing.assert_close(found[key], value, rtol=1e-11, atol=1e-12)
                    assert (value - start[name].state_dict()[key]).abs().max() > 1e-3  # it was a game, not a rest


def test_one_process_through_the_trainer(reference: dict[str, dict[str, Tensor]]) -> None:
    game = Game(halves)
    with World.single() as world:
        Trainer(game, world, batch_size=4 * BATCH, seed=3, report=Report(show=False)).fit(steps=STEPS)
    for name, expected in reference.items():
        for key, value in expected.items():
            torch.testing.assert_close(game.nets[name].state_dict()[key], value, rtol=1e-11, atol=1e-12)
