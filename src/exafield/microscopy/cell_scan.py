"""The diffraction patterns of a whole unit cell in one go.

On top of periodic.py: for one detector pixel the amplitude as a function of the probe position x0 is a Fourier series
over the cell, with one term S(k, k0) A(k0) exp(-i chi(k0)) exp(-2 pi i k0.x0) for each incident beam k0 of that pixel's
residue class. Put at the index of k0's reciprocal-lattice vector, one small Fourier transform gives it at every point
of a probe grid over the cell; its absolute square is summed into the detector bins. The full array is never formed.

Intensities hold no frequency above 2 alpha / lambda, so a probe grid with steps of at most lambda / (4 alpha) over one
cell (0.25 A at 200 keV and 25 mrad) is complete: Fourier interpolation gives every other position. A soft aperture
reaches half a reciprocal pixel further; the default step allows for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from exafield.microscopy import periodic
from exafield.microscopy.detector import AngularDetector
from exafield.microscopy.multislice import REPEAT, Multislice
from exafield.microscopy.paths import Scanner
from exafield.microscopy.potential import Slices, grid_size


@dataclass(frozen=True, eq=False)
class CellScan:
    """Binned diffraction patterns for a grid of probe positions over one unit cell.

    Args:
        patterns: (px, py, kx, ky): share of the incident electrons in each bin; probe (i, j) sits at (i, j) * step.
        step: distance of the probe positions (x, y) [A]; the grid covers the cell once, without the closing edge.
        kept: share of the incident intensity inside the band limit behind the specimen, mean over all positions.
        detected: share of the incident intensity that falls on the detector, mean over all positions.
    """

    patterns: Float[Tensor, "px py kx ky"]
    step: tuple[float, float]
    kept: float
    detected: float


def scan_cell(
    multislice: Multislice,
    slices: Slices,
    detector: AngularDetector | None = None,
    probe_step: float | None = None,
) -> CellScan:
    """All patterns of a probe grid over one cell of a crystal: :func:`scan_depths` behind its last slice."""
    return scan_depths(multislice, slices, [len(slices.order)], detector, probe_step)[0]


def scan_depths(
    multislice: Multislice,
    slices: Slices,
    depths: Sequence[int],
    detector: AngularDetector | None = None,
    probe_step: float | None = None,
) -> list[CellScan]:
    """All patterns of a probe grid over one cell, behind each of several numbers of slices, from one run.

    The same, to rounding, as `detector.bin(multislice.scan(slices.array(), positions))` at every grid point.

    Args:
        multislice: microscope; its sampling and slice thickness must be those of the slices.
        slices: one unit cell and how often it repeats in the simulated array.
        depths: numbers of slices, rising, up to all there are.
        detector: angular grid; 16 x 16 bins over +-40 mrad by default.
        probe_step: largest distance between probe positions [A]; by default the largest that is complete.

    Raises:
        ValueError: the grids do not fit each other, the depths do not rise, or the aperture is under-sampled.
    """
    order = list(slices.order)
    if not depths or any(b <= a for a, b in zip([0, *depths], depths, strict=False)) or depths[-1] > len(order):
        raise ValueError(f"depths must rise within 1..{len(order)} slices, got {list(depths)}")
    detector = detector or AngularDetector()
    same = all(abs(a / b - 1) < 1e-9 for a, b in zip(multislice.sampling, slices.sampling, strict=True))
    if not same or abs(multislice.slice_thickness / slices.thickness - 1) > 1e-9:
        raise ValueError(
            f"the microscope's grid, {multislice.sampling} A and slices of {multislice.slice_thickness} A, is not that "
            f"of the slices, {slices.sampling} A and {slices.thickness} A: make it with sampling=slices.sampling, "
            "slice_thickness=slices.thickness"
        )
    if probe_step is None:
        radius = multislice.convergence_angle / multislice.wavelength
        probe_step = 1 / (4 * (radius + 0.5 / min(slices.box)))
    _, nx, ny = slices.potential.shape
    repeats = slices.repeats
    shape = (nx * repeats[0], ny * repeats[1])
    # At small angles less than two positions would do; two are simplest.
    probes = tuple(grid_size(edge, min(probe_step, edge / 2)) for edge in slices.cell)
    scanner = Scanner(
        multislice, slices.potential, order, repeats, probes[0] * probes[1], depths, REPEAT[multislice.dtype], "matrix"
    )
    tiling = scanner.tiling
    index, amplitude = scanner.beams
    residue = tiling.number(tiling.split(index)[0])
    # A beam's reciprocal-lattice vector; negative frequencies are counted from the end of the probe grid.
    vector = torch.div(index, torch.tensor(repeats), rounding_mode="floor") % torch.tensor(probes)
    place = (vector[:, 0] * probes[1] + vector[:, 1]).to(multislice.device)
    # The detector's weights for the frequencies of each residue's window.
    weights = [
        _windows(detector.weights(k, 1 / edge, multislice.wavelength), low, size, m).to(amplitude.real)
        for k, edge, low, size, m in zip(
            multislice.frequencies(shape), slices.box, tiling.low, tiling.size, repeats, strict=True
        )
    ]
    distance = (slices.cell[0] / probes[0], slices.cell[1] / probes[1])
    scans = []
    for matrix in scanner.matrix():
        matrix *= amplitude[:, None, None]
        binned = matrix.real.new_zeros(detector.pixels, detector.pixels, probes[0] * probes[1])
        for r in residue.unique().tolist():
            chosen = (residue == r).nonzero()[:, 0].to(multislice.device)
            wx, wy = weights[0][r // repeats[1]], weights[1][r % repeats[1]]
            hit_x, hit_y = (w.sum(0).nonzero()[:, 0] for w in (wx, wy))
            series = matrix.new_zeros(len(hit_x) * len(hit_y), probes[0] * probes[1])
            rows = matrix[chosen][:, hit_x][:, :, hit_y].reshape(len(chosen), -1)
            # index_add: on a coarse probe grid several vectors fold onto one point.
            series.index_add_(1, place[chosen], rows.T)
            seen = periodic.intensity(torch.fft.fft2(series.reshape(-1, *probes))).reshape(len(hit_x), -1)
            partial = (wx[:, hit_x] @ seen).reshape(detector.pixels, len(hit_y), -1)
            binned += wy[:, hit_y] @ partial
        patterns = binned.permute(2, 0, 1).reshape(*probes, detector.pixels, detector.pixels).contiguous()
        kept = float(matrix.abs().square().sum(dtype=torch.float64))
        detected = float(patterns.sum(dtype=torch.float64)) / (probes[0] * probes[1])
        scans.append(CellScan(patterns, distance, kept, detected))
    return scans


def _windows(weights: Float[Tensor, "bin k"], low: int, size: int, repeats: int) -> Float[Tensor, "residue bin g"]:
    """Columns of the frequencies r + repeats g, for each residue r and the g of its window."""
    index = torch.arange(repeats)[:, None] + repeats * (low + torch.arange(size))
    return weights[:, index % weights.shape[1]].transpose(0, 1)
