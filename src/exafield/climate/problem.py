"""The segmentation of extreme weather: where are the cyclones and the atmospheric rivers in these fields?"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exafield.climate.analysis import Baselines, Report, pixel_baseline
from exafield.climate.augment import Augmentation
from exafield.climate.fields import CHANNELS
from exafield.climate.generate import PARTS, Generation, default_path, generate
from exafield.climate.loss import CrossEntropy, class_frequencies, inverse_power
from exafield.climate.metrics import Scores, Tally
from exafield.climate.normalisation import Statistics
from exafield.climate.plots import comparison
from exafield.climate.reading import Snapshots, open_snapshots
from exafield.climate.source import ClimateSource
from exafield.climate.tiramisu import Tiramisu
from exafield.optim import LARC, Constant, Optimiser, Schedule
from exafield.problem import Player
from exafield.world import World

Loss = CrossEntropy


@dataclass(frozen=True, slots=True)
class Files:
    """Snapshots in files, of any layout that :func:`exafield.climate.reading.open_snapshots` reads, with labels.

    Args:
        train, validation, test: files, folders or patterns of each part.
        label: which version of the labels, where there are several.
    """

    train: str
    validation: str
    test: str
    label: int = 0


class ClimateProblem:
    """Finds cyclones and rivers, pixel by pixel.

    Without files, snapshots of a synthetic atmosphere are generated when first needed and kept (see
    :func:`exafield.climate.generate.default_path`); the truth is then the masks of the generator.

    Args:
        data: what is generated, or files.
        path: of the generated snapshots; default: in the user's cache, by the parameters.
        channels: that the network sees.
        network: gives logits [batch, class, latitude, longitude]; default: a small Tiramisu.
        loss: on logits and labels; default: cross-entropy weighted by the frequencies of the training labels.
        optimiser, schedule: of the network.
        augmentation: of training samples; None: none.
        workers: processes that read; 0: the ranks themselves.
        seed: of augmentation.
    """

    name = "climate"

    def __init__(
        self,
        data: Generation | Files | None = None,
        *,
        path: str | Path | None = None,
        channels: Sequence[str] = tuple(CHANNELS),
        network: nn.Module | None = None,
        loss: nn.Module | Loss | None = None,
        optimiser: Optimiser | None = None,
        schedule: Schedule | None = None,
        augmentation: Augmentation | None = None,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        self.data = data or Generation()
        self.path = Path(path) if path is not None or isinstance(self.data, Files) else default_path(self.data)
        self.channels, self.network = tuple(channels), network
        self._loss, self._optimiser = loss, optimiser or LARC()
        self._schedule = schedule or Constant(warmup=20)
        self._augmentation, self._workers, self._seed = augmentation or Augmentation(), workers, seed
        self._examples: list[tuple[str, NDArray[np.float32], dict[str, NDArray[np.uint8]]]] = []
