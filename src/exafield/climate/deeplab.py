"""DeepLabv3+ (Chen et al., arXiv:1802.02611) as Kurth et al. changed it: a decoder of full resolution."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from exafield.climate.convolution import (
    Convolution,
    Fitted,
    Norm,
    check_network,
    enlarged,
    he_initialise,
    norm_layer,
    rectified,
    scaled,
)
from exafield.climate.doubling import Doubling
from exafield.climate.resnet import ResNet

#: How features become as fine as the input: "bilinear" interpolates logits from a quarter of the size; "deconv" goes
#: there by transposed convolutions; "deconv1x" convolves once more at the full size, with the input beside.
Decoder = Literal["bilinear", "deconv", "deconv1x"]


class Layer(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: Norm, periodic: bool, rate: int = 1) -> None:
        super().__init__()
        self.convolution = Convolution(inputs, outputs, kernel, rate=rate, periodic=periodic, bias=norm != "batch")
        self.norm = norm_layer(norm, outputs)

    def forward(self, *parts: Tensor) -> Tensor:
        """Of channels in one tensor or in several."""
        return rectified(self.norm, self.convolution(*parts))


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: filters of several reaches side by side, and the mean over the whole field.

    The branch of the mean has no batch normalisation: with one sample per rank there is a single value per channel,
    and its variance over the batch says nothing.

    Args:
        inputs, outputs: channels.
        rates: distances of the taps of the 3x3 filters.
        dropout: of the result's features.
    """

    def __init__(
        self, inputs: int, outputs: int, rates: tuple[int, ...], norm: Norm, dropout: float, periodic: bool
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList([Layer(inputs, outputs, 1, norm, periodic)])
        self.branches.extend(Layer(inputs, outputs, 3, norm, periodic, rate) for rate in rates)
        self.whole = Layer(inputs, outputs, 1, None if norm == "batch" else norm, periodic)
        self.project = Layer(outputs * (2 + len(rates)), outputs, 1, norm, periodic)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Of the encoder's features."""
        parts = [branch(x) for branch in self.branches]
        y: Tensor = self.project(*parts, self.whole(x.mean((2, 3), keepdim=True)))
        return functional.dropout(y, self.dropout, self.training) if self.dropout else y


class DeepLabV3Plus(Fitted):
    """Logits of pixels: a residual encoder, a pyramid of filters, and a decoder.

    The defaults are the published network: 43.7 million weights with 16 channels. It differs from the code of
    publication in what changes neither operations nor, but for a few thousand, weights: convolutions of the decoder
    are all followed by ReLU (there, those at full resolution and the transposed ones are not: see `linear`), the
    encoder's result is normalised and rectified, the mean over the field is not normalised over the batch, and
    batch normalisation is otherwise on unless asked not to be.

    Args:
        channels: of the input.
        classes: of pixels.
        depth: of the encoder: 26, 50 or 101.
        output_stride: of the encoder, 8 or 16.
        decoder: which one.
        width: factor of all features, for smaller networks.
        norm: before each ReLU of encoder, pyramid and the decoder's first part.
        dropout: of the pyramid's features.
        linear: whether transposed and full-resolution convolutions go without ReLU, as published.
        periodic: whether longitudes close.
    """

    def __init__(
        self,
        channels: int = 16,
        classes: int = 3,
        *,
        depth: int = 50,
        output_stride: int = 8,
        decoder: Decoder = "deconv1x",
        width: float = 1.0,
        norm: Norm = "batch",
        dropout: float = 0.0,
        linear: bool = False,
        periodic: bool = False,
    ) -> None:
        check_network(channels, classes, width, dropout)
        if decoder not in get_args(Decoder):
            raise ValueError(f"decoder must be one of {', '.join(get_args(Decoder))}, got {decoder!r}")
        super().__init__(output_stride, channels, periodic)
        self.decoder, self.linear = decoder, linear
        features, reduced = scaled(256, width), scaled(48, width)
        rates = (12, 24, 36) if output_stride == 8 else (6, 12, 18)
        self.encoder = ResNet(channels, depth, output_stride, width, norm, periodic)
        self.pyramid = Pyramid(self.encoder.high, features, rates, norm, dropout, periodic)
        self.low = Layer(self.encoder.low, reduced, 1, norm, periodic)
        self.rise, self.finish, self.skip, self.full = (nn.ModuleList() for _ in range(4))
        self.quarter = nn.ModuleList(
            [Layer(features + reduced, features, 3, norm, periodic), Layer(features, features, 3, norm, periodic)]
        )
        if decoder != "bilinear":
            doublings = round(math.log2(output_stride // 4))
            self.rise.extend(Doubling(features, features, periodic=periodic) for _ in range(doublings))
            self.finish.extend(Doubling(features, features, periodic=periodic) for _ in range(2))
        if decoder == "deconv1x":
            half, middle = scaled(64, width), scaled(128, width)
            sizes = ((channels, half), (half, middle))
            self.skip.extend(Convolution(i, o, 3, periodic=periodic) for i, o in sizes)
            sizes = ((features + middle, features), (features, features))
            self.full.extend(Convolution(i, o, 3, periodic=periodic) for i, o in sizes)
        self.exit = Convolution(features, classes)
        he_initialise(self)
        if norm is None:
            self.encoder.temper()

    def logits(self, x: Tensor) -> Tensor:
        """Of fields whose sides are multiples of the output stride."""
        low, high = self.encoder(x)
        y = self.pyramid(high)
        if self.decoder == "bilinear":
            y = enlarged(y, self.multiple // 4, self.periodic)
        for rise in self.rise:
            y = self._activated(rise(y))
        y = self.quarter[1](self.quarter[0](y, self.low(low)))
        if self.decoder == "bilinear":
            return enlarged(self.exit(y), 4, self.periodic)
        for rise in self.finish:
            y = self._activated(rise(y))
        if self.decoder == "deconv1x":
            for convolution in self.skip:
                x = self._activated(convolution(x))
            y = self._activated(self.full[0](y, x))
            y = self._activated(self.full[1](y))
        logits: Tensor = self.exit(y)
        return logits

    def _activated(self, x: Tensor) -> Tensor:
        return x if self.linear else torch.relu_(x)
