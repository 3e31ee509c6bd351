"""Threads (concurrent.futures): counters in memory, and whoever finishes a task goes on with what became ready."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock, get_ident
from typing import Any

from exafield.engine import EngineError, Outcome, Session, Share
from exafield.engine.attempt import failed, mapped, todo
from exafield.engine.graph import Work
from exafield.engine.native import Arena
from exafield.engine.spmd import peak_memory
from exafield.engine.workers import Workers

_Key = tuple[int, int, int]


@dataclass(frozen=True)
class ThreadEngine(Workers):
    """Threads of this process. Python functions take turns, except where they release Python's lock."""

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        with ThreadPoolExecutor(self.count, thread_name_prefix="exafield") as pool:
            yield _Threads(pool, self.count)

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`."""
        with ThreadPoolExecutor(self.count, thread_name_prefix="exafield") as pool:
            try:
                yield from mapped(pool.submit, fn, todo(items, done), retry, 2 * self.count, _broken)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _broken(error: BaseException, what: str) -> EngineError:
    return failed(what, error)


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
