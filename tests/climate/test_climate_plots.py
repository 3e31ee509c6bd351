"""Pictures of events: they are drawn, of the size asked for, and nothing of the storm over the seam is lost."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from drawn_storms import add_disc
from exafield.climate import events, plots, statistics
from exafield.climate.fields import CYCLONE, RIVER
from exafield.climate.grid import Grid
from exafield.climate.tracking import Track, Tracker

GRID = Grid.whole(36, 72)
START = np.datetime64("2001-09-01T00", "s")


@pytest.fixture(scope="module")
def week() -> tuple[list[np.ndarray], list[Track], statistics.Tally]:
    masks, ended = [], []
    tracker, tally = Tracker(GRID), statistics.Tally(GRID)
    for i in range(4):
        mask = np.zeros(GRID.shape, np.uint8)
        add_disc(mask, GRID, 15.0, 350.0 + 5 * i, 800e3, CYCLONE)  # over the seam of the grid
        add_disc(mask, GRID, 45.0, 200.0, 1200e3, RIVER)
        time = START + i * np.timedelta64(6, "h")
        ended += tracker.step(events.find(mask, GRID, None, time))
        tally.add(mask, {"PRECT": np.full(GRID.shape, 1e-8)}, time)
        masks.append(mask)
    return masks, ended + tracker.finish(), tally


def colourful(path: Path) -> Image.Image:
    """An opened picture that is not empty: each class left its colour."""
    picture = Image.open(path).convert("RGB")
    pixels = np.asarray(picture).reshape(-1, 3).astype(int)
    for colour in plots.COLOURS.values():
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        assert (np.abs(pixels - rgb).max(axis=1) < 40).any(), f"{path.name} shows nothing in {colour}"
    return picture


def test_maps(week, tmp_path: Path) -> None:
    masks, followed, tally = week
    assert len(followed) == 2
    field = np.random.default_rng(0).random(GRID.shape)
    plots.snapshot(tmp_path / "one.png", {"truth": masks[0]}, GRID, field, unit="1")
    plots.snapshot(tmp_path / "two.png", {"truth": masks[0], "other": masks[1]}, GRID)
    plots.tracks(tmp_path / "tracks.png", followed, GRID)
    sizes = [colourful(tmp_path / name).size for name in ("one.png", "two.png", "tracks.png")]
    assert sizes[1][1] > 1.5 * sizes[0][1]
    plots.frequency(tmp_path / "often.png", {"cyclones": tally.frequency(CYCLONE)}, GRID)
    assert len(np.unique(np.asarray(Image.open(tmp_path / "often.png").convert("L")))) > 10


def test_bars(week, tmp_path: Path) -> None:
    _, followed, tally = week
    plots.counts(tmp_path / "counts.png", statistics.counts(followed))
    plots.shares(tmp_path / "shares.png", tally.shares())
    colourful(tmp_path / "shares.png")
    assert Image.open(tmp_path / "counts.png").size == (960, 384)


def test_film(week, tmp_path: Path) -> None:
    masks, _, _ = week
    frames = ((START + i * np.timedelta64(6, "h"), mask, None) for i, mask in enumerate(masks))
    assert plots.film(tmp_path / "week.gif", frames, GRID, milliseconds=100) == 4
    with Image.open(tmp_path / "week.gif") as film:
        assert film.n_frames == 4
        assert film.info["duration"] == 100
    with pytest.raises(ValueError, match="no snapshots"):
        plots.film(tmp_path / "none.gif", [], GRID)


def test_line_leaves_and_comes_in_at_the_seam() -> None:
    axes = Figure().subplots()
    plots._line(axes, [10.0, 12.0, 14.0, 16.0], [350.0, 356.0, 362.0, 368.0], GRID)
    first, second = axes.lines
    assert first.get_xdata().tolist() == [350.0, 356.0, 362.0]
    assert second.get_xdata().tolist() == [-4.0, 2.0, 8.0]
    assert second.get_ydata().tolist() == [12.0, 14.0, 16.0]


def test_ticks() -> None:
    assert [plots._east(value) for value in (0.0, 90.0, 180.0, 270.0, -90.0, 360.0)] == [
        "0°", "90°E", "180°", "90°W", "90°W", "0°",
    ]  # fmt: skip
