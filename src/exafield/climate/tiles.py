"""Grids of any size cut into overlapping tiles, for networks whose memory does not hold them whole.

Tiles go round the globe where longitudes close, and end at the poles. Of each, only the inner part is kept, so that a
pixel's class comes from one tile alone, the one in which it lies deepest: classes cannot be averaged. What a network
makes up beyond the rim of a tile (zeros, or the other side of the tile, if it takes longitudes to close) is harmless
as long as it does not reach further inwards than the overlap. Where the overlap is at least how far the network sees,
tiles give what the whole grid gives; where it is less, they differ near the seams between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from exafield.climate.grid import Grid

#: Pixels that a tile reaches beyond what is kept of it, our choice: four pixels of the Tiramisu's coarsest level.
OVERLAP = 64


@runtime_checkable
class Classifier(Protocol):
    """What :class:`exafield.climate.segmenter.Segmenter` is."""

    def classify(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Classes [lat, lon] of fields [channel, lat, lon] in their units."""
        ...


@dataclass(frozen=True, slots=True)
class Span:
    """A tile along one axis. Pixels count on beyond the last one where the axis closes.

    Args:
        start, stop: what the network sees.
        first, last: what is kept of it, `last` not included.
    """

    start: int
    stop: int
    first: int
    last: int


def check(tile: Sequence[int] | None, overlap: int) -> None:
    """Refuses tiles of which nothing could be kept.

    Raises:
        ValueError: says why, and what to do.
    """
    if overlap < 0:
        raise ValueError(f"overlap must be 0 pixels or more, got {overlap}")
    if tile is None:
        return
    if len(tile) != 2:
        raise ValueError(f"tile must be rows and columns, got {tuple(tile)}")
    if min(tile) <= 2 * overlap:
        raise ValueError(
            f"nothing could be kept of tiles of {tile[0]} x {tile[1]} pixels with an overlap of {overlap} on every "
            f"side: take tiles larger than {2 * overlap}, or a smaller overlap"
        )


def spans(count: int, size: int, overlap: int, closed: bool, multiple: int = 1) -> list[Span]:
    """Tiles of one size along an axis, evenly spread; what is kept of them makes up the axis.

    Args:
        count: pixels of the axis.
        size: of a tile, its overlap included; one that is as long as the axis sees it whole.
        overlap: pixels at least between what is kept and the end of the tile, unless that is the end of the axis.
        closed: whether the first pixel follows the last.
        multiple: tiles start at multiples of it if they can; a network that halves its grid again and again then
            sees the same pixels together as it does in the whole.
    """
    if size >= count:
        return [Span(0, count, 0, count)]
    inner = size - 2 * overlap
    length = count if closed else count - size  # from the first start to the last, or round to the first
    if length % multiple or inner < multiple:
        multiple = 1
    gaps = -(-length // (inner // multiple * multiple))
    starts = [number * length // gaps // multiple * multiple for number in range(gaps + 1)]
    middles = [(after + before + size) // 2 for before, after in pairwise(starts)]
    if closed:  # the last start is the first one, a turn later
        cuts = [middles[-1] - count, *middles]
        starts.pop()
    else:
        cuts = [0, *middles, count]
    return [
        Span(start, start + size, first, last)
        for start, first, last in zip(starts, cuts[:-1], cuts[1:], strict=True)
    ]  # fmt: skip


def classify(
    segmenter: Classifier,
    values: NDArray[np.float32],
    grid: Grid,
    tile: tuple[int, int] | None = None,
    overlap: int = OVERLAP,
) -> NDArray[np.uint8]:
    """Classes of every pixel, [latitude, longitude].

    Args:
        segmenter: that gives them.
        values: [channel, latitude, longitude], in the units of the channels.
        grid: of the values, whatever its size.
        tile: rows and columns of a tile, overlap included; None for the whole grid at once. Tiles in multiples of the
            network's own coarseness, `multiple`, fit best.
        overlap: at least how far the network sees, for the same result as from the whole grid; see above.
    Raises:
        ValueError: values are not on the grid, nothing could be kept of tiles, or they are too small for the network.
    """
    check(tile, overlap)
    if values.ndim != 3 or values.shape[1:] != grid.shape:
        raise ValueError(f"fields have shape {values.shape}, expected (channels, {grid.shape[0]}, {grid.shape[1]})")
    if tile is None or (tile[0] >= grid.shape[0] and tile[1] >= grid.shape[1]):
        return segmenter.classify(values)
    multiple = int(getattr(getattr(segmenter, "network", None), "multiple", 1))
    labels = np.empty(grid.shape, dtype=np.uint8)
    for row in spans(grid.shape[0], tile[0], overlap, False, multiple):
        for column in spans(grid.shape[1], tile[1], overlap, grid.periodic, multiple):
            seen = np.arange(column.start, column.stop) % grid.shape[1]
            guess = segmenter.classify(values[:, row.start : row.stop, seen])
            kept = guess[row.first - row.start : row.last - row.start, column.first - column.start :]
            width = column.last - column.first
            labels[row.first : row.last, np.arange(column.first, column.last) % grid.shape[1]] = kept[:, :width]
    return labels
