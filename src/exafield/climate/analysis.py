"""What a network is worth, beside what can be had without one: nothing at all, rules of thumb, and single pixels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exafield.climate.fields import BACKGROUND, CLASSES, CYCLONE, RIVER
from exafield.climate.heuristics import label
from exafield.climate.metrics import Scores, Tally
from exafield.climate.normalisation import Statistics
from exafield.climate.pixels import PixelClassifier, fit, sample_pixels
from exafield.climate.snapshot import Snapshot
from exafield.world import World

Masks = Mapping[str, NDArray[np.uint8]]
#: What the heuristics look at.
RULE_CHANNELS = ("TMQ", "U850", "V850", "PSL", "T200", "T500", "PRECT")
# Background pixels of each training snapshot that the classifier of single pixels learns from; our choice.
_PIXELS = 2000


@dataclass(frozen=True, slots=True)
class Report:
    """How good masks are on snapshots of years that were not seen in training.

    Args:
        scores: of the network and of what it is compared with, by name; the network's comes first.
        note: what is missing from the comparison, and why.
    """

    scores: Mapping[str, Scores]
    note: str = ""

    @property
    def network(self) -> Scores:
        """Of the network."""
        return next(iter(self.scores.values()))

    def lines(self) -> list[str]:
        """Two tables to print: all methods by class, and the network in full."""
        head = "".join(f"{name:>20s}" for name in CLASSES)
        rows = [f"{'intersection over union':28s}  {'mean':>6s}{head}"]
        for name, own in self.scores.items():
            rows.append(f"{name:28s}  {own.mean_iou:6.3f}" + "".join(f"{value:20.3f}" for value in own.iou))
        return [*rows, *filter(None, [self.note]), "", *self.network.lines()]

    def values(self) -> dict[str, Any]:
        """All numbers."""
        return {name: own.values() for name, own in self.scores.items()}

    def gate(self) -> list[tuple[bool, str]]:
        """What a good run reaches, and whether this one did."""
        mean, storm = self.network.mean_iou, float(self.network.iou[CYCLONE])
        others = {name: own.mean_iou for name, own in list(self.scores.items())[1:]}
        best = max(others, key=lambda name: others[name])
        return [
            (mean >= 0.75, f"mean IoU is {mean:.3f} (at least 0.75)"),
            (storm >= 0.5, f"IoU of tropical cyclones is {storm:.3f} (at least 0.5)"),
            (mean > others[best], f"mean IoU of the best without a network, {best}, is {others[best]:.3f}"),
        ]


def pixel_classifier(snapshots: Sequence[Snapshot], statistics: Statistics, seed: int = 0) -> PixelClassifier:
    """Learns from the pixels of labelled snapshots, as many as are given."""
    fields = [statistics.standardised(one.values) for one in snapshots]
    labels = [one.labels for one in snapshots if one.labels is not None]
    return fit(*sample_pixels(fields, labels, min(_PIXELS, fields[0][0].size // 2), seed), seed)


@torch.no_grad()
def predicted(network: nn.Module, snapshot: Snapshot, statistics: Statistics) -> NDArray[np.uint8]:
    """The mask a network gives to a snapshot, [latitude, longitude]. It is put into evaluation mode."""
    device = next(network.parameters()).device
    fields = torch.from_numpy(statistics.standardised(snapshot.values))[None].to(device)
    guess: NDArray[np.uint8] = network.eval()(fields).argmax(1)[0].to(torch.uint8).cpu().numpy()
    return guess


def rules(snapshot: Snapshot) -> Masks:
    """Masks by the published heuristics and their corrected variant.

    Raises:
        ValueError: one of `RULE_CHANNELS` is missing.
    """
    values = dict(zip(snapshot.channels, snapshot.values, strict=True))
    return {variant: label(values, snapshot.grid, variant) for variant in ("published", "corrected")}


def compare(snapshots: Iterable[tuple[Snapshot, Masks]], world: World, names: Sequence[str]) -> dict[str, Scores]:
    """Scores of masks of this rank's snapshots, over all ranks. Collective.

    Args:
        snapshots: each with masks by name.
        names: of the masks, the same on all ranks, also on one without snapshots.
    """
    tallies = {name: Tally() for name in names}
    for snapshot, masks in snapshots:
        assert snapshot.labels is not None
        truth = torch.from_numpy(snapshot.labels)[None]
        for name, tally in tallies.items():
            tally.add(torch.from_numpy(masks[name])[None], truth)
    return {name: tally.scores(world) for name, tally in tallies.items()}


def nothing(snapshot: Snapshot) -> NDArray[np.uint8]:
    """The mask that calls everything background."""
    return np.full(snapshot.grid.shape, BACKGROUND, dtype=np.uint8)


def storms_in(labels: NDArray[np.uint8]) -> bool:
    """Whether both kinds of event are there: such snapshots make good pictures."""
    return bool((labels == CYCLONE).any() and (labels == RIVER).any())
