"""Virtual: steps of training in virtual time, with the control planes that real ranks have.

Ranks compute (forward, then backward), tell their control planes which groups of gradients are ready, carry the
messages of these, and send off what they launch; a group leaves when the last rank has launched it. With `lag` 0 a step
ends when all groups have arrived, with `lag` 1 when those of the step before have. What a reducer's session does in
real time is done here with the same objects; only time and the network are modelled.

Two ways:

- :func:`negotiate` carries out every plane and every message of the ranks it is given. With more ranks than are worth
  it, a few stand for all: each for a block of ranks, whose slowest it is in every step (the order statistics of the
  stragglers), and messages cost as much more as there are more of them on the longest way (:class:`Control`).
- :func:`alike` is for planes that say nothing. All ranks then do the same things, each at its own times: one plane
  shows what, and times are those of all ranks.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from exafield.engine.pipes import Floats, Pipes, Progress, Route
from exafield.message import ControlPlane, Event, Launch, Ready, Received, Send, WakeAt, Woken, bits

# Batches read ahead, as the trainer does.
PREFETCH = 2


@dataclass(frozen=True)
class Load:
    """What a rank does in a step.

    Args:
        forward, backward, after: computing: before, during and after gradients come [s].
        ready: for each group when its last gradient is there [s after backward began]. The last group leaves with the
            end of backward, and with lag all do.
        routes: of the groups.
        factors: [steps, ranks] what computing times are multiplied by.
        pauses: [steps, ranks] what holds ranks up besides [s].
        read: time to read a batch while others are used [s].
        wait: for data, however fast it is read [s].
        lag: 0 or 1.
        interference: share of computing lost while a reduction is under way.
    """

    forward: float
    backward: float
    after: float
    ready: tuple[float, ...]
    routes: tuple[Route, ...]
    factors: Floats
    pauses: Floats
    read: float = 0.0
    wait: float = 0.0
    lag: int = 0
    interference: float = 0.0

    def offers(self) -> list[tuple[float, int]]:
        """When which groups are offered to the control plane [s of computing after the step began]: times rise, and the
        last offer closes the step.
        """
        early: dict[float, int] = {}
        if not self.lag:
            for group, at in enumerate(self.ready[:-1]):
                early[at] = early.get(at, 0) | 1 << group
        offered = sum(early.values())
        last = ((1 << len(self.ready)) - 1) & ~offered
        rising = [(self.forward + min(at, self.backward), mask) for at, mask in sorted(early.items())]
        return [*rising, (self.forward + self.backward, last)]


@dataclass(frozen=True)
class Control:
    """What control messages cost.

    Args:
        plane: of a rank.
        home: tells whether two ranks share a node.
        ends: of a message at each of its ends, inside a node and between nodes [s].
        ways: of a message between its ends [s], the same two.
        stretch: what that is multiplied by, where a few ranks stand for many.
        hub: the same for what messages cost rank 0.
    """

    plane: Callable[[int], ControlPlane]
    home: Callable[[int, int], bool]
    ends: tuple[float, float]
    ways: tuple[float, float]
    stretch: float = 1.0
    hub: float = 1.0


@dataclass
class Step:
    """When things happened in one step [s].

    Args:
        start: of each rank.
        begin: of computing, with data.
        flushed: when backward was over, on each rank.
        launched: [groups, ranks].
        left, arrived: of each group.
        order: in which groups were launched.
        end: of each rank, without what comes after the gradients have.
        messages: control messages received by all ranks.
    """

    start: Floats
    begin: Floats
    flushed: Floats
    launched: Floats
    left: list[float] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    end: Floats = field(default_factory=lambda: np.zeros(0))
    messages: int = 0


class _Course:
    """What both ways have in common: data, pipes, and how a step follows the one before."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.steps: list[Step] = []
        self.pipes, self.progress = Pipes(), Progress(load.interference)
        self._read = 0.0  # when the last batch has been read

    @property
    def number(self) -> int:
        """Of the present step."""
        return len(self.steps) - 1

    def begin(self) -> Step:
        """Begins a step."""
        load, ranks, groups = self.load, self.load.factors.shape[1], len(self.load.ready)
        start = np.zeros(ranks)
        if self.steps:
            before = self.steps[-1]
            start = before.end + load.after * load.factors[self.number]
            floor = float(start.min())
            self.progress.forget(floor)
            self.pipes.forget(floor)
        freed = self.steps[-PREFETCH].start.max() if len(self.steps) >= PREFETCH else 0.0
        self._read = max(self._read, freed) + load.read
        begin = np.maximum(start, self._read) + load.wait + load.pauses[len(self.steps)]
        step = Step(start, begin, np.zeros(ranks), np.zeros((groups, ranks)), [0.0] * groups, [0.0] * groups)
        self.steps.append(step)
        return step

    def leave(self, group: int, at: float) -> None:
        """The last rank has launched a group."""
        step = self.steps[-1]
        arrived = self.pipes.send(self.load.routes[group], at)
        step.left[group], step.arrived[group] = at, arrived
        step.order.append(group)
        self.progress.under_way(at, arrived)

    def end(self) -> None:
        """All groups have left."""
        step = self.steps[-1]
        awaited = self.steps[-2] if self.load.lag and self.number else step
        came = 0.0 if self.load.lag and not self.number else max(awaited.arrived)
        step.end = np.maximum(np.maximum(step.flushed, step.launched.max(axis=0)), came)


