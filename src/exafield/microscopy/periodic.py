"""Exact multislice of a laterally periodic specimen at the cost of one tile.

On a grid of M1 x M2 equal tiles of n1 x n2 pixels, write a frequency index as I = r + M g with Bloch vector
r = 0..M-1 and reciprocal vector g = 0..n-1 of the tile. A periodic transmission function conserves r, and the
propagator is diagonal, so each r propagates on its own on the tile's grid; from every beam of the aperture once,
which gives the scattering matrix S_r[k0, g]. Probe positions and aberrations enter only afterwards:

    psi(r + M g; x0) = sum over k0 of residue r of  probe(k0) exp(-2 pi i k0.x0) S_r[k0, g]

No approximation is made beyond multislice itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from exafield.microscopy.optics import Optics

# Slices count as periodic if they repeat within this share of their maximum.
_SAME = 1e-6


def tiling(slices: Float[Tensor, "slice x y"]) -> tuple[int, int]:
    """How many times the slices repeat along x and y: the largest counts for which all of them do."""
    limit = _SAME * float(slices.abs().max())

    def repeats(dim: int) -> int:
        length = slices.shape[dim]
        for count in range(length // 2, 1, -1):
            if length % count == 0 and float((slices - slices.roll(length // count, dim)).abs().max()) <= limit:
                return count
        return 1

    return repeats(1), repeats(2)


@dataclass(frozen=True)
class Detector:
    """A square pixelated detector on a fixed angular grid, whatever the crystal.

    Args:
        pixels: along each side.
        angle: half its width [rad].
    """

    pixels: int
    angle: float

    def __post_init__(self) -> None:
        if self.pixels < 1 or not self.angle > 0:
            raise ValueError(f"a detector needs pixels >= 1 and angle > 0, got {self.pixels} and {self.angle}")

    def weights(self, frequencies: Float[np.ndarray, "k"], step: float, wavelength: float) -> np.ndarray:
        """Share of each frequency pixel [1/A] that falls on each detector pixel along one axis: (pixel, k)."""
        edges = np.linspace(-self.angle, self.angle, self.pixels + 1)
        low, high = wavelength * (frequencies - step / 2), wavelength * (frequencies + step / 2)
        overlap = np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low)
        return np.asarray(np.clip(overlap, 0.0, None) / (wavelength * step))


class ScatteringMatrix:
    """A periodic specimen, ready for any probe.

    Args:
        transmission: of the distinct slices on one tile, band limited; its dtype is that of the calculation.
        order: which of them comes at each depth.
        repeats: tiles along x and y.
        sampling: pixel size [A].
        thickness: of a slice [A].
    """

    def __init__(
        self,
        optics: Optics,
        transmission: Tensor,
        order: Sequence[int],
        repeats: tuple[int, int],
        sampling: tuple[float, float],
        thickness: float,
    ) -> None:
        self.optics, self.transmission, self.order, self.repeats = optics, transmission, tuple(order), repeats
        self.tile = (int(transmission.shape[1]), int(transmission.shape[2]))
        self.shape = (self.tile[0] * repeats[0], self.tile[1] * repeats[1])
        self.kx, self.ky = (np.fft.fftfreq(n, d) for n, d in zip(self.shape, sampling, strict=True))
        self.probe = optics.probe(self.kx, self.ky)
        self.step = optics.propagator(self.kx, self.ky, thickness) * optics.mask(self.kx, self.ky, sampling)

    def residues(self) -> Iterator[tuple[tuple[int, int], np.ndarray, Tensor]]:
        """For each Bloch vector r with beams in the aperture: r, the beams' indices g (beam, 2), and S (beam, x, y)."""
        (m1, m2), device = self.repeats, self.transmission.device
        for r1 in range(m1):
            for r2 in range(m2):
                beams = np.argwhere(self.probe[r1::m1, r2::m2] != 0)
                if not len(beams):
                    continue
                step = torch.from_numpy(np.ascontiguousarray(self.step[r1::m1, r2::m2]))
                step = step.to(device, self.transmission.dtype)
                wave = torch.zeros(len(beams), *self.tile, dtype=self.transmission.dtype, device=device)
                wave[torch.arange(len(beams)), beams[:, 0], beams[:, 1]] = 1
                for index in self.order:
                    wave = torch.fft.fft2(torch.fft.ifft2(wave) * self.transmission[index]) * step
                yield (r1, r2), beams, wave

    def patterns(self, positions: Float[np.ndarray, "probe 2"]) -> Float[Tensor, "probe kx ky"]:
        """Intensities at each probe position [A], zero frequency first."""
        dtype, device = self.transmission.dtype, self.transmission.device
        out = torch.zeros(len(positions), *self.shape, dtype=torch.empty(0, dtype=dtype).real.dtype, device=device)
        m1, m2 = self.repeats
        for (r1, r2), beams, matrix in self.residues():
            i, j = r1 + m1 * beams[:, 0], r2 + m2 * beams[:, 1]
            phase = positions[:, :1] * self.kx[i] + positions[:, 1:] * self.ky[j]
            amplitude = torch.from_numpy(self.probe[i, j] * np.exp(-2j * np.pi * phase)).to(device, dtype)
            wave = (amplitude @ matrix.flatten(1)).unflatten(1, self.tile)
            out[:, r1::m1, r2::m2] = wave.abs() ** 2
        return out


