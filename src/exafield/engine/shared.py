"""Processes and shared memory: all outputs lie in one mapping, with one flag a column; each rank's loop is compiled."""

# mypy: disable-error-code="untyped-decorator,no-untyped-call,misc"

import ctypes
import mmap
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exafield.engine import EngineError
from exafield.engine.graph import Work
from exafield.engine.native import Arena, address, compiled, stride
from exafield.engine.plan import Plan
from exafield.engine.spmd import Crew, cores, crew

# A flag has a cache line of its own, so that who waits for one column does not slow down who writes another [words].
_LINE = 8
_SLOTS = 2


@dataclass(frozen=True)
class SharedEngine:
    """Ranks on this machine that read each other's outputs where they lie.

    Args:
        workers: number of ranks; None: one for each core.
    """

    workers: int | None = None

    def open(self) -> AbstractContextManager[Crew]:
        """See :class:`exafield.engine.GraphEngine`."""
        compiled()
        return crew("shared memory", "exafield.engine.shared:Sharing", self.workers or len(cores()))


class _Mapping:
    """Memory that the ranks of a crew share: the file goes once all have mapped it."""

    def __init__(self, path: str, size: int) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)  # now or never: a full disk would be a bus error later
            self.words = np.frombuffer(mmap.mmap(descriptor, size), dtype=np.uint8)
        finally:
            os.close(descriptor)


class Sharing:
    """A rank: runs its columns, each as soon as the flags of those it takes from say that they are ready."""

    def __init__(self, rank: int, size: int, folder: str) -> None:
        from exafield.engine import shared_loop

        self._loop = shared_loop
        self.rank, self.size, self._folder = rank, size, folder
        self._generation, self._orders = 0, 0
        self._met = _Mapping(f"{folder}/met", 8 * _LINE * size)
        yielding = ctypes.CDLL(None).sched_yield
        self._yield = ctypes.cast(yielding, ctypes.c_void_p).value or 0
        self.arenas: list[Arena] = []
        self.tasks = 0

    def prepare(self, works: Sequence[Work]) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self.arenas, self._plans, self._keep = [], [], []
        rows = []
        self._orders += 1
        for number, work in enumerate(works):
            graph = work.graph
            plan = Plan(graph, self.rank, self.size)
            bytes_ = min(_SLOTS, graph.steps) * graph.width * stride(work)
            path = f"{self._folder}/{self._orders}-{number}"
            mapping = _Mapping(path, bytes_ + 8 * _LINE * graph.width)
            arena = Arena(work, _SLOTS, outputs=mapping.words[:bytes_], columns=plan.columns)
            flags = mapping.words[bytes_:]
            table = plan.table()
            reverse = [relation.reverse for relation in graph.relations]
            starts = np.array([address(r.starts) for r in reverse], dtype=np.int64)
            consumers = np.array([address(r.producers) for r in reverse], dtype=np.int64)
            rows.append([
                arena.address, address(flags), address(table.kinds), address(table.order), len(plan.columns),
                address(starts), address(consumers), 0,
            ])  # fmt: skip
            self.arenas.append(arena)
            self._plans.append(plan)
            self._keep.append((path, mapping, table, reverse, starts, consumers))
        self._parts = np.array(rows, dtype=np.int64)
        self.tasks = sum(
            len(range(max(row.start, plan.columns.start), min(row.stop, plan.columns.stop)))
            for plan in self._plans
            for row in map(plan.graph.columns, range(plan.graph.steps))
        )
        self._base = 0
        self._loop.run_rows(self._parts[:0], 0, 0, self._yield)
        self._meet()
        for path, *_ in self._keep:
            if self.rank == 0:
                os.unlink(path)

    def _meet(self) -> None:
        """All ranks are here."""
        self._generation += 1
        self._loop.meet(address(self._met.words), self.rank, self.size, self._generation, self._yield)

    def run(self) -> float:
        """See :class:`exafield.engine.spmd.Program`."""
        rows = max(arena.graph.steps for arena in self.arenas)
        self._meet()
        began = time.perf_counter()
        if self._loop.run_rows(self._parts, rows, self._base, self._yield):
            said = [arena.body.explain() for arena in self.arenas]
            raise EngineError(f"a task failed: {'; '.join(text for text in said if text)}")
        self._meet()
        self._base += rows
        return time.perf_counter() - began

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """See :class:`exafield.engine.spmd.Program`."""
        found: list[dict[int, NDArray[np.uint8]]] = []
        for arena, plan in zip(self.arenas, self._plans, strict=True):
            t = arena.graph.steps - 1
            own = [column for column in arena.graph.columns(t) if column in plan.columns]
            found.append({column: arena.output(t, column).copy() for column in own})
        return found

    def close(self) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
