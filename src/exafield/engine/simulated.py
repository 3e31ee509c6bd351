"""Simulated: task graphs in virtual time on a machine, so that nothing runs but numbers.

Where other engines take bodies, this one takes how long tasks take. Ranks go about it as Task Bench's MPI program does
(and :mod:`exafield.engine.spmd`): before each row a rank posts what it sends and receives, waits for all of it, and
then runs its own tasks one after the other on one core. A message costs the processor at both of its ends (Culler et
al., PPoPP 1993), and its bytes share the ways out of its node.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exafield.engine import EngineError
from exafield.engine.graph import TaskGraph
from exafield.engine.pipes import Floats
from exafield.machine import Machine
from exafield.trace import Trace

Seconds = float | NDArray[np.float64] | Callable[[int, range], NDArray[np.float64]]
"""Of tasks: the same for all; [rows, columns]; or for a row's columns."""

# Ranks that a trace shows: our choice.
_SHOWN = 64


@dataclass(frozen=True, eq=False)
class Modelled:
    """What a graph took.

    Args:
        elapsed: until the last task was over [s].
        computing: of each rank [s].
        messages: that were sent.
        trace: of tasks and of waiting for messages, if asked for; of the first ranks.
    """

    elapsed: float
    computing: Floats
    messages: int
    trace: Trace | None = None


@dataclass(frozen=True, eq=False)
class _Traffic:
    """The messages before a row: a column's output once to each rank that takes it; by rank that takes them.

    Args:
        source: rank that sends a message.
        way: how long it is under way.
        may, held, hold: messages that may be held up, with what probability, and for how long on average.
        receivers, starts: ranks that take messages, and where theirs begin.
        sending, taking: what its messages cost a rank's processor.
    """

    source: NDArray[np.int64]
    way: Floats
    may: NDArray[np.int64]
    held: Floats
    hold: Floats
    receivers: NDArray[np.int64]
    starts: NDArray[np.int64]
    sending: Floats
    taking: Floats


@dataclass(frozen=True, slots=True)
class Simulated:
    """Task graphs on a machine that one does not have.

    Args:
        machine: whose links and jitter count.
    """

    machine: Machine

    def run(
        self,
        graph: TaskGraph,
        seconds: Seconds,
        *,
        ranks: int | None = None,
        output_bytes: int = 16,
        seed: int | None = None,
        trace: bool = False,
    ) -> Modelled:
        """Runs a graph once.

        Args:
            seconds: that tasks take, alone on a core.
            ranks: that share the columns in blocks, node by node; default: one for each column.
            output_bytes: of a task.
            seed: of the machine's jitter; None: there is none.
            trace: whether to record the first ranks.
        Raises:
            MachineError: the machine has fewer ranks.
            EngineError: seconds are not of the graph's shape, or negative.
        """
        size = graph.width if ranks is None else ranks
        run = _Run(self.machine, graph, size, output_bytes, seed)
        traces = [Trace(rank, offset=0.0) for rank in range(min(size, _SHOWN))] if trace else []
        free, computing = run.through(seconds, traces)
        merged = Trace.merge(traces) if trace else None
        return Modelled(float(free.max()), computing[0], run.count, merged)

    def elapsed(
        self, graph: TaskGraph, seconds: Seconds, repeats: int, *, output_bytes: int = 16, seed: int | None = None
    ) -> Floats:
        """What a graph takes, a rank for each column, in each of some runs [s]: :meth:`run` for all of them at once.

        Args:
            repeats: runs, each with jitter of its own.
            seconds, output_bytes, seed: as there.
        Raises:
            MachineError, EngineError: as there.
        """
        free, _ = _Run(self.machine, graph, graph.width, output_bytes, seed, repeats).through(seconds, [])
        longest: Floats = free.max(axis=1)
        return longest


