"""Multislice simulation of convergent-beam diffraction.

Conventions. Waves are exp(+2 pi i k.x); pixel (i, j) of an array is the point (i dx, j dy). The transmission of a slice
is exp(+i sigma V); it acts first, then the wave travels the slice's thickness, after the last slice as well. The probe
at x0 is sum_k A(k) exp(-i chi(k)) exp(2 pi i k.(x - x0)) with

    chi = pi lambda k^2 (C5 lambda^4 k^4 / 3 + Cs lambda^2 k^2 / 2 + A cos 2(phi - phi_A) - defocus),

phi being the angle of k from x towards y: a positive defocus (underfocus) puts the focus that far below the entrance
face. Patterns are |psi(k)|^2 on the array's reciprocal grid, zero frequency at (nx // 2, ny // 2), divided by the
incident sum: their sum is the share of the electrons kept inside the band limit.
Kirkland, Advanced Computing in Electron Microscopy, 2nd ed. (2010), chapter 6.
"""

import logging
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from exafield.microscopy import periodic
from exafield.microscopy.electron import interaction, wavelength
from exafield.microscopy.fourier import Library
from exafield.microscopy.paths import Scanner, ScanPath
from exafield.microscopy.room import check_memory, warn_of_loss

_log = logging.getLogger(__name__)

# Slices repeat if they differ by less than this part of their largest value; our choice, ten times the rounding.
REPEAT = {torch.complex64: 1e-6, torch.complex128: 1e-13}


