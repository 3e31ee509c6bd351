"""Atmospheric rivers: long, narrow regions above a threshold of moisture, or of its transport."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from exafield.climate import components
from exafield.climate.grid import Grid
from exafield.climate.values import need
from exafield.suggestion import unknown

Mask = NDArray[np.bool_]

# Radius in the published areas [km]; a slip of the pen for 6371. Their distances use the right one.
_PUBLISHED_RADIUS = 6170.0


@dataclass(frozen=True)
class Rule:
    """What a river is.

    Args:
        quantity: "TMQ" [kg m-2] or "IVT", the integrated transport of vapour [kg m-1 s-1].
        tropics: width of the Gaussian in latitude that takes the quantity to 0 at the equator [degrees].
        threshold: lowest value after that, None if it is a percentile.
        percentile: of the snapshot, of the quantity before that.
        longest: least length [km]; that of the diagonal of the bounding box where published.
        widest: largest area / length [km] where published.
        corrected_widest: the same in the corrected variant; our choice, made on one snapshot of MERRA-2 (2017-02-28).
            What finds its two strongest rivers is the length along them; at 1000 km, label 1 alone loses the third.
        elongation: least length / width in the corrected variant, of Guan and Waliser (doi:10.1002/2015JD024257), as
            are the next two.
        poleward: least transport towards the pole, on average over the region [kg m-1 s-1].
        coherence: least share of the region that flows within 45 degrees of its mean direction.
    """

    quantity: Literal["TMQ", "IVT"] = "TMQ"
    tropics: float = 19.0
    threshold: float | None = 24.0
    percentile: float = 94.0
    longest: float = 1500.0
    widest: float = 1000.0
    corrected_widest: float = 1500.0
    elongation: float = 2.0
    poleward: float = 50.0
    coherence: float = 0.5


#: The rules of the published labels: the strict one, the relaxed one, and the two before them.
RULES: Mapping[str, Rule] = {
    "label 0": Rule(),
    "label 1": Rule(threshold=21.0),
    "transport 94": Rule("IVT", 10.0, None, 94.0),
    "transport 95": Rule("IVT", 10.0, None, 95.0),
}


def find(name: str) -> Rule:
    """A rule by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in RULES:
        raise ValueError(unknown("rule for rivers", name, RULES))
    return RULES[name]


def transport(values: Mapping[str, ArrayLike], grid: Grid) -> NDArray[np.float64]:
    """IVT where it is given, else its published stand-in: wind at 850 hPa times humidity near the ground.

    The stand-in has the unit of wind; only its percentiles mean something.
    """
    if "IVT" in values:
        return need(values, ["IVT"], grid, "finding rivers by transport")[0]
    u, v, q = need(values, ["U850", "V850", "QREFHT"], grid, "finding rivers by transport, as IVT is not given,")
    product: NDArray[np.float64] = np.hypot(u * q, v * q)
    return product


def percentile(field: NDArray[np.float64], weight: NDArray[np.float64], per_cent: float) -> float:
    """The value below which that share of the weight lies."""
    order = np.argsort(field, axis=None)
    below = np.cumsum(weight.ravel()[order])
    at = np.searchsorted(below, per_cent / 100.0 * below[-1])
    return float(field.ravel()[order[min(int(at), order.size - 1)]])


def exceed(values: Mapping[str, ArrayLike], grid: Grid, rule: Rule, *, by_area: bool) -> Mask:
    """Where the quantity, less its tropics, lies above the threshold.

    Args:
        by_area: a percentile counts square metres instead of cells, which crowd at the poles.
    """
    if rule.quantity == "TMQ":
        (field,) = need(values, ["TMQ"], grid, "finding rivers by moisture")
    else:
        field = transport(values, grid)
    if rule.threshold is not None:
        threshold = rule.threshold
    elif by_area:
        threshold = percentile(field, grid.areas, rule.percentile)
    else:
        threshold = float(np.percentile(field, rule.percentile))
    away = 1.0 - np.exp(-(grid.latitude**2) / (2.0 * rule.tropics**2))
    above: Mask = field * away[:, None] > threshold
    return above


