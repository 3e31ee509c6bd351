"""Residual networks with activation before convolution (He et al., arXiv:1603.05027), dilated for dense prediction."""

import math

import torch
from torch import Tensor, nn

from exafield.climate.convolution import Convolution, Norm, norm_layer, pooled, rectified, scaled

#: Bottleneck units per block, by depth. 26 is a small one of our choice.
DEPTHS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Unit(nn.Module):
    """A bottleneck: 1x1, 3x3 and 1x1 convolutions beside a shortcut.

    Args:
        inputs, middle, outputs: channels.
        stride: of the 3x3 convolution.
        rate: of the same.
    """

    def __init__(
        self, inputs: int, middle: int, outputs: int, stride: int, rate: int, norm: Norm, periodic: bool
    ) -> None:
        super().__init__()
        bias = norm != "batch"
        self.stride = stride
        self.norm0 = norm_layer(norm, inputs)
        self.conv1 = Convolution(inputs, middle, bias=bias)
        self.norm1 = norm_layer(norm, middle)
        self.conv2 = Convolution(middle, middle, 3, stride=stride, rate=rate, periodic=periodic, bias=bias)
        self.norm2 = norm_layer(norm, middle)
        self.conv3 = Convolution(middle, outputs)
        self.shortcut = Convolution(inputs, outputs, stride=stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The unit's result, and what its first convolution makes."""
        y = rectified(self.norm0, x, keep=True)
        if self.shortcut is not None:
            x = self.shortcut(y)
        elif self.stride > 1:
            x = x[..., :: self.stride, :: self.stride]
        inner = rectified(self.norm1, self.conv1(y))
        result: Tensor = self.conv3(rectified(self.norm2, self.conv2(inner)))
        return result.add_(x), inner


class ResNet(nn.Module):
    """The encoder: from fields to features at 1 / `output_stride` of the size.

    Strides sit in the last unit of a block, as in the implementation the publication used. Once the output stride is
    reached, further ones become distances between the taps of all filters behind.

    Args:
        channels: of the input.
        depth: 26, 50 or 101.
        output_stride: 8 or 16.
        width: factor of all features.
        norm: before each ReLU.
        periodic: whether longitudes close.

    Attributes:
        low, high: channels of what it returns.
    """

    def __init__(self, channels: int, depth: int, output_stride: int, width: float, norm: Norm, periodic: bool) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth must be one of {', '.join(map(str, DEPTHS))}, got {depth}")
        if output_stride not in (8, 16):
            raise ValueError(f"output_stride must be 8 or 16, got {output_stride}")
        self.periodic = periodic
        features = scaled(64, width)
        self.entry = Convolution(channels, features, 7, stride=2, periodic=periodic)
        self.blocks = nn.ModuleList()
        reached, rate = 4, 1
        for number, units in enumerate(DEPTHS[depth]):
            middle = scaled(64 << number, width)
            block = nn.ModuleList()
            for i in range(units):
                stride = 2 if i == units - 1 and number < 3 else 1
                taken = stride if reached < output_stride else 1
                block.append(Unit(features, middle, 4 * middle, taken, rate, norm, periodic))
                rate *= stride // taken
                reached *= taken
                features = 4 * middle
            self.blocks.append(block)
        self.norm = norm_layer(norm, features)
        self.low, self.high = scaled(64, width), features

    @torch.no_grad()
    def temper(self) -> None:
        """Weakens all branches so that their sum keeps about unit variance: for networks without normalisation."""
        units = [part for part in self.modules() if isinstance(part, Unit)]
        for unit in units:
            unit.conv3.weight.mul_(1 / math.sqrt(len(units)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Low-level features at a quarter of the size (first convolution of the first block's last unit), and the
        deepest ones after ReLU."""
        x = pooled(self.entry(x), self.periodic)
        low = x
        for number, block in enumerate(self.blocks):
            for unit in block:  # type: ignore[attr-defined]
                x, inner = unit(x)
            if number == 0:
                low = inner
        return low, rectified(self.norm, x)
