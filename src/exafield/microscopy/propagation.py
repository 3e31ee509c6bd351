"""The inner loop of multislice: many waves through all slices, with transforms pruned to the band limit.

A wave behind a slice holds frequencies below the band limit only: with the usual 2/3 of Nyquist, 171 of 256 rows of its
spectrum. So only those rows are transformed along y; along x all columns are. Which frequency comes first is free: a
spectrum stored from frequency `low` on is that of the wave times exp(-2 pi i low.x / n), and slices act point by point.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Complex
from torch import Tensor

from exafield.microscopy import fourier

# Complex numbers per batch of transforms, measured: on a CPU 2^16 (0.5 MB in single precision) hides the cost of calls
# and stays in a core's cache; a GPU wants it large.
_BATCH = {"cpu": 2**16, "cuda": 2**25}
# Rows whose distance is a multiple of this many bytes fall into few sets of the cache; they are set apart by _GAP
# elements. Our choice, measured: 1.6 times faster passes over columns at 256 pixels.
_STRIDE, _GAP = 1024, 8


def batch(pixels: int, device: torch.device | str) -> int:
    """How many arrays of this many pixels go through the slices together."""
    return max(1, _BATCH.get(torch.device(device).type, _BATCH["cpu"]) // pixels)


class Propagation:
    """Transmission of the slices, prepared.

    Args:
        transmission: of the slices that differ.
        order: which of them comes at each depth.
        library: see fourier.py.
    """

    def __init__(
        self, transmission: Complex[Tensor, "slice x y"], order: Sequence[int], library: fourier.Library = "torch"
    ) -> None:
        _, nx, ny = transmission.shape
        self._order = tuple(order)
        self._library = library
        self._cpu = transmission.device.type == "cpu"
        # Both transforms of a step are unscaled; on a CPU the wave lies with x contiguous when it meets the slice.
        self._transmission = transmission / (nx * ny)
        if self._cpu:
            self._transmission = self._transmission.transpose(1, 2).contiguous()
        self._tile = (nx, ny)

    def run(
        self,
        spectrum: Complex[Tensor, "row kx y"],
        propagator: Complex[Tensor, "one_or_row kx y"],
        depths: Sequence[int] | None = None,
    ) -> list[Complex[Tensor, "row kx y"]]:
        """Takes spectra through the slices: transmission first, then propagation, also after the last slice.

        Args:
            spectrum: the first frequency along x is the same as that of the propagator, and so along y; there may be
                fewer along x than the tile has pixels, if the propagator is zero for the others.
            propagator: of all rows or of each.
            depths: how many slices the wave has gone through where it is wanted, ascending; all by default.

        Returns:
            spectra at each depth.
        """
        wanted = [len(self._order)] if depths is None else list(depths)
        step = self._pruned if self._cpu else self._whole
        found = []
        for low, high in zip([0, *wanted[:-1]], wanted, strict=True):
            if high > low:
                spectrum = step(spectrum, propagator, self._order[low:high])
            found.append(spectrum)
        return found

    def _whole(
        self,
        spectrum: Complex[Tensor, "row kx y"],
        propagator: Complex[Tensor, "one_or_row kx y"],
        order: Sequence[int],
    ) -> Complex[Tensor, "row kx y"]:
        """On a GPU: two-dimensional transforms of the whole tile, the fewest launches."""
        kept = spectrum.shape[1]
        more = (0, 0, 0, self._tile[0] - kept)
        spectrum, propagator = torch.nn.functional.pad(spectrum, more), torch.nn.functional.pad(propagator, more)
        for k in order:
            wave = torch.fft.ifft2(spectrum, norm="forward").mul_(self._transmission[k])
            spectrum = torch.fft.fft2(wave).mul_(propagator)
        return spectrum[:, :kept]

    def _pruned(
        self,
        spectrum: Complex[Tensor, "row kx y"],
        propagator: Complex[Tensor, "one_or_row kx y"],
        order: Sequence[int],
    ) -> Complex[Tensor, "row kx y"]:
        """On a CPU: one-dimensional transforms; each reads along its dimension and writes contiguously, so a pass
        along the other dimension turns the array over for nothing."""
        rows, kept, ny = spectrum.shape
        nx = self._tile[0]
        library = self._library
        padded = _spaced(spectrum, (rows, nx, ny)).zero_()
        turned = _spaced(spectrum, (rows, ny, kept)) if _clash(nx, spectrum) else None
        for k in order:
            padded[:, :kept] = fourier.backward(spectrum, library)
            wave = fourier.backward(padded.transpose(1, 2), library).mul_(self._transmission[k])
            half = fourier.forward(wave, library)[:, :, :kept]
            if turned is not None:
                half = turned.copy_(half)
            spectrum = fourier.forward(half.transpose(1, 2), library).mul_(propagator)
        return spectrum


def _clash(length: int, like: Tensor) -> bool:
    return length * like.element_size() % _STRIDE == 0


def _spaced(like: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """An empty array whose rows do not all fall on the same lines of the cache."""
    length = shape[2] + (_GAP if _clash(shape[2], like) else 0)
    return like.new_empty(*shape[:2], length)[:, :, : shape[2]]
