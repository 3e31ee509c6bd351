"""Multislice simulation of convergent-beam diffraction.

Conventions. Waves are exp(+2 pi i k.x); pixel (i, j) of an array is the point (i dx, j dy). The transmission of a slice
is exp(+i sigma V); it acts first, then the wave travels the slice's thickness, after the last slice as well. The probe
at x0 is sum_k A(k) exp(-i chi(k)) exp(2 pi i k.(x - x0)) with chi = pi lambda k^2 (Cs lambda^2 k^2 / 2 - defocus): a
positive defocus (underfocus) puts the focus that far below the entrance face. Patterns are |psi(k)|^2 on the array's
reciprocal grid, zero frequency at (nx // 2, ny // 2), divided by the incident sum: their sum is the share of the
electrons kept inside the band limit.
Kirkland, Advanced Computing in Electron Microscopy, 2nd ed. (2010), chapter 6.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from exafield.microscopy import periodic
from exafield.microscopy.electron import interaction, wavelength

# Complex numbers per batch of transforms: a batch of this size stays in a CPU core's cache, a GPU wants it large.
_BATCH = {"cpu": 2**17, "cuda": 2**25}
# Slices repeat if they differ by less than this part of their largest value; our choice, ten times the rounding.
_REPEAT = {torch.complex64: 1e-6, torch.complex128: 1e-13}


@dataclass(frozen=True, kw_only=True)
class Multislice:
    """The microscope and the grid.

    Args:
        energy: kinetic energy of the electrons [eV].
        sampling: pixel size (dx, dy) [A].
        slice_thickness: distance travelled after each slice [A].
        convergence_angle: half angle of the probe-forming aperture [rad].
        defocus: distance of the focus below the entrance face [A].
        cs: spherical aberration [A].
        aperture: "hard" passes k <= angle / wavelength; "soft" has a linear edge of one reciprocal pixel about it.
        band_limit: cutoff of transmission and propagator, in units of the coarser axis' Nyquist frequency, or None.
        taper: width of the raised-cosine edge that ends at the cutoff, in units of 1 / max(dx, dy).
        dtype: torch.complex64 or torch.complex128.
        device: where the work is done.
    """

    energy: float
    sampling: tuple[float, float]
    slice_thickness: float
    convergence_angle: float
    defocus: float = 0.0
    cs: float = 0.0
    aperture: Literal["hard", "soft"] = "hard"
    band_limit: float | None = 2 / 3
    taper: float = 0.01
    dtype: torch.dtype = torch.complex64
    device: torch.device | str = field(default="cpu")

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
        if not (math.isfinite(self.defocus) and math.isfinite(self.cs)):
            raise ValueError(f"defocus and cs must be finite lengths [A], got {self.defocus} and {self.cs}")
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
        if self.dtype not in _REPEAT:
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
        chi = math.pi * self.wavelength * square * (0.5 * self.cs * self.wavelength**2 * square - self.defocus)
        return torch.polar(amplitude, -chi).to(self.device, self.dtype)

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
        self._check(slices, positions)
        return self._plain(*self._distinct(slices), positions)

    def scan(
        self, slices: Float[Tensor, "slice x y"], positions: Float[Tensor, "probe 2"]
    ) -> Float[Tensor, "probe kx ky"]:
        """Diffraction pattern for each probe position.

        Where all slices repeat within the array, the exact periodic path is taken by itself (see periodic.py): it works
        on one tile and simulates each distinct position once. Otherwise the probes go through the array in batches.

        Args:
            slices: projected potentials in the order the beam meets them [V A].
            positions: probe positions [A], anywhere; the array is periodic.

        Returns:
            intensities, zero frequency in the middle, divided by the incident sum.

        Raises:
            ValueError: shapes do not fit, a potential or position is not finite, or the aperture is under-sampled.
        """
        self._check(slices, positions)
        different, order = self._distinct(slices)
        shape = (slices.shape[1], slices.shape[2])
        tile = periodic.smallest_tile(different, _REPEAT[self.dtype])
        if tile == shape:
            return self._plain_scan(different, order, positions)
        edges = torch.tensor([n * d for n, d in zip(tile, self.sampling, strict=True)], dtype=torch.float64)
        first, inverse = periodic.distinct_positions(positions.to("cpu", torch.float64), edges)
        patterns = self._periodic_scan(different[:, : tile[0], : tile[1]], order, shape, positions.cpu()[first])
        return patterns if torch.equal(inverse, torch.arange(len(positions))) else patterns[inverse.to(patterns.device)]

    def batch(self, pixels: int) -> int:
        """How many arrays of this many pixels are transformed together."""
        return max(1, _BATCH.get(torch.device(self.device).type, _BATCH["cpu"]) // pixels)

    def _check(self, slices: Float[Tensor, "slice x y"], positions: Float[Tensor, "probe 2"]) -> None:
        for name, values in (("slice", slices), ("probe position", positions)):
            if len(values) == 0:
                raise ValueError(f"there is no {name}")
            bad = (~torch.isfinite(values)).nonzero()
            if len(bad):
                raise ValueError(f"{name} {int(bad[0, 0])} is not finite at index {tuple(bad[0, 1:].tolist())}")

    def _distinct(self, slices: Float[Tensor, "slice x y"]) -> tuple[Float[Tensor, "different x y"], list[int]]:
        """The slices that differ, and which of them comes at each depth: a crystal needs few transmissions."""
        found: list[int] = []
        order: list[int] = []
        sums = slices.sum((1, 2)).tolist()  # equal slices have equal sums: spares most comparisons
        for k, one in enumerate(slices):
            match = next((j for j, i in enumerate(found) if sums[i] == sums[k] and torch.equal(slices[i], one)), None)
            if match is None:
                match = len(found)
                found.append(k)
            order.append(match)
        return slices[found], order

    def _plain(
        self, different: Float[Tensor, "slice x y"], order: list[int], positions: Float[Tensor, "probe 2"]
    ) -> Complex[Tensor, "probe x y"]:
        shape = (different.shape[1], different.shape[2])
        start = self.probe(shape, positions)
        return periodic.propagate(start, self.transmission(different), order, self.propagator(shape)[None])

    def _plain_scan(
        self, different: Float[Tensor, "slice x y"], order: list[int], positions: Float[Tensor, "probe 2"]
    ) -> Float[Tensor, "probe kx ky"]:
        _, nx, ny = different.shape
        patterns = torch.empty(len(positions), nx, ny, dtype=self._real, device=self.device)
        step = self.batch(nx * ny)
        for low in range(0, len(positions), step):
            wave = self._plain(different, order, positions[low : low + step])
            patterns[low : low + step] = torch.fft.fftshift(periodic.intensity(wave), dim=(1, 2))
        return patterns

    def _periodic_scan(
        self,
        different: Float[Tensor, "slice tx ty"],
        order: list[int],
        shape: tuple[int, int],
        positions: Float[Tensor, "probe 2"],
    ) -> Float[Tensor, "probe kx ky"]:
        _, nx, ny = different.shape
        repeats = (shape[0] // nx, shape[1] // ny)
        pupil = self.pupil(shape)
        ramp_x, ramp_y = self.ramps(shape, positions)
        propagator = self.propagator(shape)
        # A potential that repeats has frequencies at multiples of the repeats only, so the tile's own mask serves.
        transmission = self.transmission(different)
        patterns = torch.zeros(len(positions), *shape, dtype=self._real, device=self.device)
        for rx in range(repeats[0]):
            for ry in range(repeats[1]):
                block = (slice(rx, None, repeats[0]), slice(ry, None, repeats[1]))
                beams = pupil[block].abs().nonzero()
                if len(beams) == 0:
                    continue
                gx, gy = beams.unbind(1)
                amplitude = pupil[block][gx, gy] * ramp_x[:, block[0]][:, gx] * ramp_y[:, block[1]][:, gy]
                # With zero frequency in the middle the class begins at another residue, and turned by some steps.
                (turn_x, to_x), (turn_y, to_y) = (
                    divmod(r + n // 2, m) for r, n, m in zip((rx, ry), shape, repeats, strict=True)
                )
                waves = self._residue(transmission, order, propagator[block], beams, amplitude, (turn_x, turn_y))
                patterns[:, to_x :: repeats[0], to_y :: repeats[1]] = periodic.intensity(waves)
        return patterns

    def _residue(
        self,
        transmission: Complex[Tensor, "slice tx ty"],
        order: list[int],
        propagator: Complex[Tensor, "tx ty"],
        beams: Int[Tensor, "beam 2"],
        amplitude: Complex[Tensor, "probe beam"],
        turn: tuple[int, int],
    ) -> Complex[Tensor, "probe tx ty"]:
        """Exit spectra of one residue class, rolled by `turn`.

        By the scattering matrix, or probe by probe if there are fewer probes than beams.
        """
        nx, ny = propagator.shape
        step = self.batch(nx * ny)
        if len(amplitude) <= len(beams):
            start = periodic.place(amplitude, beams, (nx, ny))
            parts = [periodic.propagate(part, transmission, order, propagator[None]) for part in start.split(step)]
            return torch.cat(parts).roll(turn, (1, 2))
        matrix = periodic.scattering_matrix(transmission, order, propagator[None], beams, step).roll(turn, (1, 2))
        return (amplitude @ matrix.reshape(len(beams), nx * ny)).reshape(len(amplitude), nx, ny)