def binned_scan(
    matrix: ScatteringMatrix, probes: tuple[int, int], detector: Detector
) -> tuple[Float[Tensor, "px py bx by"], float]:
    """All patterns of a grid of px x py probe positions over one tile, on a detector.

    At position (i a/px, j b/py) the phase of beam r + M g is that of r, common to its residue and without effect,
    times exp(-2 pi i (g1 i/px + g2 j/py)): for each frequency the sum over beams is an FFT over positions.

    Returns:
        patterns as shares of the incident intensity, and the mean share left within the band limit.
    """
    px, py = probes
    m1, m2 = matrix.repeats
    n1, n2 = matrix.tile
    complex_, device = matrix.transmission.dtype, matrix.transmission.device
    real = torch.empty(0, dtype=complex_).real.dtype
    lam = matrix.optics.wavelength
    weight_x, weight_y = (
        torch.from_numpy(detector.weights(k, abs(k[1]), lam)).to(device, real) for k in (matrix.kx, matrix.ky)
    )
    result = torch.zeros(detector.pixels, detector.pixels, px * py, dtype=real, device=device)
    total = 0.0
    for (r1, r2), beams, scattering in matrix.residues():
        signed = [np.where(g > n // 2, g - n, g) for g, n in zip(beams.T, (n1, n2), strict=True)]
        if any(int(s.max() - s.min()) >= p for s, p in zip(signed, (px, py), strict=True)):
            raise ValueError(f"a probe grid of {px} x {py} is too coarse for the aperture: leave it to its default")
        amplitude = matrix.probe[r1 + m1 * beams[:, 0], r2 + m2 * beams[:, 1]]
        scattering = scattering * torch.from_numpy(amplitude).to(device, complex_)[:, None, None]
        total += float((scattering.abs() ** 2).sum())
        wx, wy = weight_x[:, r1::m1], weight_y[:, r2::m2]
        rows, columns = (w.any(0).nonzero().squeeze(1) for w in (wx, wy))
        kept = scattering[:, rows][:, :, columns]
        grid = torch.zeros(len(rows), len(columns), px * py, dtype=complex_, device=device)
        slot = torch.from_numpy((signed[0] % px) * py + signed[1] % py).to(device)
        grid[:, :, slot] = kept.permute(1, 2, 0)
        waves = torch.fft.fft2(grid.unflatten(2, (px, py)))
        intensity = waves.real**2 + waves.imag**2
        part = torch.tensordot(wx[:, rows], intensity.flatten(2), dims=([1], [0]))
        result += torch.tensordot(wy[:, columns], part, dims=([1], [1])).transpose(0, 1)
    # Over a full grid of positions the cross terms between beams average out.
    return result.permute(2, 0, 1).unflatten(0, (px, py)).contiguous(), total
