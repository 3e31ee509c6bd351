"""joblib: one pool that stays open, a map a row; outputs lie in files that all workers have mapped."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from exafield.engine import EngineError, Session
from exafield.engine.attempt import mapped, todo
from exafield.engine.child import alone
from exafield.engine.joblib_pool import follow_driver, lost
from exafield.engine.workers import Workers
from exafield.requirement import require


@dataclass(frozen=True)
class JoblibEngine(Workers):
    """Worker processes of joblib's default backend, loky."""

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

        # loky's tracker of semaphores, a process, ends with this one, as that of multiprocessing does.
        pool = ProcessPoolExecutor(self.count, initializer=follow_driver, initargs=(os.getpid(),))
        try:
            yield from mapped(pool.submit, fn, todo(items, done), retry, 2 * self.count, _died)
        finally:
            pool.shutdown(wait=True, kill_workers=True)


def _died(error: BaseException, what: str) -> EngineError:
    return lost(error, f"while {what} was under way")
