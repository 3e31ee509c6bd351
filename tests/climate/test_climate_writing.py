"""Masks and tables in CF files, gone on with after a stop; and statistics of channels."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for _package in ("xarray", "h5netcdf", "h5py", "zarr", "cftime"):
    pytest.importorskip(_package)
import cftime  # noqa: E402
import h5py  # noqa: E402
import xarray as xr  # noqa: E402

from climate_made import dataset, days, made, published  # noqa: E402
from exafield.climate.columns import Column, read_table, write_table  # noqa: E402
from exafield.climate.fields import CHANNELS, FOUR  # noqa: E402
from exafield.climate.normalisation import Statistics  # noqa: E402
from exafield.climate.reading import open_snapshots  # noqa: E402
from exafield.climate.snapshot import Axes, SnapshotError  # noqa: E402
from exafield.climate.writing import MaskWriter, origin  # noqa: E402
from exafield.store import StoreError  # noqa: E402

# North to south, from -180, and the first column again: all that has to be restored.
AXES = Axes(np.linspace(80, -80, 9).astype(np.float32), np.linspace(-180, 180, 13), ("latitude", "longitude"))
NOLEAP = [cftime.DatetimeNoLeap(2115, 2, 28, 3 * step) for step in range(5)] + [cftime.DatetimeNoLeap(2115, 3, 1)]


def masks(n: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 3, (n, *AXES.grid.shape), dtype=np.uint8)


def opened(path: Path) -> xr.Dataset:
    more = {"consolidated": False} if path.suffix == ".zarr" else {}
    return xr.open_dataset(path, engine="zarr" if path.suffix == ".zarr" else "h5netcdf", **more)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.parametrize("times", [NOLEAP, days(6), [None] * 6], ids=["noleap", "standard", "none"])
def test_masks_lie_as_in_the_source(tmp_path: Path, suffix: str, times: list[Any]) -> None:
    path, truth = tmp_path / f"masks{suffix}", masks(6)
    attributes = origin(source={"history": "made by a model", "title": "a run"}, title="masks")
    writer = MaskWriter(path, AXES, times, {"model": "m"}, attributes)
    for index in (4, 0, 5, 1, 3, 2):  # as they come from several ranks
        assert not path.exists()
        writer.write(index, truth[index])
    assert writer.finish() == path
    with opened(path) as data:
        assert data["LABELS"].dims == ("time", "latitude", "longitude")
        assert data["LABELS"].dtype == np.uint8
        np.testing.assert_array_equal(data["LABELS"].values, AXES.restore(truth))
        np.testing.assert_array_equal(data["LABELS"].values[..., 0], data["LABELS"].values[..., -1])
        np.testing.assert_array_equal(data["latitude"].values, AXES.latitude)
        assert data["latitude"].dtype == np.float32
        assert data["longitude"].attrs["standard_name"] == "longitude"
        flags = data["LABELS"].attrs
        assert flags["flag_meanings"] == "background tropical_cyclone atmospheric_river"
        assert np.asarray(flags["flag_values"]).tolist() == [0, 1, 2]
        assert data.attrs["Conventions"].startswith("CF-")
        assert data.attrs["history"].endswith("\nmade by a model")
        assert json.loads(data.attrs["provenance"])["exafield"]
        assert data.attrs["source_title"] == "a run"
        assert data.attrs["skipped_snapshots"] == 0
    back = open_snapshots(path, channels=())
    assert back.times == times
    for snapshot, mask in zip(back, truth, strict=True):
        assert snapshot.labels is not None
        np.testing.assert_array_equal(snapshot.labels, mask)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_run_is_gone_on_with(tmp_path: Path, suffix: str) -> None:
    path, truth = tmp_path / f"masks{suffix}", masks(6)
    first = MaskWriter(path, AXES, NOLEAP, {"model": "m"})
    first.write(0, truth[0])
    first.write(3, truth[3])
    first.skip(4, "file.nc: damaged")
    with pytest.raises(StoreError, match=r"3 of 6 masks missing, the first is that of 2115-02-28T03:00:00"):
        first.finish()
    with pytest.raises(StoreError, match=r"was made otherwise \(model\)"):
        MaskWriter(path, AXES, NOLEAP, {"model": "other"})
    with pytest.raises(StoreError, match=r"\(snapshots, times\)"):
        MaskWriter(path, AXES, NOLEAP[:5], {"model": "m"})
    second = MaskWriter(path, AXES, NOLEAP, {"model": "m"})
    assert second.missing() == [1, 2, 5]
    for index in second.missing():
        second.write(index, truth[index])
    second.finish()
    with opened(path) as data:
        assert data.sizes["time"] == 5
        assert data.attrs["skipped_snapshots"] == 1
        assert data.attrs["first_skipped"] == "file.nc: damaged"
        np.testing.assert_array_equal(data["LABELS"].values[-1], AXES.restore(truth[5]))
    third = MaskWriter(path, AXES, NOLEAP, {"model": "m"})
    assert third.finished
    assert third.missing() == []
    third.finish()
    with pytest.raises(StoreError, match="is complete"):
        third.write(0, truth[0])
    with pytest.raises(StoreError, match="made otherwise"):
        MaskWriter(path, AXES, NOLEAP, {"model": "other"})


def test_masks_that_are_none(tmp_path: Path) -> None:
    writer = MaskWriter(tmp_path / "m.nc", AXES, days(2), {})
    with pytest.raises(SnapshotError, match=r"labels are none of 0 background"):
        writer.write(0, np.full(AXES.grid.shape, 3, np.uint8))
    with pytest.raises(ValueError, match=r"has shape \(9, 13\), the grid has \(9, 12\)"):
        writer.write(0, np.zeros((9, 13), np.uint8))
    with pytest.raises(ValueError, match="there are 2 snapshots"):
        writer.write(2, masks(1)[0])
    with pytest.raises(ValueError, match=r"ends in \.nc or \.zarr"):
        MaskWriter(tmp_path / "m.grib", AXES, days(2), {})
    with pytest.raises(ValueError, match="different calendars"):
        MaskWriter(tmp_path / "n.nc", AXES, [*days(1), NOLEAP[0]], {})
    (tmp_path / "other.nc").write_bytes(b"my thesis")
    with pytest.raises(StoreError, match="not written by exafield"):
        MaskWriter(tmp_path / "other.nc", AXES, days(2), {})
    assert (tmp_path / "other.nc").read_bytes() == b"my thesis"


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    truth = masks(2)
    writer = MaskWriter(tmp_path / "m.nc", AXES, days(2), {})
    for index in (0, 1):
        writer.write(index, truth[index])
    part = sorted((tmp_path / ".m.nc.parts").glob("*.mask"))[1]
    part.write_bytes(part.read_bytes()[:9])
    with pytest.raises(StoreError, match=r"mask of 2000-02-27T06:00:00 was damaged"):
        writer.finish()
    assert not list(tmp_path.glob("*.nc"))
    assert writer.missing() == [1]
    writer.write(1, truth[1])
    writer.finish()


KILLED = """
import sys, numpy as np
from pathlib import Path
from exafield.climate.snapshot import Axes
from exafield.climate.writing import MaskWriter
axes = Axes(np.linspace(80, -80, 9), np.arange(12) * 30.0)
times = [np.datetime64("2000-01-01", "s") + 3600 * k for k in range(100000)]
writer = MaskWriter(Path(sys.argv[1]), axes, times, {})
print(len(writer.missing()), flush=True)
for index in writer.missing():
    writer.write(index, np.full((9, 12), index % 3, np.uint8))
