"""Snapshots of many files as one sequence, read one at a time when asked for."""

import glob
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from exafield.climate import checks
from exafield.climate.fields import CHANNELS
from exafield.climate.layouts import ZARR_MARKS, Reader, damage, open_reader, time_text
from exafield.climate.snapshot import Axes, Snapshot, SnapshotError, Time
from exafield.suggestion import counted, unknown

# Files held open, our choice: neighbouring snapshots often lie in one, and a shuffled order gains nothing from more.
_OPEN = 4
# What is taken out of a folder.
_SUFFIXES = (".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".he5", ".zarr")
# Files beside the snapshots of the published set.
_NO_SNAPSHOTS = ("stats.h5", "stats.hdf5")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file, or one snapshot of it, that was left out.

    Args:
        path: of the file.
        reason: what was wrong.
        time: position in the file, None for the whole file.
    """

    path: str
    reason: str
    time: int | None = None

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class _Options:
    channels: tuple[str, ...]
    labels: int | None
    names: Mapping[str, str]
    units: Mapping[str, str]
    fill: str | None
    plausible: bool
    skip: bool


class Snapshots:
    """A sequence of snapshots; made by :func:`open_snapshots`.

    Going through it leaves out what cannot be read where `on_error` is "skip"; an index always gives that snapshot or
    raises. May be used by several threads, and sent to other processes.
    """

    def __init__(
        self,
        places: Sequence[tuple[str, int, Time]],
        axes: Axes,
        options: _Options,
        skipped: Sequence[Skipped],
        attributes: Mapping[str, str],
    ) -> None:
        self._places, self._axes, self._options = tuple(places), axes, options
        self.attributes = dict(attributes)  # of the first file; such as its history
        self._skipped = {(item.path, item.time): item for item in skipped}
        self._fresh()

    def _fresh(self) -> None:
        self._open: OrderedDict[str, Reader] = OrderedDict()
        self._lock = threading.RLock()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_open", "_lock", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._fresh()

    @property
    def channels(self) -> tuple[str, ...]:
        """Of each snapshot."""
        return self._options.channels

    @property
    def axes(self) -> Axes:
        """Of all files."""
        return self._axes

    @property
    def times(self) -> list[Time]:
        """Of the snapshots; None where a file tells none."""
        return [time for _, _, time in self._places]

    @property
    def skipped(self) -> list[Skipped]:
        """What has been left out so far."""
        return list(self._skipped.values())

    def locate(self, index: int) -> str:
        """File and time of a snapshot."""
        path, _, time = self._places[index]
        return f"{path}, {time_text(time)}"

    def unit(self, index: int, channel: str) -> str | None:
        """Of a channel in the file of a snapshot, as the file tells it or the user has said; None if neither did."""
        with self._lock:
            return self._options.units.get(channel, self._reader(self._places[index][0]).unit(channel))

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Snapshot: ...

    @overload
    def __getitem__(self, index: slice) -> "Snapshots": ...

    def __getitem__(self, index: int | slice) -> "Snapshot | Snapshots":
        """A snapshot, or some of them as a sequence.

        Raises:
            SnapshotError: it cannot be read, or is not what it should be.
        """
        if isinstance(index, slice):
            return Snapshots(self._places[index], self._axes, self._options, self.skipped, self.attributes)
        path, at, _ = self._places[index]
        source = self.locate(index)
        if self._process != os.getpid():  # after a fork, files and lock belong to the other process
            self._fresh()
        try:
            with self._lock:
                return self._read(self._reader(path), at, index, source)
        except SnapshotError as error:
            raise SnapshotError(str(error) if path in str(error) else f"{source}: {error}") from error
        except LookupError as error:
            raise SnapshotError(f"{source}: {error.args[0] if error.args else error}") from error
        except Exception as error:  # readers of damaged files raise whatever they stumble over
            said = damage(path, error) or f"cannot be read ({error}): the file is damaged or incomplete?"
            raise SnapshotError(f"{source}: {said}") from error

    def __iter__(self) -> Iterator[Snapshot]:
        for index, (path, at, _) in enumerate(self._places):
            try:
                snapshot = self[index]
            except SnapshotError as error:
                if not self._options.skip:
                    raise
                self._skipped[path, at] = Skipped(path, str(error), at)
            else:
                yield snapshot

    def checked(self) -> "Snapshots":
        """Reads all of them once, and gives those that can be read; the others are among what was skipped."""
        for _ in self:
            pass
        good = [(path, at, time) for path, at, time in self._places if (path, at) not in self._skipped]
        return Snapshots(good, self._axes, self._options, self.skipped, self.attributes)

    def _reader(self, path: str) -> Reader:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        reader = open_reader(path, self._options.names)
        if reader.axes != self._axes:  # it was another file when it was first looked at
            reader.close()
            raise SnapshotError(f"{path} has another grid than before: was it replaced?")
        self._open[path] = reader
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)[1].close()
        return reader

    def _read(self, reader: Reader, at: int, index: int, source: str) -> Snapshot:
        options = self._options
        values = np.empty((len(options.channels), *self._axes.grid.shape), dtype=np.float32)
        count = 0
        if options.channels:
            raw = reader.read(at, options.channels)
            for place, channel in enumerate(options.channels):
                values[place], more = self._checked(channel, reader.unit(channel), self._axes.arrange(raw[place]))
                count += more
        labels = None
        if options.labels is not None:
            stored = reader.labels(at, options.labels)
            labels = None if stored is None else checks.labels_of(self._axes.arrange(stored), self._axes)
        return Snapshot(values, options.channels, self._axes, self._places[index][2], labels, source, count)

    def _checked(self, channel: str, unit: str | None, raw: NDArray[Any]) -> tuple[NDArray[np.float32], int]:
        """Values of a channel in its unit, and how many were filled in."""
        options = self._options
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
            values = raw.astype(np.float32)
        count = 0
        lack = checks.missing(values, self._axes)
        if lack is not None:
            if options.fill is None:
                raise SnapshotError(f"{channel}: {lack}; fill='nearest' takes the nearest value there is")
            count = int((~np.isfinite(values)).sum())
            if count == values.size:
                raise SnapshotError(f"{channel}: all values are missing")
            values = checks.filled(values, self._axes.grid.periodic)
        unit = options.units.get(channel, unit)
        values = checks.in_channel_units(channel, unit, values)
        if options.plausible:
            checks.plausible(channel, unit, values, self._axes.grid)
        return values, count

    def take_over(self, other: "Snapshots") -> None:
        """Takes the open files that it needs itself from another sequence, read in the same way; closes the others."""
        if other._process != os.getpid():  # after a fork, they belong to the other process
            return
        if self._process == other._process and self._options == other._options and self._axes == other._axes:
            with other._lock, self._lock:
                for path in {path for path, _, _ in self._places} & set(other._open):
                    self._open[path] = other._open.pop(path)
        other.close()

    def close(self) -> None:
        """Closes all files; they are opened again when needed."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def __enter__(self) -> "Snapshots":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_snapshots(
    paths: str | Path | Sequence[str | Path],
    *,
    channels: Sequence[str] | None = None,
    labels: int | None = 0,
    names: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    fill: Literal["nearest"] | None = None,
    plausible: bool = True,
    on_error: Literal["raise", "skip"] = "raise",
) -> Snapshots:
    """Snapshots of climate files, in the order of the files and of the times in each.

    Which layout a file has shows in it, not in its name: NetCDF and Zarr with coordinates (ClimateNet among them), and
    the HDF5 files of the published CAM5 set, with their channels last (DeepCAM) or first. Headers are read now, fields
    when asked for.

    Args:
        paths: files, Zarr stores, folders of such, or patterns with * and ?.
        channels: names, in the order wanted; default: all sixteen. A name that is not one of them is a variable of
            the file, taken as it is.
        labels: which version of them, where there are several; None leaves them out.
        names: channel to the variable that it is, where that cannot be known; "labels" for the labels.
        units: channel to its unit, where the file tells none or a wrong one.
        fill: what stands in for missing values; None refuses them.
        plausible: refuses values that the quantity cannot have, which mostly are of another unit.
        on_error: whether a file that cannot be used is fatal, or left out and told in `skipped`.

    Raises:
        SnapshotError: there are no files, one cannot be used, or grids differ; or no file is left.
        ValueError: an argument is not valid.
    """
    wanted = tuple(CHANNELS) if channels is None else tuple(channels)
    names, units = dict(names or {}), dict(units or {})
    _check_arguments(wanted, labels, names, units, fill, on_error)
    files = find_files(paths)
    options = _Options(wanted, labels, names, units, fill, plausible, on_error == "skip")
    places: list[tuple[str, int, Time]] = []
    skipped: list[Skipped] = []
    first: tuple[str, Axes, Mapping[str, str]] | None = None
    for path in files:
        try:
            axes, times, attributes = _look(path, options)
            if first is not None and axes != first[1]:
                raise SnapshotError(
                    f"{path} is on another grid ({axes}) than {first[0]} ({first[1]}): read them apart, or interpolate"
                )
        except SnapshotError as error:
            if not options.skip:
                raise
            skipped.append(Skipped(path, str(error)))
            continue
        first = first or (path, axes, attributes)
        places += [(path, at, time) for at, time in enumerate(times)]
    if first is None or not places:
        reasons = f"; the first: {skipped[0]}" if skipped else ": it holds no time" if files else ""
        raise SnapshotError(f"none of {counted(len(files), 'file')} can be used{reasons}")
    return Snapshots(places, first[1], options, skipped, first[2])


