"""Looks at what was read: units, missing values, plausible ranges, labels. Each message says what and what to do."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from exafield.climate.fields import CHANNELS, CLASSES, Channel
from exafield.climate.grid import EARTH_RADIUS, Grid
from exafield.climate.snapshot import Axes, SnapshotError
from exafield.climate.units import conversion, likely
from exafield.suggestion import counted

# Share of the plausible range by which a value may exceed it, our choice: packing into 16 bits rounds.
_SLACK = 0.01
# Beyond this no quantity here can be; it is how undeclared fill values look [any unit].
_FILL = 1e15
# Share of the globe from which on a mean is compared with what is usual, our choice: less may be a desert or a pole.
_GLOBAL = 0.5
# A mean of PRECT that no region of ten million square kilometres has, such as Europe [m/s; m2], our choice: 430 mm a
# day, which in smaller ones a storm may bring.
_WETTEST, _WIDE = 5e-6, 1e13


def in_channel_units(channel: str, unit: str | None, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values in the unit of the channel; unchanged where neither tells one.

    Raises:
        ValueError: there is no way from the one unit to the other.
    """
    if unit is None or channel not in CHANNELS:
        return values
    way = conversion(CHANNELS[channel], unit)
    if way.factor == 1.0 and way.offset == 0.0:
        return values
    return (values.astype(np.float64) * way.factor + way.offset).astype(np.float32)


def missing(values: NDArray[np.float32], axes: Axes) -> str | None:
    """How many values are NaN, infinite or declared as missing, and where the first is; None if none is.

    Args:
        values: [latitude, longitude], in the order of the grid.
    """
    bad = ~np.isfinite(values)
    count = int(bad.sum())
    if not count:
        return None
    row, column = (int(x) for x in np.argwhere(bad)[0])
    place = f"{axes.grid.latitude[row]:g} N, {axes.grid.longitude[column]:g} E"
    return f"{count} of {bad.size} values are missing or not finite, the first at {place}"


def filled(values: NDArray[np.float32], periodic: bool) -> NDArray[np.float32]:
    """Missing values replaced by the nearest ones there are, counted in pixels, round the globe where it closes."""
    columns = values.shape[1]
    half = columns // 2 if periodic else 0
    wide = np.pad(values, ((0, 0), (half, half)), mode="wrap")
    rows, places = ndimage.distance_transform_edt(~np.isfinite(wide), return_distances=False, return_indices=True)
    result: NDArray[np.float32] = wide[rows, places][:, half : half + columns]
    return result


def plausible(channel: str, unit: str | None, values: NDArray[np.float32], grid: Grid) -> None:
    """Raises where values can be none of that channel: single ones, or all of them on average over a large area.

    Args:
        unit: in which they were told to be.
        values: [latitude, longitude]; those that are missing are not judged.
        grid: of the values.
    Raises:
        SnapshotError: says the range, and in which unit it would be plausible.
    """
    if channel not in CHANNELS:
        return
    known = CHANNELS[channel]
    low, high = known.typical
    # Without a copy where nothing is missing, as nearly always.
    there = np.isfinite(values)
    kept = values if there.all() else values[there]
    if not kept.size:
        return
    lowest, highest = float(kept.min()), float(kept.max())
    slack = _SLACK * (high - low)
    told = "its file tells no unit" if unit is None else f"its unit is told as {unit!r}"
    if low - slack <= lowest and highest <= high + slack:
        _usual(known, unit, told, values, there, grid)
        return
    text = f"{channel} lies between {lowest:g} and {highest:g} {known.unit}, where only {low:g} to {high:g} can be"
    extreme = highest if highest > high + slack else lowest
    alike = int((kept == np.float32(extreme)).sum())
    if abs(extreme) > _FILL or (alike > 1 and extreme in (-999.0, -9999.0, -99.0, -32767.0, -32768.0)):
        raise SnapshotError(
            f"{text}; {alike} values are {extreme:g}, which seems to stand for a missing value: declare it by the "
            "attribute _FillValue"
        )
    raise SnapshotError(f"{text}; {told}{_advice(known, unit, lowest, highest)}")


def _advice(known: Channel, unit: str | None, lowest: float, highest: float, mean: float | None = None) -> str:
    """What to do about values that cannot be."""
    if unit is None or conversion(known, unit).factor == 1.0:
        guess = likely(known, lowest, highest, mean)
        if guess is not None:
            return f", and it seems to be in {guess}: say units={{{known.name!r}: {guess!r}}}"
    return ": check the variable and its unit, or read with plausible=False if it is right"


def _usual(
    known: Channel, unit: str | None, told: str, values: NDArray[np.float32], there: NDArray[np.bool_], grid: Grid
) -> None:
    """Raises where the mean magnitude over a large area is none that an atmosphere has: a factor is wrong then.

    What is zero everywhere is zero in any unit, such as the rain of a model's first step.
    """
    if known.usual is None:
        return
    complete = bool(there.all())
    mean, covered = grid.mean(np.abs(values if complete else np.where(there, values, 0))), 1.0
    if not complete:
        covered = grid.mean(there.astype(np.float32))
        mean /= covered
    area = covered * float(grid.areas.sum())
    if area >= _GLOBAL * 4 * np.pi * EARTH_RADIUS**2:
        (low, high), where = known.usual, "the globe"
    elif known.name == "PRECT" and area >= _WIDE:
        low, high, where = 0.0, _WETTEST, f"{area / 1e12:.3g} million km2"
    else:
        return
    if mean == 0.0 or low <= mean <= high:
        return
    advice = _advice(known, unit, float(values[there].min()), float(values[there].max()), mean)
    raise SnapshotError(
        f"{known.name} is {mean:.3g} {known.unit} in magnitude on average over {where}, where only {low:g} to {high:g} "
        f"can be; {told}{advice}"
    )


def labels_of(values: NDArray[Any], axes: Axes) -> NDArray[np.uint8]:
    """Labels as whole numbers.

    Args:
        values: [latitude, longitude], in the order of the grid, whatever the type.
    Raises:
        SnapshotError: a value is none of the classes; says which, how many and where.
    """
    bad = ~np.isin(values, np.arange(len(CLASSES)))
    if bad.any():
        row, column = (int(x) for x in np.argwhere(bad)[0])
        meanings = ", ".join(f"{number} {name}" for number, name in enumerate(CLASSES))
        raise SnapshotError(
            f"{counted(int(bad.sum()), 'label is', 'labels are')} none of {meanings}: "
            f"the first is {values[row, column]} at {axes.grid.latitude[row]:g} N, {axes.grid.longitude[column]:g} E"
        )
    return values.astype(np.uint8)
