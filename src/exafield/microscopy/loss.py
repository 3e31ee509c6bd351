"""Losses on potentials."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class MSE:
    """Mean square error of each window relative to its variance, so that light crystals count as much as heavy ones."""

    def __call__(
        self, prediction: Float[Tensor, "batch x y"], truth: Float[Tensor, "batch x y"], step: int = 0
    ) -> Float[Tensor, ""]:
        return ((prediction - truth) / _spread(truth)).square().mean()


@dataclass(frozen=True, slots=True)
class Huber:
    """Huber loss in units of each window's standard deviation, its threshold decaying exponentially.

    Laanait et al. (arXiv:1909.11150) let it fall from 5 or 10 to 1, by 0.75 each 3 to 10 epochs.

    Args:
        start, end: threshold at step 0 and at the end of its decay.
        factor: by which it falls each `every` steps.
    """

    start: float = 5.0
    end: float = 1.0
    factor: float = 0.75
    every: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.end <= self.start:
            raise ValueError(f"0 < end <= start is needed, got start={self.start} and end={self.end}")
        if not 0 < self.factor <= 1 or self.every < 1:
            raise ValueError(f"factor must lie in 0..1 and every be at least 1, got {self.factor} and {self.every}")

    def threshold(self, step: int) -> float:
        """At a training step."""
        return max(self.end, self.start * self.factor ** (step // self.every))

    def __call__(
        self, prediction: Float[Tensor, "batch x y"], truth: Float[Tensor, "batch x y"], step: int = 0
    ) -> Float[Tensor, ""]:
        error = (prediction - truth) / _spread(truth)
        return torch.nn.functional.huber_loss(error, torch.zeros_like(error), delta=self.threshold(step))


def surprise(
    prediction: Float[Tensor, "batch x y"], log_deviation: Float[Tensor, "batch x y"], truth: Float[Tensor, "batch x y"]
) -> Float[Tensor, ""]:
    """Negative logarithm of the truth's likelihood, if errors were normal with the deviation that is expected, less a
    constant; it teaches the deviation only (Nix and Weigend, ICNN 1994; that the mean is not to learn from it: Seitzer
    et al., arXiv:2203.09168)."""
    error = (prediction.detach() - truth) * torch.exp(-log_deviation)
    return (0.5 * error.square() + log_deviation).mean()


def _spread(truth: Tensor) -> Tensor:
    # A window of vacuum has no spread; the floor keeps its loss finite (our choice).
    return truth.flatten(1).std(1)[:, None, None].clamp(min=1e-3)
