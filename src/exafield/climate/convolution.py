"""Convolutions on grids of latitude and longitude, and what the networks are otherwise made of.

A convolution here may be periodic: what lies east of the last column is then the first one, so that a storm on the
date line is seen whole. Towards the poles it always pads with zeros.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

#: Between a convolution and its ReLU: batch normalisation; nothing; or half of the values, which in the published runs
#: without batch normalisation kept fp16 from overflowing.
Norm = Literal["batch", "half"] | None


class Convolution(nn.Conv2d):
    """A convolution that keeps the size of its input, but for its stride.

    Args:
        inputs, outputs: channels.
        kernel: an odd number.
        stride: both ways.
        rate: distance of the filter's taps [pixels].
        periodic: whether longitudes close.
        bias: whether there is one.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        rate: int = 1,
        periodic: bool = False,
        bias: bool = True,
    ) -> None:
        reach = rate * (kernel // 2)
        self.wrap = reach if periodic else 0
        padding = (reach, 0 if periodic else reach)
        super().__init__(inputs, outputs, kernel, stride=stride, padding=padding, dilation=rate, bias=bias)

    def forward(self, *parts: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        """Of channels that are given in one tensor or in several.

        Several are not concatenated, which would move all of them through memory: each meets its share of the
        filters, and the results are added. A part of a single pixel counts everywhere, if the kernel is 1.
        """
        if len(parts) == 1:
            return self.apply_filters(parts[0], self.weight, self.bias)
        filters = self.weight.split([part.shape[1] for part in parts], 1)
        total = self.apply_filters(parts[0], filters[0], self.bias)
        for part, share in zip(parts[1:], filters[1:], strict=True):
            total.add_(self.apply_filters(part, share, None))
        return total

    def apply_filters(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same convolution with other filters: some of this one's channels, or more."""
        x = wrapped(x, self.wrap, self.wrap)
        if self.dilation[0] >= x.shape[2] and self.kernel_size[0] == 3:
            # Rows above and below are all beyond the poles: only the row of taps in the middle meets anything.
            beside = 0 if self.wrap else self.dilation[1]
            return functional.conv2d(x, weight[:, :, 1:2], bias, self.stride, (0, beside), self.dilation)
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)


def wrapped(x: Tensor, west: int, east: int) -> Tensor:
    """Fields with columns of the other side added in the west and in the east."""
    width = x.shape[-1]
    if not west and not east:
        return x
    if max(west, east) > width:  # round the globe more than once
        columns = torch.arange(-west, width + east, device=x.device) % width
        return x[..., columns]
    if torch.compiler.is_compiling():  # which makes one kernel of it, and of its derivative
        return _joined(x, west, east)
    result: Tensor = _Wrapped.apply(x, west, east)
    return result


def _joined(x: Tensor, west: int, east: int) -> Tensor:
    parts = [x[..., x.shape[-1] - west :], x, x[..., :east]]
    return torch.cat([part for part in parts if part.shape[-1]], -1)


class _Wrapped(torch.autograd.Function):
    """:func:`_joined`, whose derivative moves the whole field once: that of slices makes a field of zeros for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, west: int, east: int) -> Tensor:
        ctx.edges = west, east
        return _joined(x, west, east)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        west, east = ctx.edges
        width = gradient.shape[-1] - west - east
        last = gradient.is_contiguous(memory_format=torch.channels_last)
        inner = gradient[..., west : west + width]
        inner = inner.clone(memory_format=torch.channels_last if last else torch.contiguous_format)
        inner[..., width - west :] += gradient[..., :west]
        inner[..., :east] += gradient[..., west + width :]
        return inner, None, None


def pooled(x: Tensor, periodic: bool) -> Tensor:
    """Maximum over 3x3 pixels at every second one."""
    reach = 1 if periodic else 0
    return functional.max_pool2d(wrapped(x, reach, reach), 3, 2, padding=(1, 1 - reach))


def enlarged(x: Tensor, factor: int, periodic: bool) -> Tensor:
    """Bilinear interpolation onto a grid that is finer by `factor`."""
    reach = 1 if periodic else 0
    y = functional.interpolate(wrapped(x, reach, reach), scale_factor=factor, mode="bilinear", align_corners=False)
    return y[..., reach * factor : y.shape[-1] - reach * factor]


class Half(nn.Module):
    """Half of the values."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any tensor."""
        return x * 0.5


def norm_layer(kind: Norm, channels: int) -> nn.Module:
    """A module of a kind.

    Raises:
        ValueError: there is no such kind.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "half":
        return Half()
    if kind is None:
        return nn.Identity()
    raise ValueError(f"norm must be 'batch', 'half' or None, got {kind!r}")


def rectified(norm: nn.Module, x: Tensor, *, keep: bool = False) -> Tensor:
    """Normalised, then ReLU in place.

    Args:
        keep: whether `x` is needed otherwise, so that it must not be overwritten.
    """
    y = norm(x)
    return functional.relu(y) if keep and y is x else functional.relu_(y)


def scaled(channels: int, width: float) -> int:
    """Channels of a network that is `width` times as wide: a multiple of 8, since vector units come in eights."""
    return channels if width == 1.0 else max(8, 8 * round(channels * width / 8))


def check_network(channels: int, classes: int, width: float, dropout: float) -> None:
    """Refuses sizes of a network that make no sense.

    Raises:
        ValueError: says which.
    """
    if channels < 1 or classes < 2:
        raise ValueError(f"at least one channel and two classes are needed, got {channels} and {classes}")
    if not 0.0 < width < math.inf:
        raise ValueError(f"width must be a finite number above 0, got {width}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must lie in 0..1 without 1, got {dropout}")


def he_initialise(module: nn.Module) -> None:
    """Weights of all convolutions after He et al. (arXiv:1502.01852), uniform, from torch's generator; no bias."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            taps = part.kernel_size[0] * part.kernel_size[1]
            # A pixel of a transposed convolution sees each channel through 1 of stride^2 taps.
            fan = part.in_channels * taps / (part.stride[0] ** 2 if isinstance(part, nn.ConvTranspose2d) else 1)
            bound = math.sqrt(6.0 / fan)
            nn.init.uniform_(part.weight, -bound, bound)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class Fitted(nn.Module):
    """A network for grids of any size: fields are padded to a multiple of `multiple`, and the result is cropped.

    A row beyond a pole or edge mirrors one within, and so does a column of a regional grid. On a periodic grid
    columns are those of the other side; if the width is no multiple, at least `multiple` of them on either side,
    since what is added does not close again.

    Args:
        multiple: of rows and columns that the network needs.
        channels: of its input.
        periodic: whether longitudes close.
    """

    def __init__(self, multiple: int, channels: int, periodic: bool) -> None:
        super().__init__()
        self.multiple, self.channels, self.periodic = multiple, channels, periodic

    def logits(self, x: Tensor) -> Tensor:
        """Of fields whose size fits."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "batch channel lat lon"]) -> Float[Tensor, "batch class lat lon"]:
        """Logits of every pixel.

        Raises:
            ValueError: the number of channels is wrong, or the grid is too small to be padded.
        """
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"expected fields (batch, {self.channels} channels, latitude, longitude), got shape {tuple(x.shape)}: "
                "give the channels the network was made for, or make a network for those there are"
            )
        rows, columns = x.shape[-2:]
        south, north = _halves(-rows % self.multiple)
        west, east = _halves(-columns % self.multiple)
        if self.periodic and (west or east):
            west, east = west + self.multiple, east + self.multiple
        if north >= rows or (east >= columns and not self.periodic):
            raise ValueError(
                f"fields of {rows} x {columns} pixels are too small for this network: it works on multiples of "
                f"{self.multiple}, and padding cannot more than double a side"
            )
        if west or east:
            reflect = not self.periodic
            x = functional.pad(x, (west, east, 0, 0), "reflect") if reflect else wrapped(x, west, east)
        if south or north:
            x = functional.pad(x, (0, 0, south, north), "reflect")
        y = self.logits(x)
        return y[..., south : south + rows, west : west + columns]


def _halves(count: int) -> tuple[int, int]:
    return count // 2, count - count // 2
