"""What is said and shown of files: means over the area, units, and columns that are there twice."""

from pathlib import Path

import numpy as np
import pytest

for _package in ("xarray", "h5netcdf", "h5py"):
    pytest.importorskip(_package)

import xarray as xr  # noqa: E402

from climate_made import dataset, days, made  # noqa: E402
from exafield.climate import plots  # noqa: E402
from exafield.climate.atmosphere import Atmosphere  # noqa: E402
from exafield.climate.command import main  # noqa: E402
from exafield.climate.description import describe  # noqa: E402
from exafield.climate.fields import CHANNELS  # noqa: E402
from exafield.climate.grid import EARTH_RADIUS  # noqa: E402
from exafield.climate.masks import How  # noqa: E402
from exafield.climate.snapshot import Axes, Snapshot, whole_globe  # noqa: E402


def test_means_are_of_the_area(tmp_path: Path) -> None:
    snapshots = [made(("TMQ", "PSL"), time=time, seed=seed) for seed, time in enumerate(days(2))]
    data = dataset(snapshots)
    data["TMQ"].values[0, :3] = np.nan  # what is missing has no area
    data["TMQ"].values[:, -1] *= 1.5  # cells at the pole, of which there are many and small
    data.to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    lines, _ = describe([str(tmp_path / "x.nc")], How())
    said = "\n".join(lines)
    assert "area mean" in said
    areas = np.stack([snapshots[0].grid.areas] * 2)
    for name in ("TMQ", "PSL"):
        there = np.isfinite(data[name].values)
        mean = np.average(data[name].values[there], weights=areas[there])
        (line,) = (line for line in lines if line.strip().startswith(f"{name} "))
        assert float(line.split()[-2]) == pytest.approx(mean, rel=5e-4)
        assert name == "PSL" or mean != pytest.approx(float(data[name].mean()), rel=5e-3)


def test_pictures_tell_the_units_of_what_is_no_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(plots, "panels", lambda path, fields, *_, **__: shown.extend(fields))
    data = dataset([made(("TMQ",))])
    data["VORT"] = (1e-6 * data["TMQ"]).assign_attrs(units="s**-1")
    data.to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    assert main(["show", str(tmp_path / "x.nc"), "--fields", "TMQ", "VORT", "--out", str(tmp_path / "x.png")]) == 0
    assert shown == ["TMQ, precipitable water of the column [kg m$^{-2}$]", "VORT [s$^{-1}$]"]


@pytest.mark.parametrize("turned", [False, True])
def test_a_column_that_is_there_twice_counts_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], turned: bool
) -> None:
    grid = whole_globe(48, 72).grid
    east = np.append(grid.longitude, 360.0)[:: -1 if turned else 1]
    twice = Axes(grid.latitude, east)
    assert twice.repeats
    assert twice.grid.areas.sum() == pytest.approx(4 * np.pi * EARTH_RADIUS**2)
    events = {}
    for name, axes in (("once", whole_globe(48, 72)), ("twice", twice)):
        snapshots = []
        for time in days(2):
            values, labels = Atmosphere(grid).snapshot(time)
            snapshots.append(Snapshot(values, tuple(CHANNELS), axes, time, labels))
        out = [str(tmp_path / f"{name}{end}") for end in (".nc", "-masks.nc", "-events")]
        dataset(snapshots).to_netcdf(out[0], engine="h5netcdf")
        assert main(["label", out[0], "--out", out[1], "--engine", "serial"]) == 0
        assert ("the last column is the first again: it counts once" in capsys.readouterr().out) == (name == "twice")
        assert main(["events", out[1], "--fields", out[0], "--out", out[2], "--tables-only"]) == 0
        events[name] = {path.name: path.read_text() for path in Path(out[2]).glob("*.csv")}
        assert len(events[name]["events.csv"].splitlines()) > 3
    assert events["once"] == events["twice"]
    with xr.open_dataset(tmp_path / "twice-masks.nc") as masks, xr.open_dataset(tmp_path / "once-masks.nc") as once:
        np.testing.assert_array_equal(masks["lon"], east)
        np.testing.assert_array_equal(masks["LABELS"][..., 0], masks["LABELS"][..., -1])
        np.testing.assert_array_equal(masks["LABELS"].sel(lon=once["lon"]), once["LABELS"])
    assert main(["describe", str(tmp_path / "twice.nc")]) == 0
    assert "48 x 72:" in (said := capsys.readouterr().out)
    assert "round the globe, 73 columns in the file, of which the last is the first again" in said
