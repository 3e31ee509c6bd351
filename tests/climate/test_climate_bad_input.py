"""Bad climate files are refused with a message that names them and helps, or are left out and counted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for _package in ("xarray", "h5netcdf", "h5py", "zarr", "cftime"):
    pytest.importorskip(_package)
import xarray as xr  # noqa: E402

from climate_made import LATITUDES, LONGITUDES, dataset, days, made, published  # noqa: E402
from exafield.climate import checks  # noqa: E402
from exafield.climate.atmosphere import Atmosphere  # noqa: E402
from exafield.climate.fields import CHANNELS, FOUR  # noqa: E402
from exafield.climate.grid import Grid  # noqa: E402
from exafield.climate.layouts import damage  # noqa: E402
from exafield.climate.published import write_snapshot  # noqa: E402
from exafield.climate.reading import open_snapshots  # noqa: E402
from exafield.climate.snapshot import Snapshot, SnapshotError, whole_globe  # noqa: E402


def change(action: Callable[[xr.Dataset], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        data = dataset([made(FOUR, time=t) for t in days(2)])
        changed = action(data)
        (data if changed is None else changed).to_netcdf(path, engine="h5netcdf")

    return write


def put(name: str, value: float, count: int = 1) -> Callable[[xr.Dataset], None]:
    def action(data: xr.Dataset) -> None:
        data[name].values[1, 3, 2 : 2 + count] = value

    return action


def scaled(name: str, factor: float, offset: float = 0.0, unit: str | None = None) -> Callable[[xr.Dataset], None]:
    def action(data: xr.Dataset) -> None:
        data[name].values[:] = data[name].values * factor + offset
        data[name].attrs = {"units": unit} if unit else {}

    return action


def without_unit(data: xr.Dataset) -> None:
    data["PSL"].attrs = {"units": "furlong"}


def exchanged(data: xr.Dataset) -> xr.Dataset:
    return data.rename(lat="x", lon="lat").rename(x="lon").drop_attrs()


def zigzag(data: xr.Dataset) -> None:
    data["lat"] = ("lat", np.roll(data["lat"].values, 3), data["lat"].attrs)


def labelled(value: float) -> Callable[[xr.Dataset], None]:
    def action(data: xr.Dataset) -> None:
        data["LABELS"] = data["TMQ"] * 0
        data["LABELS"].values[1, 4, 5] = value

    return action


def in_radians(data: xr.Dataset) -> None:
    data["lat"] = ("lat", np.deg2rad(data["lat"].values), {"standard_name": "latitude", "units": "radians"})


def with_a_hole(data: xr.Dataset) -> xr.Dataset:
    return data.isel(lon=[i for i in range(data.sizes["lon"]) if not 5 <= i < 9])


def along_one(data: xr.Dataset) -> xr.Dataset:
    return (
        data.drop_vars(["lat", "lon"])
        .stack(cell=["lat", "lon"])
        .drop_vars(["cell", "lat", "lon"])
        .assign_coords(
            lat=("cell", np.zeros(data.sizes["lat"] * data.sizes["lon"])),
            lon=("cell", np.zeros(data.sizes["lat"] * data.sizes["lon"])),
        )
    )


def curved(data: xr.Dataset) -> xr.Dataset:
    north, east = np.meshgrid(data["lat"], data["lon"], indexing="ij")
    return data.drop_vars(["lat", "lon"]).assign_coords(lat=(("lat", "lon"), north), lon=(("lat", "lon"), east))


def hybrid(data: xr.Dataset) -> None:
    data["ua"] = data["U850"].expand_dims(lev=[900.0, 850.0])
    data["lev"].attrs = {"standard_name": "atmosphere_hybrid_sigma_pressure_coordinate", "units": "level"}
    del data["U850"]


def members(data: xr.Dataset) -> None:
    data["TMQ"] = data["TMQ"].expand_dims(number=4)


BAD: dict[str, tuple[Callable[[xr.Dataset], Any], str]] = {
    "missing channel": (lambda d: d.drop_vars("V850"), r"no variable is V850 .*there are.*TMQ, U850, PSL.*names="),
    "hPa told as Pa": (scaled("PSL", 0.01, unit="Pa"), r"PSL lies between .*'Pa'.*in hPa: say units=\{'PSL': 'hPa'\}"),
    "hPa not told": (scaled("PSL", 0.01), r"tells no unit.*units=\{'PSL': 'hPa'\}"),
    "wrong unit": (without_unit, r"PSL: unit 'furlong' is not known.*units="),
    "exchanged": (exchanged, r"latitude goes from 0 to 340 and longitude from -90 to 90: the two are exchanged"),
    "zigzag": (zigzag, r"latitude must rise, but"),
    "time": (lambda d: d.isel(time=[1, 0]), r"time must rise, but 2000-02-27T06:00:00 is followed by 2000-02-27T00"),
    "time twice": (lambda d: d.isel(time=[0, 0]), r"time must rise"),
    "NaN": (put("U850", np.nan, 3), r"2000-02-27T06.*U850: 3 of 216 values.*first at -40.9091 N, 40 E; fill='nearest'"),
    "infinity": (put("U850", np.inf), r"U850: 1 of 216 values"),
    "undeclared fill": (put("TMQ", 1e20, 2), r"TMQ lies.*2 values are 1e\+20.*_FillValue"),
    "undeclared -9999": (put("TMQ", -9999.0, 2), r"2 values are -9999.*_FillValue"),
    "label 3": (labelled(3), r"1 label is none of 0 background.*first is 3.0 at -24.5455 N, 100 E"),
    "label 1.5": (labelled(1.5), r"label.* none of"),
    "label NaN": (labelled(np.nan), r"label.* none of"),
    "radians": (in_radians, r"latitude 'lat' is in 'radians': convert it to degrees"),
    "a hole": (with_a_hole, r"longitude has a hole: .* select a region without it"),
    "unstructured": (along_one, r"lat and lon both lie along 'cell'.*interpolate"),
    "curvilinear": (curved, r"latitude 'lat' has dimensions \('lat', 'lon'\).*interpolate"),
    "model levels": (hybrid, r"U850 would be ua, whose vertical axis is not one of pressure: interpolate it to 850"),
    "members": (members, r"TMQ has a dimension 'number' of 4: select"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_refused(tmp_path: Path, kind: str) -> None:
    action, message = BAD[kind]
    path = tmp_path / "broken.nc"
    change(action)(path)
    with pytest.raises(SnapshotError, match=message) as caught:
        list(open_snapshots(path, channels=FOUR))
    assert str(path) in str(caught.value)
    # The same file beside a good one: left out, named and counted.
    change(lambda d: None)(tmp_path / "good.nc")
    snapshots = open_snapshots([tmp_path / "good.nc", path], channels=FOUR, on_error="skip")
    read = list(snapshots)
    assert all("good" in s.source or "27T00" in s.source for s in read)
    assert len(read) + len([s for s in snapshots.skipped if s.time is not None]) == len(snapshots)
    assert {s.path for s in snapshots.skipped} == {str(path)}
    assert len(snapshots.checked()) == len(read)


@pytest.mark.parametrize(
    ("channel", "factor", "message"),
    [
        ("PRECT", 1e3, r"PRECT is .* on average over the globe.*told as 'm s-1'.*\{'PRECT': 'kg m-2 s-1'\}"),
        ("PRECT", 1e-3, "PRECT is .* check the variable and its unit, or read with plausible=False"),
        ("TMQ", 0.1, r"TMQ is .*\{'TMQ': 'cm'\}"),
        ("QREFHT", 1e-3, "QREFHT is .* in magnitude on average over the globe, where only 0.002 to 0.03 can be"),
        ("U850", 3.6, "U850 is .* where only 0 to 20 can be"),
        ("VBOT", 10.0, "VBOT is .* where only 0 to 12 can be"),
        ("Z1000", 0.1, r"Z1000 is .*\{'Z1000': 'dam'\}"),
    ],
)
def test_a_wrong_factor_shows_in_the_mean(tmp_path: Path, channel: str, factor: float, message: str) -> None:
    # Each value by itself could be: but for a storm's peak, as here, the range of single ones is wide.
    axes = whole_globe(48, 72)
    values, labels = Atmosphere(axes.grid).snapshot(np.datetime64("2004-08-11T06"))
    at = [*CHANNELS].index(channel)
    mended = Snapshot(values, tuple(CHANNELS), axes, days(1)[0], labels)
    dataset([mended]).to_netcdf(tmp_path / "right.nc", engine="h5netcdf")
    assert len(list(open_snapshots(tmp_path / "right.nc"))) == 1
    values[at] = np.clip(values[at] * factor, *CHANNELS[channel].typical)
    dataset([mended]).to_netcdf(tmp_path / "wrong.nc", engine="h5netcdf")
    with pytest.raises(SnapshotError, match=message):
        open_snapshots(tmp_path / "wrong.nc")[0]
    assert open_snapshots(tmp_path / "wrong.nc", plausible=False)[0][channel].shape == axes.grid.shape


def test_rain_of_regions_and_of_first_steps() -> None:
    globe = whole_globe(90, 180).grid
    rain = np.full(globe.shape, 3e-8, np.float32)

    def judge(values: np.ndarray, grid: Grid) -> None:
        checks.plausible("PRECT", "m s-1", values, grid)

    judge(np.zeros_like(rain), globe)  # zero in any unit
    judge(np.where(globe.latitude[:, None] < 0, np.nan, rain), globe)  # half of it missing, the other half right
    with pytest.raises(SnapshotError, match="over the globe"):
        judge(np.where(globe.latitude[:, None] < 0, np.nan, 1000 * rain), globe)
    # A continent may be dry, and a storm fill a small region, but no continent is under it.
    continent, island = (Grid(np.arange(30.0, north, 1.0), np.arange(0.0, 40.0, 1.0)) for north in (70.0, 34.0))
    judge(np.full(continent.shape, 1e-12, np.float32), continent)
    judge(np.full(island.shape, 3e-5, np.float32), island)
    with pytest.raises(SnapshotError, match=r"on average over 1\d\.\d million km2, where only 0 to 5e-06 can be"):
        judge(np.full(continent.shape, 3e-5, np.float32), continent)


def test_units_said_by_the_user_win(tmp_path: Path) -> None:
    change(scaled("PSL", 0.01, unit="Pa"))(tmp_path / "x.nc")
    snapshot = open_snapshots(tmp_path / "x.nc", channels=("PSL",), units={"PSL": "hPa"})[0]
    np.testing.assert_allclose(snapshot["PSL"], made(FOUR)["PSL"], rtol=1e-6)
    raw = open_snapshots(tmp_path / "x.nc", channels=("PSL",), plausible=False)[0]
    assert raw["PSL"].max() < 1200


def test_fill_takes_the_nearest_round_the_globe(tmp_path: Path) -> None:
    def holes(data: xr.Dataset) -> None:
        data["U850"].values[0, 3, -2:] = np.nan
        data["U850"].values[0, 2:5, -1] = 77.0
        data["U850"].values[0, 3, -1] = np.nan
        data["U850"].values[0, 3, 0] = 55.0
        data["U850"].values[0, 2:5, -2] = np.nan

    change(holes)(tmp_path / "x.nc")
    snapshot = open_snapshots(tmp_path / "x.nc", channels=FOUR, fill="nearest")[0]
    assert snapshot.filled == 4
    assert snapshot["U850"][3, -1] in (55.0, 77.0)
    assert np.isfinite(snapshot.values).all()


def test_packed_values_and_declared_fill(tmp_path: Path) -> None:
    data = dataset([made(("PSL",), time=days(1)[0])])
    data["PSL"].values[0, 0, 0] = np.nan
    packing = {"dtype": "int16", "scale_factor": 2.0, "add_offset": 100000.0, "_FillValue": -32767}
    data.to_netcdf(tmp_path / "x.nc", engine="h5netcdf", encoding={"PSL": packing})
    with pytest.raises(SnapshotError, match="PSL: 1 of 216 values are missing"):
        open_snapshots(tmp_path / "x.nc", channels=("PSL",))[0]


def test_grids_that_differ(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "a.h5", made())
    write_snapshot(tmp_path / "b.h5", made(axes=whole_globe(LATITUDES, 24)))
    with pytest.raises(SnapshotError, match=r"b.h5 is on another grid \(12 x 24.*a.h5 \(12 x 18"):
        open_snapshots(tmp_path)
    kept = open_snapshots(tmp_path, on_error="skip")
    assert (len(kept), len(kept.skipped)) == (1, 1)


@pytest.mark.parametrize("layout", ["deepcam", "gordon-bell"])
def test_exchanged_axes_of_files_without_coordinates(tmp_path: Path, layout: str) -> None:
    shape = (LONGITUDES, LATITUDES, 16) if layout == "deepcam" else (16, LONGITUDES, LATITUDES)
    published(tmp_path / "x.h5", shape)
    with pytest.raises(SnapshotError, match=r"18 latitudes and 12 longitudes.*exchanged"):
        open_snapshots(tmp_path / "x.h5")


def test_channels_that_are_not_told(tmp_path: Path) -> None:
    published(tmp_path / "x.h5", (4, LATITUDES, LONGITUDES))
    with pytest.raises(SnapshotError, match="add a dataset climate/channels"):
        open_snapshots(tmp_path / "x.h5")
    published(tmp_path / "y.h5", (4, LATITUDES, LONGITUDES), channels=[0, 1, 2, 3])
    with pytest.raises(SnapshotError, match=r"no channel PSL; there are TMQ, U850, V850, UBOT"):
        open_snapshots(tmp_path / "y.h5", channels=("TMQ", "PSL"))


@pytest.mark.parametrize("kind", ["h5", "h5netcdf", "scipy", "zarr"])
def test_a_damaged_file_in_the_middle_of_a_year(tmp_path: Path, kind: Any) -> None:
    paths = []
    for day, name in enumerate(["a", "b", "c"]):
        snapshot = made(FOUR, time=days(3)[day])
        path = tmp_path / f"{name}.{'zarr' if kind == 'zarr' else 'h5' if kind == 'h5' else 'nc'}"
        if kind == "h5":
            write_snapshot(path, snapshot)
        elif kind == "zarr":
            dataset([snapshot]).to_zarr(path, zarr_format=3, consolidated=False)
        else:
            dataset([snapshot]).to_netcdf(path, engine=kind)
        paths.append(path)
    if kind == "zarr":
        chunks = [p for p in (paths[1] / "U850" / "c").rglob("*") if p.is_file()]
        assert chunks
        chunks[0].unlink()
    else:
        whole = paths[1].read_bytes()
        paths[1].write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(SnapshotError, match=r"b\.(h5|nc|zarr)") as caught:
        list(open_snapshots(paths, channels=FOUR))
    if kind != "zarr":
        size = len(whole) * 2 // 3
        there = f"{size} bytes" if kind == "scipy" else f"{size} of {len(whole)} bytes"
        said = f"seems damaged or incomplete ({there}): copy or make it again, or leave it out"
        assert str(caught.value) == f"{paths[1]} {said}"
    kept = open_snapshots(paths, channels=FOUR, on_error="skip")
    assert [Path(s.source.split(",")[0]).stem for s in kept] == ["a", "c"]
    assert [Path(s.path).stem for s in kept.skipped] == ["b"]


def test_what_is_no_damage_is_not_called_so(tmp_path: Path) -> None:
    path = write_snapshot(tmp_path / "a.h5", made())
    raw = bytearray(path.read_bytes())
    assert damage(path, BlockingIOError(11, "unable to lock file")) is None
    assert damage(path, OSError(5, "Input/output error")) is None
    assert damage(path, LookupError("no variable is TMQ")) is None
    # In the middle, where HDF5 keeps what is where.
    raw[700:1100] = bytes(400)
    path.write_bytes(raw)
    with pytest.raises(SnapshotError, match=rf"a\.h5 seems damaged or incomplete \({len(raw)} bytes\)"):
        open_snapshots(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GRIB....", "GRIB file: convert"),
        (b"\x1f\x8b....", "gzip: unpack"),
        (b"CDF\x05....", "CDF-5.*nccopy"),
        (b"", r"0 bytes.*neither NetCDF"),
        (b"a,b\n1,2\n", "neither NetCDF"),
        (b"\x89HDF....", r"damaged or incomplete \(8 bytes\)"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.nc").write_bytes(content)
    with pytest.raises(SnapshotError, match=message):
        open_snapshots(tmp_path / "x.nc")
