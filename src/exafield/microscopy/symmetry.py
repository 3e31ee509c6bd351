"""Symmetry of slices, and what it spares: of beams that a symmetry maps on each other one is propagated.

An operation (R, t) turns and mirrors pixel indices, x -> R x + t. If every slice has it, about the same point, then, as
the propagator depends on |k| only,

    S(R k, R k0) = S(k, k0) exp(-2 pi i R (k - k0).t / n)

for the scattering matrix on a tile of n pixels (k in reciprocal pixels of the tile). With all turns and mirrors of a
square that spares seven of eight beams. A screw axis along the beam does not count: no slice has it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from exafield.microscopy.periodic import Tiling

Matrix = tuple[tuple[int, int], tuple[int, int]]
_UPRIGHT: tuple[Matrix, ...] = tuple(((a, 0), (0, b)) for a in (1, -1) for b in (1, -1))
_TURNED: tuple[Matrix, ...] = tuple(((0, a), (b, 0)) for a in (1, -1) for b in (1, -1))


@dataclass(frozen=True)
class Operation:
    """x -> turn x + shift, in pixels of the tile."""

    turn: Matrix
    shift: tuple[int, int]

    @property
    def back(self) -> Matrix:
        """The inverse turn, which is the transposed one."""
        (a, b), (c, d) = self.turn
        return (a, c), (b, d)


def operations(
    slices: Float[Tensor, "slice x y"], sampling: tuple[float, float], repeats: tuple[int, int], tolerance: float
) -> list[Operation]:
    """The operations that leave every slice of one tile as it is, the identity first.

    Args:
        slices: potentials of one tile.
        sampling: pixel size [A].
        repeats: copies of the tile in the array.
        tolerance: largest difference, in units of the largest absolute value.
    """
    _, nx, ny = slices.shape
    square = nx == ny and repeats[0] == repeats[1] and abs(sampling[0] / sampling[1] - 1) < 1e-9
    spectrum = torch.fft.rfft2(slices)
    largest = float(slices.abs().max()) * tolerance
    found = [Operation(_UPRIGHT[0], (0, 0))]
    for turn in _UPRIGHT[1:] + (_TURNED if square else ()):
        turned = _turned(slices, turn)
        # Where the slice and its image fit best: the peak of their correlation.
        fit = torch.fft.irfft2((spectrum * torch.fft.rfft2(turned).conj()).sum(0), s=(nx, ny))
        shift = divmod(int(fit.argmax()), ny)
        if bool((turned.roll(shift, (1, 2)) - slices).abs().max() <= largest):
            found.append(Operation(turn, shift))
    return found


def _turned(slices: Float[Tensor, "slice x y"], turn: Matrix) -> Float[Tensor, "slice x2 y2"]:
    """The slices at turn^-1 x."""
    (a, b), (c, d) = turn
    image = slices if a else slices.transpose(1, 2)
    # Mirrors keep pixel 0 where it is. Of the inverse of an off-diagonal turn the signs change places with the axes.
    for dim, sign in ((1, a + b), (2, c + d)):
        if sign < 0:
            image = image.flip(dim).roll(1, dim)
    return image


@dataclass(frozen=True, eq=False)
class Orbits:
    """Beams that stand for all.

    Args:
        first: the beams that are propagated.
        source: for each beam, which of `first` gives it.
        operation: for each beam, the operation that takes that one to it.
    """

    first: Int[Tensor, "first"]
    source: Int[Tensor, "beam"]
    operation: Int[Tensor, "beam"]


def orbits(
    beams: Int[Tensor, "beam 2"], found: list[Operation], shape: tuple[int, int]
) -> tuple[Orbits, list[Operation]]:
    """Beams sorted into orbits, and the operations that were of use: those that keep the set of beams."""
    size = torch.tensor(shape)
    lookup = torch.full(shape, -1)
    lookup[tuple((beams % size).T)] = torch.arange(len(beams))
    images, used = [], []
    for operation in found:
        # Where each beam comes from: the beam that the operation maps on it.
        before = lookup[tuple(((beams @ torch.tensor(operation.back).T) % size).T)]
        if bool((before >= 0).all()):
            images.append(before)
            used.append(operation)
    lowest = torch.stack(images).min(0)
    first = torch.unique(lowest.values)
    return Orbits(first, torch.searchsorted(first, lowest.values), lowest.indices), used


def expand(
    rows: Complex[Tensor, "first kx ky"],
    beams: Int[Tensor, "beam 2"],
    sorted_beams: Orbits,
    used: list[Operation],
    tiling: Tiling,
) -> Complex[Tensor, "beam kx ky"]:
    """The scattering matrix of all beams from that of the first of each orbit."""
    residue, place = tiling.split(beams)
    out = rows.new_empty(len(beams), *tiling.size)
    zero = residue == 0
    for k, operation in enumerate(used):
        for at_x in (False, True):
            for at_y in (False, True):
                chosen = ((sorted_beams.operation == k) & (zero[:, 0] == at_x) & (zero[:, 1] == at_y)).nonzero()[:, 0]
                if len(chosen) == 0:
                    continue
                part = rows[sorted_beams.source[chosen]]
                if operation.turn[0][0] == 0:
                    part = part.transpose(1, 2)
                for dim, at_zero in ((0, at_x), (1, at_y)):
                    if sum(operation.turn[dim]) < 0:
                        part = _mirrored(part, dim, at_zero, tiling)
                for dim, shift in enumerate(operation.shift):
                    if shift:
                        n = tiling.tile[dim]
                        steps = torch.arange(tiling.size[dim]) - place[chosen, dim, None]
                        turns = (steps * shift % n).double() / n
                        phase = torch.polar(torch.ones_like(turns), -2 * torch.pi * turns).to(rows)
                        part = part * (phase[:, :, None] if dim == 0 else phase[:, None, :])
                out[chosen] = part
    return out


def _mirrored(
    part: Complex[Tensor, "row kx ky"], dim: int, at_zero: bool, tiling: Tiling
) -> Complex[Tensor, "row kx ky"]:
    """Rows at minus the frequency, along one dimension: -(r + M g) is in residue M - r, one step lower unless r = 0."""
    low, size, n = tiling.low[dim], tiling.size[dim], tiling.tile[dim]
    wanted = -(low + torch.arange(size, device=part.device)) - (0 if at_zero else 1)
    place = (wanted - low) % n
    mirrored = part.index_select(dim + 1, place.clamp(max=size - 1))
    # What the mirror takes from outside the window is outside the band limit: nothing.
    return mirrored.mul_((place < size).to(mirrored).unflatten(0, (-1, 1) if dim == 0 else (1, -1)))
