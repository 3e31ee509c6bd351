"""Views: a crystal turned so that the beam runs along one of its axes, in an orthogonal cell."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from exafield.microscopy.crystal import Crystal, CrystalError

# How far a cell may be from orthogonal or hexagonal [A per A of edge], the precision of lattice constants.
_TOLERANCE = 2e-3

# Rows: new cell vectors in terms of the old ones; the last is along the beam. Proper rotations only.
_AXES = {
    "001": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "100": ((0, 1, 0), (0, 0, 1), (1, 0, 0)),
    "010": ((0, 0, 1), (1, 0, 0), (0, 1, 0)),
    "110": ((-1, 1, 0), (0, 0, 1), (1, 1, 0)),
}
_ORTHOHEXAGONAL = ((1, 0, 0), (1, 2, 0), (0, 0, 1))


@dataclass(frozen=True)
class View:
    """A crystal along the beam: z is the beam's direction of travel, x and y span the image.

    Args:
        crystal: what is looked at.
        zone: the beam's direction [uvw] in the crystal's axes (orthohexagonal ones for hexagonal cells).
        edges: of the orthogonal cell along x, y, z [A].
        numbers: atomic numbers.
        positions: fractional coordinates in this cell.
    """

    crystal: Crystal
    zone: str
    edges: tuple[float, float, float]
    numbers: Int[np.ndarray, "atom"]
    positions: Float[np.ndarray, "atom 3"]

    @property
    def name(self) -> str:
        """Such as "SrTiO3 [001]"."""
        return f"{self.crystal.name} [{self.zone}]"


def view(crystal: Crystal, zone: str) -> View:
    """Turns `crystal` so that the beam runs along `zone`: 001, 100, 010 or 110.

    Raises:
        CrystalError: the axes are not orthogonal or hexagonal, or not square for 110.
    """
    if zone not in _AXES:
        raise CrystalError(f"zone must be one of {', '.join(_AXES)}, got {zone!r}")
    cell, numbers, positions = crystal.cell, crystal.numbers, crystal.positions
    if _is_hexagonal(cell):
        cell, numbers, positions = _transformed(cell, numbers, positions, _ORTHOHEXAGONAL)
    cell, numbers, positions = _transformed(cell, numbers, positions, _AXES[zone])
    edges = np.linalg.norm(cell, axis=1)
    cosines = (cell / edges[:, None]) @ (cell / edges[:, None]).T - np.eye(3)
    if abs(cosines).max() > _TOLERANCE:
        raise CrystalError(
            f"{crystal.name}: the cell seen along [{zone}] is not orthogonal; only orthogonal and hexagonal cells can "
            "be viewed (and square ones along 110)"
        )
    return View(crystal, zone, (float(edges[0]), float(edges[1]), float(edges[2])), numbers, positions)


def views(crystal: Crystal, largest: float = 9.0, longest: float = 45.0) -> list[View]:
    """The inequivalent views along [001], [100], [010] and [110]; none if the cell is not orthogonal or hexagonal.

    Equivalent by symmetry are the three axes of a cubic crystal, and two of a tetragonal one.

    Args:
        largest: longest edge across the beam [A].
        longest: longest repeat along the beam [A].
    """
    zones: Sequence[str] = {"cubic": ("001", "110"), "tetragonal": ("001", "100", "110")}.get(
        crystal.system, ("001", "100", "010")
    )
    found = []
    for zone in zones:
        try:
            candidate = view(crystal, zone)
        except CrystalError:
            continue
        if max(candidate.edges[:2]) <= largest and candidate.edges[2] < longest:
            found.append(candidate)
    return found


def _is_hexagonal(cell: np.ndarray) -> bool:
    a, b, c = (row / np.linalg.norm(row) for row in cell)
    equal = abs(np.linalg.norm(cell[0]) - np.linalg.norm(cell[1])) < _TOLERANCE * np.linalg.norm(cell[0])
    return bool(equal and abs(a @ b + 0.5) < _TOLERANCE and abs(a @ c) < _TOLERANCE and abs(b @ c) < _TOLERANCE)


def _transformed(
    cell: np.ndarray, numbers: np.ndarray, positions: np.ndarray, rows: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cell spanned by integer combinations of the old vectors, with all its atoms."""
    matrix = np.array(rows)
    copies = round(abs(np.linalg.det(matrix)))
    inverse = np.linalg.inv(matrix)
    reach = range(-2, 3)
    shifts = np.array([(i, j, k) for i in reach for j in reach for k in reach])
    # Lattice points of the old cell that fall into the new one.
    inside = shifts[np.all((shifts @ inverse + 1e-9 >= 0) & (shifts @ inverse + 1e-9 < 1), axis=1)]
    assert len(inside) == copies
    new = ((positions[None] + inside[:, None]) @ inverse).reshape(-1, 3) % 1.0
    return matrix @ cell, np.tile(numbers, copies), new
