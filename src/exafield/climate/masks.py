"""Masks in the order of their times, and the fields that belong to each, of whatever files they lie in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from exafield.climate.grid import Grid
from exafield.climate.layouts import calendar_of, open_reader, time_text
from exafield.climate.reading import Snapshots, find_files, open_snapshots
from exafield.climate.snapshot import TOLERANCE, SnapshotError, Time
from exafield.suggestion import counted

OnError = Literal["stop", "skip"]
#: What events are measured by, in the order of `fields.CHANNELS`; IVT is none of those, but what reanalyses have.
MEASURES = ("TMQ", "U850", "V850", "UBOT", "VBOT", "PSL", "PRECT", "IVT")


class Masks:
    """Masks of rising times, read one at a time.

    Args:
        paths: as for `open_snapshots`.
        version: of the labels, where a file has several.
        variable: that holds the masks; None: LABELS, labels or label.
        on_error: whether a file that cannot be opened is fatal.
    Raises:
        SnapshotError: there is no mask, or not each has a time of its own.
    """

    def __init__(
        self, paths: Sequence[str], *, version: int = 0, variable: str | None = None, on_error: OnError = "stop"
    ) -> None:
        names = {"labels": variable} if variable else {}
        self._snapshots = open_snapshots(
            paths, channels=(), labels=version, names=names, on_error="skip" if on_error == "skip" else "raise"
        )
        times = self._snapshots.times
        for index, time in enumerate(times):
            if time is None:
                raise SnapshotError(
                    f"{self._snapshots.locate(index)}: events are followed from one time to the next: give the masks "
                    "an axis of time, or the file a name like data-2003-10-24-01-1.h5"
                )
        calendars = {calendar_of(time) for time in times}
        if len(calendars) > 1:
            raise SnapshotError(
                f"the masks are of different calendars, {', '.join(sorted(calendars))}: take them apart"
            )
        self._order = sorted(range(len(times)), key=lambda index: times[index])
        for one, other in pairwise(self._order):
            if times[one] == times[other]:
                raise SnapshotError(
                    f"there are two masks of {time_text(times[one])}: {self._snapshots.locate(one)}, and "
                    f"{self._snapshots.locate(other)}"
                )
        self.times: list[Time] = [times[index] for index in self._order]

    @property
    def grid(self) -> Grid:
        """Of all masks."""
        return self._snapshots.axes.grid

    @property
    def attributes(self) -> Mapping[str, str]:
        """Of the first file."""
        return self._snapshots.attributes

    @property
    def skipped(self) -> list[str]:
        """Files that could not be opened, and why."""
        return [str(one) for one in self._snapshots.skipped]

    def locate(self, index: int) -> str:
        """File and time of a mask."""
        return self._snapshots.locate(self._order[index])

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """[latitude, longitude].

        Raises:
            SnapshotError: it cannot be read, or its file holds no masks.
        """
        labels = self._snapshots[self._order[index]].labels
        if labels is None:
            raise SnapshotError(f"{self.locate(index)}: there is no variable LABELS: say which holds the masks")
        return labels

    def close(self) -> None:
        """Closes all files."""
        self._snapshots.close()


def moment(time: Time) -> str:
    """Date and minute: files that count days as floating-point numbers miss the second."""
    rounded = time + (np.timedelta64(30, "s") if isinstance(time, np.datetime64) else timedelta(seconds=30))
    return time_text(rounded)[:16]


def turn(theirs: Grid, mine: Grid) -> int | None:
    """Which column of theirs is my first, where longitudes begin elsewhere; None if that is not all that differs."""
    if theirs.shape != mine.shape or np.abs(theirs.latitude - mine.latitude).max() > TOLERANCE:
        return None
    # Distances round the globe from my first meridian to all of theirs.
    off = np.abs((theirs.longitude - mine.longitude[0] + 180) % 360 - 180)
    first = int(off.argmin())
    away = np.abs((np.roll(theirs.longitude, -first) - mine.longitude + 180) % 360 - 180)
    return first if away.max() <= TOLERANCE else None


@dataclass(frozen=True)
class How:
    """How fields are read; see `open_snapshots`.

    Args:
        names: channel to variable.
        units: channel to its unit.
        fill: what stands in for missing values.
        plausible: whether impossible values are refused.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    fill: Literal["nearest"] | None = None
    plausible: bool = True


def present(path: str, channels: Sequence[str], how: How) -> tuple[tuple[str, ...], dict[str, str]]:
    """Those of the channels that a file has, and of each other one why it has not.

    Raises:
        SnapshotError: it cannot be read.
    """
    try:
        reader = open_reader(path, how.names)
    except (SnapshotError, ImportError):
        raise
    except Exception as error:  # readers of damaged files raise whatever they stumble over
        raise SnapshotError(f"{path}: {error}") from error
    there, absent = [], {}
    try:
        for channel in channels:
            try:
                reader.unit(channel)
                there.append(channel)
            except LookupError as error:
                absent[channel] = str(error.args[0] if error.args else error)
    finally:
        reader.close()
    return tuple(there), absent


def nowhere(reason: str) -> bool:
    """Whether a channel is absent since no variable is like it, and not since several are, or it has no level."""
    return reason.startswith(("no variable is", "no channel"))


