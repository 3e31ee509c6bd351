"""MPI and threads: a rank has a block of columns, and runs those of a row in one parallel loop of numba."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from exafield.engine import EngineError, Outcome, Session
from exafield.engine.graph import Work
from exafield.engine.mpi import PointToPoint
from exafield.engine.mpi_engine import environment, mpirun, opened
from exafield.engine.spmd import Crew, cores, crew
from exafield.requirement import require

_CORES = "EXAFIELD_CORES"


class Threaded(PointToPoint):
    """A rank: per row, exchange the outputs of each graph, then run the own columns of all in one loop."""

    def __init__(self, rank: int, size: int, folder: str) -> None:
        # A rank is kept on one core by the crew, but threads come with it: it takes its share of the cores.
        # Before the loop is loaded, since that is when OpenMP looks how many there are.
        if _CORES in os.environ:
            own = [int(core) for core in os.environ[_CORES].split(",")]
            share = own[rank * len(own) // size : (rank + 1) * len(own) // size]
            os.sched_setaffinity(0, share or own)
        numba = require("numba", extra="mpi")
        from exafield.engine import mpi_prange_loop

        if _CORES not in os.environ:  # in an MPI job it was given its cores
            numba.set_num_threads(min(len(cores()), numba.config.NUMBA_NUM_THREADS))
        super().__init__(rank, size, folder)
        self._loop = mpi_prange_loop

    def prepare(self, works: Sequence[Work]) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        super().prepare(works)
        parts = self.parts
        self._contexts = np.array([part.arena.address for part in parts], dtype=np.int64)
        self._steps = np.array([part.steps for part in parts], dtype=np.int64)
        self._lows = np.array([part.columns.start for part in parts], dtype=np.int64)
        self._firsts = np.concatenate(([0], np.cumsum([len(part.columns) for part in parts]))).astype(np.int64)
        self._rows = [
            [call for rows in self._calls if t < len(rows) for call in rows[t]] for t in range(int(self._steps.max()))
        ]
        self._row(int(self._steps.max()))  # compiled, threads started; no graph has such a row

    def _row(self, t: int) -> None:
        if self._loop.row(self._contexts, self._steps, self._lows, self._firsts, t):
            said = [part.arena.body.explain() for part in self.parts]
            raise EngineError(f"a task failed: {'; '.join(text for text in said if text)}")

    def run(self) -> float:
        """See :class:`exafield.engine.spmd.Program`."""
        row = self._row
        self._world.Barrier()
        began = time.perf_counter()
        for t, calls in enumerate(self._rows):
            for call in calls:
                call()
            row(t)
        self._world.Barrier()
        return time.perf_counter() - began


@dataclass(frozen=True)
class MpiPrangeEngine:
    """The ranks of the MPI job that this process drives, else ranks started by mpirun; each with threads.

    Args:
        workers: number of threads, over all ranks; None: one for each core.
        address: machines where ranks are started; see :class:`exafield.engine.mpi_engine.MpiEngine`. None: this one.
        ranks: how many processes share them out equally; each has its own memory, so one for each part of the
            machine with a memory of its own is usual. In a job and elsewhere: as many as the launcher starts.
    """

    workers: int | None = None
    address: str | None = None
    ranks: int = 1

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        program, system = "exafield.engine.mpi_prange:Threaded", "MPI and threads"
        if there := opened(system, program, self.workers, self.address, threads=True):
            with there as session:
                yield session
            return
        require("numba", extra="mpi")
        count = self.workers or len(cores())
        if self.ranks < 1 or count % self.ranks:
            raise ValueError(f"workers must be a multiple of ranks, got {count} and {self.ranks}")
        threads = str(count // self.ranks)
        settings = {
            **environment(),
            _CORES: ",".join(map(str, cores())),
            # The first is how many threads numba starts at most, and there may be more of them than cores.
            "NUMBA_NUM_THREADS": threads,
            "OMP_NUM_THREADS": threads,
        }
        with crew(system, program, self.ranks, mpirun, settings) as ranks:
            yield _Ranks(ranks, count)


class _Ranks:
    def __init__(self, crew: Crew, workers: int) -> None:
        self._crew, self.workers = crew, workers

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        return self._crew.run(works, passes)
