"""From a recorded scan to its potential and how far off it may be; and the network as it was published."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from exafield.microscopy.conditions import NAMES
from exafield.microscopy.dense import DenseNet
from exafield.microscopy.networks import Dense, Network

# Logarithms of deviations below this mean a perfect pixel, which there is not; it keeps a loss finite (our choice).
_LEAST = -8.0


class ScanAsSpace(nn.Module):
    """Scan positions as image, detector pixels as channels; a finer potential by pixel shuffle. Told nothing else.

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
    """A dense network of 214,400 weights with 16 x 16 detector pixels and growth 16."""
    return ScanAsSpace(pixels, refine, growth)


class Reconstructor(nn.Module):
    """From the square roots of a scan's counts, and its conditions, to potential and deviation.

    Standardises the input, lets a network find features, makes them the potential's shape, and restores the amplitude:
    a linear guess from the input's contrast, corrected by a small network that sees how much each detector pixel varies
    over the scan. A second output is the logarithm of the deviation to expect; it learns from the features, which do
    not learn from it, so that the potential is the same as without.

    Args:
        network: from a standardised scan to features.
        pixels: of the detector along a side.
        refine: potential pixels per scan step.
    Attributes:
        scale: what the potential is to be multiplied with [V A].
        lowest, highest: conditions seen in training, in the order of conditions.py.
    """

    scale: Tensor
    lowest: Tensor
    highest: Tensor
    pixel_scale: Tensor
    pixel_log: Tensor
    contrast: Tensor

    def __init__(self, network: Network | None = None, pixels: int = 16, refine: int = 4) -> None:
        super().__init__()
        self.network = network or Dense(pixels=pixels)
        self.refine = refine
        self.shape = nn.Conv2d(self.network.width, refine**2, 1)
        nn.init.kaiming_normal_(self.shape.weight, nonlinearity="linear")
        if self.shape.bias is not None:
            nn.init.zeros_(self.shape.bias)
        self.doubt = nn.Sequential(
            nn.Conv2d(self.network.width, 32, 3, padding="same"), nn.ReLU(), _last(nn.Conv2d(32, refine**2, 1))
        )
        self.amplitude = nn.Sequential(nn.Linear(pixels**2 + len(NAMES), 32), nn.ReLU(), _last(nn.Linear(32, 1)))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("lowest", torch.zeros(len(NAMES)))
        self.register_buffer("highest", torch.zeros(len(NAMES)))
        self.register_buffer("pixel_scale", torch.ones(pixels, pixels))
        self.register_buffer("pixel_log", torch.zeros(pixels**2))
        self.register_buffer("contrast", torch.tensor(1.0))

    @torch.no_grad()
    def fit_statistics(
        self, scan: Float[Tensor, "batch x y kx ky"], spread: Float[Tensor, "2 4"], scale: float
    ) -> None:
        """Takes the scales of detector pixels from samples of the training set.

        Args:
            spread: lowest and highest of each condition in training.
            scale: of potentials in training [V A].
        """
        centred = scan - scan.mean((1, 2), keepdim=True)
        rms = centred.square().mean((0, 1, 2)).sqrt()
        # Pixels that hardly ever see an electron would otherwise bring in noise alone (our choice).
        self.pixel_scale.copy_(rms.mean() / rms.clamp(min=0.3 * float(rms.max())))
        self.pixel_log.copy_(_log_variation(centred).mean(0))
        self.contrast.copy_(centred.flatten(1).std(1).mean())
        self.lowest.copy_(spread[0])
        self.highest.copy_(spread[1])
        self.scale.fill_(scale)

    def told(self, conditions: Float[Tensor, "batch 4"]) -> Float[Tensor, "batch 4"]:
        """Conditions as the network is told them: -1 to 1 over what training saw, 0 where that was one value."""
        half = (self.highest - self.lowest) / 2
        varied = half > 1e-6 * self.highest.abs()
        return torch.where(varied, (conditions - self.lowest) / half.where(varied, torch.ones_like(half)) - 1, 0.0)

    def forward(
        self, scan: Float[Tensor, "batch x y kx ky"], conditions: Float[Tensor, "batch 4"]
    ) -> tuple[Float[Tensor, "batch fx fy"], Float[Tensor, "batch fx fy"]]:
        """Potential, less its mean over the window, and logarithm of its deviation; both in units of `scale`."""
        centred = scan - scan.mean((1, 2), keepdim=True)
        contrast = centred.flatten(1).std(1)[:, None, None].clamp(min=1e-12)
        told = self.told(conditions)
        features = self.network(centred * (self.pixel_scale / contrast[..., None, None]), told)
        correction = self.amplitude(torch.cat([_log_variation(centred) - self.pixel_log, told], 1))[..., None]
        logarithm = torch.log(contrast / self.contrast) + correction
        potential = functional.pixel_shuffle(self.shape(features), self.refine).squeeze(1) * torch.exp(logarithm)
        doubt = functional.pixel_shuffle(self.doubt(features.detach()), self.refine).squeeze(1) + logarithm.detach()
        return potential - potential.mean((1, 2), keepdim=True), doubt.clamp(min=_LEAST)


def _last(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """A layer that says zero at first."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


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
