"""The example of a user's own crystal, as it is shown, with settings so small that it learns nothing."""

import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("h5py")
pytest.importorskip("zarr")

from exafield.engine.local import SerialEngine
from exafield.microscopy import generate

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_own_crystal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    example = EXAMPLES / "own_crystal.py"
    assert len(example.read_text().splitlines()) < 80
    words = [str(EXAMPLES / "SrTiO3.cif"), "--folder", str(tmp_path), "--steps", "2", "--size", "18"]
    monkeypatch.setattr(
        generate, "ProcessEngine", SerialEngine
    )  # processes take longer to start than these to simulate
    monkeypatch.setattr(sys, "argv", [str(example), *words, "--thickness", "8", "--thicknesses", "1"])
    with pytest.warns(UserWarning, match=r"there is only O3Sr1Ti1 sg221 to learn from and to judge by"):
        runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out
    assert "against the known potential: relative L2 " in said
    for name in ("data.zarr", "scan.h5", "potential.h5", "potential-columns.csv", "potential.png"):
        assert (tmp_path / name).exists(), name
