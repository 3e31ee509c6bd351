"""What policies say and what machines price.

A control plane is a pure state machine (:class:`ControlPlane`): events in, actions out, no clock, thread or
socket inside. A session of :mod:`exafield.reduce` feeds it with real events; a simulated machine or a test
feeds the same object with events of its own.

Sets of gradient groups travel as bit masks: bit ``g`` of an ``int`` stands for group ``g``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Topology:
    """Which ranks share a node.

    Args:
        nodes: for each node the ranks on it, ascending; together 0..size-1, each once.
    """

    nodes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        ranks = sorted(rank for node in self.nodes for rank in node)
        if ranks != list(range(len(ranks))) or not ranks:
            raise ValueError(
                f"nodes must hold each rank 0..size-1 exactly once, got {self.nodes}: list every rank under its node"
            )

    @property
    def size(self) -> int:
        """Number of ranks."""
        return sum(len(node) for node in self.nodes)

    @classmethod
    def regular(cls, size: int, ranks_per_node: int) -> "Topology":
        """Ranks 0..size-1 filled node by node, the last node with what is left."""
        if size < 1 or ranks_per_node < 1:
            raise ValueError(f"size and ranks_per_node must be >= 1, got {size} and {ranks_per_node}")
        starts = range(0, size, ranks_per_node)
        return cls(tuple(tuple(range(s, min(s + ranks_per_node, size))) for s in starts))

    def node_of(self, rank: int) -> int:
        """Index of the node that `rank` is on."""
        for index, node in enumerate(self.nodes):
            if rank in node:
                return index
        raise ValueError(f"rank {rank} is not in a topology of {self.size} ranks")


@dataclass(frozen=True, slots=True)
class Message:
    """`nbytes` bytes from rank `src` to rank `dst`."""

    src: int
    dst: int
    nbytes: float


@dataclass(frozen=True, slots=True)
class Phase:
    """Messages that travel at the same time, the whole set `repeat` times in sequence."""

    messages: tuple[Message, ...]
    repeat: int = 1


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a collective: an operation of a communication library, by several sets of ranks at the same time.

    Args:
        operation: "all_reduce", "reduce", "broadcast", "all_gather" or "all_to_all".
        scope: among all ranks ("world"), those of each node ("inside"), or one of each node ("between").
        nbytes: what is reduced, broadcast, gathered or exchanged; of each set.
        teams: sets that share a node.
    """

    operation: str
    scope: Literal["world", "inside", "between"]
    nbytes: float
    teams: int = 1


# Events a control plane sees. `now` [s] comes from the caller's clock, whichever that is.


@dataclass(frozen=True, slots=True)
class Ready:
    """The groups in mask `groups` have all their local gradients; `complete`: so have now all groups of the step."""

    now: float
    rank: int
    groups: int
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """A control message `words` from rank `source` has arrived."""

    now: float
    rank: int
    source: int
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Woken:
    """A time asked for by :class:`WakeAt` has come."""

    now: float
    rank: int


Event = Ready | Received | Woken


# Actions a control plane answers with, to be carried out in order.


@dataclass(frozen=True, slots=True)
class Send:
    """Send the control message `words` to rank `to`."""

    to: int
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Launch:
    """Reduce these groups, in this order: the same on every rank."""

    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send a :class:`Woken` at `time` [s]."""

    time: float


Action = Send | Launch | WakeAt


@runtime_checkable
class ControlPlane(Protocol):
    """Agrees with its peers on the order in which groups are reduced.

    Every implementation promises: on all ranks the same groups are launched in the same order; a group is
    launched once per step and only after this rank (if ranks negotiate: every rank) has reported it ready; once
    every rank has reported itself complete, every group is launched. When the last group of a step is launched the
    plane is ready for the next step.
    """

    rounds: int
    """Negotiations this rank has taken part in since the start."""

    def handle(self, event: Event) -> list[Action]:
        """Takes one event and answers with the actions it calls for."""
        ...


def bits(mask: int) -> Iterator[int]:
    """The positions of the set bits of `mask`, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
