"""Small climate data for tests: snapshots, CF data sets, and files as the published set has them."""

from pathlib import Path
from typing import Any

import cftime
import h5py
import numpy as np
import xarray as xr

from exafield.climate.fields import CHANNELS
from exafield.climate.snapshot import Axes, Snapshot, whole_globe

LATITUDES, LONGITUDES = 12, 18
TIME = cftime.DatetimeNoLeap(2003, 10, 24, 3)


def made(
    channels: tuple[str, ...] = tuple(CHANNELS), axes: Axes | None = None, seed: int = 0, time: Any = TIME
) -> Snapshot:
    """Values that differ everywhere, inside the plausible range of each channel."""
    axes = axes or whole_globe(LATITUDES, LONGITUDES)
    rng = np.random.default_rng(seed)
    fields = [
        rng.uniform(low + 0.3 * (high - low), high - 0.3 * (high - low), axes.grid.shape)
        for low, high in (CHANNELS[name].usual or CHANNELS[name].typical for name in channels)
    ]
    labels = rng.integers(0, 3, axes.grid.shape, dtype=np.uint8)
    return Snapshot(np.array(fields, dtype=np.float32), channels, axes, time, labels)


def dataset(snapshots: list[Snapshot], **renamed: str) -> xr.Dataset:
    """A CF data set in the order of the source."""
    axes = snapshots[0].axes
    data = xr.Dataset(
        coords={
            "time": [s.time for s in snapshots],
            "lat": ("lat", axes.latitude, {"units": "degrees_north"}),
            "lon": ("lon", axes.longitude, {"units": "degrees_east"}),
        }
    )
    for name in snapshots[0].channels:
        values = np.stack([axes.restore(s[name]) for s in snapshots])
        data[renamed.get(name, name)] = (("time", "lat", "lon"), values, {"units": CHANNELS[name].unit})
    return data


def days(n: int) -> list[np.datetime64]:
    return [np.datetime64("2000-02-27T00:00:00", "s") + 21600 * k for k in range(n)]


def published(path: Path, shape: tuple[int, ...], **more: Any) -> np.ndarray:
    """As the original scripts write: no coordinates, no attributes."""
    middles = np.array([np.mean(c.usual or c.typical) for c in CHANNELS.values()], dtype=np.float32)
    data = np.broadcast_to(middles if shape[-1] == 16 else middles[: shape[0], None, None], shape).copy()
    with h5py.File(path, "w") as file:
        file["climate/data"] = data
        for name, value in more.items():
            file[f"climate/{name}"] = value
    return data
