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
from exafield.engine.resources import Places, peak_memory
from exafield.engine.workers import Workers

# What runs a task: a function, and its row and column.
_Call = tuple[Callable[[int, int, int], None], int, int]


@dataclass(frozen=True)
class ThreadEngine(Workers):
    """Threads of this process. Python functions take turns, except where they release Python's lock."""

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        with ThreadPoolExecutor(self.count, thread_name_prefix="exafield", initializer=Places(self.count)) as pool:
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
        # Tasks by number, graph by graph and row by row: lists are found faster than pairs and triples in dicts.
        calls, after, waits = list[_Call](), list[list[tuple[int, int]]](), list[int]()
        for work, arena in zip(works, arenas, strict=True):
            _add(work, arena, calls, after, waits)
        elapsed, counts = [], {}
        for _ in range(passes):
            began = time.perf_counter()
            counts = self._once(calls, after, waits.copy())
            elapsed.append(time.perf_counter() - began)
        shares = tuple(Share(f"thread {n}", count, peak_memory()) for n, count in enumerate(counts.values()))
        return Outcome(tuple(elapsed), tuple(arena.last() for arena in arenas), shares)

    def _once(self, calls: list[_Call], after: list[list[tuple[int, int]]], waits: list[int]) -> dict[int, int]:
        """Runs every task: `waits` says for how many others each still waits. Returns how many each thread ran."""
        lock, end, submit = Lock(), Event(), self._pool.submit
        left, failure, counts = len(calls), None, dict[int, int]()

        def work(following: int | None) -> None:
            nonlocal left, failure
            done = 0
            try:
                while following is not None and failure is None:
                    run, t, column = calls[following]
                    run(t, column, column + 1)
                    done += 1
                    later, following, others = after[following], None, []
                    with lock:
                        for task, count in later:
                            waits[task] -= count
                            if not waits[task]:
                                # The first that is ready runs here and now, its inputs still in this core's cache.
                                if following is None:
                                    following = task
                                else:
                                    others.append(task)
                    for task in others:
                        submit(work, task)
            except BaseException as error:
                failure = error
                end.set()
            with lock:
                counts[get_ident()] = counts.get(get_ident(), 0) + done
                left -= done
                if left <= 0:
                    end.set()

        for task in [task for task, count in enumerate(waits) if not count]:
            submit(work, task)
        if not calls:
            end.set()
        try:
            end.wait()
        except BaseException as error:
            failure = error  # stops the threads: a chain of tasks that run one after the other would go on to its end
        if failure is not None:
            raise failure
        return counts


def _add(work: Work, arena: Arena, calls: list[_Call], after: list[list[tuple[int, int]]], waits: list[int]) -> None:
    """Numbers the tasks of a graph.

    Args:
        calls: gets what runs each task.
        after: gets the tasks of the next row that wait for each, and for how many of its counts.
        waits: gets how many counts each waits for.
    """
    graph, scratch = work.graph, work.body.scratch_bytes > 0
    for t in range(graph.steps):
        columns, following = graph.columns(t), graph.columns(t + 1)
        # The number of a column of the next row is this one's plus the rest of this row.
        begin = len(calls) + len(columns) - following.start
        after_row = []
        for column in columns:
            counts = dict.fromkeys(graph.consumers(t, column), 1)
            if scratch and column in following:
                counts[column] = counts.get(column, 0) + 1  # the column's memory passes on as well
            after_row.append([(begin + later, count) for later, count in counts.items()])
            waits.append(len(set(graph.inputs(t, column))) + (scratch and column in graph.columns(t - 1)))
        calls.extend((arena.run, t, column) for column in columns)
        after.extend(after_row)
