"""Relations between points as intervals: how Task Bench gives them (arXiv:1908.05790), and small for dense ones."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exafield.engine.graph import Integers, Relation


@dataclass(frozen=True, eq=False)
class Intervals:
    """For each point some inclusive intervals of points, in the order in which they are given.

    Args:
        starts: [width + 1] point p has the intervals `starts[p]` to `starts[p + 1] - 1`.
        first: first point of each interval.
        last: last point of each interval, not below the first.
    """

    starts: Integers
    first: Integers
    last: Integers

    @classmethod
    def of(cls, width: int, *slots: tuple[ArrayLike, ArrayLike]) -> "Intervals":
        """From pairs (first, last) for every point, each [width] or [width, k]; those with last < first are none."""
        firsts, lasts = (
            np.concatenate([np.reshape(slot[side], (width, -1)) for slot in slots], axis=1) for side in (0, 1)
        )
        there = firsts <= lasts
        starts = np.concatenate(([0], np.cumsum(np.count_nonzero(there, axis=1))))
        return cls(starts, firsts[there], lasts[there])

    @classmethod
    def of_runs(cls, left: NDArray[np.int64], member: NDArray[np.bool_]) -> "Intervals":
        """From the members of a window: point p has p's column `left[p] + k` where `member[p, k]`; runs are merged."""
        edged = np.pad(member, ((0, 0), (1, 1)))
        point, begin = np.nonzero(edged[:, 1:-1] & ~edged[:, :-2])
        end = np.nonzero(edged[:, 1:-1] & ~edged[:, 2:])[1]
        starts = np.concatenate(([0], np.cumsum(np.bincount(point, minlength=left.size))))
        return cls(starts, left[point] + begin, left[point] + end)

    def of_point(self, point: int) -> list[tuple[int, int]]:
        """The intervals of one point."""
        part = slice(self.starts[point], self.starts[point + 1])
        return list(zip(self.first[part].tolist(), self.last[part].tolist(), strict=True))

    def relation(self) -> Relation:
        """With every interval written out."""
        lengths = self.last - self.first + 1
        ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        points = np.arange(ends[-1])
        points += np.repeat(self.first - ends[:-1], lengths)
        return Relation(ends[self.starts], points)

    @property
    def _owner(self) -> Integers:
        return np.repeat(np.arange(self.starts.size - 1), np.diff(self.starts))

    def twice(self) -> int | None:
        """A point of which two intervals overlap, if there is one."""
        owner = self._owner
        order = np.lexsort((self.first, owner))
        owner, first, last = owner[order], self.first[order], self.last[order]
        overlap = (owner[1:] == owner[:-1]) & (first[1:] <= last[:-1])
        return int(owner[overlap.argmax()]) if overlap.any() else None

    def is_transpose_of(self, other: "Intervals") -> bool:
        """Whether q is in p's intervals here exactly where p is in q's there; neither may hold a point twice."""
        width = self.starts.size - 1
        sizes = [int((side.last - side.first + 1).sum()) for side in (self, other)]
        if sizes[0] != sizes[1]:
            return False
        if 8 * sizes[0] >= width * width:  # a table is then smaller than the list of pairs, and needs no sorting
            return np.array_equal(self._table(), other._table().T)
        mine, yours = self.relation(), other.relation()
        keys = np.repeat(np.arange(width), np.diff(mine.starts)) * width + mine.producers
        reversed_keys = yours.producers * width + np.repeat(np.arange(width), np.diff(yours.starts))
        return np.array_equal(np.sort(keys), np.sort(reversed_keys))

    def _table(self) -> NDArray[np.int8]:
        width = self.starts.size - 1
        steps = np.zeros((width, width + 1), dtype=np.int8)
        np.add.at(steps, (self._owner, self.first), 1)
        np.add.at(steps, (self._owner, self.last + 1), -1)
        table: NDArray[np.int8] = np.cumsum(steps[:, :-1], axis=1, dtype=np.int8)
        return table
