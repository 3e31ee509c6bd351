"""What single pixels tell: a classifier that sees the channels of one pixel and nothing round it."""

import csv
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from exafield.climate.fields import CHANNELS, CLASSES
from exafield.climate.loss import class_frequencies, inverse_power
from exafield.climate.metrics import confusion, intersection_over_union

# Layers of the classifier and its training, our choice: enough for what sixteen numbers tell.
_HIDDEN, _EPOCHS, _BATCH, _RATE = 32, 12, 4096, 3e-3


class PixelClassifier(nn.Sequential):
    """Logits [batch, class, latitude, longitude] of fields, pixel by pixel: 1x1 convolutions.

    Args:
        channels: of the fields.
        classes: of pixels.
    """

    def __init__(self, channels: int, classes: int = len(CLASSES)) -> None:
        super().__init__(
            nn.Conv2d(channels, _HIDDEN, 1), nn.ReLU(), nn.Conv2d(_HIDDEN, _HIDDEN, 1), nn.ReLU(),
            nn.Conv2d(_HIDDEN, classes, 1),
        )  # fmt: skip


def fit(values: Tensor, labels: Tensor, seed: int = 0) -> PixelClassifier:
    """Trains a classifier on pixels, with the weights of the published loss for the classes as they are here.

    Args:
        values: [pixel, channel], standardised.
        labels: [pixel].
        seed: of weights and order.
    Raises:
        ValueError: a class is missing.
    """
    weights = torch.tensor(inverse_power(class_frequencies([labels])), dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PixelClassifier(values.shape[1])
        optimiser = torch.optim.Adam(model.parameters(), _RATE)
        for _ in range(_EPOCHS):
            for chosen in torch.randperm(len(values)).split(_BATCH):
                logits = model(values[chosen, :, None, None])[:, :, 0, 0]
                loss = functional.cross_entropy(logits, labels[chosen].long(), weights)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
    return model.eval()


# ---- real points ----


@dataclass(frozen=True, eq=False)
class Points:
    """Labelled points of real CAM5 output, as `climatenet_cam5_points_train` has them.

    Args:
        values: [point, channel], in the units and the order of :data:`exafield.climate.fields.CHANNELS`.
        labels: [point].
        dates: [point] as YYYYMMDD.
        places: [point, 2] latitude and longitude [degrees].
    """

    values: NDArray[np.float32]
    labels: NDArray[np.uint8]
    dates: NDArray[np.int64]
    places: NDArray[np.float64]

    @classmethod
    def read(cls, path: str | Path) -> "Points":
        """From the zipped table.

        Raises:
            ValueError: a column is missing.
        """
        with zipfile.ZipFile(path) as archive:
            rows = list(csv.DictReader(io.TextIOWrapper(archive.open(archive.namelist()[0]))))
        missing = [name for name in (*CHANNELS, "lat", "lon", "time", "Label") if not rows or name not in rows[0]]
        if missing:
            raise ValueError(f"{path} has no column {', '.join(missing)}")
        values = np.array([[float(row[name]) for name in CHANNELS] for row in rows], dtype=np.float32)
        labels = np.array([int(row["Label"]) for row in rows], dtype=np.uint8)
        dates = np.array([int(row["time"]) for row in rows])
        places = np.array([[float(row["lat"]), float(row["lon"])] for row in rows])
        return cls(values, labels, dates, places)

    def contradictions(self) -> tuple[int, int]:
        """How many distinct points there are, and how many of them carry more than one label.

        Several people labelled the same maps, and did not always agree.
        """
        seen: dict[tuple[float, float, int], set[int]] = {}
        for (north, east), date, label in zip(self.places.tolist(), self.dates.tolist(), self.labels, strict=True):
            seen.setdefault((north, east, date), set()).add(int(label))
        return len(seen), sum(len(labels) > 1 for labels in seen.values())


@dataclass(frozen=True, eq=False)
class PointReport:
    """What a classifier of single points is worth on later dates.

    Args:
        iou, majority_iou: by class; the second of calling everything background.
        trained, tested: numbers of points.
        until: last date of the training part.
        points, contradictory: distinct points, and those with more than one label.
    """

    iou: NDArray[np.float64]
    majority_iou: NDArray[np.float64]
    trained: int
    tested: int
    until: int
    points: int
    contradictory: int

    def lines(self) -> list[str]:
        """A table to print."""
        share = self.contradictory / self.points
        rows = zip(CLASSES, self.iou, self.majority_iou, strict=True)
        return [
            f"real CAM5 points: {self.trained} until {self.until} to learn from, {self.tested} later ones to judge by",
            f"{self.contradictory} of {self.points} distinct points ({share:.0%}) carry contradictory labels",
            f"{'IoU':20s}  classifier  all background",
            *(f"{name:20s}  {a:10.3f}  {b:14.3f}" for name, a, b in rows),
            f"{'mean':20s}  {np.nanmean(self.iou):10.3f}  {np.nanmean(self.majority_iou):14.3f}",
        ]  # fmt: skip


def judge_points(points: Points, share: float = 0.75, seed: int = 0) -> PointReport:
    """Learns from earlier dates, and is judged by later ones.

    Args:
        share: of the dates that are learnt from.
        seed: of the classifier.
    """
    dates = np.unique(points.dates)
    until = int(dates[max(0, int(share * dates.size) - 1)])
    early = points.dates <= until
    centre, spread = points.values[early].mean(0), points.values[early].std(0)
    values = torch.from_numpy((points.values - centre) / spread)
    labels = torch.from_numpy(points.labels)
    chosen = torch.from_numpy(early)
    model = fit(values[chosen], labels[chosen], seed)
    with torch.no_grad():
        guess = model(values[~chosen][:, :, None, None])[:, :, 0, 0].argmax(1)
    truth = labels[~chosen].long()
    table = confusion(guess, truth).numpy()
    nothing = confusion(torch.zeros_like(truth), truth).numpy()
    distinct, contradictory = points.contradictions()
    return PointReport(
        intersection_over_union(table), intersection_over_union(nothing), int(early.sum()), int((~early).sum()), until,
        distinct, contradictory,
    )  # fmt: skip


def sample_pixels(
    fields: Sequence[NDArray[np.float32]], labels: Sequence[NDArray[np.uint8]], each: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Pixels to learn from, [pixel, channel] and [pixel]: of each snapshot those of all storms, and some others.

    Args:
        fields: [channel, latitude, longitude] of each snapshot, standardised.
        labels: of each.
        each: background pixels of a snapshot.
        seed: of the choice.
    """
    random = np.random.default_rng(seed)
    values, classes = [], []
    for field, label in zip(fields, labels, strict=True):
        flat, own = field.reshape(len(field), -1), label.reshape(-1)
        chosen = np.concatenate([np.flatnonzero(own), random.choice(np.flatnonzero(own == 0), each)])
        values.append(flat[:, chosen].T)
        classes.append(own[chosen])
    return torch.from_numpy(np.concatenate(values)), torch.from_numpy(np.concatenate(classes))
