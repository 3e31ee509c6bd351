"""What can generate ln T: each style makes the problem that trains it, and the prior of what it has learnt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from exafield.optim import Optimiser, Schedule
from exafield.problem import Problem
from exafield.setting import RunError
from exafield.subsurface.average import averaged
from exafield.subsurface.exchange import HUB, fine
from exafield.subsurface.facies_generator import FaciesGenerator, Populations
from exafield.subsurface.facies_problem import FaciesProblem
from exafield.subsurface.hierarchical_problem import HierarchicalProblem
from exafield.subsurface.latent import Generator, LinearPrior
from exafield.subsurface.laws import Law, spectrum
from exafield.subsurface.paper import PaperProblem, on_site
from exafield.subsurface.problem import FlowProblem
from exafield.subsurface.site import Site
from exafield.subsurface.snapshots import Snapshots
from exafield.world import World


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
        batch_size: of the trainer.
    """

    site: Site
    train: Snapshots
    test: Snapshots | None
    images: Snapshots | None
    optimiser: Optimiser | None
    schedule: Schedule | None
    seed: int
    batch_size: int = 64


@runtime_checkable
class Style(Protocol):
    """A kind of generator; `generators` are the players whose modules hold what is learnt."""

    @property
    def generators(self) -> tuple[str, ...]:
        """Names of these players."""
        ...

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

    generators = ("generator",)

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


@dataclass(frozen=True)
class Hierarchical:
    """A coarse generator of the whole site and a fine one of each subdomain, with judges, on ranks of their own.

    Args:
        subdomains: into which the site is cut.
        overlap: layers of cells by which they reach into their neighbours.
        critic: weight of the critics beside the sliced-Wasserstein distances.
    """

    subdomains: int = 4
    overlap: int = 4
    critic: float = 0.02

    @property
    def generators(self) -> tuple[str, ...]:
        """The coarse one, and the fine ones."""
        return (HUB, *(fine(number) for number in range(self.subdomains)))

    def problem(self, lesson: Lesson) -> HierarchicalProblem:
        """What trains it."""
        return HierarchicalProblem(
            lesson.site, lesson.train, test=lesson.test, subdomains=self.subdomains, overlap=self.overlap,
            critic_weight=self.critic, rows=lesson.batch_size, optimiser=lesson.optimiser, schedule=lesson.schedule,
            seed=lesson.seed,
        )  # fmt: skip

    @torch.no_grad()
    def prior(self, states: Mapping[str, Mapping[str, Tensor]], site: Site, lesson: Callable[[], Lesson]) -> Generator:
        """What it has learnt: a Gaussian law, though no longer the same everywhere."""
        made = self.problem(lesson()).hierarchy
        modules = {HUB: made.coarse} | {fine(number): module for number, module in enumerate(made.fines())}
        for role, module in modules.items():
            module.load_state_dict(averaged(states[role]), strict=False)
        rows = made.double()
        mean = rows(torch.zeros(1, rows.noise, dtype=torch.float64))[0]
        modes = rows(torch.eye(rows.noise, dtype=torch.float64)) - mean
        return LinearPrior(mean, modes.T.contiguous())


@dataclass(frozen=True)
class Facies:
    """Two kinds of rock, learnt from full fields.

    Args:
        critic: weight of a critic of full fields beside the sliced-Wasserstein distances.
    """

    generators = ("generator",)

    critic: float = 0.0

    def problem(self, lesson: Lesson) -> FaciesProblem:
        """What trains it.

        Raises:
            RunError: there are no full fields.
        """
        if lesson.images is None or lesson.test is None:
            raise RunError(
                "problem: generator: facies learns from full fields, and these snapshots are of sensors alone"
            )
        return FaciesProblem(
            lesson.site, lesson.images.y, lesson.test.y, critic_weight=self.critic, optimiser=lesson.optimiser,
            schedule=lesson.schedule, seed=lesson.seed,
        )  # fmt: skip

    def prior(self, states: Mapping[str, Mapping[str, Tensor]], site: Site, lesson: Callable[[], Lesson]) -> Generator:
        """What it has learnt."""
        any_two = Populations((1.0, 1.0), (0.0, 1.0), 0.5)  # the state has the learnt ones
        made = FaciesGenerator(site.mesh, any_two, spectrum(site))
        made.load_state_dict(averaged(states["generator"]))
        return made.requires_grad_(False)


@dataclass(frozen=True)
class Paper:
    """Generators of ln T and of heads, tied by the residual of the equation and judged by a critic, as published.

    Args:
        network: separable, coordinate or modes, see :func:`exafield.subsurface.paper.on_site`.
        noise: dimensions.
    """

    generators = ("generators",)

    network: Literal["separable", "coordinate", "modes"] = "separable"
    noise: int = 20

    def problem(self, lesson: Lesson) -> PaperProblem:
        """What trains it."""
        return on_site(
            lesson.site, {"sensors": lesson.train}, self.network, noise=self.noise, test=lesson.test,
            optimiser=lesson.optimiser, schedule=lesson.schedule, seed=lesson.seed,
        )  # fmt: skip

    def prior(self, states: Mapping[str, Mapping[str, Tensor]], site: Site, lesson: Callable[[], Lesson]) -> Generator:
        """What it has learnt of ln T; heads are solved for."""
        problem = self.problem(lesson())
        with World.single("cpu") as world:
            (module,) = (player.module for player in problem.players(world) if player.name == "generators")
        module.load_state_dict(states["generators"])
        learnt: Generator = module.double().requires_grad_(False).get_submodule("y")  # type: ignore[assignment]  # has noise
        return learnt
