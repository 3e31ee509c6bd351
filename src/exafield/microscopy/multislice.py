"""Multislice: how a focused electron beam passes a specimen, and the diffraction pattern it leaves.

J. M. Cowley and A. F. Moodie, Acta Cryst. 10, 609 (1957); E. J. Kirkland, Advanced Computing in Electron
Microscopy, 2nd ed. (2010).
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from exafield.microscopy.optics import Optics
from exafield.microscopy.periodic import Detector, ScatteringMatrix, binned_scan, tiling
from exafield.microscopy.potential import Slices

# Probes propagated together (our choice: 8 waves of 256 x 256 stay within a core's cache).
_BATCH = 8


@dataclass(frozen=True)
class Multislice:
    """A multislice simulation of convergent-beam electron diffraction (CBED).

    Args:
        energy: of the beam [eV].
        sampling: pixel size of the potential along x and y [A].
        slice_thickness: [A].
        convergence_angle: semi-angle of the probe [rad].
        defocus: positive is underfocus [A].
        cs: spherical aberration [A].
        aperture: "hard", or "soft" with an edge one frequency pixel wide.
        band_limit: cutoff as a share of the Nyquist frequency of the coarser axis.
        taper: width of the cutoff's raised cosine, as a share of the sampling frequency of the coarser axis.
        dtype: torch.complex64 or torch.complex128.
        device: where it runs.
    """

    energy: float
    sampling: tuple[float, float]
    slice_thickness: float
    convergence_angle: float
    defocus: float = 0.0
    cs: float = 0.0
    aperture: Literal["hard", "soft"] = "hard"
    band_limit: float = 2 / 3
    taper: float = 0.01
    dtype: torch.dtype = torch.complex64
    device: torch.device | str = "cpu"
    optics: Optics = field(init=False)

    def __post_init__(self) -> None:
        if not (min(self.sampling) > 0 and self.slice_thickness > 0):
            raise ValueError(
                f"sampling and slice_thickness must be above 0 A, got {self.sampling} and {self.slice_thickness}"
            )
        if self.dtype not in (torch.complex64, torch.complex128):
            raise ValueError(f"dtype must be torch.complex64 or torch.complex128, got {self.dtype}")
        optics = Optics(
            self.energy,
            self.convergence_angle,
            self.defocus,
            self.cs,
            self.aperture,
            self.band_limit,
            self.taper,
        )
        object.__setattr__(self, "optics", optics)

    def scan(
        self,
        slices: Float[Tensor, "slice x y"],
        positions: Float[Tensor, "probe 2"],
        *,
        path: Literal["auto", "plain", "periodic"] = "auto",
    ) -> Float[Tensor, "probe kx ky"]:
        """Diffraction patterns of a focused probe at each position.

        Args:
            slices: projected potentials in depth order [V A].
            positions: of the probe [A].
            path: "periodic" uses that the slices repeat laterally (exact, cheaper for many probes); "auto" takes
                it when they do and enough probes are asked for.
        Returns:
            intensities, zero frequency in the middle (fftshift), as shares of the incident intensity.
        Raises:
            ValueError: slices are not finite, too coarse for the aperture, or not periodic as demanded.
        """
        real = torch.float64 if self.dtype == torch.complex128 else torch.float32
        slices = slices.to(self.device, torch.float64)
        if not torch.isfinite(slices).all():
            bad = int((~torch.isfinite(slices)).flatten(1).any(1).nonzero()[0])
            raise ValueError(f"slice {bad} of the potential holds NaN or infinity")
        repeats = tiling(slices) if path != "plain" else (1, 1)
        if path == "periodic" and repeats == (1, 1):
            raise ValueError("the slices do not repeat laterally: use path='auto'")
        tile_area = np.prod(slices.shape[1:]) * np.prod(self.sampling) / np.prod(repeats)
        # Beams of one Bloch vector: the cost of the periodic path in units of one probe (facts of the algebra).
        beams = np.pi * self.optics.cutoff**2 * tile_area
        if repeats != (1, 1) and (path == "periodic" or len(positions) > beams):
            matrix = ScatteringMatrix(
                self.optics,
                self._transmission(
                    slices[:, : slices.shape[1] // repeats[0], : slices.shape[2] // repeats[1]], repeats
                ),
                range(len(slices)),
                repeats,
                self.sampling,
                self.slice_thickness,
            )
            patterns = matrix.patterns(positions.double().cpu().numpy())
        else:
            patterns = self._plain(slices, positions)
        return torch.fft.fftshift(patterns, dim=(-2, -1)).to(real)

    def scan_cell(
        self, slices: Slices, repeats: tuple[int, int], detector: Detector, probes: tuple[int, int] | None = None
    ) -> tuple[Float[Tensor, "px py bx by"], float]:
        """Patterns on a detector for a whole grid of probe positions over one cell of a crystal.

        The specimen is the cell repeated laterally; positions are (i a/px, j b/py). One small FFT per detector
        pixel gives all positions at once.

        Args:
            probes: positions along x and y; default: the fewest that hold everything a scan of the cell can show
                (intensities have no frequency above twice the aperture).
        Returns:
            patterns, and the mean share of the incident intensity that is left within the band limit.
        """
        if probes is None:
            probes = tuple(int(4 * edge * self.optics.cutoff) + 3 for edge in slices.cell)  # type: ignore[assignment]
            assert probes is not None
        distinct = slices.potential.to(self.device, torch.float64)
        matrix = ScatteringMatrix(
            self.optics,
            self._transmission(distinct, repeats),
            slices.order,
            repeats,
            slices.sampling,
            slices.thickness,
        )
        return binned_scan(matrix, probes, detector)

    def _transmission(self, potential: Tensor, repeats: tuple[int, int]) -> Tensor:
        """exp(i sigma V) within the band limit, on the tile: (slice, x, y)."""
        shape = potential.shape[1:]
        sampling = self.sampling
        kx, ky = (np.fft.fftfreq(n, d) for n, d in zip(shape, sampling, strict=True))
        # The tile's frequencies are every repeats-th of the whole grid's, so the mask takes the same values.
        mask = torch.from_numpy(self.optics.mask(kx, ky, sampling)).to(potential.device)
        waves = torch.fft.ifft2(torch.fft.fft2(torch.exp(1j * self.optics.sigma * potential)) * mask)
        return waves.to(self.dtype)

    def _plain(self, slices: Tensor, positions: Tensor) -> Tensor:
        """Every probe through every slice on the whole grid."""
        shape = slices.shape[1:]
        kx, ky = (np.fft.fftfreq(n, d) for n, d in zip(shape, self.sampling, strict=True))
        step = self.optics.propagator(kx, ky, self.slice_thickness) * self.optics.mask(kx, ky, self.sampling)
        step = torch.from_numpy(step).to(self.device, self.dtype)
        probe = torch.from_numpy(self.optics.probe(kx, ky)).to(self.device)
        waves_t = self._transmission(slices, (1, 1))
        fx, fy = (torch.from_numpy(f).to(self.device) for f in (kx, ky))
        results = []
        for batch in positions.to(self.device, torch.float64).split(_BATCH):
            shift_x = torch.exp(-2j * torch.pi * batch[:, :1] * fx)
            shift_y = torch.exp(-2j * torch.pi * batch[:, 1:] * fy)
            wave = (probe * shift_x[:, :, None] * shift_y[:, None]).to(self.dtype)
            for transmission in waves_t:
                wave = torch.fft.fft2(torch.fft.ifft2(wave) * transmission) * step
            results.append(wave.abs() ** 2)
        return torch.cat(results) if results else torch.zeros(0, *shape)
