"""Views: a crystal turned so that the beam runs down one of its axes, in an orthogonal cell.

Conventions. x and y span the image, the beam travels towards +z, and (x, y, z) is right handed. With the edges
A, B, C of the orthogonal cell, the axes of a zone are

    zone   x       y        z (beam)
    001    A       B        C
    100    B       C        A
    010    C       A        B
    110    C       A - B    A + B     only where A and B are equally long

A hexagonal or trigonal cell (a = b, gamma = 120 degrees) is first rewritten as a x sqrt(3) a with A = a, B = a + 2 b,
C = c, so that its zones 001, 100, 010 are [001], [100] and [120] of the hexagonal axes. An edge is divided where the
crystal repeats within it. Atoms at (x, y, z) are in [0, edge).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from exafield.microscopy.crystal import Crystal, CrystalError

Zone = Literal["001", "100", "010", "110"]
# The axes of each zone in rows, in units of the edges of the orthogonal cell.
_AXES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "001": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "100": ((0, 1, 0), (0, 0, 1), (1, 0, 0)),
    "010": ((0, 0, 1), (1, 0, 0), (0, 1, 0)),
    "110": ((0, 0, 1), (1, -1, 0), (1, 1, 0)),
}
_HEXAGONAL = ((1, 0, 0), (1, 2, 0), (0, 0, 1))
_FOURFOLD = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
_THREEFOLD = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
# Two lengths are equal within this part, two angles within this many degrees, two atoms within this distance [A].
# Our choice: looser than the rounding of published cells, tighter than any real distortion that matters here.
_LENGTH, _ANGLE, _DISTANCE = 1e-4, 0.01, 0.02


@dataclass(frozen=True, eq=False)
class View:
    """A crystal seen along one zone axis.

    Args:
        crystal: the crystal seen.
        zone: "001", "100", "010" or "110" of its orthogonal cell (see the head of this file), or indices of the
            crystal's own axes if the view was made by zones.py.
        cell: edges x, y, z of the orthogonal cell [A]; the beam runs along z.
        numbers: atomic numbers.
        positions: atoms (x, y, z) in that cell [A].
        strain: largest relative change of a length that made the cell orthogonal; 0 where it is so by itself.
    """

    crystal: Crystal
    zone: str
    cell: tuple[float, float, float]
    numbers: Int[np.ndarray, "atom"]
    positions: Float[np.ndarray, "atom 3"]
    strain: float = 0.0

    @property
    def name(self) -> str:
        """Crystal and zone, such as "Si [110]"."""
        return f"{self.crystal.name} [{self.zone}]"


def fold(fractions: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Into [0, 1), with a rounding error below one counted as zero."""
    folded = fractions % 1.0
    return np.where(folded > 1 - 1e-9, 0.0, folded)


def recell(
    vectors: Float[np.ndarray, "3 3"],
    numbers: Int[np.ndarray, "atom"],
    fractions: Float[np.ndarray, "atom 3"],
    axes: object,
) -> tuple[Float[np.ndarray, "3 3"], Int[np.ndarray, "new"], Float[np.ndarray, "new 3"]]:
    """The same crystal in the cell whose vectors are `axes` (integer rows) in units of the old ones."""
    matrix = np.array(axes)
    count = round(abs(np.linalg.det(matrix)))
    span = np.abs(matrix).sum(axis=0)
    shifts = np.array(
        [
            (i, j, k)
            for i in range(-span[0], span[0] + 1)
            for j in range(-span[1], span[1] + 1)
            for k in range(-span[2], span[2] + 1)
        ]
    )
    inverse = np.linalg.inv(matrix)
    # Lattice points of the old cell inside the new one: `count` of them, found once and shared by all atoms.
    offsets = np.unique(fold(shifts @ inverse).round(6), axis=0)
    if len(offsets) != count:
        raise AssertionError(f"{len(offsets)} lattice points in a cell of {count}")
    images = fold((fractions @ inverse)[:, None] + offsets[None])
    return matrix @ vectors, np.repeat(numbers, count), images.reshape(-1, 3)


def same(
    numbers: Int[np.ndarray, "atom"],
    first: Float[np.ndarray, "atom 3"],
    second: Float[np.ndarray, "atom 3"],
    vectors: Float[np.ndarray, "3 3"],
) -> bool:
    """Whether each atom of `second` lies on one of its kind in `first` (fractions of the cell with these vectors)."""
    for number in np.unique(numbers):
        chosen = numbers == number
        difference = second[chosen][:, None] - first[chosen][None]
        distance = np.linalg.norm((difference - difference.round()) @ vectors, axis=-1)
        if (distance.min(axis=1) > _DISTANCE).any():
            return False
    return True


def _maps_onto_itself(
    numbers: Int[np.ndarray, "atom"],
    fractions: Float[np.ndarray, "atom 3"],
    edges: Float[np.ndarray, "3"],
    rotation: Int[np.ndarray, "3 3"],
) -> bool:
    """Whether the turn, the turn with inversion, or either with a shift, leaves the crystal as it is."""
    kinds, counts = np.unique(numbers, return_counts=True)
    rarest = numbers == kinds[counts.argmin()]
    for turn in (rotation, -rotation):
        turned = fractions @ turn
        for shift in fractions[rarest] - turned[rarest][0]:
            if same(numbers, fractions, turned + shift, np.diag(edges)):
                return True
    return False


