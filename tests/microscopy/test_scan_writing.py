"""Scans written to files part by part: the same patterns, whatever the parts; nothing left after an error."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from exafield.microscopy.crystal import embedded
from exafield.microscopy.detector import AngularDetector
from exafield.microscopy.multislice import Multislice
from exafield.microscopy.potential import Slices, projected_slices
from exafield.microscopy.readers import open_scan
from exafield.microscopy.views import view
from exafield.microscopy.writing import Raster, scan_to_file
from exafield.store import StoreError


def made(**choices: object) -> tuple[Multislice, Slices]:
    crystal = next(c for c in embedded() if c.name == "SrTiO3")
    slices = projected_slices(view(crystal, "001"), sampling=0.25, thickness=12.0)
    given = {"energy": 200e3, "convergence_angle": 0.02, "defocus": 30.0}
    lens = Multislice(sampling=slices.sampling, slice_thickness=slices.thickness, **(given | choices))  # type: ignore[arg-type]
    return lens, slices


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
@pytest.mark.parametrize("binned", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_is_written_is_the_scan(tmp_path: Path, suffix: str, binned: bool, device: str) -> None:
    lens, slices = made(device=device)
    array = slices.array().to(device)
    a = slices.cell[0]
    detector = AngularDetector(8, 0.03) if binned else None
    # Steps that do not fit the cell; that do, so that patterns repeat; and the same in parts of three patterns.
    rasters = [Raster((4, 5), (0.55, 0.43), (0.2, -1.0)), Raster((4, 5), (a / 2, a / 4)), Raster((2, 8), (0.5, a / 2))]
    for number, (raster, part) in enumerate(zip(rasters, (2**28, 2**28, 3 * array[0].numel() * 4), strict=True)):
        path = tmp_path / f"{number}{suffix}"
        taken = scan_to_file(path, lens, array, raster, detector, part)
        assert taken == lens.path(array, raster.positions())
        expected = lens.scan(array, raster.positions())
        if detector is not None:
            expected = detector.bin(expected, lens.sampling, lens.wavelength)
        with open_scan(path) as scan:
            found = scan.read(slice(0, raster.size[0]), slice(0, raster.size[1])).reshape(expected.shape)
            assert np.abs(found - expected.cpu().numpy()).max() < 1e-6 * float(expected.max())
            told = scan.told
        assert told.scan_step == pytest.approx(raster.step)
        step = 0.06 / 8 if binned else lens.wavelength / slices.box[0]
        assert told.detector_step == pytest.approx((step, step))
        assert (told.energy, told.convergence_angle) == (200e3, pytest.approx(0.02))
        assert told.thickness == pytest.approx(len(slices.order) * slices.thickness)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{number}{suffix}" for number in range(3)]


def test_nothing_is_left_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lens, slices = made()
    raster = Raster((2, 2), (0.5, 0.5))
    with pytest.raises(StoreError, match=r"\.h5, \.hdf5, \.emd or \.zarr"):
        scan_to_file(tmp_path / "scan.tif", lens, slices.array(), raster)
    (tmp_path / "scan.h5").write_text("mine")
    with pytest.raises(StoreError, match="there already"):
        scan_to_file(tmp_path / "scan.h5", lens, slices.array(), raster)
    with pytest.raises(StoreError, match="cannot write"):
        scan_to_file(tmp_path / "nowhere" / "scan.h5", lens, slices.array(), raster)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("exafield.microscopy.writing._Run.parts", full)
    for name in ("other.h5", "other.zarr"):
        with pytest.raises(StoreError, match="No space left"):
            scan_to_file(tmp_path / name, lens, slices.array(), raster)
    assert [p.name for p in tmp_path.iterdir()] == ["scan.h5"]
    assert (tmp_path / "scan.h5").read_text() == "mine"


@pytest.mark.heavy
def test_memory_does_not_grow_with_the_scan(tmp_path: Path) -> None:
    """Peak memory of a scan of 0.6 GB, and of one of a tenth of that, in processes of their own."""
    program = """
import sys, torch
from test_scan_writing import made
from exafield.microscopy.writing import Raster, scan_to_file
torch.set_num_threads(1)
lens, slices = made()
rows = int(sys.argv[1])
array = slices.potential[list(slices.order)].repeat(1, 8, 8)
scan_to_file(sys.argv[2], lens, array, Raster((rows, 100), (0.37, 0.41)), part=2**24)
print(next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")))
"""
    peaks = []
    for rows in (8, 80):
        path = tmp_path / f"{rows}.h5"
        command = [sys.executable, "-c", program, str(rows), str(path)]
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
        size = path.stat().st_size / 2**20
        path.unlink()
    assert size > 400
    assert peaks[1] - peaks[0] < 60


def test_bad_rasters_are_named(tmp_path: Path) -> None:
    lens, slices = made()
    with pytest.raises(ValueError, match="at least 1"):
        scan_to_file(tmp_path / "scan.h5", lens, slices.array(), Raster((0, 4), (0.5, 0.5)))
    holed = slices.array()
    holed[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="slice 0 is not finite"):
        scan_to_file(tmp_path / "scan.h5", lens, holed, Raster((2, 4), (0.5, 0.5)))
    assert list(tmp_path.iterdir()) == []
