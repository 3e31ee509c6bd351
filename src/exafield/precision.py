"""Precision: in which formats losses are computed, and how small gradients survive in half precision.

Weights, optimisers and reductions stay in fp32: autocast makes narrow copies of the weights where that is safe
(Micikevicius et al., arXiv:1710.03740).
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Those of torch.amp.GradScaler: where the scale starts, and after how many good steps it is doubled.
_INITIAL, _INTERVAL = 2.0**16, 2000
# Below this no scale will help; our choice: gradients overflow that would be representable unscaled.
_LEAST = 2.0**-14
# It stays finite, and so does its inverse; our choice: more than any gradient needs.
_MOST = 2.0**64


def check_precision(precision: str) -> None:
    """Refuses a precision there is not.

    Raises:
        ValueError: names those there are.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(map(repr, get_args(Precision)))}, got {precision!r}")


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Around the computation of a loss."""
    on = precision != "fp32"
    return torch.autocast(device.type, DTYPES[precision] if on else None, enabled=on)


class LossScale:
    """What losses are multiplied by before backward, so that gradients do not underflow in fp16.

    Halved when a gradient overflows (that step is skipped), doubled after a long time without. All of it happens on
    the device: nothing waits for it. Gradients are the same on all ranks after reduction, so the scale is too.

    Attributes:
        value: the scale: scalar, fp32.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), _INITIAL, device=device)
        self._good = torch.zeros((), device=device)

    def update(self, finite: Tensor) -> None:
        """Takes note of a step: whether all gradients were finite (scalar, bool)."""
        self._good = torch.where(finite, self._good + 1, 0.0)
        grown = self._good >= _INTERVAL
        self.value = torch.where(
            finite, torch.where(grown, (self.value * 2).clamp(max=_MOST), self.value), self.value / 2
        )
        self._good = torch.where(grown, 0.0, self._good)

    @property
    def exhausted(self) -> bool:
        """Whether gradients overflow whatever the scale; waits for the device."""
        return bool(self.value < _LEAST)

    def state_dict(self) -> dict[str, Tensor]:
        """The scale and how long it has been good."""
        return {"value": self.value, "good": self._good}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over a saved state."""
        self.value, self._good = (state[name].to(self.value.device) for name in ("value", "good"))
