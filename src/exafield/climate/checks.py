"""Looks at what was read: units, missing values, plausible ranges, labels. Each message says what and what to do."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from exafield.climate.fields import CHANNELS, CLASSES
from exafield.climate.snapshot import Axes, SnapshotError
from exafield.climate.units import conversion, likely
from exafield.suggestion import counted

# Share of the plausible range by which a value may exceed it, our choice: packing into 16 bits rounds.
_SLACK = 0.01
# Beyond this no quantity here can be; it is how undeclared fill values look [any unit].
_FILL = 1e15


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


def plausible(channel: str, unit: str | None, values: NDArray[np.float32]) -> None:
    """Raises where values can be none of that channel.

    Args:
        unit: in which they were told to be.
    Raises:
        SnapshotError: says the range, and in which unit it would be plausible.
    """
    if channel not in CHANNELS:
        return
    known = CHANNELS[channel]
    low, high = known.typical
    lowest, highest = float(values.min()), float(values.max())
    slack = _SLACK * (high - low)
    if low - slack <= lowest and highest <= high + slack:
        return
    told = "its file tells no unit" if unit is None else f"its unit is told as {unit!r}"
    text = f"{channel} lies between {lowest:g} and {highest:g} {known.unit}, where only {low:g} to {high:g} can be"
    extreme = highest if highest > high + slack else lowest
    alike = int((values == np.float32(extreme)).sum())
    if abs(extreme) > _FILL or (alike > 1 and extreme in (-999.0, -9999.0, -99.0, -32767.0, -32768.0)):
        raise SnapshotError(
            f"{text}; {alike} values are {extreme:g}, which seems to stand for a missing value: declare it by the "
            "attribute _FillValue"
        )
    if unit is None or conversion(known, unit).factor == 1.0:
        guess = likely(known, lowest, highest)
        if guess is not None:
            raise SnapshotError(f"{text}; {told}, and it seems to be in {guess}: say units={{{channel!r}: {guess!r}}}")
    raise SnapshotError(f"{text}; {told}: check the variable and its unit, or read with plausible=False if it is right")


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
