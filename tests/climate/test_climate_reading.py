"""Readers of climate files: every layout, order and naming gives the same snapshot."""

import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for _package in ("xarray", "h5netcdf", "h5py", "zarr", "cftime"):
    pytest.importorskip(_package)
import cftime  # noqa: E402
import xarray as xr  # noqa: E402

from climate_made import LATITUDES, LONGITUDES, TIME, dataset, days, made, published  # noqa: E402
from exafield.climate.fields import CHANNELS, CYCLONE, FOUR, RIVER  # noqa: E402
from exafield.climate.grid import Grid  # noqa: E402
from exafield.climate.published import file_name, write_snapshot  # noqa: E402
from exafield.climate.reading import Snapshots, open_snapshots  # noqa: E402
from exafield.climate.snapshot import Axes, Snapshot, SnapshotError, on_grid, whole_globe  # noqa: E402
from exafield.climate.units import conversion  # noqa: E402


def same(one: Snapshot, other: Snapshot) -> None:
    np.testing.assert_array_equal(one.values, other.values)
    assert one.channels == other.channels
    assert one.time == other.time
    assert (one.labels is None) == (other.labels is None)
    if one.labels is not None:
        np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.grid.latitude, other.grid.latitude, atol=1e-9)
    np.testing.assert_allclose(one.grid.longitude, other.grid.longitude, atol=1e-9)


@pytest.mark.parametrize("layout", ["deepcam", "gordon-bell", "climatenet"])
@pytest.mark.parametrize("channels", [tuple(CHANNELS), FOUR])
def test_layouts_go_there_and_back(tmp_path: Path, layout: Any, channels: tuple[str, ...]) -> None:
    there = made(channels)
    # The name says nothing of the layout.
    path = write_snapshot(tmp_path / "anything.data.h5", there, layout)
    back = open_snapshots(path, channels=channels)
    assert len(back) == 1
    same(back[0], there)
    some = open_snapshots(path, channels=("PSL", "TMQ"), labels=None)[0]
    np.testing.assert_array_equal(some["TMQ"], there["TMQ"])
    assert some.labels is None
    assert not list(tmp_path.glob(".*"))


def test_published_files_tell_time_by_name_and_grid_by_shape(tmp_path: Path) -> None:
    path = tmp_path / "data-2003-02-28-07-2.h5"
    ones = np.ones((LATITUDES, LONGITUDES), np.float32)
    published(path, (LATITUDES, LONGITUDES, 16), labels_0=ones, labels_1=2 * ones)
    first, second = (open_snapshots(path, labels=version)[0] for version in (0, 1))
    assert first.time == cftime.DatetimeNoLeap(2003, 2, 28, 21)
    assert first.labels is not None
    assert second.labels is not None
    assert (first.labels == CYCLONE).all()
    assert (second.labels == RIVER).all()
    assert first.grid.latitude[[0, -1]].tolist() == [-90, 90]
    assert first.grid.periodic
    with pytest.raises(SnapshotError, match=r"version 2.*labels_0, labels_1"):
        open_snapshots(path, labels=2)[0]


def test_climatenet_tells_time_by_names_of_files(tmp_path: Path) -> None:
    there = [made(FOUR), made(FOUR, seed=1)]
    names = ["data-2003-06-01-01-1.nc", "data-2003-07-17-02-1.nc"]
    data = dataset([made(FOUR, time=t) for t in days(2)]).assign_coords(time=names)
    data["LABELS"] = (("time", "lat", "lon"), np.stack([s.labels for s in there if s.labels is not None]).astype(int))
    data["mask"] = data["TMQ"] * 7  # of land, say; no labels
    data.to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    back = open_snapshots(tmp_path, channels=FOUR)
    assert back.times == [cftime.DatetimeNoLeap(2003, 6, 1, 3), cftime.DatetimeNoLeap(2003, 7, 17, 6)]
    np.testing.assert_array_equal(back[1].labels, there[1].labels)
    path = write_snapshot(tmp_path / names[1], made(FOUR, time=None), "climatenet")
    assert open_snapshots(path, channels=FOUR)[0].time == cftime.DatetimeNoLeap(2003, 7, 17, 6)
    path = write_snapshot(tmp_path / "y.nc", made(FOUR, time=None), "climatenet")
    assert open_snapshots(path, channels=FOUR).times == [None]


