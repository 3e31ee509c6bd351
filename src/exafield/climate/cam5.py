"""HDF5 files of the published CAM5 set: one snapshot in a group `climate`, channels last (DeepCAM) or first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.climate.fields import CHANNELS
from exafield.climate.layouts import dated, parse_time
from exafield.climate.snapshot import Axes, SnapshotError, Time, whole_globe
from exafield.requirement import require

GROUP = "climate"


def is_group(path: Path) -> bool:
    """Whether an HDF5 file has the group and data in it."""
    with require("h5py", extra="climate").File(path, "r") as file:
        return GROUP in file and hasattr(file[GROUP], "keys") and "data" in file[GROUP]


class GroupReader:
    """Reads both layouts; which it is shows in the shape of the data.

    Args:
        path: of the file.
    Raises:
        SnapshotError: the shape is of neither, the channels are not told, or the axes are exchanged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = require("h5py", extra="climate").File(path, "r")
        try:
            self._group = self._file[GROUP]
            self._data = self._group["data"]
            self._channels, self._last = self._told_channels()
            self._axes = self._told_axes()
        except BaseException:
            self._file.close()
            raise

    def _told_channels(self) -> tuple[tuple[str, ...], bool]:
        shape = self._data.shape
        if len(shape) != 3:
            raise SnapshotError(f"{self._path}: climate/data has {len(shape)} dimensions {shape}, 3 are needed")
        order = tuple(CHANNELS)
        if "channels" in self._group:
            told = [x.decode() if isinstance(x, bytes) else x for x in self._group["channels"][...].ravel().tolist()]
            names = tuple(x if isinstance(x, str) else order[int(x)] for x in told)
        else:
            names = order
        places = [axis for axis in (0, 2) if shape[axis] == len(names)]
        if not places:
            raise SnapshotError(
                f"{self._path}: climate/data has shape {shape}, of which neither the first nor the last is the number "
                f"of channels, {len(names)}: add a dataset climate/channels that names those that are there"
            )
        # Should both fit, the grid decides: it is wider than high.
        last = places == [2] or (len(places) == 2 and shape[1] >= shape[2])
        return names, last

    def _told_axes(self) -> Axes:
        shape = self._data.shape[:2] if self._last else self._data.shape[1:]
        if "lat" in self._group and "lon" in self._group:
            axes = Axes(self._group["lat"][...], self._group["lon"][...])
            if (axes.latitude.size, axes.longitude.size) != shape:
                raise SnapshotError(
                    f"{self._path}: climate/data is {shape[0]} x {shape[1]}, its lat and lon are "
                    f"{axes.latitude.size} x {axes.longitude.size}"
                )
            return axes
        if shape[0] > shape[1]:
            raise SnapshotError(
                f"{self._path}: climate/data has {shape[0]} latitudes and {shape[1]} longitudes; files without "
                "coordinates hold the whole globe, which has more longitudes: its axes are exchanged"
            )
        return whole_globe(*shape)

    @property
    def axes(self) -> Axes:
        """Those in the file, or the grid of CAM5."""
        return self._axes

    @property
    def times(self) -> Sequence[Time]:
        """One: as attributes tell it, or the name of the file."""
        attributes = self._group.attrs
        if "time" in attributes:
            return [parse_time(str(attributes["time"]), str(attributes.get("calendar", "standard")))]
        return [dated(self._path.name)]

    @property
    def attributes(self) -> Mapping[str, str]:
        """None are published."""
        return {}

    @property
    def variables(self) -> Sequence[str]:
        """The channels."""
        return self._channels

    def variable(self, channel: str) -> str:
        """The channel itself."""
        self._places([channel])
        return channel

    def unit(self, channel: str) -> str | None:
        """Never told: the published files are in the units of the channels."""
        self._places([channel])
        return None

    def _places(self, channels: Sequence[str]) -> list[int]:
        absent = [name for name in channels if name not in self._channels]
        if absent:
            raise LookupError(
                f"no channel {', '.join(absent)}; there are {', '.join(self._channels)}: ask for some of these"
            )
        return [self._channels.index(name) for name in channels]

    def read(self, time: int, channels: Sequence[str]) -> NDArray[Any]:
        """Channels, in the order asked for."""
        places = self._places(channels)
        if self._last:
            # One reading of all is far quicker than picking single values out of each pixel.
            return np.moveaxis(self._data[...][..., places], -1, 0)
        values = np.empty((len(places), *self._data.shape[1:]), dtype=self._data.dtype)
        for row, place in zip(values, places, strict=True):
            self._data.read_direct(row, np.s_[place])
        return values

    def labels(self, time: int, version: int) -> NDArray[Any] | None:
        """Of one version: 0 is the strict one, 1 the relaxed one."""
        shape = self._axes.latitude.size, self._axes.longitude.size
        kept = sorted(name for name in self._group if name.startswith("labels_") and name[7:].isdecimal())
        if kept:
            if f"labels_{version}" not in self._group:
                raise LookupError(f"no labels of version {version}; there are {', '.join(kept)}")
            return np.asarray(self._group[f"labels_{version}"][...])
        if "labels" not in self._group:
            return None
        stored = self._group["labels"]
        if stored.shape == shape and version == 0:
            return np.asarray(stored[...])
        for axis, rest in ((0, stored.shape[1:]), (-1, stored.shape[:-1])):
            if rest == shape and version < stored.shape[axis]:
                return np.asarray(stored[version] if axis == 0 else stored[..., version])
        raise LookupError(f"no labels of version {version} in climate/labels, which has shape {stored.shape}")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
