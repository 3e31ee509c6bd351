"""Engines on this machine: in turn, or on worker processes."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import Any

from exafield.engine import EngineError, Outcome, Session, Share
from exafield.engine.dispatch import Dispatcher
from exafield.engine.graph import Work
from exafield.engine.native import Arena
from exafield.engine.spmd import peak_memory

# Items handed out per worker: one running, one waiting (our choice).
_AHEAD = 2


def _failed(what: str, error: BaseException) -> EngineError:
    text = "".join(traceback.format_exception(error)).rstrip()
    return EngineError(f"{what} failed: {type(error).__name__}: {error}\n{text}")


@dataclass(frozen=True, slots=True)
class SerialEngine:
    """One thing after the other, in this process: the reference."""

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`."""
        for index, item in enumerate(items):
            if index in done:
                continue
            for attempt in range(retry + 1):
                try:
                    result = fn(item)
                    break
                except Exception as error:
                    if attempt == retry:
                        raise _failed(f"item {index}", error) from error
            yield index, result

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


@dataclass(frozen=True, slots=True)
class ProcessEngine:
    """Worker processes (concurrent.futures), each with one torch thread.

    No worker outlives the process that started it, however that ends.

    Args:
        workers: default: as many as cores this process may use.
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")

    @property
    def count(self) -> int:
        """Number of workers."""
        return self.workers or len(os.sched_getaffinity(0))

    @contextmanager
    def _pool(self) -> Iterator[ProcessPoolExecutor]:
        # spawn: forked children would inherit locks of our threads.
        pool = ProcessPoolExecutor(self.count, mp_context=get_context("spawn"), initializer=_settle)
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
        todo = ((index, item) for index, item in enumerate(items) if index not in done)
        with self._pool() as pool:
            running: dict[Future[Any], tuple[int, Any, int]] = {}

            def start(index: int, item: Any, attempt: int) -> None:
                running[_submitted(pool, f"item {index}", fn, item)] = (index, item, attempt)

            for index, item in todo:
                start(index, item, 0)
                if len(running) < _AHEAD * self.count:
                    continue
                yield from _finished(running, start, retry)
            while running:
                yield from _finished(running, start, retry)

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        with self._pool() as pool:
            # Workers are up, and have imported what tasks need, before anything is timed.
            list(pool.map(_ready, range(self.count)))
            yield Dispatcher("processes", pool.submit, self.count)


def _settle() -> None:
    """Called first in a worker."""
    # Read when torch is imported, which a worker does only if its work needs it.
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
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


def _died(what: str) -> EngineError:
    return EngineError(
        f"a worker process died while {what} was under way (killed, or out of memory): run again; finished items "
        "are kept where results are stored"
    )


def _submitted(pool: ProcessPoolExecutor, what: str, fn: Callable[..., Any], *inputs: Any) -> Future[Any]:
    try:
        return pool.submit(fn, *inputs)
    except BrokenProcessPool as error:
        raise _died(what) from error


def _result(future: Future[Any], what: str) -> Any:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise _died(what) from error
    except Exception as error:
        raise _failed(what, error) from error


def _finished(
    running: dict[Future[Any], tuple[int, Any, int]], start: Callable[[int, Any, int], None], retry: int
) -> Iterator[tuple[int, Any]]:
    """Waits for at least one item; starts those again that may be tried again."""
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        index, item, attempt = running.pop(future)
        error = future.exception()
        # What killed one worker would kill the next as well: that is for the user to see.
        if error is not None and attempt < retry and not isinstance(error, BrokenProcessPool):
            start(index, item, attempt + 1)
            continue
        yield index, _result(future, f"item {index}")