def test_what_a_kill_left_half_written_is_not_read(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "data-2003-06-01-01-1.h5", made(), "deepcam")
    (tmp_path / ".data-2003-06-01-02-1-4711.h5").write_bytes(b"half")
    assert len(open_snapshots(tmp_path)) == 1


def test_the_grid_of_the_published_set() -> None:
    # As ClimateNet files tell it (768 x 1152), and as points of the published tables confirm.
    grid = whole_globe(768, 1152).grid
    assert grid.latitude[476] == pytest.approx(21.70795306, abs=1e-8)
    assert grid.longitude[[880, 1151]].tolist() == [275.0, 359.6875]


@pytest.mark.parametrize("axis", [0, -1])
def test_label_versions_on_either_axis(tmp_path: Path, axis: int) -> None:
    ones = np.ones((LATITUDES, LONGITUDES), np.float32)
    labels = np.stack([ones, 2 * ones, 0 * ones], axis)
    published(tmp_path / "x.h5", (4, LATITUDES, LONGITUDES), labels=labels, channels=[0, 1, 2, 3])
    for version, label in enumerate([1, 2, 0]):
        snapshot = open_snapshots(tmp_path / "x.h5", channels=("TMQ", "V850"), labels=version)[0]
        assert snapshot.labels is not None
        assert (snapshot.labels == label).all()


