"""What is said and shown of files: means over the area, units, and columns that are there twice."""

from pathlib import Path

import numpy as np
import pytest

for _package in ("xarray", "h5netcdf", "h5py"):
    pytest.importorskip(_package)

from climate_made import dataset, days, made  # noqa: E402
from exafield.climate import plots  # noqa: E402
from exafield.climate.command import main  # noqa: E402
from exafield.climate.description import describe  # noqa: E402
from exafield.climate.masks import How  # noqa: E402


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
