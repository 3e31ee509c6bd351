"""What is wrong is said in the words of the command line; and what is refused leaves nothing behind."""

from pathlib import Path

import numpy as np
import pytest

for _package in ("xarray", "h5py", "cftime"):
    pytest.importorskip(_package)

from test_climate_command import GRID, main, store  # noqa: E402

from exafield.cli import main as command_line  # noqa: E402
from exafield.climate.advice import as_flags  # noqa: E402
from exafield.climate.command import FAILED  # noqa: E402
from exafield.climate.exchange import StagingError  # noqa: E402
from exafield.climate.grid import Grid  # noqa: E402
from exafield.climate.masks import turn  # noqa: E402
from exafield.subcommand import USAGE  # noqa: E402


def test_advice_is_spelled_as_options() -> None:
    said = "as in names={'PSL': 'msl'}; units={'PSL': 'kg m-2'}, fill='nearest' or plausible=False"
    assert as_flags(said) == "as in --names PSL=msl; --units 'PSL=kg m-2', --fill or --implausible"


def test_a_mask_whose_longitudes_begin_elsewhere_is_turned() -> None:
    west = Grid(GRID.latitude, np.arange(-180.0, 180.0, 4.0))
    first = turn(GRID, west)
    assert first is not None
    assert np.roll(GRID.longitude, -first)[[0, 45]].tolist() == [180.0, 0.0]  # -180 and 0 there
    assert turn(GRID, GRID) == 0
    assert turn(GRID, Grid(GRID.latitude, GRID.longitude + 1.0)) is None
    assert turn(GRID, Grid(GRID.latitude + 1.0, GRID.longitude)) is None


def test_the_command_line_spells_advice_as_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path / "unit.nc", {"PSL": np.zeros((5, *GRID.shape)) + 1000}, {})
    assert command_line(["climate", "show", str(tmp_path / "unit.nc"), "--fields", "PSL"]) == FAILED
    assert "--units PSL=hPa" in capsys.readouterr().err
    assert StagingError("leave out such files: on_error='skip'").as_flags() == "leave out such files: --on-error skip"


@pytest.mark.parametrize(
    "wrong", [("--hours", "7"), ("--start", "2011-08-01T02"), ("--days", "0"), ("--latitudes", "4")]
)
def test_weather_that_cannot_be_leaves_no_folder(tmp_path: Path, wrong: tuple[str, str]) -> None:
    assert main(["simulate", str(tmp_path / "days"), *wrong]) == USAGE
    assert not list(tmp_path.iterdir())


def test_advice_can_be_typed() -> None:
    said = as_flags("PRECT seems to be in kg m-2 s-1: say units={'PRECT': 'kg m-2 s-1'}, or names={'PSL': 'msl'}")
    assert said.endswith("say --units 'PRECT=kg m-2 s-1', or --names PSL=msl")
