"""Windows: what a microscope would record of a scan: a patch of probe positions anywhere, with counting noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from exafield.field import Field
from exafield.microscopy.generate import Scan


@dataclass(frozen=True, slots=True)
class Window:
    """What one sample is.

    Args:
        probes: scan positions along a side.
        step: between them [A].
        refine: potential pixels per scan step.
        dose: electrons per pattern; None for noiseless patterns.
        blur: Gaussian standard deviation of the potential to be found [A]; about the resolution asked for.
    """

    probes: int = 16
    step: float = 0.5
    refine: int = 4
    dose: float | None = 1000.0
    blur: float = 0.2

    def __post_init__(self) -> None:
        if self.probes < 2 or self.refine < 1 or not self.step > 0 or self.blur < 0:
            raise ValueError(f"probes >= 2, refine >= 1, step > 0 A and blur >= 0 A are needed, got {self}")
        if self.dose is not None and not self.dose > 0:
            raise ValueError(f"dose must be above 0 electrons per pattern (or None for no noise), got {self.dose}")

    @property
    def pixel(self) -> float:
        """Of the potential [A]."""
        return self.step / self.refine

    @property
    def pixels(self) -> int:
        """Of the potential along a side."""
        return self.probes * self.refine


def interpolation(count: int, edge: float, positions: Float[np.ndarray, "n"]) -> Float[Tensor, "n count"]:
    """Weights that read a periodic, band-limited signal off at any position [A], exactly.

    The signal is known at `count` equidistant points of its period `edge` [A]. Trigonometric interpolation: each weight
    is a Dirichlet kernel, sin(pi t) / (count sin(pi t / count)) at a distance of t points, for an even count with the
    tangent in place of the sine (the highest frequency is shared by both signs).
    """
    distance = positions[:, None] * (count / edge) - np.arange(count)
    distance -= count * np.round(distance / count)  # to the nearest of its periodic images
    half = distance * (np.pi / count)
    bottom = np.sin(half) if count % 2 else np.tan(half)
    near = np.abs(distance) < 1e-6
    kernel = np.where(near, 1.0, np.sin(np.pi * distance) / np.where(near, 1.0, count * bottom))
    return torch.from_numpy(kernel.astype(np.float32))


def blurred(scan: Scan, width: float) -> Float[np.ndarray, "x y"]:
    """The scan's potential after a Gaussian of standard deviation `width` [A]; [V A]."""
    kx, ky = (np.fft.fftfreq(n, e / n) for n, e in zip(scan.potential.shape, scan.edges, strict=True))
    decay = np.exp(-2 * (np.pi * width) ** 2 * (kx[:, None] ** 2 + ky[None] ** 2))
    return np.asarray(np.fft.ifft2(np.fft.fft2(scan.potential) * decay).real.astype(np.float32))


class WindowSource:
    """Random windows of scans. A :class:`exafield.source.Source`.

    Sample `i` of an epoch is a window of scan ``i % len(scans)`` at a random origin, with random counts, turned
    and mirrored at random (scan, detector and potential together); all from the seed of (seed, epoch, i), so that a
    sample does not depend on which rank or worker makes it.

    Args:
        scans: simulated views.
        window: size and noise.
        per_scan: windows of each scan per epoch.
        seed: of everything random.
        scale: of the potential [V A]; default: the root mean square over the scans of their standard deviations.
        augment: whether to turn and mirror.
    """

    def __init__(
        self,
        scans: Sequence[Scan],
        window: Window,
        *,
        per_scan: int = 1,
        seed: int = 0,
        scale: float | None = None,
        augment: bool = True,
    ) -> None:
        if not scans:
            raise ValueError("there are no scans to take windows of: generate some, or change the split")
        self.scans, self.window, self.per_scan, self.seed, self.augment = list(scans), window, per_scan, seed, augment
        self._targets = [torch.from_numpy(blurred(scan, window.blur)) for scan in self.scans]
        self._patterns = [torch.from_numpy(scan.patterns) for scan in self.scans]
        if scale is None:
            scale = float(np.sqrt(np.mean([float(t.var()) for t in self._targets])))
        self.scale = scale
        pixels = int(self._patterns[0].shape[-1])
        self.fields: Mapping[str, Field] = {
            "scan": Field("scan", ("x", "y", "kx", "ky"), "electrons" if window.dose else "1"),
            "potential": Field("projected potential", ("fx", "fy"), "V A", scale=scale),
        }
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.scans) * self.per_scan

    def locate(self, index: int) -> str:
        """Which view a sample is taken of."""
        return self.scans[index % len(self.scans)].name

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        """Samples: "scan" (batch, x, y, kx, ky), square roots of counts over the dose; "potential" (batch, fx, fy),
        less its mean over the window, in units of `scale`."""
        pairs = [self.sample(index, epoch) for index in indices]
        return {"scan": torch.stack([p[0] for p in pairs]), "potential": torch.stack([p[1] for p in pairs])}

    def sample(self, index: int, epoch: int) -> tuple[Float[Tensor, "x y kx ky"], Float[Tensor, "fx fy"]]:
        """One window."""
        number = index % len(self.scans)
        random = np.random.default_rng(np.random.SeedSequence((self.seed, epoch, index)))
        origin = random.uniform(0, 1, 2) * self.scans[number].edges
        patterns, potential = self.cut(number, (float(origin[0]), float(origin[1])))
        if self.augment:
            turn = int(random.integers(8))
            patterns, potential = turned(patterns, potential, turn)
        dose = self.window.dose
        if dose is not None:
            generator = torch.Generator().manual_seed(int(random.integers(2**62)))
            patterns = torch.poisson(patterns * dose, generator=generator) / dose
        return patterns.sqrt(), (potential - potential.mean()) / self.scale

    def cut(
        self, number: int, origin: tuple[float, float]
    ) -> tuple[Float[Tensor, "x y kx ky"], Float[Tensor, "fx fy"]]:
        """Noiseless patterns and potential [V A] of a window with its corner at `origin` [A].

        Probe i sits in the middle of its step, as potential pixels sit in the middle of theirs.
        """
        w, scan = self.window, self.scans[number]
        probes = (np.arange(w.probes) + 0.5) * w.step
        pixels = (np.arange(w.pixels) + 0.5) * w.pixel
        patterns, potential = self._patterns[number], self._targets[number]
        px, py = (interpolation(patterns.shape[d], scan.edges[d], probes + origin[d]) for d in (0, 1))
        fx, fy = (interpolation(potential.shape[d], scan.edges[d], pixels + origin[d]) for d in (0, 1))
        rows = (px @ patterns.flatten(1)).unflatten(1, patterns.shape[1:]).flatten(2)
        cut = torch.bmm(py.expand(len(px), *py.shape), rows).unflatten(2, patterns.shape[2:])
        return cut.clamp_(min=0), fx @ potential @ fy.T


def turned(patterns: Tensor, potential: Tensor, turn: int) -> tuple[Tensor, Tensor]:
    """One of the eight symmetries of the square, 0..7, applied to scan, detector and potential alike."""
    if turn & 1:
        patterns, potential = patterns.flip(0, 2), potential.flip(0)
    if turn & 2:
        patterns, potential = patterns.flip(1, 3), potential.flip(1)
    if turn & 4:
        patterns, potential = patterns.permute(1, 0, 3, 2), potential.T
    return patterns.contiguous(), potential.contiguous()
