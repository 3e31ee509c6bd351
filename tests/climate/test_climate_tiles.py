"""Tiles of any size make up any grid, and give what the whole grid gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

for _package in ("xarray", "h5py", "cftime"):
    pytest.importorskip(_package)

from climate_applied import REACH, Stack  # noqa: E402
from exafield.climate import tiles  # noqa: E402
from exafield.climate.grid import Grid  # noqa: E402
from exafield.climate.segmenter import Segmenter  # noqa: E402
from exafield.climate.tiramisu import Tiramisu  # noqa: E402


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_tiles_keep_each_pixel_once_and_deep(data: st.DataObject) -> None:
    count, overlap = data.draw(st.integers(2, 90)), data.draw(st.integers(0, 9))
    size = data.draw(st.integers(2 * overlap + 1, 60))
    closed, multiple = data.draw(st.booleans()), data.draw(st.sampled_from([1, 2, 4]))
    spans = tiles.spans(count, size, overlap, closed, multiple)
    kept = np.concatenate([np.arange(span.first, span.last) % count for span in spans])
    assert sorted(kept.tolist()) == list(range(count))
    if size >= count:
        assert spans == [tiles.Span(0, count, 0, count)]
        return

    def depth(span: tiles.Span, pixel: int) -> float:
        """Distance from the ends of a tile that are not those of the axis; negative outside."""
        if closed:
            pixel = span.start + (pixel - span.start) % count
        west = np.inf if span.start == 0 and not closed else pixel - span.start
        east = np.inf if span.stop == count and not closed else span.stop - 1 - pixel
        return min(west, east) if span.start <= pixel < span.stop else -1

    for span in spans:
        assert span.stop - span.start == size
        assert closed or 0 <= span.start < span.stop <= count
        for pixel in range(span.first, span.last):
            assert depth(span, pixel) >= overlap
            assert depth(span, pixel) >= max(depth(other, pixel % count) for other in spans) - 1
    length = count if closed else count - size
    if length % multiple == 0 and size - 2 * overlap >= multiple:
        assert all(span.start % multiple == 0 for span in spans)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 30), st.integers(2, 40), st.integers(0, 3), st.integers(1, 20), st.integers(1, 20), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_tiles_give_what_the_whole_gives(
    rows: int, columns: int, more: int, high: int, wide: int, globe: bool, seed: int
) -> None:
    # Longitudes that do not close, otherwise; the network takes them to close all the same in the first case, also in
    # tiles narrower than the globe.
    grid = Grid.whole(rows, columns) if globe else Grid(np.linspace(10, 60, rows), np.linspace(0, 80, columns))
    assert grid.periodic == globe or columns < 4
    segmenter = Segmenter(Stack(2, grid.periodic), ("a", "b"))
    values = np.random.default_rng(seed).integers(-3, 4, (2, rows, columns)).astype(np.float32)
    whole = segmenter.classify(values)
    overlap = REACH + more
    tile = (2 * overlap + high, 2 * overlap + wide)
    np.testing.assert_array_equal(tiles.classify(segmenter, values, grid, tile, overlap), whole)
    np.testing.assert_array_equal(tiles.classify(segmenter, values, grid), whole)


def test_tiles_without_enough_overlap_show() -> None:
    # What makes the tests above able to fail.
    segmenter, grid = Segmenter(Stack(2, True), ("a", "b")), Grid.whole(24, 36)
    values = np.random.default_rng(1).integers(-3, 4, (2, 24, 36)).astype(np.float32)
    differs = tiles.classify(segmenter, values, grid, (8, 9), 0) != segmenter.classify(values)
    assert differs[:, [0, 35]].any()
    assert differs[[7, 8]].any()


def test_tiles_of_a_network_that_halves_its_grid() -> None:
    torch.manual_seed(0)
    # Two levels: it sees 10 pixels far, and shifted by one pixel it would pair others.
    network = Tiramisu(2, layers=(1, 1), growth=8, first=8, kernel=3, dropout=0.0, periodic=True)
    segmenter, grid = Segmenter(network.eval(), ("a", "b")), Grid.whole(60, 90)
    values = np.random.default_rng(1).normal(size=(2, 60, 90)).astype(np.float32)
    whole = segmenter.classify(values)
    assert len(np.unique(whole)) == 3
    differs = tiles.classify(segmenter, values, grid, (38, 46), 12) != whole
    assert differs.sum() <= 5  # sums in another order may tip a pixel


def test_tiles_that_make_no_sense() -> None:
    segmenter, grid = Segmenter(Stack(2, True), ("a", "b")), Grid.whole(24, 36)
    values = np.zeros((2, 24, 36), np.float32)
    with pytest.raises(ValueError, match=r"tiles of 12 x 40 pixels with an overlap of 6 .* tiles larger than 12"):
        tiles.classify(segmenter, values, grid, (12, 40), 6)
    with pytest.raises(ValueError, match="overlap must be 0 pixels or more, got -1"):
        tiles.classify(segmenter, values, grid, (12, 40), -1)
    with pytest.raises(ValueError, match=r"shape \(2, 24, 36\), expected \(channels, 24, 35\)"):
        tiles.classify(segmenter, values, Grid.whole(24, 35))
