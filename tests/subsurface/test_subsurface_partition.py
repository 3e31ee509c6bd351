"""Subdomains: balanced, connected, overlapping by layers, blended by weights that sum to one."""

from collections import deque

import numpy as np
import pytest

from exafield.subsurface.generated import box, rectangles
from exafield.subsurface.mesh import Mesh, MeshError
from exafield.subsurface.partition import Partition, partition

OVERLAP = 3


def ring() -> Mesh:
    """Squares around a hole, where a cut by a line leaves pieces."""
    vertices, corners = rectangles(np.linspace(0, 9, 10), np.linspace(0, 9, 10))
    middle = vertices[corners].mean(axis=1)
    return Mesh.of(vertices, corners[np.abs(middle - 4.5).max(axis=1) > 2.6])


def comb() -> Mesh:
    """Teeth on a bar: few cells can change sides."""
    vertices, corners = rectangles(np.linspace(0, 11, 12), np.linspace(0, 9, 10))
    middle = vertices[corners].mean(axis=1)
    return Mesh.of(vertices, corners[(middle[:, 1] < 1) | (middle[:, 0].astype(int) % 2 == 0)])


MESHES = {
    "quads": lambda: box(16, 12).mesh,
    "mixed": lambda: box(10, 8, shape="mixed").mesh,
    "ring": ring,
    "comb": comb,
}


def reached(mesh: Mesh, start: np.ndarray, within: np.ndarray | None = None) -> np.ndarray:
    """Steps from the start to each cell, through cells within only; by walking; -1 where no way leads."""
    beside: list[list[int]] = [[] for _ in range(mesh.cells)]
    for a, b in mesh.neighbours:
        beside[a].append(b)
        beside[b].append(a)
    steps = np.full(mesh.cells, -1)
    steps[start] = 0
    queue = deque(int(cell) for cell in start)
    while queue:
        cell = queue.popleft()
        for other in beside[cell]:
            if steps[other] < 0 and (within is None or within[other]):
                steps[other] = steps[cell] + 1
                queue.append(other)
    return steps


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("name", MESHES)
def test_subdomains_are_balanced_and_in_one_piece(name: str, parts: int) -> None:
    mesh = MESHES[name]()
    cut = partition(mesh, parts, OVERLAP)
    sizes = np.bincount(cut.owner, minlength=parts)
    assert cut.parts == parts == len(sizes)
    if name != "comb":  # whole teeth go to one side or the other
        assert sizes.max() - sizes.min() <= 2
    assert sizes.min() > 0.6 * mesh.cells / parts
    for part in range(parts):
        mine = cut.owner == part
        assert (reached(mesh, np.flatnonzero(mine)[:1], mine)[mine] >= 0).all()
    again = partition(mesh, parts, OVERLAP)
    np.testing.assert_array_equal(again.owner, cut.owner)


@pytest.mark.parametrize("name", ["quads", "ring"])
def test_overlap_is_layers_and_weights_sum_to_one(name: str) -> None:
    mesh = MESHES[name]()
    cut = partition(mesh, 4, OVERLAP)
    total = np.zeros(mesh.cells)
    for part, (extended, weights) in enumerate(zip(cut.extended, cut.weights, strict=True)):
        away = reached(mesh, np.flatnonzero(cut.owner == part))
        np.testing.assert_array_equal(extended.cells, np.flatnonzero(away <= OVERLAP))
        inward = reached(mesh, np.flatnonzero(cut.owner != part))[extended.cells]
        assert (weights >= 0).all()
        assert (weights <= 1).all()
        assert (weights[inward > OVERLAP] == 1).all()
        # Farther out counts less, as a mean over each layer.
        means = [weights[away[extended.cells] == layer].mean() for layer in range(1, OVERLAP + 1)]
        assert (np.diff(means) < 0).all()
        assert means[-1] < 0.15
        total[extended.cells] += weights
    np.testing.assert_allclose(total, 1, atol=1e-12)


def test_parts_keep_the_geometry_of_the_mesh() -> None:
    mesh = MESHES["quads"]()
    cut = partition(mesh, 3, 2)
    part = cut.extended[1]
    np.testing.assert_array_equal(part.areas, mesh.areas[part.cells])
    ends = {tuple(sorted(pair)) for pair in part.cells[part.neighbours].tolist()}
    inside = np.isin(mesh.neighbours, part.cells).all(axis=1)
    assert ends == {tuple(sorted(pair)) for pair in mesh.neighbours[inside].tolist()}
    np.testing.assert_array_equal(part.lengths, mesh.lengths[inside])


def test_strips_are_what_neighbours_share() -> None:
    mesh = MESHES["quads"]()
    cut = partition(mesh, 4, 2)
    assert sum(len(strip.faces) for strip in cut.strips) == len(cut.borders)
    for strip in cut.strips:
        sides = cut.owner[mesh.neighbours[strip.faces]]
        assert set(map(tuple, np.sort(sides, axis=1).tolist())) == {(strip.one, strip.other)}
        near = [reached(mesh, np.flatnonzero(cut.owner == part)) <= 2 for part in (strip.one, strip.other)]
        np.testing.assert_array_equal(strip.cells, np.flatnonzero(near[0] & near[1]))


def test_without_overlap_each_cell_counts_once() -> None:
    cut = Partition(MESHES["ring"](), partition(MESHES["ring"](), 3).owner, 0)
    assert sum(len(part.cells) for part in cut.extended) == cut.mesh.cells
    assert all((weights == 1).all() for weights in cut.weights)


def test_what_cannot_be_cut_is_refused() -> None:
    mesh = MESHES["ring"]()
    with pytest.raises(MeshError, match="cannot be cut into 0"):
        partition(mesh, 0)
    with pytest.raises(MeshError, match=f"of {mesh.cells} cells cannot be cut into {mesh.cells + 1}"):
        partition(mesh, mesh.cells + 1)
    with pytest.raises(MeshError, match="0 or more layers"):
        partition(mesh, 2, -1)
    vertices, corners = rectangles(np.linspace(0, 5, 6), np.linspace(0, 1, 2))
    with pytest.raises(MeshError, match="in several pieces"):
        partition(Mesh.of(vertices, corners[[0, 1, 3, 4]]), 2)
