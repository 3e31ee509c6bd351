"""A site: mesh, boundary conditions, wells, and what is known of its transmissivity and heads."""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike

from exafield.subsurface.checks import (
    SiteError,
    check_anchored,
    check_boundaries,
    check_field,
    check_mesh,
    check_pairs,
)
from exafield.subsurface.mesh import Mesh
from exafield.suggestion import unknown

# How far heads may be off those that are given: times the span of these, and metres at the least (our choice). Inflow
# raises heads of the Hanford Site's law by one to two spans, of 17 m.
_SPANS, _ROOM = 5.0, 50.0


def _numbers() -> Int[np.ndarray, "none"]:
    return np.zeros(0, dtype=np.int64)


def _values() -> Float[np.ndarray, "none"]:
    return np.zeros(0)


@dataclass(frozen=True, eq=False)
class Site:
    """Steady flow in one confined layer. Lengths in metres, times in days; inflow is positive into the aquifer.

    Boundary faces that are neither fixed nor have an inflow let nothing through.

    Args:
        mesh: cells and faces.
        fixed_faces: numbers of boundary faces with a given head.
        fixed_heads: [m].
        inflow_faces: numbers of boundary faces with a given inflow.
        inflows: through each of these faces [m3/d].
        fixed_cells: cells with a given head.
        fixed_cell_heads: [m].
        leak_cells: cells that exchange water with a body of given head through a given conductance.
        leak_conductances: [m2/d].
        leak_heads: [m].
        source: what wells and recharge put into each cell [m3/d].
        well_cells: the cells with a well, where heads can be measured.
        log_transmissivity: natural logarithm of m2/d, where it is known.
        head: [m], where it is known.
        sensors: sets of cells where log-transmissivity is measured, one row for each alternative, by name.
        name: for messages and pictures.

    Raises:
        SiteError: the lists do not fit together, or no head is fixed.
    """

    # That lists fit together is checked below, with messages; their axes have names of their own here.
    mesh: Mesh
    fixed_faces: Int[np.ndarray, "fixed"] = field(default_factory=_numbers)
    fixed_heads: Float[np.ndarray, "fixed_head"] = field(default_factory=_values)
    inflow_faces: Int[np.ndarray, "inflow"] = field(default_factory=_numbers)
    inflows: Float[np.ndarray, "inflow"] = field(default_factory=_values)
    fixed_cells: Int[np.ndarray, "fixed_cell"] = field(default_factory=_numbers)
    fixed_cell_heads: Float[np.ndarray, "fixed_cell_head"] = field(default_factory=_values)
    leak_cells: Int[np.ndarray, "leak"] = field(default_factory=_numbers)
    leak_conductances: Float[np.ndarray, "leak_conductance"] = field(default_factory=_values)
    leak_heads: Float[np.ndarray, "leak_head"] = field(default_factory=_values)
    source: Float[np.ndarray, "source"] | None = None
    well_cells: Int[np.ndarray, "well"] = field(default_factory=_numbers)
    log_transmissivity: Float[np.ndarray, "known"] | None = None
    head: Float[np.ndarray, "solved"] | None = None
    sensors: dict[str, Int[np.ndarray, "set sensor"]] = field(default_factory=dict)
    name: str = "site"

    def __post_init__(self) -> None:
        mesh, faces = self.mesh, len(self.mesh.boundary_cells)
        for name in ("fixed_faces", "inflow_faces", "fixed_cells", "leak_cells", "well_cells"):
            self._frozen(name, np.array(getattr(self, name), dtype=np.int64))
        for name in ("fixed_heads", "inflows", "fixed_cell_heads", "leak_conductances", "leak_heads"):
            self._frozen(name, np.array(getattr(self, name), dtype=np.float64))
        check_pairs("fixed heads", self.fixed_faces, self.fixed_heads, faces, "boundary face")
        check_pairs("inflows", self.inflow_faces, self.inflows, faces, "boundary face")
        check_boundaries(self.fixed_faces, self.inflow_faces)
        check_pairs("fixed cells", self.fixed_cells, self.fixed_cell_heads, mesh.cells, "cell")
        check_pairs("leaks", self.leak_cells, self.leak_conductances, mesh.cells, "cell")
        check_pairs("heads of leaks", self.leak_cells, self.leak_heads, mesh.cells, "cell")
        if (self.leak_conductances <= 0).any():
            raise SiteError(f"the leak of cell {self.leak_cells[self.leak_conductances <= 0][0]} conducts nothing")
        wells = np.flatnonzero((self.well_cells < 0) | (self.well_cells >= mesh.cells))
        if wells.size:
            raise SiteError(
                f"well {wells[0]} is in cell {self.well_cells[wells[0]]}, outside the mesh of {mesh.cells} cells"
            )
        self._frozen("source", np.zeros(mesh.cells) if self.source is None else np.array(self.source, dtype=float))
        for name in ("source", "log_transmissivity", "head"):
            if (values := getattr(self, name)) is not None:
                self._frozen(name, np.array(values, dtype=np.float64))
                check_field(name.replace("_", "-"), getattr(self, name), mesh.cells)
        check_anchored(mesh, np.concatenate([mesh.boundary_cells[self.fixed_faces], self.fixed_cells, self.leak_cells]))
        check_mesh(mesh)

    def _frozen(self, name: str, values: Shaped[np.ndarray, "..."]) -> None:
        values.setflags(write=False)
        object.__setattr__(self, name, values)

    @property
    def cells(self) -> int:
        """Number of cells."""
        return self.mesh.cells

    @property
    def given_heads(self) -> Float[np.ndarray, "given"]:
        """All heads that are given, at faces, in cells and beyond leaks [m]."""
        return np.concatenate([self.fixed_heads, self.fixed_cell_heads, self.leak_heads])

    @property
    def plausible_heads(self) -> tuple[float, float]:
        """Least and largest head [m]: beyond, datum or unit is likely to be another, or inflow or pumping wrong.

        Some times the span of given heads off these, and some metres at the least; the site's own heads, if known.
        """
        heads = self.given_heads
        room = max(_SPANS * float(np.ptp(heads)), _ROOM)
        known = heads if self.head is None else self.head
        return min(float(heads.min()) - room, float(known.min())), max(float(heads.max()) + room, float(known.max()))

    @classmethod
    def load(cls, name: str) -> "Site":
        """A site by name: hanford (a data set) or box (generated, needs none).

        Raises:
            SiteError: there is no site of that name.
            exafield.datasets.DatasetError: its data set is not here; says how to get it.
        """
        # Readers and the generator make sites, so they come after this class.
        from exafield.subsurface.generated import box
        from exafield.subsurface.hanford import hanford

        makers = {"hanford": hanford, "box": box}
        if name not in makers:
            raise SiteError(unknown("site", name, makers))
        return makers[name]()

    def solved(self) -> "Site":
        """The site with the heads that its log-transmissivity makes.

        Raises:
            SiteError: it has none, or heads cannot be solved for.
        """
        from exafield.subsurface.darcy import solve

        if self.log_transmissivity is None:
            raise SiteError(f"log-transmissivity of site {self.name!r} is not known, so heads cannot be solved for")
        return replace(self, head=solve(self, self.log_transmissivity).numpy())

    def with_wells(self, points: ArrayLike, rates: ArrayLike | None = None) -> "Site":
        """The site with wells at places, instead of those it had.

        Args:
            points: [m], well x 2.
            rates: what each puts into the aquifer [m3/d], below zero for pumping; added to `source`.

        Raises:
            SiteError: a well is outside the mesh or a value is not finite.
        """
        places = np.atleast_2d(np.asarray(points, dtype=np.float64))
        if places.ndim != 2 or places.shape[1] != 2 or not np.isfinite(places).all():
            raise SiteError(f"wells must be finite pairs of coordinates [m], got shape {places.shape}")
        cells = self.mesh.locate(places)
        outside = np.flatnonzero(cells < 0)
        if outside.size:
            low, high = self.mesh.vertices.min(axis=0), self.mesh.vertices.max(axis=0)
            raise SiteError(
                f"well {outside[0]} at ({places[outside[0], 0]:.6g}, {places[outside[0], 1]:.6g}) m is outside the "
                f"mesh ({outside.size} such in all), which spans {low[0]:.6g}..{high[0]:.6g} m by "
                f"{low[1]:.6g}..{high[1]:.6g} m: check unit and origin of the coordinates"
            )
        assert self.source is not None
        source = self.source.copy()
        if rates is not None:
            flows = np.atleast_1d(np.asarray(rates, dtype=np.float64))
            if flows.shape != cells.shape or not np.isfinite(flows).all():
                raise SiteError(f"rates must be one finite value [m3/d] for each of the {len(cells)} wells")
            np.add.at(source, cells, flows)
        return replace(self, well_cells=cells, source=source)
