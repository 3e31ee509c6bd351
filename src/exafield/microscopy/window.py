"""Windows: what a microscope would record of a scan: a patch of probe positions anywhere, with counting noise."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy import constants
from torch import Tensor

from exafield.field import Field
from exafield.microscopy import noise
from exafield.microscopy.scans import Scan

# Permittivity of vacuum over the elementary charge [1 / (V A)].
_PERMITTIVITY = constants.epsilon_0 / constants.e * 1e-10


@dataclass(frozen=True, slots=True)
class Window:
    """What one sample is.

    Args:
        probes: scan positions along a side.
        step: between them [A].
        refine: potential pixels per scan step.
        dose: electrons per pattern; None for noiseless patterns.
        dose_to: highest dose, where it is drawn anew for each sample, evenly in its logarithm. None: all alike.
        blur: Gaussian standard deviation of what is to be found [A]; about the resolution asked for.
        target: what is to be found: the projected potential [V A] or, instead, the projected density of the electrons
            of the specimen [1/A^2]; it takes the potential's place under the same names.
    """

    probes: int = 16
    step: float = 0.5
    refine: int = 4
    dose: float | None = 1000.0
    dose_to: float | None = None
    blur: float = 0.2
    target: Literal["potential", "density"] = "potential"

    def __post_init__(self) -> None:
        if self.probes < 2 or self.refine < 1 or not self.step > 0 or self.blur < 0:
            raise ValueError(f"probes >= 2, refine >= 1, step > 0 A and blur >= 0 A are needed, got {self}")
        if self.dose is not None and not self.dose > 0:
            raise ValueError(f"dose must be above 0 electrons per pattern (or None for no noise), got {self.dose}")
        if self.dose_to is not None and not (self.dose is not None and self.dose <= self.dose_to < float("inf")):
            raise ValueError(f"dose_to must be finite and at least dose, {self.dose}, got {self.dose_to}")

    @property
    def pixel(self) -> float:
        """Of the potential [A]."""
        return self.step / self.refine

    @property
    def pixels(self) -> int:
        """Of the potential along a side."""
        return self.probes * self.refine


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample comes from, and what is drawn for it.

    Args:
        number: of the scan.
        origin: corner of the window [A].
        turn: one of the symmetries of the square, see :func:`turned`.
        dose: electrons per pattern; None for no noise.
        seed: of the counts.
    """

    number: int
    origin: tuple[float, float]
    turn: int
    dose: float | None
    seed: int


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


def blurred(scan: Scan, width: float, target: str = "potential") -> Float[np.ndarray, "x y"]:
    """The scan's potential [V A], or density of electrons [1/A^2], after a Gaussian of standard deviation `width` [A].

    The density follows from the potential and the nuclei, smeared by the Debye-Waller factor, by Poisson's equation.
    """
    kx, ky = (np.fft.fftfreq(n, e / n) for n, e in zip(scan.potential.shape, scan.edges, strict=True))
    square = kx[:, None] ** 2 + ky[None] ** 2
    spectrum = np.fft.fft2(scan.potential)
    if target == "density":
        weight = scan.numbers * scan.times * (scan.potential.size / (scan.edges[0] * scan.edges[1]))
        x, y = (np.exp(-2j * np.pi * k[:, None] * scan.places[:, d]) for d, k in enumerate((kx, ky)))
        nuclei = np.exp(-scan.b_factor * square / 4) * ((x * weight) @ y.T)
        spectrum = nuclei - _PERMITTIVITY * (2 * np.pi) ** 2 * square * spectrum
    decay = np.exp(-2 * (np.pi * width) ** 2 * square)
    return np.asarray(np.fft.ifft2(spectrum * decay).real.astype(np.float32))


