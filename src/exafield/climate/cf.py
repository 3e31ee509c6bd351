"""NetCDF and Zarr through xarray: ClimateNet files, and whatever other models and reanalyses write."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.climate.fields import CHANNELS
from exafield.climate.layouts import dated, time_text
from exafield.climate.names import LABEL_NAMES, LEVEL_NAMES, Variable, find, nearest
from exafield.climate.snapshot import Axes, SnapshotError, Time
from exafield.climate.units import pressure
from exafield.requirement import require

# How the two horizontal axes are recognised: CF's units and axis attributes, and common names.
_HORIZONTAL = {
    "latitude": (("degrees_north", "degree_north", "degree_n", "degrees_n", "degreen", "degreesn"), "Y"),
    "longitude": (("degrees_east", "degree_east", "degree_e", "degrees_e", "degreee", "degreese"), "X"),
}
_HORIZONTAL_NAMES = {"latitude": ("lat", "latitude", "nav_lat"), "longitude": ("lon", "longitude", "nav_lon", "long")}
_TIME_NAMES = ("time", "valid_time", "times", "initial_time", "forecast_time")
_PACKAGES = {"h5netcdf": "h5netcdf", "zarr": "zarr", "scipy": "scipy"}


class DatasetReader:
    """Reads fields on axes of latitude and longitude by name.

    Args:
        path: of the file, or the address of a Zarr store.
        engine: of xarray.
        names: of the user: channel, or "labels", to variable.
    Raises:
        SnapshotError: there are no such axes, or the times cannot be understood.
    """

    def __init__(self, path: Path | str, engine: str, names: Mapping[str, str]) -> None:
        self._path, self._names = path, names
        require(_PACKAGES[engine], extra="climate")
        xarray = require("xarray", extra="climate")
        more: dict[str, Any] = {"phony_dims": "access"} if engine == "h5netcdf" else {}
        if engine == "zarr" and (Path(path) / "zarr.json").exists():
            more = {"consolidated": False}  # format 3 keeps no such summary, and xarray would warn of that
        try:
            self._data = xarray.open_dataset(path, engine=engine, decode_timedelta=False, cache=False, **more)
        except (ValueError, OverflowError) as error:
            if "time" not in str(error):
                raise
            raise SnapshotError(f"{path}: its times cannot be understood ({error}); mend the units of time") from error
        try:
            self._latitude, self._longitude = (self._horizontal(kind) for kind in _HORIZONTAL)
            if self._flat[0] == self._flat[1]:
                raise SnapshotError(
                    f"{path}: {self._latitude} and {self._longitude} both lie along {self._flat[0]!r}, so the grid is "
                    "not one of latitude and longitude: interpolate to such a grid first"
                )
            north, east = (np.asarray(self._data[name].values) for name in (self._latitude, self._longitude))
            self._axes = Axes(north, east, (self._latitude, self._longitude))
            self._times = self._told_times()
        except BaseException:
            self._data.close()
            raise
        self._found: dict[str, Variable] = {}

    def _horizontal(self, kind: str) -> str:
        """Name of the coordinate."""
        units, axis = _HORIZONTAL[kind]
        whole = [name for name, v in self._data.variables.items() if _is(v, kind, units)]
        whole = whole or [name for name in self._data.variables if str(name).lower() in _HORIZONTAL_NAMES[kind]]
        whole = whole or [name for name, v in self._data.variables.items() if v.attrs.get("axis") == axis]
        for name in whole:
            unit = str(self._data[name].attrs.get("units", ""))
            if "rad" in unit.lower() and "grad" not in unit.lower():
                raise SnapshotError(f"{self._path}: {kind} {name!r} is in {unit!r}: convert it to degrees")
        flat = [name for name in whole if self._data[name].dims == (name,)]
        flat = flat or [name for name in whole if self._data[name].ndim == 1]
        if flat:
            return str(flat[0])
        if whole:
            raise SnapshotError(
                f"{self._path}: {kind} {whole[0]!r} has dimensions {self._data[whole[0]].dims}, so the grid is not one "
                "of latitude and longitude: interpolate to such a grid first"
            )
        raise SnapshotError(
            f"{self._path} has no {kind}; its variables are {', '.join(map(str, self._data.variables))}: give a "
            f"coordinate the attribute standard_name = {kind}"
        )

    @property
    def _flat(self) -> tuple[str, str]:
        """Dimensions of the two axes; a coordinate's is not always called like it."""
        return str(self._data[self._latitude].dims[0]), str(self._data[self._longitude].dims[0])

    @cached_property
    def _time_dimension(self) -> str | None:
        for name in self._data.dims:
            if name in self._flat:
                continue
            if str(name).lower().startswith(_TIME_NAMES):
                return str(name)
            coordinate = self._data.variables.get(name)
            if coordinate is not None and (coordinate.dtype.kind == "M" or coordinate.attrs.get("axis") == "T"):
                return str(name)
        return None

    def _told_times(self) -> list[Time]:
        dimension = self._time_dimension
        if dimension is None:
            single = [v for k, v in self._data.variables.items() if str(k).lower() in _TIME_NAMES and v.ndim == 0]
            values = np.atleast_1d(single[0].values) if single else np.array([None])
        elif dimension in self._data.variables:
            values = self._data[dimension].values
        else:
            values = np.array([None] * self._data.sizes[dimension])
        if values.dtype.kind == "M" and np.isnat(values).any():
            raise SnapshotError(f"{self._path}: time {int(np.argmax(np.isnat(values)))} of {values.size} is missing")
        times = [self._time(value) for value in values]
        for before, after in pairwise(times):
            if before is not None and after is not None and not before < after:
                raise SnapshotError(
                    f"{self._path}: time must rise, but {time_text(before)} is followed by {time_text(after)}: put the "
                    "times in order and take out what is there twice"
                )
        return [dated(Path(self._path).name)] if times == [None] else times

    @staticmethod
    def _time(value: Any) -> Time:
        if isinstance(value, np.datetime64):
            return value.astype("datetime64[s]")
        if isinstance(value, bytes | str):  # ClimateNet writes names of files
            return dated(value.decode() if isinstance(value, bytes) else value)
        return value if hasattr(value, "calendar") else None

    @property
    def axes(self) -> Axes:
        """The coordinates of the file."""
        return self._axes

    @property
    def times(self) -> Sequence[Time]:
        """The values of its axis of time."""
        return self._times

    @property
    def attributes(self) -> Mapping[str, str]:
        """Global attributes."""
        return {str(name): value for name, value in self._data.attrs.items() if isinstance(value, str)}

    @cached_property
    def _variables(self) -> list[Variable]:
        return [self._describe(name) for name, v in self._data.variables.items() if set(self._flat) <= set(v.dims)]

    def _describe(self, name: Any) -> Variable:
        variable = self._data[name]
        levels, model_levels = None, False
        vertical = [d for d in variable.dims if d not in (*self._flat, self._time_dimension)]
        scalar = [c for c, v in variable.coords.items() if v.ndim == 0]
        for place in (*vertical, *scalar):
            coordinate = self._data.variables.get(place)
            told = coordinate.attrs.get("standard_name") if coordinate is not None else None
            if coordinate is None or not (told == "air_pressure" or _may_be_vertical(str(place), coordinate)):
                continue
            try:
                if told not in (None, "air_pressure"):
                    raise ValueError(f"{told} is not pressure")
                values = np.atleast_1d(coordinate.values).astype(np.float64)
                levels = tuple((values * pressure(coordinate.attrs.get("units"), values)).tolist())
            except ValueError:  # a height of 2 m is no matter; hybrid levels are
                model_levels = coordinate.size > 1
        return Variable(str(name), variable.attrs.get("standard_name"), levels, model_levels)

    def _variable(self, channel: str) -> Variable:
        if channel not in self._found:
            self._found[channel] = find(channel, self._variables, self._names)
        return self._found[channel]

    @property
    def variables(self) -> Sequence[str]:
        """Those on the two horizontal axes."""
        return [variable.name for variable in self._variables]

    def variable(self, channel: str) -> str:
        """By name, CF standard name or alias, or as the user says."""
        return self._variable(channel).name

    def unit(self, channel: str) -> str | None:
        """The attribute `units`."""
        unit = self._data[self._variable(channel).name].attrs.get("units")
        return str(unit) if unit else None

    def read(self, time: int, channels: Sequence[str]) -> NDArray[Any]:
        """Channels, in the order asked for."""
        return np.stack([self._field(time, self._variable(channel), channel) for channel in channels])

    def _field(self, time: int, variable: Variable, channel: str) -> NDArray[Any]:
        level = CHANNELS[channel].level if channel in CHANNELS else None
        data = self._data[variable.name]
        selected: dict[Any, int] = {}
        for dimension, size in zip(data.dims, data.shape, strict=True):
            if dimension in self._flat:
                continue
            if dimension == self._time_dimension:
                selected[dimension] = time
            elif size == 1:
                selected[dimension] = 0
            elif level is not None and variable.levels is not None and size == len(variable.levels):
                at = nearest(level, variable.levels)
                assert at is not None  # find has looked
                selected[dimension] = at
            else:
                raise LookupError(f"{variable.name} has a dimension {dimension!r} of {size}: select one of them first")
        return np.asarray(data.isel(selected).transpose(*self._flat).values)

    def labels(self, time: int, version: int) -> NDArray[Any] | None:
        """Of the version, where there is more than one."""
        there = {variable.name for variable in self._variables}
        wanted = [self._names["labels"]] if "labels" in self._names else LABEL_NAMES
        name = next((name for name in wanted if name in there), None)
        if name is None:
            if "labels" in self._names:
                raise LookupError(f"labels are to be {wanted[0]!r}, and there is no such variable")
            return None
        data = self._data[name]
        others = [d for d in data.dims if d not in (*self._flat, self._time_dimension)]
        versions = data.sizes[others[0]] if others else 1
        if len(others) > 1 or not 0 <= version < versions:
            raise LookupError(f"no labels of version {version} in {name}, which has dimensions {dict(data.sizes)}")
        selected = dict.fromkeys(others, version) | ({self._time_dimension: time} if self._time_dimension else {})
        selected = {d: at for d, at in selected.items() if d in data.dims}
        return np.asarray(data.isel(selected).transpose(*self._flat).values)

    def close(self) -> None:
        """Closes the file."""
        self._data.close()


def _is(variable: Any, kind: str, units: Sequence[str]) -> bool:
    return variable.attrs.get("standard_name") == kind or str(variable.attrs.get("units", "")).lower() in units


def _may_be_vertical(name: str, coordinate: Any) -> bool:
    return name in LEVEL_NAMES or coordinate.attrs.get("axis") == "Z" or "positive" in coordinate.attrs
