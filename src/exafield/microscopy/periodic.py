"""Multislice of a specimen that repeats sideways, at the cost of one repeat: an identity, not an approximation.

Take an array of M x n pixels that is M copies of a tile of n (in both dimensions), and write an index of its Fourier
transform as I = r + M g, with the residue r = 0..M-1. A transmission that repeats with the tile has frequencies at
multiples of M only, so it mixes g and never r; the propagator is diagonal. The slice step therefore splits into
independent steps on the TILE, one for each residue, with the same transmission and the propagator's entries r + M g.
The wave that entered as the single beam k0 leaves as row k0 of the scattering matrix S; a probe is a sum over beams.
Bloch's theorem, applied to the discrete equations: the result equals that of the full array to rounding.

Of each residue only the window of g that the band limit passes is kept.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float, Int, Num
from torch import Tensor

# Positions closer than this modulo the tile [A] are one: far below what any phase resolves, far above rounding.
_SAME = 1e-11


def smallest_tile(slices: Float[Tensor, "slice x y"], tolerance: float) -> tuple[int, int]:
    """The smallest tile (pixels along x, along y) whose copies are the array, in every slice.

    Args:
        slices: potentials.
        tolerance: largest difference, in units of the largest absolute value, that still counts as a copy.
    """
    largest = float(slices.abs().max()) * tolerance
    tile = []
    for dim in (1, 2):
        size = slices.shape[dim]
        for period in (n for n in range(1, size + 1) if size % n == 0):
            # A few lines tell most wrong periods apart; only the right one is looked at everywhere.
            few = slices[:1].narrow(3 - dim, 0, min(4, slices.shape[3 - dim]))
            if all(_repeats(part, dim, period, largest) for part in (few, slices)):
                tile.append(period)
                break
    return tile[0], tile[1]


def _repeats(slices: Float[Tensor, "slice x y"], dim: int, period: int, largest: float) -> bool:
    # Comparing each copy with the first keeps differences from adding up along the array.
    copies = slices.unflatten(dim, (-1, period))
    return bool((copies - copies.narrow(dim, 0, 1)).abs().max() <= largest)


def distinct_positions(
    positions: Float[Tensor, "probe 2"], edges: tuple[float, float]
) -> tuple[Int[Tensor, "distinct"], Int[Tensor, "probe"]]:
    """Which positions differ modulo the tile, and which of those each position is: equal ones have equal patterns."""
    tile = torch.tensor(edges, dtype=torch.float64)
    grid = (tile / _SAME).round().long()
    keys = ((positions.to("cpu", torch.float64) % tile) / _SAME).round().long() % grid
    groups, inverse = torch.unique(keys, dim=0, return_inverse=True)
    first = torch.full((len(groups),), len(keys)).scatter_reduce(0, inverse, torch.arange(len(keys)), "amin")
    # In the order of their first appearance.
    order = first.argsort()
    return first[order], order.argsort()[inverse]


@dataclass(frozen=True)
class Tiling:
    """An array as copies of a tile, and the window of frequencies a wave can hold.

    Args:
        tile: its pixels.
        repeats: copies along x and y.
        low: first g of the window, along x and y; the same for all residues.
        size: how many g the window holds.
    """

    tile: tuple[int, int]
    repeats: tuple[int, int]
    low: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def of(cls, held: Bool[Tensor, "x y"], tile: tuple[int, int]) -> "Tiling":
        """The tiling of an array; `held` says which frequencies a wave can hold, zero first."""
        repeats, low, size = [], [], []
        for dim, n in enumerate(tile):
            total = held.shape[dim]
            m = total // n
            passed = held.any(1 - dim).nonzero()[:, 0]
            furthest = int(torch.minimum(passed, total - passed).max())
            first, last = -((furthest + m - 1) // m), furthest // m
            whole = last - first + 1 >= n
            repeats.append(m)
            low.append(-(n // 2) if whole else first)
            size.append(n if whole else last - first + 1)
        return cls(tile, (repeats[0], repeats[1]), (low[0], low[1]), (size[0], size[1]))

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels of the whole array."""
        return self.tile[0] * self.repeats[0], self.tile[1] * self.repeats[1]

    def split(self, index: Int[Tensor, "beam 2"]) -> tuple[Int[Tensor, "beam 2"], Int[Tensor, "beam 2"]]:
        """Residue of beams of the whole array, and their place in the window."""
        many, low, tile = (torch.tensor(pair, device=index.device) for pair in (self.repeats, self.low, self.tile))
        return index % many, (torch.div(index, many, rounding_mode="floor") - low) % tile

    def number(self, residue: Int[Tensor, "beam 2"]) -> Int[Tensor, "beam"]:
        """One number for a residue: rx * repeats along y + ry."""
        return residue[:, 0] * self.repeats[1] + residue[:, 1]

    def blocks(self, whole: Num[Tensor, "x y"]) -> Num[Tensor, "residue kx gy"]:
        """An array of the whole's frequencies, zero first, sorted by residue: window along x, all g along y."""
        turned = whole.roll([-low * m for low, m in zip(self.low, self.repeats, strict=True)], (0, 1))
        (nx, ny), (mx, my) = self.tile, self.repeats
        return turned.reshape(nx, mx, ny, my)[: self.size[0]].permute(1, 3, 0, 2).reshape(mx * my, self.size[0], ny)

    def fill(
        self, out: Num[Tensor, "probe x y"], column: int, blocks: Num[Tensor, "residue probe kx ky"], centre: bool
    ) -> None:
        """Writes windows where they belong in arrays of the whole.

        Args:
            out: what lies outside the windows is left as it is.
            column: residue along x.
            blocks: windows for this and all residues along y.
            centre: zero frequency goes to the middle of `out`, instead of the first place.
        """
        (mx, my), (kx, ky), (nx, ny) = self.repeats, self.size, out.shape[1:]
        x, y = (low * m + (n // 2 if centre else 0) for low, m, n in zip(self.low, self.repeats, (nx, ny), strict=True))
        x, y = (x + column) % nx, y % ny
        parts = blocks.permute(1, 2, 3, 0)
        if x + mx * (kx - 1) < nx and y + my * ky <= ny:
            out[:, x : x + mx * (kx - 1) + 1 : mx, y : y + my * ky].unflatten(2, (ky, my)).copy_(parts)
        else:
            rows, columns = torch.arange(kx) * mx + x, torch.arange(ky * my) + y
            out[:, (rows % nx)[:, None], columns % ny] = parts.flatten(2)


def intensity(wave: Complex[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """|wave|^2, without the square root that abs() takes."""
    return wave.real.square().addcmul_(wave.imag, wave.imag)
