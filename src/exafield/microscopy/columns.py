"""Atom columns of a potential of any size, with how sure each is."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy import ndimage
from scipy.spatial import cKDTree

from exafield.microscopy.analysis import MERGE
from exafield.store import atomic_write

# The height of a column is that above the lowest point this far around it [A]: about half the distance to the next.
_AROUND = 1.0


@dataclass(frozen=True, eq=False)
class Columns:
    """Atom columns, from left to right and from below to above.

    Args:
        places: (x, y) from the first probe [A].
        height: above the lowest point around it [V A].
        deviation: of the potential there [V A].
    """

    places: Float[np.ndarray, "column 2"]
    height: Float[np.ndarray, "column"]
    deviation: Float[np.ndarray, "column"]

    @property
    def significance(self) -> Float[np.ndarray, "column"]:
        """Height in deviations."""
        return np.asarray(self.height / np.maximum(self.deviation, 1e-30))

    def write(self, path: Path) -> None:
        """As CSV.

        Raises:
            StoreError: it cannot be written.
        """
        lines = ["x [A],y [A],height [V A],deviation [V A],significance"]
        rows = np.column_stack([self.places, self.height, self.deviation, self.significance])
        lines += [f"{x:.3f},{y:.3f},{h:.2f},{d:.2f},{s:.1f}" for x, y, h, d, s in rows]
        atomic_write(path, ("\n".join(lines) + "\n").encode())


def find_columns(
    potential: Float[np.ndarray, "x y"],
    deviation: Float[np.ndarray, "x y"],
    x: Float[np.ndarray, "x"],
    y: Float[np.ndarray, "y"],
    threshold: float,
) -> Columns:
    """Local maxima of a potential, to a part of a pixel; of two closer than 0.4 A the higher.

    Args:
        x, y: of the pixels [A].
        threshold: a column rises above this share of the range of the potential, of which a thousandth at either end
            does not count.
    """
    low, high = np.percentile(potential, (0.1, 99.9))
    level = low + threshold * (high - low)
    peaks = np.argwhere((potential == ndimage.maximum_filter(potential, 3, mode="nearest")) & (potential > level))
    # What is highest at the edge may be higher outside.
    inside = ((peaks > 0) & (peaks < np.array(potential.shape) - 1)).all(1)
    peaks = peaks[inside]
    pixel = float(x[1] - x[0])
    floor = ndimage.minimum_filter(potential, 2 * max(1, round(_AROUND / pixel)) + 1, mode="nearest")
    at = tuple(peaks.T)
    places = np.column_stack([x[at[0]], y[at[1]]]) + pixel * _vertex(potential, peaks)
    kept = _merged(places, potential[at])
    order = kept[np.lexsort((places[kept, 1], places[kept, 0]))]
    return Columns(places[order], (potential - floor)[at][order], deviation[at][order])


def _vertex(field: np.ndarray, peaks: np.ndarray) -> Float[np.ndarray, "n 2"]:
    """Where the parabola through a maximum and its neighbours has its vertex, along each axis [pixels]."""
    offsets = np.zeros((len(peaks), 2))
    middle = field[tuple(peaks.T)].astype(float)
    for axis in (0, 1):
        step = np.eye(2, dtype=int)[axis]
        before, after = (field[tuple((peaks + sign * step).T)].astype(float) for sign in (-1, 1))
        curvature = before - 2 * middle + after
        safe = np.where(curvature < 0, curvature, -1.0)
        offsets[:, axis] = np.where(curvature < 0, np.clip(0.5 * (before - after) / safe, -0.5, 0.5), 0.0)
    return offsets


def _merged(places: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Indices of those that are left when of two that are too close only the higher one stays."""
    if not len(places):
        return np.zeros(0, dtype=int)
    gone = np.zeros(len(places), dtype=bool)
    pairs = sorted(cKDTree(places).query_pairs(MERGE), key=lambda pair: -max(heights[pair[0]], heights[pair[1]]))
    for a, b in pairs:
        if not (gone[a] or gone[b]):
            gone[a if heights[a] < heights[b] else b] = True
    return np.flatnonzero(~gone)
