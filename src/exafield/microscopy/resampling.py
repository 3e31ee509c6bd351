"""A scan as a network takes it: its detector on a fixed angular grid, its positions on a fixed step.

Detector pixels are shared out to the network's bins by the area they have in common, so that electrons are neither
lost nor counted twice. Scan positions are interpolated with a windowed sinc: the intensity in a detector pixel holds
no frequency above 2 alpha / lambda, so that with steps up to lambda / (4 alpha) it is known everywhere. Where steps
are finer, the filter averages over neighbours and gathers their electrons, and passes nine tenths of these frequencies
to within a hundredth; where they are coarser, what is between them is lost, but a position that was recorded is taken
as it is.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import sparse

from exafield.microscopy.calibration import ScanError
from exafield.microscopy.scanfile import ScanFile

# Points along a side that a turned pixel is divided into: its shares are right to about a sixty-fourth. Our choice.
_POINTS = 8
# Lobes of the sinc on either side (Lanczos), and the part of the complete step that its cutoff stands for: what it lets
# through is right to 0.7 % up to nine tenths of the highest frequency, while 3 lobes and all of the step lose a third.
_LOBES, _CUTOFF = 5, 0.8


@dataclass(frozen=True, eq=False)
class Bins:
    """Which part of each detector pixel belongs to each bin.

    Args:
        weights: (pixel, bin); pixels that are dead have none, and what is left of their bins counts for more.
        bins: along a side.
        covered: share of the bins that pixels cover by more than half.
        blind: bins of which every pixel is dead; they are filled with the mean of their neighbours.
    """

    weights: sparse.csr_array
    bins: int
    covered: float
    blind: int


def bins(
    shape: tuple[int, int],
    *,
    centre: tuple[float, float],
    step: tuple[float, float],
    half_angle: float,
    count: int,
    rotation: float = 0.0,
    transpose: bool = False,
    dead: Bool[np.ndarray, "kx ky"] | None = None,
) -> Bins:
    """The bins of a network over a detector.

    Args:
        shape: pixels along kx and ky.
        centre: of the bright-field disc [pixels].
        step: angle of a pixel along kx and ky [rad].
        half_angle: half the width of all bins [rad].
        count: bins along a side.
        rotation, transpose: of the detector against the scan, see :func:`exafield.microscopy.survey.turned`.
        dead: pixels that are not to be used.
    """
    width = 2 * half_angle / count
    if transpose or rotation % 360:
        all_pixels = _turned(shape, centre, step, width, count, rotation, transpose)
    else:
        along = [_overlap(n, c, s, width, count) for n, c, s in zip(shape, centre, step, strict=True)]
        all_pixels = sparse.csr_array(sparse.kron(along[0], along[1], format="csr"))
    area = step[0] * step[1] / width**2  # of a pixel, in bins
    full = np.asarray(all_pixels.sum(0)).ravel() * area
    if dead is None or not dead.any():
        return Bins(all_pixels, count, float((full > 0.5).mean()), 0)
    alive = sparse.csr_array(sparse.diags_array((~dead).ravel().astype(float)) @ all_pixels)
    left = np.asarray(alive.sum(0)).ravel() * area
    blind = (left < 0.1 * full) & (full > 0)
    more = np.where(blind, 0.0, full / np.where(blind | (left == 0), 1.0, left))
    weights = alive @ sparse.diags_array(more)
    if blind.any():
        weights = weights @ _filled(blind.reshape(count, count))
    return Bins(sparse.csr_array(weights), count, float((full > 0.5).mean()), int(blind.sum()))


def _overlap(pixels: int, centre: float, step: float, width: float, count: int) -> sparse.csr_array:
    """Share of each pixel in each bin along one axis: (pixel, bin)."""
    low = (np.arange(pixels) - 0.5 - centre) * step
    edges = (np.arange(count + 1) - count / 2) * width
    common = np.minimum(low[:, None] + step, edges[1:]) - np.maximum(low[:, None], edges[:-1])
    return sparse.csr_array(np.clip(common, 0, None) / step)


def _turned(
    shape: tuple[int, int],
    centre: tuple[float, float],
    step: tuple[float, float],
    width: float,
    count: int,
    rotation: float,
    transpose: bool,
) -> sparse.csr_array:
    """The same of a turned detector, by the points that each pixel is divided into."""
    inside = (np.arange(_POINTS) + 0.5) / _POINTS - 0.5
    u, v = ((np.arange(n)[:, None] + inside - c) * s for n, c, s in zip(shape, centre, step, strict=True))
    u, v = np.broadcast_arrays(u[:, None, :, None], v[None, :, None, :])
    if transpose:
        u, v = v, u
    c, s = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    bx = np.floor((c * u - s * v) / width + count / 2).astype(np.int64)
    by = np.floor((s * u + c * v) / width + count / 2).astype(np.int64)
    hit = (bx >= 0) & (bx < count) & (by >= 0) & (by < count)
    pixel = np.broadcast_to(np.arange(shape[0] * shape[1]).reshape(shape)[:, :, None, None], bx.shape)
    entries = np.full(int(hit.sum()), 1.0 / _POINTS**2)
    size = (shape[0] * shape[1], count * count)
    return sparse.csr_array(sparse.coo_array((entries, (pixel[hit], bx[hit] * count + by[hit])), shape=size))


def _filled(blind: Bool[np.ndarray, "bx by"]) -> sparse.csr_array:
    """Takes bins that saw nothing to the mean of the neighbours that did."""
    count = len(blind)
    matrix = sparse.lil_array(sparse.eye_array(count * count))
    for x, y in np.argwhere(blind):
        around = [
            (i, j)
            for i in range(max(0, x - 1), min(count, x + 2))
            for j in range(max(0, y - 1), min(count, y + 2))
            if not blind[i, j]
        ]
        for i, j in around:
            matrix[i * count + j, x * count + y] = 1.0 / len(around)
    return sparse.csr_array(matrix)


@dataclass(frozen=True, eq=False)
class Positions:
    """How positions are read off between recorded ones, along one axis.

    Args:
        weights: (wanted, recorded); each row sums to one.
        gathered: electrons of a wanted position over those of a recorded one, in the mean.
    """

    weights: sparse.csr_array
    gathered: float

    def needed(self, low: int, high: int) -> tuple[int, int]:
        """Recorded positions from and to which some wanted ones reach."""
        columns = self.weights[low:high].indices
        return int(columns.min()), int(columns.max()) + 1


def positions(count: int, step: float, wanted: float, complete: float, start: float = 0.0) -> Positions:
    """Wanted positions start, start + wanted, ... [A] as far as recorded ones reach.

    Args:
        count: recorded positions.
        step: between them [A].
        wanted: step that is wanted [A].
        complete: largest step [A] with which a scan is known everywhere.
        start: of the first one [A].
    """
    number = math.floor(((count - 1) * step - start) / wanted + 1e-6) + 1
    reach = max(step, _CUTOFF * complete)
    half = math.ceil(_LOBES * reach / step)
    place = (start + np.arange(number)[:, None] * wanted) / step
    recorded = np.round(place).astype(np.int64) + np.arange(-half, half + 1)
    distance = (recorded - place) * (step / reach)
    kernel = np.where(np.abs(distance) < _LOBES, np.sinc(distance) * np.sinc(distance / _LOBES), 0.0)
    kernel[(np.abs(kernel) < 1e-6) | (recorded < 0) | (recorded >= count)] = 0.0
    kernel /= kernel.sum(1, keepdims=True)
    row = np.broadcast_to(np.arange(number)[:, None], kernel.shape)
    used = kernel != 0
    weights = sparse.coo_array((kernel[used], (row[used], recorded[used])), shape=(number, count))
    return Positions(sparse.csr_array(weights), float(1 / np.mean((kernel**2).sum(1))))


class Resampled:
    """A scan on the grid of a network, a band of rows at a time.

    Args:
        scan: as it was recorded.
        detector: its bins.
        along: positions along x and y.
        scale: what a count of the file is of the incident beam.
    """

    def __init__(self, scan: ScanFile, detector: Bins, along: tuple[Positions, Positions], scale: float) -> None:
        self.scan, self.detector, self.along, self._scale = scan, detector, along, scale
        self.shape = (along[0].weights.shape[0], along[1].weights.shape[0])
        self._rows: OrderedDict[int, NDArray[np.float32]] = OrderedDict()
        self.lost = 0

    def band(self, low: int, high: int) -> Float[np.ndarray, "x y bx by"]:
        """Square roots of the intensity, as shares of the incident beam, of the rows from `low` to `high`.

        Bands are asked for in rising order; rows that no later band needs are let go.

        Raises:
            ScanError: patterns cannot be read.
        """
        first, last = self.along[0].needed(low, high)
        for row in [row for row in self._rows if row < first]:
            del self._rows[row]
        start = next((row for row in range(first, last) if row not in self._rows), last)
        for x, y in self.scan.parts(slice(start, last)):
            for row, values in zip(range(x.start, x.stop), self._binned(x, y), strict=True):
                if y.start == 0:
                    self._rows[row] = np.empty((self.scan.shape[1], self.detector.bins**2), np.float32)
                self._rows[row][y] = values
        recorded = np.stack([self._rows[row] for row in range(first, last)])
        side = self.detector.bins
        at_x = self.along[0].weights[low:high, first:last].astype(np.float32)
        rows = (at_x @ recorded.reshape(last - first, -1)).reshape(high - low, self.scan.shape[1], side * side)
        at_y = self.along[1].weights.astype(np.float32)
        found = np.stack([at_y @ row for row in rows])
        return np.asarray(np.sqrt(np.clip(found, 0, None)).reshape(high - low, -1, side, side))

    def _binned(self, x: slice, y: slice) -> NDArray[np.float32]:
        part = self.scan.read(x, y)
        shape = part.shape[:2]
        flat = part.reshape(shape[0] * shape[1], -1).astype(np.float32)
        weights = self.detector.weights.astype(np.float32)
        good = np.isfinite(flat)
        if good.all():
            return self._scaled(flat @ weights, shape)
        # What is missing in one pattern alone is made up for by the rest of its bin.
        flat[~good] = 0.0
        seen, full = good.astype(np.float32) @ weights, np.asarray(weights.sum(0)).ravel()
        found = np.where(seen > 0.1 * full, flat @ weights * (full / np.maximum(seen, 1e-9)), np.nan)
        return self._mended(self._scaled(found, shape))

    def _scaled(self, values: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return np.asarray(np.asarray(values, np.float32).reshape(*shape, -1) * np.float32(self._scale))

    def _mended(self, found: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bins without any number, from the nearest position of their row that has one; zero if none has."""
        covered = np.asarray(self.detector.weights.sum(0)).ravel() > 0
        found[..., ~covered] = 0.0
        self.lost += int(np.isnan(found[..., covered]).all(axis=2).sum())
        for row in found:
            for column in np.flatnonzero(np.isnan(row).any(1)):
                hole = np.isnan(row[column])
                good = np.flatnonzero(~np.isnan(row[:, hole]).any(1))
                row[column, hole] = row[good[np.abs(good - column).argmin()], hole] if len(good) else 0.0
        return found


def check_reach(scan: ScanFile, along: tuple[Positions, Positions], window: int) -> None:
    """Refuses a scan smaller than what the network sees at a time.

    Raises:
        ScanError: says how large it must be.
    """
    if min(p.weights.shape[0] for p in along) < window:
        covered = " x ".join(str(p.weights.shape[0]) for p in along)
        raise ScanError(
            f"{scan.path}: the scan is too small: on the step of the network it has {covered} positions, and the "
            f"network sees {window} x {window} at a time: is the scan step right?"
        )
