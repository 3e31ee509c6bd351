"""Layer tables of the published networks: bytes, operations and order of all gradients, from our own models.

    python tools/layers.py [--check]

Writes src/exafield/scaling/layers/*.json. Models are made on the meta device, which has shapes and no numbers, so this
takes seconds. `--check` writes nothing and fails if a table is not what the models say.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from exafield.climate.deeplab import DeepLabV3Plus
from exafield.climate.tiramisu import Tiramisu
from exafield.microscopy.model import published
from exafield.scaling.step import Step

FOLDER = Path(__file__).parents[1] / "src" / "exafield" / "scaling" / "layers"


class Game(nn.Module):
    """A generator of two fields and a critic of their readings, as arXiv:1811.02033 has them, for one sample.

    Nothing is published of the sizes of the networks that ran on Summit. 8 x 2,048, 16,384 points a sample, 512 of them
    sensors, and 256 dimensions of noise are our choice, large enough to keep a GPU busy.
    """

    WIDTH, DEPTH, POINTS, SENSORS, NOISE = 2048, 8, 16_384, 512, 256

    def __init__(self) -> None:
        super().__init__()

        def perceptron(inputs: int) -> nn.Module:
            sizes = [inputs, *[self.WIDTH] * self.DEPTH]
            layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.Tanh())]
            return nn.Sequential(*layers, nn.Linear(self.WIDTH, 1))

        self.conductivity, self.head = perceptron(2 + self.NOISE), perceptron(2 + self.NOISE)
        self.critic = perceptron(2 * self.SENSORS)

    def forward(self, points: Tensor) -> Tensor:
        """Scores of fields at points (sample, point, 2 + noise), of which the first are sensors."""
        fields = torch.cat([self.conductivity(points), self.head(points)], 2)
        scores: Tensor = self.critic(fields[:, : self.SENSORS].flatten(1)) + fields.mean()
        return scores


def _image(channels: int, height: int, width: int) -> Tensor:
    return torch.empty(1, channels, height, width, device="meta")


# Table: how its model is made, a sample of the published size, and what is read for it [bytes]: fp32 fields, fp16
# patterns (as their authors store them), and one fp32 reading a sensor of the game.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], float]] = {
    "tiramisu": (lambda: Tiramisu(16), lambda: _image(16, 768, 1152), 4.0 * 16 * 768 * 1152),
    "tiramisu4": (lambda: Tiramisu(4), lambda: _image(4, 768, 1152), 4.0 * 4 * 768 * 1152),
    "deeplab": (lambda: DeepLabV3Plus(16, norm=None), lambda: _image(16, 768, 1152), 4.0 * 16 * 768 * 1152),
    "fcdensenet": (lambda: published(growth=256, kernel=5), lambda: _image(1024, 512, 512), 2.0 * 1025 * 512 * 512),
    "fcdensenet128": (published, lambda: _image(1024, 512, 512), 2.0 * 1025 * 512 * 512),
    "pigan": (Game, lambda: torch.empty(1, Game.POINTS, 2 + Game.NOISE, device="meta"), 8.0 * Game.SENSORS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    check = parser.parse_args().check
    different = []
    for name, (make, sample, read) in NETWORKS.items():
        with torch.device("meta"):
            step = Step.of(make(), sample(), name=name, read=read)
        path = FOLDER / f"{name}.json"
        with tempfile.TemporaryDirectory() as folder:
            fresh = Path(folder, path.name)
            step.save(fresh)
            if check and (not path.exists() or path.read_text() != fresh.read_text()):
                different.append(str(path))
            elif not check:
                path.write_text(fresh.read_text())
        print(f"{name:12} {len(step.layers):4} gradients {sum(t.nbytes for t in step.tensors) / 1e6:8.1f} MB")
    if different:
        sys.exit(f"not what the models say: {', '.join(different)}; run python tools/layers.py")


if __name__ == "__main__":
    main()
