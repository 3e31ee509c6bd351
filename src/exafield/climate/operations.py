"""Floating-point operations of the networks as their publication counted them."""

import copy
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_CONVOLUTION = torch.ops.aten.convolution.default

#: Operations of a training step per sample of 768 x 1152 pixels that Kurth et al. state (arXiv:1810.01993) [FLOP]. All
#: three follow from :func:`as_published`: the last with 48 features in the first convolution, the Tiramisu of 16
#: channels with the 64 that the last version of their training script has.
PUBLISHED = {
    "DeepLabv3+, 16 channels": 14.41e12,
    "Tiramisu, 16 channels": 4.188e12,
    "Tiramisu, 4 channels": 3.703e12,
}


class Counted(TorchDispatchMode):
    """Adds up operations of convolutions executed inside `with`, as the code of publication does.

    That code went through the graph of TensorFlow, where a convolution with distant taps is one without, on several
    smaller images: the input is padded by the reach of the filter, and further to a multiple of the distance. What
    padding adds is counted as work. So is the padding in front of a convolution with a stride.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forward: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _CONVOLUTION:
            x, weight, stride, rate, transposed = args[0], args[1], args[3], args[5], args[6]
            places = x.shape[0]
            for axis in (0, 1):
                places *= x.shape[2 + axis] if transposed else self._extent(args, axis, stride[axis], rate[axis])
            self.forward += 2 * weight.numel() * places
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _extent(args: tuple[Any, ...], axis: int, stride: int, rate: int) -> int:
        size, kernel = args[0].shape[2 + axis], args[1].shape[2 + axis]
        if rate > 1 and kernel > 1:
            return int(-(-(size + rate * (kernel - 1)) // rate) * rate)
        return int(size + kernel - 1) // stride if stride > 1 else int(size)

    @property
    def step(self) -> int:
        """Of forward and backward: three times forward."""
        return 3 * self.forward


def as_published(model: nn.Module, channels: int, rows: int = 768, columns: int = 1152) -> int:
    """Operations of a training step for one sample [FLOP], by the count of the publication; nothing is computed.

    Exact for networks that are not periodic, as none was then: what a periodic one pads by itself counts twice.
    """
    shadow = copy.deepcopy(model).to("meta")
    with torch.no_grad(), Counted() as counted:
        shadow(torch.empty(1, channels, rows, columns, device="meta"))
    step: int = counted.step
    return step