"""


def test_a_kill_leaves_whole_masks_only(tmp_path: Path) -> None:
    path = tmp_path / "m.nc"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().strip() == "100000"
            while len(list((tmp_path / ".m.nc.parts").glob("*.mask"))) < 5:
                assert process.poll() is None
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
    assert not path.exists()
    axes = Axes(np.linspace(80, -80, 9), np.arange(12) * 30.0)
    times = [np.datetime64("2000-01-01", "s") + 3600 * k for k in range(100000)]
    writer = MaskWriter(path, axes, times, {})
    done = sorted(set(range(100000)) - set(writer.missing()))
    assert len(done) >= 5
    for index in done:
        np.testing.assert_array_equal(writer._stored(index, (9, 12)), index % 3)


@pytest.mark.parametrize("suffix", [".nc", ".zarr", ".csv"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"events{suffix}"
    columns = {
        "start": Column(np.array(NOLEAP[:3]), "first time"),
        "end": Column(np.array(days(3)), "last time"),
        "basin": Column(["North Atlantic", "South Indian", "North Atlantic"], "basin"),
        "pressure": Column([95000.0, 97000.0, np.nan], "lowest pressure", "Pa", "air_pressure_at_mean_sea_level"),
        "landfall": Column([True, False, True], "whether it met land"),
    }
    write_table(path, columns, origin(title="events"))
    write_table(path, columns, origin(title="events"))  # over the old one
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if suffix == ".csv":
        rows = list(csv.reader(path.open()))
        assert rows[0] == ["start", "end", "basin", "pressure [Pa]", "landfall"]
        assert rows[1] == ["2115-02-28T00:00:00", "2000-02-27T00:00:00", "North Atlantic", "95000.0", "True"]
        return
    back = read_table(path)
    assert list(back["start"]) == NOLEAP[:3]
    assert back["end"].tolist() == np.array(days(3)).tolist()
    assert back["basin"].tolist() == ["North_Atlantic", "South_Indian", "North_Atlantic"]
    np.testing.assert_array_equal(back["pressure"], [95000, 97000, np.nan])
    assert back["landfall"].tolist() == [1, 0, 1]
    with opened(path) as data:
        assert data["pressure"].attrs["units"] == "Pa"
        assert data.attrs["title"] == "events"


def test_empty_and_uneven_tables(tmp_path: Path) -> None:
    path = write_table(tmp_path / "e.nc", {"id": Column(np.zeros(0, np.int32), "number"), "name": Column([], "of it")})
    assert read_table(path)["id"].shape == (0,)
    with pytest.raises(ValueError, match="columns differ in shape"):
        write_table(tmp_path / "f.nc", {"a": Column([1], "a"), "b": Column([1, 2], "b")})
    with pytest.raises(SnapshotError, match="cannot be read"):
        read_table(tmp_path / "f.nc")
    with pytest.raises(StoreError, match="cannot write"):
        write_table(tmp_path / "no" / "f.nc", {"a": Column([1], "a")})


def test_statistics_are_those_of_all_values_at_once(tmp_path: Path) -> None:
    snapshots = [made(FOUR, seed=k, time=t) for k, t in enumerate(days(5))]
    dataset(snapshots).to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    got = Statistics.gather(open_snapshots(tmp_path / "x.nc", channels=FOUR))
    everything = np.stack([s.values for s in snapshots], 1).reshape(4, -1).astype(np.float64)
    np.testing.assert_allclose(got.mean, everything.mean(1), rtol=1e-13)
    np.testing.assert_allclose(got.deviation, everything.std(1), rtol=1e-12)
    np.testing.assert_array_equal(got.minimum, everything.min(1))
    np.testing.assert_array_equal(got.maximum, everything.max(1))
    assert got.count == everything.shape[1]
    # In whatever order ranks bring theirs together.
    parts = [Statistics.of(FOUR, s.values) for s in snapshots]
    other = Statistics.empty(FOUR).merge(parts[4].merge(parts[1])).merge(parts[0].merge(parts[2].merge(parts[3])))
    np.testing.assert_allclose(other.squares, got.squares, rtol=1e-12)
    for name in ("s.json", "s.h5"):
        got.save(tmp_path / name)
        back = Statistics.load(tmp_path / name)
        assert (back.channels, back.count) == (got.channels, got.count)
        np.testing.assert_allclose(back.deviation, got.deviation, rtol=1e-6)
    scaled = got.to_unit_range(snapshots[0].values)
    assert scaled.dtype == np.float32
    assert scaled.min() >= 0
    assert scaled.max() <= 1
    whole = np.concatenate([got.standardised(s.values).reshape(4, -1) for s in snapshots], 1)
    np.testing.assert_allclose(whole.mean(1, dtype=np.float64), 0, atol=1e-4)
    np.testing.assert_allclose(whole.std(1, dtype=np.float64), 1, rtol=1e-4)
    np.testing.assert_array_equal(got.select(("PSL", "TMQ")).mean, got.mean[[3, 0]])
    with pytest.raises(ValueError, match="no statistics of TS"):
        got.select(("TS",))


def test_statistics_do_not_lose_digits() -> None:
    # Sums of squares would: pressure varies little round a large value.
    values = (1e5 + np.random.default_rng(0).normal(0, 0.5, (1, 100, 100))).astype(np.float32)
    got = Statistics.of(("PSL",), values).merge(Statistics.of(("PSL",), values + np.float32(1)))
    both = np.concatenate([values, values + np.float32(1)]).astype(np.float64)
    np.testing.assert_allclose(got.deviation[0], both.std(), rtol=1e-9)


def test_published_statistics(tmp_path: Path) -> None:
    low, high = np.arange(16.0), np.arange(16.0) + 2
    with h5py.File(tmp_path / "deepcam.h5", "w") as file:
        file["climate/minval"], file["climate/maxval"] = low, high
    with h5py.File(tmp_path / "stats.h5", "w") as file:
        file["climate/stats"] = np.stack([low + 1, high, low, low + 3], axis=1)
    for name in ("deepcam.h5", "stats.h5"):
        read = Statistics.load(tmp_path / name)
        assert read.channels == tuple(CHANNELS)
        middle = np.broadcast_to(low[:, None, None] + 1, (16, 2, 2)).astype(np.float32)
        np.testing.assert_allclose(read.to_unit_range(middle), 0.5)
    np.testing.assert_allclose(Statistics.load(tmp_path / "stats.h5").deviation, low + 3)
    with pytest.raises(ValueError, match=r"TMQ.*cannot be scaled"):
        Statistics.load(tmp_path / "deepcam.h5").standardised(np.zeros((16, 2, 2), np.float32))
    published(tmp_path / "x.h5", (4, 12, 18))
    for name in ("x.h5", "none.json"):
        with pytest.raises(SnapshotError, match="statistics cannot be read"):
            Statistics.load(tmp_path / name)
    with pytest.raises(ValueError, match="no snapshots"):
        Statistics.gather([])


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        (tmp_path / "file").write_bytes(b"")
        folder = tmp_path / "file"  # root may write anywhere, but not into a file
    else:
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
    with pytest.raises(StoreError, match="cannot write"):
        MaskWriter(folder / "m.nc", AXES, days(1), {})
