"""What a first look at a scan finds: disc, dead pixels, electrons, and axes that do not fit."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")

from exafield.microscopy.calibration import Calibration, ScanError  # noqa: E402
from exafield.microscopy.prepare import Prepared, check_steps, prepare  # noqa: E402
from exafield.microscopy.readers import open_scan  # noqa: E402
from exafield.microscopy.simulated import Recording, named_crystal, record  # noqa: E402
from exafield.microscopy.survey import find_disc, orientation, turned  # noqa: E402

KNOWN: dict[str, Any] = {"energy": 200e3, "convergence_angle": 0.025, "scan_step": (0.5, 0.5), "thickness": 40.0}


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Black phosphorus, 26 x 24 positions, 48 x 48 pixels to 40 mrad, 2,000 electrons."""
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    how = Recording(size=(26, 24), detector_pixels=48, dose=2000.0, thickness=20.0)
    record(path, named_crystal("P black"), (0, 0, 1), how)
    with h5py.File(path) as file:
        return np.asarray(file["scan/datacube/data"][...])


def look(folder: Path, data: np.ndarray, needed: dict[str, str] | None = None, **known: Any) -> Prepared:
    path = folder / "scan.npy"
    np.save(path, data)
    with open_scan(path) as scan:
        given = Calibration(**{**KNOWN, **known})
        return prepare(scan, given) if needed is None else prepare(scan, given, needed)


def test_what_is_right_is_not_warned_of(counts: np.ndarray, tmp_path: Path) -> None:
    found = look(tmp_path, counts)
    assert found.warnings == []
    assert found.disc is not None
    assert found.disc.centre == pytest.approx((23.5, 23.5), abs=0.1)
    assert found.disc.radius == pytest.approx(15.0, rel=0.02)  # 25 of 40 mrad on 24 pixels
    c = found.recorded
    assert c.detector_step[0] == pytest.approx(0.040 / 24, rel=0.02)
    assert c.dose == pytest.approx(2000, rel=0.03)  # all but what is scattered beyond the detector
    assert check_steps(found, 0.5, 2 * 0.040 / 16) == []


@pytest.mark.parametrize("centre", [(30.2, 27.7), (20.0, 33.4)])
def test_a_disc_anywhere(centre: tuple[float, float]) -> None:
    fine = np.hypot(*(np.indices((512, 512)) / 8 - 0.4375 - np.array(centre)[:, None, None])) < 9.3
    mean = fine.reshape(64, 8, 64, 8).mean((1, 3)) * 50 + 1.0
    mean = np.random.default_rng(0).poisson(mean * 20) / 20
    disc = find_disc(mean)
    assert disc is not None
    assert disc.centre == pytest.approx(centre, abs=0.1)
    assert disc.radius == pytest.approx(9.3, rel=0.02)
    assert find_disc(np.random.default_rng(0).uniform(0, 1, (64, 64))) is None


def test_the_axes_of_detector_and_scan(counts: np.ndarray, tmp_path: Path) -> None:
    for changed, flags in (
        (counts[:, :, ::-1, ::-1], "--rotation 180"),
        (counts[:, :, :, ::-1].transpose(0, 1, 3, 2), "--rotation"),
        (counts.transpose(1, 0, 2, 3), "--transpose True"),
        (counts[:, :, ::-1], "--transpose True"),
    ):
        (said,) = look(tmp_path, np.ascontiguousarray(changed)).warnings
        assert "centre of mass" in said
        assert flags in said
        words = said.partition("--rotation ")[2].split()
        # What is advised puts it right.
        advised = {"rotation": float(words[0]), "transpose": "True" in words}
        assert look(tmp_path, np.ascontiguousarray(changed), **advised).warnings == []
    swapped = np.ascontiguousarray(counts.transpose(2, 3, 0, 1))
    with pytest.raises(ScanError, match=r"the axes are in another order; try --axes kx,ky,x,y"):
        look(tmp_path, swapped)
    np.save(tmp_path / "right.npy", counts)
    with open_scan(tmp_path / "right.npy", axes=("kx", "ky", "y", "x")) as scan:
        assert scan.swapped() == "x,y,ky,kx"


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("rotation", [-170.0, -60.0, 25.0, 90.0])
def test_any_turn_is_found(rotation: float, transpose: bool) -> None:
    x, y = np.indices((40, 32))
    columns = [(i, j) for i in range(-4, 50, 9) for j in range(-3, 40, 11)]
    bumps = [np.exp(-((x - i) ** 2 + (y - j) ** 2) / 8) for i, j in columns]
    gradient = np.stack(np.gradient(sum(bumps)), axis=-1)
    gradient += np.random.default_rng(0).normal(0, 0.01, gradient.shape)
    recorded = turned(gradient, -rotation, False)
    found = orientation(recorded[..., ::-1] if transpose else recorded)
    assert found.transpose is transpose
    assert abs((found.rotation - rotation + 180) % 360 - 180) < 3
    assert found.share > 0.9


