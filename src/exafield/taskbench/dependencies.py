"""What can be asked of any pattern of dependencies."""

from abc import ABC, abstractmethod

from exafield.engine.graph import Integers, TaskGraph
from exafield.taskbench.intervals import Intervals


class PatternError(ValueError):
    """A pattern that cannot be; the message says why, in the reference's words where it has any."""


class AnyPattern(ABC):
    """What can be asked of every pattern, whether it follows a formula or not.

    A point of a row depends on points of the row before. Rows cycle through few dependence sets, each of which tells of
    all points what they take from, whether or not there is a task at either end.
    """

    type: str
    width: int
    steps: int
    radix: int
    period: int
    fraction: float
    graph_index: int

    @property
    @abstractmethod
    def sets(self) -> int:
        """Number of dependence sets."""

    @abstractmethod
    def graph(self) -> TaskGraph:
        """The pattern as a task graph."""

    @property
    @abstractmethod
    def _rows(self) -> tuple[Integers, Integers, Integers]:
        """First point, number of points and dependence set of every row."""

    @property
    @abstractmethod
    def _sets(self) -> tuple[tuple[Intervals, Intervals], ...]:
        """For each dependence set the dependencies and the reverse dependencies."""

    def offset(self, t: int) -> int:
        """First point of row t; 0 where there is no such row."""
        return int(self._rows[0][t]) if 0 <= t < self.steps else 0

    def width_at(self, t: int) -> int:
        """Number of tasks in row t; 0 where there is no such row."""
        return int(self._rows[1][t]) if 0 <= t < self.steps else 0

    def dependence_set(self, t: int) -> int:
        """Which dependence set row t takes from row t - 1 by.

        Raises:
            PatternError: there is no row t.
        """
        if not 0 <= t < self.steps:
            raise PatternError(f"there is no row {t}: rows are 0..{self.steps - 1}")
        return int(self._rows[2][t])

    def dependencies(self, dset: int, point: int) -> list[tuple[int, int]]:
        """Intervals (first, last) of points a point takes from, in order; whether or not they have a task.

        Raises:
            PatternError: there is no such set or point.
        """
        return self._of_point(dset, point)[0].of_point(point)

    def reverse_dependencies(self, dset: int, point: int) -> list[tuple[int, int]]:
        """Intervals (first, last) of points that take from a point by a set (the set of the row that takes).

        Raises:
            PatternError: there is no such set or point.
        """
        return self._of_point(dset, point)[1].of_point(point)

    def inputs(self, t: int, point: int) -> list[int]:
        """The points of row t - 1 that task (t, point) takes from, in order.

        Raises:
            PatternError: there is no such task.
        """
        intervals = self.dependencies(self.dependence_set(t), point)
        if not 0 <= point - self.offset(t) < self.width_at(t):
            raise PatternError(f"row {t} has no task at point {point}")
        low = self.offset(t - 1)
        high = low + self.width_at(t - 1)
        return [q for first, last in intervals for q in range(max(first, low), min(last + 1, high))]

    def _of_point(self, dset: int, point: int) -> tuple[Intervals, Intervals]:
        if not 0 <= dset < self.sets:
            raise PatternError(f"there is no dependence set {dset}: sets are 0..{self.sets - 1}")
        if not 0 <= point < self.width:
            raise PatternError(f"there is no point {point}: points are 0..{self.width - 1}")
        return self._sets[dset]
