"""A snapshot: the channels of one time on a grid, with labels if there are some, and how its source has them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.climate.advice import Advised
from exafield.climate.grid import Grid

#: A numpy.datetime64, or a date of cftime where the calendar of the model is none that numpy knows (CAM: no leap days).
Time = Any

# Steps of a coordinate that differ by less are the same [degrees], our choice: float32 rounds 360 to 3e-5.
TOLERANCE = 1e-4


class SnapshotError(Advised, RuntimeError):
    """Climate data that cannot be read or is not what it should be; says which file, what and what to do."""


@dataclass(frozen=True, eq=False)
class Axes:
    """Latitude and longitude as a source has them, and the way from there to a :class:`Grid` and back.

    Args:
        latitude: [n] degrees north, rising or falling.
        longitude: [m] degrees east, rising or falling; may jump by a turn once, and repeat its first column at the end.
        names: of the two axes in the source.
    Raises:
        ValueError: an axis goes neither up nor down, or the two are exchanged.
    """

    latitude: NDArray[Any]
    longitude: NDArray[Any]
    names: tuple[str, str] = ("lat", "lon")
    grid: Grid = field(init=False)
    #: Whether the last column of the source is the first again; the grid has it once.
    repeats: bool = field(init=False)
    _rows: NDArray[np.intp] | slice = field(init=False)
    _columns: NDArray[np.intp] | slice = field(init=False)
    _back: tuple[NDArray[np.intp], NDArray[np.intp]] = field(init=False)

    def __post_init__(self) -> None:
        north, east = (np.asarray(axis, dtype=np.float64) for axis in (self.latitude, self.longitude))
        if north.size and east.size and np.abs(north).max() > 90 + TOLERANCE and np.abs(east).max() <= 90 + TOLERANCE:
            raise ValueError(
                f"latitude goes from {north.min():g} to {north.max():g} and longitude from {east.min():g} to "
                f"{east.max():g}: the two are exchanged"
            )
        rows = np.arange(north.size)
        if north.size > 1 and north[0] > north[-1]:
            rows = rows[::-1]
        columns = np.arange(east.size)
        if east.size > 1 and np.median(np.diff(east)) < 0:
            columns = columns[::-1]
        unrolled = east[columns]
        # One fall by almost a turn is where the source changes from 359 to 0, or from 180 to -180.
        falls = np.flatnonzero(np.diff(unrolled) < -180.0)
        if falls.size == 1:
            unrolled = np.where(np.arange(east.size) > falls[0], unrolled + 360.0, unrolled)
        repeated = east.size > 2 and bool(abs(unrolled[-1] - unrolled[0] - 360.0) < TOLERANCE)
        if repeated:
            columns, unrolled = columns[:-1], unrolled[:-1]
        back_columns = np.empty(east.size, dtype=np.intp)
        back_columns[columns] = np.arange(columns.size)
        if repeated:
            back_columns[east.size - 1 if columns[0] == 0 else 0] = 0
        for name, value in {
            "grid": Grid(north[rows], unrolled),
            "repeats": repeated,
            "_rows": _plainly(rows),
            "_columns": _plainly(columns),
            "_back": (np.argsort(rows), back_columns),
        }.items():
            object.__setattr__(self, name, value)

    def arrange(self, values: NDArray[Any]) -> NDArray[Any]:
        """From the order of the source to that of the grid, [..., latitude, longitude]; a view if it is the same."""
        return values[..., self._rows, :][..., self._columns]

    def restore(self, values: NDArray[Any]) -> NDArray[Any]:
        """From the order of the grid to that of the source; a repeated column is repeated again."""
        return np.ascontiguousarray(values[..., self._back[0], :][..., self._back[1]])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Axes):
            return NotImplemented
        mine, theirs = (self.latitude, self.longitude), (other.latitude, other.longitude)
        return all(
            a.shape == b.shape and bool(np.allclose(a, b, rtol=0, atol=TOLERANCE))
            for a, b in zip(mine, theirs, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        north, east = self.latitude, self.longitude
        return f"{north.size} x {east.size}, {north[0]:g} to {north[-1]:g} N, {east[0]:g} to {east[-1]:g} E"


def _plainly(order: NDArray[np.intp]) -> NDArray[np.intp] | slice:
    """An order that changes nothing as a slice: taken by it, values are not copied."""
    return slice(0, order.size) if np.array_equal(order, np.arange(order.size)) else order


def whole_globe(latitudes: int, longitudes: int) -> Axes:
    """The grid of files that tell none: latitudes from pole to pole, both included, longitudes from Greenwich.

    This is the finite-volume grid of CAM; ClimateNet files of the same runs tell it for 768 x 1152.
    """
    return Axes(np.linspace(-90.0, 90.0, latitudes), np.arange(longitudes) * (360.0 / longitudes))


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The channels of one time.

    Args:
        values: [channel, latitude, longitude], float32, in the units of :data:`exafield.climate.fields.CHANNELS`;
            south to north and west to east.
        channels: their names.
        axes: of the source.
        time: None where the source tells none.
        labels: [latitude, longitude], uint8, numbers of :data:`exafield.climate.fields.CLASSES`; None if unknown.
        source: file and place in it, for messages.
        filled: how many missing values were filled in.
    """

    values: NDArray[np.float32]
    channels: tuple[str, ...]
    axes: Axes
    time: Time = None
    labels: NDArray[np.uint8] | None = None
    source: str = "memory"
    filled: int = 0

    @property
    def grid(self) -> Grid:
        """What the values lie on."""
        return self.axes.grid

    def __getitem__(self, channel: str) -> NDArray[np.float32]:
        """One channel, [latitude, longitude].

        Raises:
            KeyError: it is not among the channels; names those that are.
        """
        if channel not in self.channels:
            raise KeyError(f"{self.source} has no channel {channel!r}, but {', '.join(self.channels)}")
        values: NDArray[np.float32] = self.values[self.channels.index(channel)]
        return values


def on_grid(
    values: NDArray[np.float32],
    channels: Sequence[str],
    grid: Grid,
    time: Time = None,
    labels: NDArray[np.uint8] | None = None,
    source: str = "memory",
) -> Snapshot:
    """A snapshot that comes from no file: its axes are those of its grid."""
    axes = Axes(grid.latitude, grid.longitude)
    return Snapshot(values, tuple(channels), axes, time, labels, source)
