"""Multislice against closed forms, against itself on the full array, and its conventions."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from exafield.microscopy import room
from exafield.microscopy.cell_scan import scan_cell
from exafield.microscopy.crystal import Crystal, embedded
from exafield.microscopy.detector import AngularDetector
from exafield.microscopy.electron import interaction, wavelength
from exafield.microscopy.multislice import Multislice
from exafield.microscopy.periodic import smallest_tile
from exafield.microscopy.potential import Slices, projected_slices
from exafield.microscopy.views import view

# Some tests exaggerate aberrations to see them in arrays that are quick to simulate.
pytestmark = pytest.mark.filterwarnings("ignore:the probe is wider:UserWarning")

CRYSTALS = {crystal.name: crystal for crystal in embedded()}


def crystal_slices(name: str = "SrTiO3", zone: str = "001", **choices: float) -> Slices:
    return projected_slices(view(CRYSTALS[name], zone), **choices)


def microscope(slices: Slices | None = None, **choices: object) -> Multislice:
    sampling, thickness = (slices.sampling, slices.thickness) if slices else ((0.125, 0.125), 2.0)
    given = {
        "energy": 200e3,
        "sampling": sampling,
        "slice_thickness": thickness,
        "convergence_angle": 0.025,
        "dtype": torch.complex128,
    }
    return Multislice(**(given | choices))  # type: ignore[arg-type]


def plain(multislice: Multislice, slices: Tensor, positions: Tensor) -> Tensor:
    """Patterns of the full array, which `waves` always computes."""
    return torch.fft.fftshift(multislice.waves(slices, positions).abs().square(), dim=(1, 2))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def at(*positions: tuple[float, float]) -> Tensor:
    return torch.tensor(positions, dtype=torch.float64)


def test_electron_constants_match_tables() -> None:
    # Kirkland, Advanced Computing in Electron Microscopy, 2nd ed., tables 2.2 and 5.1 (four digits).
    for energy, length, sigma in ((100e3, 0.0370, 0.924e-3), (200e3, 0.0251, 0.729e-3), (300e3, 0.0197, 0.653e-3)):
        assert wavelength(energy) == pytest.approx(length, abs=5e-5)
        assert interaction(energy) == pytest.approx(sigma, abs=5e-7)


@pytest.mark.parametrize("aperture", ["hard", "soft"])
@pytest.mark.parametrize(("name", "zone"), [("SrTiO3", "001"), ("Si", "110"), ("ZnO", "100")])
def test_periodic_path_equals_full_array(name: str, zone: str, aperture: str) -> None:
    slices = crystal_slices(name, zone, sampling=0.16, thickness=12.0)
    multislice = microscope(slices, aperture=aperture, defocus=35.0, cs=1e7)
    array = slices.array()
    tile = smallest_tile(array, 1e-13)
    assert tile == tuple(slices.potential.shape[1:])
    few = at((0.0, 0.0), (1.2345, 4.56789), (-3.3, 17.77))
    assert relative(multislice.scan(array, few), plain(multislice, array, few)) < 1e-12


def test_scattering_matrix_path_equals_full_array() -> None:
    slices = crystal_slices(sampling=0.2, thickness=12.0)
    multislice = microscope(slices, aperture="soft")
    generator = torch.Generator().manual_seed(3)
    many = 20 * torch.rand(120, 2, dtype=torch.float64, generator=generator)  # more than beams in a residue class
    array = slices.array()
    assert relative(multislice.scan(array, many), plain(multislice, array, many)) < 1e-12


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    tile=st.tuples(st.integers(3, 15), st.integers(3, 15)),
    repeats=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    order=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    limited=st.booleans(),
    seed=st.integers(0, 99),
)
def test_periodic_path_equals_full_array_for_any_tile(
    tile: tuple[int, int], repeats: tuple[int, int], order: list[int], limited: bool, seed: int
) -> None:
    """Odd and even tiles of noise, any number of copies, with and without band limit."""
    generator = torch.Generator().manual_seed(seed)
    noise = 400 * torch.rand(3, *tile, dtype=torch.float64, generator=generator)
    sampling = tuple(2.4 / n for n in tile)
    array = noise[order].repeat(1, *repeats)
    multislice = microscope(
        sampling=sampling,
        convergence_angle=min(0.0126, 0.3 * wavelength(200e3) / max(sampling)),
        band_limit=2 / 3 if limited else None,
        aperture="soft",
    )
    edges = [n * m * d for n, m, d in zip(tile, repeats, sampling, strict=True)]
    if multislice.convergence_angle / multislice.wavelength < 1 / min(edges):
        return  # under-sampled: an error, tested below
    positions = 5 * torch.rand(7, 2, dtype=torch.float64, generator=generator)
    assert relative(multislice.scan(array, positions), plain(multislice, array, positions)) < 1e-12


def test_positions_that_differ_by_a_cell_share_a_pattern_and_keep_their_order() -> None:
    slices = crystal_slices(sampling=0.2, thickness=8.0)
    multislice = microscope(slices)
    a, b = slices.cell
    positions = at((1.0, 0.3), (0.2, 2.0), (1.0 + a, 0.3 - 2 * b), (0.0, 0.0), (0.2 - a, 2.0 + b), (a, b))
    found = multislice.scan(slices.array(), positions)
    assert relative(found, plain(multislice, slices.array(), positions)) < 1e-12
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[4])
    assert torch.equal(found[3], found[5])


def test_broken_tile_falls_back_to_the_full_array() -> None:
    slices = crystal_slices(sampling=0.2, thickness=8.0)
    multislice = microscope(slices)
    array = slices.array()
    whole = multislice.scan(array, at((1.0, 2.0)))
    array[2, 5:9, 8:12] *= 1.05
    assert smallest_tile(array, 1e-13) == tuple(array.shape[1:])
    broken = multislice.scan(array, at((1.0, 2.0)))
    assert relative(broken, plain(multislice, array, at((1.0, 2.0)))) < 1e-12
    assert relative(broken, whole) > 1e-5


def test_complex64_agrees_with_complex128() -> None:
    slices = crystal_slices(thickness=40.0)
    positions = at((0.0, 0.0), (1.3, 0.7))
    exact = microscope(slices).scan(slices.array(), positions)
    single = microscope(slices, dtype=torch.complex64).scan(slices.array().float(), positions)
    assert single.dtype == torch.float32
    assert relative(single.double(), exact) < 2e-5


@pytest.mark.parametrize(("name", "zone"), [("SrTiO3", "001"), ("ZnO", "100"), ("TiO2 rutile", "110")])
def test_scan_cell_equals_binned_full_array(name: str, zone: str) -> None:
    slices = crystal_slices(name, zone, sampling=0.18, thickness=10.0)
    multislice = microscope(slices, aperture="soft", defocus=-20.0)
    detector = AngularDetector(pixels=12, half_angle=0.037)
    whole = scan_cell(multislice, slices, detector)
    px, py = whole.patterns.shape[:2]
    for edge, step in zip(slices.cell, whole.step, strict=True):
        assert step <= multislice.wavelength / (4 * multislice.convergence_angle) <= 0.2509
        assert round(edge / step) in (px, py)
    chosen = [(0, 0), (1, 2), (px - 1, py // 2), (px // 2, py - 1)]
    positions = at(*((i * whole.step[0], j * whole.step[1]) for i, j in chosen))
    full = plain(multislice, slices.array(), positions)
    expected = detector.bin(full, slices.sampling, multislice.wavelength)
    found = torch.stack([whole.patterns[i, j] for i, j in chosen])
    assert relative(found, expected) < 1e-12


def test_scan_cell_reports_the_intensity_kept_and_detected() -> None:
    slices = crystal_slices(sampling=0.25, thickness=10.0)
    multislice = microscope(slices, convergence_angle=0.018)
    coarse = scan_cell(multislice, slices, AngularDetector(4, 0.02), probe_step=0.3)
    px, py = coarse.patterns.shape[:2]
    positions = at(*((i * coarse.step[0], j * coarse.step[1]) for i in range(px) for j in range(py)))
    sums = plain(multislice, slices.array(), positions).sum((1, 2))
    assert coarse.kept == pytest.approx(float(sums.mean()), rel=1e-12)
    assert 0.9 < coarse.kept < 1
    assert coarse.detected == pytest.approx(float(coarse.patterns.sum((2, 3)).mean()), rel=1e-12)
    assert coarse.detected < coarse.kept


def test_probe_grid_is_complete() -> None:
    """Fourier interpolation from the default grid gives the pattern at any other place."""
    slices = crystal_slices(sampling=0.2, thickness=10.0)
    multislice = microscope(slices, aperture="soft")
    whole = scan_cell(multislice, slices)
    px, py = whole.patterns.shape[:2]
    x, y = 0.7431, 2.3456
    series = torch.fft.fft2(whole.patterns.to(torch.complex128), dim=(0, 1)) / (px * py)
    wave_x = torch.polar(torch.ones(px), 2 * math.pi * torch.fft.fftfreq(px, 1 / px) * x / slices.cell[0])
    wave_y = torch.polar(torch.ones(py), 2 * math.pi * torch.fft.fftfreq(py, 1 / py) * y / slices.cell[1])
    interpolated = torch.einsum("pqxy,p,q->xy", series, wave_x.to(series), wave_y.to(series)).real
    full = plain(multislice, slices.array(), at((x, y)))
    expected = AngularDetector().bin(full, slices.sampling, multislice.wavelength)[0]
    assert relative(interpolated, expected) < 1e-6


def test_intensity_is_conserved_without_band_limit() -> None:
    slices = crystal_slices("Au", "110", thickness=60.0)
    free = microscope(slices, band_limit=None)
    positions = at((0.0, 0.0), (0.4, 1.7))
    sums = free.scan(slices.array(), positions).sum((1, 2))
    assert float((sums - 1).abs().max()) < 1e-12
    limited = microscope(slices).scan(slices.array(), positions).sum((1, 2))
    assert bool((limited < 1).all())
    assert bool((limited > 0.5).all())


def test_parseval_and_probe_normalisation() -> None:
    multislice = microscope(aperture="soft", defocus=80.0)
    probe = multislice.probe((96, 120), at((1.0, 2.0), (7.3, 0.1)))
    reciprocal = probe.abs().square().sum((1, 2))
    real = torch.fft.ifft2(probe).abs().square().sum((1, 2)) * 96 * 120
    assert float((reciprocal - 1).abs().max()) < 1e-13
    assert float((real - 1).abs().max()) < 1e-13


def test_weak_phase_object_matches_closed_form() -> None:
    """One thin slice of a weak cosine: the exit wave is psi0 + i sigma V psi0, three shifted discs."""
    n, d = 96, 0.2
    shape = (n, n)
    x = torch.arange(n, dtype=torch.float64) * d
    order, strength = 5, 2.0
    g = order / (n * d)
    potential = (strength * torch.cos(2 * math.pi * g * x))[:, None].expand(n, n)[None].contiguous()
    multislice = microscope(sampling=(d, d), slice_thickness=1.0, convergence_angle=0.01)
    position = at((3.3, 5.1))
    found = multislice.waves(potential, position)
    disc = multislice.probe(shape, position)
    half = 0.5j * multislice.sigma * strength
    expected = disc + half * (torch.roll(disc, order, 1) + torch.roll(disc, -order, 1))
    kx, ky = multislice.frequencies(shape)
    distance = torch.exp(-1j * math.pi * multislice.wavelength * (kx[:, None] ** 2 + ky[None] ** 2))
    weakness = multislice.sigma * strength
    assert relative(found, expected * distance) < weakness**2
    # And not merely because the object does nothing.
    assert relative(disc * distance, found) > 0.5 * weakness


def test_strong_phase_grating_gives_bessel_functions() -> None:
    """A plane-like beam behind a strong cosine: the orders carry J_n(sigma V)^2 (Raman-Nath)."""
    from scipy.special import jv

    n, d, order, strength = 128, 0.15, 4, 1500.0
    x = torch.arange(n, dtype=torch.float64) * d
    potential = (strength * torch.cos(2 * math.pi * order / (n * d) * x))[:, None].expand(n, n)[None].contiguous()
    multislice = microscope(sampling=(d, d), convergence_angle=0.0014, band_limit=None)
    pattern = multislice.scan(potential, at((0.0, 0.0)))[0]
    disc = torch.fft.fftshift(multislice.pupil((n, n)).abs() > 0)
    for m in range(-4, 5):
        share = float(pattern[torch.roll(disc, m * order, 0)].sum())
        assert share == pytest.approx(jv(m, multislice.sigma * strength) ** 2, abs=1e-12)


def test_axis_order_and_direction_of_deflection() -> None:
    """A potential that rises along x pulls the beam towards +x: kx is dim 1, and positive in its upper half."""
    n, d = 128, 0.2
    x = torch.arange(n, dtype=torch.float64) * d
    middle = n * d / 2
    profile = 4000 * torch.exp(-((x - middle) ** 2) / 16)
    well = profile[:, None].expand(n, n)[None].contiguous()
    multislice = microscope(sampling=(d, d), convergence_angle=0.01)
    positions = at((middle - 3, middle), (middle + 3, middle))
    patterns = multislice.scan(well, positions)
    k = torch.fft.fftshift(multislice.frequencies((n, n))[0])
    along_x, along_y = (patterns.sum(2) * k).sum(1), (patterns.sum(1) * k).sum(1)
    # Ehrenfest: the mean of k becomes sigma / 2 pi times the mean slope under the probe.
    probe = torch.fft.ifft2(multislice.probe((n, n), positions)).abs().square().sum(2) * n * n
    slope = -(x - middle) / 8 * profile
    expected = multislice.sigma / (2 * math.pi) * (probe * slope).sum(1)
    assert float(expected[0]) > 0.05
    assert float((along_x / expected - 1).abs().max()) < 1e-6
    assert float(along_y.abs().max()) < 1e-9


def test_probe_sits_at_its_position_and_positive_defocus_focuses_below_the_surface() -> None:
    n, d = 100, 0.2
    depth = 120.0
    multislice = microscope(sampling=(d, d), slice_thickness=10.0, convergence_angle=0.02)
    vacuum = torch.zeros(12, n, n, dtype=torch.float64)
    position = at((6.0, 14.0))

    def peak(defocus: float) -> tuple[tuple[int, int], float]:
        shifted = microscope(sampling=(d, d), slice_thickness=10.0, convergence_angle=0.02, defocus=defocus)
        exit_wave = torch.fft.ifft2(shifted.waves(vacuum, position)[0]).abs().square() * n * n
        index = int(exit_wave.argmax())
        return (index // n, index % n), float(exit_wave.max())

    entrance = torch.fft.ifft2(multislice.probe((n, n), position)[0]).abs().square() * n * n
    index, height = peak(depth)
    assert index == (30, 70)
    # In focus at the exit face: the very probe that a defocus of zero has at the entrance.
    assert height == pytest.approx(float(entrance.max()), rel=1e-9)
    assert peak(0.0)[1] < 0.5 * height
    assert peak(-depth)[1] < peak(0.0)[1]


def test_spherical_aberration_phase() -> None:
    multislice = microscope(cs=1.3e7, defocus=600.0)
    pupil = multislice.pupil((128, 128))
    kx, _ = multislice.frequencies((128, 128))
    lam, k = multislice.wavelength, float(kx[9])
    chi = math.pi / 2 * 1.3e7 * lam**3 * k**4 - math.pi * lam * 600.0 * k**2
    assert complex(pupil[9, 0] / pupil[0, 0]) == pytest.approx(complex(np.exp(-1j * chi)), abs=1e-9)


def test_fifth_order_and_astigmatism_phase() -> None:
    """chi of the textbook in polar angles: 2 pi / lambda (C5 theta^6 / 6 + A theta^2 cos(2 phi - 2 phi_A) / 2)."""
    multislice = microscope(c5=4e7, astigmatism=70.0, astigmatism_angle=0.4)
    pupil = multislice.pupil((256, 256))
    kx, ky = multislice.frequencies((256, 256))
    lam = multislice.wavelength
    for i, j in ((13, 0), (0, 13), (8, -9), (-5, 3)):
        theta, phi = lam * math.hypot(float(kx[i]), float(ky[j])), math.atan2(float(ky[j]), float(kx[i]))
        chi = 2 * math.pi / lam * (4e7 * theta**6 / 6 + 70.0 * theta**2 * math.cos(2 * (phi - 0.4)) / 2)
        assert complex(pupil[i, j] / pupil[0, 0]) == pytest.approx(complex(np.exp(-1j * chi)), abs=1e-9)


def test_astigmatism_lifts_the_focus_along_its_angle() -> None:
    """With a defocus of A the focus along the angle is at the surface, and across it at 2 A below."""
    n, d, strength = 160, 0.2, 150.0
    multislice = microscope(
        sampling=(d, d), convergence_angle=0.015, defocus=strength, astigmatism=strength, astigmatism_angle=0.0
    )
    wave = torch.fft.ifft2(multislice.probe((n, n), at((n * d / 2, n * d / 2)))[0]).abs().square()
    x = torch.arange(n, dtype=torch.float64) * d - n * d / 2
    near = x.abs() < 6
    along, across = wave.sum(1)[near], wave.sum(0)[near]
    width = [float((p * x[near] ** 2).sum() / p.sum()) for p in (along, across)]
    assert width[0] < 0.5 * width[1]


def test_probe_wider_than_the_array_is_warned_of_with_the_array_needed() -> None:
    with pytest.warns(UserWarning, match=r"wider than the array of 16 x 12\.5 A.*repeat the array to about") as caught:
        microscope(defocus=2000.0).pupil((128, 100))
    needed = float(str(caught[0].message).split("about ")[1].split(" A")[0])
    # A ray at the edge lands defocus * angle from the middle, on either side.
    assert needed == pytest.approx(2 * 2000 * 0.025, rel=0.35)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        n = round(1.3 * needed / 0.125)
        microscope(defocus=2000.0).pupil((n, n))
        microscope(defocus=60.0).pupil((128, 100))


def test_intensity_lost_past_the_band_limit_is_warned_of_with_the_figure() -> None:
    slices = crystal_slices("Au", "001", sampling=0.25, thickness=60.0, b_factor=0.0)
    multislice = microscope(slices, convergence_angle=0.015)
    positions = at((0.0, 0.0), (0.9, 0.5))
    with pytest.warns(UserWarning, match="past the band limit") as caught:
        lost = 1 - multislice.scan(slices.array(), positions).sum((1, 2))
    assert float(lost.max()) > 0.2
    assert f"up to {100 * float(lost.max()):.0f} % of the incident electrons" in str(caught[0].message)
    assert f"{100 * float(lost.mean()):.0f} % on average" in str(caught[0].message)
    fine = crystal_slices("Si", "110", thickness=10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        microscope(fine).scan(fine.array(), positions)


def test_scan_larger_than_memory_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_memory", lambda _: 10**6)
    multislice = microscope()
    with pytest.raises(MemoryError, match=r"64 x 64 pixels take 0\.00131 GB, but 0\.001 GB are free.*scan_to_file"):
        multislice.scan(torch.zeros(2, 64, 64, dtype=torch.float64), torch.zeros(40, 2, dtype=torch.float64))


def test_mask_follows_cutoff_and_taper() -> None:
    multislice = microscope(sampling=(0.1, 0.2), band_limit=0.5, taper=0.04)
    mask = multislice.mask((200, 100))
    kx, ky = multislice.frequencies((200, 100))
    k = torch.hypot(kx[:, None], ky[None])
    cutoff, width = 0.5 * 0.5 / 0.2, 0.04 / 0.2
    assert multislice.cutoff == pytest.approx(cutoff)
    assert bool((mask[k <= cutoff - width] == 1).all())
    assert bool((mask[k >= cutoff] == 0).all())
    middle = (k - (cutoff - width / 2)).abs().argmin()
    offset = float((k.flatten()[middle] - (cutoff - width)) / width)
    assert float(mask.flatten()[middle]) == pytest.approx(0.5 * (1 + math.cos(math.pi * offset)), abs=1e-12)
    assert bool((microscope(band_limit=None).mask((16, 16)) == 1).all())


def test_hard_and_soft_apertures() -> None:
    hard, soft = (microscope(aperture=a).pupil((140, 100)).abs().square() for a in ("hard", "soft"))
    kx, ky = microscope().frequencies((140, 100))
    k = torch.hypot(kx[:, None], ky[None])
    radius = 0.025 / wavelength(200e3)
    assert int((hard > 0).sum()) == int((k <= radius).sum())
    pixel = max(float(kx[1]), float(ky[1]))
    assert bool((soft[k > radius + pixel] == 0).all())
    inner = soft[k < radius - pixel]
    assert float(inner.max() - inner.min()) < 1e-15


def test_detector_shares_every_pixel_once() -> None:
    detector = AngularDetector(pixels=16, half_angle=0.04)
    frequencies = torch.fft.fftfreq(150, 0.11, dtype=torch.float64)
    step = 1 / (150 * 0.11)
    lam = wavelength(200e3)
    weights = detector.weights(frequencies, step, lam)
    inside = frequencies.abs() < 0.04 / lam - step
    assert float((weights.sum(0)[inside] - 1).abs().max()) < 1e-12
    # Each bin covers the same stretch of k.
    assert float((weights.sum(1) * step * lam / detector.pixel - 1).abs().max()) < 1e-12
    # Positive angles lie in the upper bins.
    assert int(weights[:, 20].argmax()) == math.floor((20 * step * lam + 0.04) / detector.pixel)


def bad(match: str, **choices: object) -> None:
    with pytest.raises(ValueError, match=match):
        microscope(**choices)


def test_bad_settings_are_named() -> None:
    bad("energy", energy=0.0)
    bad("sampling dy", sampling=(0.1, -0.1))
    bad("slice_thickness", slice_thickness=float("nan"))
    bad("25 mrad is 0.025", convergence_angle=25.0)
    with pytest.raises((ValueError, TypeError), match="aperture"):  # whoever sees it first, the type check or ours
        microscope(aperture="round")
    bad("band_limit", band_limit=0.0)
    bad("taper", taper=0.5)
    bad("dtype", dtype=torch.float32)
    bad("defocus must be a finite", defocus=float("inf"))
    bad("c5 must be a finite", c5=float("nan"))
    bad("choose a sampling below 0.334 A", sampling=(0.34, 0.1))
    with pytest.raises(ValueError, match="pixels"):
        AngularDetector(pixels=0)
    with pytest.raises(ValueError, match="half_angle"):
        AngularDetector(half_angle=40.0)


def test_bad_arrays_are_named() -> None:
    multislice = microscope()
    good = torch.zeros(2, 64, 64, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"under-sampled.*repeat it to at least 1 A"):
        multislice.scan(torch.zeros(1, 6, 6, dtype=torch.float64), at((0.0, 0.0)))
    holed = good.clone()
    holed[1, 3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"slice 1 is not finite at index \(3, 4\)"):
        multislice.scan(holed, at((0.0, 0.0)))
    with pytest.raises(ValueError, match="probe position 1 is not finite"):
        multislice.scan(good, at((0.0, 0.0), (float("inf"), 0.0)))
    with pytest.raises(ValueError, match="there is no slice"):
        multislice.scan(good[:0], at((0.0, 0.0)))
    with pytest.raises(ValueError, match="is not that of the slices"):
        scan_cell(multislice, crystal_slices())


def test_any_crystal_can_be_scanned() -> None:
    single = Crystal("C", "C", 1, 5 * np.eye(3), np.array([6]), np.zeros((1, 3)), "made for this test")
    slices = projected_slices(view(single, "001"), thickness=5.0)
    whole = scan_cell(microscope(slices), slices)
    column = whole.patterns.sum((2, 3))
    assert float(whole.patterns.min()) >= 0
    assert column.argmin() == 0  # the atom scatters beyond the detector


@pytest.mark.gpu
def test_gpu_agrees_with_cpu() -> None:
    slices = crystal_slices(thickness=20.0)
    positions = at(*((0.37 * k, 0.11 * k * k) for k in range(70)))
    broken = slices.array()
    broken[0, 3, 5] *= 1.1
    for array in (slices.array(), broken):
        here, there = (microscope(slices, device=device).scan(array, positions) for device in ("cpu", "cuda"))
        assert relative(there.cpu(), here) < 1e-11
    whole = [scan_cell(microscope(slices, device=device), slices) for device in ("cpu", "cuda")]
    assert relative(whole[1].patterns.cpu(), whole[0].patterns) < 1e-11
    assert whole[1].kept == pytest.approx(whole[0].kept, rel=1e-12)
