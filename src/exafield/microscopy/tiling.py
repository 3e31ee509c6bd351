"""A potential of any size from windows that overlap.

A network sees a window and says what the potential is in it, up to a constant of each window. Windows overlap, and the
constants are those that make them agree best where they do, by least squares. In the overlap, windows are averaged with
weights that fall towards their edges, where a network knows least of what is around.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.linalg import spsolve

#: Windows that a network sees at a time: enough to be fast, few enough for memory. Our choice.
BATCH = 16
# Depth that pixels at a window's edge count for at least, in overlaps: where no other window reaches, any weight will
# do. Our choice.
_EDGE = 0.01

#: Potential and deviation, (window, fx, fy) [V A], of windows (window, x, y, kx, ky).
Predict = Callable[
    [Float[np.ndarray, "window x y kx ky"]],
    tuple[Float[np.ndarray, "window fx fy"], Float[np.ndarray, "window fx fy"]],
]
#: The rows of a scan from one to another, (x, y, kx, ky).
Band = Callable[[int, int], Float[np.ndarray, "x y kx ky"]]


@dataclass(frozen=True, eq=False)
class Blend:
    """What windows together say.

    Args:
        potential: [V A], of mean zero.
        deviation: [V A].
        disagreement: root mean square difference of two windows where they overlap [V A]; None if there is one alone.
        windows: how many there were.
    """

    potential: Float[np.ndarray, "fx fy"]
    deviation: Float[np.ndarray, "fx fy"]
    disagreement: float | None
    windows: int


def starts(count: int, size: int, overlap: int) -> list[int]:
    """Where windows of one size begin so that they cover an axis, evenly spread.

    Raises:
        ValueError: a window is larger than the axis, or nothing of it would be left beside the overlap.
    """
    if not 1 <= overlap < size:
        raise ValueError(f"overlap must be at least 1 and below the tile of {size} positions, got {overlap}")
    if size > count:
        raise ValueError(f"a tile of {size} positions is larger than the scan of {count}")
    gaps = -(-(count - size) // (size - overlap))
    return [round(number * (count - size) / gaps) for number in range(gaps + 1)] if gaps else [0]


def weight(size: int, overlap: int) -> Float[np.ndarray, "fx"]:
    """Weight of a window's pixels along one axis: rises over the overlap, and falls again."""
    depth = np.minimum(np.arange(size) + 0.5, size - np.arange(size) - 0.5)
    return np.asarray(np.clip(depth / overlap, _EDGE, 1.0) ** 2)


def blend(
    shape: tuple[int, int], band: Band, predict: Predict, *, tile: tuple[int, int], overlap: int, refine: int
) -> Blend:
    """The potential of a whole scan.

    Memory holds one band of rows as high as a window, and the result.

    Args:
        shape: positions of the scan.
        band: gives its rows, and is asked for them in rising order.
        predict: gives the potential of windows.
        tile: positions of a window along x and y.
        overlap: positions that neighbouring windows share at least.
        refine: pixels of the potential per position.
    Raises:
        ValueError: windows and scan do not fit each other.
    """
    at_x, at_y = starts(shape[0], tile[0], overlap), starts(shape[1], tile[1], overlap)
    wx, wy = (weight(size * refine, overlap * refine) for size in tile)
    both = wx[:, None] * wy
    total, square, norm = (np.zeros((shape[0] * refine, shape[1] * refine)) for _ in range(3))
    links: list[tuple[int, int, float, float, float]] = []
    before: dict[int, np.ndarray] = {}
    for i, x in enumerate(at_x):
        rows = band(x, x + tile[0])
        now: dict[int, np.ndarray] = {}
        for j, potential, deviation in _predicted(rows, at_y, tile[1], predict):
            place = (slice(x * refine, (x + tile[0]) * refine), slice(at_y[j] * refine, (at_y[j] + tile[1]) * refine))
            total[place] += both * potential
            square[place] += both * deviation**2
            norm[place] += both
            now[j] = potential
            number = i * len(at_y) + j
            if j:
                links.append(_link(number - 1, number, now[j - 1], potential, 0, at_y[j] - at_y[j - 1], both, refine))
            if i:
                down = x - at_x[i - 1]
                links.append(_link(number - len(at_y), number, before[j], potential, down, 0, both, refine))
        before = now
    count = len(at_x) * len(at_y)
    offsets = _offsets(count, links)
    if count > 1:
        shift = np.zeros_like(total)
        for number, offset in enumerate(offsets):
            x, y = at_x[number // len(at_y)] * refine, at_y[number % len(at_y)] * refine
            shift[x : x + len(wx), y : y + len(wy)] += offset * both
        total += shift
    potential = total / norm
    spread = None
    if links:
        left = sum(s + 2 * d * m + d**2 * w for a, b, w, m, s in links for d in (offsets[a] - offsets[b],))
        spread = float(np.sqrt(max(0.0, left) / max(sum(link[2] for link in links), 1e-300)))
    return Blend(
        (potential - potential.mean()).astype(np.float32), np.sqrt(square / norm).astype(np.float32), spread, count
    )


def _predicted(
    rows: np.ndarray, at_y: list[int], width: int, predict: Predict
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    for first in range(0, len(at_y), BATCH):
        some = at_y[first : first + BATCH]
        potentials, deviations = predict(np.stack([rows[:, y : y + width] for y in some]))
        for number, (potential, deviation) in enumerate(zip(potentials, deviations, strict=True)):
            yield first + number, potential.astype(np.float64), deviation.astype(np.float64)


def _link(
    a: int, b: int, first: np.ndarray, second: np.ndarray, down: int, right: int, both: np.ndarray, refine: int
) -> tuple[int, int, float, float, float]:
    """Two windows where they overlap: their numbers; weight, sum and sum of squares of their difference."""
    dx, dy = down * refine, right * refine
    nx, ny = first.shape[0] - dx, first.shape[1] - dy
    if nx <= 0 or ny <= 0:
        return a, b, 0.0, 0.0, 0.0
    weights = both[dx:, dy:] * both[:nx, :ny]
    difference = first[dx:, dy:] - second[:nx, :ny]
    return (
        a, b, float(weights.sum()), float((weights * difference).sum()), float((weights * difference**2).sum()),
    )  # fmt: skip


def _offsets(count: int, links: list[tuple[int, int, float, float, float]]) -> Float[np.ndarray, "window"]:
    """Constants c of the windows: least sum of w (c_a - c_b + mean difference)^2 over the overlaps, of mean zero."""
    links = [link for link in links if link[2] > 0]
    if count == 1 or not links:
        return np.zeros(count)
    a, b, w, m, _ = (np.array(column) for column in zip(*links, strict=True))
    a, b = a.astype(int), b.astype(int)
    diagonal = np.bincount(a, w, count) + np.bincount(b, w, count)
    all_of = np.arange(count)
    rows, columns = np.concatenate([all_of, a, b]), np.concatenate([all_of, b, a])
    matrix = sparse.coo_array((np.concatenate([diagonal, -w, -w]), (rows, columns)), shape=(count, count))
    right = np.bincount(b, m, count) - np.bincount(a, m, count)
    # A constant of all windows alike is free: the tiny weight takes the one of mean zero.
    fixed = sparse.csc_array(matrix + sparse.diags_array(np.full(count, 1e-9 * float(w.mean()))))
    found = np.atleast_1d(spsolve(fixed, right))
    return np.asarray(found - found.mean())
