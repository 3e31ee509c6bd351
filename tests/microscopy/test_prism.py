"""PRISM: exact with every beam, and honest about its error with fewer."""

import pytest
import torch
from torch import Tensor

from exafield.microscopy.crystal import embedded
from exafield.microscopy.detector import AngularDetector
from exafield.microscopy.multislice import Multislice
from exafield.microscopy.potential import projected_slices
from exafield.microscopy.prism import prism
from exafield.microscopy.views import view

POSITIONS = torch.tensor([[0.0, 0.0], [1.23, 3.4], [7.7, 9.0], [12.0, 1.0]], dtype=torch.float64)


def broken(box: float, device: str = "cpu") -> tuple[Multislice, Tensor]:
    """A crystal with an atom too many, so that nothing repeats."""
    crystal = next(c for c in embedded() if c.name == "SrTiO3")
    slices = projected_slices(view(crystal, "001"), sampling=0.25, thickness=12.0, box=box)
    array = slices.array()
    array[3, 3:6, 3:6] *= 1.3
    lens = Multislice(
        energy=200e3, sampling=slices.sampling, slice_thickness=slices.thickness, convergence_angle=0.025,
        dtype=torch.complex128, device=device,
    )  # fmt: skip
    return lens, array.to(device)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_beam_is_multislice(device: str) -> None:
    lens, array = broken(12.0, device)
    found = prism(lens, array, POSITIONS, 1)
    truth = lens.scan(array, POSITIONS)
    assert float((found.patterns - truth).norm() / truth.norm()) < 1e-12
    assert found.error[1] < 1e-12


def test_error_is_that_of_the_patterns_and_falls_with_the_cut() -> None:
    errors = []
    for box, factor in ((12.0, 2), (24.0, 2), (24.0, 4)):
        lens, array = broken(box)
        found = prism(lens, array, POSITIONS, factor, check=len(POSITIONS))
        assert found.patterns.shape[1:] == (array.shape[1] // factor, array.shape[2] // factor)
        detector = AngularDetector(half_angle=0.04)
        binned, truth = (
            detector.bin(p, lens.sampling, lens.wavelength) for p in (found.patterns, lens.scan(array, POSITIONS))
        )
        error = (binned - truth).norm(dim=(1, 2)) / truth.norm(dim=(1, 2))
        assert found.error == pytest.approx((float(error.mean()), float(error.max())))
        errors.append(found.error[0])
    # 6 A of cut, 12 A, 6 A again: twice the cut, a fraction of the error.
    assert 1e-4 < errors[1] < 0.5 * min(errors[0], errors[2])
    assert max(errors) < 0.2


def test_vacuum_shows_the_disc_wherever_the_probe_is() -> None:
    lens, array = broken(12.0)
    found = prism(lens, torch.zeros_like(array), POSITIONS, 2).patterns
    disc = lens.pupil((array.shape[1] // 2, array.shape[2] // 2)).abs().square()
    assert float((found - torch.fft.fftshift(disc)).abs().max()) < 1e-15


def test_bad_factors_are_named() -> None:
    lens, array = broken(12.0)
    n = array.shape[1]
    for factor in (0, 7):
        with pytest.raises(ValueError, match=rf"divides the array of {n} x {n} pixels"):
            prism(lens, array, POSITIONS, factor)
    with pytest.raises(ValueError, match="under-sampled"):
        prism(lens, array, POSITIONS, n // 2)
    with pytest.raises(ValueError, match="check"):
        prism(lens, array, POSITIONS, 2, check=9)
