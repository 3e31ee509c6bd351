"""Banded Cholesky compiled by numba: all systems of a batch at once, coupling by coupling.

LAPACK's dpbtrf works on bands this narrow one short vector at a time, and calls cost more than sums. Here the inner
loop runs over the realisations, side by side in memory, and leaves out what lies before a cell's first neighbour.
"""

import inspect
from dataclasses import dataclass

import numba
import numpy as np
from jaxtyping import Float, Int

from exafield.subsurface.factor import Band, Banded, BandedFactors, Factors, check_pivots


def _factor(rows: np.ndarray, first: np.ndarray, last: np.ndarray, lanes: int) -> None:
    """Cholesky factors in place, row by row; the diagonal holds reciprocals.

    Args:
        rows: of the lower triangle, each from its first coupling to its diagonal, x lane; flat, since only loops over
            slices of one axis are vectorised.
        first: cell that each row begins with.
        last: where each row's diagonal is, in entries.
        lanes: realisations.
    """
    for i in range(first.size):
        at = last[i] * lanes  # cell j's coupling is i - j entries before the diagonal
        diagonal = rows[at : at + lanes]
        for j in range(first[i], i):
            there = last[j] * lanes
            x = rows[at - (i - j) * lanes : at - (i - j) * lanes + lanes]
            for k in range(max(first[i], first[j]), j):
                a = rows[at - (i - k) * lanes : at - (i - k) * lanes + lanes]
                b = rows[there - (j - k) * lanes : there - (j - k) * lanes + lanes]
                for lane in range(lanes):
                    x[lane] -= a[lane] * b[lane]
            pivot = rows[there : there + lanes]
            for lane in range(lanes):
                x[lane] *= pivot[lane]
            for lane in range(lanes):
                diagonal[lane] -= x[lane] * x[lane]
        for lane in range(lanes):
            diagonal[lane] = 1.0 / np.sqrt(diagonal[lane])


def _solve(rows: np.ndarray, first: np.ndarray, last: np.ndarray, right: np.ndarray, lanes: int) -> None:
    """Forward and backward substitution in place; `right` is cell x lane, flat."""
    for i in range(first.size):
        at = last[i] * lanes
        x = right[i * lanes : (i + 1) * lanes]
        for k in range(first[i], i):
            a = rows[at - (i - k) * lanes : at - (i - k) * lanes + lanes]
            y = right[k * lanes : (k + 1) * lanes]
            for lane in range(lanes):
                x[lane] -= a[lane] * y[lane]
        pivot = rows[at : at + lanes]
        for lane in range(lanes):
            x[lane] *= pivot[lane]
    for i in range(first.size - 1, -1, -1):
        at = last[i] * lanes
        x = right[i * lanes : (i + 1) * lanes]
        pivot = rows[at : at + lanes]
        for lane in range(lanes):
            x[lane] *= pivot[lane]
        for k in range(first[i], i):
            a = rows[at - (i - k) * lanes : at - (i - k) * lanes + lanes]
            y = right[k * lanes : (k + 1) * lanes]
            for lane in range(lanes):
                y[lane] -= a[lane] * x[lane]


def _solve_sides(lower: np.ndarray, right: np.ndarray, sides: int) -> None:
    """As `_solve`, one system in LAPACK's lower band storage for many right-hand sides, which are cell x side, flat."""
    cells, width = lower.shape
    for j in range(cells):
        x = right[j * sides : (j + 1) * sides]
        pivot = 1.0 / lower[j, 0]
        for side in range(sides):
            x[side] *= pivot
        for gap in range(1, min(width, cells - j)):
            factor = lower[j, gap]
            if factor != 0.0:  # before the first coupling of a row there are zeros only
                y = right[(j + gap) * sides : (j + gap + 1) * sides]
                for side in range(sides):
                    y[side] -= factor * x[side]
    for j in range(cells - 1, -1, -1):
        x = right[j * sides : (j + 1) * sides]
        for gap in range(1, min(width, cells - j)):
            factor = lower[j, gap]
            if factor != 0.0:
                y = right[(j + gap) * sides : (j + gap + 1) * sides]
                for side in range(sides):
                    x[side] -= factor * y[side]
        pivot = 1.0 / lower[j, 0]
        for side in range(sides):
            x[side] *= pivot


