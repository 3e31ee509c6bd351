"""Tiramisu: a fully convolutional dense network (Jegou et al., arXiv:1611.09326) as Kurth et al. changed it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from exafield.climate.convolution import (
    Convolution,
    Fitted,
    Norm,
    check_network,
    he_initialise,
    norm_layer,
    rectified,
    scaled,
)
from exafield.climate.doubling import Doubling

#: Layers per block, growth and kernel of the network before it was changed.
ORIGINAL = {"layers": (3, 3, 4, 4, 7, 7), "growth": 16, "kernel": 3}


class DenseBlock(nn.Module):
    """Layers that each see all features before them and add `growth` of their own.

    A layer is convolution, normalisation, ReLU, dropout. Its filters are applied feature by feature as these come into
    being, to all layers that are still to come: the input meets one wide convolution in place of many narrow ones,
    and nothing is concatenated for a layer. The sums are the same.

    Args:
        inputs: channels.
        layers: how many.
        growth: features each adds.
        kernel: of the convolutions.
    """

    def __init__(
        self, inputs: int, layers: int, growth: int, kernel: int, norm: Norm, dropout: float, periodic: bool
    ) -> None:
        super().__init__()
        self.inputs, self.growth, self.dropout = inputs, growth, dropout
        bias = norm != "batch"
        self.convolutions = nn.ModuleList(
            Convolution(inputs + i * growth, growth, kernel, periodic=periodic, bias=bias) for i in range(layers)
        )
        self.norms = nn.ModuleList(norm_layer(norm, growth) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """The new features."""
        layers = [layer for layer in self.convolutions if isinstance(layer, Convolution)]
        # shares[i][j]: filters of layer i for the features that layer j - 1 made, or for the input.
        shares = [layer.weight.split([self.inputs] + [self.growth] * i, 1) for i, layer in enumerate(layers)]
        biases = [layer.bias for layer in layers if layer.bias is not None]
        pending: list[Tensor] = []
        new: list[Tensor] = []
        for i, (layer, norm) in enumerate(zip(layers, self.norms, strict=True)):
            filters = torch.cat([shares[k][i] for k in range(i, len(layers))])
            bias = torch.cat(biases) if biases and i == 0 else None
            parts = layer.apply_filters(new[-1] if new else x, filters, bias).split(self.growth, 1)
            pending = [a + b for a, b in zip(pending, parts, strict=True)] if pending else list(parts)
            # A batch norm writes a tensor of its own. Without one, the first part is a slice of what the convolution
            # wrote for all layers, so it is not overwritten.
            y = rectified(norm, pending.pop(0), keep=i == 0)
            new.append(functional.dropout(y, self.dropout, self.training) if self.dropout else y)
        return torch.cat(new, 1)


class Descent(nn.Module):
    """Half the size: a 1x1 convolution of stride 2 that keeps all channels, normalisation, ReLU, dropout."""

    def __init__(self, channels: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.convolution = Convolution(channels, channels, 1, stride=2, bias=norm != "batch")
        self.norm, self.dropout = norm_layer(norm, channels), dropout

    def forward(self, x: Tensor) -> Tensor:
        """Of fields (batch, channel, latitude, longitude)."""
        y = rectified(self.norm, self.convolution(x))
        return functional.dropout(y, self.dropout, self.training) if self.dropout else y


class Tiramisu(Fitted):
    """Logits of pixels: down through dense blocks, and up again with the features of the same size beside.

    The defaults are those of the published runs: 7.43 million weights with 16 channels, 7.41 with 4. What the code of
    publication also has, and this network has not: a transition down behind the lowest block that nothing reads, and
    dropout of the logits themselves.

    Args:
        channels: of the input.
        classes: of pixels.
        layers: per dense block, from the top to the bottom.
        growth: features each layer adds.
        first: features of the first convolution; the count of operations published for 16 channels needs 64.
        kernel: of all convolutions but those between blocks.
        width: factor of `first` and `growth`, for smaller networks.
        norm: after each convolution.
        dropout: probability that a feature is left out.
        periodic: whether longitudes close.
    """

    def __init__(
        self,
        channels: int = 16,
        classes: int = 3,
        *,
        layers: Sequence[int] = (2, 2, 2, 4, 5),
        growth: int = 32,
        first: int = 48,
        kernel: int = 5,
        width: float = 1.0,
        norm: Norm = None,
        dropout: float = 0.2,
        periodic: bool = False,
    ) -> None:
        check_network(channels, classes, width, dropout)
        if not layers or min(layers) < 1 or growth < 1 or first < 1 or kernel < 1 or kernel % 2 == 0:
            raise ValueError(
                f"layers, growth and first must be at least 1 and kernel odd, got {tuple(layers)}, {growth}, {first}, "
                f"{kernel}"
            )
        super().__init__(2 ** (len(layers) - 1), channels, periodic)
        growth, features = scaled(growth, width), scaled(first, width)

        def block(inputs: int, count: int) -> DenseBlock:
            return DenseBlock(inputs, count, growth, kernel, norm, dropout, periodic)

        self.entry = Convolution(channels, features, kernel, periodic=periodic, bias=norm != "batch")
        self.entry_norm, self.dropout = norm_layer(norm, features), dropout
        self.down, self.descents, self.ascents, self.up = (nn.ModuleList() for _ in range(4))
        skips = []
        for count in layers[:-1]:
            self.down.append(block(features, count))
            features += count * growth
            skips.append(features)
            self.descents.append(Descent(features, norm, dropout))
        self.bottom = block(features, layers[-1])
        new = layers[-1] * growth
        for count, skip in zip(reversed(layers[:-1]), reversed(skips), strict=True):
            self.ascents.append(Doubling(new, new, periodic=periodic))
            self.up.append(block(new + skip, count))
            features, new = new + skip + count * growth, count * growth
        self.exit = Convolution(features, classes)
        he_initialise(self)

    def logits(self, x: Tensor) -> Tensor:
        """Of fields whose sides are multiples of :attr:`multiple`."""
        x = rectified(self.entry_norm, self.entry(x))
        if self.dropout:
            x = functional.dropout(x, self.dropout, self.training)
        skips = []
        for block, descent in zip(self.down, self.descents, strict=True):
            x = torch.cat([x, block(x)], 1)
            skips.append(x)
            x = descent(x)
        new = self.bottom(x)
        for ascent, block in zip(self.ascents, self.up, strict=True):
            x = torch.cat([ascent(new), skips.pop()], 1)
            new = block(x)
        # The last block's features are not concatenated either. With a single block there is nothing to go up.
        logits: Tensor = self.exit(x, new)
        return logits
