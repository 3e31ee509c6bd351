"""Fully convolutional dense networks (Jegou et al., arXiv:1611.09326) without batch normalisation, which can be told
numbers that hold for a whole sample, by a scale and a shift of every layer (FiLM, Perez et al., arXiv:1709.07871)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

# Features that conditions are made into, before they scale and shift layers; our choice.
EMBEDDED = 32


class Embedding(nn.Sequential):
    """Conditions, about -1 to 1 each, made into features."""

    def __init__(self, conditions: int) -> None:
        super().__init__(nn.Linear(conditions, EMBEDDED), nn.SiLU(), nn.Linear(EMBEDDED, EMBEDDED), nn.SiLU())


def modulation(channels: int) -> nn.Linear:
    """From embedded conditions to a scale and a shift for each channel; at first they change nothing."""
    layer = nn.Linear(EMBEDDED, 2 * channels)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class DenseBlock(nn.Module):
    """Layers that each see all features before them and add `growth` of their own: ReLU after each convolution.

    Args:
        told: whether scales and shifts of its layers follow from conditions.
    """

    def __init__(self, channels: int, layers: int, growth: int, kernel: int, told: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(channels + i * growth, growth, kernel, padding="same") for i in range(layers)
        )
        self.film = modulation(layers * growth) if told else None

    def forward(
        self, x: Float[Tensor, "batch c h w"], told: Float[Tensor, "batch e"] | None = None
    ) -> tuple[Tensor, Tensor]:
        """All features, and the new ones alone."""
        if self.film is not None:
            assert told is not None, "a block that is told conditions needs them"
            scale, shift = self.film(told)[:, :, None, None].chunk(2, 1)
            scales, shifts = (part.chunk(len(self.layers), 1) for part in (scale + 1, shift))
        every = x
        new: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            y = layer(every)
            new.append(functional.relu(torch.addcmul(shifts[i], y, scales[i]) if self.film is not None else y))
            every = torch.cat([every, new[-1]], 1)
        return every, torch.cat(new, 1)


class DenseNet(nn.Module):
    """A fully convolutional dense network: down through dense blocks and pooling, a bottleneck, and up again.

    Args:
        channels: of the input.
        first: features of the first convolution.
        outputs: channels of the result; None for the features themselves, `width` of them.
        growth: features each layer adds.
        down, bottleneck: layers per block on the way down, and at the bottom.
        up: layers per block on the way up.
        kernel: of the dense layers; `first_kernel`: of the first convolution.
        up_kernel: of the transitions up; 2 is a transposed convolution, 1 a 1x1 convolution and upsampling
            (in this order: the result is the same, at a quarter of the cost).
        dropout: before pooling.
        outer_bias: whether first and last convolution have biases.
        conditions: how many numbers the network is told of each sample.
    """

    def __init__(
        self,
        channels: int,
        first: int,
        outputs: int | None,
        growth: int,
        down: Sequence[int],
        bottleneck: int,
        up: Sequence[int],
        *,
        kernel: int = 3,
        first_kernel: int = 1,
        up_kernel: int = 2,
        dropout: float = 0.0,
        outer_bias: bool = True,
        conditions: int = 0,
    ) -> None:
        super().__init__()
        if len(down) != len(up):
            raise ValueError(f"as many blocks must go up as down, got {list(down)} down and {list(up)} up")
        self.pools = len(down)
        told = conditions > 0
        self.embedding = Embedding(conditions) if told else None
        self.entry = nn.Conv2d(channels, first, first_kernel, padding="same", bias=outer_bias)
        self.down, self.pool, self.rise, self.up = (nn.ModuleList() for _ in range(4))
        width, skips = first, []
        for layers in down:
            self.down.append(DenseBlock(width, layers, growth, kernel, told))
            width += layers * growth
            skips.append(width)
            self.pool.append(nn.Sequential(nn.Conv2d(width, width, 1), nn.Dropout2d(dropout), nn.MaxPool2d(2)))
        self.bottom = DenseBlock(width, bottleneck, growth, kernel, told)
        new = bottleneck * growth
        for layers, skip in zip(up, reversed(skips), strict=True):
            self.rise.append(
                nn.ConvTranspose2d(new, new, 2, stride=2)
                if up_kernel == 2
                else nn.Sequential(nn.Conv2d(new, new, up_kernel, padding="same"), nn.Upsample(scale_factor=2))
            )
            self.up.append(DenseBlock(new + skip, layers, growth, kernel, told))
            width, new = new + skip + layers * growth, layers * growth
        self.width = width
        exit_ = None if outputs is None else nn.Conv2d(width, outputs, 1, bias=outer_bias)
        self.exit = exit_ or nn.Identity()
        initialise(self)
        if exit_ is not None:
            # The last layer is followed by no ReLU.
            nn.init.kaiming_normal_(exit_.weight, nonlinearity="linear")

    def forward(
        self, x: Float[Tensor, "batch c h w"], conditions: Float[Tensor, "batch k"] | None = None
    ) -> Float[Tensor, "batch out h w"]:
        """Raises ValueError if an image side is not divisible by 2 ** (number of poolings)."""
        factor = 2**self.pools
        if x.shape[-1] % factor or x.shape[-2] % factor:
            raise ValueError(
                f"images of {tuple(x.shape[-2:])} cannot be halved {self.pools} times: crop or pad both sides to "
                f"multiples of {factor}"
            )
        told = None if self.embedding is None else self.embedding(conditions)
        x = self.entry(x)
        skips = []
        for block, pool in zip(self.down, self.pool, strict=True):
            x, _ = block(x, told)
            skips.append(x)
            x = pool(functional.relu(x))
        x, fresh = self.bottom(x, told)
        for rise, block in zip(self.rise, self.up, strict=True):
            x, fresh = block(torch.cat([rise(fresh), skips.pop()], 1), told)
        result: Tensor = self.exit(x)
        return result


def initialise(network: nn.Module) -> None:
    """Weights of convolutions as He et al. (arXiv:1502.01852), their biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
