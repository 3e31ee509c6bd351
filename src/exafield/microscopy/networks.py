"""Networks from a scan to features at its positions; :class:`exafield.microscopy.model.Reconstructor` makes potentials
of these.

They differ in what counts as space. For :class:`Dense` and :class:`Attentive` the scan does, and detector pixels are
channels; for :class:`Published` the detector is the image and scan positions are channels, as in Laanait et al.
(arXiv:1909.11150). All are told the conditions of the scan.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from exafield.microscopy.conditions import NAMES
from exafield.microscopy.dense import DenseBlock, DenseNet, Embedding, initialise, modulation

_TOLD = len(NAMES)


@runtime_checkable
class Network(Protocol):
    """What a reconstructor is built around.

    Attributes:
        width: number of features.
    """

    width: int

    def __call__(self, scan: Tensor, conditions: Tensor) -> Tensor:
        """Features (batch, width, x, y) of standardised scans (batch, x, y, kx, ky) and conditions (batch, 4)."""
        ...


def _check_sizes(network: str, **sizes: int) -> None:
    """Raises ValueError for sizes below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{network}: {name} must be 1 or more, got {size}")


def _as_image(scan: Float[Tensor, "batch x y kx ky"]) -> Float[Tensor, "batch k x y"]:
    """Scan positions as image, detector pixels as channels."""
    return scan.flatten(3).permute(0, 3, 1, 2).contiguous()


class Dense(nn.Module):
    """A dense network over scan positions.

    Args:
        growth: features each layer adds.
        first: of the learnt basis that patterns are seen in.
        layers: of each of its three blocks; the one in the middle, behind a pooling, has one more.
        pixels: detector pixels along a side.
        probes: scan positions along a side of a training window; any other size will do.
    """

    def __init__(
        self, growth: int = 16, first: int = 48, layers: int = 3, *, pixels: int = 16, probes: int = 16
    ) -> None:
        super().__init__()
        _check_sizes("dense", growth=growth, first=first, layers=layers)
        self.net = DenseNet(
            pixels**2, first, None, growth, down=[layers], bottleneck=layers + 1, up=[layers], conditions=_TOLD
        )
        self.growth, self.first, self.layers, self.width = growth, first, layers, self.net.width

    def forward(
        self, scan: Float[Tensor, "batch x y kx ky"], conditions: Float[Tensor, "batch 4"]
    ) -> Float[Tensor, "batch c x y"]:
        """See :class:`Network`."""
        features: Tensor = self.net(_as_image(scan), conditions)
        return features


class Attentive(nn.Module):
    """A learnt basis for patterns, then convolutions between neighbours and attention across the whole scan.

    A crystal repeats: positions that see the same columns lie about the scan, and their average holds less noise than
    each. Attention finds them by what they show, and by where they are: each head has a bias learnt for every offset.

    Args:
        channels: features.
        depth: pairs of attention and convolution.
        heads: of attention.
        pixels, probes: see :class:`Dense`.
    """

    def __init__(
        self, channels: int = 96, depth: int = 4, heads: int = 4, *, pixels: int = 16, probes: int = 16
    ) -> None:
        super().__init__()
        _check_sizes("attentive", channels=channels, depth=depth, heads=heads)
        if channels % heads:
            raise ValueError(f"attentive: channels must be a multiple of heads, got {channels} and {heads}")
        self.channels, self.depth, self.heads, self.width = channels, depth, heads, channels
        self.embedding = Embedding(_TOLD)
        self.entry = nn.Sequential(
            nn.Conv2d(pixels**2, channels, 1), nn.GELU(), nn.Conv2d(channels, channels, 3, padding="same")
        )
        initialise(self.entry)
        self.blocks = nn.ModuleList(_Block(channels, heads, probes) for _ in range(depth))

    def forward(
        self, scan: Float[Tensor, "batch x y kx ky"], conditions: Float[Tensor, "batch 4"]
    ) -> Float[Tensor, "batch c x y"]:
        """See :class:`Network`."""
        told = self.embedding(conditions)
        x = self.entry(_as_image(scan))
        for block in self.blocks:
            x = block(x, told)
        features: Tensor = x
        return features


