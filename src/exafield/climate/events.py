"""Events: the connected regions of one class in one snapshot, and what is measured of each."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exafield.climate import basins, clock, components
from exafield.climate.fields import BACKGROUND, CLASSES, CYCLONE, RIVER
from exafield.climate.grid import Grid
from exafield.climate.snapshot import Time
from exafield.climate.values import checked, need

# Columns that hold times.
_TIMES = ("time", "start", "end")


# Rows of tables are annotated with the unit and the meaning of each column.


@dataclass(frozen=True, slots=True)
class Event:
    """A connected region of one class at one time. What was not given to measure it by is NaN."""

    time: Annotated[Time, "", "time of the snapshot"]
    kind: Annotated[int, "1", "class: 1 tropical cyclone, 2 atmospheric river"]
    number: Annotated[int, "1", "of the region in its snapshot, from 1"]
    latitude: Annotated[float, "degrees_north", "lowest pressure of a cyclone where it is given, else the centroid"]
    longitude: Annotated[float, "degrees_east", "of the same point"]
    basin: Annotated[str, "", "basin of that point, as of IBTrACS"]
    area: Annotated[float, "m2", "on the sphere"]
    cells: Annotated[int, "1", "number of cells"]
    south: Annotated[float, "degrees_north", "southern bound"]
    north: Annotated[float, "degrees_north", "northern bound"]
    west: Annotated[float, "degrees_east", "western bound"]
    east: Annotated[float, "degrees_east", "eastern bound, above the western one also over the seam"]
    length: Annotated[float, "m", "length of a river, along it"]
    peak_wind: Annotated[float, "m s-1", "strongest wind, of the lowest layer where it is given, else of 850 hPa"]
    minimum_pressure: Annotated[float, "Pa", "lowest pressure at sea level"]
    precipitation: Annotated[float, "m3 s-1", "water that falls inside"]
    transport: Annotated[float, "kg s-1", "vapour carried through a cross-section of a river, averaged along it"]


@dataclass(frozen=True, eq=False)
class Found:
    """The events of one snapshot.

    Args:
        time: of the snapshot.
        grid: of the snapshot.
        events: of all classes; event i has the number i + 1.
        numbers: [latitude, longitude] of the event that each cell belongs to, 0 if none.
    """

    time: Time
    grid: Grid
    events: list[Event]
    numbers: NDArray[np.int32]


def vapour_transport(values: Mapping[str, ArrayLike], grid: Grid) -> NDArray[np.float64] | None:
    """IVT [kg m-1 s-1] where it is given, else what TMQ would carry at the wind of 850 hPa; None without those.

    The stand-in is of the right unit and size, but takes one wind for the whole column.
    """
    if "IVT" in values:
        return need(values, ["IVT"], grid, "transport of events")[0]
    if not {"TMQ", "U850", "V850"} <= set(values):
        return None
    tmq, u, v = need(values, ["TMQ", "U850", "V850"], grid, "transport of events")
    product: NDArray[np.float64] = tmq * np.hypot(u, v)
    return product


def _wind(values: Mapping[str, ArrayLike], grid: Grid) -> NDArray[np.float64] | None:
    for names in (["UBOT", "VBOT"], ["U850", "V850"]):
        if set(names) <= set(values):
            u, v = need(values, names, grid, "wind of events")
            speed: NDArray[np.float64] = np.hypot(u, v)
            return speed
    return None


def find(
    mask: ArrayLike,
    grid: Grid,
    values: Mapping[str, ArrayLike] | None = None,
    time: Time = None,
    *,
    smallest: float = 0.0,
) -> Found:
    """The events of a mask.

    Args:
        mask: [latitude, longitude], classes.
        grid: of the mask.
        values: fields to measure the events by: UBOT and VBOT or U850 and V850, PSL, PRECT, TMQ, IVT, as far as known.
        time: of the snapshot.
        smallest: regions of less area are left out [m2].

    Raises:
        ValueError: the mask holds other labels, or does not fit the grid, or a field is unfit.
    """
    labels = checked(mask, grid)
    given = {} if values is None else values
    numbers = np.zeros(grid.shape, np.int32)
    kinds: list[int] = []
    for kind in range(len(CLASSES)):
        if kind == BACKGROUND:
            continue
        regions, count = components.label(labels == kind, grid)
        if count and smallest > 0:
            large = components.measure(regions, count, grid).area >= smallest
            lookup = np.concatenate(([0], np.where(large, np.cumsum(large), 0)))
            regions, count = lookup.astype(np.int32)[regions], int(large.sum())
        numbers[regions > 0] = regions[regions > 0] + len(kinds)
        kinds += [kind] * count
    if not kinds:
        return Found(time, grid, [], numbers)
    return Found(time, grid, _measured(numbers, kinds, grid, given, time), numbers)


def _measured(
    numbers: NDArray[np.int32], kinds: list[int], grid: Grid, values: Mapping[str, ArrayLike], time: Time
) -> list[Event]:
    count = len(kinds)
    kind = np.array(kinds)
    shape = components.measure(numbers, count, grid)
    row, col = np.nonzero(numbers)
    owner = numbers[row, col] - 1
    area = grid.areas[row, col]
    unknown = np.full(count, np.nan)

    length = unknown.copy()
    rivers = np.nonzero(kind == RIVER)[0] + 1
    # A river of one cell is as long as that cell is wide.
    length[rivers - 1] = np.maximum(components.lengths(numbers, rivers, grid), np.sqrt(shape.area[rivers - 1]))

    latitude, longitude = shape.latitude.copy(), shape.longitude.copy()
    wind, pressure, rain, transport = unknown, unknown, unknown, unknown
    if (speed := _wind(values, grid)) is not None:
        wind = np.full(count, -np.inf)
        np.maximum.at(wind, owner, speed[row, col])
    if "PSL" in values:
        (psl,) = need(values, ["PSL"], grid, "pressure of events")
        # Sorted by event, then pressure: the first of each event is its lowest.
        order = np.lexsort((psl[row, col], owner))
        first = order[np.searchsorted(owner[order], np.arange(count))]
        pressure = psl[row, col][first]
        cyclone = kind == CYCLONE
        latitude[cyclone] = grid.latitude[row[first]][cyclone]
        longitude[cyclone] = grid.longitude[col[first]][cyclone]
    if "PRECT" in values:
        (rate,) = need(values, ["PRECT"], grid, "precipitation of events")
        rain = np.bincount(owner, rate[row, col] * area, count)
    if (ivt := vapour_transport(values, grid)) is not None:
        transport = np.bincount(owner, ivt[row, col] * area, count) / length
    where = basins.basin(latitude, longitude)
    return [
        Event(
            time=time, kind=kinds[i], number=i + 1, latitude=float(latitude[i]), longitude=float(longitude[i]),
            basin=basins.BASINS[where[i]], area=float(shape.area[i]), cells=int(shape.cells[i]),
            south=float(shape.south[i]), north=float(shape.north[i]), west=float(shape.west[i]),
            east=float(shape.east[i]), length=float(length[i]), peak_wind=float(wind[i]),
            minimum_pressure=float(pressure[i]), precipitation=float(rain[i]), transport=float(transport[i]),
        )
        for i in range(count)
    ]  # fmt: skip


def describe(row: type[Any]) -> dict[str, tuple[str, str]]:
    """Unit and meaning of each column of a kind of rows."""
    hints = get_type_hints(row, include_extras=True)
    return {one.name: hints[one.name].__metadata__ for one in fields(row)}


def columns(rows: Sequence[Any], kind: type[Any]) -> dict[str, NDArray[Any]]:
    """Rows as columns, for tables of other formats: times as they are, as objects; the rest as numbers or text.

    Args:
        rows: all of one kind.
        kind: of the rows; there may be none.
    """
    result = {}
    for name in describe(kind):
        content = [getattr(row, name) for row in rows]
        result[name] = np.array(content, dtype=object if name in _TIMES else None)
    return result


def write_csv(path: str | Path, rows: Iterable[Any], kind: type[Any]) -> int:
    """Writes rows as they come, so that they need not fit in memory. Returns how many.

    The head of a column gives the unit in brackets; what is not known is left empty.
    """
    count = 0
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        units = describe(kind)
        writer.writerow([f"{name} [{unit}]" if unit not in ("", "1") else name for name, (unit, _) in units.items()])
        for row in rows:
            writer.writerow([_cell(getattr(row, name), is_time=name in _TIMES) for name in units])
            count += 1
    return count


def _cell(value: Any, *, is_time: bool) -> str:
    if is_time:
        return clock.text(value)
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
