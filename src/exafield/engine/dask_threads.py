"""Dask's threaded scheduler: a graph of tasks in memory, handed over once."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from exafield.engine import Outcome, Session, Share
from exafield.engine.graph import Work
from exafield.engine.native import Arena
from exafield.engine.resources import Places, cores, peak_memory
from exafield.engine.rowblocks import interleaved
from exafield.requirement import require


def ran(arena: Arena, t: int, first: int, last: int, *before: None) -> None:
    """Runs a block in an arena; values only say that the blocks before are done."""
    arena.run(t, first, last)


@dataclass(frozen=True)
class DaskThreadsEngine:
    """Threads of this process, by `dask.threaded.get`.

    Args:
        workers: number of threads; None: one for each core.
    """

    workers: int | None = None

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        require("dask", extra="dask")
        count = self.workers or len(cores())
        pool = ThreadPoolExecutor(count, thread_name_prefix="exafield", initializer=Places(count))
        try:
            yield _Threads(pool, count)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Threads:
    def __init__(self, pool: ThreadPoolExecutor, workers: int) -> None:
        self._pool, self.workers = pool, workers

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        from dask._task_spec import Task, TaskRef
        from dask.threaded import get

        arenas = [Arena(work, slots=None) for work in works]
        rows = interleaved(works, self.workers)
        elapsed = []
        for _ in range(passes):
            began = time.perf_counter()
            graph: dict[tuple[int, int, int], Any] = {}
            final = []
            for row in rows:
                for place, block in enumerate(row):
                    key = (block.number, block.t, place)
                    before = [TaskRef((block.number, block.t - 1, other)) for other in block.before]
                    graph[key] = Task(key, ran, arenas[block.number], block.t, block.first, block.last, *before)
                    if block.final:
                        final.append(key)
            get(graph, final, pool=self._pool)
            elapsed.append(time.perf_counter() - began)
        tasks = sum(len(work.graph) for work in works)
        share = Share(f"{self.workers} threads", tasks, peak_memory())
        return Outcome(tuple(elapsed), tuple(arena.last() for arena in arenas), (share,))