class WindowSource:
    """Random windows of scans. A :class:`exafield.source.Source`.

    Sample `i` of an epoch is a window of scan ``i % len(scans)`` at a random origin, with random dose and counts,
    turned and mirrored at random (scan, detector and potential together); all from the seed of (seed, epoch, i), so
    that a sample does not depend on which rank or worker makes it.

    Args:
        scans: simulated views.
        window: size and noise.
        per_scan: windows of each scan per epoch.
        seed: of everything random.
        scale: of the potential [V A]; default: the root mean square over the scans of their standard deviations.
        augment: whether to turn and mirror, and to take counts that are cheap to draw, see noise.py.
        device: where the scans are held and windows are cut.
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
        device: str | torch.device = "cpu",
    ) -> None:
        if not scans:
            raise ValueError("there are no scans to take windows of: generate some, or change the split")
        self.scans, self.window, self.per_scan, self.seed, self.augment = list(scans), window, per_scan, seed, augment
        self._targets = [torch.from_numpy(blurred(scan, window.blur, window.target)).to(device) for scan in self.scans]
        self._patterns = [torch.from_numpy(scan.patterns).to(device) for scan in self.scans]
        if scale is None:
            scale = float(np.sqrt(np.mean([float(t.var()) for t in self._targets])))
        self.scale = scale
        self.fields: Mapping[str, Field] = {
            "scan": Field("scan", ("x", "y", "kx", "ky"), "electrons" if window.dose else "1"),
            "potential": Field(
                f"projected {window.target}",
                ("fx", "fy"),
                "V A" if window.target == "potential" else "1/A2",
                scale=scale,
            ),
            "conditions": Field("conditions", ("condition",), "1"),
        }
        self.pixels = int(self._patterns[0].shape[-1])

    def __len__(self) -> int:
        return len(self.scans) * self.per_scan

    def locate(self, index: int) -> str:
        """Which view a sample is taken of."""
        return self.scans[index % len(self.scans)].name

    def at(self, window: Window) -> "WindowSource":
        """The same scans, recorded with another dose."""
        if replace(window, dose=self.window.dose, dose_to=self.window.dose_to) != self.window:
            raise ValueError(f"only doses may differ, got {window} for {self.window}")
        other = copy(self)
        other.window = window
        return other

    def spread(self) -> Float[Tensor, "2 4"]:
        """Lowest and highest of each condition, see conditions.py."""
        told = [
            s.conditions(dose)
            for s in self.scans
            for dose in (self.window.dose, self.window.dose_to or self.window.dose)
        ]
        every = torch.stack(told)
        return torch.stack([every.amin(0), every.amax(0)])

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        """Samples: "scan" (batch, x, y, kx, ky), square roots of counts over the dose; "potential" (batch, fx, fy),
        less its mean over the window, in units of `scale`; "conditions" (batch, 4), see conditions.py."""
        found = [self.sample(index, epoch) for index in indices]
        names = ("scan", "potential", "conditions")
        return {name: torch.stack(parts) for name, parts in zip(names, zip(*found, strict=True), strict=True)}

    def place(self, index: int, epoch: int) -> Place:
        """Which window a sample is."""
        number, w = index % len(self.scans), self.window
        random = np.random.default_rng(np.random.SeedSequence((self.seed, epoch, index)))
        x, y = random.uniform(0, 1, 2) * self.scans[number].edges
        turn = int(random.integers(8)) if self.augment else 0
        seed = int(random.integers(2**62))
        dose = w.dose
        if dose is not None and w.dose_to is not None:
            dose = float(np.exp(random.uniform(np.log(dose), np.log(w.dose_to))))
        return Place(number, (float(x), float(y)), turn, dose, seed)

    def sample(
        self, index: int, epoch: int
    ) -> tuple[Float[Tensor, "x y kx ky"], Float[Tensor, "fx fy"], Float[Tensor, "4"]]:
        """One window, and its conditions."""
        at = self.place(index, epoch)
        patterns, potential = turned(*self.cut(at.number, at.origin), at.turn)
        if at.dose is not None:
            patterns = self._counted(patterns * at.dose, at.seed) / at.dose
        told = self.scans[at.number].conditions(at.dose).to(patterns.device)
        return patterns.sqrt(), (potential - potential.mean()) / self.scale, told

    def _counted(self, expected: Tensor, seed: int) -> Tensor:
        """Counts: exact ones for windows to be judged by."""
        if self.augment and expected.device.type == "cpu":
            return torch.from_numpy(noise.counts(expected.numpy(), np.random.default_rng(seed)))
        return torch.poisson(expected, generator=torch.Generator(expected.device).manual_seed(seed))

    def cut(
        self, number: int, origin: tuple[float, float]
    ) -> tuple[Float[Tensor, "x y kx ky"], Float[Tensor, "fx fy"]]:
        """Noiseless patterns and potential [V A] of a window with its corner at `origin` [A].

        Probe i sits in the middle of its step, as potential pixels sit in the middle of theirs.
        """
        w, scan = self.window, self.scans[number]
        probes = (np.arange(w.probes) + 0.5) * w.step
        pixels = (np.arange(w.pixels) + 0.5) * w.pixel
        patterns, potential = self._patterns[number].float(), self._targets[number]

        def weights(shape: torch.Size, places: np.ndarray) -> tuple[Tensor, Tensor]:
            x, y = (interpolation(shape[d], scan.edges[d], places + origin[d]).to(patterns.device) for d in (0, 1))
            return x, y

        (px, py), (fx, fy) = weights(patterns.shape, probes), weights(potential.shape, pixels)
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
