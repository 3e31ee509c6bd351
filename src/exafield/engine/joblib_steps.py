"""joblib: one pool that stays open, a map a row; outputs lie in files that all workers have mapped."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from exafield.engine import Session
from exafield.engine.attempt import attempt, result
from exafield.engine.child import alone
from exafield.engine.joblib_pool import follow_driver, lost
from exafield.engine.local import _failed
from exafield.engine.spmd import cores
from exafield.requirement import require


@dataclass(frozen=True)
class JoblibEngine:
    """Worker processes of joblib's default backend, loky.

    Args:
        workers: number of processes; None: one for each core.
    """

    workers: int | None = None

    def open(self) -> AbstractContextManager[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        # In a process of its own, since joblib keeps its workers, and loky its tracker, as long as a process lives.
        return alone("joblib", "joblib", "light", "exafield.engine.joblib_pool:Steps", self.workers, lambda _: {})

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`."""
        require("joblib", extra="light")
        # Not Parallel's generators: these take items ahead of who consumes the results, without bound.
        from joblib.externals.loky import ProcessPoolExecutor

        count = self.workers or len(cores())
        todo = ((index, item) for index, item in enumerate(items) if index not in done)
        # loky's tracker of semaphores, a process, ends with this one, as that of multiprocessing does.
        pool = ProcessPoolExecutor(count, initializer=follow_driver, initargs=(os.getpid(),))
        running: dict[Future[Any], int] = {}
        try:
            for index, item in todo:
                running[pool.submit(attempt, fn, retry, index, item)] = index
                if len(running) >= 2 * count:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        finally:
            pool.shutdown(wait=True, kill_workers=True)


def _finished(running: dict[Future[Any], int]) -> Iterator[tuple[int, Any]]:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        index = running.pop(future)
        try:
            value = future.result()
        except BrokenProcessPool as error:
            raise lost(error, f"while item {index} was under way") from error
        except Exception as error:  # it could not be sent, or its result not sent back
            raise _failed(f"item {index}", error) from error
        yield index, result(value)
