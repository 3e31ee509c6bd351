"""Several items a task: a map engine on top of another one, for items that are too short to be tasks of their own.

Every task says how long it ran and where, so that how many items a task has can follow from what a task costs.
"""

import os
import platform
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

from exafield.engine import EngineError, MapEngine
from exafield.engine.attempt import attempt, result

_Chunk = tuple[tuple[int, Any], ...]


@dataclass(frozen=True, slots=True)
class Ran:
    """A task that ran.

    Args:
        worker: that ran it.
        number: how many tasks that worker had run by then, this one included.
        size: how many items it had.
        start, end: of its items, by the worker's clock, which tells nothing to other workers [s].
        away: how long whoever takes the results kept that worker from its work before this task [s]; only an engine
            that runs tasks on the thread of the driver has to wait for that.
    """

    worker: str
    number: int
    size: int
    start: float
    end: float
    away: float = 0.0


@runtime_checkable
class Sizes(Protocol):
    """Says how many items a task has."""

    def size(self, left: int) -> int:
        """Of the next task, 1 or more, when `left` items are not handed out yet."""
        ...

    def ran(self, ran: Ran) -> None:
        """Is told of each task that ran."""
        ...

    def end(self) -> None:
        """Is told that all are done."""
        ...


class Chunks:
    """A map engine that hands several items at a time to another one.

    Indices, results and failures are those of items. When an item fails, those of its task before it are yielded first.

    Args:
        engine: that does the work.
        sizes: says how many.
        clock: of the workers; a function that they can import.
    """

    def __init__(self, engine: MapEngine, sizes: Sizes, clock: Callable[[], float] = time.perf_counter) -> None:
        self._engine, self._sizes, self._clock = engine, sizes, clock

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`; `items` must end."""
        todo = [(index, item) for index, item in enumerate(items) if index not in done]
        here, away = _worker(), 0.0
        with closing(self._tasks(partial(_task, fn, retry, self._clock), todo)) as tasks:
            for results, ran in tasks:
                self._sizes.ran(replace(ran, away=away) if ran.worker == here else ran)
                left = self._clock()
                for index, value in results:
                    yield index, result(value)
                away = self._clock() - left
        self._sizes.end()

    def _tasks(self, work: Callable[[_Chunk], Any], todo: list[tuple[int, Any]]) -> Generator[Any, None, None]:
        # A task has the index of its first item, so that what the engine says of it names an item. The indices in
        # between are filled with nothing, to be skipped: the engine asks whether to skip an index once it has its item.
        between: set[int] = set()
        largest = 1

        def chunks() -> Iterator[_Chunk]:
            nonlocal largest
            at = index = 0
            while at < len(todo):
                if index == todo[at][0]:
                    size = self._sizes.size(len(todo) - at)
                    largest = max(largest, size)
                    yield tuple(todo[at : at + size])
                    at += size
                else:
                    between.add(index)
                    yield ()
                index += 1

        try:
            for _, ran in self._engine.map(work, chunks(), done=between):
                yield ran
        except EngineError as error:  # items that fail are results here: this is the system's own
            if largest == 1:
                raise
            raise EngineError(f"{error}\n(tasks had up to {largest} items: that one, or one after it)") from error


class _Count(threading.local):
    """How many tasks this thread has run."""

    tasks = 0


_count = _Count()


def _worker() -> str:
    return f"{platform.node()}:{os.getpid()}:{threading.get_ident()}"


def _task(
    fn: Callable[[Any], Any], retry: int, clock: Callable[[], float], chunk: _Chunk
) -> tuple[list[tuple[int, Any]], Ran]:
    """Runs on a worker. The last result is an EngineError if that item failed."""
    start = clock()
    _count.tasks += 1
    results: list[tuple[int, Any]] = []
    for index, item in chunk:
        results.append((index, attempt(fn, retry, index, item)))
        if isinstance(results[-1][1], EngineError):
            break
    return results, Ran(_worker(), _count.tasks, len(chunk), start, clock())
