"""Scattering factors and projected potentials against closed forms, sum rules and each other."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import i0e

from exafield.microscopy.crystal import Crystal, embedded
from exafield.microscopy.potential import grid_size, projected_slices
from exafield.microscopy.scattering import (
    BOHR,
    POTENTIAL,
    Parametrisation,
    projected_potential,
    scattering_factor,
    symbols,
)
from exafield.microscopy.views import View, view

BOTH: tuple[Parametrisation, ...] = ("kirkland", "lobato")
CRYSTALS = {crystal.name: crystal for crystal in embedded()}
EDGE = 8.0


def atom(number: int, x: float = 0.31, y: float = 0.47) -> View:
    """One atom in a cube of 8 A, between the pixels."""
    place = np.array([[x, y, 0.0]])
    return view(Crystal("atom", "", 1, EDGE * np.eye(3), np.array([number]), place, "made for this test"), "001")


@pytest.mark.parametrize("parametrisation", BOTH)
def test_all_elements_scatter_like_their_nucleus_at_high_angle(parametrisation: Parametrisation) -> None:
    """Mott and Bethe: 2 pi^2 a0 q^2 f_e = Z - f_x, and f_x vanishes at high q."""
    assert len(symbols()) == 104
    for number in range(1, 104):
        far = np.array([40.0])
        charge = float((2 * np.pi**2 * BOHR * far**2 * scattering_factor(number, far, parametrisation))[0])
        assert charge == pytest.approx(number, rel=0.08 if parametrisation == "kirkland" else 0.015), number


@pytest.mark.parametrize("parametrisation", BOTH)
def test_electrons_screen_the_nucleus(parametrisation: Parametrisation) -> None:
    """The X-ray scattering factor that follows, Z - 2 pi^2 a0 q^2 f_e, falls from Z to 0."""
    q = np.linspace(0.0, 6.0, 121)
    for number in range(1, 104):
        x_ray = number - 2 * np.pi**2 * BOHR * q**2 * scattering_factor(number, q, parametrisation)
        assert x_ray[0] == number
        assert (x_ray > -0.08 * number).all()
        assert (np.diff(x_ray) < 0.01 * number).all()


def test_parametrisations_agree() -> None:
    """Both fit relativistic Hartree-Fock atoms; they differ most at q = 0, by the configuration taken for Ir and Po."""
    q = np.linspace(0.0, 4.0, 81)
    difference = []
    for number in range(1, 104):
        one, other = (scattering_factor(number, q, p) for p in BOTH)
        difference.append(float(np.abs(one / other - 1).max()))
    assert max(difference) < 0.11
    assert np.median(difference) < 0.015


def test_scattering_factors_at_zero_angle() -> None:
    """f_e(0) [A] of Peng et al., Acta Cryst. A52, 257 (1996), and Doyle and Turner, Acta Cryst. A24, 390 (1968)."""
    for symbol, value in (("H", 0.529), ("He", 0.418), ("C", 2.509), ("Si", 5.828), ("Cu", 5.600), ("Ag", 8.671)):
        for parametrisation in BOTH:
            found = scattering_factor(symbols().index(symbol), np.array(0.0), parametrisation)
            assert float(found) == pytest.approx(value, rel=0.02)


def test_conversion_constant() -> None:
    # Kirkland, Advanced Computing in Electron Microscopy, 2nd ed.: 47.87801 V A^2 with 1986 constants; 2 pi a0 e.
    assert pytest.approx(47.878, abs=1e-3) == POTENTIAL
    assert pytest.approx(2 * np.pi * BOHR * 14.399645, rel=1e-6) == POTENTIAL


@pytest.mark.parametrize("parametrisation", BOTH)
@pytest.mark.parametrize("number", [1, 8, 14, 38, 79])
def test_closed_form_is_the_transform_of_the_scattering_factor(number: int, parametrisation: Parametrisation) -> None:
    """Integrating the closed form over the plane against J0 gives back f_e."""
    from scipy.special import j0

    for q in (0.0, 0.3, 1.1):

        def ring(r: float, q: float = q) -> float:
            return float(
                2 * np.pi * r * j0(2 * np.pi * q * r) * projected_potential(number, np.array(r), parametrisation)
            )

        pieces = [quad(ring, low, high, limit=200)[0] for low, high in ((1e-12, 0.05), (0.05, 1.0), (1.0, 25.0))]
        expected = float(POTENTIAL * scattering_factor(number, np.array(q), parametrisation))
        assert sum(pieces) == pytest.approx(expected, rel=1e-5)


def smeared(number: int, distance: float, b_factor: float, parametrisation: Parametrisation) -> float:
    """The closed form of an atom at rest, averaged in real space over a Gaussian of variance B / (8 pi^2)."""
    variance = b_factor / (8 * np.pi**2)

    def ring(r: float) -> float:
        weight = r / variance * math.exp(-((r - distance) ** 2) / (2 * variance)) * i0e(r * distance / variance)
        return float(weight * projected_potential(number, np.array(r), parametrisation))

    width = 9 * math.sqrt(variance)
    low = max(1e-9, distance - width)
    return float(quad(ring, low, distance, limit=200)[0] + quad(ring, distance, distance + width, limit=200)[0])


@pytest.mark.parametrize("parametrisation", BOTH)
@pytest.mark.parametrize("number", [6, 14, 38, 79])
def test_one_atom_against_its_tabulated_potential(number: int, parametrisation: Parametrisation) -> None:
    """Outside two pixels of the nucleus, against the closed form smeared in real space, periodic images included."""
    b_factor = 0.6
    slices = projected_slices(
        atom(number), sampling=0.125, b_factor=b_factor, parametrisation=parametrisation, thickness=EDGE
    )
    found = slices.total.numpy()
    size, step = len(found), EDGE / len(found)
    i, j = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    x, y = i * step - 0.31 * EDGE, j * step - 0.47 * EDGE
    radius = np.hypot(x, y)
    generator = np.random.default_rng(1)
    near = np.argwhere((radius > 2 * step) & (radius < 1.0))
    far = np.argwhere((radius >= 1.0) & (radius < 4.0))
    chosen = [*generator.choice(near, 10, replace=False), *generator.choice(far, 5, replace=False)]
    largest = smeared(number, 2 * step, b_factor, parametrisation)
    for a, b in chosen:
        images = [
            np.hypot(x[a, b] + m * EDGE, y[a, b] + n * EDGE)
            for m in (-2, -1, 0, 1, 2)
            for n in (-2, -1, 0, 1, 2)
            if (m, n) != (0, 0)
        ]
        expected = smeared(number, float(radius[a, b]), b_factor, parametrisation)
        # Images are so far that their smearing does not matter.
        expected += float(projected_potential(number, np.array(images), parametrisation).sum())
        assert found[a, b] == pytest.approx(expected, abs=0.007 * largest)


@pytest.mark.parametrize("parametrisation", BOTH)
def test_atom_at_rest_approaches_the_tabulated_potential_as_pixels_shrink(parametrisation: Parametrisation) -> None:
    errors = []
    for sampling in (0.125, 0.0625, 0.03125):
        found = projected_slices(
            atom(14), sampling=sampling, b_factor=0.0, parametrisation=parametrisation, thickness=EDGE
        ).total.numpy()
        step = EDGE / len(found)
        along = np.arange(len(found)) * step
        x, y = along[:, None] - 0.31 * EDGE, along[None] - 0.47 * EDGE
        expected = sum(
            projected_potential(14, np.hypot(x + m * EDGE, y + n * EDGE), parametrisation)
            for m in (-2, -1, 0, 1, 2)
            for n in (-2, -1, 0, 1, 2)
        )
        outside = np.hypot(x, y) > 0.5
        errors.append(float(np.linalg.norm((found - expected)[outside]) / np.linalg.norm(expected[outside])))
    assert errors[0] < 0.04
    # What is left is the ripple of the cut-off series; it falls with the pixel, unevenly as the atom lies within it.
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.4 * errors[0]


def test_debye_waller_factor_in_reciprocal_space() -> None:
    rest, warm = (np.fft.fft2(projected_slices(atom(38), b_factor=b, thickness=EDGE).total.numpy()) for b in (0.0, 0.6))
    q = np.fft.fftfreq(len(rest), EDGE / len(rest))
    length = np.hypot(q[:, None], q[None])
    inside = (np.abs(q)[:, None] < 3.9) & (np.abs(q)[None] < 3.9)
    assert np.allclose((warm / rest)[inside], np.exp(-0.6 * length**2 / 4)[inside], rtol=1e-9)


def test_each_element_has_its_own_debye_waller_factor() -> None:
    """By symbol: the sum of crystals in which the others are left out."""
    one = view(CRYSTALS["SrTiO3"], "001")
    factors = {"Sr": 0.9, "Ti": 0.2, "O": 1.4}
    together = projected_slices(one, thickness=3.905, b_factor=factors).total
    apart = sum(
        projected_slices(
            replace(one, numbers=one.numbers[kind], positions=one.positions[kind]), thickness=3.905, b_factor=factor
        ).total
        for factor, number in zip(factors.values(), (38, 22, 8), strict=True)
        for kind in [one.numbers == number]
    )
    assert np.allclose(together, apart)
    with pytest.raises(ValueError, match=r"b_factor has no value for O, which is in the crystal: add 'O': B \[A\^2\]"):
        projected_slices(one, b_factor={"Sr": 0.9, "Ti": 0.2})


def test_mean_potential_is_the_sum_of_forward_scattering() -> None:
    one = view(CRYSTALS["SrTiO3"], "001")
    slices = projected_slices(one, thickness=3.905)
    forward = sum(float(scattering_factor(int(n), np.array(0.0))) for n in one.numbers)
    area = slices.cell[0] * slices.cell[1]
    assert float(slices.total.mean()) == pytest.approx(POTENTIAL * forward / area, rel=1e-12)


def test_position_between_pixels_is_exact() -> None:
    """Moving the atom is the same as moving the Fourier series, by any amount."""
    here = np.fft.fft2(projected_slices(atom(14, 0.25, 0.5), thickness=EDGE).total.numpy())
    there = np.fft.fft2(projected_slices(atom(14, 0.25 + 0.0123, 0.5 - 0.0371), thickness=EDGE).total.numpy())
    h = np.fft.fftfreq(len(here), 1 / len(here))
    phase = np.exp(-2j * np.pi * (h[:, None] * 0.0123 - h[None] * 0.0371))
    inside = (np.abs(h)[:, None] < 31) & (np.abs(h)[None] < 31)
    assert np.allclose(there[inside], (here * phase)[inside], atol=1e-9 * np.abs(here).max())


def test_slices_tile_the_cell_and_the_thickness() -> None:
    one = view(CRYSTALS["Si"], "001")
    slices = projected_slices(one, sampling=0.14, slice_thickness=1.4, thickness=40.0)
    assert slices.potential.shape[0] == 4
    assert slices.thickness == pytest.approx(5.4307 / 4)
    assert len(slices.order) == round(40.0 / slices.thickness)
    assert slices.order[:6] == (0, 1, 2, 3, 0, 1)
    whole = projected_slices(one, sampling=0.14, slice_thickness=6.0, thickness=5.43)
    assert np.allclose(slices.potential.sum(0), whole.total)
    # Two of the eight atoms of diamond lie in each quarter.
    sums = slices.potential.sum((1, 2))
    assert np.allclose(sums, sums.mean())
    assert slices.cell == pytest.approx((5.4307, 5.4307))
    assert max(slices.sampling) <= 0.14
    array = slices.array()
    assert array.shape == (
        len(slices.order),
        *(n * r for n, r in zip(slices.potential.shape[1:], slices.repeats, strict=True)),
    )
    assert np.allclose(array.sum(0)[: slices.potential.shape[1], : slices.potential.shape[2]], slices.total)


def test_atoms_in_the_plane_between_slices_are_not_split() -> None:
    """A coordinate rounded to 0.3333 or 0.6667 stays with its layer."""
    places = np.array([[0, 0, 0.0], [0.5, 0, 0.3333], [0, 0.5, 0.6666], [0.5, 0.5, 0.9999999]])
    layered = Crystal("layers", "", 1, np.diag([4.0, 4.0, 6.0]), np.array([6, 6, 6, 8]), places, "")
    slices = projected_slices(view(layered, "001"), slice_thickness=2.0)
    forward = [float(s.mean()) * 16 / POTENTIAL for s in slices.potential]
    carbon, oxygen = (float(scattering_factor(n, np.array(0.0))) for n in (6, 8))
    assert forward == pytest.approx([carbon + oxygen, carbon, carbon])


def test_repeats_fill_about_fourteen_angstrom() -> None:
    for crystal in ("Fe", "SrTiO3", "Fe3O4 magnetite"):
        slices = projected_slices(view(CRYSTALS[crystal], "001"))
        for edge, box in zip(slices.cell, slices.box, strict=True):
            assert abs(box - 14.0) <= edge / 2 + 1e-9


def test_grid_size_is_fast_and_fine_enough() -> None:
    for length in np.linspace(2.0, 30.0, 57):
        size = grid_size(float(length), 0.125)
        assert length / size <= 0.125 + 1e-9
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        assert rest == 1
    assert grid_size(4.0, 0.125) == 32


def test_bad_input_is_named() -> None:
    one = atom(14)
    for name in ("slice_thickness", "thickness", "box"):
        with pytest.raises(ValueError, match=name):
            projected_slices(one, **{name: 0.0})
    with pytest.raises(ValueError, match="b_factor"):
        projected_slices(one, b_factor=-0.1)
    with pytest.raises(ValueError, match="sampling must be positive"):
        projected_slices(one, sampling=0.0)
    with pytest.raises(ValueError, match="too fine"):
        projected_slices(one, sampling=1e-4)
    with pytest.raises(ValueError, match=r"1\.\.103, not 104"):
        scattering_factor(104, np.array(0.0))
    with pytest.raises((ValueError, TypeError), match="parametrisation"):
        scattering_factor(6, np.array(0.0), "peng")  # type: ignore[arg-type]
