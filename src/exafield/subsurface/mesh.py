"""An unstructured mesh of polygons in the plane, and what finite volumes need of it."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

#: A cell with less than this share of the square of its longest edge is degenerate; our choice.
SLIVER = 1e-8


class MeshError(ValueError):
    """A mesh that finite volumes cannot work on; names the cell."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """Cells and the faces between them. Faces with a cell on one side only are the boundary, counted apart.

    Made of vertices and corners by `Mesh.of`. Where a file states the geometry of the connections itself (MODFLOW
    DISU), there may be no corners.

    Args:
        centres: of the cells [m]; NaN where a DISU file does not state them.
        areas: of the cells [m2].
        neighbours: the two cells of each inner face.
        lengths: of the inner faces [m].
        shapes: of both sides of each inner face: length over distance from the cell's centre, so that transmissivity
            times it is the conductance from the centre to the face [1].
        boundary_cells: the cell of each boundary face.
        boundary_lengths: [m].
        boundary_shapes: as `shapes`.
        boundary_centres: middle of each boundary face [m].
        vertices: [m].
        corners: vertices of each cell in their order around it, -1 after the last.
        face_vertices: both ends of each inner face.
        boundary_vertices: both ends of each boundary face.
        angles: between the normal of a face and the way there from the centre, the larger of both sides [degree].
        boundary_angles: the same of the boundary faces.
    """

    centres: Float[np.ndarray, "cell 2"]
    areas: Float[np.ndarray, "cell"]
    neighbours: Int[np.ndarray, "face 2"]
    lengths: Float[np.ndarray, "face"]
    shapes: Float[np.ndarray, "face 2"]
    boundary_cells: Int[np.ndarray, "boundary"]
    boundary_lengths: Float[np.ndarray, "boundary"]
    boundary_shapes: Float[np.ndarray, "boundary"]
    boundary_centres: Float[np.ndarray, "boundary 2"]
    vertices: Float[np.ndarray, "vertex 2"] = field(default_factory=lambda: np.zeros((0, 2)))
    corners: Int[np.ndarray, "cell corner"] | None = None
    face_vertices: Int[np.ndarray, "face 2"] | None = None
    boundary_vertices: Int[np.ndarray, "boundary 2"] | None = None
    angles: Float[np.ndarray, "face"] | None = None
    boundary_angles: Float[np.ndarray, "boundary"] | None = None

    @classmethod
    def of(
        cls, vertices: ArrayLike, corners: ArrayLike, *, centres: ArrayLike | None = None, perpendicular: bool = False
    ) -> "Mesh":
        """The mesh of cells given by their corners.

        Args:
            vertices: [m], vertex x 2.
            corners: vertices of each cell in their order around it (either way round), cell x 3 or more; -1 after the
                last of a cell with fewer.
            centres: [m]; the cells' centroids if not given.
            perpendicular: measure the distance to a face along its normal, as MODFLOW 6 does for DISV and as Voronoi
                cells need. Otherwise length over distance is (c n) / (c c), with c the way from the centre to the
                middle of the face and n its normal, as long as the face. Both agree on orthogonal meshes.

        Raises:
            MeshError: degenerate or overlapping cells, indices out of range, values that are not finite.
        """
        points = np.array(vertices, dtype=np.float64)
        rows = np.array(corners, dtype=np.int64)
        _check_corners(points, rows)
        filled, counts = _filled(rows)
        ring = points[filled]
        signed, centroids, size = _polygons(ring)
        poor = np.flatnonzero(~(np.abs(signed) > SLIVER * size**2))
        if poor.size:
            raise MeshError(
                f"cell {poor[0]} is degenerate: its area is {abs(signed[poor[0]]):.3g} m2 with edges of "
                f"{size[poor[0]]:.3g} m ({poor.size} such cell{'s' if poor.size > 1 else ''}); "
                "merge its corners or leave it out"
            )
        if centres is not None:
            centroids = np.array(centres, dtype=np.float64)
            if centroids.shape != (len(rows), 2) or not np.isfinite(centroids).all():
                raise MeshError(f"centres must be {len(rows)} finite points, got shape {centroids.shape}")
        ends, of_cell, pairs, single = _faces(filled, counts)
        # Ends run around their own cell, so the area's sign says on which side of them the cell has to be.
        shapes, angles = _sides(points, ends, of_cell, centroids, np.sign(signed), perpendicular)
        inner_ends, outer_ends = ends[pairs[:, 0]], ends[single]
        return cls(
            centres=centroids,
            areas=np.abs(signed),
            neighbours=of_cell[pairs],
            lengths=np.linalg.norm(np.diff(points[inner_ends], axis=1)[:, 0], axis=-1),
            shapes=shapes[pairs],
            boundary_cells=of_cell[single],
            boundary_lengths=np.linalg.norm(np.diff(points[outer_ends], axis=1)[:, 0], axis=-1),
            boundary_shapes=shapes[single],
            boundary_centres=points[outer_ends].mean(axis=1),
            vertices=points,
            corners=rows,
            face_vertices=inner_ends,
            boundary_vertices=outer_ends,
            angles=angles[pairs].max(axis=1),
            boundary_angles=angles[single],
        )

    @property
    def cells(self) -> int:
        """Number of cells."""
        return len(self.areas)

    @cached_property
    def distances(self) -> Float[np.ndarray, "face"]:
        """Between the centres on both sides of the inner faces [m]; by way of the face where centres are not known."""
        a, b = self.neighbours.T
        straight = np.linalg.norm(self.centres[a] - self.centres[b], axis=-1)
        by_way = self.lengths * (1 / self.shapes).sum(axis=1)
        return np.asarray(np.where(np.isfinite(straight), straight, by_way))

    @cached_property
    def nonorthogonality(self) -> float:
        """Mean over inner faces, weighted with their lengths, of `angles` [degree]; 0 where nothing is known.

        Two-point fluxes converge where it is zero; elsewhere an error stays, however fine the mesh.
        """
        if self.angles is None or not self.angles.size:
            return 0.0
        return float(np.average(self.angles, weights=self.lengths))

    @cached_property
    def parts(self) -> Int[np.ndarray, "cell"]:
        """Number of the connected part that each cell is in."""

        a, b = self.neighbours.T
        graph = coo_array((np.ones(len(a)), (a, b)), shape=(self.cells, self.cells))
        return np.asarray(connected_components(graph, directed=False)[1])

    def locate(self, points: ArrayLike) -> Int[np.ndarray, "point"]:
        """The cell each point [m] lies in, -1 outside the mesh. A point on a face is in one of its cells."""
        x = np.atleast_2d(np.asarray(points, dtype=np.float64))
        if self.corners is None:
            raise MeshError("this mesh has no corners, so points cannot be located: give the cells of wells instead")
        rings = self.vertices[_filled(self.corners)[0]]
        low, high = rings.min(axis=1), rings.max(axis=1)
        found = np.full(len(x), -1, dtype=np.int64)
        slack = 1e-9 * float((high - low).max())  # a point on the edge of a box is in it, rounding or not
        for number, point in enumerate(x):
            near = np.flatnonzero(((low - slack <= point) & (point <= high + slack)).all(axis=1))
            inside = near[_inside(rings[near], point, slack)]
            if inside.size:
                found[number] = inside[0]
        return found

    def boundary_face(self, ends: ArrayLike) -> Int[np.ndarray, "end"]:
        """Number of the boundary faces with the given ends (pairs of vertices, either way), -1 where there is none."""
        if self.boundary_vertices is None:
            raise MeshError("this mesh has no corners, so its boundary faces cannot be found by their ends")
        count = len(self.vertices)
        wanted, have = _key(np.atleast_2d(np.asarray(ends, dtype=np.int64)), count), _key(self.boundary_vertices, count)
        order = np.argsort(have)
        at = order[np.minimum(np.searchsorted(have, wanted, sorter=order), len(have) - 1)]
        return np.where(have[at] == wanted, at, -1)

    def scaled(self, factor: float) -> "Mesh":
        """The same mesh in another unit of length."""
        return replace(
            self,
            centres=self.centres * factor,
            areas=self.areas * factor**2,
            lengths=self.lengths * factor,
            boundary_lengths=self.boundary_lengths * factor,
            boundary_centres=self.boundary_centres * factor,
            vertices=self.vertices * factor,
        )


def _check_corners(points: Float[np.ndarray, "..."], rows: Int[np.ndarray, "..."]) -> None:
    if points.ndim != 2 or points.shape[1] != 2:
        raise MeshError(f"vertices must be pairs of coordinates, got shape {points.shape}")
    if not np.isfinite(points).all():
        raise MeshError(f"vertex {int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])} is not finite")
    if rows.ndim != 2 or rows.shape[1] < 3 or not len(rows):
        raise MeshError(f"corners must be at least one row of at least three vertices, got shape {rows.shape}")
    wrong = np.flatnonzero(((rows < -1) | (rows >= len(points))).any(axis=1) | (rows[:, :3] < 0).any(axis=1))
    if wrong.size:
        raise MeshError(
            f"cell {wrong[0]} has corners {rows[wrong[0]].tolist()}: it needs at least three of the "
            f"{len(points)} vertices, counted from 0"
        )
    gap = np.flatnonzero(((rows[:, :-1] < 0) & (rows[:, 1:] >= 0)).any(axis=1))
    if gap.size:
        raise MeshError(f"cell {gap[0]} has corners {rows[gap[0]].tolist()}: -1 may only follow the last one")


def _filled(rows: Int[np.ndarray, "cell corner"]) -> tuple[Int[np.ndarray, "cell corner"], Int[np.ndarray, "cell"]]:
    """Corners with the first one repeated after the last, and their number: repeats add no area and no face."""
    return np.where(rows < 0, rows[:, :1], rows), (rows >= 0).sum(axis=1)


def _polygons(
    ring: Float[np.ndarray, "cell corner 2"],
) -> tuple[Float[np.ndarray, "cell"], Float[np.ndarray, "cell 2"], Float[np.ndarray, "cell"]]:
    """Signed area, centroid and longest edge."""
    origin = ring[:, 0]  # differences first: coordinates of maps are large beside their cells
    here = ring - origin[:, None]
    there = np.roll(here, -1, axis=1)
    cross = here[..., 0] * there[..., 1] - there[..., 0] * here[..., 1]
    area = cross.sum(axis=1) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        centroid = origin + ((here + there) * cross[..., None]).sum(axis=1) / (6 * area[:, None])
    return area, centroid, np.linalg.norm(there - here, axis=-1).max(axis=1)


def _key(ends: Int[np.ndarray, "pair 2"], count: int) -> Int[np.ndarray, "pair"]:
    return np.asarray(ends.min(axis=1) * count + ends.max(axis=1))


def _faces(
    filled: Int[np.ndarray, "cell corner"], counts: Int[np.ndarray, "cell"]
) -> tuple[Int[np.ndarray, "edge 2"], Int[np.ndarray, "edge"], Int[np.ndarray, "face 2"], Int[np.ndarray, "boundary"]]:
    """Ends and cell of each edge of each cell; the two edges that make an inner face; the edges that have no other."""
    used = np.arange(filled.shape[1]) < counts[:, None]
    ends = np.stack([filled, np.roll(filled, -1, axis=1)], axis=-1)[used]
    cells = np.repeat(np.arange(len(filled)), counts)
    same = np.flatnonzero(ends[:, 0] == ends[:, 1])
    if same.size:
        raise MeshError(f"cell {cells[same[0]]} is degenerate: it names vertex {ends[same[0], 0]} twice in a row")
    key = _key(ends, int(filled.max()) + 1)
    order = np.argsort(key, kind="stable")
    _, first, times = np.unique(key[order], return_index=True, return_counts=True)
    many = np.flatnonzero(times > 2)
    if many.size:
        shared = order[first[many[0]] : first[many[0]] + times[many[0]]]
        raise MeshError(
            f"cells {cells[shared].tolist()} share the edge between vertices {ends[shared[0]].tolist()}: an edge has "
            "at most two cells, so some overlap or are given twice"
        )
    pairs = order[first[times == 2][:, None] + np.arange(2)]
    alike = np.flatnonzero(cells[pairs[:, 0]] == cells[pairs[:, 1]])
    if alike.size:
        raise MeshError(f"cell {cells[pairs[alike[0], 0]]} is degenerate: it passes an edge twice")
    return ends, cells, pairs, order[first[times == 1]]


def _sides(
    points: Float[np.ndarray, "vertex 2"],
    ends: Int[np.ndarray, "edge 2"],
    cells: Int[np.ndarray, "edge"],
    centres: Float[np.ndarray, "cell 2"],
    turns: Float[np.ndarray, "cell"],
    perpendicular: bool,
) -> tuple[Float[np.ndarray, "edge"], Float[np.ndarray, "edge"]]:
    """Shape of each edge as a side of a face, and the angle between its normal and the way there."""
    first, last = points[ends[:, 0]], points[ends[:, 1]]
    way, edge = (first + last) / 2 - centres[cells], last - first
    length, distance = np.linalg.norm(edge, axis=-1), np.linalg.norm(way, axis=-1)
    across = turns[cells] * (way[:, 0] * edge[:, 1] - way[:, 1] * edge[:, 0])
    poor = np.flatnonzero(~(across > SLIVER * length**2))
    if poor.size:
        raise MeshError(
            f"the centre of cell {cells[poor[0]]} is not on the inner side of its face between vertices "
            f"{ends[poor[0]].tolist()}: the cell is degenerate, or its centre is given wrongly"
        )
    shape = length**2 / across if perpendicular else across / distance**2
    return shape, np.degrees(np.arccos(np.clip(across / (length * distance), 0.0, 1.0)))


def _inside(
    rings: Float[np.ndarray, "cell corner 2"], point: Float[np.ndarray, "2"], slack: float
) -> Bool[np.ndarray, "cell"]:
    """Whether the point is inside each ring or no more than `slack` [m] off it (a ray crosses the edges)."""
    a, b = rings - point, np.roll(rings, -1, axis=1) - point
    cross = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    crossing = ((a[..., 1] > 0) != (b[..., 1] > 0)) & ((cross > 0) == (b[..., 1] > a[..., 1]))
    edge = b - a
    square = (edge**2).sum(axis=-1)
    share = np.clip(-(a * edge).sum(axis=-1) / np.where(square > 0, square, 1.0), 0.0, 1.0)
    near = ((a + share[..., None] * edge) ** 2).sum(axis=-1) <= slack**2
    return np.asarray((crossing.sum(axis=1) % 2 == 1) | near.any(axis=1))
