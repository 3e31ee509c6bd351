"""Many symmetric positive definite systems on one mesh, factored and solved: banded or sparse.

A system is given by its diagonal and by one coupling for each pair of neighbours: A[i, i] = diagonal[i] and
A[a, b] = A[b, a] = -coupling[pair]. Everything is float64, one row for each realisation.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg.lapack import dpbtrf, dpbtrs
from scipy.sparse import coo_array, csc_array
from scipy.sparse.csgraph import reverse_cuthill_mckee
from scipy.sparse.linalg import SuperLU, splu

#: A pivot below this share of its diagonal has lost all but about four digits to rounding; our choice.
LEAST_PIVOT = 1e-12
#: Half-bandwidth up to which banded Cholesky is used. It costs cells x band^2; measured against SuperLU, our choice.
BAND = 64


class FactorError(ArithmeticError):
    """A system that is not positive definite, as far as float64 can tell.

    Args:
        row: of the batch.
        cell: in which the pivot vanished, None where the method does not say.
    """

    def __init__(self, row: int, cell: int | None) -> None:
        super().__init__(f"system {row} is not positive definite" + ("" if cell is None else f" at cell {cell}"))
        self.row, self.cell = row, cell


@runtime_checkable
class Factors(Protocol):
    """The factored systems of a batch."""

    def solve(self, right: Float[np.ndarray, "batch cell"]) -> Float[np.ndarray, "batch cell"]:
        """Solutions, one right-hand side for each system."""
        ...

    def solve_many(self, row: int, right: Float[np.ndarray, "side cell"]) -> Float[np.ndarray, "side cell"]:
        """Solutions of one system for many right-hand sides."""
        ...


@runtime_checkable
class Method(Protocol):
    """A way to factor. It numbers the cells by itself: `order[k]` is the cell that comes k-th."""

    order: Int[np.ndarray, "cell"]

    def factor(self, diagonal: Float[np.ndarray, "batch cell"], coupling: Float[np.ndarray, "batch pair"]) -> Factors:
        """Factors the systems, given in that order.

        Raises:
            FactorError: one is not positive definite.
        """
        ...


def reverse_cuthill_mckee_order(cells: int, pairs: Int[np.ndarray, "pair 2"]) -> Int[np.ndarray, "cell"]:
    """Order of the cells that keeps neighbours close to each other."""
    a, b = pairs.T
    ones = np.ones(2 * len(a))
    graph = coo_array((ones, (np.r_[a, b], np.r_[b, a])), shape=(cells, cells)).tocsr()
    return np.asarray(reverse_cuthill_mckee(graph, symmetric_mode=True), dtype=np.int64)


def method(cells: int, pairs: Int[np.ndarray, "pair 2"]) -> Method:
    """Banded Cholesky where the band is narrow, sparse LU elsewhere."""
    banded = Banded(cells, pairs)
    return banded if banded.band <= BAND else Sparse(cells, pairs)


@dataclass(frozen=True, slots=True)
class BandedFactors:
    """Cholesky factors in LAPACK's lower band storage, batch x cell x (band + 1)."""

    lower: Float[np.ndarray, "batch cell diagonal"]

    def solve(self, right: Float[np.ndarray, "batch cell"]) -> Float[np.ndarray, "batch cell"]:
        solution = np.empty_like(right)
        for factor, row, answer in zip(self.lower, right, solution, strict=True):
            answer[:] = dpbtrs(factor.T, row, lower=1)[0]
        return solution

    def solve_many(self, row: int, right: Float[np.ndarray, "side cell"]) -> Float[np.ndarray, "side cell"]:
        return np.ascontiguousarray(dpbtrs(self.lower[row].T, right.T, lower=1)[0].T)


class Banded:
    """Banded Cholesky factorisation after reverse Cuthill-McKee: LAPACK's dpbtrf on each system.

    Args:
        cells: number of unknowns.
        pairs: of neighbours, each once.
    """

    def __init__(self, cells: int, pairs: Int[np.ndarray, "pair 2"]) -> None:
        self.order = reverse_cuthill_mckee_order(cells, pairs)
        place = np.argsort(self.order)
        ends = np.sort(place[pairs], axis=1)
        self.band = int(np.diff(ends, axis=1).max(initial=0))
        self._at = ends[:, 0] * (self.band + 1) + (ends[:, 1] - ends[:, 0])

    def factor(
        self, diagonal: Float[np.ndarray, "batch cell"], coupling: Float[np.ndarray, "batch pair"]
    ) -> BandedFactors:
        batch, cells = diagonal.shape
        lower = np.zeros((batch, cells, self.band + 1))
        lower[:, :, 0] = diagonal
        lower.reshape(batch, -1)[:, self._at] = -coupling
        for row, system in enumerate(lower):
            # The transpose is laid out as Fortran has it, so LAPACK works in place.
            _, info = dpbtrf(system.T, lower=1, overwrite_ab=1)
            if info:
                raise FactorError(row, int(self.order[info - 1]))
        lost = np.argwhere(lower[:, :, 0] ** 2 < LEAST_PIVOT * diagonal)
        if lost.size:
            raise FactorError(int(lost[0, 0]), int(self.order[lost[0, 1]]))
        return BandedFactors(lower)


@dataclass(frozen=True, slots=True)
class SparseFactors:
    """LU factors of SuperLU, one for each system."""

    parts: tuple[SuperLU, ...]

    def solve(self, right: Float[np.ndarray, "batch cell"]) -> Float[np.ndarray, "batch cell"]:
        return np.stack([part.solve(row) for part, row in zip(self.parts, right, strict=True)])

    def solve_many(self, row: int, right: Float[np.ndarray, "side cell"]) -> Float[np.ndarray, "side cell"]:
        return np.ascontiguousarray(self.parts[row].solve(np.asfortranarray(right.T)).T)


class Sparse:
    """Sparse LU factorisation without pivoting (SuperLU in its symmetric mode, minimum degree).

    Args:
        cells: number of unknowns.
        pairs: of neighbours, each once.
    """

    def __init__(self, cells: int, pairs: Int[np.ndarray, "pair 2"]) -> None:
        self.order = np.arange(cells)
        a, b = pairs.T
        rows, columns = np.r_[self.order, a, b], np.r_[self.order, b, a]
        numbered = coo_array((np.arange(1.0, len(rows) + 1), (rows, columns)), shape=(cells, cells)).tocsc()
        self._indices, self._starts, self._shape = numbered.indices, numbered.indptr, numbered.shape
        self._from = numbered.data.astype(np.int64) - 1  # value k of the matrix is entry _from[k] of what is handed in

    def factor(
        self, diagonal: Float[np.ndarray, "batch cell"], coupling: Float[np.ndarray, "batch pair"]
    ) -> SparseFactors:
        parts = []
        for row, (own, between) in enumerate(zip(diagonal, coupling, strict=True)):
            values = np.concatenate([own, -between, -between])[self._from]
            matrix = csc_array((values, self._indices, self._starts), shape=self._shape)
            try:
                part = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
            except RuntimeError as error:  # "Factor is exactly singular"
                raise FactorError(row, None) from error
            lost = np.flatnonzero(part.U.diagonal()[part.perm_c] < LEAST_PIVOT * own)
            if lost.size:
                raise FactorError(row, int(lost[0]))
            parts.append(part)
        return SparseFactors(tuple(parts))
