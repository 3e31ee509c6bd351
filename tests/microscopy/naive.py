"""Multislice on the full array, as a textbook has it: in NumPy, with nothing of the package but the wavelength."""

import numpy as np

from exafield.microscopy.electron import interaction, wavelength
from exafield.microscopy.multislice import Multislice


def naive_waves(lens: Multislice, slices: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Exit spectra (probe, kx, ky), zero frequency first; hard or soft aperture, no aberration but defocus and cs."""
    _, nx, ny = slices.shape
    (dx, dy), lam = lens.sampling, wavelength(lens.energy)
    kx, ky = np.fft.fftfreq(nx, dx)[:, None], np.fft.fftfreq(ny, dy)[None]
    k = np.hypot(kx, ky)
    limit = np.ones_like(k)
    if lens.band_limit is not None:
        end, width = lens.band_limit / (2 * max(dx, dy)), lens.taper / max(dx, dy)
        limit = 0.5 + 0.5 * np.cos(np.pi * np.clip((k - end + width) / width, 0, 1))
    radius, step = lens.convergence_angle / lam, min(1 / (nx * dx), 1 / (ny * dy))
    if lens.aperture == "hard":
        aperture = (k <= radius + 1e-6 * step).astype(float)
    else:
        pixel = np.hypot(kx / (nx * dx), ky / (ny * dy)) / np.maximum(k, 1e-30)
        aperture = np.clip((radius - k) / np.maximum(pixel, step) + 0.5, 0, 1)
    chi = np.pi * lam * k**2 * (0.5 * lens.cs * lam**2 * k**2 - lens.defocus)
    pupil = aperture / np.sqrt((aperture**2).sum()) * np.exp(-1j * chi)
    propagator = limit * np.exp(-1j * np.pi * lam * lens.slice_thickness * k**2)
    waves = []
    for x, y in positions:
        spectrum = pupil * np.exp(-2j * np.pi * (kx * x + ky * y))
        for one in slices:
            transmission = np.fft.ifft2(np.fft.fft2(np.exp(1j * interaction(lens.energy) * one)) * limit)
            spectrum = np.fft.fft2(np.fft.ifft2(spectrum) * transmission) * propagator
        waves.append(spectrum)
    return np.array(waves)
