"""Conductances of a site's faces and the linear systems they make, for batches, with the way back (adjoint).

Two-point fluxes: the conductance of a face is the harmonic sum of those of its sides, transmissivity x shape.
Arrays are float64. Inside, cells come in the order of the factorisation's method and the realisation is the last axis;
outside, cells are in the mesh's order and the realisation is the first.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array

from exafield.subsurface.checks import SiteError, check_log_transmissivity
from exafield.subsurface.factor import FactorError, Factors, Method, method
from exafield.subsurface.site import Site


@dataclass(frozen=True, slots=True)
class Solved:
    """Heads of some realisations, and what the way back needs.

    Args:
        head: [m].
        share: of the first side in the resistance of each inner face: p / (p + q), p and q the sides' conductances,
            is the derivative of the conductance's logarithm by the second cell's log-transmissivity.
        conductance: of the inner faces [m2/d].
        outer: of the fixed faces [m2/d].
        factors: of the systems.
    """

    head: Float[np.ndarray, "cell batch"]
    share: Float[np.ndarray, "face batch"]
    conductance: Float[np.ndarray, "face batch"]
    outer: Float[np.ndarray, "fixed batch"]
    factors: Factors


class Network:
    """What stays the same from solve to solve on a site.

    Args:
        site: its mesh and boundary conditions.
        by: way to factor; chosen by the width of the band if not given.
    """

    def __init__(self, site: Site, by: Method | None = None) -> None:
        mesh = site.mesh
        self.cells = mesh.cells
        self.by = by or method(mesh.cells, mesh.neighbours)
        self.order = self.by.order
        self.place = np.argsort(self.order)
        self._first, self._second = (np.ascontiguousarray(x) for x in self.place[mesh.neighbours].T)
        self._shape_first, self._shape_second = (x[:, None].copy() for x in mesh.shapes.T)
        self._to_first, self._to_second = (_sums(x, mesh.cells) for x in (self._first, self._second))
        self._to_both, self._to_turned = self._to_first + self._to_second, self._to_second - self._to_first
        self._outer = self.place[mesh.boundary_cells[site.fixed_faces]]
        self._outer_shape = mesh.boundary_shapes[site.fixed_faces][:, None]
        self._outer_head = site.fixed_heads[:, None]
        self._to_outer = _sums(self._outer, mesh.cells)
        self._kept = self.place[site.fixed_cells]
        assert site.source is not None
        right = site.source.copy()
        np.add.at(right, mesh.boundary_cells[site.inflow_faces], site.inflows)
        np.add.at(right, site.leak_cells, site.leak_conductances * site.leak_heads)
        leak = np.zeros(mesh.cells)
        np.add.at(leak, site.leak_cells, site.leak_conductances)
        self._right, self._leak = right[self.order][:, None], leak[self.order][:, None]
        # Heads are solved for as differences from one of the order of the given ones: digits are not lost to altitude.
        given = np.concatenate([site.fixed_heads, site.fixed_cell_heads, site.leak_heads])
        self._datum = float(given.mean())
        self._right -= self._leak * self._datum
        # Faces of cells with a given head couple nothing; what flows through them goes to the right-hand side.
        kept = np.zeros(mesh.cells, dtype=bool)
        kept[self._kept] = True
        self._open = ~(kept[self._first] | kept[self._second])[:, None]
        self._value = np.zeros((mesh.cells, 1))
        self._value[self._kept, 0] = site.fixed_cell_heads - self._datum

    def solve(
        self,
        log_transmissivity: Float[np.ndarray, "batch cell"],
        source: Float[np.ndarray, "rows cell"] | None,
        start: int = 0,
    ) -> Solved:
        """Heads of a batch, in the order of the method.

        Args:
            log_transmissivity: natural logarithm of m2/d.
            source: more inflow into each cell [m3/d], one row for all or one for each realisation.
            start: number of the first realisation, for messages.

        Raises:
            SiteError: a value is not finite, or a system is singular; names the realisation and the cell.
        """
        check_log_transmissivity(log_transmissivity, start)
        transmissivity = np.exp(log_transmissivity.T[self.order])
        one = transmissivity[self._first] * self._shape_first
        two = transmissivity[self._second] * self._shape_second
        share = one / (one + two)
        conductance = two * share
        outer = transmissivity[self._outer] * self._outer_shape
        right = self._right + self._to_outer @ (outer * (self._outer_head - self._datum))
        if source is not None:
            right += source.T[self.order]
        diagonal = self._leak + self._to_outer @ outer + self._to_both @ conductance
        coupling = conductance
        if self._kept.size:
            right += self._to_first @ (conductance * self._value[self._second])
            right += self._to_second @ (conductance * self._value[self._first])
            right[self._kept], diagonal[self._kept] = self._value[self._kept], 1.0
            coupling = conductance * self._open
        try:
            factors = self.by.factor(diagonal, coupling)
        except FactorError as error:
            raise SiteError(self._failure(error, log_transmissivity, start)) from error
        head = factors.solve(right)
        fine = np.isfinite(head)
        if not fine.all():
            row, cell = (int(x) for x in np.argwhere(~fine.T)[0])
            raise SiteError(self._failure(FactorError(row, int(self.order[cell])), log_transmissivity, start))
        return Solved(head + self._datum, share, conductance, outer, factors)

    def back(
        self, solved: Solved, cotangent: Float[np.ndarray, "batch cell"]
    ) -> tuple[Float[np.ndarray, "batch cell"], Float[np.ndarray, "batch cell"]]:
        """Derivatives by log-transmissivity and by source of sum(cotangent x head)."""
        given = cotangent.T[self.order]
        given[self._kept] = 0.0  # their heads depend on nothing
        adjoint = solved.factors.solve(given)
        return self._gradient(solved, slice(None), adjoint), adjoint[self.place].T

    def sensitivities(self, solved: Solved, row: int, cells: Int[np.ndarray, "out"]) -> Float[np.ndarray, "out cell"]:
        """Derivatives of the heads in some cells of one realisation by each log-transmissivity."""
        cotangent = np.zeros((self.cells, len(cells)))
        cotangent[self.place[cells], np.arange(len(cells))] = 1.0
        cotangent[self._kept] = 0.0
        return self._gradient(solved, slice(row, row + 1), solved.factors.solve_many(row, cotangent))

    def heads(self, solved: Solved) -> Float[np.ndarray, "batch cell"]:
        """Heads [m] as they are wanted outside."""
        return np.asarray(solved.head[self.place].T)

    def _gradient(
        self, solved: Solved, rows: slice, adjoint: Float[np.ndarray, "cell batch"]
    ) -> Float[np.ndarray, "batch cell"]:
        """What a change of log-transmissivity does to each cell's balance, weighted with the adjoint heads."""
        head, outer = solved.head[:, rows], solved.outer[:, rows]
        face = (adjoint[self._first] - adjoint[self._second]) * solved.conductance[:, rows]
        face *= head[self._second] - head[self._first]
        gradient = self._to_first @ face + self._to_turned @ (face * solved.share[:, rows])
        gradient += self._to_outer @ (adjoint[self._outer] * (outer * (self._outer_head - head[self._outer])))
        return np.asarray(gradient[self.place].T)

    def _failure(self, error: FactorError, log_transmissivity: Float[np.ndarray, "batch cell"], start: int) -> str:
        values = log_transmissivity[error.row]
        cell = int(np.argmin(values)) if error.cell is None else error.cell
        return (
            f"heads of realisation {start + error.row} cannot be solved for, near cell {cell} with log-transmissivity "
            f"{values[cell]:.4g} (the realisation spans {values.min():.4g} to {values.max():.4g}): the contrast is "
            "beyond what float64 holds"
        )


def _sums(cells: Int[np.ndarray, "some"], count: int) -> csr_array:
    """The matrix that adds up what belongs to each cell."""
    return coo_array((np.ones(len(cells)), (cells, np.arange(len(cells)))), shape=(count, len(cells))).tocsr()
