"""mpi4py.futures: rank 0 drives a pool of the other ranks, and hands each task its inputs once they are there."""

import os
import pickle
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, Listener
from typing import Any

from exafield.engine import EngineError, Outcome, Session, mpi_job
from exafield.engine.attempt import result
from exafield.engine.dispatch import Dispatcher
from exafield.engine.graph import Work
from exafield.engine.mpi_engine import environment, mpirun
from exafield.engine.mpi_futures_ranks import BACKOFF, CORES, path_of
from exafield.engine.native import compiled
from exafield.engine.spmd import Crew, cores, crew
from exafield.requirement import require

# In errors: Open MPI ends the whole job with any rank, so the crew cannot tell which one it was.
_SYSTEM = "mpi4py.futures (driver and workers, one MPI job)"
# What the driver may take to call back once it is up [s], our choice.
_START = 30.0


def _launcher(workers: int, command: list[str], size: int) -> list[list[str]]:
    """Rank 0 runs the command of a crew's only rank; the others wait for what it submits."""
    python, *rest = command
    return mpirun([python, "-m", "mpi4py.futures", *rest, "0"], workers + 1)


@dataclass(frozen=True)
class MpiFuturesEngine:
    """The other ranks of the MPI job that this process drives; else a pool started by mpirun on this machine.

    Args:
        workers: number of ranks besides the driver; None: one for each core, or as many as there are.
    """

    workers: int | None = None

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        compiled()
        if mpi_job.driving():
            with _joined(self.workers) as session:
                yield session
            return
        with self._crew("Driver", partial(_launcher, self._count)) as ranks:
            yield _Pool(ranks, self._count)

    @property
    def _count(self) -> int:
        return self.workers or len(cores())

    @contextmanager
    def _crew(self, program: str, launcher: Callable[[list[str], int], list[list[str]]]) -> Iterator[Crew]:
        require("mpi4py", extra="mpi")
        settings = {**environment(), CORES: ",".join(map(str, cores()))}
        # What can be imported here can be there.
        settings["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with crew(_SYSTEM, f"exafield.engine.mpi_futures_ranks:{program}", 1, launcher, settings) as ranks:
            yield ranks

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`."""
        todo = ((index, item) for index, item in enumerate(items) if index not in done)
        listeners: list[Listener] = []

        def launcher(command: list[str], size: int) -> list[list[str]]:
            listeners.append(Listener(path_of(command[3]), "AF_UNIX"))
            listeners[0]._listener._socket.settimeout(_START)  # type: ignore[attr-defined]
            return _launcher(self._count, command, size)

        try:
            with self._crew("Mapper", launcher):
                try:
                    with listeners[0].accept() as link:
                        # Pickled here, and unpickled by a worker: the driver in between need not know what it is.
                        link.send((pickle.dumps(fn), retry))
                        running = 0
                        for index, item in todo:
                            link.send((index, pickle.dumps(item)))
                            running += 1
                            if running >= 2 * self._count:
                                yield _received(link)
                                running -= 1
                        for _ in range(running):
                            yield _received(link)
                except (EOFError, OSError) as error:
                    raise EngineError(f"{_SYSTEM}: a process was lost before its work was done") from error
        finally:
            for listener in listeners:
                with suppress(OSError):
                    listener.close()


def _received(link: Connection) -> tuple[int, Any]:
    index, blob = link.recv()
    return index, result(pickle.loads(blob))


class _Pool:
    def __init__(self, crew: Crew, workers: int) -> None:
        self._crew, self.workers = crew, workers

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        return self._crew.run(works, passes)


@contextmanager
def _joined(workers: int | None) -> Iterator[Dispatcher]:
    """A session on the other ranks of the job that this process drives."""
    from mpi4py.futures import MPICommExecutor

    comm = mpi_job.call("exafield.engine.mpi_futures:lend")
    with MPICommExecutor(comm, backoff=BACKOFF) as made:
        pool: Any = made  # on rank 0
        if workers not in (None, pool.num_workers):
            raise EngineError(
                f"mpi4py.futures: {workers} workers, but this MPI job has {pool.num_workers} besides the driver: leave "
                "out their number"
            )
        yield Dispatcher("mpi4py.futures", pool.submit, pool.num_workers)


def lend(comm: Any) -> None:
    """Has a rank of a job serve the pool of its rank 0, until that is closed."""
    from mpi4py.futures import MPICommExecutor

    with MPICommExecutor(comm, backoff=BACKOFF):
        pass
