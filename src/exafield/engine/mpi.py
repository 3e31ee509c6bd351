"""MPI through mpi4py: each rank has a block of columns; outputs travel by persistent requests."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine.graph import Work
from exafield.engine.native import Arena, compiled
from exafield.engine.plan import Plan


class Part:
    """What one rank holds of one work."""

    def __init__(self, work: Work, rank: int, size: int) -> None:
        self.plan = Plan(work.graph, rank, size)
        self.columns = self.plan.columns
        self.arena = Arena(work, columns=self.columns)
        self.steps = work.graph.steps
        self.tasks = sum(len(self.mine(t)) for t in range(self.steps))

    def mine(self, t: int) -> range:
        """The columns of this rank that have a task in row t."""
        row, own = self.arena.graph.columns(t), self.columns
        return range(max(row.start, own.start), min(row.stop, own.stop))

    def outputs(self) -> dict[int, NDArray[np.uint8]]:
        """The outputs of the last row's tasks of this rank."""
        t = self.steps - 1
        return {column: self.arena.output(t, column).copy() for column in self.mine(t)}


class PointToPoint:
    """A rank: per row, start the requests, wait for them, run the own columns.

    The messages of a row are the same for all rows of its kind, and there are two slots of outputs: so requests are
    made once, and started again and again (persistent communication, MPI 4.1, section 3.9).
    """

    barrier = False

    def __init__(self, rank: int, size: int, folder: str) -> None:
        from mpi4py import MPI

        self._mpi, self._world = MPI, MPI.COMM_WORLD
        self.rank, self.size = rank, size
        self.parts: list[Part] = []
        self._calls: list[list[tuple[Callable[[], object], ...]]] = []
        self._owned: list[Any] = []

    def prepare(self, works: Sequence[Work]) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self._free()
        self.parts = [Part(work, self.rank, self.size) for work in works]
        self.tasks = sum(part.tasks for part in self.parts)
        self._calls = [self._persistent(part) for part in self.parts]
        self._world.Barrier()

    def _persistent(self, part: Part) -> list[tuple[Callable[[], object], ...]]:
        """What is called before each row: starts all requests, then waits for each.

        One by one, since handing lists of requests to MPI costs Python more than the calls it saves.
        """
        made: dict[tuple[int, int], tuple[Callable[[], object], ...]] = {}
        rows: list[tuple[Callable[[], object], ...]] = [()]
        for t in range(1, part.steps):
            exchange = part.plan.exchange(t)
            key = (id(exchange), (t - 1) % part.arena.slots)
            if key not in made:
                receives = zip(exchange.received.tolist(), exchange.source.tolist(), strict=True)
                sends = zip(exchange.sent.tolist(), exchange.to.tolist(), strict=True)
                requests = [self._world.Recv_init(part.arena.output(t - 1, c), r) for c, r in receives]
                requests += [self._world.Send_init(part.arena.output(t - 1, c), r) for c, r in sends]
                self._owned += requests
                made[key] = (*(request.Start for request in requests), *(request.Wait for request in requests))
            rows.append(made[key])
        return rows

    def run(self) -> float:
        """See :class:`exafield.engine.spmd.Program`."""
        block, barrier = compiled().block, self._world.Barrier if self.barrier else None
        rows = max(part.steps for part in self.parts)
        parts = [
            (part, part.steps, calls, part.arena.address, part.columns.start, part.columns.stop)
            for part, calls in zip(self.parts, self._calls, strict=True)
        ]
        self._world.Barrier()
        began = time.perf_counter()
        for t in range(rows):
            for part, steps, calls, address, first, last in parts:
                if t < steps:
                    for call in calls[t]:
                        call()
                    if block(address, t, first, last):
                        raise part.arena.failure()
            if barrier:
                barrier()
        self._world.Barrier()
        return time.perf_counter() - began

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """See :class:`exafield.engine.spmd.Program`."""
        return [part.outputs() for part in self.parts]

    def _free(self) -> None:
        for request in self._owned:
            request.Free()
        self._owned = []

    def close(self) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self._free()


class BulkSynchronous(PointToPoint):
    """The same, and all ranks meet after every row."""

    barrier = True
