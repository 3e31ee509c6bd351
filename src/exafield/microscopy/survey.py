"""A first look at a scan: its bright-field disc, dead pixels, and whether its axes fit each other.

Only a part is read: a block in the middle and one in each corner.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from exafield.microscopy.calibration import ScanError
from exafield.microscopy.scanfile import ScanFile

# Positions along a side of the block in the middle, and of those in the corners. Our choice, as all that follows.
_MIDDLE, _CORNER = 64, 8
# A pixel is dead below this part of its neighbours' median, where that is this many counts; hot above that multiple.
_DEAD, _COUNTS, _HOT = 0.1, 20.0, 5.0
# A mask is a disc if it and its circle share at least this part of their union.
_ROUND = 0.75
# A detector of which more is lit shows no disc: the largest that it can hold covers 0.79 of it.
_LIT = 0.85
# A hint is given if another orientation explains this much more of the deflections, and this much at least.
_GAIN, _ENOUGH = 0.12, 0.65
# Turns that are said to be right angles [degrees]: noise leaves them uncertain by about this.
_RIGHT = 4.0


@dataclass(frozen=True, slots=True)
class Disc:
    """The bright-field disc.

    Args:
        centre: (kx, ky) [pixels].
        radius: [pixels].
    """

    centre: tuple[float, float]
    radius: float


@dataclass(frozen=True, eq=False)
class Survey:
    """What the first look finds.

    Args:
        mean: pattern; dead and hot pixels are replaced by their neighbours' median.
        image: sum of each pattern in the middle of the scan.
        dead: pixels that are not to be used, hot ones as well.
        deflection: (x, y, 2) centre of mass of the patterns in the middle of the scan [pixels].
        wander: how far the centre of mass of a corner is from that of the middle, at most [pixels].
        total: mean sum of a pattern, in the units of the file.
        counts: whether all values are whole and none is negative, as of counted electrons.
        missing, negative: share of values that are no number, or below zero.
        empty: share of positions without any signal.
    """

    mean: Float[np.ndarray, "kx ky"]
    image: Float[np.ndarray, "x y"]
    dead: Bool[np.ndarray, "kx ky"]
    deflection: Float[np.ndarray, "x y 2"]
    wander: float
    total: float
    counts: bool
    missing: float
    negative: float
    empty: float


class _Sums:
    """What is added up over patterns."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.pattern, self.seen = np.zeros(shape), np.zeros(shape)
        self.negative, self.looked, self.empty, self.whole = 0, 0, 0, True
        self._indices = np.arange(shape[0]), np.arange(shape[1])

    def block(
        self, scan: ScanFile, rows: slice, columns: slice
    ) -> tuple[Float[np.ndarray, "x y"], Float[np.ndarray, "x y 2"]]:
        """Adds a block of positions; returns their sums and centres of mass."""
        moments = np.zeros((rows.stop - rows.start, columns.stop - columns.start, 3))
        for x, y in scan.parts(rows, columns):
            part = scan.read(x, y).astype(np.float32)
            good = np.isfinite(part)
            part[~good] = 0.0
            self.pattern += part.sum((0, 1), dtype=np.float64)
            self.seen += good.sum((0, 1))
            self.negative += int((part < 0).sum())
            self.whole = self.whole and bool((part == np.rint(part)).all())
            along_x, along_y = part.sum(3, dtype=np.float64), part.sum(2, dtype=np.float64)
            place = (
                slice(x.start - rows.start, x.stop - rows.start),
                slice(y.start - columns.start, y.stop - columns.start),
            )
            moments[place] = np.stack([along_x.sum(2), along_x @ self._indices[0], along_y @ self._indices[1]], axis=2)
        self.looked += moments.shape[0] * moments.shape[1]
        self.empty += int((moments[..., 0] == 0).sum())
        with np.errstate(invalid="ignore", divide="ignore"):
            centres = moments[..., 1:] / moments[..., :1]
        bad = ~np.isfinite(centres).all(2)
        centres[bad] = np.mean(centres[~bad], axis=0) if not bad.all() else 0.0
        return moments[..., 0], centres


