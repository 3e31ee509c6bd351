"""Losses of pixel classes of which one is nearly everywhere. All are computed in fp32, whatever the logits are in."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Integer
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

#: Shares of background, cyclones and rivers in the set of Kurth et al. (arXiv:1810.01993): squares of the roots in
#: their code, 0.991, 0.0266 and 0.13.
FREQUENCIES = (0.991**2, 0.0266**2, 0.13**2)
#: The same in the set of the DeepCAM benchmark, from its code.
DEEPCAM_FREQUENCIES = (0.986267818, 0.000457871, 0.013274311)

#: Over pixels: "mean" divides by their number, "weighted" by the sum of their weights, "sum" by nothing.
Reduction = Literal["mean", "weighted", "sum"]

Logits = Float[Tensor, "batch class lat lon"]
Labels = Integer[Tensor, "batch lat lon"]


def class_frequencies(labels: Iterable[NDArray[np.integer] | Tensor], classes: int = 3) -> tuple[float, ...]:
    """Shares of the classes over all pixels of some label fields.

    Args:
        labels: fields of any shape, one after the other: all of them need not fit into memory.
        classes: how many there are.
    Raises:
        ValueError: a label lies outside 0..classes-1, there are no labels, or a class never occurs: its weight would
            be infinite.
    """
    counts = np.zeros(classes, dtype=np.int64)
    for number, field in enumerate(labels):
        flat = np.asarray(field).reshape(-1)
        if flat.size and (flat.min() < 0 or flat.max() >= classes):
            raise ValueError(
                f"label field {number} holds values from {flat.min()} to {flat.max()}, but classes are 0..{classes - 1}"
            )
        counts += np.bincount(flat.astype(np.int64), minlength=classes)
    if not counts.all():
        missing = ", ".join(map(str, np.flatnonzero(counts == 0)))
        raise ValueError(f"no pixel of class {missing} in these labels: take more of them, or set the weights by hand")
    return tuple((counts / counts.sum()).tolist())


def inverse_power(frequencies: Sequence[float], power: float = 0.5, *, normalise: bool = True) -> tuple[float, ...]:
    """Weights that fall with the share of a class: frequency to the power of `-power`.

    Args:
        frequencies: of the classes.
        power: 0.5 in Kurth et al., where 1 was unstable in fp16; 0.125 in DeepCAM.
        normalise: whether they are scaled to sum 1.
    """
    if not frequencies or min(frequencies) <= 0:
        raise ValueError(f"frequencies of classes must be above 0, got {tuple(frequencies)}")
    weights = np.asarray(frequencies, dtype=np.float64) ** -power
    return tuple((weights / weights.sum() if normalise else weights).tolist())


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Cross-entropy, each pixel weighted by its class.

    The defaults are those of the published runs but for the reduction. There it was "sum" with a scale of 0.1, which
    depends on the number of pixels; "weighted" does not, and is our choice.

    Args:
        weights: of the classes.
        reduction: over pixels.
        scale: of the result.
    """

    weights: tuple[float, ...] = inverse_power(FREQUENCIES)
    reduction: Reduction = "weighted"
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check(self.weights, self.reduction)

    @classmethod
    def published(cls) -> "CrossEntropy":
        """As in the runs of Kurth et al."""
        return cls(reduction="sum", scale=0.1)

    @classmethod
    def deepcam(cls) -> "CrossEntropy":
        """As in the DeepCAM benchmark (weights only; its extra term for false positives is left out)."""
        return cls(inverse_power(DEEPCAM_FREQUENCIES, 0.125, normalise=False), "mean")

    def __call__(self, logits: Logits, labels: Labels) -> Float[Tensor, ""]:
        with _full_precision(logits):
            weight = _weights(logits, self.weights)
            reduction = "mean" if self.reduction == "weighted" else "sum"
            total = functional.cross_entropy(logits.float(), labels.long(), weight, reduction=reduction)
            return total * (self.scale / labels.numel() if self.reduction == "mean" else self.scale)


@dataclass(frozen=True, slots=True)
class Focal:
    """Focal loss (Lin et al., arXiv:1708.02002): pixels that are already right count little.

    Args:
        gamma: how little; 2 in Kurth et al., 0 is cross-entropy.
        weights: of the classes; None for none.
        reduction: over pixels.
        scale: of the result.
    """

    gamma: float = 2.0
    weights: tuple[float, ...] | None = None
    reduction: Reduction = "mean"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma must be 0 or above, got {self.gamma}")
        _check(self.weights or (1.0,), self.reduction)

    def __call__(self, logits: Logits, labels: Labels) -> Float[Tensor, ""]:
        with _full_precision(logits):
            cross = functional.cross_entropy(logits.float(), labels.long(), reduction="none")
            # 1 - p without cancellation; a pixel that is certainly right has a gradient of 0, not NaN.
            wrong = -torch.expm1(-cross)
            weights = torch.ones_like(cross) if self.weights is None else _weights(logits, self.weights)[labels.long()]
            total = (weights * wrong.clamp(min=1e-12).pow(self.gamma) * cross).sum()
            if self.reduction != "sum":
                total = total / (weights.sum() if self.reduction == "weighted" else labels.numel())
            return self.scale * total


@dataclass(frozen=True, slots=True)
class Jaccard:
    """One minus a soft intersection over union, of each class over the whole batch, averaged over classes.

    As the loss of ClimateNet. A class that the batch lacks counts where it is predicted: its loss then tends to one,
    and to none as the prediction vanishes.

    Args:
        weights: of the classes; None for equal ones.
        smooth: pixels that are added above and below the line (our choice).
    """

    weights: tuple[float, ...] | None = None
    smooth: float = 1.0

    def __post_init__(self) -> None:
        if self.smooth <= 0:
            raise ValueError(f"smooth must be above 0 pixels, got {self.smooth}")
        _check(self.weights or (1.0,), "mean")

    def __call__(self, logits: Logits, labels: Labels) -> Float[Tensor, ""]:
        with _full_precision(logits):
            guess = logits.float().softmax(1)
            truth = functional.one_hot(labels.long(), logits.shape[1]).movedim(-1, 1).to(guess.dtype)
            both = (guess * truth).sum((0, 2, 3))
            either = guess.sum((0, 2, 3)) + truth.sum((0, 2, 3)) - both
            loss = 1 - (both + self.smooth) / (either + self.smooth)
            if self.weights is None:
                return loss.mean()
            weights = _weights(logits, self.weights)
            return (loss * weights).sum() / weights.sum()


#: Any of the losses here.
Loss = CrossEntropy | Focal | Jaccard


def _full_precision(logits: Tensor) -> torch.autocast:
    return torch.autocast(logits.device.type, enabled=False)


def _weights(logits: Tensor, weights: tuple[float, ...]) -> Tensor:
    if len(weights) != logits.shape[1]:
        raise ValueError(f"{len(weights)} weights were given for {logits.shape[1]} classes: give one for each")
    # Made there, or copied the usual way, they would make the step wait for the device.
    return torch.tensor(weights).to(logits.device, non_blocking=True)


def _check(weights: Sequence[float], reduction: str) -> None:
    if min(weights) < 0 or max(weights) == 0:
        raise ValueError(f"weights of classes must be 0 or above and not all 0, got {tuple(weights)}")
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}")
