"""Task graphs that follow no formula: from a file, or from arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exafield.engine.graph import Integers, Relation, TaskGraph
from exafield.store import atomic_write
from exafield.taskbench.dependencies import AnyPattern, PatternError
from exafield.taskbench.intervals import Intervals


@dataclass(frozen=True, eq=False)
class GivenGraph(AnyPattern):
    """Any task graph as a pattern; its dependence sets are the graph's relations.

    Args:
        given: the graph.
        type: name in reports.
        graph_index: number of the graph among those that run together.
        loads: [steps, width] how much each task has to do, in units of what a task has to do on average; None: all the
            same. 0 where there is no task.

    Raises:
        PatternError: a point depends on another twice.
    """

    given: TaskGraph
    type: str = "given"
    graph_index: int = 0
    loads: NDArray[np.float64] | None = None
    # What a pattern has besides; no given graph depends on them.
    radix: int = 0
    period: int = 0
    fraction: float = 0.0

    def __post_init__(self) -> None:
        for dset, relation in enumerate(self.given.relations):
            consumers = np.repeat(np.arange(relation.width), np.diff(relation.starts))
            keys = np.sort(consumers * relation.width + relation.producers)
            twice = np.flatnonzero(keys[1:] == keys[:-1])
            if twice.size:
                point, producer = divmod(int(keys[twice[0]]), relation.width)
                raise PatternError(f"dependence set {dset}: point {point} depends on point {producer} twice")

    @property
    def width(self) -> int:  # type: ignore[override]
        """Largest number of tasks in a row, by columns."""
        return self.given.width

    @property
    def steps(self) -> int:  # type: ignore[override]
        """Number of rows."""
        return self.given.steps

    @property
    def sets(self) -> int:
        """Number of dependence sets."""
        return len(self.given.relations)

    def graph(self) -> TaskGraph:
        """The graph."""
        return self.given

    @property
    def _rows(self) -> tuple[Integers, Integers, Integers]:
        return self.given.offsets, self.given.widths, self.given.chosen

    @cached_property
    def _sets(self) -> tuple[tuple[Intervals, Intervals], ...]:
        return tuple((_merged(relation), _merged(relation.reverse)) for relation in self.given.relations)


def _merged(relation: Relation) -> Intervals:
    """Runs q, q + 1, ... as one interval."""
    owner = np.repeat(np.arange(relation.width), np.diff(relation.starts))
    producers = relation.producers
    follows = (producers[1:] == producers[:-1] + 1) & (owner[1:] == owner[:-1])
    edge = np.ones(min(1, producers.size), dtype=np.bool_)
    begins, ends = np.concatenate((edge, ~follows)), np.concatenate((~follows, edge))
    starts = np.concatenate(([0], np.cumsum(np.bincount(owner[begins], minlength=relation.width))))
    return Intervals(starts, producers[begins], producers[ends])


def of_relations(
    relations: Sequence[Relation],
    chosen: ArrayLike | None = None,
    offsets: ArrayLike | None = None,
    widths: ArrayLike | None = None,
    graph_index: int = 0,
) -> GivenGraph:
    """A graph of given relations.

    Args:
        relations: all of one width.
        chosen: [steps] index of the relation by which row t takes from row t - 1 (for row 0 any). By default there
            is one more row than there are relations, and row t takes by relation t - 1.
        offsets: [steps] first point of each row; by default 0.
        widths: [steps] number of tasks of each row; by default all points.
        graph_index: number of the graph among those that run together.

    Raises:
        PatternError: the arrays do not fit together, or a point depends on another twice.
    """
    if not relations:
        raise PatternError("a given graph needs at least one relation")
    width = relations[0].width
    chosen = np.asarray([0, *range(len(relations))] if chosen is None else chosen)
    offsets = np.zeros(chosen.shape, dtype=np.int64) if offsets is None else np.asarray(offsets)
    widths = np.full(chosen.shape, width) if widths is None else np.asarray(widths)
    try:
        return GivenGraph(TaskGraph(width, offsets, widths, chosen, tuple(relations)), graph_index=graph_index)
    except ValueError as error:
        raise PatternError(str(error)) from error


def from_csr(
    rows: Sequence[tuple[ArrayLike, ArrayLike]],
    chosen: ArrayLike | None = None,
    offsets: ArrayLike | None = None,
    widths: ArrayLike | None = None,
    graph_index: int = 0,
) -> GivenGraph:
    """A graph of matrices in compressed rows (CSR), each of one relation between two rows of tasks.

    Args:
        rows: pairs (starts, producers), as `indptr` and `indices` of SciPy's matrices: the task at point p takes from
            `producers[starts[p]:starts[p + 1]]`, in this order.
        chosen: as for `of_relations`.
        offsets: as for `of_relations`.
        widths: as for `of_relations`.
        graph_index: as for `of_relations`.

    Raises:
        PatternError: a pair is no such matrix, the arrays do not fit together, or a point depends on another twice.
    """
    relations = []
    for k, (starts, producers) in enumerate(rows):
        try:
            relations.append(Relation(np.asarray(starts, dtype=np.int64), np.asarray(producers, dtype=np.int64)))
        except ValueError as error:
            raise PatternError(f"relation {k}: {error}") from error
    return of_relations(relations, chosen, offsets, widths, graph_index)


def from_file(path: str | Path, graph_index: int = 0) -> GivenGraph:
    """A graph from a text file (UTF-8).

    The first line is `graph STEPS WIDTH`. Then there is one line for every task, `T P: Q Q ...`: task (T, P) takes from
    the tasks (T - 1, Q), in this order. Lines are ordered by T and then by P. The tasks of a row are at consecutive
    points, every row has at least one, at least one row has one at point WIDTH - 1, and row 0 takes from none. A line
    may end with `* LOAD`: how much the task has to do, of which the kernel load_given makes use; 1 where none is given.
    Loads are made 1 on average. What follows a `#` is a remark, and empty lines are skipped::

        graph 3 2
        0 0:
        0 1:
        1 1: 1 0 * 2.5   # one task, which takes longer
        2 0: 1
        2 1:

    Raises:
        PatternError: the file is not so; with its line.
        OSError: it cannot be read.
    """
    steps, width = 0, 0
    rows: list[dict[int, list[int]]] = []
    number = 0
    loads: dict[tuple[int, int], float] = {}
    last = 0  # point of the task read last
    header = 0  # line of the sizes

    def wrong(what: str) -> PatternError:
        return PatternError(f"{path}, line {number}: {what}")

    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise PatternError(f"{path} is not UTF-8 text: {error}") from error
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        if not steps:
            match text.split():
                case ["graph", *sizes] if len(sizes) == 2 and all(_is_number(size) and int(size) for size in sizes):
                    steps, width, header = *map(int, sizes), number
                case _:
                    raise wrong(f"expected `graph STEPS WIDTH` with numbers above 0, found `{text}`")
            continue
        left, colon, right = text.partition(":")
        right, star, load = right.partition("*")
        names, producers = left.split(), right.split()
        if not colon or len(names) != 2 or not all(map(_is_number, (*names, *producers))):
            raise wrong(f"expected `T P: Q Q ...`, found `{text}`")
        t, point = map(int, names)
        if star:
            loads[t, point] = _load(load)
            if not 0 <= loads[t, point] < np.inf:
                raise wrong(f"a load must be a number >= 0, found `{load.strip()}`")
        takes = list(map(int, producers))
        if t >= steps or point >= width:
            raise wrong(f"task ({t}, {point}) is outside of {steps} rows of {width} points")
        if t == len(rows):
            rows.append({})
        elif t != len(rows) - 1 or point != last + 1:
            due = f"({len(rows)}, any point)" if len(rows) < steps else "none"
            due = f"({len(rows) - 1}, {last + 1}) or {due}" if rows else "(0, any point)"
            raise wrong(f"task ({t}, {point}) is out of order: next may be {due}")
        before = rows[t - 1] if t else {}
        seen: set[int] = set()
        for producer in takes:
            if producer not in before:
                raise wrong(f"task ({t}, {point}) takes from ({t - 1}, {producer}), which is no task")
            if producer in seen:
                raise wrong(f"task ({t}, {point}) takes from ({t - 1}, {producer}) twice")
            seen.add(producer)
        rows[t][point] = takes
        last = point
    number += 1
    if len(rows) < max(steps, 1):
        raise wrong(f"the file ends after {len(rows)} of {steps} rows" if steps else "the file has no `graph` line")
    if (most := max(map(max, rows)) + 1) < width:
        number = header
        raise wrong(f"WIDTH is {width}, but no task is at a point beyond {most - 1}: it should be {most}")
    # Rows that take in the same way share a relation.
    found: dict[tuple[bytes, bytes], int] = {}
    relations: list[Relation] = []
    chosen = [0]
    for row in rows[1:]:
        relation = Relation.of([row.get(point, ()) for point in range(width)])
        key = (relation.starts.tobytes(), relation.producers.tobytes())
        if found.setdefault(key, len(relations)) == len(relations):
            relations.append(relation)
        chosen.append(found[key])
    relations = relations or [Relation.of([()] * width)]
    made = of_relations(relations, chosen, [min(row) for row in rows], [len(row) for row in rows], graph_index)
    if not loads:
        return made
    table = np.zeros((steps, width))
    for task in made.given.tasks():
        table[task] = loads.get(task, 1.0)
    if not table.any():
        number = header
        raise wrong("no task has anything to do: one load must be above 0 at least")
    return replace(made, loads=table * (len(made.given) / table.sum()))


def to_file(graph: TaskGraph, loads: NDArray[np.float64] | None, path: str | Path, about: str = "") -> None:
    """Writes a graph so that `from_file` reads it.

    Args:
        loads: [steps, width] of the tasks, if they differ.
        about: a remark for the beginning.
    """
    lines = [f"# {line}" for line in about.splitlines()] + [f"graph {graph.steps} {graph.width}"]
    for t, point in graph.tasks():
        load = "" if loads is None else f" * {loads[t, point]:.9g}"
        lines.append(f"{t} {point}: {' '.join(map(str, graph.inputs(t, point)))}{load}".replace(":  *", ": *"))
    atomic_write(path, ("\n".join(lines) + "\n").encode())


def _load(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19  # it fits into 64 bits
