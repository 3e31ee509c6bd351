"""Study: the scaling curve of one step on one machine, for one reducer or several."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from exafield.machine import Machine
from exafield.reduce import Reducer
from exafield.scaling.simulation import Outcome, computing, simulate
from exafield.scaling.step import Step

Data = Literal["local", "shared"]
# The target where none is given [samples]: our choice, to have something that runs can be compared by.
SAMPLES = 1_000_000
# Steps that are simulated: the more the fewer ranks there are, since the mean over few draws varies most. Our choice.
_FEWEST, _MOST, _DRAWS = 12, 100, 1_200


class StudyError(ValueError):
    """What was asked for cannot be computed; says what to change."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a run is to reach.

    Args:
        samples: seen in all, or
        steps: taken; exactly one of the two.
        price: of an hour of one device, in any currency; None if nobody asked.
    """

    samples: int | None = SAMPLES
    steps: int | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        if (self.samples is None) == (self.steps is None):
            raise StudyError("a target is a number of samples or of steps: give one of them")
        for name, value in (("samples", self.samples), ("steps", self.steps)):
            if value is not None and value < 1:
                raise StudyError(f"--{name} {value}: the target must be 1 or more")
        if self.price is not None and not 0 < self.price < math.inf:
            raise StudyError(f"--price {self.price}: must be above 0 and finite")

    def __str__(self) -> str:
        return f"{self.samples:,} samples" if self.steps is None else f"{self.steps:,} steps"


@dataclass(frozen=True, slots=True)
class Point:
    """One number of nodes.

    Args:
        nodes, ranks: of the machine that are used.
        batch: samples of all ranks in one step.
        seconds: of one step, mean.
        efficiency: samples per second and rank, over those of one rank alone that waits for nothing.
        flops: sustained by all ranks [FLOP/s].
        loss: where the time of a step goes [s], see :mod:`exafield.scaling.waterfall`; adds up to `seconds`.
        groups: of gradients.
    """

    nodes: int
    ranks: int
    batch: int
    seconds: float
    efficiency: float
    flops: float
    loss: Mapping[str, float]
    groups: int

    @property
    def samples_per_second(self) -> float:
        """Of all ranks."""
        return self.batch / self.seconds

    def steps(self, target: Target) -> int:
        """To the target; the last step may overshoot it."""
        return target.steps if target.steps is not None else -(-(target.samples or 0) // self.batch)

    def duration(self, target: Target) -> float:
        """Time to the target [s]."""
        return self.steps(target) * self.seconds

    def hours(self, target: Target) -> float:
        """Hours of all devices to the target, each counting."""
        return self.duration(target) * self.ranks / 3600.0


@dataclass(frozen=True, slots=True)
class Curve:
    """A reducer's scaling.

    Args:
        name: of the reducer, as it was written.
        points: by number of nodes.
    """

    name: str
    points: tuple[Point, ...]

    @property
    def last(self) -> Point:
        """At the largest number of nodes."""
        return self.points[-1]


@dataclass(frozen=True, slots=True)
class Study:
    """What comes of a step on a machine.

    Args:
        step: on this machine's device.
        machine: it runs on.
        strong: whether the global batch stays, instead of each rank's.
        data: where samples are read from, "local" or "shared".
        curves: the first is the one that was asked about.
        left_out: numbers of nodes at which a rank would have less than one sample.
    """

    step: Step
    machine: Machine
    strong: bool
    data: Data
    curves: tuple[Curve, ...]
    left_out: tuple[int, ...]


def spread(first: int, last: int) -> list[int]:
    """Numbers of nodes between two, doubling, with both ends."""
    found = [first]
    while found[-1] * 2 < last:
        found.append(found[-1] * 2)
    return found if first == last else [*found, last]


def parse_nodes(text: str) -> list[int]:
    """Numbers of nodes: `8`, `1..4600` (doubling, and both ends), or several of these with commas between.

    Raises:
        StudyError: it is written otherwise.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", part)
        if match is None:
            raise StudyError(f"--nodes {text}: write numbers such as 8, ranges such as 1..4600, or several as 1,8,64")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last:
            raise StudyError(f"--nodes {part.strip()}: must begin with 1 or more, and end no lower than it begins")
        found.update(spread(first, last))
    return sorted(found)


def study(
    step: Step,
    machine: Machine,
    nodes: Sequence[int],
    reducers: Mapping[str, Reducer],
    *,
    strong: bool = False,
    data: Data = "local",
) -> Study:
    """Simulates every reducer on every number of nodes.

    Args:
        step: on this machine's device, with as many samples per rank as on the fewest nodes.
        nodes: ascending.
        reducers: by the names they are to have.
        strong: keep the global batch of the fewest nodes. Numbers of nodes at which a rank would have no sample are
            left out.
    Raises:
        MachineError: the machine has fewer nodes.
    """
    per_node = machine.ranks_per_node
    whole = step.samples * nodes[0] * per_node
    possible = [n for n in nodes if not strong or n * per_node <= whole]
    alone = step.samples / sum(computing(step, machine))
    curves = []
    for name, reducer in reducers.items():
        points = []
        for count in possible:
            ranks = count * per_node
            batch = whole if strong else step.samples * ranks
            # The busiest rank has the sample more that does not divide.
            mine = step.batch(-(-batch // ranks)) if strong else step
            steps = max(_FEWEST, min(_MOST, _DRAWS // ranks))
            outcome = simulate(mine, reducer, machine, ranks, steps=steps, data=data)
            points.append(_point(count, ranks, batch, outcome, alone, step.flops, strong))
        curves.append(Curve(name, tuple(points)))
    return Study(step, machine, strong, data, tuple(curves), tuple(n for n in nodes if n not in possible))


def _point(
    nodes: int, ranks: int, batch: int, outcome: Outcome, alone: float, operations: float, strong: bool
) -> Point:
    rate, loss = batch / outcome.seconds, dict(outcome.breakdown)
    if strong:  # a rank's share of what one alone would do; what it does beyond that is lost, too
        loss["compute"] = batch / (ranks * alone)
        loss["undivided"] = outcome.breakdown["compute"] - loss["compute"]
    return Point(
        nodes,
        ranks,
        batch,
        outcome.seconds,
        rate / (ranks * alone),
        rate * operations,
        loss,
        outcome.groups,
    )
