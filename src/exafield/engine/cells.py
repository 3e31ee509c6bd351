"""Cells: what systems that hand values from task to task hand over.

The cell of a task is its output. Where columns keep scratch memory it is a pair, output and scratch: the memory travels
down the column as a value, since nobody knows which process will run the next task of a column.
"""

import pickle
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine.caller import Caller
from exafield.engine.graph import TaskGraph, Work

Cell = Any


def packed(works: Sequence[Work]) -> bytes:
    """The works as bytes that travel with every task; small where rows are alike."""
    return zlib.compress(pickle.dumps(tuple(works), protocol=pickle.HIGHEST_PROTOCOL))


def unpacked(works: bytes) -> tuple[Work, ...]:
    """What :func:`packed` was given."""
    made: tuple[Work, ...] = pickle.loads(zlib.decompress(works))
    return made


@lru_cache(maxsize=4)
def callers(works: bytes) -> tuple[Caller, ...]:
    """Ready to run tasks of these works in this process."""
    return tuple(Caller(work) for work in unpacked(works))


def run_cell(works: bytes, number: int, t: int, column: int, *needed: Cell) -> Cell:
    """Runs task (t, column) of graph `number`: what workers call.

    Args:
        works: see :func:`packed`.
        needed: the cells of :func:`needs`, in that order.
    Raises:
        EngineError: the task failed.
    """
    caller = callers(works)[number]
    if not caller.scratch_size:
        return caller(t, column, needed)
    before = column in caller.graph.columns(t - 1)
    scratch = needed[-1][1] if before else caller.fresh()
    if not scratch.flags.writeable:
        scratch = scratch.copy()
    inputs = needed[:-1] if before else needed
    return caller(t, column, [cell[0] for cell in inputs], scratch), scratch


def needs(work: Work, t: int, column: int) -> list[int]:
    """The columns of row t - 1 whose cells task (t, column) is given: its inputs; last, if it has scratch, its own."""
    columns = work.graph.inputs(t, column)
    if work.body.scratch_bytes and column in work.graph.columns(t - 1):
        columns.append(column)
    return columns


def output(work: Work, cell: Cell) -> NDArray[np.uint8]:
    """The output of a task, from its cell."""
    value = cell[0] if work.body.scratch_bytes else cell
    return value if isinstance(value, np.ndarray) else np.frombuffer(value, dtype=np.uint8)


def last(graph: TaskGraph) -> list[tuple[int, int]]:
    """The tasks of the last row."""
    t = graph.steps - 1
    return [(t, column) for column in graph.columns(t)]


def unread(work: Work) -> list[tuple[int, int]]:
    """The tasks whose cells no other task is given, row by row: once these are done, all are."""
    graph = work.graph
    found: list[tuple[int, int]] = []
    for t in range(graph.steps):
        taken = {q for column in graph.columns(t + 1) for q in needs(work, t + 1, column)}
        found += [(t, column) for column in graph.columns(t) if column not in taken]
    return found
