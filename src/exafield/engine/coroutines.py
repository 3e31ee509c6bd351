"""asyncio: one coroutine a task, which awaits its predecessors' events; bodies run on threads, or in the loop."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from exafield.engine import Outcome, Session, Share
from exafield.engine.cells import needs
from exafield.engine.graph import Work
from exafield.engine.native import Arena, compiled
from exafield.engine.spmd import cores, peak_memory

_Key = tuple[int, int, int]


@dataclass(frozen=True)
class AsyncioEngine:
    """An event loop of this process.

    Args:
        workers: number of threads that run bodies; None: one for each core. With one, bodies run in the loop itself.
    """

    workers: int | None = None

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        compiled()
        count = self.workers or len(cores())
        loop = asyncio.new_event_loop()
        # On a thread of its own, since the caller's may have a loop that runs: notebooks do.
        host = threading.Thread(target=loop.run_forever, name="exafield loop")
        host.start()
        try:
            with ThreadPoolExecutor(count, thread_name_prefix="exafield") as pool:
                yield _Loop(loop, pool if count > 1 else None, count)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            host.join()
            loop.close()


class _Loop:
    def __init__(self, loop: asyncio.AbstractEventLoop, pool: ThreadPoolExecutor | None, workers: int) -> None:
        self._loop, self._pool, self.workers = loop, pool, workers
        self._leave = False

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        arenas = [Arena(work, slots=None) for work in works]
        tasks: dict[_Key, list[_Key]] = {
            (g, t, column): [(g, t - 1, q) for q in needs(work, t, column)]
            for g, work in enumerate(works)
            for t, column in work.graph.tasks()
        }
        # Only who is in the row before matters, not row by row: graphs that run together take turns.
        order = sorted(tasks, key=lambda key: key[1])
        elapsed = tuple(self._complete(self._once(arenas, tasks, order)) for _ in range(passes))
        share = Share(f"{self.workers} threads", len(tasks), peak_memory())
        return Outcome(elapsed, tuple(arena.last() for arena in arenas), (share,))

    def _complete(self, coroutine: Coroutine[Any, Any, float]) -> float:
        """Waits for a coroutine in the loop; if the wait is broken off, so is the coroutine."""
        self._leave = False
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        except BaseException:
            self._leave = True
            future.cancel()
            # Threads and loop may end only after the coroutines have.
            asyncio.run_coroutine_threadsafe(_emptied(), self._loop).result()
            raise

    async def _once(self, arenas: Sequence[Arena], tasks: dict[_Key, list[_Key]], order: Sequence[_Key]) -> float:
        began = time.perf_counter()
        # Not the coroutines' own asyncio tasks: cancelling one that awaits another cancels that one first, and so on
        # to the end of the chain, which may be as long as the graph.
        done = {key: asyncio.Event() for key in order}
        async with asyncio.TaskGroup() as group:
            for key in order:
                before = [done[other] for other in tasks[key]]
                group.create_task(self._task(arenas[key[0]], key[1], key[2], before, done[key]))
        return time.perf_counter() - began

    async def _task(
        self, arena: Arena, t: int, column: int, before: Sequence[asyncio.Event], done: asyncio.Event
    ) -> None:
        for other in before:
            if not other.is_set():
                await other.wait()
        if self._pool is not None:
            await self._loop.run_in_executor(self._pool, arena.run, t, column, column + 1)
        elif self._leave:
            # Without threads, a task whose predecessors are done never lets go of the loop, which could then not stop.
            raise asyncio.CancelledError
        else:
            arena.run(t, column, column + 1)
        done.set()


async def _emptied() -> None:
    """Waits until all else in this loop has ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others)