def published(values: Mapping[str, ArrayLike], grid: Grid, rule: Rule, *, radius: float = _PUBLISHED_RADIUS) -> Mask:
    """Rivers as in the published labels.

    Known defects, kept: regions end at the seam; length is that of the bounding box, and for the width its extent in
    latitude alone, so that zonal and strong rivers count as too wide; areas are 6 % too small. The published flood
    fill also never steps to the left onto the first cell of the array; as it starts there, that changes nothing.

    Args:
        radius: of the Earth in the areas [km].
    """
    numbers, count = components.label(exceed(values, grid, rule, by_area=False), grid, corners=False, wrap=False)
    keep = np.zeros(count + 1, bool)
    latitude, longitude = grid.latitude, grid.longitude
    steps = [np.deg2rad(np.append(gaps, gaps[0])) for gaps in (np.diff(latitude), np.diff(longitude))]
    zone = radius**2 * np.cos(np.deg2rad(latitude)) * steps[0]
    areas = np.bincount(numbers.ravel(), np.outer(zone, steps[1]).ravel(), count + 1)
    for number, (rows, columns) in enumerate(ndimage.find_objects(numbers), start=1):
        south, north = latitude[rows.start], latitude[rows.stop - 1]
        west, east = longitude[columns.start], longitude[columns.stop - 1]
        extent = components.between(south, west, north, west) / 1e3
        diagonal = components.between(south, west, north, east) / 1e3
        if extent > 0 and east > west:
            keep[number] = diagonal > rule.longest and areas[number] / extent < rule.widest
    kept: Mask = keep[numbers]
    return kept


def corrected(values: Mapping[str, ArrayLike], grid: Grid, rule: Rule) -> Mask:
    """Rivers with length along the river, over the seam, and true areas.

    Where TMQ, U850 and V850 are given, a river must flow too: moist air at rest, which the limits on shape alone would
    let pass, is none. No published rule asks for that.
    """
    numbers, count = components.label(exceed(values, grid, rule, by_area=True), grid)
    if not count:
        return np.zeros(grid.shape, bool)
    regions = components.measure(numbers, count, grid)
    # A path has at most one step for each cell, and none is longer than a cell's diagonal at the equator.
    step = np.deg2rad(np.hypot(np.diff(grid.latitude).max(), np.diff(grid.longitude).max())) * 6371.0
    # Nor can anything be narrow that is wider than the limit over half the circumference.
    possible = (regions.cells * step > rule.longest) & (regions.area / 1e6 < rule.corrected_widest * 20_000.0)
    chosen = np.nonzero(possible)[0] + 1
    length = components.lengths(numbers, chosen, grid) / 1e3
    width = regions.area[chosen - 1] / 1e6 / np.maximum(length, 1e-9)
    good = (length > rule.longest) & (width < rule.corrected_widest) & (length > rule.elongation * width)
    keep = np.zeros(count + 1, bool)
    keep[chosen[good]] = True
    if {"TMQ", "U850", "V850"} <= set(values):
        keep &= _flows(numbers, count, values, grid, rule)
    kept: Mask = keep[numbers]
    return kept


def _flows(numbers: components.Numbers, count: int, values: Mapping[str, ArrayLike], grid: Grid, rule: Rule) -> Mask:
    """Which regions, 0 and up, carry vapour to the pole, and most of it one way.

    Vapour is taken to move with the wind at 850 hPa.
    """
    tmq, u, v = need(values, ["TMQ", "U850", "V850"], grid, "telling rivers from moist air at rest")
    row, column = np.nonzero(numbers)
    region = numbers[row, column]
    weight = grid.areas[row, column]
    east, north = (tmq[row, column] * wind[row, column] for wind in (u, v))
    area = np.bincount(region, weight, count + 1)
    area[0] = 1.0
    to_pole = np.bincount(region, weight * north * np.where(grid.latitude[row] < 0, -1.0, 1.0), count + 1) / area
    mean_east, mean_north = (np.bincount(region, weight * part, count + 1)[region] for part in (east, north))
    along = east * mean_east + north * mean_north > np.sqrt(0.5) * np.hypot(east, north) * np.hypot(
        mean_east, mean_north
    )
    flows: Mask = (to_pole > rule.poleward) & (np.bincount(region, weight * along, count + 1) / area > rule.coherence)
    return flows
