"""Parsl: how a graph becomes apps."""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from exafield.engine import Outcome, Share
from exafield.engine.cells import packed
from exafield.engine.graph import Work
from exafield.engine.native import Arena
from exafield.engine.parsl_kernel import Kernel
from exafield.engine.rowblocks import Block, Value, gathered, interleaved, ready, run_block, tally
from exafield.engine.spmd import peak_memory


def ran(arena: Arena, t: int, first: int, last: int, *before: None) -> None:
    """Runs a block in an arena; values only say that the blocks before are done."""
    arena.run(t, first, last)


def warm(works: bytes) -> None:
    """Makes a worker ready; lasts long enough for every worker to get one."""
    ready(works)
    time.sleep(0.2)


def stamped(
    works: bytes, number: int, t: int, first: int, last: int, read: bool, *before: Any
) -> tuple[tuple[str, int, int], Value | None]:
    """Runs a block on values that say who made them."""
    value = run_block(works, number, t, first, last, read, *(each for _, each in before))
    return tally(), value


class ParslSession:
    """A kernel whose workers wait for work.

    Args:
        kernel: that is up.
        threads: its workers are threads of this process.
    """

    def __init__(self, kernel: Kernel, threads: bool) -> None:
        self._kernel, self._threads, self.workers = kernel, threads, kernel.workers

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        rows = interleaved(works, self.workers)
        arenas = [Arena(work, slots=None) for work in works] if self._threads else []
        blob = packed(works)
        app = self._kernel.app(ran if self._threads else stamped)
        if not self._threads:
            warmed = self._kernel.app(warm)
            self._kernel.wait_all([warmed(blob) for _ in range(self.workers)])
        elapsed, final, notes = [], dict[Block, Future[Any]](), _Notes(self._kernel)
        for _ in range(passes):
            final, notes = {}, _Notes(self._kernel)
            began = time.perf_counter()
            newest: dict[tuple[int, int], list[Future[Any]]] = {}
            for row in rows:
                made = []
                for b in row:
                    before = [newest[b.number, b.t - 1][place] for place in b.before]
                    if self._threads:
                        future = app(arenas[b.number], b.t, b.first, b.last, *before)
                    else:
                        future = app(blob, b.number, b.t, b.first, b.last, b.read, *before)
                    future.add_done_callback(notes)
                    made.append(future)
                    if b.final:
                        final[b] = future
                if row:
                    newest[row[0].number, row[0].t] = made
                    newest.pop((row[0].number, row[0].t - 1), None)
            self._kernel.wait_all(final.values(), notes.error)
            elapsed.append(time.perf_counter() - began)
        tasks = sum(len(work.graph) for work in works)
        if self._threads:
            share = Share(f"{self.workers} threads", tasks, peak_memory())
            return Outcome(tuple(elapsed), tuple(arena.last() for arena in arenas), (share,))
        found: list[list[Any]] = [[] for _ in works]
        for block, future in final.items():
            if block.read:
                found[block.number].append(future.result()[1])
        return Outcome(tuple(elapsed), tuple(map(gathered, works, found)), notes.shares(tasks))


class _Notes:
    """Who ran how much, as futures come in."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._seen: list[tuple[str, int, int]] = []
        self._error: BaseException | None = None

    def __call__(self, future: "Future[Any]") -> None:
        error = future.exception()
        if error is not None:
            self._error = self._error or error
            self._kernel.halt()
        elif isinstance(value := future.result(), tuple):
            self._seen.append(value[0])

    def error(self) -> BaseException | None:
        """That of the first task that failed."""
        return self._error

    def shares(self, tasks: int) -> tuple[Share, ...]:
        """Of a pass that is complete."""
        # Those who wait for a future go on before its callbacks are called.
        deadline = time.monotonic() + 2
        while sum(count for _, count, _ in self._seen) < tasks and time.monotonic() < deadline:
            time.sleep(0.001)
        counts: dict[str, tuple[int, int]] = {}
        for who, count, memory in self._seen:
            before, most = counts.get(who, (0, 0))
            counts[who] = (before + count, max(most, memory))
        return tuple(Share(who, *each) for who, each in sorted(counts.items()))
