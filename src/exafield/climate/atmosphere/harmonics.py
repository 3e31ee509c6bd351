"""Random fields on the sphere, smooth in space and time, from spherical harmonics."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exafield.climate.grid import Grid


def legendre(degree: int, latitude: NDArray[np.float64]) -> NDArray[np.float32]:
    """Associated Legendre functions of the sine of latitude, [order m, degree l, latitude], orthonormal on the sphere.

    By the standard recurrence upwards in l from the sectoral functions (Holmes and Featherstone 2002, eq. 11).

    Args:
        degree: the highest.
        latitude: [n] degrees north.
    """
    sine, cosine = np.sin(np.deg2rad(latitude)), np.cos(np.deg2rad(latitude))
    table = np.zeros((degree + 1, degree + 1, latitude.size), dtype=np.float32)
    sectoral = np.full(latitude.size, np.sqrt(1 / (4 * np.pi)))
    for m in range(degree + 1):
        if m:
            sectoral = sectoral * cosine * np.sqrt((2 * m + 1) / (2 * m))
        before, now = np.zeros_like(sectoral), sectoral
        table[m, m] = now
        for n in range(m + 1, degree + 1):
            rise = np.sqrt((4 * n * n - 1) / (n * n - m * m))
            fall = np.sqrt(((n - 1) ** 2 - m * m) / (4 * (n - 1) ** 2 - 1)) if n > 1 else 0.0
            before, now = now, rise * (sine * now - fall * before)
            table[m, n] = now
    return table


class Basis:
    """Spherical harmonics on a grid.

    Args:
        grid: any, also a part of the globe.
        degree: the highest.
    """

    def __init__(self, grid: Grid, degree: int) -> None:
        self.degree = degree
        self._table = np.ascontiguousarray(legendre(degree, grid.latitude).transpose(0, 2, 1))
        orders = np.arange(degree + 1)
        waves = np.exp(1j * np.outer(orders, np.deg2rad(grid.longitude)))
        waves[1:] *= 2  # negative orders, whose coefficients are the conjugates
        self._cosines, self._sines = waves.real.astype(np.float32), waves.imag.astype(np.float32)

    def field(self, coefficients: NDArray[np.complex128]) -> NDArray[np.float32]:
        """The field [latitude, longitude] of coefficients [order m, degree l]."""
        # Real and imaginary parts as two columns: products of real matrices are those that run fast.
        parts = np.stack([coefficients.real, coefficients.imag], axis=-1).astype(np.float32)
        zonal = self._table @ parts
        return np.asarray(zonal[..., 0].T @ self._cosines - zonal[..., 1].T @ self._sines, dtype=np.float32)


@dataclass(frozen=True)
class Noise:
    """A stationary random field of mean 0 and variance 1, known at any time without those before.

    Each coefficient is a sum of a few oscillations, whose frequencies scatter so that it forgets itself after a time
    that falls with its degree; all of it drifts eastwards.

    Args:
        seed: anything that numpy's seeds take.
        degree: the highest.
        peak: degree below which the spectrum is flat.
        slope: above it, the power of each coefficient falls as degree to this. Kinetic energy of the large-scale
            atmosphere falls as degree to the -3 (Boer and Shepherd 1983), a sum over 2 l + 1 orders: so do wind and
            temperature with -4, and pressure, of which wind is the slope, with -6.
        memory: time after which degree `peak` forgets itself [days].
        drift: eastwards [degrees longitude a day].
        waves: oscillations of each coefficient.
    """

    seed: tuple[int, ...]
    degree: int
    peak: float = 8.0
    slope: float = -4.0
    memory: float = 3.0
    drift: float = 8.0
    waves: int = 5

    def coefficients(self, day: float) -> NDArray[np.complex128]:
        """[order m, degree l] at a time [days]."""
        generator = np.random.default_rng(self.seed)
        size = self.degree + 1
        order, degree = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
        power = np.where(degree > 0, np.maximum(degree / self.peak, 1.0) ** self.slope, 0.0)
        # The sum over orders of the squares of degree l is (2 l + 1) / 4 pi everywhere (addition theorem).
        scale = np.sqrt(power / np.sum(power[0] * (2 * degree[0] + 1) / (4 * np.pi)))
        shape = (self.waves, size, size)
        amplitude = generator.normal(size=shape) + 1j * generator.normal(size=shape)
        memory = self.memory * np.maximum(degree / self.peak, 0.3) ** (-2 / 3)
        frequency = generator.normal(size=shape) / memory - order * np.deg2rad(self.drift)
        value = (amplitude * np.exp(1j * frequency * day)).sum(axis=0) / np.sqrt(2 * self.waves)
        # Coefficients of order 0 are real, of the same variance.
        value = np.where(order == 0, np.sqrt(2) * value.real, value) * scale
        return np.where(degree >= order, value, 0.0)