def _divide(
    edges: Float[np.ndarray, "3"], numbers: Int[np.ndarray, "atom"], fractions: Float[np.ndarray, "atom 3"]
) -> tuple[Float[np.ndarray, "3"], Int[np.ndarray, "new"], Float[np.ndarray, "new 3"]]:
    """Divides each edge as often as the crystal repeats within it."""
    for dim in range(3):
        for part in (2, 3):
            shift = np.zeros(3)
            shift[dim] = 1 / part
            while len(numbers) % part == 0 and same(numbers, fractions, fractions + shift, np.diag(edges)):
                # Folding puts the copies on one another; of each group of copies the first is kept.
                folded = fractions.copy()
                folded[:, dim] *= part
                folded = fold(folded)
                edges = edges.copy()
                edges[dim] /= part
                difference = folded[:, None] - folded[None]
                apart = np.linalg.norm((difference - difference.round()) * edges, axis=-1)
                kept = ~np.tril(apart < _DISTANCE, -1).any(axis=1)
                numbers, fractions = numbers[kept], folded[kept]
    return edges, numbers, fractions


def _orthogonal(
    crystal: Crystal,
) -> tuple[Float[np.ndarray, "3"], Int[np.ndarray, "new"], Float[np.ndarray, "new 3"]]:
    """Edges [A], atomic numbers and fractions of the orthogonal or ortho-hexagonal cell."""
    vectors, numbers, fractions = crystal.cell, crystal.numbers, fold(crystal.positions)
    lengths = np.linalg.norm(vectors, axis=1)
    unit = vectors / lengths[:, None]
    alpha, beta, gamma = (float(np.degrees(np.arccos(unit[i] @ unit[j]))) for i, j in ((1, 2), (0, 2), (0, 1)))
    upright = abs(alpha - 90) < _ANGLE and abs(beta - 90) < _ANGLE
    if upright and abs(gamma - 120) < _ANGLE and abs(lengths[0] / lengths[1] - 1) < _LENGTH:
        vectors, numbers, fractions = recell(vectors, numbers, fractions, _HEXAGONAL)
    elif not (upright and abs(gamma - 90) < _ANGLE):
        raise CrystalError(
            f"{crystal.name}: the cell angles are {alpha:.2f}, {beta:.2f}, {gamma:.2f} degrees; views need an "
            "orthogonal cell, or a hexagonal one with a = b and gamma = 120 degrees (exafield.microscopy.zones.along "
            "looks for an orthogonal supercell of any other)"
        )
    return np.linalg.norm(vectors, axis=1), numbers, fractions


def view(crystal: Crystal, zone: Zone) -> View:
    """The crystal seen along one zone axis.

    Raises:
        CrystalError: the cell is neither orthogonal nor hexagonal, or [110] of a cell with a unlike b.
    """
    if zone not in get_args(Zone):
        raise CrystalError(f"{crystal.name}: zone must be one of {get_args(Zone)}, got {zone!r}")
    edges, numbers, fractions = _orthogonal(crystal)
    if zone == "110" and abs(edges[0] / edges[1] - 1) > _LENGTH:
        raise CrystalError(f"{crystal.name}: [110] needs a = b, but the edges are {edges[0]:.4f} and {edges[1]:.4f} A")
    turned, numbers, fractions = recell(np.diag(edges), numbers, fractions, _AXES[zone])
    lengths, numbers, fractions = _divide(np.linalg.norm(turned, axis=1), numbers, fractions)
    x, y, z = (float(length) for length in lengths)
    return View(crystal, zone, (x, y, z), numbers, fractions * lengths)


def views(crystal: Crystal, max_edge: float = 9.0, max_repeat: float = 45.0) -> list[View]:
    """The inequivalent views among [001], [100], [010] and [110], or none where the cell is skew.

    [100] and [010] are left out where a turn of the crystal (a fourfold axis along c, a threefold one along the body
    diagonal) makes them the same as another; [110] is taken where either makes a equal to b.
    Turns are looked for in the atoms, not in the label of the space group.

    Args:
        crystal: the crystal.
        max_edge: longest edge in the plane [A].
        max_repeat: longest repeat along the beam [A].
    """
    try:
        edges, numbers, fractions = _orthogonal(crystal)
    except CrystalError:
        return []
    square = bool(abs(edges[0] / edges[1] - 1) < _LENGTH)
    cubic = square and bool(abs(edges[0] / edges[2] - 1) < _LENGTH)
    threefold = cubic and _maps_onto_itself(numbers, fractions, edges, _THREEFOLD)
    fourfold = square and _maps_onto_itself(numbers, fractions, edges, _FOURFOLD)
    zones: list[Zone] = ["001"]
    if not threefold:
        zones.append("100")
        if not fourfold:
            zones.append("010")
    if fourfold or threefold:
        zones.append("110")
    seen = (view(crystal, zone) for zone in zones)
    return [v for v in seen if max(v.cell[:2]) <= max_edge and v.cell[2] < max_repeat]
