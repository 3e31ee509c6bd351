"""How good masks are: intersection over union, precision and recall, from one table of counts over all ranks."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from numpy.typing import NDArray
from torch import Tensor

from exafield.climate.fields import CLASSES
from exafield.suggestion import counted
from exafield.world import World


def confusion(guess: Tensor, truth: Tensor, classes: int = 3) -> Integer[Tensor, "classes classes"]:
    """Pixels by true class (row) and guessed class (column), as whole numbers.

    Args:
        guess, truth: labels of the same shape.
        classes: how many there are.
    Raises:
        ValueError: shapes differ, or a label lies outside 0..classes-1.
    """
    if guess.shape != truth.shape:
        raise ValueError(f"guess and truth must have one shape, got {tuple(guess.shape)} and {tuple(truth.shape)}")
    for name, labels in (("guess", guess), ("truth", truth)):
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(
                f"{name} holds labels from {int(labels.min())} to {int(labels.max())}, but classes are 0..{classes - 1}"
            )
    pairs = truth.long().flatten() * classes + guess.long().flatten()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def intersection_over_union(table: NDArray[np.int64], empty: float = float("nan")) -> NDArray[np.float64]:
    """Of each class, from counts [..., true, guessed].

    Args:
        table: of counts.
        empty: value of a class that occurs in neither truth nor guess.
    """
    right = np.diagonal(table, axis1=-2, axis2=-1)
    union = table.sum(-1) + table.sum(-2) - right
    return _share(right, union, empty)


@dataclass(frozen=True, slots=True)
class Scores:
    """What masks are worth, over all pixels of all ranks. Arrays are by class; NaN where there is nothing to divide by.

    Args:
        table: pixels by true class (row) and guessed class (column).
        samples: how many.
        per_rank: mean over ranks of each rank's mean IoU, as in Kurth et al. It is no IoU of anything: a rank
            with few cyclones counts as much as one with many.
        per_sample: mean over samples of each sample's mean IoU, as in DeepCAM; a class that a sample lacks and
            that was not guessed counts as 1, which lifts the value.
    """

    table: NDArray[np.int64]
    samples: int
    per_rank: float
    per_sample: float

    @property
    def iou(self) -> NDArray[np.float64]:
        """Pooled intersection over union."""
        return intersection_over_union(self.table)

    @property
    def mean_iou(self) -> float:
        """Of the classes that occur in truth or guess."""
        return _mean(self.iou)

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of what was guessed that is true."""
        return _share(np.diagonal(self.table), self.table.sum(0))

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of what is true that was guessed."""
        return _share(np.diagonal(self.table), self.table.sum(1))

    def values(self, names: tuple[str, ...] = CLASSES) -> dict[str, Any]:
        """All numbers, with None for those that there are not."""
        by_class = {
            what: dict(zip(names, map(_number, values), strict=True))
            for what, values in (("iou", self.iou), ("precision", self.precision), ("recall", self.recall))
        }
        means = {key: _number(getattr(self, key)) for key in ("mean_iou", "per_rank", "per_sample")}
        return {**by_class, **means, "samples": self.samples, "table": self.table.tolist()}

    def lines(self, names: tuple[str, ...] = CLASSES) -> list[str]:
        """A table to print."""
        rows = zip(names, self.iou, self.precision, self.recall, self.table.sum(1), strict=True)
        return [
            f"{'':20s}    IoU  precision  recall       pixels",
            *(f"{name:20s}  {i:5.3f}  {p:9.3f}  {r:6.3f}  {n:11,d}" for name, i, p, r, n in rows),
            f"{'mean, pooled':20s}  {self.mean_iou:5.3f}     over {counted(self.samples, 'sample')}",
            f"{'mean over ranks':20s}  {self.per_rank:5.3f}     as in Kurth et al.",
            f"{'mean over samples':20s}  {self.per_sample:5.3f}     as in DeepCAM",
        ]


@dataclass
class Tally:
    """Counts pixels of one rank, batch by batch; ranks may have different numbers of samples, or none.

    Args:
        classes: how many there are.
    """

    classes: int = 3
    _table: Tensor = field(init=False)
    _samples: int = field(default=0, init=False)
    _sum: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._table = torch.zeros(self.classes, self.classes, dtype=torch.int64)

    def add(self, guess: Integer[Tensor, "batch lat lon"], truth: Integer[Tensor, "batch lat lon"]) -> None:
        """Takes note of a batch of labels."""
        for one, other in zip(guess, truth, strict=True):
            table = confusion(one, other, self.classes).cpu()
            self._table += table
            self._samples += 1
            self._sum += float(intersection_over_union(table.numpy(), empty=1.0).mean())

    def scores(self, world: World) -> Scores:
        """Over all ranks. Collective.

        Raises:
            ValueError: no rank has a sample.
        """
        table = self._table.clone()
        own = _mean(intersection_over_union(self._table.numpy())) if self._samples else 0.0
        # Mean IoU of this rank, whether it has any, sum over its samples, their number.
        sums = torch.tensor([own, float(self._samples > 0), self._sum, self._samples], dtype=torch.float64)
        world.all_reduce(table)
        world.all_reduce(sums)
        ranks_mean, ranks, samples_mean, samples = sums.tolist()
        if not samples:
            raise ValueError("there is no sample to score on any rank: check the validation part of the data")
        return Scores(table.numpy(), int(samples), ranks_mean / ranks, samples_mean / samples)


def _share(part: NDArray[np.int64], whole: NDArray[np.int64], empty: float = float("nan")) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.where(whole > 0, part / np.maximum(whole, 1), empty)
    return result


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
