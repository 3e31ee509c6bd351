"""Scans of thin crystals, shared by the tests of what is done with scans."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from exafield.microscopy.cell_scan import scan_cell
from exafield.microscopy.crystal import embedded
from exafield.microscopy.detector import AngularDetector
from exafield.microscopy.multislice import Multislice
from exafield.microscopy.phase import transfer
from exafield.microscopy.potential import projected_slices
from exafield.microscopy.views import view

ENERGY, ALPHA, HALF = 200e3, 0.025, 0.040
CRYSTALS = {crystal.name: crystal for crystal in embedded()}


@dataclass(frozen=True)
class Thin:
    """Patterns of one cell, and its potential's Fourier coefficients."""

    patterns: Tensor
    step: tuple[float, float]
    spectrum: Tensor
    cell: tuple[float, float]

    def _frequency(self) -> tuple[Tensor, Tensor, Tensor]:
        nx, ny = self.spectrum.shape
        qx, qy = (torch.fft.fftfreq(n, e / n, dtype=torch.float64) for n, e in zip((nx, ny), self.cell, strict=True))
        return qx, qy, torch.hypot(qx[:, None], qy[None])

    def truth(self, x: np.ndarray, y: np.ndarray, *, blur: float = 0.0, probe: bool = False) -> Tensor:
        """The potential [V A] within 2 alpha / lambda at these positions [A], blurred, or seen through the probe."""
        qx, qy, q = self._frequency()
        seen = transfer(q, ALPHA, ENERGY)
        kept = seen if probe else (seen > 0) * torch.exp(-2 * (np.pi * blur * q) ** 2)
        waves = [torch.exp(2j * np.pi * torch.outer(torch.as_tensor(at), k)) for at, k in ((x, qx), (y, qy))]
        field = (waves[0] @ (self.spectrum * kept) @ waves[1].T).real / self.spectrum.numel()
        return field - field.mean()

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        nx, ny = self.patterns.shape[:2]
        return np.arange(nx) * self.step[0], np.arange(ny) * self.step[1]


@cache
def thin(name: str = "SrTiO3", weak: float = 0.1, box: float = 40.0, defocus: float = 0.0, pixels: int = 16) -> Thin:
    """A crystal of one slice, its potential scaled by `weak`, seen by an ideal microscope."""
    slices = projected_slices(view(CRYSTALS[name], "001"), thickness=2.0, box=box)
    total = slices.total * weak
    flat = replace(slices, potential=total[None], order=(0,), thickness=0.01)
    microscope = Multislice(
        energy=ENERGY,
        sampling=slices.sampling,
        slice_thickness=0.01,
        convergence_angle=ALPHA,
        defocus=defocus,
        aperture="soft",
        dtype=torch.complex128,
    )
    scan = scan_cell(microscope, flat, AngularDetector(pixels, HALF))
    return Thin(scan.patterns, scan.step, torch.fft.fft2(total), slices.cell)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
