"""Tropical cyclones: centres by vorticity, pressure and a warm core, and the cells that belong to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from exafield.climate.grid import EARTH_RADIUS, Grid, distance
from exafield.climate.values import need
from exafield.suggestion import unknown

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Degrees of a great circle, as the distances of the detector are given [m].
_DEGREE = np.deg2rad(1.0) * EARTH_RADIUS
# A closed contour must be crossed in each of so many sectors round the centre; our choice, for the eight directions
# along which splines are searched in TECA.
_SECTORS = 8
# Wind at the rim of a storm, 34 knots [m/s], and how far it is looked for [degrees]; TECA, wind radii.
_RIM_WIND, _RIM_SEARCH = 17.5, 6.0
# What the published labels add to the radius of a storm, so that its box is not too small [degrees].
_MARGIN = 6.6
_PERCENTILE = 93.0


@dataclass(frozen=True)
class Thresholds:
    """When a vortex counts as a tropical cyclone (TECA, after the detector of GFDL).

    Args:
        vorticity: least at 850 hPa, cyclonic [1/s].
        window: the vorticity is the highest within a square as wide as this [degrees].
        core: farthest that the lowest pressure may lie from it, and the warmest point from that [degrees].
        pressure, pressure_radius: least rise [Pa] within a distance [degrees].
        warmth, warmth_radius: least fall [K] of the mean temperature of 200 and 500 hPa.
        thickness, thickness_radius: least fall [m] of that between 1000 and 200 hPa.
        wind: least near the centre [m/s]; the published tracks ask for it on two days.
    """

    vorticity: float = 1.6e-4
    window: float = 7.75
    core: float = 2.0
    pressure: float = 400.0
    pressure_radius: float = 5.0
    warmth: float = 0.8
    warmth_radius: float = 5.0
    thickness: float = 50.0
    thickness_radius: float = 4.0
    wind: float = 17.0


#: The sets behind the several versions of the published labels.
SETS: Mapping[str, Thresholds] = {
    "default": Thresholds(),
    "medium": Thresholds(vorticity=1.5e-4, warmth=0.7, pressure=350.0),
    "relaxed": Thresholds(vorticity=1.4e-4, warmth=0.6, pressure=300.0),
    "super-relaxed": Thresholds(vorticity=0.1e-4, warmth=0.1, pressure=100.0),
}


def find(name: str) -> Thresholds:
    """A set of thresholds by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in SETS:
        raise ValueError(unknown("set of thresholds", name, SETS))
    return SETS[name]


@dataclass(frozen=True)
class Centre:
    """A vortex with a closed low.

    Args:
        latitude, longitude: of the lowest pressure [degrees].
        pressure: there [Pa].
        vorticity: highest, cyclonic [1/s].
        wind: strongest in the window [m/s], of the lowest layer where it is given, else of 850 hPa.
        radius: where the wind falls below 34 knots, 0 if it is nowhere above [degrees].
        warm: whether its core is.
        thick: whether the layer between 1000 and 200 hPa is; also where it is not given.
    """

    latitude: float
    longitude: float
    pressure: float
    vorticity: float
    wind: float
    radius: float
    warm: bool
    thick: bool

    def is_cyclone(self, thresholds: Thresholds) -> bool:
        """Whether it is more than a low, as far as one moment can tell."""
        return self.warm and self.thick and self.wind >= thresholds.wind


def vorticity(u: Floats, v: Floats, grid: Grid) -> Floats:
    """Relative vorticity on the sphere [1/s], by central differences."""
    phi = np.deg2rad(grid.latitude)
    flux = u * np.cos(phi)[:, None]
    if grid.periodic:
        lam = np.deg2rad(np.concatenate(([grid.longitude[-1] - 360], grid.longitude, [grid.longitude[0] + 360])))
        dv = np.gradient(np.concatenate((v[:, -1:], v, v[:, :1]), axis=1), lam, axis=1)[:, 1:-1]
    else:
        dv = np.gradient(v, np.deg2rad(grid.longitude), axis=1)
    # At the poles themselves the formula divides by nothing; there it only has to be finite.
    scale = EARTH_RADIUS * np.maximum(np.cos(phi), 1e-3)[:, None]
    result: Floats = (dv - np.gradient(flux, phi, axis=0)) / scale
    return result


