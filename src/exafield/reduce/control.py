"""Control planes: how ranks agree on the order in which gradient groups are reduced.

Ranks may finish their gradients in different orders; a collective must be entered by all in the same order.
Four ways to see to that, as frozen descriptions (what a user chooses) that make one pure state machine per
rank (:class:`exafield.message.ControlPlane`):

========== ============================================= =======================================
Static     a fixed order, nothing is said                 0 messages
Central    rank 0 counts who is ready                     2(P-1) at rank 0 (Horovod's coordinator)
Tree       counts flow up a tree, decisions down          at most 2(radix+1) per rank (Kurth et al.)
Bitvector  AND of everybody's ready bits                  2 ceil(log2 P) per rank (Laanait et al.)
========== ============================================= =======================================

Groups that are agreed on together leave in the order in which the next forward pass needs them.

Messages are counted per negotiation, sent plus received. The groups' numbers are the ones all ranks agreed on
when the plan was made, so a message is a bit mask and never a list of names: the cached numbering of Laanait
et al. (arXiv:1909.11150) and Romero et al. (NSDI 2022), used here by every plane.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from exafield.message import (
    Action,
    ControlPlane,
    Event,
    Launch,
    Ready,
    Received,
    Send,
    WakeAt,
    bits,
)


def needed_first(mask: int) -> tuple[int, ...]:
    """The groups of a mask in the order in which the next forward pass needs them: what backward makes last."""
    return tuple(bits(mask))[::-1]


@runtime_checkable
class Control(Protocol):
    """A choice of control plane."""

    def plane(self, rank: int, size: int, groups: int) -> ControlPlane:
        """The state machine of `rank` among `size`, for `groups` gradient groups a step."""
        ...

    def peers(self, rank: int, size: int) -> frozenset[int]:
        """The ranks that may send to `rank`: none for a plane that says nothing."""
        ...

    def depth(self, size: int) -> int:
        """Messages that follow one another from the last rank's word to everybody's launch."""
        ...


def _validated_cycle(cycle: float) -> None:
    if not 0 <= cycle < 10:
        raise ValueError(f"cycle must lie in 0..10 s (0.001 is Horovod's), got {cycle}")


@dataclass(frozen=True, slots=True)
class Static:
    """Groups leave in their order in the plan; a group waits for the ones before it.

    Exact and free of deadlock whatever order ranks produce, but a rank that is early with a late group waits.
    """

    def plane(self, rank: int, size: int, groups: int) -> ControlPlane:
        return _StaticPlane(groups)

    def peers(self, rank: int, size: int) -> frozenset[int]:
        return frozenset()

    def depth(self, size: int) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Central:
    """Rank 0 counts who is ready and tells all what to reduce: the coordinator of Horovod (arXiv:1802.05799).

    Args:
        cycle: groups that get ready within this time [s] travel in one message.
    """

    cycle: float = 0.0

    def __post_init__(self) -> None:
        _validated_cycle(self.cycle)

    def plane(self, rank: int, size: int, groups: int) -> ControlPlane:
        parent = None if rank == 0 else 0
        children = tuple(range(1, size)) if rank == 0 else ()
        return _TreePlane(parent, children, groups, self.cycle)

    def peers(self, rank: int, size: int) -> frozenset[int]:
        return frozenset(range(1, size) if rank == 0 else [0])

    def depth(self, size: int) -> int:
        return 2 if size > 1 else 0


@dataclass(frozen=True, slots=True)
class Tree:
    """Ready groups are counted up a tree of ranks and decided at its root (Kurth et al., arXiv:1810.01993).

    Args:
        radix: children of each rank. Kurth et al. found no difference between 2 and 8.
        cycle: groups that get ready within this time [s] travel in one message.
    """

    radix: int = 4
    cycle: float = 0.0

    def __post_init__(self) -> None:
        _validated_cycle(self.cycle)
        if self.radix < 1:
            raise ValueError(f"radix must be at least 1, got {self.radix}")

    def _parent(self, rank: int) -> int | None:
        return None if rank == 0 else (rank - 1) // self.radix

    def _children(self, rank: int, size: int) -> tuple[int, ...]:
        first = self.radix * rank + 1
        return tuple(range(first, min(first + self.radix, size)))

    def plane(self, rank: int, size: int, groups: int) -> ControlPlane:
        return _TreePlane(self._parent(rank), self._children(rank, size), groups, self.cycle)

    def peers(self, rank: int, size: int) -> frozenset[int]:
        parent = self._parent(rank)
        return frozenset(self._children(rank, size)) | ({parent} if parent is not None else set())

    def depth(self, size: int) -> int:
        levels, rank = 0, size - 1  # the last rank is on the lowest level
        while (above := self._parent(rank)) is not None:
            levels, rank = levels + 1, above
        return 2 * levels


@dataclass(frozen=True, slots=True)
class Bitvector:
    """One AND of everybody's ready bits per round, and nobody in charge (Laanait et al.; Romero et al.).

    The AND runs by dissemination (Hensgen, Finkel and Manber, 1988): in phase j each rank sends to the rank
    2**j above it. It takes ceil(log2 P) phases for any P because AND does not mind counting a rank twice.

    Args:
        cycle: least time between entering two rounds [s], unless nothing more is to come this step.
    """

    cycle: float = 0.0

    def __post_init__(self) -> None:
        _validated_cycle(self.cycle)

    def plane(self, rank: int, size: int, groups: int) -> ControlPlane:
        return _BitvectorPlane(rank, size, groups, self.cycle)

    def peers(self, rank: int, size: int) -> frozenset[int]:
        return frozenset((rank - step) % size for step in _strides(size))

    def depth(self, size: int) -> int:
        return len(_strides(size))


def _strides(size: int) -> tuple[int, ...]:
    return tuple(1 << j for j in range((size - 1).bit_length()))


class _StaticPlane:
    def __init__(self, groups: int) -> None:
        self.rounds = 0
        self._groups, self._next, self._ready = groups, 0, 0

    def handle(self, event: Event) -> list[Action]:
        if not isinstance(event, Ready):
            return []
        self._ready |= event.groups
        first = self._next
        while self._ready >> self._next & 1:
            self._next += 1
        launched = tuple(range(first, self._next))
        if self._next == self._groups:
            self._next, self._ready = 0, 0
        return [Launch(launched)] if launched else []


class _TreePlane:
    """Counts up, decisions down. With all other ranks as children of rank 0 this is the central coordinator.

    A rank tells its parent a group when itself and every child's whole subtree have it. What the root tells is
    launched at once. A parent launches, and so turns to the next step, before it passes the decision on;
    therefore a message from a child always belongs to the step its parent is in.
    """

    def __init__(self, parent: int | None, children: tuple[int, ...], groups: int, cycle: float) -> None:
        self.rounds = 0
        self._parent, self._children, self._cycle = parent, children, cycle
        self._all = (1 << groups) - 1
        self._last_told = float("-inf")
        self._begin_step()

    def _begin_step(self) -> None:
        self._own, self._told, self._launched = 0, 0, 0
        self._complete = False
        self._below = dict.fromkeys(self._children, 0)

    def handle(self, event: Event) -> list[Action]:
        if isinstance(event, Ready):
            self._own |= event.groups
            self._complete = self._complete or event.complete
        elif isinstance(event, Received):
            if event.source == self._parent:
                return self._decide(event.words[0])
            self._below[event.source] |= event.words[0]
        return self._tell(event.now)

    def _tell(self, now: float) -> list[Action]:
        whole = self._own
        for mask in self._below.values():
            whole &= mask
        new = whole & ~self._told
        if not new:
            return []
        due = self._last_told + self._cycle
        if now < due and whole != self._all:
            return [WakeAt(due)]
        self._last_told = now
        self._told |= new
        self.rounds += 1
        if self._parent is None:
            return self._decide(new)
        return [Send(self._parent, (new,))]

    def _decide(self, groups: int) -> list[Action]:
        self._launched |= groups
        if self._launched == self._all:
            self._begin_step()
        return [*(Send(child, (groups,)) for child in self._children), Launch(needed_first(groups))]


class _BitvectorPlane:
    """Rounds of one AND each.

    A round is entered only while something is ready here and not yet agreed, and only if the ready set has
    grown since the last round or will not grow any more this step. That cannot deadlock: what is agreed is the
    same everywhere, so a group that is open here is open at every rank, and each of them gets it at the latest
    when its step is complete, and then enters too.
    """

    def __init__(self, rank: int, size: int, groups: int, cycle: float) -> None:
        self.rounds = 0
        self._rank, self._size, self._cycle = rank, size, cycle
        self._strides = _strides(size)
        self._all = (1 << groups) - 1
        self._early: dict[tuple[int, int], int] = {}
        self._phase: int | None = None
        self._common = 0
        self._entered = float("-inf")
        self._begin_step()

    def _begin_step(self) -> None:
        self._ready, self._agreed, self._offered = 0, 0, 0
        self._complete = False

    def handle(self, event: Event) -> list[Action]:
        if isinstance(event, Ready):
            self._ready |= event.groups
            self._complete = self._complete or event.complete
        elif isinstance(event, Received):
            round_, phase, mask = event.words
            self._early[round_, phase] = mask
        actions: list[Action] = []
        while self._step(event.now, actions):
            pass
        return actions

    def _step(self, now: float, actions: list[Action]) -> bool:
        """Goes one phase further if it can; False when there is nothing to do but wait."""
        if self._phase is None:
            pending = self._ready & ~self._agreed
            if not pending or not (self._complete or pending & ~self._offered):
                return False
            if not self._complete and now < self._entered + self._cycle:
                actions.append(WakeAt(self._entered + self._cycle))
                return False
            self.rounds += 1
            self._entered, self._offered, self._common, self._phase = now, self._ready, pending, 0
            self._send(actions)
        elif self._phase < len(self._strides):
            mask = self._early.pop((self.rounds, self._phase), None)
            if mask is None:
                return False
            self._common &= mask
            self._phase += 1
            self._send(actions)
        else:
            self._phase = None
            self._agreed |= self._common
            if self._common:
                actions.append(Launch(needed_first(self._common)))
            if self._agreed == self._all:
                self._begin_step()
        return True

    def _send(self, actions: list[Action]) -> None:
        assert self._phase is not None
        if self._phase < len(self._strides):
            to = (self._rank + self._strides[self._phase]) % self._size
            actions.append(Send(to, (self.rounds, self._phase, self._common)))
