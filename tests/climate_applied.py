"""A network for tests of masks over years, loaded by workers; and a program that makes such masks until stopped."""

import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from climate_made import made
from exafield.climate.convolution import Convolution
from exafield.climate.fields import FOUR
from exafield.climate.normalisation import Statistics
from exafield.climate.segmenter import Segmenter

#: How far `Stack` sees [pixels].
REACH = 3


class Stack(nn.Module):
    """Three 3x3 convolutions of whole numbers: what is computed of whole numbers has no rounding errors."""

    def __init__(self, channels: int, periodic: bool) -> None:
        super().__init__()
        self.periodic = periodic
        sizes = (channels, 5, 4, 3)
        self.layers = nn.ModuleList(Convolution(a, b, 3, periodic=periodic) for a, b in pairwise(sizes))
        random = np.random.default_rng(0)
        for weight in self.parameters():
            weight.data = torch.from_numpy(random.integers(-2, 3, tuple(weight.shape)).astype(np.float32))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x)) if layer is not self.layers[-1] else layer(x)
        return x


@dataclass(frozen=True)
class Small:
    """Loads a network that tells fields of `climate_made` apart.

    Args:
        pause: of each mask [s].
        broken: whether a weight is no number.
    """

    channels: tuple[str, ...] = FOUR
    periodic: bool = True
    pause: float = 0.0
    broken: bool = False

    def __call__(self) -> Segmenter:
        network = nn.Sequential(Pause(self.pause), nn.Dropout(0.9), Stack(len(self.channels), self.periodic))
        network.periodic = self.periodic
        segmenter = Segmenter(network, self.channels)
        segmenter.set_statistics(Statistics.of(self.channels, made(self.channels).values))
        if self.broken:
            network[2].layers[0].weight.data[0] = float("nan")
        return segmenter


class Pause(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return x


if __name__ == "__main__":
    from exafield.climate.apply import apply
    from exafield.engine import engine

    files, out, name = sys.argv[1:]
    apply(
        files,
        Path(out),
        Small(pause=1.0),
        engine=engine(name, **({"workers": 1} if name == "threads" else {})),
        made_with={"network": "small"},
        say=lambda text: print(text, flush=True),
    )
