"""Many symmetric positive definite systems on one mesh, factored and solved: banded or sparse.

A system is given by its diagonal and by one coupling for each pair of neighbours: A[i, i] = diagonal[i] and
A[a, b] = A[b, a] = -coupling[pair]. Everything is float64. The realisation is the last axis: what is done to all of
them alike runs over numbers that lie side by side.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg.lapack import dpbtrf, dpbtrs
from scipy.sparse import coo_array, csc_array
from scipy.sparse.csgraph import reverse_cuthill_mckee
from scipy.sparse.linalg import SuperLU, splu

#: A pivot below this share of its diagonal has lost all but about four digits to rounding; our choice.
LEAST_PIVOT = 1e-12
#: Half-bandwidths up to which compiled and LAPACK's banded Cholesky are used. They cost cells x band^2; in CPU time on
#: boxes of 64, 96 and 128 rows they came before the next by a tenth, a half and two thirds. Our choice.
COMPILED_BAND, BAND = 64, 128


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

    def solve(self, right: Float[np.ndarray, "cell batch"]) -> Float[np.ndarray, "cell batch"]:
        """Solutions, one right-hand side for each system."""
        ...

    def solve_many(self, row: int, right: Float[np.ndarray, "cell side"]) -> Float[np.ndarray, "cell side"]:
        """Solutions of one system for many right-hand sides."""
        ...


@runtime_checkable
class Method(Protocol):
    """A way to factor. It numbers the cells by itself: `order[k]` is the cell that comes k-th.

    `lanes` is how many systems it likes to have at a time.
    """

    order: Int[np.ndarray, "cell"]
    lanes: int

    def factor(self, diagonal: Float[np.ndarray, "cell batch"], coupling: Float[np.ndarray, "pair batch"]) -> Factors:
        """Factors the systems, given in that order.

        Raises:
            FactorError: one is not positive definite.
        """
        ...


def method(cells: int, pairs: Int[np.ndarray, "pair 2"]) -> Method:
    """Banded Cholesky where the band is narrow, compiled if numba is installed; sparse LU elsewhere."""
    banded = Banded(cells, pairs)
    if banded.band > BAND:
        return Sparse(cells, pairs)
    if banded.band > COMPILED_BAND or find_spec("numba") is None:
        return banded
    from exafield.subsurface.compiled import Compiled

    return Compiled(cells, pairs)


class Band:
    """Reverse Cuthill-McKee order. Coupling k is between cell `row[k]` and the one `gap[k]` before, `band` at most."""

    def __init__(self, cells: int, pairs: Int[np.ndarray, "pair 2"]) -> None:
        a, b = pairs.T
        graph = coo_array((np.ones(2 * len(a)), (np.r_[a, b], np.r_[b, a])), shape=(cells, cells)).tocsr()
        self.order = np.asarray(reverse_cuthill_mckee(graph, symmetric_mode=True), dtype=np.int64)
        ends = np.sort(np.argsort(self.order)[pairs], axis=1)
        self.band = int(np.diff(ends, axis=1).max(initial=0))
        self.row, self.gap = ends[:, 1], ends[:, 1] - ends[:, 0]
        self.first = np.arange(cells)  # the first cell that each is coupled to
        np.minimum.at(self.first, ends[:, 1], ends[:, 0])


@dataclass(frozen=True, slots=True)
class BandedFactors:
    """Cholesky factors in LAPACK's lower band storage, one system after the other."""

    lower: Float[np.ndarray, "batch cell diagonal"]

    def solve(self, right: Float[np.ndarray, "cell batch"]) -> Float[np.ndarray, "cell batch"]:
        return np.stack([dpbtrs(f.T, x, lower=1)[0] for f, x in zip(self.lower, right.T.copy(), strict=True)], axis=-1)

    def solve_many(self, row: int, right: Float[np.ndarray, "cell side"]) -> Float[np.ndarray, "cell side"]:
        return np.asarray(dpbtrs(self.lower[row].T, right, lower=1)[0])


