"""exafield microscopy simulate, describe and detectors; data from a user's own crystals."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")

from exafield.cli import FAILED, USAGE, main  # noqa: E402
from exafield.microscopy.crystal import CrystalError  # noqa: E402
from exafield.microscopy.electron import wavelength  # noqa: E402
from exafield.microscopy.generate import CrystalWarning, Generation, crystals, keys  # noqa: E402
from exafield.microscopy.readers import open_scan  # noqa: E402
from exafield.microscopy.room import LossWarning  # noqa: E402
from exafield.microscopy.scans import load, split  # noqa: E402
from exafield.microscopy.simulated import Recording, named_crystal, record, zone_indices  # noqa: E402
from exafield.microscopy.views import views  # noqa: E402
from small import write_cifs  # noqa: E402

QUICK = ("--detector-pixels", "16", "--thickness", "8")
_SKEW = """data_skew
_cell_length_a 5.0
_cell_length_b 6.0
_cell_length_c 7.0
_cell_angle_alpha 90
_cell_angle_beta 104
_cell_angle_gamma 90
loop_
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Cu 0 0 0
"""


def microscopy(*words: object) -> int:
    return main(["microscopy", *map(str, words)])


def test_a_simulated_scan_is_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scan.h5"
    words = ("simulate", "CsCl", "--zone", "1,1,0", "--size", 20, 12, "--step", 0.4, "--dose", 800, "--energy", 120e3)
    assert microscopy(*words, "--out", path, *QUICK) == 0
    assert (
        "CsCl [110], 20 x 12 positions 0.4 A apart, 800 electrons per pattern (5000 per A^2)" in capsys.readouterr().out
    )
    with open_scan(path) as scan:
        assert scan.shape == (20, 12, 16, 16)
        assert scan.dtype == np.uint16
        data = scan.read(slice(0, 20), slice(0, 12))
        assert data.sum((2, 3)).mean() == pytest.approx(800, rel=0.03)
        told = scan.told
        assert (told.energy, told.convergence_angle, told.dose, told.gain) == (120e3, 0.025, 800.0, 1.0)
        assert told.scan_step == pytest.approx((0.4, 0.4))
        assert told.detector_step == pytest.approx((0.005, 0.005))
        assert scan.truth is not None
        # Columns of caesium and of chlorine, along [110]: the potential repeats as the crystal does.
        pixel = scan.truth.x[1] - scan.truth.x[0]
        assert pixel == 0.125
        assert scan.truth.x[0] < -1.5
        assert scan.truth.x[-1] > 19 * 0.4 + 1.5
        assert scan.truth.potential.min() < 0.2 * scan.truth.potential.max()
    assert microscopy(*words, "--out", path, *QUICK) == FAILED  # nothing is written over
    assert "this is there already" in capsys.readouterr().err
    again = tmp_path / "again.zarr"
    assert microscopy(*words, "--out", again, *QUICK) == 0
    with open_scan(again) as scan:
        assert np.array_equal(scan.read(slice(0, 20), slice(0, 12)), data)
        assert scan.told == told
    assert microscopy(*words, "--out", tmp_path / "other.h5", *QUICK, "--seed", 1) == 0
    with open_scan(tmp_path / "other.h5") as scan:
        assert not np.array_equal(scan.read(slice(0, 20), slice(0, 12)), data)


def test_own_crystals_and_what_they_lack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cif = write_cifs(tmp_path, ("W",)) / "W.cif"
    out = tmp_path / "scan.h5"
    assert microscopy("simulate", cif, "--out", out, "--size", 4, 4, "--dose", "None", *QUICK) == 0
    with h5py.File(out) as file:
        assert file["scan/datacube/data"].attrs["units"] == "share of the beam"
        assert file["scan/datacube/data"][...].sum((2, 3)).mean() == pytest.approx(1, abs=0.03)
    for words, code, said in (
        (("simulate", "Unobtainium", "--out", tmp_path / "a.h5"), FAILED, "or give a .cif file"),
        (("simulate", tmp_path / "no.cif", "--out", tmp_path / "a.h5"), FAILED, "cannot be read: No such file"),
        (("simulate", "W", "--out", tmp_path / "a.tif"), FAILED, r"choose a name that ends in \.h5"),
        (("simulate", "W", "--out", tmp_path / "no" / "a.h5"), USAGE, "there is no folder"),
        (("simulate", "W", "--out", tmp_path / "a.h5", "--zone", "11"), FAILED, "must be three whole numbers"),
        (("simulate", "W", "--out", tmp_path / "a.h5", "--zone", "000"), FAILED, "whole numbers, not all 0"),
        (("simulate", "W", "--out", tmp_path / "a.h5", "--thickness", 1e8), FAILED, "--thickness is in A, from 1 to"),
        (("simulate", "W", "--out", tmp_path / "a.h5", "--b-factor", -1), FAILED, "--b-factor must be 0 A.2 or more"),
        (("simulate", "W", "--out", tmp_path / "a.h5", "--max-strain", 2), USAGE, "1 % is 0.01"),
        (("simulate", "W", "--out", tmp_path / "a.h5", "--dose", -1), FAILED, "--dose must be above 0"),
        (("simulate", "W", "--out", tmp_path / "a.h5", "--detector-pixels", 4096), FAILED, "which is too large with"),
        (("simulate", "W", "--out", tmp_path / "a.h5", "--convergence-angle", 0.3), FAILED, "to 0.1 rad"),
        (("describe", tmp_path / "no.h5"), FAILED, "there is no file"),
        (("detectors", out, "--out", tmp_path / "a.txt"), USAGE, r"ends in \.png"),
        (("paint",), USAGE, "microscopy paint"),
        (("describe",), USAGE, "of what"),
    ):
        assert microscopy(*words) == code, words
        assert re.search(said, capsys.readouterr().err), words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["W.cif", "scan.h5"]


def test_a_thick_specimen_loses_electrons_and_that_is_said(tmp_path: Path) -> None:
    words = ("simulate", "Au", "--size", 2, 2, "--detector-pixels", 16, "--out", tmp_path / "a.h5")
    with pytest.warns(LossWarning, match=r"Au \[001\]: \d\d % of the incident electrons are scattered past the band"):
        assert microscopy(*words, "--thickness", 600) == 0


def test_a_small_angle_takes_a_large_array(tmp_path: Path) -> None:
    """A probe of 1 mrad is wider than the array of training; most of what a thin crystal passes is in its disc."""
    how = Recording(
        convergence_angle=1e-3, detector_angle=0.02, detector_pixels=80, thickness=4.0, dose=None, size=(2, 2)
    )
    record(tmp_path / "scan.h5", named_crystal("C diamond"), (0, 0, 1), how)
    with open_scan(tmp_path / "scan.h5") as scan:
        pattern = scan.read(slice(0, 1), slice(0, 1))[0, 0]
    assert 0.9 * pattern.sum() < pattern[37:43, 37:43].sum() < 1


def test_the_grid_is_as_fine_as_the_detector_is_wide() -> None:
    crystal = named_crystal("W")
    (view,) = [v for v in views(crystal) if v.zone == "001"]
    assert Generation(energy=300e3, convergence_angle=0.030).recipe(view, 0).sampling == 0.125
    recipe = Generation(convergence_angle=0.060).recipe(view, 0)
    assert recipe.microscope(recipe.slices(view)).cutoff > 1.6 * 0.060 / wavelength(200e3)


def test_built_in_crystals_do_not_hide_what_is_said_of_others(tmp_path: Path) -> None:
    (tmp_path / "skew.cif").write_text(_SKEW)
    with pytest.warns(CrystalWarning) as caught:
        keys(Generation(crystals=f"embedded,{tmp_path / 'skew.cif'}"))
    assert [str(entry.message).split(":")[1] for entry in caught] == [" skew"]


def test_data_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for words, code, said in (
        (
            ("--convergence-angle", "0.001"),
            USAGE,
            r"the probe is as wide as the array .* at least 0\.0036 rad",
        ),
        (("--thickness", "1"), USAGE, r"problem\.data: thickness, 1\.0 A, must be at least one slice of 2\.0 A"),
        (("--store", f"{tmp_path}/file/a.zarr"), FAILED, r"cannot write .*a\.zarr\.lock: .*; choose another place"),
    ):
        assert main(["generate", "microscopy", *words]) == code
        assert re.search(said, capsys.readouterr().err), words


def test_zones_are_written_in_more_than_one_way() -> None:
    assert zone_indices("110") == (1, 1, 0)
    assert zone_indices("1-12") == (1, -1, 2)
    assert zone_indices("1,-1,12") == zone_indices("1 -1 12") == (1, -1, 12)


def test_describe_and_detectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scan.h5"
    assert microscopy("simulate", "W", "--out", path, "--size", 20, 16, "--detector-pixels", 32) == 0
    capsys.readouterr()
    assert microscopy("describe", path, "--convergence-angle", 0.030) == 0
    said = capsys.readouterr().out
    for text in (
        "scan     20 x 16 positions of 32 x 32 pixels, uint16",
        "convergence angle: 0.03 rad",
        "note     bright-field disc: centre (15.",
        "warning  convergence_angle is 0.025 in the file, and 0.03 was given",
        "warning  the bright-field disc has a radius of 10.0 pixels, which are 24.9 mrad",
    ):
        assert re.search(re.escape(text).replace(r"10\.0", r"\d+\.\d").replace(r"24\.9", r"2\d(\.\d)?"), said), text
    assert microscopy("detectors", path, "--out", tmp_path / "d.png") == 0
    with Image.open(tmp_path / "d.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[0] > 500
    assert pixels.std() > 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.png", "scan.h5"]


def test_each_crystal_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    folder = write_cifs(tmp_path / "own", ("W", "CsCl"))
    (folder / "broken.cif").write_text("no crystal")
    (folder / "skew.cif").write_text(_SKEW)
    with pytest.warns(CrystalWarning) as caught:
        found = keys(Generation(crystals=f"{folder}"))
    assert {key.partition(".")[0] for key in found} == {"W", "CsCl"}
    said = [str(entry.message) for entry in caught]
    assert any(re.search(r"^left out: .*broken\.cif: (is not a CIF|has no unit cell)", text) for text in said)
    assert any(text.startswith("left out: skew: the cell angles are 90.00, 104.00, 90.00 degrees") for text in said)
    with pytest.warns(
        CrystalWarning, match=r"CsCl: its orthogonal cell of 4\.1 x 4\.1 x 4\.1 A has no axis with edges up"
    ):
        assert {key.partition(".")[0] for key in keys(Generation(crystals=str(folder), largest_edge=3.5))} == {"W"}
    both = f"embedded,{folder / 'W.cif'}"
    assert [c.name for c in crystals(both)][-1] == "W"
    assert len(list(crystals(both))) == 137
    with pytest.warns(CrystalWarning), pytest.raises(CrystalError, match=r"no crystal can be used: .*broken\.cif"):
        list(crystals(str(folder / "broken.cif")))


def test_data_of_own_crystals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_cifs(tmp_path / "own", ("W", "CsCl"))
    words = ["generate", "microscopy", "--cif", str(folder / "W.cif"), str(folder / "CsCl.cif"), "--thickness", "8"]
    words += ["--store", str(tmp_path / "own.h5"), "--engine", "serial"]
    assert main(words) == 0
    assert "own.h5" in capsys.readouterr().out
    scans = load(tmp_path / "own.h5", Generation(crystals=f"{folder / 'W.cif'},{folder / 'CsCl.cif'}", thickness=8.0))
    assert {scan.crystal for scan in scans} == {"W", "CsCl"}
    with pytest.warns(CrystalWarning, match="there is only .* and .* to learn from and to judge by"):
        parts = split(scans)
    assert all(len(part) == len(scans) for part in parts.values())
    for others, code, said in (
        (["--cif", str(tmp_path / "no.cif")], USAGE, r"there is no folder or \.cif file '.*no\.cif'"),
        (["--crystals", "crystal"], USAGE, "there is no folder or .cif file 'crystal'"),
    ):
        assert main(["generate", "microscopy", *others]) == code
        assert re.search(said, capsys.readouterr().err)
    assert main(["generate", "subsurface", "--cif", "a.cif"]) == USAGE
    assert "--cif: subsurface is not made from crystals: leave it out" in capsys.readouterr().err
