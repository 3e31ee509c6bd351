"""Conductances of a site's faces and the linear systems they make, for batches, with the way back (adjoint).

Two-point fluxes: the conductance of a face is the harmonic sum of those of its sides, transmissivity x shape.
Arrays are float64; cells come in the order of the factorisation's method inside, in that of the mesh outside.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from exafield.subsurface.checks import SiteError, check_log_transmissivity
from exafield.subsurface.factor import FactorError, Factors, Method, method
from exafield.subsurface.site import Site

#: Realisations worked on at a time, so that their faces stay in the second-level cache; our choice.
CHUNK = 8


@dataclass(frozen=True, slots=True)
class Solved:
    """Heads of some realisations, and what the way back needs.

    Args:
        head: [m], in the order of the method.
        share: of the first side in the resistance of each inner face: p / (p + q), p and q the sides' conductances,
            is the derivative of the conductance's logarithm by the second cell's log-transmissivity.
        conductance: of the inner faces [m2/d].
        outer: of the fixed faces [m2/d].
        factors: of the systems.
    """

    head: Float[np.ndarray, "batch cell"]
    share: Float[np.ndarray, "batch face"]
    conductance: Float[np.ndarray, "batch face"]
    outer: Float[np.ndarray, "batch fixed"]
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
        self._shape_first, self._shape_second = (np.ascontiguousarray(x) for x in mesh.shapes.T)
        self._outer = self.place[mesh.boundary_cells[site.fixed_faces]]
        self._outer_shape = mesh.boundary_shapes[site.fixed_faces]
        self._outer_head = site.fixed_heads
        self._kept, self._kept_head = self.place[site.fixed_cells], site.fixed_cell_heads
        assert site.source is not None
        right = site.source.copy()
        np.add.at(right, mesh.boundary_cells[site.inflow_faces], site.inflows)
        np.add.at(right, site.leak_cells, site.leak_conductances * site.leak_heads)
        leak = np.zeros(mesh.cells)
        np.add.at(leak, site.leak_cells, site.leak_conductances)
        self._right, self._leak = right[self.order], leak[self.order]
        # Heads are solved for as differences from one of the order of the given ones: digits are not lost to altitude.
        given = np.concatenate([site.fixed_heads, site.fixed_cell_heads, site.leak_heads])
        self._datum = float(given.mean())
        self._right -= self._leak * self._datum
        # Faces of cells with a given head couple nothing; what flows through them goes to the right-hand side.
        kept = np.zeros(mesh.cells, dtype=bool)
        kept[self._kept] = True
        self._open = ~(kept[self._first] | kept[self._second])

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
        transmissivity = np.exp(log_transmissivity[:, self.order])
        one = transmissivity[:, self._first] * self._shape_first
        two = transmissivity[:, self._second] * self._shape_second
        share = one / (one + two)
        conductance = two * share
        outer = transmissivity[:, self._outer] * self._outer_shape
        right = np.broadcast_to(self._right, transmissivity.shape)
        if source is not None:
            right = right + source[:, self.order]
        right = right + self._scattered(outer * (self._outer_head - self._datum), self._outer)
        diagonal = self._leak + self._scattered(outer, self._outer) + self._both(conductance, conductance)
        coupling = conductance
        if self._kept.size:
            value = np.zeros(self.cells)
            value[self._kept] = self._kept_head - self._datum
            right = right + self._both(conductance * value[self._second], conductance * value[self._first])
            right[:, self._kept], diagonal[:, self._kept] = value[self._kept], 1.0
            coupling = conductance * self._open
        try:
            factors = self.by.factor(diagonal, coupling)
        except FactorError as error:
            raise SiteError(self._failure(error, log_transmissivity, start)) from error
        head = factors.solve(right)
        lost = np.argwhere(~np.isfinite(head))
        if lost.size:
            row, cell = int(lost[0, 0]), int(self.order[lost[0, 1]])
            raise SiteError(self._failure(FactorError(row, cell), log_transmissivity, start))
        return Solved(head + self._datum, share, conductance, outer, factors)

    def back(
        self, solved: Solved, cotangent: Float[np.ndarray, "batch cell"]
    ) -> tuple[Float[np.ndarray, "batch cell"], Float[np.ndarray, "batch cell"]]:
        """Derivatives by log-transmissivity and by source of sum(cotangent x head), all in the order of the method."""
        if self._kept.size:
            cotangent = cotangent.copy()
            cotangent[:, self._kept] = 0.0  # their heads depend on nothing
        adjoint = solved.factors.solve(cotangent)
        return self._gradient(solved.head, solved.share, solved.conductance, solved.outer, adjoint), adjoint

    def sensitivities(self, solved: Solved, row: int, cells: Int[np.ndarray, "out"]) -> Float[np.ndarray, "out cell"]:
        """Derivatives of the heads in some cells of one realisation by each log-transmissivity, in the mesh's order."""
        cotangent = np.zeros((len(cells), self.cells))
        cotangent[np.arange(len(cells)), self.place[cells]] = 1.0
        cotangent[:, self._kept] = 0.0
        adjoint = solved.factors.solve_many(row, cotangent)
        rows = slice(row, row + 1)
        found = self._gradient(
            solved.head[rows], solved.share[rows], solved.conductance[rows], solved.outer[rows], adjoint
        )
        return found[:, self.place]

    def _gradient(
        self,
        head: Float[np.ndarray, "rows cell"],
        share: Float[np.ndarray, "rows face"],
        conductance: Float[np.ndarray, "rows face"],
        outer: Float[np.ndarray, "rows fixed"],
        adjoint: Float[np.ndarray, "batch cell"],
    ) -> Float[np.ndarray, "batch cell"]:
        """What a change of log-transmissivity does to each cell's balance, weighted with the adjoint heads."""
        lead = conductance * (head[:, self._second] - head[:, self._first])
        face = (adjoint[:, self._first] - adjoint[:, self._second]) * lead
        second = face * share
        gradient = self._both(face - second, second)
        entering = outer * (self._outer_head - head[:, self._outer])
        return np.asarray(gradient + self._scattered(adjoint[:, self._outer] * entering, self._outer))

    def _both(
        self, first: Float[np.ndarray, "batch face"], second: Float[np.ndarray, "batch face"]
    ) -> Float[np.ndarray, "batch cell"]:
        """Sums over the faces of each cell."""
        return np.stack([
            np.bincount(self._first, one, self.cells) + np.bincount(self._second, two, self.cells)
            for one, two in zip(first, second, strict=True)
        ])  # fmt: skip

    def _scattered(
        self, values: Float[np.ndarray, "batch some"], cells: Int[np.ndarray, "some"]
    ) -> Float[np.ndarray, "batch cell"]:
        if not cells.size:  # counts of nothing would be integers
            return np.zeros((len(values), self.cells))
        return np.stack([np.bincount(cells, row, self.cells) for row in values])

    def _failure(self, error: FactorError, log_transmissivity: Float[np.ndarray, "batch cell"], start: int) -> str:
        values = log_transmissivity[error.row]
        cell = int(np.argmin(values)) if error.cell is None else error.cell
        return (
            f"heads of realisation {start + error.row} cannot be solved for, near cell {cell} with log-transmissivity "
            f"{values[cell]:.4g} (the realisation spans {values.min():.4g} to {values.max():.4g}): the contrast is "
            "beyond what float64 holds"
        )
