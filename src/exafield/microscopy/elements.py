"""Atom columns by the elements they are made of: are light ones found as well as heavy ones?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from exafield.microscopy.analysis import MERGE, TRUE_THRESHOLD, columns, inside, pairs
from exafield.microscopy.scans import Scan
from exafield.microscopy.window import Place

# Highest atomic number of each group: to F, Ca, Y, Ce, and what is heavier; our choice, about equal steps in contrast.
_GROUPS = {"Z 1-9": 9, "Z 10-20": 20, "Z 21-39": 39, "Z 40-58": 58, "Z 59-": 999}


@dataclass(frozen=True, slots=True)
class Group:
    """Columns whose heaviest element is of one group.

    Args:
        columns: true ones in the windows' interior.
        recall: share of them that were found.
        rms: position error of these [A].
    """

    columns: int
    recall: float
    rms: float


def heaviest(scan: Scan, place: Place, points: Float[np.ndarray, "n 2"], size: float) -> Int[np.ndarray, "n"]:
    """The highest atomic number within 0.4 A of each point of a window, 0 where there is no atom.

    Args:
        points: in the window as it was given out, turned or not [A].
        size: of the window [A].
    """
    turn, at = place.turn, points.copy()
    # Undone in the reverse order: see `turned`.
    if turn & 4:
        at = at[:, ::-1].copy()
    if turn & 2:
        at[:, 1] = size - at[:, 1]
    if turn & 1:
        at[:, 0] = size - at[:, 0]
    edges = np.array(scan.edges)
    difference = (at + place.origin)[:, None] - scan.places[None]
    difference -= np.round(difference / edges) * edges
    near = np.linalg.norm(difference, axis=-1) < MERGE
    return np.asarray(np.where(near, scan.numbers[None], 0).max(axis=1, initial=0))


def by_element(
    predictions: Float[np.ndarray, "window x y"],
    truths: Float[np.ndarray, "window x y"],
    scans: Sequence[Scan],
    places: Sequence[Place],
    pixel: float,
    thresholds: Float[np.ndarray, "window"],
) -> dict[str, Group]:
    """Recall and position error by group of elements, over windows.

    Args:
        scans, places: which each window shows, and where it was cut.
        pixel: size [A].
        thresholds: of the predictions' columns, for each window.
    """
    counts = {name: [0, 0, 0.0] for name in _GROUPS}
    limits = np.array(list(_GROUPS.values()))
    for prediction, truth, scan, place, threshold in zip(predictions, truths, scans, places, thresholds, strict=True):
        found, true = columns(prediction, pixel, threshold)[0], columns(truth, pixel, TRUE_THRESHOLD)[0]
        size = pixel * len(truth)
        element = heaviest(scan, place, true, size)
        counted = inside(true, size) & (element > 0)
        group = np.searchsorted(limits, element)
        _, cols, distance = pairs(found, true)
        squares = np.full(len(true), np.nan)
        squares[cols] = distance**2
        for number, name in enumerate(_GROUPS):
            chosen = squares[counted & (group == number)]
            hit = chosen[~np.isnan(chosen)]
            counts[name][0] += len(chosen)
            counts[name][1] += len(hit)
            counts[name][2] += float(hit.sum())
    return {
        name: Group(int(there), found / there, float(np.sqrt(square / max(found, 1))))
        for name, (there, found, square) in counts.items()
        if there
    }
