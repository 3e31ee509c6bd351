"""Threads (concurrent.futures): counters in memory, and whoever finishes a task goes on with what became ready."""

import os
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock, get_ident
from typing import Any

from exafield.engine import EngineError, Outcome, Session, Share
from exafield.engine.graph import Work
from exafield.engine.native import Arena
from exafield.engine.spmd import peak_memory

_Key = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ThreadEngine:
    """Threads of this process. Python functions take turns, except where they release Python's lock.

    Args:
        workers: default: as many as cores this process may use.
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        count = self.workers or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(count, thread_name_prefix="exafield") as pool:
            yield _Threads(pool, count)

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`."""
        count = self.workers or len(os.sched_getaffinity(0))
        todo = ((index, item) for index, item in enumerate(items) if index not in done)
        with ThreadPoolExecutor(count, thread_name_prefix="exafield") as pool:
            running: dict[Future[Any], int] = {}
            try:
                for index, item in todo:
                    running[pool.submit(_attempts, fn, item, retry)] = index
                    if len(running) >= 2 * count:
                        yield from _finished(running)
                while running:
                    yield from _finished(running)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _attempts(fn: Callable[[Any], Any], item: Any, retry: int) -> Any:
    for _ in range(retry):
        try:
            return fn(item)
        except Exception:
            continue
    return fn(item)


def _finished(running: dict[Future[Any], int]) -> Iterator[tuple[int, Any]]:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        index = running.pop(future)
        error = future.exception()
        if error is not None:
            text = "".join(traceback.format_exception(error)).rstrip()
            raise EngineError(f"item {index} failed: {type(error).__name__}: {error}\n{text}") from error
        yield index, future.result()


class _Threads:
    def __init__(self, pool: ThreadPoolExecutor, workers: int) -> None:
        self._pool, self.workers = pool, workers

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        arenas = [Arena(work, slots=None) for work in works]
        # Only how many tasks each waits for changes from pass to pass.
        tasks: dict[_Key, int] = {
            (g, t, c): len(set(work.graph.inputs(t, c)))
            + (work.body.scratch_bytes > 0 and c in work.graph.columns(t - 1))
            for g, work in enumerate(works)
            for t, c in work.graph.tasks()
        }
        after = {(g, t, c): self._after(works[g], t, c) for g, t, c in tasks}
        elapsed, counts = [], {}
        for _ in range(passes):
            began = time.perf_counter()
            counts = self._once(arenas, dict(tasks), after)
            elapsed.append(time.perf_counter() - began)
        shares = tuple(Share(f"thread {n}", count, peak_memory()) for n, count in enumerate(counts.values()))
        return Outcome(tuple(elapsed), tuple(arena.last() for arena in arenas), shares)

    @staticmethod
    def _after(work: Work, t: int, column: int) -> list[tuple[int, int]]:
        """The columns of row t + 1 that wait for task (t, column), and for how many of its counts."""
        counts = dict.fromkeys(work.graph.consumers(t, column), 1)
        if work.body.scratch_bytes and column in work.graph.columns(t + 1):
            counts[column] = counts.get(column, 0) + 1  # the column's memory passes on as well
        return list(counts.items())

    def _once(
        self, arenas: list[Arena], missing: dict[_Key, int], after: dict[_Key, list[tuple[int, int]]]
    ) -> dict[int, int]:
        lock, end = Lock(), Event()
        left, failure, counts = len(missing), None, dict[int, int]()

        def work(key: _Key) -> None:
            nonlocal left, failure
            done = 0
            following: _Key | None = key
            try:
                while following is not None and failure is None:
                    g, t, column = following
                    arenas[g].run(t, column, column + 1)
                    done += 1
                    following, others = None, []
                    with lock:
                        for later, count in after[g, t, column]:
                            left_now = missing[g, t + 1, later] - count
                            missing[g, t + 1, later] = left_now
                            if not left_now:
                                # The first that is ready runs here and now, its inputs still in this core's cache.
                                if following is None:
                                    following = (g, t + 1, later)
                                else:
                                    others.append((g, t + 1, later))
                    for other in others:
                        self._pool.submit(work, other)
            except BaseException as error:
                failure = error
                end.set()
            with lock:
                counts[get_ident()] = counts.get(get_ident(), 0) + done
                left -= done
                if left <= 0:
                    end.set()

        for key in [key for key, count in missing.items() if not count]:
            self._pool.submit(work, key)
        end.wait()
        if failure is not None:
            raise failure
        return counts
