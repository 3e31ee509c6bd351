"""A network with all it needs to know of its input: which channels, and how they are scaled. Checkpoints hold both."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from exafield.climate.decoding import Scaling
from exafield.climate.grid import Grid
from exafield.climate.normalisation import Statistics


class Segmenter(nn.Module):
    """Gives each pixel a class.

    Args:
        network: takes scaled fields [batch, channel, lat, lon] and returns logits [batch, class, lat, lon].
        channels: names of the fields, in order.
        scaling: of the fields, see :class:`exafield.climate.source.ClimateSource`.
    """

    shift: Tensor
    factor: Tensor
    periodic: Tensor
    spacing: Tensor

    def __init__(self, network: nn.Module, channels: Sequence[str], scaling: Scaling = "standard") -> None:
        super().__init__()
        self.network, self.channels, self.scaling = network, tuple(channels), scaling
        self.register_buffer("shift", torch.zeros(len(self.channels)))
        self.register_buffer("factor", torch.ones(len(self.channels)))
        # Whether the network takes longitudes to close; kept, since no setting of a run tells it.
        self.register_buffer("periodic", torch.tensor(bool(getattr(network, "periodic", False))))
        # Of the grid it is trained on, in latitude and longitude [degrees]; 0 where nobody has told it.
        self.register_buffer("spacing", torch.zeros(2))

    def set_statistics(self, statistics: Statistics) -> None:
        """Takes note of how fields are scaled.

        Args:
            statistics: of all its channels at least.
        Raises:
            ValueError: one is missing, or has no spread.
        """
        own = statistics.select(self.channels)
        ends = np.stack([np.zeros(len(self.channels)), np.ones(len(self.channels))]).astype(np.float32)
        scaled = own.to_unit_range if self.scaling == "range" else own.standardised
        scaled(ends[:1].T[:, :, None])  # refuses channels without spread
        low, width = (own.minimum, own.maximum - own.minimum) if self.scaling == "range" else (own.mean, own.deviation)
        with torch.no_grad():
            self.shift.copy_(torch.from_numpy(low))
            self.factor.copy_(torch.from_numpy(1.0 / width))

    def set_grid(self, grid: Grid) -> None:
        """Takes note of how fine the grid is that it is trained on."""
        with torch.no_grad():
            self.spacing.copy_(torch.tensor(spacing(grid)))

    def forward(self, fields: Float[Tensor, "batch channel lat lon"]) -> Float[Tensor, "batch class lat lon"]:
        """Logits from scaled fields, as a source gives them."""
        # As the network's weights are laid out in training.
        logits: Tensor = self.network(fields.contiguous(memory_format=torch.channels_last))
        return logits

    @torch.no_grad()
    def classify(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Classes [lat, lon] of fields in their units.

        Args:
            values: [channel, lat, lon], of `channels` in order.
        Raises:
            ValueError: there are not as many fields as channels.
        """
        if values.ndim != 3 or values.shape[0] != len(self.channels):
            raise ValueError(f"fields have shape {values.shape}, expected ({len(self.channels)}, lat, lon)")
        fields = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.shift.device)
        scaled = (fields - self.shift[:, None, None]) * self.factor[:, None, None]
        guess: NDArray[np.uint8] = self.network.forward(scaled[None]).argmax(1)[0].to(torch.uint8).cpu().numpy()
        return guess


def spacing(grid: Grid) -> tuple[float, float]:
    """What most neighbours are apart in latitude and in longitude [degrees]."""
    return float(np.median(np.diff(grid.latitude))), float(np.median(np.diff(grid.longitude)))
