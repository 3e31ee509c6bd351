"""How a scan is computed: on the full array, probe by probe on one tile, or by the tile's scattering matrix.

All three give the same patterns, to rounding. What they cost is the number of waves that go through the slices:

    plain    one array for each distinct position
    direct   one tile for each distinct position and each residue class (see periodic.py); plain is this with one tile
    matrix   one tile for each beam of the aperture, or each orbit of beams (see symmetry.py), whatever the positions

The fewest waves win. A matrix costs memory instead: one spectrum for each beam of the aperture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from exafield.microscopy import symmetry
from exafield.microscopy.periodic import Tiling, intensity
from exafield.microscopy.propagation import Propagation, batch

if TYPE_CHECKING:
    from exafield.microscopy.multislice import Multislice

# Largest scattering matrix [bytes], our choice: beyond it the probes go one by one.
_LARGEST_MATRIX = 2**30
# Pixels of patterns that are assembled together, measured: 64 patterns of 256 x 256 on a CPU.
_TOGETHER = {"cpu": 2**22, "cuda": 2**26}


@dataclass(frozen=True)
class ScanPath:
    """What a scan does.

    Args:
        kind: "plain", "direct" or "matrix", see the head of this file.
        tile: pixels of the smallest tile.
        repeats: copies of it in the array.
        distinct: positions that differ modulo the tile.
        beams: in the aperture.
        operations: turns and mirrors that all slices have, the identity included; 1 where the path has no use for them.
        waves: how many waves go through the slices, each on one tile.
    """

    kind: Literal["plain", "direct", "matrix"]
    tile: tuple[int, int]
    repeats: tuple[int, int]
    distinct: int
    beams: int
    operations: int
    waves: int

    def __str__(self) -> str:
        where = f"{self.waves} waves on {self.tile[0]} x {self.tile[1]} pixels"
        if self.kind == "plain":
            return f"plain multislice: {self.distinct} distinct positions, {where}"
        tiles = f"of an array of {self.repeats[0]} x {self.repeats[1]} tiles"
        if self.kind == "direct":
            return f"periodic path, probe by probe: {self.distinct} distinct positions, {where} {tiles}"
        return (
            f"scattering matrix of {self.beams} beams, {self.operations} symmetry operations: {where} {tiles}; "
            f"{self.distinct} distinct positions"
        )


class Scanner:
    """Makes the patterns of any positions over given slices.

    Args:
        multislice: the microscope.
        slices: one tile of the slices that differ [V A].
        order: which of them comes at each depth.
        repeats: tiles in the array.
        distinct: number of distinct positions to come; decides on the path.
        depths: numbers of slices behind which patterns are wanted.
        tolerance: of the symmetry check, see `symmetry.operations`.
        path: takes this path rather than the cheapest one.
    """

    def __init__(
        self,
        multislice: "Multislice",
        slices: Float[Tensor, "slice x y"],
        order: Sequence[int],
        repeats: tuple[int, int],
        distinct: int,
        depths: Sequence[int],
        tolerance: float,
        path: Literal["plain", "direct", "matrix"] | None = None,
    ) -> None:
        tile = (slices.shape[1], slices.shape[2])
        self._multislice = multislice
        self._depths = list(depths)
        shape = (tile[0] * repeats[0], tile[1] * repeats[1])
        self._pupil = multislice.pupil(shape)
        # A soft aperture may reach past the band limit: such beams act in the first slice.
        self.tiling = Tiling.of((multislice.mask(shape) > 0) | (self._pupil.cpu() != 0), tile)
        index = self._pupil.cpu().abs().nonzero()
        size = torch.tensor(shape)
        # Signed frequencies, sorted by residue class. Each class gets a row of slots for its beams, some of them empty.
        self._beams = torch.where(index > (size - 1) // 2, index - size, index)
        residue, place = self.tiling.split(self._beams)
        number = self.tiling.number(residue)
        sort = number.argsort(stable=True)
        self._beams, self._place = self._beams[sort], place[sort]
        self._classes, self._row, counts = torch.unique(number[sort], return_inverse=True, return_counts=True)
        self._slot = torch.arange(len(sort)) - (counts.cumsum(0) - counts)[self._row]
        self._slots = int(counts.max())

        self._orbits = symmetry.Orbits(torch.arange(len(sort)), torch.arange(len(sort)), torch.zeros_like(sort))
        self._operations = [symmetry.Operation(((1, 0), (0, 1)), (0, 0))]
        direct = len(self._classes) * distinct
        window = self.tiling.size[0] * self.tiling.size[1]
        room = len(sort) * window * multislice.dtype.itemsize * len(self._depths) <= _LARGEST_MATRIX
        if path == "matrix" or (path is None and room and 8 * direct > len(sort)):
            found = symmetry.operations(slices, multislice.sampling, repeats, tolerance)
            self._orbits, self._operations = symmetry.orbits(self._beams, found, shape)
        waves = len(self._orbits.first)
        kind = path or ("matrix" if room and waves < direct else "plain" if repeats == (1, 1) else "direct")
        self.path = ScanPath(
            kind,
            tile,
            repeats,
            distinct,
            len(sort),
            len(self._operations) if kind == "matrix" else 1,
            waves if kind == "matrix" else direct,
        )
        self._propagation = Propagation(multislice.transmission(slices), order, multislice.fourier)
        self._propagators = self.tiling.blocks(multislice.propagator(shape))

    def fill(
        self, out: Float[Tensor, "depth probe x y"], positions: Float[Tensor, "probe 2"]
    ) -> Float[Tensor, "depth probe"]:
        """Writes the patterns of positions [A] into `out`, zero frequency in the middle; `out` must hold zeros.

        Returns:
            their sums.
        """
        sums = out.new_zeros(out.shape[:2])
        several = max(1, _TOGETHER.get(out.device.type, _TOGETHER["cpu"]) // out[0, 0].numel())
        for low in range(0, len(positions), several):
            here = slice(low, low + several)
            amplitude = self._amplitudes(positions[here])
            waves = None if self.path.kind == "matrix" else self._direct(amplitude)
            for column, classes in self._columns:
                for depth in range(len(self._depths)):
                    if waves is None:
                        share = self._assembled(self._planes[depth][classes], amplitude[classes])
                    else:
                        share = intensity(waves[depth][classes])
                    sums[depth, here] += share.sum((0, 2, 3))
                    self.tiling.fill(out[depth, here], column, self._filled(share, classes), centre=True)
        return sums

    def waves(self, positions: Float[Tensor, "probe 2"]) -> Complex[Tensor, "probe x y"]:
        """Exit spectra at the last depth, zero frequency first, probe by probe."""
        out = self._pupil.new_zeros(len(positions), *self.tiling.shape)
        several = batch(out[0].numel(), out.device)
        for low in range(0, len(positions), several):
            waves = self._direct(self._amplitudes(positions[low : low + several]))[-1]
            for column, classes in self._columns:
                self.tiling.fill(out[low : low + several], column, self._filled(waves[classes], classes), centre=False)
        return out

    @cached_property
    def _columns(self) -> list[tuple[int, slice]]:
        """Residues along x that have beams, and which classes those are."""
        along_x = self._classes // self.tiling.repeats[1]
        found, counts = torch.unique_consecutive(along_x, return_counts=True)
        ends = counts.cumsum(0).tolist()
        return [(x, slice(end - n, end)) for x, end, n in zip(found.tolist(), ends, counts.tolist(), strict=True)]

    def _filled(self, blocks: Tensor, classes: slice) -> Tensor:
        """With zeros for the residues along y that hold no beam of the aperture."""
        many = self.tiling.repeats[1]
        if len(blocks) == many:
            return blocks
        whole = blocks.new_zeros(many, *blocks.shape[1:])
        whole[self._classes[classes] % many] = blocks
        return whole

    @property
    def beams(self) -> tuple[Int[Tensor, "beam 2"], Complex[Tensor, "beam"]]:
        """Signed frequencies of the beams in the aperture [1 / array], and A(k) exp(-i chi(k)) of each."""
        x, y = self._beams.to(self._pupil.device).unbind(1)
        return self._beams, self._pupil[x, y]

    def matrix(self) -> list[Complex[Tensor, "beam kx ky"]]:
        """Exit spectrum of each beam, at each depth, all of unit amplitude at the entrance."""
        first = self._orbits.first
        numbers = self._classes[self._row]
        (kx, ky), ny = self.tiling.size, self.tiling.tile[1]
        found = [self._pupil.new_empty(len(first), kx, ky) for _ in self._depths]
        step = batch(self.tiling.tile[0] * ny, self._pupil.device)
        for low in range(0, len(first), step):
            beams = first[low : low + step]
            start = self._pupil.new_zeros(len(beams), kx, ny)
            start[torch.arange(len(beams)), self._place[beams, 0], self._place[beams, 1]] = 1
            spectra = self._propagation.run(start, self._propagators[numbers[beams]], self._depths)
            for rows, spectrum in zip(found, spectra, strict=True):
                rows[low : low + step] = spectrum[:, :, :ky]
        if len(self._operations) == 1:
            return found
        return [symmetry.expand(rows, self._beams, self._orbits, self._operations, self.tiling) for rows in found]

    @cached_property
    def _planes(self) -> list[Float[Tensor, "class two_slots k"]]:
        return [self._in_planes(matrix) for matrix in self.matrix()]

    def _in_planes(self, matrix: Complex[Tensor, "beam kx ky"]) -> Float[Tensor, "class two_slots k"]:
        """Real above imaginary parts: a product of real matrices then gives both parts of the wave, contiguous."""
        flat = matrix.flatten(1)
        planes = flat.real.new_zeros(len(self._classes), 2 * self._slots, flat.shape[1])
        planes[self._row, self._slot] = flat.real
        planes[self._row, self._slots + self._slot] = flat.imag
        return planes

    def _amplitudes(self, positions: Float[Tensor, "probe 2"]) -> Complex[Tensor, "class probe slot"]:
        """A(k) exp(-i chi(k)) exp(-2 pi i k.x0) of each beam."""
        ramp_x, ramp_y = self._multislice.ramps(self.tiling.shape, positions)
        x, y, weight = self._slotted
        amplitude = ramp_x[:, x].mul_(ramp_y[:, y]).mul_(weight)
        return amplitude.reshape(-1, len(self._classes), self._slots).transpose(0, 1)

    @cached_property
    def _slotted(self) -> tuple[Int[Tensor, "slot"], Int[Tensor, "slot"], Complex[Tensor, "slot"]]:
        """Frequency and A(k) exp(-i chi(k)) in the slots of all classes; nothing in the empty ones."""
        beams, weight = self.beams
        place = self._row * self._slots + self._slot
        index = torch.zeros(len(self._classes) * self._slots, 2, dtype=torch.long)
        index[place] = beams
        weights = weight.new_zeros(len(index))
        weights[place] = weight
        x, y = index.to(weight.device).unbind(1)
        return x, y, weights

    def _assembled(
        self, planes: Float[Tensor, "class two_slots k"], amplitude: Complex[Tensor, "class probe slot"]
    ) -> Float[Tensor, "class probe kx ky"]:
        """Intensities of probes as sums over the beams."""
        re, im = amplitude.real, amplitude.imag
        parts = torch.bmm(torch.cat([torch.cat([re, -im], 2), torch.cat([im, re], 2)], 1), planes)
        real, imaginary = parts.chunk(2, 1)
        return real.square_().addcmul_(imaginary, imaginary).reshape(len(planes), -1, *self.tiling.size)

    def _direct(self, amplitude: Complex[Tensor, "class probe slot"]) -> list[Complex[Tensor, "class probe kx ky"]]:
        """Exit spectra of probes, each class of each probe a wave on the tile."""
        classes, probes, _ = amplitude.shape
        (kx, ky), (nx, ny) = self.tiling.size, self.tiling.tile
        found = [amplitude.new_empty(classes * probes, kx, ky) for _ in self._depths]
        step = batch(nx * ny, amplitude.device)
        for low in range(0, classes * probes, step):
            here = torch.arange(low, min(low + step, classes * probes))
            row, probe = here // probes, here % probes
            start = amplitude.new_zeros(len(here), kx, ny)
            beams, wave = self._members(row)
            start[wave, self._place[beams, 0], self._place[beams, 1]] = amplitude[
                self._row[beams], probe[wave], self._slot[beams]
            ]
            spectra = self._propagation.run(start, self._propagators[self._classes[row]], self._depths)
            for rows, spectrum in zip(found, spectra, strict=True):
                rows[low : low + step] = spectrum[:, :, :ky]
        return [rows.unflatten(0, (classes, probes)) for rows in found]

    def _members(self, row: Int[Tensor, "wave"]) -> tuple[Int[Tensor, "pair"], Int[Tensor, "pair"]]:
        """Beams of the class of each wave: pairs of (beam, wave)."""
        wave, beams = (row[:, None] == self._row[None]).nonzero().T
        return beams, wave
