"""What can generate ln T: each style makes the problem that trains it, and the prior of what it has learnt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from exafield.optim import Optimiser, Schedule
from exafield.problem import Problem
from exafield.subsurface.latent import Generator
from exafield.subsurface.laws import Law
from exafield.subsurface.problem import FlowProblem
from exafield.subsurface.site import Site
from exafield.subsurface.snapshots import Snapshots


@dataclass(frozen=True)
class Lesson:
    """What a style learns from.

    Args:
        site: mesh and boundary.
        train: readings of sensors.
        test: to judge by; None: some of the readings are held back.
        images: full fields to learn from; None where there are readings alone.
        optimiser, schedule: of generators.
        seed: of the training.
    """

    site: Site
    train: Snapshots
    test: Snapshots | None
    images: Snapshots | None
    optimiser: Optimiser | None
    schedule: Schedule | None
    seed: int


class Style(Protocol):
    """A kind of generator.

    Attributes:
        generators: players whose modules hold what is learnt.
    """

    generators: tuple[str, ...]

    def problem(self, lesson: Lesson) -> Problem:
        """What trains it."""
        ...

    def prior(self, states: Mapping[str, Mapping[str, Tensor]], site: Site, lesson: Callable[[], Lesson]) -> Generator:
        """What it has learnt.

        Args:
            states: of the generators' modules, by name.
            site: mesh.
            lesson: makes what was learnt from, for generators whose states do not tell all.
        """
        ...


@dataclass(frozen=True)
class Spectral:
    """White noise through a filter of the mesh's spectrum: a Gaussian law, the same everywhere.

    Args:
        scales: superposed, 1 or 2.
        critic: weight of critics beside the sliced-Wasserstein distances.
    """

    generators: ClassVar[tuple[str, ...]] = ("generator",)

    scales: int = 1
    critic: float = 0.0

    def problem(self, lesson: Lesson) -> FlowProblem:
        """What trains it."""
        return FlowProblem(
            lesson.site, lesson.train, test=lesson.test, scales=self.scales, critic_weight=self.critic,
            optimiser=lesson.optimiser, schedule=lesson.schedule, seed=lesson.seed,
        )  # fmt: skip

    def prior(self, states: Mapping[str, Mapping[str, Tensor]], site: Site, lesson: Callable[[], Lesson]) -> Generator:
        """What it has learnt."""
        return Law.of(states["generator"]).prior(site)