class _Run:
    """Some runs of a graph; times are [runs, ranks]."""

    def __init__(
        self, machine: Machine, graph: TaskGraph, size: int, output_bytes: int, seed: int | None, repeats: int = 1
    ) -> None:
        nodes = machine.nodes_for(size)
        self.machine, self.graph, self.size, self.nbytes = machine, graph, size, output_bytes
        self.shape = (repeats, size)
        self.node = np.arange(size) // machine.ranks_per_node
        bounds = np.arange(size + 1) * graph.width // size  # as exafield.engine.plan deals them out
        self.owner = np.searchsorted(bounds, np.arange(graph.width), side="right") - 1
        self.rate = machine.between.rate(nodes)
        self.count = 0
        self._known: dict[tuple[int, int, int, int, int], _Traffic] = {}
        self._random = None if seed is None else np.random.default_rng(seed)
        jitter = machine.jitter
        self.factor = np.ones(self.shape)
        if self._random is not None:
            self.factor = np.exp(jitter.rank * self._random.standard_normal(self.shape) - jitter.rank**2 / 2)

    def through(self, seconds: Seconds, traces: Sequence[Trace]) -> tuple[Floats, Floats]:
        """When ranks are over, and what they computed; traces take the first ranks of the first run."""
        free, computing = np.zeros(self.shape), np.zeros(self.shape)
        for t in range(self.graph.steps):
            began = free
            traffic = self._traffic(t)
            self.count += traffic.source.size
            free = self._exchange(traffic, free)
            took = self._row(t, seconds)
            computing += took
            for one in traces:
                begin, end = float(free[0, one.rank]), float(free[0, one.rank] + took[0, one.rank])
                if begin > began[0, one.rank]:
                    one.add("messages", f"row {t}", float(began[0, one.rank]), begin)
                if end > begin:
                    one.add("tasks", f"row {t}", begin, end)
            free = free + took
        return free, computing

    def _row(self, t: int, seconds: Seconds) -> Floats:
        """Computing in a row [s]."""
        columns = self.graph.columns(t)
        if callable(seconds):
            each = np.asarray(seconds(t, columns), dtype=float)
        elif isinstance(seconds, np.ndarray):
            if seconds.shape != (self.graph.steps, self.graph.width):
                raise EngineError(
                    f"seconds must have a row for each of {self.graph.steps} rows and {self.graph.width} columns, got "
                    f"shape {seconds.shape}"
                )
            each = seconds[t, columns.start : columns.stop]
        else:
            each = np.full(len(columns), float(seconds))
        if each.shape != (len(columns),) or not (each >= 0).all():
            raise EngineError(f"row {t} has {len(columns)} tasks, and each must take 0 s or more: got {each}")
        took: Floats = np.bincount(self.owner[columns.start : columns.stop], each, self.size) * self.factor
        jitter = self.machine.jitter
        if self._random is not None:
            took *= np.exp(jitter.step * self._random.standard_normal(self.shape) - jitter.step**2 / 2)
            if jitter.tail:
                held = self._random.random(self.shape) < jitter.tail
                took += held * self._random.exponential(jitter.pause, self.shape)
        return took

    def _exchange(self, traffic: _Traffic, free: Floats) -> Floats:
        """When each rank has sent and received what goes before a row."""
        if not traffic.source.size:  # of which there is no maximum
            return free
        posted = free + traffic.sending
        way = traffic.way
        if self._random is not None and traffic.may.size:
            way = np.tile(way, (free.shape[0], 1))
            chance = self._random.random((free.shape[0], traffic.may.size))
            # Of those below the probability, what they are of it is uniform: one number says both.
            run, message = np.nonzero(chance < traffic.held)
            share = chance[run, message] / traffic.held[message]
            way[run, traffic.may[message]] -= np.log1p(-share) * traffic.hold[message]
        arrived = np.maximum.reduceat(posted[..., traffic.source] + way, traffic.starts, axis=-1)
        over = posted.copy()
        over[..., traffic.receivers] = np.maximum(posted[..., traffic.receivers], arrived)
        return over + traffic.taking

    def _transfer(self, source: NDArray[np.int64], target: NDArray[np.int64], home: NDArray[np.bool_]) -> Floats:
        """Time of the bytes of each message, with those that share its way."""
        inside, between = self.machine.inside, self.machine.between
        local, away = np.where(home, self.nbytes, 0.0), np.where(home, 0.0, self.nbytes)
        busy = np.zeros(source.size)
        for end in (source, target):
            node = self.node[end]
            busy = np.maximum(busy, np.bincount(end, local, self.size)[end] / inside.bandwidth)
            busy = np.maximum(busy, np.bincount(end, away, self.size)[end] / self.rate)
            busy = np.maximum(busy, np.where(home, 0.0, np.bincount(node, away)[node] / (self.rate * between.rails)))
        return busy

    def _traffic(self, t: int) -> _Traffic:
        graph = self.graph
        before, now = graph.columns(t - 1), graph.columns(t)
        key = (int(graph.chosen[t]), before.start, before.stop, now.start, now.stop)
        if key not in self._known:
            relation = graph.relations[key[0]]
            producers, consumers = relation.producers, np.repeat(np.arange(graph.width), np.diff(relation.starts))
            there = (producers >= before.start) & (producers < before.stop)
            there &= (consumers >= now.start) & (consumers < now.stop)
            there &= self.owner[producers] != self.owner[consumers]
            pairs = np.unique(np.stack([self.owner[consumers[there]], producers[there]], axis=1), axis=0)
            self._known[key] = self._messages(self.owner[pairs[:, 1]], pairs[:, 0])
        return self._known[key]

    def _messages(self, source: NDArray[np.int64], target: NDArray[np.int64]) -> _Traffic:
        inside, between = self.machine.inside, self.machine.between
        home = self.node[source] == self.node[target]

        def either(name: str) -> Floats:
            found: Floats = np.where(home, getattr(inside, name), getattr(between, name)).astype(float)
            return found

        overhead = either("overhead")
        receivers, starts = np.unique(target, return_index=True)
        sending: Floats = np.bincount(source, overhead, self.size).astype(float)
        taking: Floats = np.bincount(target, overhead, self.size).astype(float)
        way = either("latency") + self._transfer(source, target, home)
        held, hold = either("held"), either("hold")
        may = np.flatnonzero(held)
        return _Traffic(source, way, may, held[may], hold[may], receivers, starts, sending, taking)
