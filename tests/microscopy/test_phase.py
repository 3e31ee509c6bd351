"""Potentials of weak phase objects, from centres of mass and from single-side-band ptychography."""

import math

import numpy as np
import pytest
import torch

from exafield.microscopy.imaging import centre_of_mass
from exafield.microscopy.phase import integrated_centre_of_mass, refined, transfer
from exafield.microscopy.ptychography import single_side_band
from exafield.microscopy.window import interpolation
from thin_crystals import ALPHA, ENERGY, HALF, Thin, relative, thin

PTYCHOGRAPHY = {"energy": ENERGY, "convergence_angle": ALPHA, "half_angle": HALF}


def window(of: Thin, probes: int, step: float, refine: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patterns of a window that is not periodic, and the potential in it."""
    places = (np.arange(probes) + 0.5) * step + 0.77
    pixels = (np.arange(probes * refine) + 0.5) * step / refine + 0.77
    x, y = (interpolation(of.patterns.shape[d], of.cell[d], places).to(of.patterns.dtype) for d in (0, 1))
    return torch.einsum("ab,cd,bdkl->ackl", x, y, of.patterns), of.truth(pixels, pixels, blur=0.2)


@pytest.mark.parametrize("name", ["SrTiO3", "Si"])
def test_integrated_centre_of_mass_is_the_potential_seen_through_the_probe(name: str) -> None:
    """To 1 % on a periodic scan: what is left is the aperture's disc, made of whole beams in a 40 A array."""
    one = thin(name)
    mass = centre_of_mass(one.patterns, HALF)
    found = integrated_centre_of_mass(mass, step=one.step, energy=ENERGY, periodic=True)
    assert relative(found, one.truth(*one.grid(), probe=True)) < 0.012
    sharp = integrated_centre_of_mass(
        mass, step=one.step, energy=ENERGY, periodic=True, convergence_angle=ALPHA, strength=1e-4, blur=0.2
    )
    assert relative(sharp, one.truth(*one.grid(), blur=0.2)) < 0.012


def test_error_of_the_integrated_centre_of_mass_falls_as_the_array_grows() -> None:
    def error(box: float) -> float:
        one = thin("Si", box=box)
        found = integrated_centre_of_mass(
            centre_of_mass(one.patterns, HALF), step=one.step, energy=ENERGY, periodic=True
        )
        return relative(found, one.truth(*one.grid(), probe=True))

    assert error(40.0) < 0.6 * error(14.0)


@pytest.mark.parametrize(("name", "pixels"), [("SrTiO3", 16), ("Si", 16), ("Si", 64)])
def test_single_side_band_is_the_potential(name: str, pixels: int) -> None:
    one = thin(name, pixels=pixels)
    found = single_side_band(one.patterns, step=one.step, periodic=True, strength=1e-4, blur=0.2, **PTYCHOGRAPHY)
    assert relative(found, one.truth(*one.grid(), blur=0.2)) < 0.01


def test_single_side_band_fails_where_the_object_is_not_weak() -> None:
    """The error grows with the phase: the method's own limit, not the code's."""

    def error(weak: float) -> float:
        one = thin("SrTiO3", weak=weak)
        found = single_side_band(one.patterns, step=one.step, periodic=True, strength=1e-4, blur=0.2, **PTYCHOGRAPHY)
        return relative(found, one.truth(*one.grid(), blur=0.2))

    assert error(0.1) < 0.01
    assert error(6.0) > 0.1


def test_defocus_is_corrected_for() -> None:
    one = thin("Si", defocus=60.0)
    truth = one.truth(*one.grid(), blur=0.2)
    choices = {"step": one.step, "periodic": True, "strength": 1e-4, "blur": 0.2, **PTYCHOGRAPHY}
    assert relative(single_side_band(one.patterns, defocus=60.0, **choices), truth) < 0.03
    assert relative(single_side_band(one.patterns, **choices), truth) > 0.2


def test_a_window_is_continued_by_its_mirror_image() -> None:
    """Free edges cost some accuracy near them; a ramp from edge to edge, as of a periodic continuation, costs more."""
    patterns, truth = window(thin("Si"), 32, 0.25, 2)
    mass = centre_of_mass(patterns, HALF)
    choices = {
        "step": (0.25, 0.25), "energy": ENERGY, "convergence_angle": ALPHA, "strength": 1e-3, "blur": 0.2, "refine": 2
    }  # fmt: skip
    free, joined = (integrated_centre_of_mass(mass, periodic=periodic, **choices) for periodic in (False, True))
    assert relative(free, truth) < 0.05
    assert relative(joined, truth) > 2 * relative(free, truth)
    found = single_side_band(patterns[None], step=(0.25, 0.25), strength=1e-3, refine=2, blur=0.2, **PTYCHOGRAPHY)
    assert found.shape == (1, 64, 64)
    assert relative(found[0], truth) < 0.15
    assert relative(found[0, 16:48, 16:48], truth[16:48, 16:48]) < 0.08


def test_a_coarse_scan_is_unfolded() -> None:
    """At twice the complete step integration loses what lies beyond 0.9 / A; least squares over the detector do not."""
    one = thin("SrTiO3")
    places = np.arange(7) * one.cell[0] / 7
    x = interpolation(one.patterns.shape[0], one.cell[0], places).to(one.patterns.dtype)
    coarse = torch.einsum("ab,cd,bdkl->ackl", x, x, one.patterns)
    step = (one.cell[0] / 7,) * 2
    pixels = (np.arange(28) - 1.5) * one.cell[0] / 28
    truth = one.truth(pixels, pixels, blur=0.2)
    ptychography = single_side_band(coarse, step=step, periodic=True, strength=1e-4, refine=4, blur=0.2, **PTYCHOGRAPHY)
    integrated = integrated_centre_of_mass(
        centre_of_mass(coarse, HALF),
        step=step, energy=ENERGY, periodic=True, convergence_angle=ALPHA, strength=1e-4, refine=4, blur=0.2,
    )  # fmt: skip
    assert relative(ptychography, truth) < 0.03
    assert relative(integrated, truth) > 0.1


def test_intensities_may_be_counts_and_single_precision() -> None:
    one = thin("Si")
    choices = {"step": one.step, "periodic": True, **PTYCHOGRAPHY}
    expected = single_side_band(one.patterns, **choices)
    found = single_side_band((one.patterns * 1234.0).float(), **choices)
    assert found.dtype == torch.float32
    assert relative(found.double(), expected) < 1e-4


def test_refining_keeps_the_middles_of_pixels() -> None:
    """Even and odd sizes; the mean of the finer field's four pixels is not the coarse one, but frequencies are kept."""
    for n in (8, 9):
        x = torch.arange(n, dtype=torch.float64)
        coarse = torch.cos(2 * math.pi * 2 * x[:, None] / n + 0.3) * torch.sin(2 * math.pi * 3 * x / n)
        fine = (torch.arange(3 * n, dtype=torch.float64) + 0.5) / 3 - 0.5
        expected = torch.cos(2 * math.pi * 2 * fine[:, None] / n + 0.3) * torch.sin(2 * math.pi * 3 * fine / n)
        assert torch.allclose(refined(torch.fft.fft2(coarse), 3), expected, atol=1e-12)


def test_transfer_ends_at_twice_the_aperture() -> None:
    limit = 2 * ALPHA / 0.0250793
    found = transfer(torch.tensor([0.0, limit / 2, limit, 9.0]), ALPHA, ENERGY)
    assert found[0] == pytest.approx(1.0)
    # Of two discs half a diameter apart: (2 / pi) (acos(1/2) - sqrt(3) / 4) of one is in both.
    assert float(found[1]) == pytest.approx(2 / math.pi * (math.pi / 3 - 3**0.5 / 4), rel=1e-3)
    assert found[2:].tolist() == pytest.approx([0.0, 0.0], abs=1e-4)


def test_what_cannot_be_reconstructed_is_named() -> None:
    scan = torch.ones(4, 4, 8, 8)
    with pytest.raises(ValueError, match=r"disc of 50 mrad does not fit on the detector of 40 mrad"):
        single_side_band(scan, step=(0.2, 0.2), energy=ENERGY, convergence_angle=0.05, half_angle=0.04)
    with pytest.raises(ValueError, match="use a finer scan"):
        single_side_band(scan, step=(4.0, 4.0), **PTYCHOGRAPHY)
    with pytest.raises(ValueError, match="must be square"):
        single_side_band(torch.ones(4, 4, 8, 6), step=(0.2, 0.2), **PTYCHOGRAPHY)
    with pytest.raises(ValueError, match="refine"):
        integrated_centre_of_mass(torch.ones(2, 4, 4), step=(0.2, 0.2), energy=ENERGY, refine=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same() -> None:
    one = thin("Si")
    choices = {"step": one.step, "periodic": True, **PTYCHOGRAPHY}
    found = single_side_band(one.patterns.cuda(), **choices)
    assert relative(found.cpu(), single_side_band(one.patterns, **choices)) < 1e-9
    mass = centre_of_mass(one.patterns, HALF)
    there = integrated_centre_of_mass(mass.cuda(), step=one.step, energy=ENERGY).cpu()
    assert relative(there, integrated_centre_of_mass(mass, step=one.step, energy=ENERGY)) < 1e-9
