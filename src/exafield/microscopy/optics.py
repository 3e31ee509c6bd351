"""Electron optics: wavelength, interaction, aperture, aberrations, propagation, band limit.

Conventions: plane waves exp(2 pi i k.x), k in 1/A; the beam travels along +z; propagation over dz multiplies by
exp(-i pi lambda k^2 dz); a probe at x0 is the aperture times exp(-i chi(k)) exp(-2 pi i k.x0), with
chi = -pi lambda defocus k^2 + pi/2 cs lambda^3 k^4: positive defocus is underfocus.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import constants

_REST = constants.m_e * constants.c**2 / constants.e


def wavelength(energy: float) -> float:
    """Relativistic electron wavelength [A] at `energy` [eV]."""
    momentum = np.sqrt(energy * (energy + 2 * _REST))
    return float(constants.h * constants.c / constants.e / momentum * 1e10)


def interaction(energy: float) -> float:
    """Interaction parameter sigma = 2 pi m e lambda / h^2 [rad / (V A)] with the relativistic mass."""
    mass = constants.m_e * (1 + energy / _REST)
    return float(2 * np.pi * mass * constants.e * wavelength(energy) / constants.h**2 * 1e-20)


@dataclass(frozen=True, slots=True)
class Optics:
    """The microscope.

    Args:
        energy: of the beam [eV].
        convergence_angle: semi-angle of the probe [rad].
        defocus: positive is underfocus [A].
        cs: spherical aberration [A].
        aperture: "hard", or "soft" with an edge one frequency pixel wide.
        band_limit: cutoff as a share of the Nyquist frequency of the coarser axis.
        taper: width of the cutoff's raised cosine, as a share of the sampling frequency of the coarser axis.
    """

    energy: float
    convergence_angle: float
    defocus: float = 0.0
    cs: float = 0.0
    aperture: Literal["hard", "soft"] = "hard"
    band_limit: float = 2 / 3
    taper: float = 0.01

    def __post_init__(self) -> None:
        if not 1e3 <= self.energy <= 1e7:
            raise ValueError(f"energy must lie in 1e3..1e7 eV, got {self.energy} (200 keV is 200e3)")
        if not 0 < self.convergence_angle < 0.5:
            raise ValueError(
                f"convergence_angle must lie in 0..0.5 rad, got {self.convergence_angle} (25 mrad is 0.025)"
            )
        if self.aperture not in ("hard", "soft"):
            raise ValueError(f"aperture must be 'hard' or 'soft', got {self.aperture!r}")
        if not 0 < self.band_limit <= 2:
            raise ValueError(f"band_limit must lie in 0..2 (2/3 is free of aliasing), got {self.band_limit}")
        if self.taper < 0:
            raise ValueError(f"taper must not be negative, got {self.taper}")

    @property
    def wavelength(self) -> float:
        """[A]"""
        return wavelength(self.energy)

    @property
    def sigma(self) -> float:
        """Interaction parameter [rad / (V A)]."""
        return interaction(self.energy)

    @property
    def cutoff(self) -> float:
        """Radius of the aperture in reciprocal space [1/A]."""
        return self.convergence_angle / self.wavelength

    def probe(self, kx: Float[np.ndarray, "x"], ky: Float[np.ndarray, "y"]) -> np.ndarray:
        """Aperture times aberrations on a grid of frequencies [1/A], of unit intensity: (x, y), complex.

        Raises:
            ValueError: the grid is too small for the aperture.
        """
        step_x, step_y = _step(kx), _step(ky)
        reach = min(abs(kx).max(), abs(ky).max()) * min(self.band_limit, 1.0)
        if self.cutoff > reach:
            raise ValueError(
                f"the aperture ends at {self.cutoff:.3f} 1/A, but the grid only holds {reach:.3f} 1/A within its band "
                f"limit: use pixels of at most {min(self.band_limit, 1.0) / (2 * self.cutoff):.3f} A"
            )
        square = kx[:, None] ** 2 + ky[None] ** 2
        k = np.sqrt(square)
        if self.aperture == "hard":
            inside = (k <= self.cutoff).astype(float)
        else:
            across = np.hypot(kx[:, None] * step_x, ky[None] * step_y) / np.where(k > 0, k, 1.0)
            inside = np.clip(0.5 + (self.cutoff - k) / np.where(k > 0, across, 1.0), 0.0, 1.0)
            inside[k == 0] = 1.0
        lam = self.wavelength
        chi = np.pi * lam * square * (-self.defocus + 0.5 * self.cs * lam**2 * square)
        wave = inside * np.exp(-1j * chi)
        return np.asarray(wave / np.sqrt((abs(wave) ** 2).sum()))

    def mask(self, kx: np.ndarray, ky: np.ndarray, sampling: tuple[float, float]) -> np.ndarray:
        """The band limit on a grid of frequencies [1/A]: circular, ending in a raised cosine; (x, y)."""
        coarser = max(sampling)
        end = self.band_limit * 0.5 / coarser
        width = self.taper / coarser
        k = np.hypot(kx[:, None], ky[None])
        if width == 0:
            return np.asarray((k <= end).astype(float))
        return np.asarray(0.5 * (1 + np.cos(np.pi * np.clip((k - end + width) / width, 0.0, 1.0))))

    def propagator(self, kx: np.ndarray, ky: np.ndarray, distance: float) -> np.ndarray:
        """Fresnel propagation over `distance` [A] on a grid of frequencies [1/A]; (x, y), complex."""
        return np.asarray(np.exp(-1j * np.pi * self.wavelength * distance * (kx[:, None] ** 2 + ky[None] ** 2)))


def _step(k: np.ndarray) -> float:
    return float(np.min(np.abs(np.diff(k)))) if len(k) > 1 else 0.0
