"""numba: the loop over rows outside, a parallel loop over the columns of a row inside."""

# mypy: disable-error-code="untyped-decorator,no-untyped-call,misc"

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from exafield.engine import EngineError, Outcome, Session, Share
from exafield.engine.graph import Work
from exafield.engine.native import Arena
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
        before = numba.get_num_threads()
        numba.set_num_threads(count)
        try:
            yield _Loops(prange_loop, count)
        finally:
            numba.set_num_threads(before)


class _Loops:
    def __init__(self, loop: ModuleType, workers: int) -> None:
        self._loop, self.workers = loop, workers

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        arenas = [Arena(work) for work in works]
        contexts = np.array([arena.address for arena in arenas], dtype=np.int64)
        steps = np.array([arena.graph.steps for arena in arenas], dtype=np.int64)
        widths = np.array([arena.graph.width for arena in arenas], dtype=np.int64)
        firsts = np.concatenate(([0], np.cumsum(widths)))
        self._loop.rows(contexts[:0], steps[:0], firsts[:1], 1)  # compiled, threads started
        elapsed = []
        for _ in range(passes):
            began = time.perf_counter()
            failed = self._loop.rows(contexts, steps, firsts, int(steps.max()))
            elapsed.append(time.perf_counter() - began)
            if failed:
                said = [arena.body.explain() for arena in arenas]
                raise EngineError(f"a task failed: {'; '.join(text for text in said if text)}")
        share = Share(f"{self.workers} threads", sum(len(work.graph) for work in works), peak_memory())
        return Outcome(tuple(elapsed), tuple(arena.last() for arena in arenas), (share,))
