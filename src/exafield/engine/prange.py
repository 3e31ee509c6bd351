"""numba: the loop over rows outside, a parallel loop over the columns of a row inside."""

# mypy: disable-error-code="untyped-decorator,no-untyped-call,misc"

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from exafield.engine import EngineError, Outcome, Session, Share, interruptible
from exafield.engine.graph import Work
from exafield.engine.native import Arena, address
from exafield.engine.spmd import cores, peak_memory
from exafield.requirement import require


@dataclass(frozen=True)
class PrangeEngine:
    """Threads of numba's OpenMP layer; where there is no OpenMP, those of its own.

    Args:
        workers: number of threads; None: one for each core.
    """

    workers: int | None = None

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        numba = require("numba", extra="light")
        from exafield.engine import prange_loop

        # The number is fixed when the first parallel loop of a process starts.
        most = int(numba.config.NUMBA_NUM_THREADS)
        count = self.workers or min(len(cores()), most)
        if count > most:
            raise ValueError(f"workers must be at most {most} here: export NUMBA_NUM_THREADS={count} for more")
        # The thread that calls parallel loops: how many threads they have is a property of who calls.
        with ThreadPoolExecutor(1, initializer=numba.set_num_threads, initargs=(count,)) as caller:
            yield _Loops(prange_loop, caller, count)


class _Loops:
    def __init__(self, loop: ModuleType, caller: ThreadPoolExecutor, workers: int) -> None:
        self._loop, self._caller, self.workers = loop, caller, workers
        self._stop = np.zeros(1, dtype=np.int64)

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        arenas = [Arena(work) for work in works]
        contexts = np.array([arena.address for arena in arenas], dtype=np.int64)
        steps = np.array([arena.graph.steps for arena in arenas], dtype=np.int64)
        widths = np.array([arena.graph.width for arena in arenas], dtype=np.int64)
        firsts = np.concatenate(([0], np.cumsum(widths)))
        self._stop[0] = 0

        def rows(contexts: Any, steps: Any, firsts: Any, count: int) -> tuple[int, float]:
            began = time.perf_counter()
            failed = self._loop.rows(contexts, steps, firsts, count, address(self._stop))
            return failed, time.perf_counter() - began

        self._caller.submit(rows, contexts[:0], steps[:0], firsts[:1], 1).result()  # compiled, threads started
        elapsed = []
        for _ in range(passes):
            once = partial(rows, contexts, steps, firsts, int(steps.max()))
            failed, took = interruptible.call(self._caller, once, partial(self._stop.fill, 1))
            elapsed.append(took)
            if failed:
                said = [arena.body.explain() for arena in arenas]
                raise EngineError(f"a task failed: {'; '.join(text for text in said if text)}")
        share = Share(f"{self.workers} threads", sum(len(work.graph) for work in works), peak_memory())
        return Outcome(tuple(elapsed), tuple(arena.last() for arena in arenas), (share,))