class Fields:
    """Fields by time. Files may have all channels, or each its own, as archives of models and reanalyses do.

    Args:
        paths: as for `open_snapshots`.
        grid: that the fields must be on; their longitudes may begin elsewhere.
        how: they are read.
        on_error: whether a file that cannot be opened is fatal.
        channels: that are of use.
    Raises:
        SnapshotError: none of the channels is there, one is there twice, or the grid is another.
    """

    def __init__(
        self, paths: Sequence[str], grid: Grid, how: How, on_error: OnError = "stop", channels: Sequence[str] = MEASURES
    ) -> None:
        #: Files that could not be opened, and why.
        self.skipped: list[str] = []
        self._grid = grid
        self._groups: list[tuple[Snapshots, dict[str, int]]] = []
        alike: dict[tuple[str, ...], list[str]] = {}
        reasons: dict[str, str] = {}
        for path in find_files(paths):
            try:
                there, absent = present(path, channels, how)
            except SnapshotError as error:
                if on_error == "stop":
                    raise
                self.skipped.append(str(error))
                continue
            alike.setdefault(there, []).append(path)
            reasons = absent | reasons
        found = {channel for group in alike for channel in group}
        if not found:
            raise SnapshotError(
                f"{', '.join(map(str, paths))}: none of {', '.join(channels)} is there: {_first(reasons)}"
            )
        #: Those that there are, and of each other one why not.
        self.channels = tuple(channel for channel in channels if channel in found)
        self.absent = {channel: reasons[channel] for channel in channels if channel not in found}
        try:
            for group, files in alike.items():
                if group:
                    self._groups.append(_indexed(files, group, grid, how, on_error, self.skipped))
        except BaseException:
            self.close()
            raise

    def check(self, times: Sequence[Time]) -> None:
        """Looks whether there is each channel at each of the times.

        Raises:
            SnapshotError: one is missing; names the first and says how many there are.
        """
        for channel in self.channels:
            there = {key for snapshots, index in self._groups if channel in snapshots.channels for key in index}
            missing = [time for time in times if moment(time) not in there]
            if missing:
                raise SnapshotError(
                    f"{channel} is missing at {len(missing)} of {counted(len(times), 'time')} of the masks, the first "
                    f"is {time_text(missing[0])}; the fields are of {counted(len(there), 'time')}, {min(there)} to "
                    f"{max(there)}"
                )

    def at(self, time: Time) -> dict[str, NDArray[np.float32]]:
        """Fields [latitude, longitude] by channel; of a channel in several files, the first.

        Raises:
            SnapshotError: one cannot be read, or is missing.
        """
        values: dict[str, NDArray[Any]] = {}
        for snapshots, index in self._groups:
            if moment(time) in index and not set(snapshots.channels) <= set(values):
                snapshot = snapshots[index[moment(time)]]
                first = turn(snapshot.grid, self._grid)
                assert first is not None  # which was looked at when they were opened
                values = dict(zip(snapshot.channels, np.roll(snapshot.values, -first, -1), strict=True)) | values
        if missing := [channel for channel in self.channels if channel not in values]:
            raise SnapshotError(f"there is no {', '.join(missing)} at {time_text(time)}")
        return values

    def close(self) -> None:
        """Closes all files."""
        for snapshots, _ in self._groups:
            snapshots.close()


def _indexed(
    files: Sequence[str], channels: Sequence[str], grid: Grid, how: How, on_error: OnError, skipped: list[str]
) -> tuple[Snapshots, dict[str, int]]:
    """Files with the same channels, and where in them which time is."""
    known = {channel: name for channel, name in how.names.items() if channel in channels}
    snapshots = open_snapshots(
        files, channels=channels, labels=None, names=known, fill=how.fill, plausible=how.plausible,
        units={channel: unit for channel, unit in how.units.items() if channel in channels},
        on_error="skip" if on_error == "skip" else "raise",
    )  # fmt: skip
    skipped += map(str, snapshots.skipped)
    mine, theirs = snapshots.axes.grid, grid
    if turn(mine, theirs) is None:
        same = mine.latitude.shape == theirs.latitude.shape and np.allclose(
            mine.latitude, theirs.latitude, rtol=0, atol=TOLERANCE
        )
        name = "longitude" if same else "latitude"
        a, b = getattr(mine, name), getattr(theirs, name)
        raise SnapshotError(
            f"{snapshots.locate(0)} is on another grid than the masks: {name} has {a.size} values, {a[0]:g} to "
            f"{a[-1]:g}, that of the masks {b.size}, {b[0]:g} to {b[-1]:g}: interpolate one of them"
        )
    index: dict[str, int] = {}
    for place, time in enumerate(snapshots.times):
        if time is None:
            raise SnapshotError(f"{snapshots.locate(place)}: without it, no mask belongs to these fields")
        if moment(time) in index:
            raise SnapshotError(
                f"there are two fields of {', '.join(channels)} of one time: {snapshots.locate(index[moment(time)])}, "
                f"and {snapshots.locate(place)}"
            )
        index[moment(time)] = place
    return snapshots, index


def _first(reasons: Mapping[str, str]) -> str:
    return next(iter(reasons.values()), "no file can be read")