def _check_arguments(
    channels: tuple[str, ...],
    labels: int | None,
    names: Mapping[str, str],
    units: Mapping[str, str],
    fill: str | None,
    on_error: str,
) -> None:
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    if fill not in (None, "nearest"):
        raise ValueError(f"fill must be None or 'nearest', got {fill!r}")
    if len(set(channels)) < len(channels):
        raise ValueError(f"channels are asked for twice: {', '.join(channels)}")
    if labels is not None and labels < 0:
        raise ValueError(f"labels must be a version from 0, or None, got {labels}")
    for kind, given, extra in (("names", names, {"labels"}), ("units", units, set())):
        for name in given:
            if name not in {*channels, *CHANNELS, *extra}:
                raise ValueError(f"{kind}: {unknown('channel', name, {*channels, *extra})}")


def _look(path: str, options: _Options) -> tuple[Axes, list[Time], Mapping[str, str]]:
    """Axes, times and attributes of a file, after a check that its channels are there, in units that can be used."""
    try:
        reader = open_reader(path, options.names)
        try:
            for channel in options.channels:
                unit = options.units.get(channel, reader.unit(channel))
                try:
                    checks.in_channel_units(channel, unit, np.empty(0, dtype=np.float32))
                except ValueError as error:
                    raise SnapshotError(
                        f"{path}: {channel}: {error}; if the file is wrong, say units={{{channel!r}: 'UNIT'}}"
                    ) from error
            return reader.axes, list(reader.times), reader.attributes
        finally:
            reader.close()
    except SnapshotError:
        raise
    except ImportError:
        raise
    except LookupError as error:
        raise SnapshotError(f"{path}: {error.args[0] if error.args else error}") from error
    except Exception as error:  # readers of damaged files raise whatever they stumble over
        raise SnapshotError(f"{path}: {error}") from error


def find_files(paths: str | Path | Sequence[str | Path]) -> list[str]:
    """Files behind names, folders and patterns; those of a folder or a pattern in order of their names.

    Raises:
        SnapshotError: there is nothing of that name, or nothing in it.
    """
    found: list[str] = []
    for given in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(given)
        if "://" in str(given) or path.is_file():
            found.append(str(given))
        elif path.is_dir() and (path.suffix == ".zarr" or any((path / mark).exists() for mark in ZARR_MARKS)):
            found.append(str(path))
        elif path.is_dir():
            # Hidden is what a kill has left half-written, see exafield.store.whole.
            shown = (p for p in path.iterdir() if not p.name.startswith("."))
            inside = sorted(p for p in shown if p.suffix in _SUFFIXES and p.name not in _NO_SNAPSHOTS)
            if not inside:
                raise SnapshotError(f"{path} holds no file that ends in {', '.join(_SUFFIXES)}")
            found += map(str, inside)
        elif matching := sorted(glob.glob(str(given))):
            found += matching
        else:
            raise SnapshotError(f"there is no file {given}")
    if not found:
        raise SnapshotError("no files are given")
    return found