def survey(scan: ScanFile) -> Survey:
    """Looks at some patterns of a scan.

    Raises:
        ScanError: there is no signal in it, or it cannot be read.
    """
    nx, ny = scan.shape[:2]
    sums = _Sums(scan.shape[2:])
    rows, columns = (slice((n - min(n, _MIDDLE)) // 2, (n + min(n, _MIDDLE)) // 2) for n in (nx, ny))
    image, deflection = sums.block(scan, rows, columns)
    middle = deflection.mean((0, 1))
    wander = 0.0
    if max(nx, ny) > _MIDDLE:
        for x in (slice(0, min(nx, _CORNER)), slice(max(0, nx - _CORNER), nx)):
            for y in (slice(0, min(ny, _CORNER)), slice(max(0, ny - _CORNER), ny)):
                corner = sums.block(scan, x, y)[1].mean((0, 1))
                wander = max(wander, float(np.linalg.norm(corner - middle)))
    mean = sums.pattern / np.maximum(sums.seen, 1)
    if not mean.max() > 0:
        raise ScanError(f"{scan.path}: the patterns looked at hold no signal: is it the right array?")
    dead, repaired = _dead(mean, sums.seen, sums.whole)
    size = sums.looked * mean.size
    return Survey(
        repaired,
        image,
        dead,
        deflection,
        wander,
        float(repaired.sum()),
        sums.whole and not sums.negative,
        1 - float(sums.seen.sum()) / size,
        sums.negative / size,
        sums.empty / sums.looked,
    )


def _dead(
    mean: Float[np.ndarray, "kx ky"], seen: Float[np.ndarray, "kx ky"], whole: bool
) -> tuple[Bool[np.ndarray, "kx ky"], Float[np.ndarray, "kx ky"]]:
    """Pixels that differ from their neighbours as no pattern does, or gave no number; and the mean without them."""
    around = np.ones((5, 5), dtype=bool)
    around[2, 2] = False
    usual = ndimage.median_filter(mean, footprint=around, mode="nearest")
    plateau = _plateau(ndimage.median_filter(mean, size=3, mode="nearest"))
    expected = usual * seen if whole else np.where(usual > 0.3 * plateau, np.inf, 0.0)
    silent = (mean < _DEAD * usual) & (expected > _COUNTS) & (usual > 0.3 * plateau)
    hot = mean > np.maximum(_HOT * usual, 0.5 * plateau)
    dead = silent | hot | (seen < 0.5 * seen.max())
    return dead, np.where(dead, usual, mean)


def _plateau(mean: Float[np.ndarray, "kx ky"]) -> float:
    """Level of the disc: the median of what is above half of it."""
    level = float(mean.max())
    for _ in range(4):
        level = float(np.median(mean[mean >= 0.5 * level]))
    return level


def find_disc(mean: Float[np.ndarray, "kx ky"]) -> Disc | None:
    """The bright-field disc of a mean pattern, to a part of a pixel; None if what is bright is no disc.

    The disc is what is above half of its level. Its area, in which pixels of the rim count for the part that they are
    lit, gives the radius.
    """
    smooth = ndimage.median_filter(mean, size=3, mode="nearest") if min(mean.shape) > 24 else mean
    level = _plateau(smooth)
    labels, count = ndimage.label(smooth >= 0.5 * level)
    if count == 0:
        return None
    sizes = ndimage.sum_labels(np.ones_like(mean), labels, range(1, count + 1))
    mask = ndimage.binary_fill_holes(labels == 1 + int(np.argmax(sizes)))
    if mask.mean() > _LIT:
        return None
    inner, outer = ndimage.binary_erosion(mask), ndimage.binary_dilation(mask)
    lit = np.where(inner, 1.0, np.where(outer, np.clip(smooth / level, 0, 1), 0.0))
    x, y = np.indices(mean.shape)
    cx, cy = float((lit * x).sum() / lit.sum()), float((lit * y).sum() / lit.sum())
    radius = math.sqrt(float(lit.sum()) / math.pi)
    circle = np.hypot(x - cx, y - cy) <= radius
    if (circle & mask).sum() < _ROUND * (circle | mask).sum():
        return None
    return Disc((cx, cy), radius)


def turned(vectors: Float[np.ndarray, "*place 2"], rotation: float, transpose: bool) -> Float[np.ndarray, "*place 2"]:
    """Detector vectors along the scan's axes: kx and ky swapped if `transpose`, then turned by `rotation` [deg]."""
    u, v = (vectors[..., 1], vectors[..., 0]) if transpose else (vectors[..., 0], vectors[..., 1])
    c, s = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    return np.stack([c * u - s * v, s * u + c * v], axis=-1)


@dataclass(frozen=True, slots=True)
class Orientation:
    """How well deflections fit the scan's axes.

    Args:
        rotation, transpose: of the detector against the scan.
        share: of the deflections that is a gradient, as deflections by a potential are: 1 in an ideal scan.
    """

    rotation: float
    transpose: bool
    share: float


def share(deflection: Float[np.ndarray, "x y 2"], step: Sequence[float] = (1.0, 1.0)) -> float:
    """Which part of the power of deflections is a gradient; 0.5 of what has nothing to do with the scan's axes."""
    along, across, _ = _powers(deflection, step)
    return along / max(along + across, 1e-300)


def orientation(deflection: Float[np.ndarray, "x y 2"], step: Sequence[float] = (1.0, 1.0)) -> Orientation:
    """The turn under which deflections are most nearly a gradient, and atoms attract.

    Electrons are deflected towards atoms. The centre of mass is a gradient of the projected potential in a thin
    specimen, so its curl vanishes if detector and scan are aligned; of the two opposite turns that do, the one is taken
    whose potential is peaked upwards. In closed form, for each of the two hands.
    """
    best = Orientation(0.0, False, -1.0)
    for transpose in (False, True):
        field = turned(deflection, 0.0, transpose)
        along, across, mixed = _powers(field, step)
        # |along'|^2 = along cos^2 + across sin^2 - 2 mixed sin cos: largest at half the angle below.
        angle = math.degrees(0.5 * math.atan2(-2 * mixed, along - across))
        top = 0.5 * (along + across) + math.hypot(0.5 * (along - across), mixed)
        if top / max(along + across, 1e-300) > best.share:
            if _skewness(turned(field, angle, False), step) < 0:
                angle += 180.0 if angle <= 0 else -180.0
            best = Orientation(angle, transpose, top / max(along + across, 1e-300))
    return best


def _spectrum(deflection: np.ndarray, step: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Spectra of both components, and the direction of each frequency; without the mean and the highest frequency."""
    nx, ny = deflection.shape[:2]
    window = np.hanning(nx + 2)[1:-1, None] * np.hanning(ny + 2)[None, 1:-1]
    flat = (deflection - deflection.mean((0, 1))) * window[..., None]
    fx, fy = (np.fft.fft2(flat[..., k]) for k in (0, 1))
    kx, ky = np.fft.fftfreq(nx, step[0])[:, None], np.fft.fftfreq(ny, step[1])[None]
    length = np.hypot(kx, ky)
    length[0, 0] = np.inf
    return fx, fy, kx / length, ky / length


def _powers(deflection: np.ndarray, step: Sequence[float]) -> tuple[float, float, float]:
    fx, fy, ux, uy = _spectrum(deflection, step)
    along, across = fx * ux + fy * uy, fy * ux - fx * uy
    return (
        float((np.abs(along) ** 2).sum()),
        float((np.abs(across) ** 2).sum()),
        float((along * across.conj()).real.sum()),
    )


def _skewness(deflection: np.ndarray, step: Sequence[float]) -> float:
    """Of the potential whose gradient the deflections are."""
    fx, fy, ux, uy = _spectrum(deflection, step)
    nx, ny = deflection.shape[:2]
    length = np.hypot(np.fft.fftfreq(nx, step[0])[:, None], np.fft.fftfreq(ny, step[1])[None])
    length[0, 0] = 1.0  # where the spectrum is zero
    potential = np.fft.ifft2((fx * ux + fy * uy) / (1j * length)).real
    potential = potential - potential.mean()
    return float((potential**3).mean())


def hint(deflection: Float[np.ndarray, "x y 2"], rotation: float, transpose: bool, step: Sequence[float]) -> str | None:
    """What to try if deflections do not fit the axes as said; None if they do, or nothing can be told."""
    if min(deflection.shape[:2]) < 8:
        return None
    given, best = turned(deflection, rotation, transpose), orientation(deflection, step)
    now = share(given, step)
    opposite = _skewness(given, step) < 0
    if best.share < _ENOUGH or (best.share < now + _GAIN and not opposite):
        return None
    # Mirrored and swapped axes are likelier than a turn by nearly a right angle.
    right = 90 * round(best.rotation / 90)
    angle = abs(right) if abs(right) == 180 else right
    if abs(best.rotation - right) > _RIGHT:
        angle = round(best.rotation)
    flags = f"--rotation {angle}" + (" --transpose True" if best.transpose else "")
    if best.share < now + _GAIN:
        return (
            "the centre of mass of the patterns points away from the atoms, as if the detector were turned by 180 "
            f"degrees against the scan: try {flags}"
        )
    return (
        f"the centre of mass of the patterns does not fit the axes of the scan ({now:.0%} of it is a gradient, and "
        f"{best.share:.0%} if the detector is turned otherwise): are the axes in another order (--axes)? Else try "
        f"{flags}"
    )
