"""NetCDF-4 files and Zarr stores behind one small interface, and the CF way to write times and coordinates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from exafield.climate.layouts import calendar_of
from exafield.climate.snapshot import Axes, Time
from exafield.requirement import require

# Level of zlib in both formats, our choice: masks and tables hardly shrink further above it.
_COMPRESSION = 4


@runtime_checkable
class Target(Protocol):
    """A new, empty file."""

    def create(
        self, name: str, dimensions: Sequence[str], values: Any, attributes: Mapping[str, Any], chunks: Any = None
    ) -> Any:
        """Adds a variable, and gives something to assign slices to.

        Args:
            name: of the variable.
            dimensions: their names; those not there yet are made.
            values: an array, or its (shape, type) if it is filled later.
            attributes: of the variable.
            chunks: shape of what is compressed together; None for all at once.
        """
        ...

    def describe(self, attributes: Mapping[str, Any]) -> None:
        """Adds attributes of the whole."""
        ...

    def close(self) -> None:
        """Closes the file, complete or not."""
        ...


def open_target(path: Path, kind: str) -> Target:
    """A new file; `kind` is a suffix, .zarr or one of NetCDF.

    Raises:
        ValueError: it is none of these.
    """
    if kind == ".zarr":
        return _Zarr(path)
    if kind in (".nc", ".nc4"):
        return _NetCDF(path)
    raise ValueError(f"{path.name} ends in {kind!r}: choose a name that ends in .nc or .zarr")


class _NetCDF:
    def __init__(self, path: Path) -> None:
        self._file = require("h5netcdf", extra="climate").File(path, "w")

    def create(
        self, name: str, dimensions: Sequence[str], values: Any, attributes: Mapping[str, Any], chunks: Any = None
    ) -> Any:
        shape, dtype, data = _parts(values)
        for dimension, size in zip(dimensions, shape, strict=True):
            if dimension not in self._file.dimensions:
                self._file.dimensions[dimension] = size
        packed = {"compression": "gzip", "compression_opts": _COMPRESSION, "shuffle": True} if dimensions else {}
        whole = tuple(max(size, 1) for size in shape) or None
        variable = self._file.create_variable(
            name, tuple(dimensions), dtype, data=data, chunks=chunks or (whole if dimensions else None), **packed
        )
        variable.attrs.update(attributes)
        return variable

    def describe(self, attributes: Mapping[str, Any]) -> None:
        self._file.attrs.update(attributes)

    def close(self) -> None:
        self._file.close()


class _Zarr:
    def __init__(self, path: Path) -> None:
        self._zarr = require("zarr", extra="climate")
        self._root = self._zarr.open_group(str(path), mode="w", zarr_format=3)

    def create(
        self, name: str, dimensions: Sequence[str], values: Any, attributes: Mapping[str, Any], chunks: Any = None
    ) -> Any:
        shape, dtype, data = _parts(values)
        whole = tuple(max(size, 1) for size in shape)
        array = self._root.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=chunks or whole,
            compressors=self._zarr.codecs.GzipCodec(level=_COMPRESSION),
            dimension_names=tuple(dimensions),
            attributes={k: v.tolist() if isinstance(v, np.ndarray | np.generic) else v for k, v in attributes.items()},
            # A chunk that is not there would read as background, and could not be told from one that was lost.
            config={"write_empty_chunks": True},
        )
        if data is not None:
            array[...] = data
        return array

    def describe(self, attributes: Mapping[str, Any]) -> None:
        self._root.attrs.update(dict(attributes))

    def close(self) -> None:
        pass  # each of its files is closed already


def _parts(values: Any) -> tuple[tuple[int, ...], np.dtype[Any], NDArray[Any] | None]:
    if isinstance(values, np.ndarray):
        return values.shape, values.dtype, values
    shape, dtype = values
    return tuple(shape), np.dtype(dtype), None


def add_axes(target: Target, axes: Axes) -> None:
    """Latitude and longitude, named, ordered and typed as in the source."""
    for name, values, kind, unit, axis in (
        (axes.names[0], axes.latitude, "latitude", "degrees_north", "Y"),
        (axes.names[1], axes.longitude, "longitude", "degrees_east", "X"),
    ):
        attributes = {"standard_name": kind, "long_name": kind, "units": unit, "axis": axis}
        target.create(name, (name,), np.asarray(values), attributes)


def encode_times(times: Sequence[Time]) -> tuple[NDArray[np.int64], dict[str, str]]:
    """Whole seconds, and the attributes that say since when and in which calendar; numbers where no time is told.

    Raises:
        ValueError: some have a time and some have none, or their calendars differ.
    """
    kinds = {"no time" if time is None else calendar_of(time) for time in times}
    if len(kinds) > 1:
        raise ValueError(f"times are of different calendars ({', '.join(sorted(kinds))}): write them apart")
    if kinds <= {"no time"}:
        return np.arange(len(times)), {"long_name": "number of the snapshot, whose source tells no time"}
    calendar = kinds.pop()
    since = "seconds since 1970-01-01 00:00:00"
    attributes = {"standard_name": "time", "long_name": "time", "units": since, "calendar": calendar}
    if all(isinstance(time, np.datetime64) for time in times):
        return np.array(times, dtype="datetime64[s]").astype(np.int64), attributes
    cftime = require("cftime", extra="climate")
    seconds = [cftime.date2num(time, since, calendar=calendar) for time in times]
    return np.round(np.asarray(seconds, dtype=np.float64)).astype(np.int64), attributes
