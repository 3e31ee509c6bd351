"""Any zone axis of any crystal: the smallest nearly orthogonal supercell whose third edge runs along the beam.

The crystal's translations (those inside a centred cell as well) are projected along the beam: since the zone axis is
itself a translation, they form a plane lattice. Two of its vectors are wanted that are at right angles, whose heights
along the beam are whole repeats, and that are short. Where no pair is exactly so, the crystal is strained to make it
so, within a bound. The strain stated is the largest relative change of any length in the crystal.

Conventions. [u v w] is the direction u a + v b + w c of the crystal's OWN axes, for hexagonal cells too (three
indices). In cubic crystals it is the normal of the plane (u v w). The beam travels along +[u v w], and x is the shorter
edge.
"""

import math

import numpy as np
from jaxtyping import Float, Int

from exafield.microscopy.crystal import Crystal, CrystalError
from exafield.microscopy.views import View, fold, recell, same

# A strain below this is rounding of the published cell, not a deformation (the tolerance of views.py on lengths).
EXACT = 1e-4


def along(
    crystal: Crystal,
    axis: tuple[int, int, int],
    *,
    max_edge: float = 30.0,
    max_strain: float = 0.01,
    max_repeat: float = 60.0,
) -> View:
    """The crystal seen along [u v w], in an orthogonal cell.

    Of the cells within the bounds an exact one is taken if there is one, and of several the one of least area.

    Args:
        crystal: any crystal, triclinic ones too.
        axis: direction of the beam, u, v, w.
        max_edge: longest edge of the cell across the beam [A].
        max_strain: largest strain accepted; 0.01 changes no length by more than 1 %. 0 takes exact cells only.
        max_repeat: longest repeat along the beam [A].

    Returns:
        the view; its `strain` says how far the crystal was deformed.

    Raises:
        CrystalError: no cell lies within the bounds; says which bound would have to give way.
        ValueError: a bound is not a positive number, or the axis is 0 0 0.
    """
    for name, value in (("max_edge", max_edge), ("max_repeat", max_repeat)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive length [A], got {value}")
    if not 0 <= max_strain < 0.2:
        raise ValueError(f"max_strain must be in [0, 0.2), got {max_strain}; 1 % is 0.01")
    if not any(axis):
        raise ValueError("the zone axis [0 0 0] is no direction: give three whole numbers that are not all zero")
    vectors, numbers, fractions = primitive(crystal)
    basis = _with_third(_shortest(crystal, vectors, axis))
    turned = basis @ vectors
    repeat = float(np.linalg.norm(turned[2]))
    label = f"{crystal.name} [{zone_name(axis)}]"
    if repeat > max_repeat:
        raise CrystalError(
            f"{label}: the crystal repeats along the beam after {repeat:.1f} A; raise max_repeat of {max_repeat:g} A"
        )
    rows, strains, areas = _candidates(turned, max_edge)
    if len(rows) == 0:
        raise CrystalError(
            f"{label}: no cell has both edges across the beam within max_edge of {max_edge:g} A; raise max_edge"
        )
    limit = max(max_strain, EXACT)
    if (strains > limit).all():
        best = int(strains.argmin())
        edges = " x ".join(f"{np.linalg.norm(row @ turned):.1f}" for row in rows[best][:2])
        raise CrystalError(
            f"{label}: the cell cannot be made orthogonal within a strain of {max_strain:.2%} and edges of "
            f"{max_edge:g} A; the best within these edges is {edges} A with a strain of {strains[best]:.2%}. "
            f"Allow max_strain={math.ceil(1e4 * strains[best]) / 1e4:g} or a larger max_edge, or take another zone axis"
        )
    exact = strains <= EXACT
    allowed = exact if exact.any() else strains <= limit
    # Areas and strains are rounded so that equivalent cells tie and the choice does not hang on the last bit.
    order = np.lexsort((np.arange(len(rows)), strains.round(6), areas.round(3)))
    chosen = next(int(k) for k in order if allowed[k])
    cell, found, places = recell(vectors, numbers, fractions, rows[chosen] @ basis)
    x, y, z = (float(length) for length in np.linalg.norm(cell, axis=1))
    strain = 0.0 if exact[chosen] else float(strains[chosen])
    return View(crystal, zone_name(axis), (x, y, z), found, places * (x, y, z), strain)


def zone_name(axis: tuple[int, int, int]) -> str:
    """As in 110 or 1-12; with blanks between where an index has two digits."""
    return ("" if all(abs(i) < 10 for i in axis) else " ").join(str(i) for i in axis)


def primitive(
    crystal: Crystal,
) -> tuple[Float[np.ndarray, "3 3"], Int[np.ndarray, "kept"], Float[np.ndarray, "kept 3"]]:
    """Vectors [A], atomic numbers and fractions of a primitive cell, found from the atoms alone."""
    vectors, numbers, fractions = crystal.cell, crystal.numbers, fold(crystal.positions)
    kinds, counts = np.unique(numbers, return_counts=True)
    rarest = fractions[numbers == kinds[counts.argmin()]]
    shifts = [shift for shift in fold(rarest - rarest[0]) if same(numbers, fractions, fractions + shift, vectors)]
    count = len(shifts)
    if count == 1:
        return vectors, numbers, fractions
    # Positions in a file are rounded (0.3333); a translation is a fraction whose denominator divides a small number.
    exact = np.array([[round(s * count) / count for s in shift] for shift in shifts])
    basis = _lattice_basis((np.concatenate([np.eye(3), exact]) * count).round().astype(int)) / count
    folded = fold(fractions @ np.linalg.inv(basis))
    cell = basis @ vectors
    difference = folded[:, None] - folded[None]
    apart = np.linalg.norm((difference - difference.round()) @ cell, axis=-1)
    alike = (apart < 0.1) & (numbers[:, None] == numbers[None])
    kept = ~np.tril(alike, -1).any(axis=1)
    if kept.sum() * count != len(numbers):
        return vectors, numbers, fractions  # translations that do not close up to whole cells: keep the cell as it is
    return cell, numbers[kept], folded[kept]


def _lattice_basis(generators: Int[np.ndarray, "row 3"]) -> Int[np.ndarray, "3 3"]:
    """Three rows that span the same whole-number combinations (Hermite's normal form, by Euclid's algorithm)."""
    rows = generators.copy()
    for column in range(3):
        while True:
            below = column + np.flatnonzero(rows[column:, column])
            least = below[np.abs(rows[below, column]).argmin()]
            rows[[column, least]] = rows[[least, column]]
            factor = rows[column + 1 :, column] // rows[column, column]
            rows[column + 1 :] -= factor[:, None] * rows[column]
            if not rows[column + 1 :, column].any():
                break
    return rows[:3]


def _shortest(crystal: Crystal, vectors: Float[np.ndarray, "3 3"], axis: tuple[int, int, int]) -> Int[np.ndarray, "3"]:
    """The shortest translation along the axis, in units of the primitive vectors."""
    direction = np.array(axis) @ crystal.cell @ np.linalg.inv(vectors)
    whole = direction.round().astype(int)  # every vector of the cell is a whole combination of primitive ones
    return np.asarray(whole // np.gcd.reduce(whole))


def _with_third(last: Int[np.ndarray, "3"]) -> Int[np.ndarray, "3 3"]:
    """A whole-number matrix of determinant 1 whose third row is given (its entries have no common factor)."""
    matrix = np.eye(3, dtype=int)
    rest = last.copy()
    # Column operations take the row to (0, 0, +-1); the inverse operations, gathered, have it as their third row.
    while np.count_nonzero(rest) > 1:
        least = min(np.flatnonzero(rest), key=lambda i: abs(rest[i]))
        for other in np.flatnonzero(rest):
            if other != least:
                factor = rest[other] // rest[least]
                rest[other] -= factor * rest[least]
                matrix[least] += factor * matrix[other]
    place = int(np.flatnonzero(rest)[0])
    matrix[place] *= rest[place]
    matrix[[place, 2]] = matrix[[2, place]]
    if np.linalg.det(matrix) < 0:
        matrix[0] = -matrix[0]
    return matrix


def _candidates(
    turned: Float[np.ndarray, "3 3"], max_edge: float
) -> tuple[Int[np.ndarray, "pair 3 3"], Float[np.ndarray, "pair"], Float[np.ndarray, "pair"]]:
    """Supercells with edges within the bound: rows in units of `turned`, strain, and area [A^2].

    `turned` has the beam's repeat as its third row.
    """
    beam = turned[2]
    repeat = float(np.linalg.norm(beam))
    height = turned[:2] @ beam / repeat
    flat = turned[:2] - np.outer(height / repeat, beam)
    # A vector of length L has coefficients of at most L |dual vector|.
    reach = np.ceil(max_edge * np.linalg.norm(np.linalg.pinv(flat), axis=0)).astype(int)
    i, j = (g.ravel() for g in np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"))
    half = (i > 0) | ((i == 0) & (j > 0))
    plane = np.stack([i[half], j[half]], axis=1)
    lift = -np.round(plane @ height / repeat).astype(int)
    rows = np.column_stack([plane, lift])
    vectors = rows @ turned
    lengths = np.linalg.norm(vectors, axis=1)
    # Tilt along the beam: at most what any accepted strain (below 0.2) could take out.
    kept = (lengths <= max_edge + 1e-9) & (np.abs(vectors @ beam) / repeat <= 0.4 * lengths)
    rows, vectors, lengths = rows[kept], vectors[kept], lengths[kept]
    order = np.lexsort((*(-rows.T[::-1]), lengths.round(6)))
    rows, vectors, lengths = rows[order], vectors[order], lengths[order]
    cosine = np.abs(vectors @ vectors.T) / np.outer(lengths, lengths)
    first, second = np.nonzero(np.triu(cosine < 0.4, 1))
    last = np.broadcast_to(np.array([0, 0, 1]), (len(first), 3))
    cells = np.stack([rows[first], rows[second], last], axis=1)
    negative = np.linalg.det(cells @ turned) < 0
    cells[negative, 1] *= -1
    old = cells @ turned
    edges = np.linalg.norm(old, axis=2)
    # old @ F = diag(edges): the deformation's singular values are the stretches.
    stretch = np.linalg.svd(edges[:, :, None] * np.linalg.inv(old).transpose(0, 2, 1), compute_uv=False)
    return cells, np.abs(stretch - 1).max(axis=1), edges[:, 0] * edges[:, 1]
