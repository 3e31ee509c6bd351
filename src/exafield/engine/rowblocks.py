"""Row blocks: neighbouring columns of one row as one task, for systems whose own work per task is far above ours.

The value of a block is its cells by column, see :mod:`exafield.engine.cells`; every task of the graph is still one call
of its body.
"""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from exafield.engine.cells import Cell, callers, needs, output, run_cell
from exafield.engine.graph import Work
from exafield.engine.spmd import peak_memory

Value = dict[int, Cell]


@dataclass(frozen=True, slots=True)
class Block:
    """Columns `first` to `last` - 1 of row t of graph `number`.

    Args:
        number: of the graph.
        t: row.
        first: column.
        last: column after the last.
        before: which blocks of the row before it takes, by their place in that row.
        read: somebody takes its value, or it is in the last row.
        final: no other block takes its value: once these are done, all are.
    """

    number: int
    t: int
    first: int
    last: int
    before: tuple[int, ...]
    read: bool
    final: bool


def rows(work: Work, number: int, count: int) -> list[list[Block]]:
    """The blocks of each row of a graph, at most `count` in each."""
    graph = work.graph
    known: dict[tuple[int, range, range], list[tuple[int, ...]]] = {}
    cut = [_bounds(graph.columns(t), count) for t in range(graph.steps)]
    taken: list[list[tuple[int, ...]]] = []
    for t in range(graph.steps):
        kind = (int(graph.chosen[t]), graph.columns(t - 1), graph.columns(t))
        if kind not in known:
            place = {c: i for i, (first, last) in enumerate(cut[t - 1] if t else []) for c in range(first, last)}
            known[kind] = [
                tuple(sorted({place[q] for c in range(*bounds) for q in needs(work, t, c)})) for bounds in cut[t]
            ]
        taken.append(known[kind])
    made = []
    for t, bounds in enumerate(cut):
        used = {place for before in taken[t + 1] for place in before} if t + 1 < graph.steps else set()
        made.append(
            [
                Block(number, t, *ends, taken[t][i], i in used or t + 1 == graph.steps, i not in used)
                for i, ends in enumerate(bounds)
            ]
        )
    return made


def _bounds(columns: range, count: int) -> list[tuple[int, int]]:
    n = min(count, len(columns))
    cuts = [columns.start + len(columns) * i // n for i in range(n + 1)] if n else []
    return list(pairwise(cuts))


def interleaved(works: Sequence[Work], count: int) -> list[list[Block]]:
    """The rows of all graphs, those of equal t next to each other."""
    found = [row for number, work in enumerate(works) for row in rows(work, number, count)]
    return sorted(found, key=lambda row: row[0].t if row else -1)


# How many tasks each block had that ran in this process since last asked.
_ran: list[int] = []


def run_block(works: bytes, number: int, t: int, first: int, last: int, read: bool, *before: Value) -> Value | None:
    """Runs a block: what workers call.

    Args:
        works: see :func:`exafield.engine.cells.packed`.
        before: the values of the blocks it takes.
    Raises:
        EngineError: a task failed.
    """
    caller = callers(works)[number]
    there: Value = {}
    for value in before:
        there.update(value)
    own = caller.graph.columns(t - 1) if caller.scratch_size else range(0)
    cells = {}
    for column in range(first, last):
        needed = [there[q] for q in caller.graph.inputs(t, column)]
        if column in own:
            needed.append(there[column])
        cells[column] = run_cell(works, number, t, column, *needed)
    _ran.append(last - first)
    # Outputs that nobody reads would fill the memory of the workers.
    return cells if read else None


def ready(works: bytes) -> None:
    """Makes bodies ready in a worker, before anything is timed."""
    callers(works)
    _ran.clear()


def tally() -> tuple[str, int, int]:
    """Which worker this is, how many tasks it ran since it was last asked, and its peak memory [bytes]."""
    count = sum(_ran)
    _ran.clear()
    return f"{platform.node()}:{os.getpid()}", count, peak_memory()


def gathered(work: Work, values: Sequence[Value]) -> NDArray[np.uint8]:
    """The outputs of the last row from its blocks, [tasks, output_bytes]."""
    found: Value = {}
    for value in values:
        found.update(value)
    columns = work.graph.columns(work.graph.steps - 1)
    return np.array([output(work, found[c]) for c in columns], dtype=np.uint8).reshape(
        len(columns), work.body.output_bytes
    )
