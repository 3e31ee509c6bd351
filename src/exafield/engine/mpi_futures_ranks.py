"""The ranks of :mod:`exafield.engine.mpi_futures`."""

import os
import pickle
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Client
from threading import Lock, Thread

import numpy as np
from numpy.typing import NDArray

from exafield.engine.attempt import attempt, failed
from exafield.engine.dispatch import Dispatcher
from exafield.engine.graph import Work

CORES = "EXAFIELD_CORES"
# How long who finds nothing to do may sleep [s], our choice: a tenth of the usual, as tasks may last no longer.
BACKOFF = 1e-4


def path_of(folder: str) -> str:
    """Where rank 0 asks for items."""
    return f"{folder}/items"


# ---- on rank 0 ----


def _free() -> None:
    """Takes all cores: the one that a rank is kept on is a worker's."""
    os.sched_setaffinity(0, {int(core) for core in os.environ[CORES].split(",")})


class Driver:
    """Rank 0, which runs graphs; a :class:`exafield.engine.spmd.Program`."""

    def __init__(self, rank: int, size: int, folder: str) -> None:
        from mpi4py.futures import MPIPoolExecutor

        _free()
        self._pool = MPIPoolExecutor(main=False, backoff=BACKOFF)
        self._pool.bootup()
        self._dispatcher = Dispatcher("mpi4py.futures", self._pool.submit, self._pool.num_workers)
        self._works: Sequence[Work] = ()
        self._outputs: tuple[NDArray[np.uint8], ...] = ()
        self.tasks = 0

    def prepare(self, works: Sequence[Work]) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self._works, self.tasks = works, sum(len(work.graph) for work in works)

    def run(self) -> float:
        """See :class:`exafield.engine.spmd.Program`."""
        outcome = self._dispatcher.run(self._works)
        self._outputs = outcome.outputs
        return outcome.elapsed[0]

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """See :class:`exafield.engine.spmd.Program`."""
        return [
            dict(zip(work.graph.columns(work.graph.steps - 1), rows, strict=True))
            for work, rows in zip(self._works, self._outputs, strict=True)
        ]

    def close(self) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class Mapper:
    """Rank 0, which submits items until no more come, and sends results back as they are there.

    A thread of its own does this; of a crew's own orders there are none.
    """

    def __init__(self, rank: int, size: int, folder: str) -> None:
        _free()
        self._thread = Thread(target=self._work, args=(folder,))
        self._thread.start()

    @staticmethod
    def _work(folder: str) -> None:
        from mpi4py.futures import MPIPoolExecutor

        lock = Lock()
        with Client(path_of(folder), "AF_UNIX") as link, MPIPoolExecutor(main=False, backoff=BACKOFF) as pool:

            def back(index: int, future: "Future[bytes]") -> None:
                with lock, suppress(OSError):
                    link.send((index, future.result()))

            with suppress(EOFError, OSError):
                fn, retry = link.recv()
                while True:
                    index, item = link.recv()
                    pool.submit(_item, fn, retry, index, item).add_done_callback(partial(back, index))
            pool.shutdown(wait=True, cancel_futures=True)

    def prepare(self, works: Sequence[Work]) -> None:
        """Nothing to run."""

    def run(self) -> float:
        """Nothing to run."""
        return 0.0

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """Nothing has run."""
        return []

    def close(self) -> None:
        """No more items come: the thread ends once who sends them has closed its end."""
        self._thread.join()


# ---- on the other ranks ----


def _item(fn: bytes, retry: int, index: int, item: bytes) -> bytes:
    """What came of an item; whatever goes wrong is a value, since the driver only passes it on."""
    try:
        return pickle.dumps(attempt(pickle.loads(fn), retry, index, pickle.loads(item)))
    except Exception as error:
        return pickle.dumps(failed(f"item {index}", error))
