"""How good a reconstructed potential is: as a field, and as a list of atom columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage, optimize

# Columns closer than this are one [A]; a found column is right within this distance of a true one [A].
MERGE, MATCH = 0.4, 0.5
# A maximum of the true potential is a column if it rises above this share of the window's range (our choice).
TRUE_THRESHOLD = 0.10
# Maxima this close to the window's edge are left out [A].
MARGIN = 0.5
# Tried thresholds of predicted columns.
_THRESHOLDS = (0.05, 0.075, 0.10, 0.125, 0.15, 0.175, 0.20, 0.25, 0.30)


def relative_l2(prediction: Float[np.ndarray, "x y"], truth: Float[np.ndarray, "x y"]) -> float:
    """|prediction - truth| / |truth|, both less their means."""
    p, t = prediction - prediction.mean(), truth - truth.mean()
    return float(np.linalg.norm(p - t) / np.linalg.norm(t))


def standardised_r2(prediction: Float[np.ndarray, "x y"], truth: Float[np.ndarray, "x y"]) -> float:
    """R2 of the prediction when both fields have mean 0 and standard deviation 1: of the shape, not the amplitude."""
    p, t = ((f - f.mean()) / max(float(f.std()), 1e-12) for f in (prediction, truth))
    return float(1 - ((p - t) ** 2).mean())


def columns(
    field: Float[np.ndarray, "x y"], pixel: float, threshold: float
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"]]:
    """Atom columns: local maxima above a share of the field's range, to a part of a pixel; the highest first.

    Args:
        pixel: size [A].
        threshold: share of the range between the lowest and highest value.
    Returns:
        positions [A], and heights as shares of the range.
    """
    heights = (field - field.min()) / max(float(np.ptp(field)), 1e-12)
    peaks = np.argwhere((field == ndimage.maximum_filter(field, size=3, mode="nearest")) & (heights > threshold))
    # Highest first, so that of two that merge the higher one stays.
    peaks = peaks[np.argsort(-field[tuple(peaks.T)], kind="stable")]
    found: list[np.ndarray] = []
    kept: list[float] = []
    for peak in peaks:
        position = (_refined(field, peak) + 0.5) * pixel
        if all(((position - other) ** 2).sum() >= MERGE**2 for other in found):
            found.append(position)
            kept.append(float(heights[tuple(peak)]))
    return np.array(found).reshape(-1, 2), np.array(kept)


def _refined(field: np.ndarray, peak: np.ndarray) -> np.ndarray:
    """The vertex of the parabola through a maximum and its neighbours, along each axis [pixels]."""
    position = peak.astype(float)
    for axis in (0, 1):
        if 0 < peak[axis] < field.shape[axis] - 1:
            before, after = peak.copy(), peak.copy()
            before[axis] -= 1
            after[axis] += 1
            low, mid, high = field[tuple(before)], field[tuple(peak)], field[tuple(after)]
            curvature = low - 2 * mid + high
            if curvature < 0:
                position[axis] += np.clip(0.5 * (low - high) / curvature, -0.5, 0.5)
    return position


@dataclass(frozen=True, slots=True)
class Match:
    """Columns found against columns that are there.

    Args:
        true, found: how many there are in the window's interior.
        recalled: true ones that have a found one within 0.5 A, one to one.
        correct: found ones that have a true one, one to one.
        square: sum of the squared distances of the recalled ones [A^2].
    """

    true: int
    found: int
    recalled: int
    correct: int
    square: float


def pairs(
    found: Float[np.ndarray, "n 2"], true: Float[np.ndarray, "m 2"]
) -> tuple[Int[np.ndarray, "pair"], Int[np.ndarray, "pair"], Float[np.ndarray, "pair"]]:
    """Columns found and there, one to one such that the most pairs lie within 0.5 A, at the least total distance.

    Returns:
        which of `found`, which of `true`, and their distance [A].
    """
    distance = np.linalg.norm(found[:, None] - true[None], axis=-1)
    # A pair out of reach costs more than any number of pairs within it.
    rows, cols = optimize.linear_sum_assignment(np.where(distance <= MATCH, distance, 1e6))
    good = distance[rows, cols] <= MATCH
    return rows[good], cols[good], distance[rows[good], cols[good]]


def inside(points: Float[np.ndarray, "n 2"], size: float) -> Bool[np.ndarray, "n"]:
    """Which lie away from the edge of a square window [A]: the others may pair, but do not count by themselves."""
    return np.asarray(np.all((points > MARGIN) & (points < size - MARGIN), axis=1))


def match(found: Float[np.ndarray, "n 2"], true: Float[np.ndarray, "m 2"], size: float) -> Match:
    """Counts columns that were found against those that are there, in a square window of `size` [A]."""
    inside_found, inside_true = inside(found, size), inside(true, size)
    rows, cols, distance = pairs(found, true)
    recalled = inside_true[cols]
    return Match(
        int(inside_true.sum()),
        int(inside_found.sum()),
        int(recalled.sum()),
        int(inside_found[rows].sum()),
        float((distance[recalled] ** 2).sum()),
    )


@dataclass(frozen=True, slots=True)
class Score:
    """Figures of a set of windows.

    Args:
        windows: how many.
        relative_l2: mean over windows.
        r2: mean of the standardised R2.
        recall, precision: of atom columns.
        rms: position error of recalled columns [A].
    """

    windows: int
    relative_l2: float
    r2: float
    recall: float
    precision: float
    rms: float


@dataclass(frozen=True, slots=True)
class Assessed:
    """One window: its columns, relative L2 and standardised R2."""

    match: Match
    relative_l2: float
    r2: float


def assess(
    prediction: Float[np.ndarray, "x y"], truth: Float[np.ndarray, "x y"], pixel: float, threshold: float
) -> Assessed:
    """Assesses a window; `threshold` is that of the prediction's columns, chosen on validation data."""
    found, true = columns(prediction, pixel, threshold)[0], columns(truth, pixel, TRUE_THRESHOLD)[0]
    return Assessed(
        match(found, true, pixel * len(truth)), relative_l2(prediction, truth), standardised_r2(prediction, truth)
    )


