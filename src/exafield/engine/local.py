"""Engines on this machine: in turn, or on worker processes."""

import os
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import Any

from exafield.engine import EngineError
from exafield.engine.graph import TaskGraph

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

    def run(self, graph: TaskGraph, body: Callable[[int, list[Any]], Any]) -> list[Any]:
        """See :class:`exafield.engine.GraphEngine`."""
        results: list[Any] = []
        for task in range(len(graph)):
            try:
                results.append(body(task, [results[other] for other in graph.needs(task)]))
            except Exception as error:
                raise _failed(f"task {task}", error) from error
        return results


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

    def run(self, graph: TaskGraph, body: Callable[[int, list[Any]], Any]) -> list[Any]:
        """See :class:`exafield.engine.GraphEngine`; `body` must be importable by workers."""
        missing = [len(graph.needs(task)) for task in range(len(graph))]
        after: list[list[int]] = [[] for _ in missing]
        for task in range(len(graph)):
            for other in graph.needs(task):
                after[other].append(task)
        results: dict[int, Any] = {}
        with self._pool() as pool:
            running: dict[Future[Any], int] = {}

            def start(task: int) -> None:
                inputs = [results[other] for other in graph.needs(task)]
                running[_submitted(pool, f"task {task}", body, task, inputs)] = task

            for task, count in enumerate(missing):
                if count == 0:
                    start(task)
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    results[task] = _result(future, f"task {task}")
                    for later in after[task]:
                        missing[later] -= 1
                        if missing[later] == 0:
                            start(later)
        return [results[task] for task in range(len(graph))]


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
