"""A pixelated detector on a fixed angular grid: the same pixels whatever array a pattern was simulated on."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AngularDetector:
    """A square of pixels x pixels bins centred on the beam.

    Args:
        pixels: bins along each side.
        half_angle: scattering angle at the edge of the detector [rad].
    """

    pixels: int = 16
    half_angle: float = 0.040

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise ValueError(f"pixels must be at least 1, got {self.pixels}")
        if not (math.isfinite(self.half_angle) and 0 < self.half_angle <= 0.5):
            raise ValueError(f"half_angle must be in (0, 0.5] rad, got {self.half_angle}; 40 mrad is 0.040")

    @property
    def pixel(self) -> float:
        """Angle covered by one bin [rad]."""
        return 2 * self.half_angle / self.pixels

    def weights(self, frequencies: Float[Tensor, "k"], step: float, wavelength: float) -> Float[Tensor, "bin k"]:
        """Share of each reciprocal pixel that falls in each bin; one matrix for x, one for y.

        Args:
            frequencies: centres of the reciprocal pixels, in any order [1/A].
            step: their width [1/A].
            wavelength: of the electron [A].
        """
        edges = torch.linspace(-self.half_angle, self.half_angle, self.pixels + 1, dtype=torch.float64) / wavelength
        low, high = frequencies - step / 2, frequencies + step / 2
        overlap = torch.minimum(high, edges[1:, None]) - torch.maximum(low, edges[:-1, None])
        return overlap.clamp(min=0) / step

    def bin(
        self, patterns: Float[Tensor, "probe kx ky"], sampling: tuple[float, float], wavelength: float
    ) -> Float[Tensor, "probe bx by"]:
        """Bins the patterns that `Multislice.scan` returns; what falls beside the detector is lost.

        Args:
            patterns: zero frequency in the middle.
            sampling: pixel size of the simulated array (dx, dy) [A].
            wavelength: of the electron [A].
        """
        wx, wy = (
            self.weights(torch.fft.fftshift(torch.fft.fftfreq(n, d, dtype=torch.float64)), 1 / (n * d), wavelength)
            for n, d in zip(patterns.shape[1:], sampling, strict=True)
        )
        return torch.einsum("bk,pkl,cl->pbc", wx.to(patterns), patterns, wy.to(patterns))
