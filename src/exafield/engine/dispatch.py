"""A central dispatcher: the driver keeps all cells, and submits each task once its inputs are there."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from exafield.engine import EngineError, Outcome, Share
from exafield.engine.cells import Cell, callers, needs, output, packed, run_cell
from exafield.engine.graph import Work
from exafield.engine.spmd import peak_memory

# While tasks run, how often it is looked whether their system still lives [s], our choice.
_LOOK = 1.0

_Key = tuple[int, int, int]


class Dispatcher:
    """A session on any system with futures: `submit(function, *arguments)`.

    Args:
        system: as errors call it.
        submit: hands a call to the system; its future calls back once it is done.
        workers: number of workers.
        alive: raises if the system is gone although futures are open.
    """

    def __init__(
        self,
        system: str,
        submit: Callable[..., "Future[Cell]"],
        workers: int,
        alive: Callable[[], None] | None = None,
    ) -> None:
        self._system, self._submit, self.workers, self._alive = system, submit, workers, alive

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        blob = packed(works)
        tasks = {
            (g, t, column): [(g, t - 1, q) for q in needs(work, t, column)]
            for g, work in enumerate(works)
            for t, column in work.graph.tasks()
        }
        after: dict[_Key, list[_Key]] = {key: [] for key in tasks}
        for key, needed in tasks.items():
            for other in needed:
                after[other].append(key)
        # Who can make native code ready, does so before the clock starts.
        warm = [self._submit(_warm, blob) for _ in range(2 * self.workers)]
        for future in warm:
            self._result(future)
        elapsed, cells = [], {}
        for _ in range(passes):
            began = time.perf_counter()
            cells = self._once(blob, tasks, after)
            elapsed.append(time.perf_counter() - began)
        outputs = tuple(_rows(g, work, cells) for g, work in enumerate(works))
        return Outcome(tuple(elapsed), outputs, (Share(f"{self.workers} workers", len(tasks), peak_memory()),))

    def _once(self, blob: bytes, tasks: dict[_Key, list[_Key]], after: dict[_Key, list[_Key]]) -> dict[_Key, Cell]:
        missing = {key: len(needed) for key, needed in tasks.items()}
        readers = {key: len(consumers) for key, consumers in after.items()}
        finished: SimpleQueue[tuple[_Key, Future[Cell]]] = SimpleQueue()
        cells: dict[_Key, Cell] = {}

        def start(key: _Key) -> None:
            future = self._submit(run_cell, blob, *key, *(cells[other] for other in tasks[key]))
            for other in tasks[key]:
                readers[other] -= 1
                if not readers[other]:  # nobody needs it again
                    del cells[other]
            future.add_done_callback(partial(_arrive, finished, key))

        for key, count in missing.items():
            if not count:
                start(key)
        for _ in range(len(tasks)):
            key, future = self._next(finished)
            cells[key] = self._result(future)
            for later in after[key]:
                missing[later] -= 1
                if not missing[later]:
                    start(later)
        return cells

    def _next(self, finished: "SimpleQueue[tuple[_Key, Future[Cell]]]") -> "tuple[_Key, Future[Cell]]":
        while True:
            try:
                return finished.get(timeout=_LOOK)
            except Empty:
                if self._alive is not None:
                    self._alive()

    def _result(self, future: "Future[Any]") -> Any:
        try:
            return future.result()
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(
                f"{self._system}: a worker was lost, or could not run a task: {type(error).__name__}: {error}"
            ) from error


def _arrive(finished: "SimpleQueue[tuple[_Key, Future[Cell]]]", key: _Key, future: "Future[Cell]") -> None:
    finished.put((key, future))


_warmed = threading.Event()


def _warm(blob: bytes) -> None:
    callers(blob)
    if not _warmed.is_set():  # the first call of each worker lasts, so that all of them get one
        _warmed.set()
        time.sleep(0.05)


def _rows(g: int, work: Work, cells: dict[_Key, Cell]) -> Any:
    t = work.graph.steps - 1
    return np.array([output(work, cells[g, t, column]) for column in work.graph.columns(t)])