@dataclass(frozen=True)
class _Surroundings:
    """The cells of a box round a point, and where they lie as seen from it [degrees].

    Args:
        cells: index of the box in a field.
        away: distance [degrees].
        sector: of the direction, 0 to 7.
    """

    cells: tuple[NDArray[np.int64], NDArray[np.int64]]
    away: Floats
    sector: NDArray[np.int64]

    def lowest(self, field: Floats, within: float) -> tuple[int, int]:
        """The cell of the lowest value within a distance."""
        inside = np.where(self.away <= within, field[self.cells], np.inf)
        row, column = np.unravel_index(np.argmin(inside), inside.shape)
        return int(self.cells[0][row, 0]), int(self.cells[1][0, column])

    def rises(self, field: Floats, from_value: float, by: float, within: float) -> bool:
        """Whether the field rises in every direction. A direction that leaves the grid does not count as one."""
        inside = (self.away <= within) & (self.away > 0)
        high = np.full(_SECTORS, -np.inf)
        np.maximum.at(high, self.sector[inside], field[self.cells][inside])
        return bool((high >= from_value + by).all())


def _around(latitude: float, longitude: float, half: float, grid: Grid, *, stretch: bool = True) -> _Surroundings:
    """What lies within `half` degrees.

    Args:
        stretch: the box has more degrees of longitude away from the equator, to be as wide there.
    """
    rows = np.nonzero(np.abs(grid.latitude - latitude) <= half)[0]
    east = grid.longitude - longitude
    if grid.periodic:
        east = (east + 180.0) % 360.0 - 180.0
    wide = half / max(np.cos(np.deg2rad(abs(latitude))), 0.1) if stretch else half
    columns = np.nonzero(np.abs(east) <= wide)[0]
    columns = columns[np.argsort(east[columns], kind="stable")]
    cells = (rows[:, None] + 0 * columns, columns + 0 * rows[:, None])
    away = distance(latitude, longitude, grid.latitude[rows][:, None], grid.longitude[columns]) / _DEGREE
    side = east[columns] * np.cos(np.deg2rad(latitude))
    angle = np.arctan2(grid.latitude[rows][:, None] - latitude, side)
    sector = np.floor((angle / (2 * np.pi) + 0.5 / _SECTORS) * _SECTORS).astype(np.int64) % _SECTORS
    return _Surroundings(cells, away, sector)


def detect(values: Mapping[str, ArrayLike], grid: Grid, thresholds: str | Thresholds = "default") -> list[Centre]:
    """All vortices with a closed low; `Centre.is_cyclone` tells which are tropical cyclones.

    Where TECA walks along splines, this takes the cells themselves, and distances along great circles.

    Args:
        values: U850, V850, PSL, T200 and T500; Z1000 and Z200, UBOT and VBOT where there are.
        grid: of the values.
        thresholds: one of `SETS` by name, or others.
    """
    limits = find(thresholds) if isinstance(thresholds, str) else thresholds
    purpose = "finding cyclones"
    u, v, pressure, t200, t500 = need(values, ["U850", "V850", "PSL", "T200", "T500"], grid, purpose)
    if "UBOT" in values and "VBOT" in values:
        u10, v10 = need(values, ["UBOT", "VBOT"], grid, purpose)
        wind = np.hypot(u10, v10)
    else:
        wind = np.hypot(u, v)
    thick = None
    if "Z1000" in values and "Z200" in values:
        low, high = need(values, ["Z1000", "Z200"], grid, purpose)
        thick = low - high  # negative, so that the thickest point is the lowest
    cold = -(t200 + t500) / 2
    cyclonic = vorticity(u, v, grid) * np.where(grid.latitude < 0, -1.0, 1.0)[:, None]

    steps = np.diff(grid.latitude).mean(), np.diff(grid.longitude).mean()
    sizes = [2 * max(int((limits.window / step - 1) / 2), 1) + 1 for step in steps]
    around = ["nearest", "wrap" if grid.periodic else "nearest"]
    highest = ndimage.maximum_filter(cyclonic, sizes, mode=around)
    peak = (cyclonic == highest) & (cyclonic >= limits.vorticity)
    reach = max(limits.pressure_radius, limits.warmth_radius, limits.thickness_radius, _RIM_SEARCH)
    found: dict[tuple[int, int], Centre] = {}
    for row, column in zip(*np.nonzero(peak), strict=True):
        near = _around(grid.latitude[row], grid.longitude[column], limits.core + 1, grid)
        centre = near.lowest(pressure, limits.core)
        if centre in found:
            continue
        latitude, longitude = float(grid.latitude[centre[0]]), float(grid.longitude[centre[1]])
        box = _around(latitude, longitude, reach, grid)
        if not box.rises(pressure, pressure[centre], limits.pressure, limits.pressure_radius):
            continue

        def peaks(field: Floats, fall: float, within: float, box: _Surroundings = box) -> bool:
            at = box.lowest(field, limits.core)
            there = _around(float(grid.latitude[at[0]]), float(grid.longitude[at[1]]), within, grid)
            return there.rises(field, field[at], fall, within)

        found[centre] = Centre(
            latitude=latitude,
            longitude=longitude,
            pressure=float(pressure[centre]),
            vorticity=float(cyclonic[row, column]),
            wind=float(wind[box.cells][box.away <= limits.window / 2].max()),
            radius=_rim(wind[box.cells], box.away, limits.core, float(max(steps))),
            warm=peaks(cold, limits.warmth, limits.warmth_radius),
            thick=thick is None or peaks(thick, limits.thickness, limits.thickness_radius),
        )
    return list(found.values())


