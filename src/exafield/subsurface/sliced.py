"""A loss between two laws known by samples: sliced-Wasserstein, without the bias of small batches."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor, nn

# Random directions of each batch, and nearest sensors that each is compared with; our choice.
_DIRECTIONS, _NEAREST = 128, 3
# Patterns with less than this share of the mean variance are not blown up beyond it: they are noise (our choice).
_LEAST = 0.01
# Readings for each column, of which uncorrelated coordinates can be made (our choice).
_MANY = 10


def unbiased_wasserstein(
    real: Float[Tensor, "batch column"], fake: Float[Tensor, "batch column"]
) -> Float[Tensor, "column"]:
    """An unbiased estimate of the squared Wasserstein distance between the mean order statistics of two laws.

    The distance of two batches is above zero even for one law, and least for a generator that varies too little: by
    2 to 3 % of the standard deviation at 64 samples. With halves a, a' of one batch and b, b' of the other, sorted,
    the mean of (a - b)(a' - b') has the gradient that infinitely many batches would give on average. It is the
    minibatch energy distance of Salimans, Zhang, Radford and Metaxas (arXiv:1803.05573) in one dimension, where sorting
    finds the distances. Estimates fall below zero by chance when the laws agree.

    Args:
        real, fake: samples, 4 or more; of an odd number the last is left out.
    """
    half = len(real) // 2
    if half < 2:
        raise ValueError(f"sliced-Wasserstein: batches must be of 4 samples or more per rank, got {len(real)}")
    a, a2 = real[:half].sort(dim=0).values, real[half : 2 * half].sort(dim=0).values
    b, b2 = fake[:half].sort(dim=0).values, fake[half : 2 * half].sort(dim=0).values
    return 0.5 * ((a - b) * (a2 - b2) + (a - b2) * (a2 - b)).mean(0)


class Sliced(nn.Module):
    """Compares sensors one by one, differences of neighbours, and random projections of all, plain and whitened.

    Each sensor has the law at one place; differences of neighbours have how rough fields are. Projections have all else
    (Bonneel, Rabin, Peyre and Pfister, J. Math. Imaging Vis. 51 (2015) 22), but see of correlated readings little more
    than what they have in common. In coordinates in which the training readings are uncorrelated all their patterns
    count alike, as in the likelihood of a normal law, and fields get as smooth as they are. The four count alike; our
    choice. Projections are drawn afresh at each call, from torch's generator.

    Args:
        readings: training readings, scaled to order 1.
        pairs: columns to subtract, the neighbours.
        alike: readings of a law much like the one to learn, of which uncorrelated coordinates are made; None: of the
            training readings, if there are many. In coordinates made of few readings these vary less than new ones of
            their own law, and fields would be learnt too smooth.
    """

    def __init__(
        self,
        readings: Float[Tensor, "snapshot column"],
        pairs: Int[np.ndarray, "pair 2"],
        alike: Float[Tensor, "row column"] | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("pairs", torch.tensor(pairs.T, dtype=torch.int64), persistent=False)
        first, second = self.get_buffer("pairs")
        apart = readings[:, first] - readings[:, second]
        spread = apart.std(0) if len(first) else apart.new_ones(0)
        # Where neighbours never differ there is nothing to compare, and nothing to divide by.
        self.register_buffer("spread", torch.where(spread > 0, spread, 1.0), persistent=False)
        self.register_buffer("whiten", _whitening(readings if alike is None else alike), persistent=False)

    def forward(self, real: Float[Tensor, "batch column"], fake: Float[Tensor, "batch column"]) -> Float[Tensor, ""]:
        """Zero on average where the laws agree."""
        total = real.new_zeros(())
        for view in (*self._fixed(), *self._drawn(real)):
            total = total + unbiased_wasserstein(view(real), view(fake)).mean()
        return total

    def _fixed(self) -> list[Callable[[Tensor], Tensor]]:
        (first, second), spread = self.get_buffer("pairs"), self.get_buffer("spread")
        views: list[Callable[[Tensor], Tensor]] = [lambda values: values]
        if len(first):
            views.append(lambda values: (values[:, first] - values[:, second]) / spread)
        return views

    def _drawn(self, like: Tensor) -> list[Callable[[Tensor], Tensor]]:
        whiten = self.get_buffer("whiten")
        directions = [_directions(like, like.shape[1])]
        if len(whiten):
            directions.append(whiten @ _directions(like, whiten.shape[1]))
        return [lambda values, d=d: values @ d for d in directions]  # type: ignore[misc]  # d is bound here


def _directions(like: Tensor, count: int) -> Tensor:
    drawn = torch.randn(count, _DIRECTIONS, device=like.device, dtype=like.dtype)
    return torch.nn.functional.normalize(drawn, dim=0)


def _whitening(readings: Tensor) -> Tensor:
    """(column, column) that makes the readings uncorrelated; none where there are too few to tell how."""
    if len(readings) < _MANY * readings.shape[1]:
        return readings.new_zeros(0, 0)
    values, vectors = torch.linalg.eigh(torch.atleast_2d(readings.double().T.cov()))
    scale = values.clamp(min=_LEAST * float(values.mean())).rsqrt()
    return torch.mul(vectors, scale).to(readings)


def nearest_pairs(points: Float[np.ndarray, "sensor 2"], nearest: int = _NEAREST) -> Int[np.ndarray, "pair 2"]:
    """Each sensor with its nearest ones, every pair once; none if there is one sensor or none."""
    count = min(nearest, len(points) - 1)
    if count < 1:
        return np.zeros((0, 2), dtype=np.int64)
    _, found = cKDTree(points).query(points, k=count + 1)
    # Of sensors at one place each may name the other first, and not itself.
    pairs = np.stack([np.repeat(np.arange(len(points)), count + 1), found.ravel()], axis=1)
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    return np.unique(pairs, axis=0).astype(np.int64)
