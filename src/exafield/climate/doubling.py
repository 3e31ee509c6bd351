"""A transposed convolution that makes fields twice as fine, at the speed of other convolutions on a CPU.

There libraries compute the derivative of a transposed convolution by its filters at half of the rate of what they do
otherwise, and in half precision they are several times slower if a side of the result is odd, as it is with a column
added to close longitudes. Here the result is even, what crosses the seam is added to its last column, and filters get
their derivative from four convolutions of stride 1: nine taps are four sets, by which pixels they reach.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from exafield.climate.convolution import wrapped

# Taps by which even and odd pixels (2 m and 2 m + 1) of the result are reached from inputs m and m + 1, in this order.
_TAPS = ((1,), (2, 0))


class Doubling(nn.ConvTranspose2d):
    """A transposed 3x3 convolution of stride 2: twice the size both ways.

    Args:
        inputs, outputs: channels.
        periodic: whether longitudes close.
        bias: whether there is one.
    """

    def __init__(self, inputs: int, outputs: int, *, periodic: bool = False, bias: bool = True) -> None:
        self.periodic = periodic
        super().__init__(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=bias)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Of fields (batch, channel, latitude, longitude)."""
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            parts = [x, self.weight, self.bias]
            if torch.is_autocast_enabled("cpu"):  # which does not reach into a function of ours
                half = torch.get_autocast_dtype("cpu")
                parts = [None if part is None else part.to(half) for part in parts]
            result: Tensor = _Doubled.apply(*parts, self.periodic)
            return result
        if not self.periodic:
            return super().forward(x, output_size)
        # The westernmost input reaches one column beyond the western edge of the result, which is the eastern one.
        return super().forward(wrapped(x, 0, 1), output_size)[..., : 2 * x.shape[-1]]


class _Doubled(torch.autograd.Function):
    """The transposed convolution, and its derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, periodic: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.periodic = periodic
        y = functional.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
        if periodic:
            y[..., -1:] += functional.conv_transpose2d(
                x[..., :1], weight[..., :1], stride=2, padding=(1, 0), output_padding=(1, 0)
            )
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = functional.conv2d(gradient, weight, stride=2, padding=1)
            if ctx.periodic:
                of_x[..., :1] += functional.conv2d(gradient[..., -1:], weight[..., :1], stride=2, padding=(1, 0))
        if ctx.needs_input_grad[1]:
            of_weight = _of_filters(x, weight, gradient, ctx.periodic)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None


def _of_filters(x: Tensor, weight: Tensor, gradient: Tensor, periodic: bool) -> Tensor:
    """Derivative by the filters: of pixels in even and odd rows and columns apart, which are four convolutions."""
    rows, columns = x.shape[2:]
    last = torch.channels_last if gradient.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    beyond = functional.pad(wrapped(x, 0, 1) if periodic else x, (0, 0 if periodic else 1, 0, 1))
    result = torch.empty_like(weight)
    for i, vertical in enumerate(_TAPS):
        for j, horizontal in enumerate(_TAPS):
            met = beyond[..., : rows + i, : columns + j].contiguous(memory_format=last)
            own = gradient[..., i::2, j::2].contiguous(memory_format=last)
            size = (weight.shape[1], weight.shape[0], len(vertical), len(horizontal))
            found = conv2d_weight(met, size, own)
            for a, row in enumerate(vertical):
                for b, column in enumerate(horizontal):
                    result[:, :, row, column] = found[:, :, a, b].t()
    return result