@dataclass(frozen=True, kw_only=True)
class Multislice:
    """The microscope and the grid.

    Args:
        energy: kinetic energy of the electrons [eV].
        sampling: pixel size (dx, dy) [A].
        slice_thickness: distance travelled after each slice [A].
        convergence_angle: half angle of the probe-forming aperture [rad].
        defocus: distance of the focus below the entrance face [A].
        cs: spherical aberration of third order [A].
        c5: spherical aberration of fifth order [A].
        astigmatism: twofold [A]; along `astigmatism_angle` the focus lies that much higher than `defocus` says, across
            it that much deeper.
        astigmatism_angle: from x towards y [rad].
        aperture: "hard" passes k <= angle / wavelength; "soft" has a linear edge of one reciprocal pixel about it.
        band_limit: cutoff of transmission and propagator, in units of the coarser axis' Nyquist frequency, or None.
        taper: width of the raised-cosine edge that ends at the cutoff, in units of 1 / max(dx, dy).
        dtype: torch.complex64 or torch.complex128.
        device: where the work is done.
        fourier: "torch" for torch.fft; "scipy" for scipy.fft and any backend that was set for it (see fourier.py).
    """

    energy: float
    sampling: tuple[float, float]
    slice_thickness: float
    convergence_angle: float
    defocus: float = 0.0
    cs: float = 0.0
    c5: float = 0.0
    astigmatism: float = 0.0
    astigmatism_angle: float = 0.0
    aperture: Literal["hard", "soft"] = "hard"
    band_limit: float | None = 2 / 3
    taper: float = 0.01
    dtype: torch.dtype = torch.complex64
    device: torch.device | str = field(default="cpu")
    fourier: Library = "torch"

    def __post_init__(self) -> None:
        positive = {
            "energy [eV]": self.energy,
            "sampling dx [A]": self.sampling[0],
            "sampling dy [A]": self.sampling[1],
            "slice_thickness [A]": self.slice_thickness,
            "convergence_angle [rad]": self.convergence_angle,
        }
        for name, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value}")
        for name in ("defocus", "cs", "c5", "astigmatism", "astigmatism_angle"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)}")
        if self.convergence_angle > 0.5:
            raise ValueError(
                f"convergence_angle is in rad: {self.convergence_angle} is no small angle; 25 mrad is 0.025"
            )
        if self.aperture not in ("hard", "soft"):
            raise ValueError(f'aperture must be "hard" or "soft", got {self.aperture!r}')
        if self.band_limit is not None and not 0 < self.band_limit <= 1:
            raise ValueError(f"band_limit must be in (0, 1] or None, got {self.band_limit}")
        if not 0 <= self.taper < 0.5 * (self.band_limit or 1):
            raise ValueError(f"taper must be at least 0 and below half of the band limit, got {self.taper}")
        if self.fourier == "scipy" and torch.device(self.device).type != "cpu":
            raise ValueError(f'fourier="scipy" works on the CPU, not on {self.device}: leave fourier at "torch"')
        if self.dtype not in REPEAT:
            raise ValueError(f"dtype must be torch.complex64 or torch.complex128, got {self.dtype}")
        passed = self.convergence_angle / self.wavelength
        if passed > self.cutoff:
            finest = (self.band_limit or 1) / (2 * passed)
            raise ValueError(
                f"the aperture of {1e3 * self.convergence_angle:.3g} mrad reaches {passed:.3g} / A, but this grid only "
                f"passes {self.cutoff:.3g} / A: choose a sampling below {finest:.3g} A or a smaller convergence_angle"
            )

    @property
    def wavelength(self) -> float:
        """Electron wavelength [A]."""
        return wavelength(self.energy)

    @property
    def sigma(self) -> float:
        """Interaction parameter [rad / (V A)]."""
        return interaction(self.energy)

    @property
    def cutoff(self) -> float:
        """Highest frequency passed [1/A]; the Nyquist frequency of the coarser axis where there is no band limit."""
        return (1.0 if self.band_limit is None else self.band_limit) / (2 * max(self.sampling))

    @property
    def _real(self) -> torch.dtype:
        return torch.float32 if self.dtype == torch.complex64 else torch.float64

    def frequencies(self, shape: tuple[int, int]) -> tuple[Float[Tensor, "x"], Float[Tensor, "y"]]:
        """kx and ky of an array [1/A], zero first, float64."""
        kx, ky = (torch.fft.fftfreq(n, d, dtype=torch.float64) for n, d in zip(shape, self.sampling, strict=True))
        return kx, ky

    def mask(self, shape: tuple[int, int]) -> Float[Tensor, "x y"]:
        """Band limit of transmission and propagator: 1 inside, 0 outside the cutoff, a raised cosine between."""
        if self.band_limit is None:
            return torch.ones(shape, dtype=torch.float64)
        kx, ky = self.frequencies(shape)
        k = torch.hypot(kx[:, None], ky[None])
        width = max(self.taper / max(self.sampling), 1e-12)
        turn = ((k - self.cutoff) / width + 1).clamp(0, 1)
        # The cosine of pi is exactly -1 in double precision: outside the mask there is nothing at all.
        return torch.cos(math.pi * turn).add(1).div(2)

    def propagator(self, shape: tuple[int, int]) -> Complex[Tensor, "x y"]:
        """Fresnel propagator over one slice, exp(-i pi lambda t k^2), times the mask."""
        kx, ky = self.frequencies(shape)
        phase = -math.pi * self.wavelength * self.slice_thickness * (kx[:, None] ** 2 + ky[None] ** 2)
        return torch.polar(self.mask(shape), phase).to(self.device, self.dtype)

    def transmission(self, slices: Float[Tensor, "slice x y"]) -> Complex[Tensor, "slice x y"]:
        """exp(i sigma V) of each slice, band limited."""
        _, nx, ny = slices.shape
        phase = self.sigma * slices.to(self.device, self._real)
        free = torch.polar(torch.ones_like(phase), phase)
        if self.band_limit is None:
            return free
        limited: Tensor = torch.fft.ifft2(torch.fft.fft2(free) * self.mask((nx, ny)).to(phase))
        return limited

    def pupil(self, shape: tuple[int, int]) -> Complex[Tensor, "x y"]:
        """A(k) exp(-i chi(k)) of the probe at the origin, zero frequency first; the sum of squares is one.

        Warns where aberrations spread the probe wider than the array: then chi changes by more than pi from one beam to
        the next, and the probe overlaps its own periodic images.

        Raises:
            ValueError: the array is too small for the aperture to hold more than one beam along x or y.
        """
        kx, ky = self.frequencies(shape)
        square = kx[:, None] ** 2 + ky[None] ** 2
        k = square.sqrt()
        radius = self.convergence_angle / self.wavelength
        steps = tuple(1 / (n * d) for n, d in zip(shape, self.sampling, strict=True))
        if radius < max(steps):
            edges = " x ".join(f"{1 / step:.3g}" for step in steps)
            raise ValueError(
                f"the aperture is under-sampled: its radius of {radius:.3g} / A is less than one reciprocal pixel of "
                f"an array of {edges} A; repeat it to at least {1 / radius:.3g} A or use a larger convergence_angle"
            )
        if self.aperture == "hard":
            # A millionth of a pixel: a beam that lies on the edge is in, whatever the rounding.
            amplitude = (k <= radius + 1e-6 * min(steps)).double()
        else:
            pixel = torch.hypot(kx[:, None] * steps[0], ky[None] * steps[1]) / k.clamp(min=1e-30)
            amplitude = ((radius - k) / pixel.clamp(min=min(steps)) + 0.5).clamp(0, 1)
        amplitude = amplitude / amplitude.square().sum().sqrt()
        chi = self._aberrations(kx[:, None], ky[None], square)
        self._check_width(chi, amplitude > 0, shape)
        return torch.polar(amplitude, -chi).to(self.device, self.dtype)

    def _aberrations(
        self, kx: Float[Tensor, "x 1"], ky: Float[Tensor, "1 y"], square: Float[Tensor, "x y"]
    ) -> Float[Tensor, "x y"]:
        """Phase chi(k) of the lens [rad]; square is |k|^2."""
        angle2 = self.wavelength**2 * square
        round_part = square * (0.5 * self.cs * angle2 + self.c5 / 3 * angle2**2 - self.defocus)
        c, s = math.cos(2 * self.astigmatism_angle), math.sin(2 * self.astigmatism_angle)
        twofold = self.astigmatism * (c * (kx**2 - ky**2) + 2 * s * kx * ky)
        return math.pi * self.wavelength * (round_part + twofold)

    def _check_width(self, chi: Float[Tensor, "x y"], inside: Bool[Tensor, "x y"], shape: tuple[int, int]) -> None:
        factor = 1.0
        for dim in (0, 1):
            both = inside & inside.roll(1, dim)
            turn = (chi - chi.roll(1, dim)).abs()[both]
            if len(turn):
                factor = max(factor, float(turn.max()) / math.pi)
        if factor > 1:
            edges = [n * d for n, d in zip(shape, self.sampling, strict=True)]
            warnings.warn(
                f"the probe is wider than the array of {edges[0]:.3g} x {edges[1]:.3g} A, so that it overlaps its "
                f"periodic images: repeat the array to about {factor * max(edges):.3g} A, or use smaller aberrations "
                "or a smaller convergence_angle",
                stacklevel=3,
            )

    def ramps(
        self, shape: tuple[int, int], positions: Float[Tensor, "probe 2"]
    ) -> tuple[Complex[Tensor, "probe x"], Complex[Tensor, "probe y"]]:
        """exp(-2 pi i kx x0) and exp(-2 pi i ky y0): what moves the probe to each position [A]."""
        kx, ky = self.frequencies(shape)
        at = positions.to("cpu", torch.float64)
        turns = (torch.outer(at[:, 0], kx), torch.outer(at[:, 1], ky))
        # The whole turns are dropped in double precision, before the phase is rounded.
        x, y = (
            torch.polar(torch.ones_like(t), -2 * math.pi * (t - t.round())).to(self.device, self.dtype) for t in turns
        )
        return x, y

    def probe(self, shape: tuple[int, int], positions: Float[Tensor, "probe 2"]) -> Complex[Tensor, "probe x y"]:
        """Spectrum of the probe at each position [A], zero frequency first, total intensity one."""
        x, y = self.ramps(shape, positions)
        return self.pupil(shape) * x[:, :, None] * y[:, None, :]

    def waves(
        self, slices: Float[Tensor, "slice x y"], positions: Float[Tensor, "probe 2"]
    ) -> Complex[Tensor, "probe x y"]:
        """Spectrum of the exit wave for each probe position, zero frequency first, by plain multislice.

        Args:
            slices: projected potentials in the order the beam meets them [V A].
            positions: probe positions [A].
        """
        different, order = self.prepared(slices, positions)
        depths = [len(order)]
        return Scanner(self, different, order, (1, 1), len(positions), depths, 0.0, "plain").waves(positions)

    def scanner(
        self,
        slices: Float[Tensor, "slice x y"],
        positions: Float[Tensor, "probe 2"],
        depths: Sequence[int] | None = None,
    ) -> tuple[Scanner, Int[Tensor, "distinct"], Int[Tensor, "probe"]]:
        """What makes the patterns of a scan, with all that does not depend on the positions done.

        Args:
            slices: projected potentials in the order the beam meets them [V A].
            positions: all positions to come [A]; how many of them differ decides on the path.
            depths: numbers of slices behind which patterns are wanted, ascending; all by default.

        Returns:
            the scanner, whose `path` says what it does; which positions differ, and which of those each position is.

        Raises:
            ValueError: see `scan`.
        """
        different, order = self.prepared(slices, positions)
        depths = [len(order)] if depths is None else list(depths)
        if not depths or depths != sorted(set(depths)) or depths[0] < 0 or depths[-1] > len(order):
            raise ValueError(f"depths must ascend within 0..{len(order)}, the number of slices, got {depths}")
        tolerance = REPEAT[self.dtype]
        tile = periodic.smallest_tile(different, tolerance)
        edges = (tile[0] * self.sampling[0], tile[1] * self.sampling[1])
        first, inverse = periodic.distinct_positions(positions, edges)
        repeats = (slices.shape[1] // tile[0], slices.shape[2] // tile[1])
        part = different[:, : tile[0], : tile[1]]
        return Scanner(self, part, order, repeats, len(first), depths, tolerance), first, inverse

    def path(self, slices: Float[Tensor, "slice x y"], positions: Float[Tensor, "probe 2"]) -> ScanPath:
        """How `scan` computes these patterns, and what that takes; `scan` logs the same."""
        return self.scanner(slices, positions)[0].path

    def scan(
        self, slices: Float[Tensor, "slice x y"], positions: Float[Tensor, "probe 2"]
    ) -> Float[Tensor, "probe kx ky"]:
        """Diffraction pattern for each probe position.

        Where all slices repeat within the array, an exact periodic path is taken by itself (see paths.py): it works
        on one tile, simulates each distinct position once, and uses the symmetry of the slices. Otherwise the probes go
        through the array. `path` and the log (INFO) say which it is.

        Args:
            slices: projected potentials in the order the beam meets them [V A].
            positions: probe positions [A], anywhere; the array is periodic.

        Returns:
            intensities, zero frequency in the middle, divided by the incident sum.

        Raises:
            ValueError: shapes do not fit, a potential or position is not finite, or the aperture is under-sampled.
            MemoryError: the patterns are larger than the memory that is free; `scan_to_file` writes them to a file.
        """
        return self.thickness_series(slices, positions, [len(slices)])[0]

    def thickness_series(
        self,
        slices: Float[Tensor, "slice x y"],
        positions: Float[Tensor, "probe 2"],
        depths: Sequence[int],
    ) -> Float[Tensor, "depth probe kx ky"]:
        """Patterns behind several thicknesses, from one run: see `scan`.

        Args:
            slices: projected potentials in the order the beam meets them [V A].
            positions: probe positions [A].
            depths: numbers of slices, ascending.
        """
        room = (len(depths), len(positions), *slices.shape[1:])
        check_memory(room, self._real, self.device)
        scanner, first, inverse = self.scanner(slices, positions, depths)
        _log.info("%s", scanner.path)
        patterns = torch.zeros(room, dtype=self._real, device=self.device)
        alike = len(first) == len(positions)
        # Where positions differ modulo the tile, as they mostly do, patterns are made where they stay.
        distinct = patterns if alike else patterns.new_zeros(len(depths), len(first), *room[2:])
        warn_of_loss(scanner.fill(distinct, positions.cpu()[first]))
        if not alike:
            for group, here in enumerate(inverse.tolist()):
                patterns[:, group] = distinct[:, here]
        return patterns

    def mean_scan(
        self, configurations: Iterable[Float[Tensor, "slice x y"]], positions: Float[Tensor, "probe 2"]
    ) -> Float[Tensor, "probe kx ky"]:
        """Patterns averaged over specimens, such as those of frozen phonons; one at a time is in memory.

        Args:
            configurations: slices of each specimen [V A].
            positions: probe positions [A].

        Raises:
            ValueError: there is no configuration; see also `scan`.
        """
        total, count = None, 0
        for slices in configurations:
            one = self.scan(slices, positions)
            total, count = one if total is None else total.add_(one), count + 1
        if total is None:
            raise ValueError("there is no configuration to average over")
        return total.div_(count)

    def prepared(
        self, slices: Float[Tensor, "slice x y"], positions: Float[Tensor, "probe 2"]
    ) -> tuple[Float[Tensor, "different x y"], list[int]]:
        """The slices that differ, and which of them comes at each depth: a crystal needs few transmissions."""
        for name, values in (("slice", slices), ("probe position", positions)):
            if len(values) == 0:
                raise ValueError(f"there is no {name}")
        # Equal slices have equal sums: spares most comparisons. A sum that is not finite betrays a bad pixel.
        sums = slices.sum((1, 2))
        for name, values, hint in (("slice", slices, sums), ("probe position", positions, positions)):
            if not bool(torch.isfinite(hint).all()):
                bad = (~torch.isfinite(values)).nonzero()
                if len(bad):
                    raise ValueError(f"{name} {int(bad[0, 0])} is not finite at index {tuple(bad[0, 1:].tolist())}")
        found: list[int] = []
        order: list[int] = []
        keys = sums.tolist()
        for k, one in enumerate(slices):
            match = next((j for j, i in enumerate(found) if keys[i] == keys[k] and torch.equal(slices[i], one)), None)
            if match is None:
                match = len(found)
                found.append(k)
            order.append(match)
        return slices[found], order
