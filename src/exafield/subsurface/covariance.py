"""Covariances of random fields in the plane: the Matern family, and sums of its members."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy import special

# Above this the general form overflows, and the field is as good as Gaussian-covariance (our choice).
_SMOOTHEST = 50.0


@runtime_checkable
class Covariance(Protocol):
    """Covariance of a stationary field."""

    @property
    def variance(self) -> float:
        """At distance zero."""
        ...

    def __call__(
        self, a: Float[np.ndarray, "one 2"], b: Float[np.ndarray, "other 2"]
    ) -> Float[np.ndarray, "one other"]:
        """Between each point of `a` and each of `b` [m]."""
        ...


def matern(distance: Float[np.ndarray, "..."], smoothness: float) -> Float[np.ndarray, "..."]:
    """Matern correlation at a distance in units of the length.

    Matern, Spatial Variation (1960); the scaling by sqrt(2 nu) is that of Rasmussen and Williams, Gaussian Processes
    for Machine Learning (2006), eq. 4.14, with which nu -> infinity gives exp(-d^2 / 2).

    Args:
        distance: 0 or more.
        smoothness: nu; infinity for the Gaussian covariance.
    """
    if smoothness == math.inf:
        return np.asarray(np.exp(-0.5 * distance**2))
    z = math.sqrt(2 * smoothness) * distance
    if smoothness == 0.5:
        return np.asarray(np.exp(-z))
    if smoothness == 1.5:
        return np.asarray((1 + z) * np.exp(-z))
    if smoothness == 2.5:
        return np.asarray((1 + z + z**2 / 3) * np.exp(-z))
    # In logarithms, and with the scaled Bessel function, so that neither a large nor a small distance overflows early.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        logs = (1 - smoothness) * math.log(2) - math.lgamma(smoothness) + smoothness * np.log(z)
        value = np.exp(logs + np.log(special.kve(smoothness, z)) - z)
    # Distance zero, and so near it that the Bessel function overflows, where the correlation is 1 to all digits.
    return np.where(np.isfinite(value), np.minimum(value, 1.0), 1.0)


def matern_slope(distance: Float[np.ndarray, "..."], smoothness: float) -> Float[np.ndarray, "..."]:
    """Change of the Matern correlation with the logarithm of the length: -d matern / d log distance.

    From d/dz (z^nu K_nu(z)) = -z^nu K_(nu-1)(z), NIST Digital Library of Mathematical Functions 10.29.4.
    """
    if smoothness == math.inf:
        return np.asarray(distance**2 * np.exp(-0.5 * distance**2))
    z = math.sqrt(2 * smoothness) * distance
    if smoothness == 0.5:
        return np.asarray(z * np.exp(-z))
    if smoothness == 1.5:
        return np.asarray(z**2 * np.exp(-z))
    if smoothness == 2.5:
        return np.asarray(z**2 * (1 + z) / 3 * np.exp(-z))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        logs = (1 - smoothness) * math.log(2) - math.lgamma(smoothness) + (smoothness + 1) * np.log(z)
        value = np.exp(logs + np.log(special.kve(smoothness - 1, z)) - z)
    return np.where(np.isfinite(value), value, 0.0)


@dataclass(frozen=True, slots=True)
class Matern:
    """Matern covariance, with an axis along which it reaches farther if wanted.

    Args:
        variance: at distance zero.
        length: correlation length along the axis [m].
        smoothness: nu; 1/2 is the exponential, infinity the Gaussian covariance.
        anisotropy: length across the axis as a share of that along it.
        angle: of the axis, anticlockwise from x [rad].
    """

    variance: float
    length: float
    smoothness: float = 2.5
    anisotropy: float = 1.0
    angle: float = 0.0

    def __post_init__(self) -> None:
        for name in ("variance", "length", "anisotropy"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"covariance: {name} must be above 0 and finite, got {getattr(self, name)}")
        if not (0 < self.smoothness <= _SMOOTHEST or self.smoothness == math.inf):
            raise ValueError(
                f"covariance: smoothness must be above 0 and at most {_SMOOTHEST:g}, or infinity for the Gaussian "
                f"covariance, got {self.smoothness}"
            )
        if not math.isfinite(self.angle):
            raise ValueError(f"covariance: angle must be finite [rad], got {self.angle}")

    def __call__(
        self, a: Float[np.ndarray, "one 2"], b: Float[np.ndarray, "other 2"]
    ) -> Float[np.ndarray, "one other"]:
        """Between each point of `a` and each of `b` [m]."""
        return self.variance * matern(distances(self._stretched(a), self._stretched(b)) / self.length, self.smoothness)

    def _stretched(self, points: np.ndarray) -> np.ndarray:
        """Points in coordinates in which the covariance is isotropic."""
        if self.anisotropy == 1.0:
            return points
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.asarray(points @ np.array([[c, -s / self.anisotropy], [s, c / self.anisotropy]]))


@dataclass(frozen=True, slots=True)
class Superposed:
    """Covariance of a sum of independent fields, such as one of kilometres and one of tens of metres.

    Args:
        parts: their covariances.
    """

    parts: tuple[Matern, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("covariance: a superposition needs one part or more")

    @property
    def variance(self) -> float:
        """At distance zero."""
        return sum(part.variance for part in self.parts)

    def __call__(
        self, a: Float[np.ndarray, "one 2"], b: Float[np.ndarray, "other 2"]
    ) -> Float[np.ndarray, "one other"]:
        """Between each point of `a` and each of `b` [m]."""
        return np.asarray(sum(part(a, b) for part in self.parts))


def distances(a: Float[np.ndarray, "one 2"], b: Float[np.ndarray, "other 2"]) -> Float[np.ndarray, "one other"]:
    """Between each point of `a` and each of `b`."""
    return np.asarray(np.hypot(a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1]))