def alike(load: Load, plane: ControlPlane | None) -> list[Step]:
    """Steps with planes that say nothing.

    Args:
        plane: of any rank; None: groups leave as they are ready.
    """
    course, offers = _Course(load), load.offers()
    for number in range(len(load.factors)):
        step, factor = course.begin(), load.factors[number]
        now, done = step.begin, 0.0
        for index, (at, groups) in enumerate(offers):
            now, done = course.progress.all_when(now, (at - done) * factor), at
            complete = index == len(offers) - 1
            if complete:
                step.flushed = now
            latest = float(now.max())
            for group in bits(groups) if plane is None else _launched(plane.handle(Ready(latest, 0, groups, complete))):
                step.launched[group] = now
                course.leave(group, latest)
        course.end()
    return course.steps


def _launched(actions: Sequence[object]) -> list[int]:
    if not all(isinstance(action, Launch) for action in actions):
        raise ValueError("a control plane that sends messages or asks for the time cannot stand for all ranks")
    return [group for action in actions if isinstance(action, Launch) for group in action.groups]


def negotiate(load: Load, control: Control) -> list[Step]:
    """Steps with every message of the planes."""
    return _Negotiation(load, control).run()


# The number of an offer, the source and words of a message, or None: a time asked for.
_What = int | tuple[int, tuple[int, ...]] | None


class _Negotiation(_Course):
    """Events in the order of their times. A rank's processor serves one message at a time."""

    def __init__(self, load: Load, control: Control) -> None:
        super().__init__(load)
        self._control, self._offers = control, load.offers()
        self._size = load.factors.shape[1]
        self._planes = [control.plane(rank) for rank in range(self._size)]
        self._free = [0.0] * self._size
        self._orders: list[list[int]] = [[] for _ in range(self._size)]
        self._counts = [0] * len(load.ready)
        self._events: list[tuple[float, int, int, _What]] = []
        self._serial = 0

    def run(self) -> list[Step]:
        self._start()
        while self._events:
            at, _, rank, event = heapq.heappop(self._events)
            if isinstance(event, int):
                self._offer(rank, event, at)
            elif isinstance(event, tuple):
                self._receive(rank, event[0], event[1], at)
            else:
                self._handle(Woken(max(at, self._free[rank]), rank), rank)
        if len(self.steps) < len(self.load.factors) or not self.steps[-1].end.size:
            raise RuntimeError("the control planes have stopped talking before all groups were launched")
        return self.steps

    def _at(self, time: float, rank: int, event: _What) -> None:
        self._serial += 1
        heapq.heappush(self._events, (time, self._serial, rank, event))

    def _start(self) -> None:
        step = self.begin()
        self._factor = self.load.factors[self.number].tolist()
        self._past = step.begin.tolist()  # when each rank made its last offer, or began
        self._counts = [0] * len(self._counts)
        for rank in range(self._size):
            self._orders[rank] = []
            self._at(self._when(rank, 0), rank, 0)

    def _when(self, rank: int, index: int) -> float:
        """When a rank makes an offer, as far as is known."""
        done = self._offers[index - 1][0] if index else 0.0
        return self.progress.when(self._past[rank], (self._offers[index][0] - done) * self._factor[rank])

    def _offer(self, rank: int, index: int, at: float) -> None:
        """A rank has computed up to its next offer, unless a reduction has slowed it down in the meantime."""
        true = self._when(rank, index)
        if true > at:
            self._at(true, rank, index)
            return
        self._past[rank] = at
        complete = index == len(self._offers) - 1
        if complete:
            self.steps[-1].flushed[rank] = at
        else:
            self._at(self._when(rank, index + 1), rank, index + 1)
        self._handle(Ready(max(at, self._free[rank]), rank, self._offers[index][1], complete), rank)

    def _cost(self, rank: int, peer: int) -> tuple[float, float]:
        """What a message costs this rank's processor, and its way [s]."""
        far = 0 if self._control.home(rank, peer) else 1
        stretch = self._control.hub if rank == 0 else self._control.stretch
        return self._control.ends[far] * stretch, self._control.ways[far] * self._control.stretch

    def _receive(self, rank: int, source: int, words: tuple[int, ...], at: float) -> None:
        now = max(at, self._free[rank]) + self._cost(rank, source)[0]
        self._free[rank] = now
        self.steps[-1].messages += 1
        self._handle(Received(now, rank, source, words), rank)

    def _handle(self, event: Event, rank: int) -> None:
        now = event.now
        for action in self._planes[rank].handle(event):
            if isinstance(action, Send):
                end, way = self._cost(rank, action.to)
                now += end
                self._at(now + way, action.to, (rank, action.words))
            elif isinstance(action, WakeAt):
                self._at(action.time, rank, None)
            else:
                self._launch(rank, action.groups, now)
        self._free[rank] = max(self._free[rank], now)

    def _launch(self, rank: int, groups: tuple[int, ...], now: float) -> None:
        step, order = self.steps[-1], self._orders[rank]
        for group in groups:
            order.append(group)
            step.launched[group, rank] = now
            self._counts[group] += 1
            if self._counts[group] == self._size:
                self.leave(group, float(step.launched[group].max()))
        if len(step.order) == len(self._counts):
            if any(other != order for other in self._orders):
                raise RuntimeError("the control plane launches groups in different orders on different ranks")
            self.end()
            if len(self.steps) < len(self.load.factors):
                self._start()
