"""Engines on this machine: in turn, or on worker processes."""

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import parent_process
from typing import Any

from exafield.engine import EngineError, Outcome, Session, Share
from exafield.engine.attempt import attempt, mapped, result, todo
from exafield.engine.dispatch import Dispatcher
from exafield.engine.graph import Work
from exafield.engine.native import Arena
from exafield.engine.one_thread import OneThreadContext
from exafield.engine.spmd import peak_memory
from exafield.engine.workers import Workers

# Items handed out per worker: one running, one waiting (our choice).
_AHEAD = 2


@dataclass(frozen=True, slots=True)
class SerialEngine:
    """One thing after the other, in this process: the reference."""

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`."""
        for index, item in todo(items, done):
            yield index, result(attempt(fn, retry, index, item))

    def open(self) -> AbstractContextManager[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        return nullcontext(_InTurn())


class _InTurn:
    """Row by row, graph by graph."""

    workers = 1

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        arenas = [Arena(work) for work in works]
        elapsed = []
        for _ in range(passes):
            began = time.perf_counter()
            for t in range(max(arena.graph.steps for arena in arenas)):
                for arena in arenas:
                    if t < arena.graph.steps:
                        arena.run(t, 0, arena.graph.width)
            elapsed.append(time.perf_counter() - began)
        share = Share("this process", sum(len(work.graph) for work in works), peak_memory())
        return Outcome(tuple(elapsed), tuple(arena.last() for arena in arenas), (share,))


@dataclass(frozen=True)
class ProcessEngine(Workers):
    """Worker processes (concurrent.futures), each of whose libraries computes on one thread.

    No worker outlives the process that started it, however that ends.
    """

    @contextmanager
    def _pool(self) -> Iterator[ProcessPoolExecutor]:
        pool = ProcessPoolExecutor(self.count, mp_context=OneThreadContext(), initializer=_settle)
        try:
            yield pool
        except BaseException:
            # Whatever is still running is of no use any more.
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`."""
        with self._pool() as pool:
            yield from mapped(pool.submit, fn, todo(items, done), retry, _AHEAD * self.count, _died)

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        with self._pool() as pool:
            # Workers are up, and have imported what tasks need, before anything is timed.
            list(pool.map(_ready, range(self.count)))
            yield Dispatcher("processes", pool.submit, self.count)


def _settle() -> None:
    """Called first in a worker."""
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        # Waits on a pipe that closes when the parent ends, even if it is killed and can tell nobody.
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="follow parent", daemon=True).start()


def _ready(_: int) -> None:
    # Long enough that no worker takes the share of another.
    from exafield.engine import cells

    assert cells is not None
    time.sleep(0.05)


def _died(error: BaseException, what: str) -> EngineError:
    return EngineError(
        f"a worker process died while {what} was under way (killed, or out of memory): run again; finished items "
        "are kept where results are stored"
    )
