"""Hardware: the parts of a machine as numbers: links, processors, devices, files, and communication libraries."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Final

from exafield.figure import FigureError, Lists, Number, Numbers, Word, check
from exafield.suggestion import unknown

OPERATIONS: Final = {
    "all_reduce": ("ring", "tree", "recursive_doubling", "halving_doubling"),
    "reduce": ("ring", "binomial", "chain"),
    "broadcast": ("binomial", "chain"),
    "all_gather": ("ring",),
    "all_to_all": ("direct",),
}
"""What libraries do, and the algorithms by which they can; priced by :func:`exafield.pricing.cost`."""
SCOPES: Final = ("world", "inside", "between")
"""Among whom: all ranks, those of each node, or one of each node."""
SHARED: Final = "shared"
"""The library that stands for shared memory, see :mod:`exafield.reduce.shared`."""
ALGORITHMS: Final = tuple(dict.fromkeys(name for names in OPERATIONS.values() for name in names))


class MachineError(ValueError):
    """A machine cannot be had, or cannot be; names the file and the key."""


@dataclass(frozen=True)
class Link:
    """A way for messages: inside a node from rank to rank, between nodes through the node's adapters.

    Args:
        latency: of a message, without what its ends do [s].
        bandwidth: in each direction: inside a node of each rank, between nodes of each rail [B/s].
        rails: network adapters of a node; 1 inside.
        overhead: what a message costs the processor at each of its ends [s].
        contention: bandwidth is divided by (nodes / full)**contention beyond `full` nodes.
        full: nodes up to which there is full bandwidth.
        held: probability that other traffic holds a message up.
        hold: mean of how long [s]; exponentially distributed. Task graphs feel these two; what a step of training loses
            to others is part of the machine's jitter.
    """

    latency: Annotated[float, Number("s", most=1.0)]
    bandwidth: Annotated[float, Number("B/s", above=True)]
    rails: Annotated[int, Number(least=1, most=64, whole=True)]
    overhead: Annotated[float, Number("s", most=1.0)]
    contention: Annotated[float, Number(most=1.0)]
    full: Annotated[int, Number(least=1, whole=True)]
    held: Annotated[float, Number(most=1.0)] = 0.0
    hold: Annotated[float, Number("s", most=1e3)] = 0.0

    def __post_init__(self) -> None:
        check(self)

    def rate(self, nodes: int) -> float:
        """Bandwidth of a rail when so many nodes send [B/s]."""
        return self.bandwidth * min(1.0, float((self.full / nodes) ** self.contention))


@dataclass(frozen=True)
class Host:
    """The processors that drive ranks.

    Args:
        cores: of a node.
        handling: what a control message costs at each end beyond the link's overhead [s].
        hook: what noticing a gradient costs backward [s].
        copy: rate at which gradients are packed into a group [B/s].
        crowding: by how much computing takes longer if so many ranks of a node compute; linear in between.
    """

    cores: Annotated[int, Number(least=1, whole=True)]
    handling: Annotated[float, Number("s", most=1.0)]
    hook: Annotated[float, Number("s", most=1.0)]
    copy: Annotated[float, Number("B/s", above=True)]
    crowding: Annotated[Mapping[int, float], Numbers(Number(above=True, most=1e3), int)]

    def __post_init__(self) -> None:
        check(self)
        if any(ranks < 1 for ranks in self.crowding):
            raise FigureError(f"crowding is by ranks of a node, 1 or more, got {min(self.crowding)}")

    def crowd(self, ranks: int) -> float:
        """What computing times are multiplied by when `ranks` of a node compute."""
        known = sorted(self.crowding.items())
        if not known or ranks <= known[0][0]:
            return known[0][1] if known else 1.0
        for (low, a), (high, b) in pairwise(known):
            if ranks <= high:
                return a + (b - a) * (ranks - low) / (high - low)
        return known[-1][1]


@dataclass(frozen=True)
class Device:
    """What a rank computes on.

    Args:
        kind: "gpu", or "cpu": there gradients are cut into pieces, and the ranks of a node share its cores.
        flops: peak by precision [FLOP/s].
        efficiency: share of it that a network reaches, by precision.
        memory: bandwidth [B/s].
    """

    kind: Annotated[str, Word(("cpu", "gpu"))]
    flops: Annotated[Mapping[str, float], Numbers(Number("FLOP/s", above=True))]
    efficiency: Annotated[Mapping[str, float], Numbers(Number(above=True, most=1.0))]
    memory: Annotated[float, Number("B/s", above=True)]

    def __post_init__(self) -> None:
        check(self)
        for precision in self.efficiency:
            if precision not in self.flops:
                raise FigureError(f"efficiency: {unknown('precision', precision, self.flops)}")

    def rate(self, precision: str) -> float:
        """What a network reaches [FLOP/s].

        Raises:
            MachineError: this precision is not known of the device.
        """
        if precision not in self.efficiency:
            raise MachineError(unknown("precision", precision, self.efficiency))
        return self.flops[precision] * self.efficiency[precision]


@dataclass(frozen=True)
class Jitter:
    """How computing times differ.

    A time is multiplied by exp(s z - s^2 / 2) with z of a normal distribution, so that its mean stays: once for a rank
    (manufacture, cooling) and once for every step. Now and then something else holds a rank up.

    Args:
        rank, step: s of the two.
        tail: probability of a pause, for each rank and step.
        pause: its mean [s]; exponentially distributed.
    """

    rank: Annotated[float, Number(most=1.0)]
    step: Annotated[float, Number(most=1.0)]
    tail: Annotated[float, Number(most=1.0)]
    pause: Annotated[float, Number("s", most=1e3)]

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Files:
    """Where samples come from.

    Args:
        shared: what a node reads from the shared file system [B/s].
        total: what all nodes together do [B/s].
        local: what a node reads from storage of its own [B/s]; 0 if it has none.
    """

    shared: Annotated[float, Number("B/s", above=True)]
    total: Annotated[float, Number("B/s", above=True)]
    local: Annotated[float, Number("B/s")]

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Rule:
    """How a library does one thing up to a size.

    Args:
        algorithm: one of ALGORITHMS.
        most: bytes per rank up to which it does so; infinite in the last rule.
        hop: what the library adds to the latency of every message [s].
        efficiency: share of the link's bandwidth that it reaches.
        rails: adapters that one collective drives.
    """

    algorithm: Annotated[str, Word(ALGORITHMS)]
    most: Annotated[float, Number("B", above=True, most=math.inf)]
    hop: Annotated[float, Number("s", most=1.0)]
    efficiency: Annotated[float, Number(above=True, most=2.0)]
    rails: Annotated[int, Number(least=1, most=64, whole=True)]

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Library:
    """A communication library: the table of what it does.

    Args:
        launch: of a collective [s].
        interference: share of computing that is lost while a collective is under way.
        rules: for each operation, by size.
    """

    launch: Annotated[float, Number("s", most=1.0)]
    interference: Annotated[float, Number(most=0.99)]
    rules: Annotated[Mapping[str, tuple[Rule, ...]], Lists(Rule, tuple(OPERATIONS))]

    def __post_init__(self) -> None:
        check(self)
        for operation, rules in self.rules.items():
            for index, rule in enumerate(rules):
                if rule.algorithm not in OPERATIONS[operation]:
                    why = unknown("algorithm for it", rule.algorithm, OPERATIONS[operation])
                    raise FigureError(f"rules.{operation}.{index}: {why}")
            sizes = [rule.most for rule in rules]
            if sizes != sorted(set(sizes)) or sizes[-1] != math.inf:
                raise FigureError(f"rules.{operation}: most must rise from rule to rule and be .inf in the last one")

    def rule(self, operation: str, nbytes: float) -> Rule:
        """The rule for so many bytes.

        Raises:
            MachineError: the library is not said to do this.
        """
        if operation not in self.rules:
            raise MachineError(unknown("operation of this library", operation, self.rules))
        return next(rule for rule in self.rules[operation] if nbytes <= rule.most)