class Banded(Band):
    """Banded Cholesky factorisation: LAPACK's dpbtrf on each system.

    OpenBLAS puts threads on its short vectors, to no avail, unless OPENBLAS_NUM_THREADS or OMP_NUM_THREADS is 1, as it
    is in most launchers' ranks. The lower triangle suffers least.

    Args:
        cells: number of unknowns.
        pairs: of neighbours, each once.
    """

    lanes = 16  # their bands fit into a large cache; our choice

    def factor(
        self, diagonal: Float[np.ndarray, "cell batch"], coupling: Float[np.ndarray, "pair batch"]
    ) -> BandedFactors:
        cells, batch = diagonal.shape
        lower = np.zeros((batch, cells, self.band + 1))
        lower[:, :, 0] = diagonal.T
        lower.reshape(batch, -1)[:, (self.row - self.gap) * (self.band + 1) + self.gap] = -coupling.T
        for row, system in enumerate(lower):
            # The transpose is laid out as Fortran has it, so LAPACK works in place.
            _, info = dpbtrf(system.T, lower=1, overwrite_ab=1)
            if info:
                raise FactorError(row, int(self.order[info - 1]))
        check_pivots(lower[:, :, 0].T ** 2, diagonal, self.order)
        return BandedFactors(lower)


def check_pivots(
    pivots: Float[np.ndarray, "cell batch"], diagonal: Float[np.ndarray, "cell batch"], order: Int[np.ndarray, "cell"]
) -> None:
    """Pivots are above what rounding leaves of nothing; NaN is not.

    Raises:
        FactorError: one is.
    """
    fine = pivots >= LEAST_PIVOT * diagonal
    if not fine.all():
        row, cell = (int(x) for x in np.argwhere(~fine.T)[0])
        raise FactorError(row, int(order[cell]))


@dataclass(frozen=True, slots=True)
class SparseFactors:
    """LU factors of SuperLU, one for each system."""

    parts: tuple[SuperLU, ...]

    def solve(self, right: Float[np.ndarray, "cell batch"]) -> Float[np.ndarray, "cell batch"]:
        return np.stack([part.solve(x) for part, x in zip(self.parts, right.T.copy(), strict=True)], axis=-1)

    def solve_many(self, row: int, right: Float[np.ndarray, "cell side"]) -> Float[np.ndarray, "cell side"]:
        return np.asarray(self.parts[row].solve(right))


class Sparse:
    """Sparse LU factorisation without pivoting (SuperLU in its symmetric mode, minimum degree).

    Args:
        cells: number of unknowns.
        pairs: of neighbours, each once.
    """

    lanes = 8

    def __init__(self, cells: int, pairs: Int[np.ndarray, "pair 2"]) -> None:
        self.order = np.arange(cells)
        a, b = pairs.T
        rows, columns = np.r_[self.order, a, b], np.r_[self.order, b, a]
        numbered = coo_array((np.arange(1.0, len(rows) + 1), (rows, columns)), shape=(cells, cells)).tocsc()
        self._indices, self._starts, self._shape = numbered.indices, numbered.indptr, numbered.shape
        self._from = numbered.data.astype(np.int64) - 1  # value k of the matrix is entry _from[k] of what is handed in

    def factor(
        self, diagonal: Float[np.ndarray, "cell batch"], coupling: Float[np.ndarray, "pair batch"]
    ) -> SparseFactors:
        parts, pivots = [], np.empty_like(diagonal)
        for row in range(diagonal.shape[1]):
            values = np.concatenate([diagonal[:, row], -coupling[:, row], -coupling[:, row]])[self._from]
            matrix = csc_array((values, self._indices, self._starts), shape=self._shape)
            try:
                part = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
            except RuntimeError as error:  # "Factor is exactly singular"
                raise FactorError(row, None) from error
            pivots[:, row] = part.U.diagonal()[part.perm_c]
            parts.append(part)
        check_pivots(pivots, diagonal, self.order)
        return SparseFactors(tuple(parts))
