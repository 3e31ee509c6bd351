"""PRISM: scans of a specimen that does not repeat, from every f-th beam of the aperture only.

Ophus, Adv. Struct. Chem. Imaging 3, 13 (2017). The beams whose indices are multiples of the interpolation factor f go
through the slices once. Their sum repeats f times along x and y of the array; one of the copies, cut out about the
probe, stands for the probe. That is an approximation: what a probe scatters further than half of the cut is missing,
what its copies scatter into the cut is there. Its error is measured beside it, against multislice at some positions.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from exafield.microscopy.detector import AngularDetector
from exafield.microscopy.multislice import Multislice
from exafield.microscopy.periodic import intensity
from exafield.microscopy.propagation import Propagation, batch
from exafield.microscopy.room import check_memory


@dataclass(frozen=True, eq=False)
class PrismScan:
    """Patterns of an interpolated scan.

    Args:
        patterns: (probe, kx, ky) zero frequency in the middle, as those of `Multislice.scan`, but on an array of 1 / f
            of the edges: a reciprocal pixel is f times as wide.
        interpolation: the factor f.
        beams: that went through the slices.
        error: relative L2 distance from multislice, both binned on the detector, at the positions that were checked:
            mean and largest.
    """

    patterns: Float[Tensor, "probe kx ky"]
    interpolation: int
    beams: int
    error: tuple[float, float]


def prism(
    multislice: Multislice,
    slices: Float[Tensor, "slice x y"],
    positions: Float[Tensor, "probe 2"],
    interpolation: int = 2,
    *,
    check: int = 4,
    detector: AngularDetector | None = None,
) -> PrismScan:
    """Diffraction patterns by PRISM.

    Args:
        multislice: the microscope.
        slices: projected potentials in the order the beam meets them [V A].
        positions: probe positions [A]. The cut is moved by whole pixels, the probe in it anywhere.
        interpolation: f; 1 is exact and takes every beam.
        check: positions, spread evenly over the scan, at which multislice is run as well to know the error.
        detector: on which the two are compared; by default 16 x 16 bins over 1.6 times the convergence angle.

    Raises:
        ValueError: f does not divide the array, leaves a cut too small for the aperture; see also `Multislice.scan`.
        MemoryError: the beams or patterns do not fit into memory.
    """
    nx, ny = slices.shape[1:]
    if interpolation < 1 or nx % interpolation or ny % interpolation:
        raise ValueError(
            f"interpolation must be a whole number that divides the array of {nx} x {ny} pixels, got {interpolation}"
        )
    if not 1 <= check <= len(positions):
        raise ValueError(f"check must be 1..{len(positions)} positions, got {check}")
    cut = (nx // interpolation, ny // interpolation)
    check_memory((len(positions), *cut), multislice.dtype.to_real(), multislice.device)
    pupil = multislice.pupil(cut)
    index = pupil.cpu().abs().nonzero()
    signed = torch.where(2 * index < torch.tensor(cut), index, index - torch.tensor(cut))
    beams = _behind(multislice, slices, positions, signed * interpolation % torch.tensor((nx, ny)))
    patterns = torch.empty(len(positions), *cut, dtype=beams.real.dtype, device=beams.device)
    ramp_x, ramp_y = multislice.ramps(cut, positions)
    weights = pupil[index[:, 0], index[:, 1]] * ramp_x[:, index[:, 0]] * ramp_y[:, index[:, 1]]
    # The cut's first pixel: half of its edge before the probe.
    first = (positions.cpu().double() / torch.tensor(multislice.sampling) - torch.tensor(cut) / 2).round().long()
    for probe, (x, y) in enumerate(first.tolist()):
        rows, columns = ((start + torch.arange(n)) % m for start, n, m in ((x, cut[0], nx), (y, cut[1], ny)))
        near = beams[:, rows.to(beams.device)][:, :, columns.to(beams.device)]
        spectrum = torch.fft.fft2(torch.tensordot(weights[probe], near, 1), norm="forward")
        patterns[probe] = torch.fft.fftshift(intensity(spectrum))
    detector = detector or AngularDetector(half_angle=1.6 * multislice.convergence_angle)
    chosen = torch.linspace(0, len(positions) - 1, check).round().long()
    exact = multislice.scan(slices, positions[chosen])
    several = (exact, patterns[chosen.to(patterns.device)])
    expected, found = (detector.bin(p, multislice.sampling, multislice.wavelength) for p in several)
    errors = (found - expected).norm(dim=(1, 2)) / expected.norm(dim=(1, 2))
    return PrismScan(patterns, interpolation, len(index), (float(errors.mean()), float(errors.max())))


def _behind(
    multislice: Multislice,
    slices: Float[Tensor, "slice x y"],
    positions: Float[Tensor, "probe 2"],
    index: Int[Tensor, "beam 2"],
) -> Complex[Tensor, "beam x y"]:
    """Exit wave of each beam in real space, all of unit amplitude at the entrance."""
    _, nx, ny = slices.shape
    check_memory((len(index), nx, ny), multislice.dtype, multislice.device)
    different, order = multislice.prepared(slices, positions)
    propagation = Propagation(multislice.transmission(different), order, multislice.fourier)
    propagator = multislice.propagator((nx, ny))[None]
    waves = torch.empty(len(index), nx, ny, dtype=multislice.dtype, device=multislice.device)
    for part, out in zip(*(t.split(batch(nx * ny, multislice.device)) for t in (index, waves)), strict=True):
        start = torch.zeros_like(out)
        start[torch.arange(len(part)), part[:, 0], part[:, 1]] = 1
        out.copy_(torch.fft.ifft2(propagation.run(start, propagator)[0], norm="forward"))
    return waves
