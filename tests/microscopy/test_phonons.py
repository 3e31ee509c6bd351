"""Frozen phonons against the Debye-Waller factor, and what they add at high angles."""

import numpy as np
import pytest
import torch

from exafield.microscopy.crystal import embedded
from exafield.microscopy.multislice import Multislice
from exafield.microscopy.phonons import configurations
from exafield.microscopy.potential import Slices, projected_slices
from exafield.microscopy.views import View, view

CRYSTALS = {crystal.name: crystal for crystal in embedded()}
SILICON = view(CRYSTALS["Si"], "001")


def test_displacements_have_the_variance_of_each_element() -> None:
    """At rest plus a Gaussian of B / (8 pi^2) along x and along y."""
    strontium = view(CRYSTALS["SrTiO3"], "001")
    factors = {"Sr": 0.9, "Ti": 0.4, "O": 0.0}
    one = next(configurations(strontium, thickness=40, box=40, b_factor=factors, count=1, seed=3))
    assert one.cell == pytest.approx((39.05, 39.05, 39.05))
    assert len(one.numbers) == 1000 * len(strontium.numbers)
    fractions = one.positions / strontium.cell[0] % 1
    for symbol, number in (("Sr", 38), ("Ti", 22), ("O", 8)):
        rest = strontium.positions[strontium.numbers == number] / strontium.cell[0]
        moved = fractions[one.numbers == number]
        offset = moved.reshape(1000, -1, 3) - rest
        offset = (offset - offset.round()) * strontium.cell[0]
        variance = (offset[..., :2] ** 2).mean()
        assert variance == pytest.approx(factors[symbol] / (8 * np.pi**2), rel=0.1, abs=1e-12)
        assert np.abs(offset[..., 2]).max() < 1e-9


def test_mean_potential_is_the_smeared_one() -> None:
    many = configurations(SILICON, thickness=5.43, box=10.8, b_factor=0.6, count=300, seed=1)
    total = torch.stack([projected_slices(one, b_factor=0.0, thickness=5.43).total for one in many])
    smeared = projected_slices(SILICON, sampling=total.shape[1] and 10.8614 / total.shape[1], thickness=5.43)
    expected = smeared.total.repeat(2, 2)
    assert expected.shape == total.shape[1:]
    error = float((total.mean(0) - expected).norm() / (expected - expected.mean()).norm())
    # One configuration is off by 60 % or so, and the mean of 300 by that over the root of 300.
    alone = float((total[0] - expected).norm() / (expected - expected.mean()).norm())
    assert error < 0.05
    assert alone > 8 * error


def test_thermal_diffuse_scattering_goes_to_high_angles() -> None:
    """More electrons beyond 60 mrad than the smeared, periodic crystal sends there."""

    def dark(slices: Slices) -> float:
        microscope = Multislice(
            energy=200e3, sampling=slices.sampling, slice_thickness=slices.thickness, convergence_angle=0.02
        )
        pattern = microscope.scan(slices.array(), torch.zeros(1, 2))[0]
        k = [torch.fft.fftshift(torch.fft.fftfreq(n, d)) for n, d in zip(pattern.shape, slices.sampling, strict=True)]
        angle = torch.hypot(k[0][:, None], k[1][None]) * microscope.wavelength
        return float(pattern[angle > 0.06].sum())

    choices = {"thickness": 43.4, "b_factor": 0.6, "box": 10.8}
    moved = [
        dark(projected_slices(one, b_factor=0.0, thickness=43.4, box=10.8))
        for one in configurations(SILICON, count=4, seed=5, **choices)
    ]
    assert np.mean(moved) > 1.2 * dark(projected_slices(SILICON, **choices))


def test_configurations_depend_on_seed_and_index_alone() -> None:
    def places(count: int, seed: int) -> list[np.ndarray]:
        return [one.positions for one in configurations(SILICON, thickness=10, count=count, seed=seed)]

    few, more, other = places(2, 7), places(3, 7), places(2, 8)
    assert all(np.array_equal(a, b) for a, b in zip(few, more, strict=False))
    assert not np.array_equal(more[0], more[1])
    assert not np.array_equal(few[0], other[0])


def test_bad_phonons_are_named() -> None:
    with pytest.raises(ValueError, match="no value for Si"):
        configurations(SILICON, thickness=10, b_factor={"Ge": 0.5})
    with pytest.raises(ValueError, match=r"zero or positive \[A\^2\], got -1"):
        configurations(SILICON, thickness=10, b_factor=-1.0)
    with pytest.raises(ValueError, match="count"):
        configurations(SILICON, thickness=10, count=0)
    with pytest.raises(ValueError, match="thickness and box"):
        configurations(SILICON, thickness=0)
    one: View = next(configurations(SILICON, thickness=0.1, count=1))
    assert one.cell[2] == pytest.approx(SILICON.cell[2])
