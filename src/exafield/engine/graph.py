"""TaskGraph: tasks and their dependencies, nothing about how they run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


def integers(values: object) -> Integers:
    """As a read-only array of whole numbers, whose memory native code may read."""
    array = np.ascontiguousarray(values, dtype=np.int64).copy()
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class Relation:
    """Which columns of one row the tasks of the next row take, in compressed rows (CSR).

    Args:
        starts: width + 1 offsets into `producers`.
        producers: the task in column p takes the outputs of `producers[starts[p]:starts[p + 1]]`, in this order.
    """

    starts: Integers
    producers: Integers

    def __post_init__(self) -> None:
        starts, producers = integers(self.starts), integers(self.producers)
        object.__setattr__(self, "starts", starts)
        object.__setattr__(self, "producers", producers)
        if starts.ndim != 1 or producers.ndim != 1 or starts.size < 2:
            raise ValueError("starts and producers must have one dimension, and starts at least two entries")
        if starts[0] != 0 or starts[-1] != producers.size or np.any(np.diff(starts) < 0):
            raise ValueError("starts must rise from 0 to the number of producers")
        if producers.size and not (producers.min() >= 0 and producers.max() < starts.size - 1):
            raise ValueError(f"producers must be columns 0..{starts.size - 2}")

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Relation":
        """From the list of producers of each column."""
        starts = np.cumsum([0, *map(len, rows)])
        return cls(starts, np.array([q for row in rows for q in row], dtype=np.int64))

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.starts.size) - 1

    def of_column(self, column: int) -> Integers:
        """The producers of one column."""
        return self.producers[self.starts[column] : self.starts[column + 1]]

    @cached_property
    def reverse(self) -> "Relation":
        """Who takes the output of a column, in ascending order."""
        consumers = np.repeat(np.arange(self.width), np.diff(self.starts))
        order = np.lexsort((consumers, self.producers))
        counts = np.bincount(self.producers, minlength=self.width)
        return Relation(np.concatenate(([0], np.cumsum(counts))), consumers[order])


@dataclass(frozen=True, eq=False)
class TaskGraph:
    """Tasks in rows: a task takes the outputs of tasks of the row before its own, and of no others.

    Row t has a task in each of the columns `offsets[t]` to `offsets[t] + widths[t] - 1`. What it takes from columns
    that have no task in row t - 1 is left out, so row 0 takes nothing.

    Args:
        width: number of columns.
        offsets: [steps] first column of each row.
        widths: [steps] number of tasks of each row.
        chosen: [steps] index of the relation by which a row takes from the row before it.
        relations: all of this width; few, since rows share them.
    """

    width: int
    offsets: Integers
    widths: Integers
    chosen: Integers
    relations: tuple[Relation, ...]

    def __post_init__(self) -> None:
        for name in ("offsets", "widths", "chosen"):
            object.__setattr__(self, name, integers(getattr(self, name)))
        if not self.offsets.shape == self.widths.shape == self.chosen.shape or self.offsets.ndim != 1:
            raise ValueError("offsets, widths and chosen must have one entry for each row")
        if not self.offsets.size:
            raise ValueError("a graph needs at least one row")
        bad = (self.offsets < 0) | (self.widths < 0) | (self.offsets + self.widths > self.width)
        if bad.any():
            raise ValueError(f"row {int(bad.argmax())} is not inside the columns 0..{self.width - 1}")
        if not self.relations or self.chosen.min() < 0 or self.chosen.max() >= len(self.relations):
            raise ValueError(f"chosen must be indices of the {len(self.relations)} relations")
        if any(relation.width != self.width for relation in self.relations):
            raise ValueError(f"every relation must have {self.width} columns")

    @property
    def steps(self) -> int:
        """Number of rows."""
        return int(self.offsets.size)

    def __len__(self) -> int:
        return int(self.widths.sum())

    def columns(self, t: int) -> range:
        """The columns that have a task in row t; none where there is no such row."""
        if not 0 <= t < self.steps:
            return range(0)
        first = int(self.offsets[t])
        return range(first, first + int(self.widths[t]))

    def inputs(self, t: int, column: int) -> list[int]:
        """The columns of row t - 1 whose outputs task (t, column) takes, in order."""
        before = self.columns(t - 1)
        if not before:
            return []
        producers: list[int] = self.relations[self.chosen[t]].of_column(column).tolist()
        return producers if len(before) == self.width else [q for q in producers if q in before]

    def consumers(self, t: int, column: int) -> list[int]:
        """The columns of row t + 1 that take the output of task (t, column), ascending."""
        after = self.columns(t + 1)
        if not after:
            return []
        found: list[int] = self.relations[self.chosen[t + 1]].reverse.of_column(column).tolist()
        return found if len(after) == self.width else [p for p in found if p in after]

    def tasks(self) -> Iterator[tuple[int, int]]:
        """All tasks (t, column), row by row."""
        for t in range(self.steps):
            for column in self.columns(t):
                yield t, column

    def dependencies(self) -> int:
        """How many outputs are taken, over all tasks."""
        total = 0
        for key, times in self._kinds().items():
            chosen, low, high, first, last = key
            relation = self.relations[chosen]
            if high - low == self.width == last - first:
                total += times * relation.producers.size
                continue
            taken = relation.producers[relation.starts[first] : relation.starts[last]]
            total += times * int(np.count_nonzero((taken >= low) & (taken < high)))
        return total

    def _kinds(self) -> dict[tuple[int, int, int, int, int], int]:
        """How often each (relation, window of the row before, own window) occurs; row 0 takes nothing."""
        kinds: dict[tuple[int, int, int, int, int], int] = {}
        for t in range(1, self.steps):
            before, own = self.columns(t - 1), self.columns(t)
            key = (int(self.chosen[t]), before.start, before.stop, own.start, own.stop)
            kinds[key] = kinds.get(key, 0) + 1
        return kinds


@runtime_checkable
class NativeBody(Protocol):
    """What the tasks of a graph do, as native code; can be pickled, and made ready in any process.

    `output_bytes` is the size of every task's output, `scratch_bytes` that of the memory each column keeps for the
    whole run (0: none).
    """

    @property
    def output_bytes(self) -> int: ...
    @property
    def scratch_bytes(self) -> int: ...
    def load(self) -> "LoadedBody":
        """Makes the body ready in this process; once made, the same one is given again."""
        ...


@runtime_checkable
class LoadedBody(Protocol):
    """A body in this process.

    `address` is that of a C function, which may be called from many threads at once, without Python's lock::

        int64_t body(int64_t *parameters, int64_t t, int64_t column, char *output, char *base, int64_t stride,
                     int64_t *where, int64_t *producers, int64_t n, char *scratch)

    It runs task (t, column). Input k is the output of task (t - 1, producers[k]), whole, at `base + stride *
    where[k]`. It writes `output_bytes` bytes to `output`, and returns 0. Anything else means that it failed, and
    `explain()` tells why. Scratch memory of a column has been written by `prepare` before its first task.
    """

    @property
    def address(self) -> int: ...
    @property
    def parameters(self) -> int:
        """Address of the parameters."""
        ...

    def prepare(self, scratch: NDArray[np.uint8]) -> None:
        """Writes what the scratch memory of one column, or of several, [..., scratch_bytes] must hold at first."""
        ...

    def explain(self) -> str:
        """Why a call in this process failed."""
        ...


@dataclass(frozen=True, eq=False)
class Work:
    """A graph, and what its tasks do."""

    graph: TaskGraph
    body: NativeBody
