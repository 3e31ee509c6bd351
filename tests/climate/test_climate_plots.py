"""Pictures of events: they are drawn, of the size asked for, and nothing of the storm over the seam is lost."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from drawn_storms import add_disc
from exafield.climate import bars, clock, events, plots, statistics, study
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


def test_coasts_are_where_land_is() -> None:
    lines = plots.coastlines()
    points = np.concatenate(lines)
    assert len(lines) > 100
    assert np.abs(points).max(0).tolist() == [180.0, pytest.approx(85.0, abs=2.0)]
    # Capes: Finisterre, Agulhas, Comorin, Horn; and none in the middle of an ocean.
    for east, north in ((-9.3, 42.9), (20.0, -34.8), (77.5, 8.1), (-67.3, -55.9)):
        assert np.hypot(*(points - (east, north)).T).min() < 1.5, (east, north)
    for east, north in ((-30.0, 30.0), (-130.0, 0.0), (80.0, -30.0)):
        assert np.hypot(*(points - (east, north)).T).min() > 10.0, (east, north)
    axes = Figure().subplots()
    plots._map(axes, GRID)
    (coasts,) = axes.collections
    pieces = coasts.get_segments()
    assert len(pieces) > len(lines)  # some go over the seam of the grid
    assert max(np.abs(np.diff(piece[:, 0])).max() for piece in pieces) < 20.0


def test_a_legend_says_what_dots_are(week, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, followed, _ = week
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: kept.append(figure))

    def said(tracks: list[Track]) -> list[str]:
        plots.tracks(tmp_path / "tracks.png", tracks, GRID)
        return [text.get_text() for text in kept[-1].axes[0].get_legend().get_texts()]

    assert said(followed) == ["tropical cyclone", "atmospheric river", "where it began"]
    windy = [Track(t.number, t.kind, [replace(event, peak_wind=40.0) for event in t.events]) for t in followed]
    assert said(windy)[3:] == ["cyclone of 20 m/s at its peak", "cyclone of 60 m/s at its peak"]


def test_bars(week, tmp_path: Path) -> None:
    _, followed, tally = week
    bars.counts(tmp_path / "counts.png", statistics.counts(followed))
    bars.counts(tmp_path / "none.png", [])
    bars.shares(tmp_path / "shares.png", tally.shares())
    colourful(tmp_path / "shares.png")
    assert Image.open(tmp_path / "counts.png").size == (960, 432)


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
    first, second = plots._pieces([10.0, 12.0, 14.0, 16.0], [350.0, 356.0, 362.0, 368.0], GRID)
    assert first[0].tolist() == [350.0, 356.0, 362.0]
    assert second[0].tolist() == [-4.0, 2.0, 8.0]
    assert second[1].tolist() == [12.0, 14.0, 16.0]


def test_ticks() -> None:
    assert [plots._east(value) for value in (0.0, 90.0, 180.0, 270.0, -90.0, 360.0)] == [
        "0°", "90°E", "180°", "90°W", "90°W", "0°",
    ]  # fmt: skip


def test_colours_about_zero_for_what_has_both_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: kept.append(figure))
    wave = np.sin(np.deg2rad(GRID.longitude)) + np.zeros(GRID.shape)
    fields = {
        "U850, wind [m]": wave + 2,  # a wind, though nowhere from the east
        "VORT [s$^{-1}$]": 1e-5 * (wave + 0.5),
        "gust": wave + 1.0,
        "PRECT, rain": wave + 0.99,  # rounding makes some of it negative
        "nothing": 0 * wave,
    }
    plots.panels(tmp_path / "x.png", fields, GRID)
    maps = [axes.collections[0] for axes in kept[-1].axes[: len(fields)]]
    drawn = {
        name.split()[0].strip(","): (one.get_cmap().name, *one.get_clim())
        for name, one in zip(fields, maps, strict=True)
    }
    assert drawn["U850"] == ("PRGn", pytest.approx(-3.0, abs=0.01), pytest.approx(3.0, abs=0.01))
    assert drawn["VORT"] == ("PRGn", pytest.approx(-1.5e-5, rel=0.01), pytest.approx(1.5e-5, rel=0.01))
    assert [drawn[name][0] for name in ("gust", "PRECT", "nothing")] == ["pale"] * 3


def test_units_stand_at_colours() -> None:
    assert study.unit("U850") == "U850, eastward wind at 850 hPa [m s$^{-1}$]"
    assert study.unit("PSL", "Pa").endswith("[hPa]")  # as it is shown, not as its file has it
    assert study.unit("VORT", "s**-1") == "VORT [s$^{-1}$]"
    assert study.unit("pv", "K m2 kg-1 s^-1") == "pv [K m$^{2}$ kg$^{-1}$ s$^{-1}$]"
    assert study.unit("odd", None) == "odd"
    assert study.unit("cost", "10 $") == r"cost [10 \$]"


def test_titles() -> None:
    assert clock.title(np.datetime64("2001-08-15T12:00:00")) == "2001-08-15 12:00 UTC"
    assert clock.title(None) == ""
