"""A mesh cut into subdomains that overlap, and the weights that blend them.

Recursive spectral bisection: Simon, Computing Systems in Engineering 2 (1991) 135; Fiedler, Czech. Math. J. 23
(1973) 298.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.csgraph import laplacian as graph_laplacian
from scipy.sparse.linalg import eigsh

from exafield.subsurface.mesh import Mesh, MeshError


@dataclass(frozen=True, eq=False)
class Part:
    """Some cells of a mesh as a mesh of their own; faces to the others let nothing through.

    Args:
        cells: numbers in the whole mesh, ascending.
        centres, areas: of these cells [m], [m2].
        neighbours: the two cells of each face between them, numbered within the part.
        lengths: of these faces [m].
        distances: between the centres on both sides of them [m].
    """

    cells: Int[np.ndarray, "cell"]
    centres: Float[np.ndarray, "cell 2"]
    areas: Float[np.ndarray, "cell"]
    neighbours: Int[np.ndarray, "face 2"]
    lengths: Float[np.ndarray, "face"]
    distances: Float[np.ndarray, "face"]

    @classmethod
    def of(cls, mesh: Mesh, cells: Int[np.ndarray, "some"]) -> "Part":
        """Of some cells of a mesh."""
        place = np.full(mesh.cells, -1)
        place[cells] = np.arange(len(cells))
        pairs = place[mesh.neighbours]
        inside = (pairs >= 0).all(axis=1)
        geometry = mesh.lengths[inside], mesh.distances[inside]
        return cls(cells, mesh.centres[cells], mesh.areas[cells], pairs[inside], *geometry)


@dataclass(frozen=True, eq=False)
class Strip:
    """Where two neighbouring subdomains meet.

    Args:
        one, other: their numbers, the lower first.
        cells: that both have, by their overlap.
        faces: the inner faces of the mesh that are their border.
    """

    one: int
    other: int
    cells: Int[np.ndarray, "shared"]
    faces: Int[np.ndarray, "border"]


@dataclass(frozen=True, eq=False)
class Partition:
    """Subdomains of a mesh.

    Args:
        mesh: that is cut.
        owner: the subdomain each cell belongs to; each is in one piece.
        overlap: layers of cells by which each reaches into its neighbours.
    """

    mesh: Mesh
    owner: Int[np.ndarray, "cell"]
    overlap: int

    @property
    def parts(self) -> int:
        """How many subdomains."""
        return int(self.owner.max()) + 1

    @cached_property
    def borders(self) -> Int[np.ndarray, "face"]:
        """Numbers of the inner faces between two subdomains."""
        a, b = self.owner[self.mesh.neighbours].T
        return np.flatnonzero(a != b)

    @cached_property
    def _layers(self) -> Int[np.ndarray, "part cell"]:
        """For each subdomain: 1, 2, ... for the layers of cells outside it, 0, -1, ... for those inside, from its
        border on; beyond the overlap, overlap + 1 or -overlap.
        """
        graph, found = _graph(self.mesh), []
        for part in range(self.parts):
            inside = self.owner == part
            layer = np.where(inside, -self.overlap, self.overlap + 1)
            for reached, sign in ((inside, 1), (~inside, -1)):
                for step in range(1, self.overlap + 1):
                    grown = (graph @ reached) > 0
                    layer[grown & ~reached] = step if sign > 0 else 1 - step
                    reached = grown | reached
            found.append(layer)
        return np.stack(found)

    @cached_property
    def extended(self) -> tuple[Part, ...]:
        """The subdomains with their overlap."""
        return tuple(Part.of(self.mesh, np.flatnonzero(layer <= self.overlap)) for layer in self._layers)

    @cached_property
    def weights(self) -> tuple[Float[np.ndarray, "some"], ...]:
        """A partition of unity: of each cell of each extended subdomain; the sum over the subdomains is 1.

        Falls from 1 to 0 as a squared cosine, from `overlap` layers inside the border to as many outside.
        """
        if not self.overlap:
            return tuple(np.ones(len(part.cells)) for part in self.extended)
        # The border is half-way between the layers 0 and 1.
        way = np.clip((self._layers - 0.5) / self.overlap, -1, 1)
        ramp = np.cos(np.pi / 4 * (1 + way)) ** 2 * (self._layers <= self.overlap)
        ramp[self._layers <= -self.overlap] = 1.0
        ramp /= ramp.sum(axis=0)
        return tuple(row[part.cells] for row, part in zip(ramp, self.extended, strict=True))

    @cached_property
    def strips(self) -> tuple[Strip, ...]:
        """Of all pairs of subdomains with a common border."""
        owners = np.sort(self.owner[self.mesh.neighbours[self.borders]], axis=1)
        found = []
        for one, other in np.unique(owners, axis=0):
            faces = self.borders[(owners == (one, other)).all(axis=1)]
            shared = np.intersect1d(self.extended[one].cells, self.extended[other].cells)
            found.append(Strip(int(one), int(other), shared, faces))
        return tuple(found)


def partition(mesh: Mesh, parts: int, overlap: int = 4) -> Partition:
    """Cuts a mesh into connected subdomains of nearly as many cells each, with short borders.

    Args:
        mesh: in one piece.
        parts: how many subdomains.
        overlap: layers of cells by which each reaches into its neighbours. Fields made in neighbours from the same
            noise agree at their border if it is at least about one correlation length wide.

    Raises:
        MeshError: the mesh is in several pieces or has fewer cells than parts; the overlap is below 0.
    """
    if not 1 <= parts <= mesh.cells:
        raise MeshError(f"a mesh of {mesh.cells} cells cannot be cut into {parts} subdomains")
    if overlap < 0:
        raise MeshError(f"the overlap of subdomains must be 0 or more layers of cells, got {overlap}")
    if (mesh.parts > 0).any():
        lone = int(np.flatnonzero(mesh.parts > 0)[0])
        raise MeshError(f"the mesh is in several pieces, cell {lone} is not in the first: cut each by itself")
    graph = _graph(mesh)
    owner = np.zeros(mesh.cells, dtype=np.int64)
    work = [(np.arange(mesh.cells), parts, 0)]
    while work:
        cells, count, first = work.pop()
        owner[cells] = first
        if count > 1:
            left = count // 2
            side = _bisected(graph[cells][:, cells], len(cells) * left / count)
            work += [(cells[side], left, first), (cells[~side], count - left, first + left)]
    return Partition(mesh, owner, overlap)


def _graph(mesh: Mesh) -> csr_array:
    a, b = mesh.neighbours.T
    both = (np.concatenate([a, b]), np.concatenate([b, a]))
    return csr_array(coo_array((np.ones(2 * len(a)), both), shape=(mesh.cells, mesh.cells)))


def _bisected(graph: csr_array, wanted: float) -> Bool[np.ndarray, "cell"]:
    """Marks about `wanted` cells of a connected graph, so that both sides are connected.

    Cells are taken along the second eigenvector of the graph's Laplacian. Where that leaves a side in pieces, the small
    ones change sides, and cells at the border then change back one by one until the numbers are right.
    """
    cells, count = graph.shape[0], round(wanted)
    if cells <= 3:
        vector = np.arange(cells, dtype=float) if cells < 3 else _dense(graph)
    else:
        # A start of its own, so that the same mesh is always cut alike. Slightly below zero the matrix is definite.
        start = np.random.default_rng(0).standard_normal(cells)
        values, vectors = eigsh(graph_laplacian(graph).tocsc(), k=2, sigma=-1e-4, which="LM", v0=start)
        vector = vectors[:, np.argsort(values)[1]]
    order = np.argsort(vector, kind="stable")
    side = np.zeros(cells, dtype=bool)
    side[order[:count]] = True
    for value in (True, False):  # the first makes its side one piece, the second the other; both stay so
        pieces = _pieces(graph, side == value)
        side[pieces > 0] = not value
    while (excess := int(side.sum()) - count) != 0:
        giver = side if excess > 0 else ~side
        edge = np.flatnonzero(giver & ((graph @ ~giver) > 0))
        edge = edge[np.argsort(-vector[edge] if excess > 0 else vector[edge], kind="stable")]
        for cell in edge:
            giver[cell] = False
            if (_pieces(graph, giver) <= 0).all():
                break
            giver[cell] = True
        else:  # no cell can go without cutting its side
            break
        side = giver if excess > 0 else ~giver
    return side


def _dense(graph: csr_array) -> Float[np.ndarray, "cell"]:
    return np.asarray(np.linalg.eigh(graph_laplacian(graph).toarray())[1][:, 1])


def _pieces(graph: csr_array, inside: Bool[np.ndarray, "cell"]) -> Int[np.ndarray, "cell"]:
    """Of the cells inside: 0 in their largest connected piece, above in others; -1 outside."""
    found = np.full(len(inside), -1)
    if inside.any():
        label = connected_components(graph[inside][:, inside], directed=False)[1]
        order = np.argsort(np.argsort(-np.bincount(label), kind="stable"))
        found[inside] = order[label]
    return found
