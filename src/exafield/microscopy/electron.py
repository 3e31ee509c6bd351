"""The fast electron: wavelength and interaction with a potential, relativistic, from the CODATA constants."""

import math

from scipy import constants

_REST = constants.m_e * constants.c**2 / constants.e  # rest energy [eV]
_HC = constants.h * constants.c / constants.e * 1e10  # [eV A]


def wavelength(energy: float) -> float:
    """De Broglie wavelength [A] of an electron accelerated through `energy` [eV]: h c / sqrt(E (E + 2 m c^2))."""
    if not (math.isfinite(energy) and energy > 0):
        raise ValueError(f"energy must be positive [eV], got {energy}")
    return float(_HC / math.sqrt(energy * (energy + 2 * _REST)))


def complete_step(energy: float, convergence_angle: float) -> float:
    """Largest scan step [A] with which patterns are known at all positions: no frequency of a scan lies beyond the
    difference of two directions of the probe, 2 alpha / lambda, and half its inverse is lambda / (4 alpha).
    """
    return wavelength(energy) / (4 * convergence_angle)


def largest_pixel(energy: float, half_angle: float) -> float:
    """Largest pixel of a simulation [A] whose patterns are to reach to `half_angle` [rad].

    Two thirds of the highest frequency 1 / (2 pixel) pass the band limit, so that lambda / (3 half_angle) would just
    do; a little is left over.
    """
    return wavelength(energy) / (3.1 * half_angle)


def interaction(energy: float) -> float:
    """Interaction parameter sigma [rad / (V A)]: a projected potential V shifts the phase by sigma V.

    sigma = 2 pi m e lambda / h^2 with the relativistic mass m = m0 + E / c^2; here 2 pi (E + m0 c^2) lambda / (h c)^2.
    """
    return float(2 * math.pi * (energy + _REST) * wavelength(energy) / _HC**2)
