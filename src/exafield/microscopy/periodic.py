"""Multislice of a specimen that repeats sideways, at the cost of one repeat: an identity, not an approximation.

Take an array of M x n pixels that is M copies of a tile of n (in both dimensions), and write an index of its Fourier
transform as I = r + M g, with the residue r = 0..M-1 and g = 0..n-1. A transmission that repeats with the tile has
frequencies at multiples of M only, so it mixes g and never r; the propagator is diagonal. The slice step therefore
splits into independent steps on the TILE, one for each residue, with the same transmission and the propagator's entries
r, r + M, ... The wave that entered as the single beam k0 leaves as row k0 of the scattering matrix S; a probe is a sum
over beams.
Bloch's theorem, applied to the discrete equations: the result equals that of the full array to rounding.
"""

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

# Positions closer than this modulo the tile [A] are one: far below what any phase resolves, far above rounding.
_SAME = 1e-11


def smallest_tile(slices: Float[Tensor, "slice x y"], tolerance: float) -> tuple[int, int]:
    """The smallest tile (pixels along x, along y) whose copies are the array, in every slice.

    Args:
        slices: potentials.
        tolerance: largest difference, in units of the largest absolute value, that still counts as a copy.
    """
    largest = slices.abs().max() * tolerance
    tile = []
    for dim in (1, 2):
        size = slices.shape[dim]
        for period in (n for n in range(1, size + 1) if size % n == 0):
            # Comparing each copy with the first keeps differences from adding up along the array.
            copies = slices.unflatten(dim, (size // period, period))
            if bool((copies - copies.narrow(dim, 0, 1)).abs().max() <= largest):
                tile.append(period)
                break
    return tile[0], tile[1]


def distinct_positions(
    positions: Float[Tensor, "probe 2"], edges: Float[Tensor, "2"]
) -> tuple[Int[Tensor, "distinct"], Int[Tensor, "probe"]]:
    """Which positions differ modulo the tile, and which of those each position is: equal ones have equal patterns."""
    grid = (edges / _SAME).round().long()
    keys = ((positions % edges) / _SAME).round().long() % grid
    found: dict[tuple[int, ...], int] = {}
    inverse = [found.setdefault(tuple(key), len(found)) for key in keys.tolist()]
    first = {group: k for k, group in reversed(list(enumerate(inverse)))}
    return torch.tensor([first[group] for group in range(len(found))]), torch.tensor(inverse)


def propagate(
    spectrum: Complex[Tensor, "row x y"],
    transmission: Complex[Tensor, "slice x y"],
    order: list[int],
    propagator: Complex[Tensor, "one_or_row x y"],
) -> Complex[Tensor, "row x y"]:
    """Takes spectra through the slices: transmission first, then propagation, also after the last slice."""
    for k in order:
        spectrum = torch.fft.fft2(torch.fft.ifft2(spectrum).mul_(transmission[k])).mul_(propagator)
    return spectrum


def intensity(wave: Complex[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """|wave|^2, without the square root that abs() takes."""
    return wave.real.square().addcmul_(wave.imag, wave.imag)


def place(
    amplitude: Complex[Tensor, "row beam"], beams: Int[Tensor, "beam 2"], shape: tuple[int, int]
) -> Complex[Tensor, "row x y"]:
    """Spectra on the tile that are zero except at the beams."""
    spectrum = amplitude.new_zeros(len(amplitude), *shape)
    spectrum[:, beams[:, 0], beams[:, 1]] = amplitude
    return spectrum


def scattering_matrix(
    transmission: Complex[Tensor, "slice x y"],
    order: list[int],
    propagator: Complex[Tensor, "one_or_row x y"],
    beams: Int[Tensor, "beam 2"],
    step: int,
) -> Complex[Tensor, "beam x y"]:
    """Exit spectrum of each beam, all of unit amplitude at the entrance.

    Args:
        transmission: of one tile.
        order: which transmission comes at each depth.
        propagator: of the residue class, or of each beam's own residue class.
        beams: index of each beam on the tile.
        step: beams to transform together.
    """
    nx, ny = propagator.shape[1:]
    matrix = transmission.new_empty(len(beams), nx, ny)
    for low in range(0, len(beams), step):
        part = beams[low : low + step]
        start = transmission.new_zeros(len(part), nx, ny)
        start[torch.arange(len(part), device=start.device), part[:, 0], part[:, 1]] = 1
        block = propagator if len(propagator) == 1 else propagator[low : low + step]
        matrix[low : low + step] = propagate(start, transmission, order, block)
    return matrix
