"""Trio: one task a column, which goes down the rows; an event a task of the graph tells those who wait for it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from exafield.engine import Outcome, Session, Share
from exafield.engine.cells import needs
from exafield.engine.graph import Work
from exafield.engine.native import Arena, compiled
from exafield.engine.spmd import cores, peak_memory
from exafield.requirement import require


@dataclass(frozen=True)
class TrioEngine:
    """Trio's loop in the thread that calls.

    Args:
        workers: number of threads that run bodies; None: one for each core. With one, bodies run in the loop itself.
    """

    workers: int | None = None

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        trio = require("trio", extra="light")
        compiled()
        # Trio's threads are daemons, and end when they have had nothing to do for 10 s.
        yield _Columns(trio, self.workers or len(cores()))


class _Row:
    """A task of the graph: what it waits for, and the event that says it is done (made for each pass)."""

    __slots__ = ("before", "done", "t")

    def __init__(self, t: int, before: "list[_Row]") -> None:
        self.t, self.before = t, before
        self.done: Any = None


class _Columns:
    def __init__(self, trio: ModuleType, workers: int) -> None:
        self._trio, self.workers = trio, workers

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        arenas = [Arena(work, slots=None) for work in works]
        columns = [(arena, column, rows) for arena, work in zip(arenas, works, strict=True)
                   for column, rows in _columns(work).items()]  # fmt: skip
        elapsed = []
        for _ in range(passes):
            try:
                elapsed.append(self._trio.run(self._once, columns))
            except BaseExceptionGroup as group:
                raise _first(group) from None
        share = Share(f"{self.workers} threads", sum(len(work.graph) for work in works), peak_memory())
        return Outcome(tuple(elapsed), tuple(arena.last() for arena in arenas), (share,))

    async def _once(self, columns: "Sequence[tuple[Arena, int, list[_Row]]]") -> float:
        began = time.perf_counter()
        for _, _, rows in columns:
            for row in rows:
                row.done = self._trio.Event()
        limiter = self._trio.CapacityLimiter(self.workers)
        async with self._trio.open_nursery() as nursery:
            for column in columns:
                nursery.start_soon(self._column, limiter, *column)
        return time.perf_counter() - began

    async def _column(self, limiter: Any, arena: Arena, column: int, rows: "list[_Row]") -> None:
        inline, run_sync = self.workers == 1, self._trio.to_thread.run_sync
        for row in rows:
            for other in row.before:
                if not other.done.is_set():
                    await other.done.wait()
            if inline:
                arena.run(row.t, column, column + 1)
            else:
                await run_sync(arena.run, row.t, column, column + 1, limiter=limiter)
            row.done.set()


def _columns(work: Work) -> dict[int, list[_Row]]:
    """The tasks of each column, top down; a column's own task before is waited for by its place."""
    found: dict[int, list[_Row]] = {}
    before: dict[int, _Row] = {}
    for t in range(work.graph.steps):
        now = {c: _Row(t, [before[q] for q in needs(work, t, c) if q != c]) for c in work.graph.columns(t)}
        for column, row in now.items():
            found.setdefault(column, []).append(row)
        before = now
    return found


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What was raised, out of the groups around it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
