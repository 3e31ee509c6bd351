"""Virtual detectors against hand-made patterns and against physics; their picture."""

from pathlib import Path

import pytest
import torch

from exafield.microscopy import imaging
from thin_crystals import ALPHA, HALF, thin


def spot(kx: int, ky: int, pixels: int = 16) -> torch.Tensor:
    scan = torch.zeros(2, 3, pixels, pixels)
    scan[..., kx, ky] = 5.0
    return scan


def test_a_spot_is_seen_by_the_detector_it_falls_on() -> None:
    """One pixel is 5 mrad; pixel (8, 8) lies 3.5 mrad off the axis, (12, 8) 22.6 mrad, (0, 8) 37.6 mrad."""
    for place, seen in (((8, 8), (1, 0, 0)), ((12, 8), (0, 1, 0)), ((0, 8), (0, 0, 1))):
        images = imaging.images(spot(*place), HALF, ALPHA)
        found = [float(images[n].mean()) for n in ("bright field", "annular bright field", "annular dark field")]
        assert found == pytest.approx(seen, abs=0.04)
        assert images["bright field"].shape == (2, 3)


def test_rings_share_out_the_detector() -> None:
    """Divided pixels count in part: rings that meet add up to all, and a disc has its area."""
    parts = imaging.ring(16, HALF, 0, 0.013) + imaging.ring(16, HALF, 0.013, 0.031) + imaging.ring(16, HALF, 0.031, 1.0)
    assert torch.allclose(parts, torch.ones(16, 16))
    pixel = 2 * HALF / 16
    assert float(imaging.ring(16, HALF, 0, ALPHA).sum()) * pixel**2 == pytest.approx(torch.pi * ALPHA**2, rel=2e-3)


def test_centre_of_mass_has_units_and_signs() -> None:
    mass = imaging.centre_of_mass(spot(12, 3), HALF)
    assert mass.shape == (2, 2, 3)
    assert mass[0, 0, 0] == pytest.approx(0.0225)
    assert mass[1, 0, 0] == pytest.approx(-0.0225)
    assert imaging.centre_of_mass(torch.zeros(1, 1, 4, 4), HALF).abs().max() == 0
    phase = imaging.differential_phase_contrast(spot(10, 6), HALF, ALPHA)
    assert phase[:, 0, 0].tolist() == pytest.approx([1.0, -1.0])


def test_batches_are_imaged_one_by_one() -> None:
    scan = torch.rand(3, 4, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        imaging.annular_dark_field(scan, HALF, ALPHA)[1], imaging.annular_dark_field(scan[1], HALF, ALPHA)
    )
    assert torch.allclose(imaging.centre_of_mass(scan, HALF)[2], imaging.centre_of_mass(scan[2], HALF))


def test_electrons_are_drawn_to_atoms_and_heavy_columns_are_bright() -> None:
    """Half an angstrom to the left of strontium electrons turn right; on it most go to high angles."""
    one = thin("SrTiO3", weak=1.0)
    x, _ = one.grid()
    column = one.truth(x, one.grid()[1])
    i, j = divmod(int(column.argmax()), column.shape[1])
    shift = round(0.6 / one.step[0])
    mass = imaging.centre_of_mass(one.patterns, HALF)
    assert mass[0, i - shift, j] > 1e-4
    assert mass[0, (i + shift) % len(x), j] < -1e-4
    assert mass[1, i, j - shift] > 1e-4
    dark = imaging.annular_dark_field(one.patterns, HALF, ALPHA)
    assert divmod(int(dark.argmax()), dark.shape[1]) == (i, j)


def test_picture(tmp_path: Path) -> None:
    one = thin("SrTiO3", weak=1.0)
    path = tmp_path / "detectors.png"
    imaging.plot(path, one.patterns, step=one.step, half_angle=HALF, convergence_angle=ALPHA, title="SrTiO3")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_bad_detectors_are_named() -> None:
    with pytest.raises(ValueError, match=r"half_angle must be in \(0, 0\.5\] rad, got 40"):
        imaging.centre_of_mass(spot(1, 1), 40.0)
    with pytest.raises(ValueError, match="4 x 6 pixels"):
        imaging.bright_field(torch.ones(1, 1, 4, 6), HALF, ALPHA)
    with pytest.raises(ValueError, match="inner < outer"):
        imaging.annular(spot(1, 1), HALF, 0.03, 0.02)