def _rim(wind: Floats, away: Floats, core: float, step: float) -> float:
    """Radius where the mean wind of rings round the centre falls below that of the rim, seen from its peak outwards."""
    inside = away <= _RIM_SEARCH
    ring = (away[inside] / step).astype(np.int64)
    count = np.bincount(ring)
    profile = np.bincount(ring, wind[inside]) / np.maximum(count, 1)
    middle = (np.arange(profile.size) + 0.5) * step
    top = int(np.argmax(profile))
    if middle[top] > core + step or profile[top] <= _RIM_WIND:
        return 0.0
    beyond = np.nonzero(profile[top:] < _RIM_WIND)[0]
    if not beyond.size:
        return _RIM_SEARCH
    outer = top + int(beyond[0])
    fall = profile[outer - 1] - profile[outer]
    return float(middle[outer - 1] + (profile[outer - 1] - _RIM_WIND) / fall * step)


def _largest(mask: Mask) -> Mask:
    """The largest 8-connected region; all of them where several are as large."""
    numbers, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return mask
    cells = np.bincount(numbers.ravel(), minlength=count + 1)
    cells[0] = 0
    largest: Mask = (cells == cells.max())[numbers]
    return largest


def published(values: Mapping[str, ArrayLike], grid: Grid, centres: Sequence[Centre]) -> Mask:
    """Cells of cyclones as in the published labels.

    In a box round each centre, the largest region above the 93rd percentile of TMQ, U850, V850 and PRECT each. Known
    defects, kept: winds have their sign, so that only the side that blows to the east or north is marked; of all storms
    but the last, only what TMQ marks is drawn; a box that would cross the seam ends there; it has as many degrees of
    longitude as of latitude.
    """
    fields = need(values, ["TMQ", "U850", "V850", "PRECT"], grid, "drawing cyclones as published")
    marks = [np.zeros(grid.shape, bool) for _ in fields]
    mask = np.zeros(grid.shape, bool)
    for centre in centres:
        half = centre.radius + _MARGIN
        bounds = [
            int(np.abs(axis - place).argmin())
            for axis, middle in ((grid.latitude, centre.latitude), (grid.longitude, centre.longitude))
            for place in (middle - half, middle + half)
        ]
        box = np.s_[bounds[0] : bounds[1], bounds[2] : bounds[3]]
        if np.unique(fields[0][box]).size < 2:
            continue
        for field, mark in zip(fields, marks, strict=True):
            mark[box] |= _largest(field[box] > np.percentile(field[box], _PERCENTILE))
        mask = marks[0].copy()
        mask[box] |= _largest(np.logical_or.reduce(marks)[box])
    return mask


def corrected(
    values: Mapping[str, ArrayLike], grid: Grid, centres: Sequence[Centre], thresholds: Thresholds | None = None
) -> Mask:
    """Cells of cyclones by the same percentiles, of TMQ, wind speed at 850 hPa and PRECT.

    Every storm is drawn, over the seam, in a box as wide as it is high; of the regions above a percentile those count
    that come as near to the centre as its core, so that a neighbouring band of rain is none of it.
    """
    core = (thresholds or Thresholds()).core
    tmq, u, v, rain = need(values, ["TMQ", "U850", "V850", "PRECT"], grid, "drawing cyclones")
    fields = (tmq, np.hypot(u, v), rain)
    step = float(np.diff(grid.latitude).max())
    mask = np.zeros(grid.shape, bool)
    for centre in centres:
        box = _around(centre.latitude, centre.longitude, centre.radius + _MARGIN, grid)
        near = box.away <= core + step
        union = np.zeros(near.shape, bool)
        for field in fields:
            values_here = field[box.cells]
            union |= _largest_at(values_here > np.percentile(values_here, _PERCENTILE), near)
        mask[box.cells] |= _largest_at(union, near)
    return mask


def _largest_at(mask: Mask, near: Mask) -> Mask:
    """The largest 8-connected region of those that come near; none where none does."""
    numbers, count = ndimage.label(mask, np.ones((3, 3)))
    cells = np.bincount(numbers.ravel(), minlength=count + 1)
    close = np.zeros(count + 1, bool)
    close[numbers[near]] = True
    close[0] = False
    best = np.where(close, cells, 0)
    kept: Mask = (close & (best == best.max()))[numbers]
    return kept
