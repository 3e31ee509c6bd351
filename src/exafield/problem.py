"""Problem and Player: one scientific question, and who is trained to answer it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from exafield.optim import Adam, Constant, Optimiser, Schedule
from exafield.source import Source
from exafield.world import World


@dataclass(eq=False)
class Player:
    """A module that is trained, by a loss of its own. Supervised learning has one player, a GAN several.

    Args:
        name: unique among the players of a problem; letters, digits, "-" and "_" (it names files).
        module: what is trained: the parameters of this module and of no other.
        loss: from a batch (see :class:`exafield.source.Source`) to a scalar. It may use the modules of other
            players; they get no gradient from it. Random numbers come from torch's generator, which
            each rank seeds for itself.
        optimiser: an Adam, AdamW or SGD.
        schedule: of the learning rate.
        moves: updates per step. The m-th move of every player sees the m-th batch drawn for that step.
        ranks: of the world the player lives on; None for all. On other ranks it is described, but neither
            trained nor brought up to date, so a loss must not use it there.
        begin: called with the step's number (0 for the first) before the player's first move in it: for losses that
            change over training. It must depend on nothing else, or resumed runs differ.
    """

    name: str
    module: nn.Module
    loss: Callable[[Mapping[str, Tensor]], Tensor]
    optimiser: Optimiser = field(default_factory=Adam)
    schedule: Schedule = field(default_factory=Constant)
    moves: int = 1
    ranks: tuple[int, ...] | None = None
    begin: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum() or not self.name.isascii():
            raise ValueError(f"a player's name is made of letters, digits, '-' and '_', got {self.name!r}")
        if self.moves < 1:
            raise ValueError(f"player {self.name!r}: moves must be 1 or more per step, got {self.moves}")
        if self.ranks is not None and (not self.ranks or len(set(self.ranks)) != len(self.ranks)):
            raise ValueError(f"player {self.name!r}: ranks must name each rank once and at least one, got {self.ranks}")


@runtime_checkable
class Problem(Protocol):
    """One scientific question."""

    @property
    def name(self) -> str:
        """Of the question."""
        ...

    @property
    def source(self) -> Source:
        """Of the training samples."""
        ...

    def players(self, world: World) -> Sequence[Player]:
        """The players, in the order in which they move: the same on all ranks.

        The trainer seeds torch, numpy and Python alike on all ranks before, and moves the modules to the
        world's device after.
        """
        ...

    def evaluate(self, world: World) -> dict[str, float]:
        """Metrics on held-back data, by name: the same numbers on all ranks. Modules are in evaluation mode."""
        ...

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draws what has been learnt. Called on one rank: no collectives."""
        ...


@runtime_checkable
class Prepared(Protocol):
    """A problem that has something to do on all ranks together before its source is looked at."""

    def prepare(self, world: World, say: Callable[[str], None]) -> None:
        """Does it. Collective.

        Args:
            say: prints a line, on rank 0.
        """
        ...