def test_dead_pixels_and_values_that_are_no_numbers(counts: np.ndarray, tmp_path: Path) -> None:
    data = counts.astype(np.float32)
    data[:, :, 20, 30] = 0
    data[:, :, 5, 40] = 900
    data[:, :, 25, 12] = np.nan
    data[3, 4, :10] = np.nan
    found = look(tmp_path, data)
    assert found.warnings == []
    assert any(
        "3 dead or hot detector pixels are left out: (5, 40), (20, 30), (25, 12)" in note for note in found.notes
    )
    assert any("0.08% of the values are no numbers" in note for note in found.notes)
    assert found.disc is not None
    assert found.disc.centre == pytest.approx((23.5, 23.5), abs=0.1)
    dark = counts.astype(np.float64) - 0.2
    assert any("of the values are below zero" in said for said in look(tmp_path, dark, dose=2000.0).warnings)
    with pytest.raises(ScanError, match=r"the mean pattern sums to -\d+: is a dark level subtracted twice"):
        look(tmp_path, dark - 2)
    data = counts.copy()
    data[::2, ::2] = 0
    assert any("25.00% of the patterns looked at are empty" in said for said in look(tmp_path, data).warnings)
    with pytest.raises(ScanError, match="hold no signal"):
        look(tmp_path, np.zeros_like(counts))


def test_what_contradicts_the_data(counts: np.ndarray, tmp_path: Path) -> None:
    for known, said in (
        ({"detector_step": (1e-3, 1e-3)}, r"radius of 14\.\d pixels, which are 14\.\d mrad .* said to be 25 mrad"),
        ({"centre": (20.0, 23.5)}, r"the centre given, \(20, 23\.5\), is 3\.5 pixels from"),
        ({"dose": 500.0, "gain": 1.0}, r"a pattern holds 1\d\d\d electrons in the mean, and 500 are said to be"),
    ):
        (warning,) = look(tmp_path, counts, **known).warnings
        assert re.search(said, warning), warning
    found = look(tmp_path, counts * 37, dose=2000.0)
    assert found.recorded.gain == pytest.approx(37, rel=0.03)
    assert any("counts per electron, so that the mean pattern holds the 2000 electrons given" in n for n in found.notes)


def test_what_is_missing_is_named_with_its_option(counts: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(
        ScanError,
        match=r"does not state, and neither was given: energy \(--energy \[eV\]\), scan step \(--scan-step \[A\]\), "
        r"thickness \(--thickness \[A\], roughly\)$",
    ):
        look(tmp_path, counts, energy=None, scan_step=None, thickness=None)
    with pytest.raises(ScanError, match=r"convergence angle \(--convergence-angle \[rad\]\), dose \(--dose"):
        look(tmp_path, counts + 0.5, convergence_angle=None)
    noise = np.random.default_rng(0).poisson(3, (10, 10, 24, 24))
    with pytest.raises(ScanError, match="no bright-field disc is seen in the mean pattern"):
        look(tmp_path, noise)
    found = look(tmp_path, noise, centre=(11.5, 11.5), detector_step=(2e-3, 2e-3))
    assert found.recorded.centre == (11.5, 11.5)
    assert "no bright-field disc" in found.warnings[0]


def test_a_disc_that_is_cut_off_or_wanders(counts: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="is cut by the edge of the detector"):
        look(tmp_path, counts[:, :, 16:])
    wide = np.concatenate([counts] * 4, axis=0)[:100]
    moved = np.stack([np.roll(row, round(6 * (number - 50) / 50), axis=1) for number, row in enumerate(wide)])
    assert any("the pattern wanders by" in said for said in look(tmp_path, moved).warnings)


def test_steps_too_coarse(counts: np.ndarray, tmp_path: Path) -> None:
    width = 2 * 0.040 / 16
    assert (
        "coarser than that of the network" in check_steps(look(tmp_path, counts, scan_step=(0.8, 0.8)), 0.5, width)[0]
    )
    (said,) = check_steps(look(tmp_path, counts, scan_step=(0.4, 0.4)), 0.5, width)
    assert "along x and y, 0.4 A, is neither 0.5 A divided by a whole number nor below 0.25 A" in said
    assert check_steps(look(tmp_path, counts, scan_step=(0.2, 0.2)), 0.5, width) == []
    coarse = counts.reshape(26, 24, 12, 4, 12, 4).sum((3, 5))
    assert "is wider than a bin of the network" in check_steps(look(tmp_path, coarse), 0.5, width)[0]
