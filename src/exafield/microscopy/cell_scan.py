"""The diffraction patterns of a whole unit cell in one go.

On top of periodic.py: for one detector pixel the amplitude as a function of the probe position x0 is a Fourier series
over the cell, with one term S(k, k0) A(k0) exp(-i chi(k0)) exp(-2 pi i k0.x0) for each incident beam k0 of that pixel's
residue class. Put at the index of k0's reciprocal-lattice vector, one small Fourier transform gives it at every point
of a probe grid over the cell; its absolute square is summed into the detector bins. The full array is never formed.

Intensities hold no frequency above 2 alpha / lambda, so a probe grid with steps of at most lambda / (4 alpha) over one
cell (0.25 A at 200 keV and 25 mrad) is complete: Fourier interpolation gives every other position. A soft aperture
reaches half a reciprocal pixel further; the default step allows for it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from exafield.microscopy import periodic
from exafield.microscopy.detector import AngularDetector
from exafield.microscopy.multislice import Multislice
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
    """All patterns of a probe grid over one cell of a crystal.

    The same, to rounding, as `detector.bin(multislice.scan(slices.array(), positions))` at every grid point.

    Args:
        multislice: microscope; its sampling and slice thickness must be those of the slices.
        slices: one unit cell and how often it repeats in the simulated array.
        detector: angular grid; 16 x 16 bins over +-40 mrad by default.
        probe_step: largest distance between probe positions [A]; by default the largest that is complete.

    Raises:
        ValueError: the grids do not fit each other, or the aperture is under-sampled.
    """
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
    probes = tuple(grid_size(edge, probe_step) for edge in slices.cell)
    pupil = multislice.pupil(shape)
    propagator = multislice.propagator(shape)
    transmission = multislice.transmission(slices.potential)

    # Incident beams sorted by residue class: index in the full array = residue + repeats * index on the tile.
    index = pupil.abs().nonzero()
    many = torch.tensor(repeats, device=index.device)
    residue = (index % many)[:, 0] * repeats[1] + (index % many)[:, 1]
    sort = residue.argsort(stable=True)
    index, residue = index[sort], residue[sort]
    blocks = propagator.reshape(nx, repeats[0], ny, repeats[1]).permute(1, 3, 0, 2).reshape(-1, nx, ny)
    step = multislice.batch(nx * ny)
    matrix = torch.cat(
        [
            periodic.scattering_matrix(transmission, list(slices.order), blocks[r], g, step)
            for g, r in zip((index // many).split(step), residue.split(step), strict=True)
        ]
    )
    matrix *= pupil[index[:, 0], index[:, 1]][:, None, None]
    kept = float(matrix.abs().square().sum(dtype=torch.float64))

    # A beam's reciprocal-lattice vector; negative frequencies are counted from the end of the probe grid.
    size = torch.tensor(shape, device=index.device)
    signed = torch.where(index > (size - 1) // 2, index - size, index)
    vector = torch.div(signed - index % many, many, rounding_mode="floor") % torch.tensor(probes, device=index.device)
    weights = [
        detector.weights(k, 1 / edge, multislice.wavelength).to(multislice.device, matrix.real.dtype)
        for k, edge in zip(multislice.frequencies(shape), slices.box, strict=True)
    ]
    binned = matrix.real.new_zeros(detector.pixels, detector.pixels, probes[0] * probes[1])
    for r in range(repeats[0] * repeats[1]):
        chosen = (residue == r).nonzero()[:, 0]
        if len(chosen) == 0:
            continue
        wx, wy = weights[0][:, r // repeats[1] :: repeats[0]], weights[1][:, r % repeats[1] :: repeats[1]]
        hit_x, hit_y = (w.sum(0).nonzero()[:, 0] for w in (wx, wy))
        series = matrix.new_zeros(len(hit_x) * len(hit_y), probes[0] * probes[1])
        rows = matrix[chosen][:, hit_x][:, :, hit_y].reshape(len(chosen), -1)
        # index_add: on a coarse probe grid several vectors fold onto one point.
        series.index_add_(1, vector[chosen, 0] * probes[1] + vector[chosen, 1], rows.T)
        amplitude = torch.fft.fft2(series.reshape(-1, *probes))
        intensity = periodic.intensity(amplitude).reshape(len(hit_x), -1)
        partial = (wx[:, hit_x] @ intensity).reshape(detector.pixels, len(hit_y), -1)
        binned += wy[:, hit_y] @ partial
    patterns = binned.permute(2, 0, 1).reshape(*probes, detector.pixels, detector.pixels).contiguous()
    distance = (slices.cell[0] / probes[0], slices.cell[1] / probes[1])
    return CellScan(patterns, distance, kept, float(patterns.sum(dtype=torch.float64)) / (probes[0] * probes[1]))
