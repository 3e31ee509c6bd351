"""A generator of ln T with two populations, learned from training images, on any mesh.

A Gaussian field of learned, oriented spectrum is cut at a learned level; on either side lies a Gaussian texture of its
own. That holds the truncated Gaussian law of facies (Matheron, Beucher, de Fouquet, Galli, Guerillot and Ravenne,
SPE 16753, 1987) exactly. Of channels it holds proportion, orientation and two-point statistics.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import special
from torch import Tensor, nn

from exafield.subsurface.mesh import Mesh
from exafield.subsurface.random_fields import MeshSpectrum, SpectralField

# Width of the step between facies, in standard deviations of the shape (our choice): some 3 % of cells lie within twice
# of it.
STEP = 0.02
# The shape's shortest wave in cell widths, and the period of its waves in site widths: no copy of the site is near.
_FINEST, _PERIOD = 4.0, 1.5
# Correlation lengths to start from, in cell widths, and smoothness; they are learned (our choice).
_SHAPE, _TEXTURE, _SMOOTHNESS = 4.0, 3.0, 2.5
# Width of the network that corrects the shape's spectrum (our choice).
_WIDTH = 16
# Rounds in which two populations are told apart; far more than it takes.
_ROUNDS = 200


@dataclass(frozen=True, slots=True)
class Populations:
    """A mixture of two normal laws, the one of higher values being inside bodies.

    Args:
        inside, outside: mean and standard deviation of each.
        proportion: of the values that are inside.
    """

    inside: tuple[float, float]
    outside: tuple[float, float]
    proportion: float

    @classmethod
    def of(cls, values: Float[np.ndarray, "..."]) -> "Populations":
        """The likeliest mixture, by expectation and maximisation (Dempster, Laird and Rubin 1977).

        Raises:
            ValueError: values are not finite, or all the same.
        """
        flat = np.sort(np.ravel(values).astype(np.float64))
        if not len(flat) or not np.isfinite(flat).all() or flat[0] == flat[-1]:
            raise ValueError("facies: training images must be finite and vary, else there are no two populations")
        # Quantiles tell as much as all values of a large set.
        flat = np.quantile(flat, (np.arange(2000) + 0.5) / 2000)
        means, stds = np.quantile(flat, [0.15, 0.85]), np.full(2, flat.std() / 2)
        shares, least = np.full(2, 0.5), 1e-3 * flat.std()
        for _ in range(_ROUNDS):
            log = np.log(shares) - np.log(stds) - 0.5 * ((flat[:, None] - means) / stds) ** 2
            weights = special.softmax(log, axis=1)
            total = np.maximum(weights.sum(0), 1e-9)
            means = (weights * flat[:, None]).sum(0) / total
            stds = np.maximum(np.sqrt((weights * (flat[:, None] - means) ** 2).sum(0) / total), least)
            shares = total / total.sum()
        low, high = np.argsort(means)
        return cls((float(means[high]), float(stds[high])), (float(means[low]), float(stds[low])), float(shares[high]))


class OrientedField(nn.Module):
    """Stationary Gaussian fields of variance 1 whose spectrum is learned in the whole plane, so in all directions.

    Sums of waves on a lattice of wave numbers (Shinozuka and Deodatis, Appl. Mech. Rev. 49 (1996) 29): stationary up to
    the boundary, and the places of cells are all that matters of a mesh.

    Args:
        centres: of cells [m].
        cell: width of a cell [m].
    """

    wave: Tensor
    basis: Tensor

    def __init__(self, centres: Float[np.ndarray, "cell 2"], cell: float) -> None:
        super().__init__()
        unit = 2 * math.pi / (_PERIOD * float(np.ptp(centres, axis=0).max()))
        most = int(2 * math.pi / (_FINEST * cell) / unit)
        kx, ky = (k.ravel() for k in np.meshgrid(np.arange(-most, most + 1), np.arange(most + 1)))
        # One of each pair +k, -k, and not the constant.
        half = (kx**2 + ky**2 <= most**2) & ((ky > 0) | (kx > 0))
        wave = unit * np.stack([kx[half], ky[half]], axis=1)
        phase = (centres - centres.mean(0)) @ wave.T
        self.register_buffer("wave", torch.from_numpy(wave), persistent=False)
        self.register_buffer(
            "basis", torch.from_numpy(np.concatenate([np.cos(phase), np.sin(phase)], axis=1)), persistent=False
        )
        # Lengths along two axes that can turn, in cell widths: a wave k is weighed by |stretch k|.
        self.stretch = nn.Parameter(_SHAPE * torch.eye(2, dtype=torch.float64))
        self.log_smoothness = nn.Parameter(torch.tensor(math.log(_SMOOTHNESS), dtype=torch.float64))
        # What no ellipse says, such as a wavelength of meanders: even in k, and none at the start.
        last = nn.Linear(_WIDTH, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.correction = nn.Sequential(nn.Linear(3, _WIDTH), nn.SiLU(), last).double()
        self._cell = cell

    @property
    def noise(self) -> int:
        """Dimensions of the noise: a cosine and a sine for each wave."""
        return self.basis.shape[1]

    def matrix(self) -> Float[Tensor, "cell noise"]:
        """What noise is multiplied with."""
        nu = self.log_smoothness.exp()
        k = self.wave * self._cell
        wave = (k @ self.stretch).square().sum(1)
        size = k.square().sum(1)
        angle = torch.stack([k[:, 0] ** 2 - k[:, 1] ** 2, 2 * k[:, 0] * k[:, 1]], dim=1) / size[:, None]
        extra: Tensor = self.correction(torch.cat([size.log()[:, None], angle], dim=1))[:, 0]
        power = (-(nu + 1) * torch.log1p(wave / (2 * nu)) + extra).softmax(0)
        return self.basis * power.sqrt().repeat(2)


class FaciesGenerator(nn.Module):
    """Fields of ln T of two populations.

    Args:
        mesh: of the site.
        start: what the training images' values say of both; refined in training.
        spectrum: of the mesh, if it is known already.
    """

    def __init__(self, mesh: Mesh, start: Populations, spectrum: MeshSpectrum | None = None) -> None:
        super().__init__()
        cell = math.sqrt(float(np.median(mesh.areas)))
        spectrum = spectrum or MeshSpectrum.of(mesh)
        self.shape = OrientedField(mesh.centres, cell)
        self.level = nn.Parameter(
            torch.tensor(float(special.ndtri(1 - min(max(start.proportion, 0.02), 0.98))), dtype=torch.float64)
        )
        self.inside, self.outside = (
            SpectralField(spectrum, [_TEXTURE * cell], [std**2], (_SMOOTHNESS,), mean)
            for mean, std in (start.inside, start.outside)
        )

    @property
    def noise(self) -> int:
        """Dimensions of standard normal noise."""
        return self.shape.noise + self.inside.noise + self.outside.noise

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of shape and both textures, each (cell, its noise)."""
        return self.shape.matrix(), self.inside.matrix(), self.outside.matrix()

    def combine(self, parts: Float[Tensor, "batch three cell"], step: float = STEP) -> Float[Tensor, "batch cell"]:
        """ln T of a shape and both textures about their means.

        Args:
            parts: shape, texture inside, texture outside.
            step: width of the step between facies, in standard deviations of the shape.
        """
        shape, inside, outside = parts.unbind(1)
        share = torch.sigmoid((shape - self.level) / step)
        return torch.lerp(self.outside.mean + outside, self.inside.mean + inside, share)

    def forward(self, noise: Float[Tensor, "batch noise"]) -> Float[Tensor, "batch cell"]:
        """Fields of standard normal noise."""
        pieces = noise.split([self.shape.noise, self.inside.noise, self.outside.noise], dim=1)
        parts = [piece @ matrix.T for piece, matrix in zip(pieces, self.matrices(), strict=True)]
        return self.combine(torch.stack(parts, dim=1))