# Of fewer systems than this LAPACK makes more, in CPU time at 1,475 cells.
_FEW = 4
_OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy"}
_factor_compiled = numba.njit(inspect.unwrap(_factor), **_OPTIONS)  # without the type checks that tests wrap around
_solve_sides_compiled = numba.njit(inspect.unwrap(_solve_sides), **_OPTIONS)
_solve_compiled = numba.njit(inspect.unwrap(_solve), **_OPTIONS)


@dataclass(frozen=True, slots=True)
class CompiledFactors:
    """Cholesky factors, reciprocal on the diagonal."""

    rows: Float[np.ndarray, "entry batch"]
    first: Int[np.ndarray, "cell"]
    last: Int[np.ndarray, "cell"]

    def solve(self, right: Float[np.ndarray, "cell batch"]) -> Float[np.ndarray, "cell batch"]:
        solution = np.array(right, order="C")
        _solve_compiled(self.rows.reshape(-1), self.first, self.last, solution.reshape(-1), right.shape[1])
        return solution

    def solve_many(self, row: int, right: Float[np.ndarray, "cell side"]) -> Float[np.ndarray, "cell side"]:
        cell = np.repeat(np.arange(len(self.last)), np.diff(self.last, prepend=-1))
        gap = self.last[cell] - np.arange(len(cell))
        lower = np.zeros((len(self.last), int(gap.max()) + 1))
        lower[cell - gap, gap] = self.rows[:, row]
        lower[:, 0] = 1.0 / lower[:, 0]
        return _side_by_side(lower, right)


@dataclass(frozen=True, slots=True)
class FewFactors(BandedFactors):
    """LAPACK's factors, with many right-hand sides solved for side by side."""

    def solve_many(self, row: int, right: Float[np.ndarray, "cell side"]) -> Float[np.ndarray, "cell side"]:
        return _side_by_side(self.lower[row], right)


def _side_by_side(
    lower: Float[np.ndarray, "cell diagonal"], right: Float[np.ndarray, "cell side"]
) -> Float[np.ndarray, "cell side"]:
    solution = np.array(right, order="C")
    _solve_sides_compiled(lower, solution.reshape(-1), right.shape[1])
    return solution


class Compiled(Band):
    """Banded Cholesky factorisation of many systems side by side; of a few by LAPACK.

    Args:
        cells: number of unknowns.
        pairs: of neighbours, each once.
    """

    def __init__(self, cells: int, pairs: Int[np.ndarray, "pair 2"]) -> None:
        super().__init__(cells, pairs)
        self._few = Banded(cells, pairs)
        self.lanes = (
            64 if self.band <= 32 else 32
        )  # what is worked on stays near 1 MiB, a second-level cache; our choice
        self.last = np.cumsum(np.arange(cells) - self.first + 1) - 1

    def factor(self, diagonal: Float[np.ndarray, "cell batch"], coupling: Float[np.ndarray, "pair batch"]) -> Factors:
        batch = diagonal.shape[1]
        if batch < _FEW:
            return FewFactors(self._few.factor(diagonal, coupling).lower)
        rows = np.zeros((int(self.last[-1]) + 1, batch))
        rows[self.last[self.row] - self.gap] = -coupling
        rows[self.last] = diagonal
        _factor_compiled(rows.reshape(-1), self.first, self.last, batch)
        check_pivots(1.0 / rows[self.last] ** 2, diagonal, self.order)
        return CompiledFactors(rows, self.first, self.last)
