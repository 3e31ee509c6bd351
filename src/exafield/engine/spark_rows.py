"""Spark: how a graph becomes shuffles, and what its Python workers do."""

import gc
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache, partial
from typing import Any
from zipimport import zipimporter

import numpy as np

from exafield.engine import Outcome, Share
from exafield.engine.cells import Cell, callers, needs, output, packed, run_cell, unpacked
from exafield.engine.graph import Work
from exafield.engine.spark_context import explained
from exafield.engine.spmd import peak_memory

# Rows until the lineage is cut, our choice: a job's plan grows with its rows, and a cut costs a job.
_ROWS = 25

# What one partition hands to another: cells by graph and column.
_Cells = dict[tuple[int, int], Cell]


class SparkSession:
    """A context whose workers wait for work; there are as many partitions as workers."""

    def __init__(self, context: Any, workers: int) -> None:
        self._context, self.workers = context, workers

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        blob = packed(works)
        steps = max(work.graph.steps for work in works)
        with explained():
            warm = self._context.parallelize(range(2 * self.workers), 2 * self.workers)
            memory = warm.map(partial(_warm, blob)).collect()
            elapsed, ends = [], _Cells()
            for _ in range(passes):
                began = time.perf_counter()
                parts = self._once(blob, steps)
                elapsed.append(time.perf_counter() - began)
                ends = {key: cell for _, cells in parts for key, cell in cells.items()}
        outputs = tuple(
            np.array([output(work, ends[g, c]) for c in work.graph.columns(work.graph.steps - 1)])
            for g, work in enumerate(works)
        )
        tasks = sum(len(work.graph) for work in works)
        return Outcome(tuple(elapsed), outputs, (Share(f"{self.workers} workers", tasks, max(memory)),))

    def _once(self, blob: bytes, steps: int) -> list[tuple[int, _Cells]]:
        from pyspark import StorageLevel

        parts = self.workers
        cut: list[Any] = []
        rows = self._context.parallelize([(part, {}) for part in range(parts)], parts)
        for t in range(steps):
            if t:
                rows = rows.partitionBy(parts)
            rows = rows.mapPartitionsWithIndex(partial(_row, blob, t, parts))
            if t and t % _ROWS == 0:
                # Kept as well as cut: otherwise PySpark would join its function to the next, and run tasks twice.
                rows.persist(StorageLevel.MEMORY_AND_DISK)
                rows.localCheckpoint()
                rows.count()
                cut.append(rows)
        found: list[tuple[int, _Cells]] = rows.collect()
        for kept in cut:
            kept.unpersist()
        return found


# ---- in a worker ----


@cache
def settle() -> None:
    """Called by tasks once all is imported: what Spark does before and after each task shall not cost more than it."""
    # Before a task Spark makes Python forget what is in the folders it imports from, which for archives means that they
    # are read again at once. It has its own archives on the path, and they do not change.
    for finder in sys.path_importer_cache.values():
        if isinstance(finder, zipimporter):
            finder.invalidate_caches = _nothing  # type: ignore[method-assign]
    # After a task Spark collects garbage: not among all that was imported.
    gc.freeze()


def _nothing() -> None:
    pass


def _warm(blob: bytes, _: int) -> int:
    callers(blob)
    settle()
    time.sleep(0.05)  # so that no worker takes the share of another
    return peak_memory()


@lru_cache(maxsize=4)
def _works(blob: bytes) -> tuple[Work, ...]:
    return unpacked(blob)


def _row(
    blob: bytes, t: int, parts: int, part: int, came: Iterable[tuple[int, _Cells]]
) -> Iterator[tuple[int, _Cells]]:
    """Runs the tasks of row t that live in one partition; yields what each partition takes for the next row.

    Neighbouring columns live together, and a cell goes to a partition once, whatever number of tasks takes it there.
    """
    callers(blob)
    settle()
    there: _Cells = {}
    for _, cells in came:
        there.update(cells)
    going: list[_Cells] = [{} for _ in range(parts)]
    for g, work in enumerate(_works(blob)):
        graph = work.graph
        over = t >= graph.steps  # another graph is longer: what this one left stays where it is
        own = range(-(-graph.width * part // parts), -(-graph.width * (part + 1) // parts))
        for column in own:
            if over and (g, column) in there:
                going[part][g, column] = there[g, column]
            elif column in graph.columns(t):
                cell = run_cell(blob, g, t, column, *(there[g, q] for q in needs(work, t, column)))
                takers = {taker * parts // graph.width for taker in graph.consumers(t, column)}
                if t == graph.steps - 1 or (work.body.scratch_bytes and column in graph.columns(t + 1)):
                    takers.add(part)
                for taker in takers:
                    going[taker][g, column] = cell
    yield from ((taker, cells) for taker, cells in enumerate(going) if cells)
