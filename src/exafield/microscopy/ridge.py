"""Baselines: ridge regressions from what a scan shows around a position to the potential there.

Four of them, from what microscopists look at (bright and dark field, centre of mass) to every detector pixel. Their
regularisation is chosen on validation data.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

# Tried regularisations, in units of the mean squared feature.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def virtual_detectors(scan: Float[Tensor, "batch x y kx ky"], disc: float = 0.625) -> Float[Tensor, "batch f x y"]:
    """Bright field centre, middle and edge, dark field, and centre of mass along both axes.

    Args:
        disc: radius of the bright-field disc as a share of half the detector (25 of 40 mrad).
    """
    n = scan.shape[-1]
    axis = (torch.arange(n) + 0.5) / n * 2 - 1
    radius = torch.hypot(axis[:, None], axis[None]) / disc
    rings = [(radius >= low) & (radius < high) for low, high in ((0, 0.5), (0.5, 0.8), (0.8, 1.1), (1.1, 9.0))]
    intensity = scan.square()
    total = intensity.sum((-2, -1)).clamp(min=1e-6)
    parts = [(intensity * ring).sum((-2, -1)) for ring in rings]
    parts += [(intensity * axis[:, None]).sum((-2, -1)) / total, (intensity * axis).sum((-2, -1)) / total]
    return torch.stack(parts, 1)


def neighbourhood(features: Float[Tensor, "batch f x y"], size: int) -> Float[Tensor, "batch g x y"]:
    """Features of the size x size positions around each one, mirrored at the window's edge."""
    if size == 1:
        return features
    half = size // 2
    padded = functional.pad(features, (half,) * 4, mode="reflect")
    around: Tensor = functional.unfold(padded, size).unflatten(2, features.shape[2:])
    return around


@dataclass
class Ridge:
    """One linear map from features at a position to the refine x refine potential pixels there.

    Args:
        name: of the features.
        features: of a scan.
        weights: chosen by :func:`fit`.
    """

    name: str
    features: Callable[[Tensor], Tensor]
    weights: Tensor

    def __call__(self, scan: Float[Tensor, "batch x y kx ky"]) -> Float[Tensor, "batch fx fy"]:
        """The potential, less its mean over the window."""
        pixels = torch.einsum("bfxy,fo->boxy", _centred(self.features(scan)), self.weights)
        potential: Tensor = functional.pixel_shuffle(pixels, round(pixels.shape[1] ** 0.5)).squeeze(1)
        return potential - potential.mean((1, 2), keepdim=True)


def _centred(features: Tensor) -> Tensor:
    return features - features.mean((2, 3), keepdim=True)


def fit(train: Batches, validation: Batches, disc: float = 0.625) -> tuple[Ridge, dict[str, float]]:
    """Fits all four and returns the best, with the mean relative L2 of each on validation data.

    Every window weighs the inverse of its variance, as in the network's loss.

    Args:
        train, validation: give batches of (scan, potential), the same at each call.
        disc: see :func:`virtual_detectors`.
    """
    components = _principal(train)

    def reduced(scan: Tensor) -> Tensor:
        return torch.einsum("bxyd,dc->bcxy", scan.flatten(3), components)

    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "virtual detectors": lambda scan: virtual_detectors(scan, disc),
        "virtual detectors 9x9": lambda scan: neighbourhood(virtual_detectors(scan, disc), 9),
        "all pixels": lambda scan: scan.flatten(3).permute(0, 3, 1, 2),
        "32 components 5x5": lambda scan: neighbourhood(reduced(scan), 5),
    }
    best: tuple[float, Ridge] | None = None
    errors = {}
    for name, features in kinds.items():
        error, ridge = min(
            ((_error(r, validation), r) for r in _solutions(name, features, train)), key=lambda pair: pair[0]
        )
        errors[name] = error
        if best is None or error < best[0]:
            best = error, ridge
    assert best is not None
    return best[1], errors


def _principal(train: Batches, count: int = 32) -> Tensor:
    """The detector's leading principal components: (pixel, component)."""
    square: Tensor | float = 0.0
    for scan, _ in train():
        rows = (scan - scan.mean((1, 2), keepdim=True)).flatten(3).flatten(0, 2).double()
        square = square + rows.T @ rows
    assert isinstance(square, Tensor)
    vectors: Tensor = torch.linalg.eigh(square).eigenvectors
    return vectors[:, -count:].flip(1).float()


def _solutions(name: str, features: Callable[[Tensor], Tensor], train: Batches) -> Sequence[Ridge]:
    square: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    for scan, potential in train():
        weight = 1 / potential.flatten(1).std(1).clamp(min=1e-3)[:, None, None, None]
        x = (_centred(features(scan)) * weight).movedim(1, -1).flatten(0, 2)
        refine = potential.shape[-1] // scan.shape[1]
        y = (functional.pixel_unshuffle(potential[:, None], refine) * weight).movedim(1, -1).flatten(0, 2)
        square = square + (x.T @ x).double()
        cross = cross + (x.T @ y).double()
    assert isinstance(square, Tensor)
    assert isinstance(cross, Tensor)
    # Features of different kinds are brought to one scale, so that one strength fits all.
    scale = square.diagonal().sqrt().clamp(min=1e-12)
    square, cross = square / scale[:, None] / scale, cross / scale[:, None]
    identity = torch.eye(len(square), dtype=torch.float64)
    return [
        Ridge(name, features, (torch.linalg.solve(square + s * identity, cross) / scale[:, None]).float())
        for s in _STRENGTHS
    ]


def _error(ridge: Ridge, validation: Batches) -> float:
    errors = [
        ((ridge(scan) - potential).flatten(1).norm(dim=1) / potential.flatten(1).norm(dim=1)).numpy()
        for scan, potential in validation()
    ]
    return float(np.concatenate(errors).mean())
