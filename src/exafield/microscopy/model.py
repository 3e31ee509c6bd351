"""Networks from diffraction patterns to potential.

Both are fully convolutional dense networks (Jegou et al., arXiv:1611.09326) without batch normalisation. They
differ in what counts as space: in :func:`scan_as_space` the scan positions do, and detector pixels are channels;
in :func:`published` the detector is the image, and scan positions are channels (Laanait et al.,
arXiv:1909.11150).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class DenseBlock(nn.Module):
    """Layers that each see all features before them and add `growth` of their own: ReLU after each convolution."""

    def __init__(self, channels: int, layers: int, growth: int, kernel: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(channels + i * growth, growth, kernel, padding="same") for i in range(layers)
        )

    def forward(self, x: Float[Tensor, "batch c h w"]) -> tuple[Tensor, Tensor]:
        """All features, and the new ones alone."""
        new: list[Tensor] = []
        for layer in self.layers:
            new.append(functional.relu(layer(torch.cat([x, *new], 1))))
        fresh = torch.cat(new, 1)
        return torch.cat([x, fresh], 1), fresh


class DenseNet(nn.Module):
    """A fully convolutional dense network: down through dense blocks and pooling, a bottleneck, and up again.

    Args:
        channels: of the input.
        first: features of the first convolution.
        outputs: channels of the result.
        growth: features each layer adds.
        down, bottleneck: layers per block on the way down, and at the bottom.
        up: layers per block on the way up.
        kernel: of the dense layers; `first_kernel`: of the first convolution.
        up_kernel: of the transitions up; 2 is a transposed convolution, 1 a 1x1 convolution and upsampling
            (in this order: the result is the same, at a quarter of the cost).
        dropout: before pooling.
        outer_bias: whether first and last convolution have biases.
    """

    def __init__(
        self,
        channels: int,
        first: int,
        outputs: int,
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
    ) -> None:
        super().__init__()
        if len(down) != len(up):
            raise ValueError(f"as many blocks must go up as down, got {list(down)} down and {list(up)} up")
        self.pools = len(down)
        self.entry = nn.Conv2d(channels, first, first_kernel, padding="same", bias=outer_bias)
        self.down, self.pool, self.rise, self.up = (nn.ModuleList() for _ in range(4))
        width, skips = first, []
        for layers in down:
            self.down.append(DenseBlock(width, layers, growth, kernel))
            width += layers * growth
            skips.append(width)
            self.pool.append(nn.Sequential(nn.Conv2d(width, width, 1), nn.Dropout2d(dropout), nn.MaxPool2d(2)))
        self.bottom = DenseBlock(width, bottleneck, growth, kernel)
        new = bottleneck * growth
        for layers, skip in zip(up, reversed(skips), strict=True):
            self.rise.append(
                nn.ConvTranspose2d(new, new, 2, stride=2)
                if up_kernel == 2
                else nn.Sequential(nn.Conv2d(new, new, up_kernel, padding="same"), nn.Upsample(scale_factor=2))
            )
            self.up.append(DenseBlock(new + skip, layers, growth, kernel))
            width, new = new + skip + layers * growth, layers * growth
        self.exit = nn.Conv2d(width, outputs, 1, bias=outer_bias)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # The last layer is followed by no ReLU, and starting near zero keeps the first loss that of the mean.
        nn.init.kaiming_normal_(self.exit.weight, nonlinearity="linear")

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch out h w"]:
        """Raises ValueError if an image side is not divisible by 2 ** (number of poolings)."""
        factor = 2**self.pools
        if x.shape[-1] % factor or x.shape[-2] % factor:
            raise ValueError(
                f"images of {tuple(x.shape[-2:])} cannot be halved {self.pools} times: crop or pad both sides to "
                f"multiples of {factor}"
            )
        x = self.entry(x)
        skips = []
        for block, pool in zip(self.down, self.pool, strict=True):
            x, _ = block(x)
            skips.append(x)
            x = pool(functional.relu(x))
        x, fresh = self.bottom(x)
        for rise, block in zip(self.rise, self.up, strict=True):
            x, fresh = block(torch.cat([rise(fresh), skips.pop()], 1))
        result: Tensor = self.exit(x)
        return result


class ScanAsSpace(nn.Module):
    """Scan positions as image, detector pixels as channels; a finer potential by pixel shuffle.

    Args:
        pixels: detector pixels along a side.
        refine: potential pixels per scan step.
        growth: features each layer adds.
    """

    def __init__(self, pixels: int = 16, refine: int = 4, growth: int = 16, first: int = 48) -> None:
        super().__init__()
        self.net = DenseNet(pixels**2, first, refine**2, growth, down=[3], bottleneck=4, up=[3])
        self.refine = refine

    def forward(self, scan: Float[Tensor, "batch x y kx ky"]) -> Float[Tensor, "batch fx fy"]:
        """Potential on a grid `refine` times finer than the scan."""
        channels = scan.flatten(3).permute(0, 3, 1, 2).contiguous()
        return functional.pixel_shuffle(self.net(channels), self.refine).squeeze(1)


def scan_as_space(pixels: int = 16, refine: int = 4, growth: int = 16) -> ScanAsSpace:
    """The default network; 214,400 weights with 16 x 16 detector pixels and growth 16."""
    return ScanAsSpace(pixels, refine, growth)


class Reconstructor(nn.Module):
    """From the square roots of a scan's counts to its potential.

    Standardises the input, lets a network find the shape, and restores the amplitude: a linear guess from the input's
    contrast, corrected by a small network that sees how much each detector pixel varies over the scan.

    Args:
        network: from a standardised scan to a potential of about unit amplitude.
        pixels: of the detector along a side.
    """

    pixel_scale: Tensor
    pixel_log: Tensor
    contrast: Tensor

    def __init__(self, network: nn.Module, pixels: int = 16) -> None:
        super().__init__()
        self.network = network
        last = nn.Linear(32, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.amplitude = nn.Sequential(nn.Linear(pixels**2, 32), nn.ReLU(), last)
        self.register_buffer("pixel_scale", torch.ones(pixels, pixels))
        self.register_buffer("pixel_log", torch.zeros(pixels**2))
        self.register_buffer("contrast", torch.tensor(1.0))

    @torch.no_grad()
    def fit_statistics(self, scan: Float[Tensor, "batch x y kx ky"]) -> None:
        """Takes the scales of detector pixels from samples of the training set."""
        centred = scan - scan.mean((1, 2), keepdim=True)
        rms = centred.square().mean((0, 1, 2)).sqrt()
        # Pixels that hardly ever see an electron would otherwise bring in noise alone (our choice).
        self.pixel_scale.copy_(rms.mean() / rms.clamp(min=0.3 * float(rms.max())))
        self.pixel_log.copy_(_log_variation(centred).mean(0))
        self.contrast.copy_(centred.flatten(1).std(1).mean())

    def forward(self, scan: Float[Tensor, "batch x y kx ky"]) -> Float[Tensor, "batch fx fy"]:
        """Potential in units of the training set's constant, less its mean over the window."""
        centred = scan - scan.mean((1, 2), keepdim=True)
        contrast = centred.flatten(1).std(1)[:, None, None].clamp(min=1e-12)
        shape = self.network(centred * (self.pixel_scale / contrast[..., None, None]))
        correction = self.amplitude(_log_variation(centred) - self.pixel_log)[..., None]
        potential: Tensor = shape * (contrast / self.contrast) * torch.exp(correction)
        return potential - potential.mean((1, 2), keepdim=True)


