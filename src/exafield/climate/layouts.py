"""What kind of file something is, by its first bytes and groups; and the dates in names of the published set."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from exafield.climate.snapshot import Axes, SnapshotError, Time
from exafield.requirement import require

# data-YEAR-MONTH-DAY-STEP-RUN: the step counts from 0, in the eight of a day.
_DATED = re.compile(r"data-(\d{4})-(\d{2})-(\d{2})-(\d{2})-\d+")
_STEP_HOURS = 3
#: What says that a folder is a Zarr store, of format 3 or 2.
ZARR_MARKS = ("zarr.json", ".zgroup", ".zmetadata")
# Formats that users have and that need another program first.
_OTHERS = {
    b"GRIB": "a GRIB file: convert it, for instance with `cdo -f nc4 copy`",
    b"CDF\x05": "NetCDF of the 64-bit data kind (CDF-5): convert it, for instance with `nccopy -k nc4`",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"\x0e\x03\x13\x01": "HDF4: convert it to NetCDF-4 first",
}


@runtime_checkable
class Reader(Protocol):
    """An open file. What goes wrong raises OSError, LookupError, ValueError, or whatever a library likes to raise."""

    @property
    def axes(self) -> Axes:
        """Of all its fields."""
        ...

    @property
    def times(self) -> Sequence[Time]:
        """One for each snapshot, None where it is not told."""
        ...

    @property
    def attributes(self) -> Mapping[str, str]:
        """Texts that the file tells of itself, such as its history."""
        ...

    @property
    def variables(self) -> Sequence[str]:
        """Names of all fields in the file."""
        ...

    def variable(self, channel: str) -> str:
        """Which of them is the channel; raises LookupError if none is."""
        ...

    def unit(self, channel: str) -> str | None:
        """As the file tells it, None if it does not; finds the channel, or raises LookupError."""
        ...

    def read(self, time: int, channels: Sequence[str]) -> NDArray[Any]:
        """[channel, latitude, longitude] in the order and units of the file; missing values are NaN."""
        ...

    def labels(self, time: int, version: int) -> NDArray[Any] | None:
        """[latitude, longitude] in the order of the file, None if there are none."""
        ...

    def close(self) -> None:
        """Closes the file."""
        ...


def open_reader(path: Path | str, names: Mapping[str, str]) -> Reader:
    """Looks at a file and opens it.

    Args:
        path: a file, a Zarr folder, or the address of one.
        names: of the user: channel, or "labels", to variable.
    Raises:
        SnapshotError: it is of no kind that can be read; says which it is if that is known.
        OSError: it cannot be opened.
    """
    from exafield.climate.cam5 import GroupReader, is_group
    from exafield.climate.cf import DatasetReader

    if "://" in str(path):
        return DatasetReader(str(path), "zarr", names)
    path = Path(path)
    if path.is_dir():
        if any((path / mark).exists() for mark in ZARR_MARKS):
            return DatasetReader(path, "zarr", names)
        raise SnapshotError(f"{path} is a folder, but no Zarr store: give the files in it")
    with open(path, "rb") as file:
        head = file.read(8)
    classic = head[:4] in (b"CDF\x01", b"CDF\x02")
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise SnapshotError(f"{path} is {what}")
    # The mark of HDF5 stands at 0, or at 512, 1024 ... after a block of the user's own.
    try:
        if classic or require("h5py", extra="climate").is_hdf5(path):
            if not classic and is_group(path):
                return GroupReader(path)
            return DatasetReader(path, "scipy" if classic else "h5netcdf", names)
    except Exception as error:
        if said := damage(path, error):
            raise SnapshotError(f"{path} {said}") from error
        raise
    if head.startswith(b"\x89HDF"):
        raise SnapshotError(f"{path} {damage(path)}")
    size = path.stat().st_size
    raise SnapshotError(f"{path} ({size} bytes) is neither NetCDF, HDF5 nor Zarr: leave it out, or copy it again")


def damage(path: Path | str, error: BaseException | None = None) -> str | None:
    """What is to be said of a damaged file; None if the error of a library is about something else.

    Libraries speak of offsets in blocks, or stumble over what is not there.
    """
    stumbled = type(error) in (OSError, RuntimeError, IndexError) and getattr(error, "errno", None) is None
    if error is not None and not stumbled and "cannot reshape array of size" not in str(error):
        return None
    size = Path(path).stat().st_size if Path(path).is_file() else None
    told = re.search(r"stored_eof = (\d+)", str(error))
    there = "" if size is None else f" ({size} of {told[1]} bytes)" if told else f" ({size} bytes)"
    return f"seems damaged or incomplete{there}: copy or make it again, or leave it out"


def dated(name: str) -> Time:
    """The time in a name like data-2003-10-24-01-1.h5, None if it has none.

    CAM5 runs have no leap days, so the date is one of that calendar (cftime).
    """
    found = _DATED.search(name)
    if found is None:
        return None
    year, month, day, step = (int(part) for part in found.groups())
    if step * _STEP_HOURS >= 24:
        return None
    try:
        return make_time("noleap", year, month, day, step * _STEP_HOURS)
    except ValueError:
        return None


def make_time(calendar: str, *parts: int) -> Time:
    """A time in a calendar of CF: numpy's for the one that numpy has, cftime's for others.

    Raises:
        ValueError: there is no such date.
    """
    year, month, day, hour, minute, second = (*parts, *(0,) * (6 - len(parts)))
    if calendar in ("standard", "gregorian", "proleptic_gregorian"):
        return np.datetime64(f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}", "s")
    cftime = require("cftime", extra="climate")
    return cftime.datetime(year, month, day, hour, minute, second, calendar=calendar)


def parse_time(text: str, calendar: str = "standard") -> Time:
    """From what :func:`time_text` gives."""
    return make_time(calendar, *(int(part) for part in re.findall(r"\d+", text)[:6]))


def time_text(time: Time) -> str:
    """YYYY-MM-DDThh:mm:ss, or "no time"."""
    if time is None:
        return "no time"
    if isinstance(time, np.datetime64):
        return str(time.astype("datetime64[s]"))
    return str(time.isoformat())[:19]


def calendar_of(time: Time) -> str:
    """CF's name of a time's calendar."""
    return "standard" if time is None or isinstance(time, np.datetime64) else str(time.calendar)
