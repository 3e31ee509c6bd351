"""Snapshots written in the layouts of the published sets, for generated data and for tests."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from exafield.climate.cam5 import GROUP
from exafield.climate.fields import CHANNELS, CLASSES
from exafield.climate.layouts import calendar_of, time_text
from exafield.climate.snapshot import Snapshot
from exafield.climate.targets import add_axes, encode_times, open_target
from exafield.requirement import require
from exafield.store import whole

Layout = Literal["deepcam", "gordon-bell", "climatenet"]


def file_name(time: Any, run: int = 1, suffix: str = ".h5") -> str:
    """As the published set names a snapshot: data-YEAR-MONTH-DAY-STEP-RUN, with eight steps a day, from 0.

    Raises:
        ValueError: the time is none of those eight.
    """
    text = time_text(time)
    if text == "no time" or int(text[11:13]) % 3 or text[13:] != ":00:00":
        raise ValueError(f"a file of the published set stands for 0, 3, 6 ... 21 h of a day, not for {text}")
    return f"data-{text[:10]}-{int(text[11:13]) // 3:02d}-{run}{suffix}"


def write_snapshot(
    path: str | Path,
    snapshot: Snapshot,
    layout: Layout = "deepcam",
    *,
    more_labels: Sequence[NDArray[np.uint8]] = (),
) -> Path:
    """Writes one file, whole or not at all. Coordinates are kept beside what the layout has of its own.

    Args:
        path: of the file.
        snapshot: values and labels.
        layout: channels last, channels first, or one NetCDF variable for each.
        more_labels: versions 1, 2 ... of the labels; none in the ClimateNet layout.
    Raises:
        StoreError: it cannot be written.
        ValueError: the layout has no place for something.
    """
    path = Path(path)
    versions = [*([] if snapshot.labels is None else [snapshot.labels]), *more_labels]
    if layout == "climatenet" and len(versions) > 1:
        raise ValueError("the ClimateNet layout has one version of labels only")
    with whole(path) as temporary:
        if layout == "climatenet":
            _write_netcdf(temporary, snapshot, path.name)
        elif layout in ("deepcam", "gordon-bell"):
            _write_group(temporary, snapshot, versions, last=layout == "deepcam")
        else:
            raise ValueError(f"layout must be deepcam, gordon-bell or climatenet, got {layout!r}")
    return path


def _write_group(path: Path, snapshot: Snapshot, versions: Sequence[NDArray[np.uint8]], *, last: bool) -> None:
    axes, values = snapshot.axes, snapshot.axes.restore(snapshot.values)
    flat = values.reshape(len(values), -1).astype(np.float64)
    stats = np.stack([flat.mean(1), flat.max(1), flat.min(1), flat.std(1)], axis=1).astype(np.float32)
    with require("h5py", extra="climate").File(path, "w") as file:
        group = file.create_group(GROUP)
        group["data"] = np.moveaxis(values, 0, -1) if last else values
        group["data_stats" if last else "stats"] = stats.T if last else stats
        group["lat"], group["lon"] = axes.latitude, axes.longitude
        if snapshot.channels != tuple(CHANNELS):
            group["channels"] = [name.encode() for name in snapshot.channels]
        stored = [axes.restore(labels).astype(np.float32) for labels in versions]
        if last:
            for number, labels in enumerate(stored):
                group[f"labels_{number}"] = labels
                group[f"labels_{number}_stats"] = _label_stats(labels)
        elif stored:
            group["labels"] = stored[0] if len(stored) == 1 else np.stack(stored)
            group["labels_stats"] = _label_stats(stored[0])
        if snapshot.time is not None:
            group.attrs["time"], group.attrs["calendar"] = time_text(snapshot.time), calendar_of(snapshot.time)


def _label_stats(labels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean, maximum, minimum, standard deviation, and share of each class; [7, 1]."""
    shares = [float((labels == number).mean()) for number in range(len(CLASSES))]
    return np.array([[labels.mean()], [labels.max()], [labels.min()], [labels.std()], *([x] for x in shares)], "f4")


def _write_netcdf(path: Path, snapshot: Snapshot, name: str) -> None:
    axes = snapshot.axes
    with contextlib.closing(open_target(path, ".nc")) as target:
        if snapshot.time is None:  # as in ClimateNet itself: the name of the file
            target.create("time", ("time",), np.array([name.encode()]), {})
        else:
            target.create("time", ("time",), *encode_times([snapshot.time]))
        add_axes(target, axes)
        dimensions = ("time", *axes.names)
        for channel, values in zip(snapshot.channels, snapshot.values, strict=True):
            known = CHANNELS.get(channel)
            told = {"units": known.unit, "description": known.meaning} if known else {}
            target.create(channel, dimensions, axes.restore(values)[None], told)
        if snapshot.labels is not None:
            meanings = ", ".join(f"{number}: {text}" for number, text in enumerate(CLASSES))
            stored = axes.restore(snapshot.labels).astype(np.int64)[None]
            target.create("LABELS", dimensions, stored, {"description": meanings})
        target.describe({"Conventions": "CF-1.10"})