def _log_variation(centred: Tensor) -> Tensor:
    """Logarithm of each detector pixel's standard deviation over the scan: (batch, pixel)."""
    # 1e-8 is the square of a ten-thousandth: below any counting noise.
    return 0.5 * torch.log(centred.square().mean((1, 2)).flatten(1) + 1e-8)


# Growth and kernel of networks the authors trained or named (stemdl repository).
PUBLISHED = {
    "g64k3": {"growth": 64, "kernel": 3},
    "g128k3": {"growth": 128, "kernel": 3},
    "g128k5": {"growth": 128, "kernel": 5},
    "g256k3": {"growth": 256, "kernel": 3},
    "g256k5": {"growth": 256, "kernel": 5},
}


def published(probes: int = 1024, growth: int = 128, kernel: int = 3) -> DenseNet:
    """The network of Laanait et al.: patterns of all probes as channels, the detector as image.

    With 1,024 probes, growth 128 and kernel 3 it takes 8.00 TFLOP a sample of 512 x 512 as published and has the
    22,877,568 weights that the authors' training logs state, if the 896 of the 1x1 output convolution are left out
    of the count and the first convolution has no bias (our reading: no other choice gives both figures).
    """
    return DenseNet(
        probes,
        growth,
        1,
        growth,
        down=[2, 2, 3],
        bottleneck=4,
        up=[3, 2, 2],
        kernel=kernel,
        first_kernel=kernel,
        up_kernel=1,
        dropout=0.2,
        outer_bias=False,
    )


def weights(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
