"""Frozen phonons: a specimen whose atoms stand where heat has moved them, a new one for each electron.

The fast electron passes in far less time than an atom takes to swing, so it meets atoms at rest but out of place. The
mean of the patterns of many such specimens is what is recorded, thermal diffuse scattering included, which a
potential smeared by the Debye-Waller factor does not show. Loane, Xu and Silcox, Acta Cryst. A47, 267 (1991).

Atoms move independently (Einstein's model), by a Gaussian with <u^2> = B / (8 pi^2) along each axis. Displacements
along the beam are left out: with slices projected to a plane they do nothing but move an atom now and then to the next
slice. No cell equals another, so a supercell that holds the whole array is made, at any depth.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from exafield.microscopy.potential import BFactor, b_factor_of
from exafield.microscopy.views import View


def configurations(
    view: View,
    *,
    thickness: float,
    box: float = 14.0,
    b_factor: BFactor = 0.6,
    count: int = 8,
    seed: int = 0,
) -> Iterator[View]:
    """Specimens with displaced atoms, each as a view of its own: give them to `projected_slices` with `b_factor=0`.

    Configuration k depends on (seed, k) alone: more of them go on where fewer stopped. Eight or more are usual; the
    error of the mean falls with the square root of their number.

    Args:
        view: the crystal, one cell.
        thickness: of the specimen [A]; rounded to whole repeats along the beam, at least one.
        box: wanted edge of the array [A]; rounded to whole cells. The array is periodic: with a converged probe, a
            small one lets neighbouring copies of the specimen, displaced alike, be seen at once.
        b_factor: Debye-Waller factor B = 8 pi^2 <u^2> [A^2], one for all or by chemical symbol.
        count: how many.
        seed: of the displacements.

    Raises:
        ValueError: an argument is out of range, or an element has no B; says which.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1 configuration, got {count}")
    if not (np.isfinite(thickness) and thickness > 0 and np.isfinite(box) and box > 0):
        raise ValueError(f"thickness and box must be positive lengths [A], got {thickness} and {box}")
    edges = np.array(view.cell)
    repeats = np.maximum(1, np.round(np.array([box, box, thickness]) / edges)).astype(int)
    cells = np.stack(np.meshgrid(*(np.arange(n) for n in repeats), indexing="ij"), axis=-1).reshape(-1, 3)
    numbers = np.tile(view.numbers, len(cells))
    rest = (cells[:, None] * edges + view.positions).reshape(-1, 3)
    factors = np.array([b_factor_of(int(number), b_factor) for number in view.numbers])
    width = np.tile(np.sqrt(factors / (8 * np.pi**2)), len(cells))
    x, y, z = (float(edge) for edge in repeats * edges)

    def displaced(index: int) -> View:
        moved = rest.copy()
        random = np.random.default_rng(np.random.SeedSequence((seed, index)))
        moved[:, :2] += random.standard_normal((len(rest), 2)) * width[:, None]
        return replace(view, cell=(x, y, z), numbers=numbers, positions=moved)

    return (displaced(index) for index in range(count))
