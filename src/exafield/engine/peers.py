"""Ranks that hand each other the outputs of a row, one message for each two ranks: what systems with calls or channels
have in common."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine.graph import Integers, Work
from exafield.engine.mpi import Part

# Stands for the graph in messages that have no outputs.
MEETING = -1


def _by_rank(columns: Integers, ranks: Integers) -> list[tuple[int, Integers]]:
    return [(int(rank), columns[ranks == rank]) for rank in np.unique(ranks)]


class Peer:
    """A rank: per row, send outputs to those that take them, take those that come, run the own columns."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.parts: list[Part] = []
        self.tasks = self._meetings = 0
        self._rows: list[list[tuple[list[tuple[int, Integers]], list[tuple[int, Integers]]]]] = []

    def send(self, to: int, number: int, t: int, outputs: Any) -> None:
        """Sends what that rank takes before row t of a graph; a copy of the outputs, as their slot is written again."""
        raise NotImplementedError

    def receive(self, source: int, number: int, t: int) -> Any:
        """What that rank has sent."""
        raise NotImplementedError

    def flush(self) -> None:
        """Returns once all that was sent has arrived."""

    def guard(self) -> AbstractContextManager[None]:
        """Around a pass: says what it means if it fails."""
        return nullcontext()

    def prepare(self, works: Sequence[Work]) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self.parts = [Part(work, self.rank, self.size) for work in works]
        self.tasks = sum(part.tasks for part in self.parts)
        self._rows = [[self._exchange(part, t) for t in range(part.steps)] for part in self.parts]
        self._meet()

    @staticmethod
    def _exchange(part: Part, t: int) -> tuple[list[tuple[int, Integers]], list[tuple[int, Integers]]]:
        """What is received and sent before row t, as (rank, columns)."""
        if not t:
            return [], []
        exchange = part.plan.exchange(t)
        return _by_rank(exchange.received, exchange.source), _by_rank(exchange.sent, exchange.to)

    def _meet(self) -> None:
        """All tell rank 0 that they are here, and hear from it that all are."""
        self._meetings += 1
        others = range(1, self.size) if self.rank == 0 else range(1)
        if self.rank:
            self.send(0, MEETING, self._meetings, None)
        for other in others:
            self.receive(other, MEETING, self._meetings)
        if self.rank == 0:
            for other in others:
                self.send(other, MEETING, self._meetings, None)
        self.flush()

    def run(self) -> float:
        """See :class:`exafield.engine.spmd.Program`."""
        parts = list(zip(self.parts, self._rows, strict=True))
        send, receive = self.send, self.receive
        with self.guard():
            self._meet()
            began = time.perf_counter()
            for t in range(max(part.steps for part in self.parts)):
                for number, (part, rows) in enumerate(parts):
                    if t >= part.steps:
                        continue
                    receives, sends = rows[t]
                    arena, columns = part.arena, part.columns
                    row, size = arena.outputs[(t - 1) % arena.slots], arena.size
                    for rank, own in sends:
                        send(rank, number, t, row[own, :size])  # indexed by an array, so it is a copy
                    for rank, others in receives:
                        row[others, :size] = receive(rank, number, t)
                    arena.run(t, columns.start, columns.stop)
            self.flush()
            self._meet()
            return time.perf_counter() - began

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """See :class:`exafield.engine.spmd.Program`."""
        return [part.outputs() for part in self.parts]

    def close(self) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
