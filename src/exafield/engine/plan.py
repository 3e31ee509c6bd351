"""Plan: which rank has which columns, and which outputs travel between ranks before a row."""

from dataclasses import dataclass

import numpy as np

from exafield.engine.graph import Integers, TaskGraph, integers


@dataclass(frozen=True, eq=False)
class Exchange:
    """What one rank sends and receives before it runs a row: a column's output once to each rank that takes it.

    Both sides list their messages to each other in the same order, so one tag is enough.

    Args:
        sent: [n] columns of this rank, whose output of the row before goes
        to: [n] to these ranks.
        received: [m] columns of others, whose output comes
        source: [m] from these ranks.
    """

    sent: Integers
    to: Integers
    received: Integers
    source: Integers


class Plan:
    """The part of one rank in a graph: a block of columns.

    Args:
        graph: whose columns are dealt out.
        rank: of `size`.
    """

    def __init__(self, graph: TaskGraph, rank: int, size: int) -> None:
        self.graph, self.rank, self.size = graph, rank, size
        self._bounds = np.arange(size + 1) * graph.width // size
        #: The columns of this rank; none if there are more ranks than columns and this one went without.
        self.columns = range(int(self._bounds[rank]), int(self._bounds[rank + 1]))
        self._owner = np.searchsorted(self._bounds, np.arange(graph.width), side="right") - 1
        self._known: dict[tuple[int, range, range], Exchange] = {}

    def exchange(self, t: int) -> Exchange:
        """What travels before row t."""
        graph = self.graph
        before, now = graph.columns(t - 1), graph.columns(t)
        key = (int(graph.chosen[t]), before, now)
        if key not in self._known:
            self._known[key] = self._exchange(*key)
        return self._known[key]

    def _exchange(self, chosen: int, before: range, now: range) -> Exchange:
        relation, width = self.graph.relations[chosen], self.graph.width
        consumers = np.repeat(np.arange(width), np.diff(relation.starts))
        producers = relation.producers
        there = (producers >= before.start) & (producers < before.stop)
        there &= (consumers >= now.start) & (consumers < now.stop)
        here, away = self._owner[producers], self._owner[consumers]
        out = there & (here == self.rank) & (away != self.rank)
        into = there & (here != self.rank) & (away == self.rank)
        sent = np.unique(np.stack([producers[out], away[out]], axis=1), axis=0)
        received = np.unique(np.stack([producers[into], here[into]], axis=1), axis=0)
        columns = [np.ascontiguousarray(a, dtype=np.int64) for a in (*sent.T, *received.T)]
        return Exchange(*columns)

    def table(self) -> "Table":
        """All exchanges, for compiled loops."""
        steps = self.graph.steps
        rows = [self.exchange(t) for t in range(steps)] + [_NONE]
        kinds = {id(exchange): exchange for exchange in rows}
        number = {key: index for index, key in enumerate(kinds)}
        own = np.arange(self.columns.start, self.columns.stop)
        exported = [np.unique(exchange.sent) for exchange in kinds.values()]
        order = [np.concatenate((first, np.setdiff1d(own, first))) for first in exported]
        return Table(
            kinds=integers([number[id(exchange)] for exchange in rows]),
            sent_starts=integers(np.cumsum([0, *(e.sent.size for e in kinds.values())])),
            sent=integers(np.concatenate([e.sent for e in kinds.values()])),
            to=integers(np.concatenate([e.to for e in kinds.values()])),
            received_starts=integers(np.cumsum([0, *(e.received.size for e in kinds.values())])),
            received=integers(np.concatenate([e.received for e in kinds.values()])),
            source=integers(np.concatenate([e.source for e in kinds.values()])),
            exported=integers([first.size for first in exported]),
            order=integers(np.concatenate(order)),
        )


_NONE = Exchange(*(np.empty(0, dtype=np.int64) for _ in range(4)))


@dataclass(frozen=True, eq=False)
class Table:
    """The exchanges of a plan as arrays; rows of one kind share their entries.

    Args:
        kinds: [steps + 1] kind of what travels before each row; the last, after the last row, is none.
        sent_starts, sent, to: messages sent, by kind; see :class:`Exchange`.
        received_starts, received, source: messages received, by kind.
        exported: [kinds] how many of the rank's columns are sent.
        order: [kinds, own columns] the rank's columns, those that are sent first.
    """

    kinds: Integers
    sent_starts: Integers
    sent: Integers
    to: Integers
    received_starts: Integers
    received: Integers
    source: Integers
    exported: Integers
    order: Integers
