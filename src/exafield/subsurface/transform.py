"""Readings brought to a common scale, heavy tails tamed."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

# Interquartile range of a normal law in units of its standard deviation.
_NORMAL_QUARTILES = 1.3489795
# Sensors that vary less than this share of the median of all are not blown up beyond it (our choice): such a one lies
# by a river and says next to nothing.
_LEAST = 0.01


class Robust(nn.Module):
    """(x - median) / spread of each sensor, in which spread is that of a normal law with the same quartiles.

    With `tails`, the inverse hyperbolic sine of that: linear about the median, logarithmic far from it. Heads need it:
    where a fixed inflow meets low transmissivity they rise tenfold, and a few snapshots would rule any loss.

    Args:
        values: training readings.
        tails: whether to tame them.
    """

    def __init__(self, values: Float[np.ndarray, "snapshot sensor"], *, tails: bool) -> None:
        super().__init__()
        if not len(values):
            raise ValueError("robust scaling: there are no readings")
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
        spread = (high - low) / _NORMAL_QUARTILES
        typical = float(np.median(spread)) if spread.size else 0.0
        spread = np.maximum(spread, _LEAST * typical) if typical > 0 else np.ones_like(spread)
        self.tails = tails
        # Training data tell them, so checkpoints need not.
        self.register_buffer("median", torch.tensor(median, dtype=torch.float32), persistent=False)
        self.register_buffer("spread", torch.tensor(spread, dtype=torch.float32), persistent=False)

    def forward(self, values: Float[Tensor, "batch sensor"]) -> Float[Tensor, "batch sensor"]:
        """Of order 1."""
        scaled = (values - self.get_buffer("median")) / self.get_buffer("spread")
        return scaled.asinh() if self.tails else scaled
