"""Snapshots in a compact form for fast reading: numpy's own files, 16 bits a value, one byte a label.

HDF5 is read through one lock and thus by processes; these are read by any thread. Units stay what they were: pressures
do not fit into half precision and rain rates vanish in it, so each channel is stored as its distance from its mean in
standard deviations, both of that snapshot.
"""

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.climate.layouts import calendar_of, parse_time, time_text
from exafield.climate.reading import open_snapshots
from exafield.climate.snapshot import Axes, Snapshot, SnapshotError, Time

_FORMAT, _VERSION = "exafield-climate-compact", 1
# What reading a damaged archive raises.
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class Compact:
    """Makes a compact file of any file that :func:`open_snapshots` reads.

    Args:
        channels: that are kept; None: all sixteen.
        half: whether values are kept in 16 bits: to 1/2000 of their distance from the mean of the snapshot.
        labels: which version of them; None leaves them out.
        names: pairs of a channel and the variable that it is, where that cannot be known.
        units: pairs of a channel and its unit, where the file tells none or a wrong one.
    """

    channels: tuple[str, ...] | None = None
    half: bool = True
    labels: int | None = 0
    names: tuple[tuple[str, str], ...] = ()
    units: tuple[tuple[str, str], ...] = ()

    def name(self, source: str) -> str:
        """Of the file made."""
        return f"{Path(source).stem}.npz"

    def __call__(self, source: str, target: str) -> None:
        """Makes it.

        Raises:
            SnapshotError: the source cannot be read.
            OSError: the target cannot be written.
        """
        with open_snapshots(
            source, channels=self.channels, labels=self.labels, names=dict(self.names), units=dict(self.units)
        ) as snapshots:
            write_compact(target, list(snapshots), half=self.half)


def write_compact(path: str | Path, snapshots: Sequence[Snapshot], *, half: bool = True) -> None:
    """Writes snapshots of one grid into one file.

    Args:
        path: of the file.
        snapshots: one or more.
        half: see :class:`Compact`.
    """
    first = snapshots[0]
    head = {
        "format": _FORMAT,
        "version": _VERSION,
        "channels": first.channels,
        "times": [None if s.time is None else (time_text(s.time), calendar_of(s.time)) for s in snapshots],
    }
    arrays: dict[str, NDArray[Any]] = {
        "head": np.array(json.dumps(head)),
        "latitude": first.grid.latitude,
        "longitude": first.grid.longitude,
    }
    for number, snapshot in enumerate(snapshots):
        values = snapshot.values
        if half:
            mean = values.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
            width = values.std(axis=(1, 2), dtype=np.float64).astype(np.float32)
            width[width == 0] = 1.0
            arrays[f"mean_{number}"], arrays[f"width_{number}"] = mean, width
            values = ((values - mean[:, None, None]) / width[:, None, None]).astype(np.float16)
        arrays[f"values_{number}"] = values
        if snapshot.labels is not None:
            arrays[f"labels_{number}"] = snapshot.labels
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy types one of its own keywords over all names


class CompactSnapshots:
    """A sequence of snapshots in compact files. May be used by several threads, and sent to other processes.

    Args:
        paths: of the files.
    Raises:
        SnapshotError: there are none, one cannot be read, or grids or channels differ.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        if not paths:
            raise SnapshotError("no compact files are given")
        self._places: list[tuple[str, int, Time]] = []
        for number, path in enumerate(map(str, paths)):
            axes, channels, times = _look(path)
            if not number:
                self._axes, self._channels = axes, channels
            if axes != self._axes or channels != self._channels:
                raise SnapshotError(f"{path} has another grid or other channels than {paths[0]}: read them apart")
            self._places += [(path, at, time) for at, time in enumerate(times)]

    @property
    def channels(self) -> tuple[str, ...]:
        """Of each snapshot."""
        return self._channels

    @property
    def axes(self) -> Axes:
        """Of all files."""
        return self._axes

    def locate(self, index: int) -> str:
        """File and time of a snapshot."""
        path, _, time = self._places[index]
        return f"{path}, {time_text(time)}"

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Snapshot:
        """A snapshot, in its units.

        Raises:
            SnapshotError: it cannot be read.
        """
        path, at, time = self._places[index]
        try:
            with np.load(path, allow_pickle=False) as file:  # checks a sum over what it reads
                values = file[f"values_{at}"].astype(np.float32)
                if f"mean_{at}" in file:
                    values *= file[f"width_{at}"][:, None, None]
                    values += file[f"mean_{at}"][:, None, None]
                labels = file.get(f"labels_{at}")
        except _DAMAGE as error:
            raise SnapshotError(f"{path}: cannot be read ({error}): stage it again") from error
        return Snapshot(values, self._channels, self._axes, time, labels, self.locate(index))

    def close(self) -> None:
        """Nothing is held open."""


def _look(path: str) -> tuple[Axes, tuple[str, ...], list[Time]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            head = json.loads(str(file["head"]))
            if (head["format"], head["version"]) != (_FORMAT, _VERSION):
                raise ValueError("it is of another format or version")
            times = [None if told is None else parse_time(*told) for told in head["times"]]
            return Axes(file["latitude"], file["longitude"]), tuple(head["channels"]), times
    except (*_DAMAGE, TypeError) as error:
        raise SnapshotError(f"{path}: is no compact file, or damaged ({error}): stage it again") from error
