"""Dependence patterns of Task Bench, and some beyond it, as task graphs.

The eleven patterns of Slaughter et al., arXiv:1908.05790, follow the reference program where it differs from the paper
(`fft`, `tree` and `random_nearest` do). Four more are our own: `stencil_2d`, `stencil_2d_9`, `multigrid` and
`random_spread`. Graphs that follow no formula are in `exafield.taskbench.beyond`.
"""

import operator
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exafield.engine.graph import Integers, TaskGraph
from exafield.taskbench.dependencies import AnyPattern, PatternError
from exafield.taskbench.intervals import Intervals
from exafield.taskbench.siphash import uniforms

TYPES: Final = (
    "trivial", "no_comm", "stencil_1d", "stencil_1d_periodic", "dom", "tree", "fft", "all_to_all", "nearest", "spread",
    "random_nearest",
)  # fmt: skip
"""The patterns of the reference."""
BEYOND: Final = ("stencil_2d", "stencil_2d_9", "multigrid", "random_spread")
"""The patterns that the reference lacks."""
PERIODIC: Final = ("spread", "random_nearest", "random_spread")
"""The patterns that cycle through `period` dependence sets, and need a radix above 0."""
_SPREAD: Final = ("spread", "random_spread")


@dataclass(frozen=True)
class Pattern(AnyPattern):
    """A pattern with all its parameters; `pattern` makes one with the reference's defaults.

    Two patterns are equal if their parameters are. A pickle holds the parameters alone.

    - `trivial`: no dependencies at all.
    - `no_comm`: a point depends on itself.
    - `stencil_1d`, `stencil_1d_periodic`: on itself and its two neighbours; at the ends on what there is, or round.
    - `dom`: on itself and its left neighbour. Rows grow from the right and shrink to the left: a wave front.
    - `tree`: on its parent p div 2. Rows double until they are full.
    - `fft`: on p - 2^d, p and p + 2^d.
    - `all_to_all`: on all points.
    - `nearest`: on the `radix` points around it.
    - `spread`: on `radix` points at equal distances over the width, which set d shifts by d (all but itself).
    - `random_nearest`: on itself, and on each of the nearest points with probability `fraction`.
    - `stencil_2d`, `stencil_2d_9`: points are numbered row by row on a grid of R rows by C columns, where R is the
      largest divisor of `width` that is not above C = width / R (a prime width gives a single row). A point depends on
      its 4 or 8 neighbours in the grid, and on itself; the grid has ends. In ascending order.
    - `multigrid`: V-cycles. Level l has ceil(width / 2^l) points, down to the level with a single point, and a row
      works on one level. The rows of a cycle: smooth on level 0; for each level below, restrict to it and smooth on
      it; for each level back up to 0, prolong to it and smooth on it. The last smoothing on level 0 is the first of
      the next cycle, so with L > 1 levels a cycle has 4 (L - 1) rows. Set 0, smoothing: a point depends on itself and
      its two neighbours. Set 1, restriction: on the points 2p and 2p + 1 of the finer level. Set 2, prolongation: on
      its parent p div 2. (A level's values from the way down are not dependencies: those reach one row back only.)
    - `random_spread`: on itself, and on each other point that `spread` gives with the same parameters if
      u(graph_index, radix, d, producer, consumer) < `fraction`, as in `random_nearest`; in the order of `spread`.

    Args:
        type: name of the pattern.
        width: largest number of tasks in a row.
        steps: number of rows.
        radix: dependencies per task (`nearest`, `spread` and the random patterns).
        period: number of dependence sets that rows cycle through (`PERIODIC`; 0 for all others).
        fraction: probability of a dependency (random patterns).
        graph_index: number of the graph among those that run together; it seeds the random patterns.

    Raises:
        PatternError: the parameters are not legal, or not together.
    """

    type: str
    width: int
    steps: int
    radix: int
    period: int
    fraction: float
    graph_index: int = 0

    def __post_init__(self) -> None:
        if self.type not in (*TYPES, *BEYOND):
            raise PatternError(f'Invalid flag "-type {self.type}" must be one of {", ".join((*TYPES, *BEYOND))}')
        for name, least in (("steps", 1), ("width", 1), ("radix", 0), ("period", 0), ("graph_index", 0)):
            value = operator.index(getattr(self, name))
            object.__setattr__(self, name, value)
            if value < least:
                bound = "> 0" if least else ">= 0"
                what = f'Invalid flag "-{name} {value}"' if name != "graph_index" else f"graph_index {value}"
                raise PatternError(f"{what} must be {bound}")
            if value >= 1 << 63:
                raise PatternError(f"{name} {value} must be below 2^63")
        object.__setattr__(self, "fraction", float(self.fraction))
        if not 0 <= self.fraction <= 1:
            raise PatternError(f'Invalid flag "-fraction {self.fraction}" must be >= 0 and <= 1')
        self._check_together()

    def _check_together(self) -> None:
        name = f'Graph type "{self.type}"'
        if self.type not in PERIODIC:
            if self.period:
                raise PatternError(f"{name} does not take a period, but the period is {self.period}")
        elif not self.period:
            raise PatternError(f"{name} requires a period above 0 (-period)")
        elif not self.radix:
            raise PatternError(f"{name} requires a radix above 0 (-radix)")
        if self.type in _SPREAD:
            if self.radix > self.width:
                raise PatternError(f"{name} requires a radix that is at most the width {self.width}, not {self.radix}")
            most = -(-self.width // self.radix)
            if self.period > most:  # a shifted point would fall on the next one
                raise PatternError(f"{name} requires a period that is at most {most}, not {self.period}")
        least = {"fft": 2, "stencil_1d_periodic": 3}.get(self.type, 1)
        if self.width < least:
            raise PatternError(f"{name} requires a width that is at least {least}, not {self.width}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Pattern, astuple(self)

    @property
    def sets(self) -> int:
        """Number of dependence sets."""
        if self.type in PERIODIC:
            return self.period
        return {"fft": (self.width - 1).bit_length(), "multigrid": 3}.get(self.type, 1)

    def graph(self) -> TaskGraph:
        """The pattern as a task graph; made once, and then kept.

        Raises:
            PatternError: a point depends on another twice, or the two directions of the dependencies disagree. For
                parameters that `Pattern` takes this is a fault of the pattern's definition.
        """
        return self._graph

    @cached_property
    def _graph(self) -> TaskGraph:
        for dset, (forward, back) in enumerate(self._sets):
            where = f'Graph type "{self.type}", dependence set {dset}'
            for point in (forward.twice(), back.twice()):
                if point is not None:
                    raise PatternError(f"{where}: a dependency of point {point} is there twice")
            if not back.is_transpose_of(forward):
                raise PatternError(f"{where}: a dependency has no counterpart in the other direction")
        return TaskGraph(self.width, *self._rows, tuple(forward.relation() for forward, _ in self._sets))

    @cached_property
    def _rows(self) -> tuple[Integers, Integers, Integers]:
        t, W, T = np.arange(self.steps), self.width, self.steps
        zero = np.zeros_like(t)
        match self.type:
            case "dom":
                return np.maximum(0, t + W - T), np.minimum(W, np.minimum(t + 1, T - t)), zero
            case "tree":
                return zero, np.minimum(W, np.left_shift(1, np.minimum(t, 62))), zero
            case "multigrid":
                cycle = np.array(list(_cycle(W)))
                return zero, cycle[t % len(cycle), 0], cycle[t % len(cycle), 1]
            case "fft":
                return zero, zero + W, (t + self.sets - 1) % self.sets
            case _:
                return zero, zero + W, t % self.sets

    @cached_property
    def _sets(self) -> tuple[tuple[Intervals, Intervals], ...]:
        make = _MAKERS[self.type]
        return tuple((make(self, dset, False), make(self, dset, True)) for dset in range(self.sets))


def pattern(
    type: str,  # noqa: A002  (the flag's name)
    width: int = 4,
    steps: int = 4,
    radix: int = 3,
    period: int | None = None,
    fraction: float = 0.25,
    graph_index: int = 0,
) -> Pattern:
    """A pattern of Task Bench (arXiv:1908.05790) with the reference's defaults; see `Pattern`.

    Args:
        period: by default 3 where the type needs one, else 0.

    Raises:
        PatternError: the parameters are not legal, or not together. (With the default width and radix, `spread` is
            refused unless the period is at most 2, as it is by the reference.)
    """
    if period is None:
        period = 3 if type in PERIODIC else 0
    return Pattern(type, width, steps, radix, period, fraction, graph_index)


def _cycle(width: int) -> Iterator[tuple[int, int]]:
    """Number of points and dependence set of each row of a V-cycle."""
    levels = [-(-width // 2**level) for level in range((width - 1).bit_length() + 1)]
    yield width, 0
    for points in levels[1:]:
        yield points, 1
        yield points, 0
    for points in levels[-2:0:-1]:
        yield points, 2
        yield points, 0
    if len(levels) > 1:
        yield width, 2


# One function for each type: the intervals of all points for a set d, or of those that take from them (`back`).
def _near(pattern: Pattern, left: int, right: int) -> Intervals:
    p = np.arange(pattern.width)
    return Intervals.of(pattern.width, (np.maximum(p - left, 0), np.minimum(p + right, pattern.width - 1)))


def _single(q: Integers, there: ArrayLike) -> tuple[Integers, Integers]:
    return q, np.where(there, q, q - 1)


def _none(pattern: Pattern) -> Intervals:
    return Intervals.of_runs(np.arange(pattern.width), np.zeros((pattern.width, 0), dtype=np.bool_))


def _periodic(pattern: Pattern, d: int, back: bool) -> Intervals:
    W = pattern.width
    p = np.arange(W)
    line = (np.maximum(p - 1, 0), np.minimum(p + 1, W - 1))
    return Intervals.of(W, line, _single(np.full(W, W - 1), p == 0), _single(np.zeros_like(p), p == W - 1))


def _parent(pattern: Pattern) -> Intervals:
    p = np.arange(pattern.width) // 2
    return Intervals.of(pattern.width, (p, p))


def _children(pattern: Pattern) -> Intervals:
    p = np.arange(pattern.width)
    return Intervals.of(pattern.width, (2 * p, np.minimum(2 * p + 1, pattern.width - 1)))


def _fft(pattern: Pattern, d: int, back: bool) -> Intervals:
    W, p = pattern.width, np.arange(pattern.width)
    low, high = p - (1 << d), p + (1 << d)
    return Intervals.of(W, _single(low, low >= 0), (p, p), _single(high, high < W))


def _reach(pattern: Pattern, back: bool) -> tuple[int, int]:
    """How far the window of `nearest` goes to either side, no further than is worth looking."""
    left, right = min(pattern.radix // 2, pattern.width - 1), min((pattern.radix - 1) // 2, pattern.width - 1)
    return (right, left) if back else (left, right)


def _nearest(pattern: Pattern, d: int, back: bool) -> Intervals:
    return _near(pattern, *_reach(pattern, back)) if pattern.radix else _none(pattern)


def _drawn(pattern: Pattern, d: int, back: bool, p: Integers, q: Integers) -> NDArray[np.bool_]:
    producer, consumer = (p, q) if back else (q, p)
    drawn = uniforms(pattern.graph_index, pattern.radix, d, producer, consumer) < pattern.fraction
    return np.asarray(drawn | (p == q))


def _random_nearest(pattern: Pattern, d: int, back: bool) -> Intervals:
    left, right = _reach(pattern, back)
    p = np.arange(pattern.width)[:, None]
    q = p + np.arange(-left, right + 1)
    return Intervals.of_runs(q[:, 0], (q >= 0) & (q < pattern.width) & _drawn(pattern, d, back, p, q))


def _spread(pattern: Pattern, d: int, back: bool) -> Intervals:
    i, p = np.arange(pattern.radix), np.arange(pattern.width)[:, None]
    distance = i * pattern.width // pattern.radix + np.where(i > 0, d, 0)
    q = (p - distance if back else p + distance) % pattern.width
    return Intervals.of(
        pattern.width, _single(q, _drawn(pattern, d, back, p, q)) if pattern.type == "random_spread" else (q, q)
    )


def _grid(pattern: Pattern, corners: bool) -> Intervals:
    W = pattern.width
    rows = next(r for r in range(int(W**0.5) + 1, 0, -1) if r * r <= W and W % r == 0)
    columns = W // rows
    p = np.arange(W)
    row, column = np.divmod(p, columns)
    low, high = p - (column > 0), p + (column < columns - 1)
    up, down = ((low, high), (low, high)) if corners else ((p, p), (p, p))
    return Intervals.of(
        W,
        (up[0] - columns, np.where(row > 0, up[1] - columns, -W - 1)),
        (low, high),
        (down[0] + columns, np.where(row < rows - 1, down[1] + columns, -1)),
    )


def _multigrid(pattern: Pattern, d: int, back: bool) -> Intervals:
    if d == 0:
        return _near(pattern, 1, 1)
    return _children(pattern) if (d == 1) != back else _parent(pattern)


_MAKERS: Final[dict[str, Callable[[Pattern, int, bool], Intervals]]] = {
    "trivial": lambda pattern, d, back: _none(pattern),
    "no_comm": lambda pattern, d, back: _near(pattern, 0, 0),
    "stencil_1d": lambda pattern, d, back: _near(pattern, 1, 1),
    "stencil_1d_periodic": _periodic,
    "dom": lambda pattern, d, back: _near(pattern, 0, 1) if back else _near(pattern, 1, 0),
    "tree": lambda pattern, d, back: _children(pattern) if back else _parent(pattern),
    "fft": _fft,
    "all_to_all": lambda pattern, d, back: _near(pattern, pattern.width, pattern.width),
    "nearest": _nearest,
    "spread": _spread,
    "random_nearest": _random_nearest,
    "stencil_2d": lambda pattern, d, back: _grid(pattern, corners=False),
    "stencil_2d_9": lambda pattern, d, back: _grid(pattern, corners=True),
    "multigrid": _multigrid,
    "random_spread": _spread,
}