def together(windows: Sequence[Assessed]) -> Score:
    """The score of several windows."""
    matches = [w.match for w in windows]
    recalled = sum(m.recalled for m in matches)
    return Score(
        len(windows),
        float(np.mean([w.relative_l2 for w in windows])),
        float(np.mean([w.r2 for w in windows])),
        recalled / max(1, sum(m.true for m in matches)),
        sum(m.correct for m in matches) / max(1, sum(m.found for m in matches)),
        float(np.sqrt(sum(m.square for m in matches) / max(1, recalled))),
    )


def score(
    predictions: Sequence[Float[np.ndarray, "x y"]] | Float[np.ndarray, "window x y"],
    truths: Sequence[Float[np.ndarray, "x y"]] | Float[np.ndarray, "window x y"],
    pixel: float,
    threshold: float,
) -> Score:
    """Scores windows; `threshold` is that of the predictions' columns, chosen on validation data."""
    return together([assess(p, t, pixel, threshold) for p, t in zip(predictions, truths, strict=True)])


def best_threshold(
    predictions: Sequence[Float[np.ndarray, "x y"]], truths: Sequence[Float[np.ndarray, "x y"]], pixel: float
) -> float:
    """The column threshold with the best F1 on validation data."""

    size = pixel * len(truths[0])
    found = [columns(p, pixel, _THRESHOLDS[0]) for p in predictions]
    true = [columns(t, pixel, TRUE_THRESHOLD)[0] for t in truths]

    def f1(threshold: float) -> float:
        matches = [match(f[h > threshold], t, size) for (f, h), t in zip(found, true, strict=True)]
        # The harmonic mean of recall and precision; a pair counts for both.
        good = sum(m.recalled + m.correct for m in matches)
        return good / max(1, sum(m.true + m.found for m in matches))

    return max(_THRESHOLDS, key=f1)