@pytest.mark.parametrize("kind", ["h5netcdf", "scipy", "zarr"])
@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("start", [0.0, -180.0])
def test_many_times_any_order(tmp_path: Path, kind: Any, falling: bool, start: float) -> None:
    north = np.linspace(-75, 75, LATITUDES)[:: -1 if falling else 1]
    axes = Axes(north.astype(np.float32), start + np.arange(LONGITUDES) * 20.0)
    there = [made(FOUR, axes, k, time) for k, time in enumerate(days(5))]
    path = tmp_path / ("years.zarr" if kind == "zarr" else "years.nc")
    data = dataset(there)
    data.to_zarr(path, zarr_format=3, consolidated=False) if kind == "zarr" else data.to_netcdf(path, engine=kind)
    back = open_snapshots(path, channels=FOUR)
    assert back.times == days(5)
    for one, other in zip(back, there, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
        assert one.grid.latitude[0] == -75
        np.testing.assert_array_equal(
            one.axes.restore(one.values), data.to_array().values[:, back.times.index(one.time)]
        )
    assert back[-1].time == days(5)[-1]
    assert [s.time for s in back[1:3]] == days(5)[1:3]


@pytest.mark.parametrize(
    ("longitude", "first", "last", "periodic"),
    [
        ([0, 90, 180, -90], 0, 270, True),
        ([180, 270, 0, 90], 180, 450, True),
        ([0, 90, 180, 270, 360], 0, 270, True),  # the first column again
        ([360, 270, 180, 90, 0], 0, 270, True),
        ([340, 350, 0, 10], 340, 370, False),
        ([20, 10, 0, -10], -10, 20, False),
    ],
)
def test_longitudes(longitude: list[float], first: float, last: float, periodic: bool) -> None:
    east = np.array(longitude, float)
    axes = Axes(np.array([10.0, 0.0, -10.0]), east)
    assert (axes.grid.longitude[0], axes.grid.longitude[-1], axes.grid.periodic) == (first, last, periodic)
    field = np.add.outer(np.array([10.0, 0.0, -10.0]), 1000 * (east % 360))
    mine = axes.arrange(field)
    np.testing.assert_allclose(mine[0], -10 + 1000 * (axes.grid.longitude % 360))
    np.testing.assert_array_equal(axes.restore(mine), field)


def test_no_leap_days_and_model_years(tmp_path: Path) -> None:
    times = [cftime.DatetimeNoLeap(2115, 2, 28, 21), cftime.DatetimeNoLeap(2115, 3, 1)]
    dataset([made(("PSL",), time=t) for t in times]).to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    back = open_snapshots(tmp_path / "x.nc", channels=("PSL",))
    assert back.times == times
    assert (back.times[1] - back.times[0]).total_seconds() == 3 * 3600


def test_names_of_other_models(tmp_path: Path) -> None:
    """ERA5 and CMIP: axes of pressure in hPa or Pa, other units, standard names before aliases."""
    there = made(("TMQ", "U850", "T200", "Z200", "PSL", "TREFHT", "PRECT", "QREFHT", "UBOT"))
    data = dataset([there], TMQ="tcwv", PSL="msl", TREFHT="tas", PRECT="pr", QREFHT="huss", UBOT="uas")
    levels = [1000.0, 850.0, 200.0]
    for name, short, at, standard in (
        ("U850", "u", 1, "eastward_wind"), ("T200", "t", 2, "air_temperature"), ("Z200", "z", 2, "geopotential"),
    ):  # fmt: skip
        full = np.full((1, 3, LATITUDES, LONGITUDES), -1e6)
        full[:, at] = data[name].values * (9.80665 if short == "z" else 1)
        data = data.drop_vars(name)
        unit = {"u": "m s**-1", "t": "K", "z": "m**2 s**-2"}[short]
        data[short] = (("time", "level", "lat", "lon"), full, {"units": unit, "standard_name": standard})
    data["level"] = ("level", levels, {"units": "millibars"})
    data["msl"] = data["msl"] / 100
    data["msl"].attrs = {"units": "hPa"}
    data["tas"] = data["tas"] - 273.15
    data["tas"].attrs = {"units": "degC", "standard_name": "air_temperature"}
    data["pr"] = data["pr"] * 1000
    data["pr"].attrs = {"units": "kg m-2 s-1"}
    data["uas"].attrs["standard_name"] = "eastward_wind"
    data["huss"] = data["huss"] * 1000
    data["huss"].attrs = {"units": "g/kg"}
    data["height"] = 2.0
    data["number"] = ("time", [0])
    for pascal in (False, True):
        if pascal:
            data = data.assign_coords(level=("level", np.array(levels) * 100, {"standard_name": "air_pressure"}))
        path = tmp_path / f"{pascal}.nc"
        data.to_netcdf(path, engine="h5netcdf")
        back = open_snapshots(path, channels=there.channels)[0]
        for name in there.channels:
            np.testing.assert_allclose(back[name], there[name], rtol=2e-6, err_msg=name)
        with pytest.raises(SnapshotError, match=r"V850.*names="):
            open_snapshots(path, channels=("V850",))
        with pytest.raises(SnapshotError, match=r"T500 is at 500 hPa.*1000, 850, 200 hPa"):
            open_snapshots(path, channels=("T500",))


def test_names_without_attributes(tmp_path: Path) -> None:
    """As in the Zarr stores of ERA5 for machine learning: long names, no units, longitude before latitude."""
    there = made(("TMQ", "U850", "TREFHT"), time=days(1)[0])
    data = dataset([there], TMQ="total_column_water_vapour", U850="u_component_of_wind", TREFHT="2m_temperature")
    wind = data["u_component_of_wind"]
    data["u_component_of_wind"] = wind.expand_dims(level=[500, 850]) * xr.DataArray([2.0, 1.0], dims="level")
    data = data.transpose("time", "level", "lon", "lat").drop_attrs()
    data.rename(lat="latitude", lon="longitude").to_zarr(tmp_path / "x.zarr", zarr_format=2, consolidated=True)
    back = open_snapshots(tmp_path / "x.zarr", channels=there.channels)[0]
    np.testing.assert_array_equal(back.values, there.values)


@pytest.mark.parametrize(
    ("channel", "unit", "value", "wanted"),
    [
        ("PSL", "hPa", 1013.25, 101325.0),
        ("PSL", "millibars", 1013.25, 101325.0),
        ("PS", "kg m-1 s-2", 1e5, 1e5),
        ("TMQ", "kg/m^2", 30, 30),
        ("TMQ", "kg m**-2", 30, 30),
        ("TMQ", "mm", 30, 30),
        ("U850", "m s**-1", 10, 10),
        ("U850", "m.s-1", 10, 10),
        ("U850", "knots", 36, 36 * 1852 / 3600),
        ("U850", "km/h", 36, 10),
        ("T200", "degC", -53.15, 220),
        ("T200", "K", 220, 220),
        ("Z200", "m**2 s**-2", 9.80665 * 12000, 12000),
        ("Z200", "J kg-1", 9.80665 * 12000, 12000),
        ("Z200", "gpm", 12000, 12000),
        ("PRECT", "kg m-2 s-1", 1e-3, 1e-6),
        ("PRECT", "mm/h", 3.6, 1e-6),
        ("PRECT", "mm day-1", 86.4, 1e-6),
        ("QREFHT", "g/kg", 10, 0.01),
        ("QREFHT", "1", 0.01, 0.01),
    ],
)
def test_units(channel: str, unit: str, value: float, wanted: float) -> None:
    way = conversion(CHANNELS[channel], unit)
    assert value * way.factor + way.offset == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("channel", "unit", "message"),
    [
        ("PRECT", "m", r"gathered over some time.*divide"),
        ("PRECT", "kg m-2", r"gathered over some time.*divide"),
        ("PSL", "m", "cannot be converted to Pa"),
        ("PSL", "degC", "one of temperature"),
        ("TMQ", "kg m-2 s-1", "cannot be converted"),
        ("QREFHT", "%", "not known"),
        ("T200", "degF", "not known"),
    ],
)
def test_units_that_do_not_fit(channel: str, unit: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conversion(CHANNELS[channel], unit)


def test_standard_names_win_over_aliases_and_the_user_over_both(tmp_path: Path) -> None:
    there = made(("TMQ", "PSL"))
    data = dataset([there], PSL="sea_level", TMQ="water")
    data["sea_level"].attrs["standard_name"] = "air_pressure_at_mean_sea_level"
    data["psl"] = (data["sea_level"] + 500).drop_attrs()
    data["water"].attrs["standard_name"] = "atmosphere_mass_content_of_water_vapor"
    data["vapour"] = data["water"] + 5
    data["vapour"].attrs = data["water"].attrs
    data.to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    path = tmp_path / "x.nc"
    np.testing.assert_array_equal(open_snapshots(path, channels=("PSL",))[0]["PSL"], there["PSL"])
    other = open_snapshots(path, channels=("PSL",), names={"PSL": "psl"})[0]
    np.testing.assert_array_equal(other["PSL"], there["PSL"] + 500)
    with pytest.raises(SnapshotError, match=r"TMQ .* may be water or vapour: say which, as in names="):
        open_snapshots(path, channels=("TMQ",))
    np.testing.assert_array_equal(
        open_snapshots(path, channels=("TMQ",), names={"TMQ": "water"})[0]["TMQ"], there["TMQ"]
    )
    with pytest.raises(SnapshotError, match=r"TMQ is to be unknown variable 'watr': did you mean 'water'"):
        open_snapshots(path, channels=("TMQ",), names={"TMQ": "watr"})


def test_level_in_the_name_and_other_variables(tmp_path: Path) -> None:
    there = made(("U850", "T500"))
    data = dataset([there], U850="u850", T500="ta_500")
    data["IVT"] = data["u850"] * 3
    data["IVT"].attrs["units"] = "kg m-1 s-1"
    data.to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    back = open_snapshots(tmp_path / "x.nc", channels=("IVT", "T500", "U850"))[0]
    np.testing.assert_array_equal(back["T500"], there["T500"])
    np.testing.assert_allclose(back["IVT"], 3 * there["U850"])


def test_arguments(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "x.h5", made())
    (tmp_path / "stats.h5").write_bytes(b"no snapshot")
    with pytest.raises(SnapshotError, match="there is no file"):
        open_snapshots(tmp_path / "y.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SnapshotError, match="holds no file"):
        open_snapshots(tmp_path / "empty")
    with pytest.raises(ValueError, match="did you mean 'TMQ'"):
        open_snapshots(tmp_path, names={"TMX": "x"})
    with pytest.raises(ValueError, match="asked for twice"):
        open_snapshots(tmp_path, channels=("TMQ", "TMQ"))
    assert len(open_snapshots(tmp_path)) == len(open_snapshots(str(tmp_path / "*x.h5"))) == 1
    with pytest.raises(IndexError):
        open_snapshots(tmp_path)[1]


def test_threads_and_other_processes(tmp_path: Path) -> None:
    there = [made(FOUR, seed=k, time=t) for k, t in enumerate(days(8))]
    for k in range(0, 8, 2):
        dataset(there[k : k + 2]).to_netcdf(tmp_path / f"{k}.nc", engine="h5netcdf")
    snapshots = open_snapshots(tmp_path, channels=FOUR)
    wrong: list[Any] = []

    def read(order: list[int]) -> None:
        try:
            for index in order:
                np.testing.assert_array_equal(snapshots[index].values, there[index].values)
        except BaseException as error:
            wrong.append(error)

    threads = [
        threading.Thread(target=read, args=(np.random.default_rng(k).permutation(8).tolist(),)) for k in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    copy: Snapshots = pickle.loads(pickle.dumps(snapshots))
    np.testing.assert_array_equal(copy[5].values, there[5].values)
    # A forked process must not use the files, nor the lock, of this one.
    with snapshots._lock:
        child = os.fork()
        if child == 0:
            try:
                np.testing.assert_array_equal(snapshots[5].values, there[5].values)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
    snapshots.close()
    np.testing.assert_array_equal(snapshots[5].values, there[5].values)


def test_names_of_files() -> None:
    assert file_name(TIME, 3) == "data-2003-10-24-01-3.h5"
    with pytest.raises(ValueError, match="not for 2003-10-24T04"):
        file_name(cftime.DatetimeNoLeap(2003, 10, 24, 4))
    with pytest.raises(KeyError, match="has no channel 'x', but TMQ"):
        on_grid(np.zeros((1, 4, 8), np.float32), ("TMQ",), Grid.whole(4, 8))["x"]


def real(name: str) -> Path:
    path = Path(os.environ.get("EXAFIELD_DATA", "")) / "climate" / name
    if "EXAFIELD_DATA" not in os.environ or not path.exists():
        pytest.skip(f"needs {name} in climate/ of EXAFIELD_DATA")
    return path


def test_real_merra2() -> None:
    snapshot = open_snapshots(real("merra2_iwv_ivt_20170228_00.nc"), channels=("TMQ", "IVT"))[0]
    assert snapshot.grid.shape == (361, 576)
    assert snapshot.grid.periodic
    assert snapshot.time == np.datetime64("2017-02-28")
    assert snapshot["IVT"].max() == pytest.approx(1596, abs=1)


def test_real_era5_gust() -> None:
    snapshot = open_snapshots(real("era5_gust_20110801.nc"), channels=("i10fg",))[0]
    # Typhoon Muifa, as the description of the data tells; the file runs from north to south.
    row, column = np.unravel_index(np.argmax(snapshot["i10fg"]), snapshot.grid.shape)
    assert snapshot["i10fg"].max() == pytest.approx(38.3, abs=0.05)
    assert (snapshot.grid.latitude[row], snapshot.grid.longitude[column]) == (18.5, 133.75)


def test_real_ecmwf_pressure() -> None:
    snapshots = open_snapshots(real("ecmwf_mslp_20220817_4steps.nc"), channels=("PSL",))
    assert [str(t)[:13] for t in snapshots.times] == [
        "2022-08-17T00",
        "2022-08-18T00",
        "2022-08-18T12",
        "2022-08-19T00",
    ]
    assert all(93000 < s["PSL"].min() < s["PSL"].max() < 105000 for s in snapshots)