class _Block(nn.Module):
    """Attention across the scan, then a convolution: each adds to what it is given, normalised and told."""

    def __init__(self, channels: int, heads: int, probes: int) -> None:
        super().__init__()
        self.heads, self.probes = heads, probes
        self.norms = nn.ModuleList(nn.GroupNorm(1, channels, affine=False) for _ in range(2))
        self.films = nn.ModuleList(modulation(channels) for _ in range(2))
        self.questions = nn.Conv2d(channels, 3 * channels, 1)
        self.answer = nn.Conv2d(channels, channels, 1)
        self.offsets = nn.Parameter(torch.zeros(heads, 2 * probes - 1, 2 * probes - 1))
        self.mix = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding="same"), nn.GELU(), nn.Conv2d(channels, channels, 1)
        )
        # A block adds little at first.
        for name, weight in self.named_parameters():
            if name in ("answer.weight", "mix.2.weight"):
                nn.init.normal_(weight, std=0.02)

    def forward(self, x: Float[Tensor, "batch c x y"], told: Float[Tensor, "batch e"]) -> Float[Tensor, "batch c x y"]:
        x = x + self.answer(self._attend(self._told(0, x, told)))
        added: Tensor = x + self.mix(self._told(1, x, told))
        return added

    def _told(self, which: int, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.films[which](told)[:, :, None, None].chunk(2, 1)
        return torch.addcmul(shift, self.norms[which](x), scale + 1)

    def _attend(self, x: Tensor) -> Tensor:
        _, _, nx, ny = x.shape
        q, k, v = (
            part.unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3) for part in self.questions(x).chunk(3, 1)
        )
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(nx, ny))
        placed: Tensor = seen.transpose(2, 3).flatten(1, 2).unflatten(2, (nx, ny))
        return placed

    def _bias(self, nx: int, ny: int) -> Float[Tensor, "head from to"]:
        """Of every offset between two positions; offsets beyond those of training count as the farthest."""
        last = self.probes - 1
        dx, dy = (
            (torch.arange(n)[:, None] - torch.arange(n)).clamp(-last, last).add(last).to(self.offsets.device)
            for n in (nx, ny)
        )
        return self.offsets[:, dx[:, None, :, None], dy[None, :, None, :]].flatten(1, 2).flatten(2)


class Published(nn.Module):
    """The layout of Laanait et al.: the detector is the image, scan positions are channels.

    What is found in reciprocal space must be brought to real space. `skips` says how the skip connection does it:
    "pixels" maps the pixels of each channel to pixels by two linear layers, the same for all channels, as the authors'
    later code does; "probes" besides maps each probe's pattern to features at that probe's place, since channels hold
    the positions; "plain" takes detector pixels for places, as a plain network of this shape does.

    Args:
        growth, first, layers: see :class:`Dense`.
        skips: see above.
        pixels: detector pixels along a side.
        probes: scan positions along a side: no other size will do, since they are channels.
    """

    def __init__(
        self,
        growth: int = 16,
        first: int = 48,
        layers: int = 3,
        skips: str = "pixels",
        *,
        pixels: int = 16,
        probes: int = 16,
    ) -> None:
        super().__init__()
        _check_sizes("published", growth=growth, first=first, layers=layers)
        if skips not in ("plain", "pixels", "probes"):
            raise ValueError(f"published: skips must be plain, pixels or probes, got {skips!r}")
        if pixels % 2 or probes % 2 or (skips == "plain" and pixels != probes):
            raise ValueError(
                f"published: pixels and probes must be even, and as many if skips are plain, got {pixels} and {probes}"
            )
        self.growth, self.first, self.layers, self.skips = growth, first, layers, skips
        self.probes = probes
        self.embedding = Embedding(_TOLD)
        self.entry = nn.Conv2d(probes**2, first, 3, padding="same")
        self.down = DenseBlock(first, layers, growth, 3, told=True)
        width = first + layers * growth
        self.bottom = DenseBlock(width, layers + 1, growth, 3, told=True)
        new = (layers + 1) * growth
        self.to_space = nn.ModuleList()
        if skips != "plain":
            self.to_space.extend(_FrequencyToSpace(p, n) for p, n in ((pixels, probes), (pixels // 2, probes // 2)))
        # Rather more features of each pattern than the dense network's basis has: nothing else tells of its details.
        self.of_probe = nn.Linear(pixels**2, first) if skips == "probes" else None
        self.rise = nn.ConvTranspose2d(new, new, 2, stride=2)
        joined = new + width + (first if skips == "probes" else 0)
        self.up = DenseBlock(joined, layers, growth, 3, told=True)
        self.width = joined + layers * growth
        initialise(self)

    def forward(
        self, scan: Float[Tensor, "batch x y kx ky"], conditions: Float[Tensor, "batch 4"]
    ) -> Float[Tensor, "batch c x y"]:
        """See :class:`Network`."""
        if scan.shape[1:3] != (self.probes, self.probes):
            raise ValueError(
                f"scan positions are channels of this network: it needs {self.probes} x {self.probes} of them, got "
                f"{scan.shape[1]} x {scan.shape[2]}"
            )
        told = self.embedding(conditions)
        skip, _ = self.down(self.entry(scan.flatten(1, 2)), told)
        _, fresh = self.bottom(functional.max_pool2d(functional.relu(skip), 2), told)
        if self.skips != "plain":
            skip, fresh = self.to_space[0](skip), self.to_space[1](fresh)
        joined = [self.rise(fresh), skip]
        if self.of_probe is not None:
            joined.append(self.of_probe(scan.flatten(3)).permute(0, 3, 1, 2))
        features: Tensor = self.up(torch.cat(joined, 1), told)[0]
        return features


class _FrequencyToSpace(nn.Module):
    """Two linear layers from the pixels of a channel to places, alike for all channels."""

    def __init__(self, pixels: int, places: int) -> None:
        super().__init__()
        self.places = places
        self.layers = nn.Sequential(nn.Linear(pixels**2, places**2), nn.ReLU(), nn.Linear(places**2, places**2))

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c x y"]:
        mapped: Tensor = self.layers(x.flatten(2)).unflatten(2, (self.places, self.places))
        return mapped
