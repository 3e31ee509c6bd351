"""Regions, events, tracks and their statistics: what is drawn is measured and followed."""

import csv
import os
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawn_storms import add_cyclone, add_disc, calm
from exafield.climate import basins, besttracks, clock, components, events, statistics
from exafield.climate.fields import CYCLONE, RIVER
from exafield.climate.grid import EARTH_RADIUS, Grid
from exafield.climate.tracking import Summary, Tracker, summary

GRID = Grid.whole(72, 144)
START = np.datetime64("2001-12-30T00", "s")
HOUR = np.timedelta64(1, "h")


def mask_of(*discs: tuple[float, float, float, int], grid: Grid = GRID) -> np.ndarray:
    mask = np.zeros(grid.shape, np.uint8)
    for latitude, longitude, radius, kind in discs:
        add_disc(mask, grid, latitude, longitude, radius, kind)
    return mask


def follow(masks, grid: Grid = GRID, every: int = 6, values=None, **options):
    tracker = Tracker(grid, **options)
    ended = []
    for i, mask in enumerate(masks):
        ended += tracker.step(events.find(mask, grid, values and values[i], START + i * every * HOUR))
    return ended + tracker.finish()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), shift=st.integers(0, 35), corners=st.booleans())
def test_regions_do_not_see_the_seam(seed: int, shift: int, corners: bool) -> None:
    grid = Grid.whole(18, 36)
    mask = np.random.default_rng(seed).random(grid.shape) < 0.4
    rolled = np.roll(mask, shift, axis=1)
    one, count = components.label(mask, grid, corners=corners)
    other, number = components.label(rolled, grid, corners=corners)
    assert count == number == len(np.unique(one)) - 1
    pairs = np.unique(np.stack((np.roll(one, shift, axis=1).ravel(), other.ravel())), axis=1)
    assert pairs.shape[1] == count + 1
    a, b = components.measure(one, count, grid), components.measure(other, count, grid)
    order = pairs[1, 1:] - 1
    np.testing.assert_allclose(a.area, b.area[order])
    np.testing.assert_array_equal(a.cells, b.cells[order])
    np.testing.assert_allclose(a.east - a.west, (b.east - b.west)[order])
    np.testing.assert_allclose(a.area.sum(), grid.areas[mask].sum())


def test_disc_over_the_seam_is_measured() -> None:
    grid = Grid.whole(180, 360)
    numbers, count = components.label(mask_of((30.0, 359.2, 1500e3, CYCLONE), grid=grid) > 0, grid)
    regions = components.measure(numbers, count, grid)
    assert count == 1
    cap = 2 * np.pi * EARTH_RADIUS**2 * (1 - np.cos(1500e3 / EARTH_RADIUS))
    assert regions.area[0] == pytest.approx(cap, rel=0.01)
    assert regions.latitude[0] == pytest.approx(30.0, abs=0.2)
    assert regions.longitude[0] % 360 == pytest.approx(359.2, abs=0.2)
    assert grid.edges[1][0] <= regions.longitude[0] < grid.edges[1][-1]
    assert regions.west[0] < 345 < 374 < regions.east[0]
    assert regions.north[0] - regions.south[0] == pytest.approx(27, abs=1.1)


def test_regional_grid_ends_at_its_edges() -> None:
    grid = Grid(np.arange(0.0, 20.0), np.arange(100.0, 140.0))
    mask = np.zeros(grid.shape, bool)
    mask[5, [0, 1, 38, 39]] = True
    numbers, count = components.label(mask, grid)
    assert count == 2
    regions = components.measure(numbers, count, grid)
    np.testing.assert_allclose(regions.west, [99.5, 137.5])
    np.testing.assert_allclose(regions.east, [101.5, 139.5])


def test_event_of_a_cyclone_is_what_was_drawn() -> None:
    fields = calm(GRID)
    add_cyclone(fields, GRID, 16.25, 177.5, wind=50.0)
    fields["PRECT"] = np.full(GRID.shape, 2e-7)
    mask = mask_of((16.25, 177.5, 500e3, CYCLONE), (45.0, 0.0, 900e3, RIVER))
    found = events.find(mask, GRID, fields, START)
    cyclone, river = found.events
    assert (cyclone.kind, river.kind) == (CYCLONE, RIVER)
    assert (cyclone.latitude, cyclone.longitude, cyclone.basin) == (16.25, 177.5, "WP")
    assert cyclone.minimum_pressure == pytest.approx(fields["PSL"].min())
    assert cyclone.peak_wind == pytest.approx(np.hypot(fields["U850"], fields["V850"]).max())
    assert cyclone.precipitation == pytest.approx(2e-7 * cyclone.area)
    assert np.isnan(cyclone.length)
    assert np.isnan(cyclone.transport)
    assert river.basin == "NA"
    assert 1700e3 < river.length < 2000e3
    inside = found.numbers == river.number
    ivt = fields["TMQ"] * np.hypot(fields["U850"], fields["V850"])
    assert river.transport == pytest.approx((ivt * GRID.areas)[inside].sum() / river.length)
    fields["IVT"] = np.full(GRID.shape, 500.0)
    assert events.find(mask, GRID, fields).events[1].transport == pytest.approx(500.0 * river.area / river.length)


def test_events_without_fields_and_small_ones() -> None:
    mask = mask_of((10.0, 100.0, 800e3, CYCLONE))
    mask[40, 10] = CYCLONE
    mask[20, 50] = RIVER
    assert len(events.find(mask, GRID).events) == 3
    (large,) = events.find(mask, GRID, smallest=5e11).events
    assert large.number == 1
    assert large.cells > 10
    assert np.isnan([large.peak_wind, large.minimum_pressure, large.precipitation]).all()
    assert events.find(np.zeros(GRID.shape), GRID).events == []


def test_unfit_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="labels must be 0, 1 or 2, got 7 too"):
        events.find(np.full(GRID.shape, 7), GRID)
    with pytest.raises(ValueError, match=r"the mask has shape \(72, 143\)"):
        events.find(np.zeros((72, 143)), GRID)
    with pytest.raises(ValueError, match="PSL has shape"):
        events.find(mask_of((0.0, 0.0, 1e6, 1)), GRID, {"PSL": np.zeros((2, 2))})


@pytest.mark.parametrize("west", [0.0, -180.0])
def test_storm_over_the_date_line_keeps_its_number(west: float) -> None:
    grid = Grid(GRID.latitude, GRID.longitude + west)
    places = [(15.0 + 0.5 * i, 170.0 + 2.5 * i) for i in range(9)]
    masks = [mask_of((*place, 400e3, CYCLONE), grid=grid) for place in places]
    (track,) = follow(masks, grid)
    assert len(track.events) == 9
    row = summary(track)
    assert (row.duration, row.basin, row.parent, row.merged_into) == (48.0, "WP", 0, 0)
    way = sum(components.between(*a, *b) for a, b in pairwise(places))
    assert row.path == pytest.approx(way / 1e3, rel=0.05)
    assert row.last_longitude % 360 == pytest.approx(190.0, abs=1.5)


def test_fast_storm_without_overlap_is_joined_by_distance() -> None:
    masks = [mask_of((20.0, 60.0 + 8 * i, 200e3, CYCLONE)) for i in range(4)]
    assert [len(track.events) for track in follow(masks, every=12)] == [4]
    assert [len(track.events) for track in follow(masks, every=1)] == [1] * 4  # 230 m/s is no storm


def test_two_storms_that_pass_keep_their_numbers() -> None:
    masks = [
        mask_of((10.0, 100.0 + 3 * i, 300e3, CYCLONE), (22.0, 124.0 - 3 * i, 300e3, CYCLONE)) for i in range(9)
    ]  # fmt: skip
    low, high = sorted(follow(masks), key=lambda track: track.events[0].latitude)
    assert [len(track.events) for track in (low, high)] == [9, 9]
    assert np.ptp([event.latitude for event in low.events]) < 2
    assert low.events[-1].longitude > 120 > 104 > high.events[-1].longitude


def test_event_nearby_takes_no_track_away() -> None:
    """One of two dies while a third is born: the two that overlap stay joined."""
    before = mask_of((10.0, 100.0, 900e3, CYCLONE), (10.0, 88.0, 200e3, CYCLONE))
    after = mask_of((10.0, 100.5, 900e3, CYCLONE), (10.0, 112.0, 200e3, CYCLONE))
    followed = follow([before, after], every=12, speed={CYCLONE: 35.0, RIVER: 35.0})
    longest = max(followed, key=lambda track: len(track.events))
    assert [event.cells > 30 for event in longest.events] == [True, True]
    assert sorted(len(track.events) for track in followed) == [1, 1, 2]


def test_merger_and_split() -> None:
    apart = [((15.0, 100.0 + 4 * i, 500e3, CYCLONE), (15.0, 130.0 - 4 * i, 350e3, CYCLONE)) for i in range(5)]
    masks = [mask_of(*pair) for pair in apart]
    joined, survivor = follow(masks)
    assert joined.merged_into == survivor.number
    assert joined.events[0].area < survivor.events[0].area  # the larger one goes on
    assert survivor.events[-1].cells == (masks[-1] > 0).sum()
    whole, part = sorted(follow(masks[::-1]), key=lambda track: track.number)
    assert part.parent == whole.number
    assert summary(part).parent == whole.number


def test_merged_storm_does_not_jump_to_a_newborn_one() -> None:
    before = mask_of((15.0, 100.0, 600e3, CYCLONE), (15.0, 113.0, 400e3, CYCLONE))
    after = mask_of((15.0, 106.0, 1000e3, CYCLONE), (32.0, 113.0, 250e3, CYCLONE))
    merged, newborn = (track for track in follow([before, after], every=24) if len(track.events) == 1)
    assert merged.merged_into is not None
    assert newborn.merged_into is None


def test_classes_are_followed_apart() -> None:
    masks = [mask_of((40.0, 100.0, 900e3, RIVER), (40.0, 100.0, 300e3, CYCLONE)) for _ in range(3)]
    masks[1] = mask_of((40.0, 100.0, 900e3, RIVER))
    kinds = sorted((track.kind, len(track.events)) for track in follow(masks))
    assert kinds == [(CYCLONE, 2), (RIVER, 3)]
    kinds = sorted((track.kind, len(track.events)) for track in follow(masks, patience=6.0))
    assert kinds == [(CYCLONE, 1), (CYCLONE, 1), (RIVER, 3)]


def test_tracker_forgets_what_has_ended() -> None:
    tracker = Tracker(GRID)
    ended, sizes = 0, []
    for i in range(60):  # a new storm every two days, far from the last
        mask = mask_of((15.0, (120.0 * (i // 8)) % 360, 400e3, CYCLONE))
        ended += len(tracker.step(events.find(mask, GRID, None, START + i * 6 * HOUR)))
        sizes.append(len(pickle.dumps(tracker)))
    assert ended >= 6
    assert max(sizes[30:]) < 1.2 * max(sizes[:30])


def test_tracker_refuses_disorder() -> None:
    tracker = Tracker(GRID)
    found = events.find(mask_of((0.0, 0.0, 1e6, 1)), GRID, None, START)
    tracker.step(found)
    with pytest.raises(ValueError, match="2001-12-30T00:00:00 is not later than the snapshot before"):
        tracker.step(found)
    with pytest.raises(ValueError, match="needs the time"):
        tracker.step(events.find(mask_of(), GRID))
    with pytest.raises(ValueError, match="overlap must be"):
        Tracker(GRID, overlap=0.0)


def test_rain_of_a_track_adds_up() -> None:
    masks = [mask_of((15.0, 100.0, 500e3, CYCLONE))] * 5
    values = [{"PRECT": np.full(GRID.shape, 1e-7 * i)} for i in range(5)]
    (track,) = follow(masks, values=values)
    row = summary(track)
    assert row.precipitation == pytest.approx(0.5 * 4e-7 * row.mean_area * 24 * 3600)


def test_tables(tmp_path: Path) -> None:
    (track,) = follow([mask_of((15.0, 100.0, 500e3, CYCLONE))] * 3)
    assert events.write_csv(tmp_path / "tracks.csv", [summary(track)], Summary) == 1
    events.write_csv(tmp_path / "events.csv", iter(track.events), events.Event)
    with open(tmp_path / "tracks.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["duration [h]"] == "12"
    assert row["start"] == "2001-12-30T00:00:00"
    assert row["peak_wind [m s-1]"] == ""
    with open(tmp_path / "events.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
    table = events.columns(track.events, events.Event)
    assert set(table) == set(events.describe(events.Event))
    assert table["area"].dtype == np.float64
    assert table["kind"].tolist() == [1, 1, 1]
    assert table["time"][1] == START + 6 * HOUR
    assert all(len(column) == 0 for column in events.columns([], events.Event).values())


def test_seasons_and_calendars() -> None:
    assert clock.season(START) == (2002, "DJF")
    assert clock.season(np.datetime64("1969-07-01")) == (1969, "JJA")
    cftime = pytest.importorskip("cftime")
    first, later = cftime.DatetimeNoLeap(2000, 2, 28), cftime.DatetimeNoLeap(2000, 3, 1)
    assert clock.seconds(first, later) == 86400
    assert clock.season(later) == (2000, "MAM")
    assert clock.text(later) == "2000-03-01T00:00:00"
    assert clock.seconds(START, START + HOUR) == 3600


def test_basins() -> None:
    places = {
        "NA": [(25, -80), (15, -65), (12, -82), (40, 10)], "EP": [(15, -105), (10, -95), (20, -150)],
        "WP": [(15, 130), (30, 179)], "NI": [(15, 88), (15, 65)], "SI": [(-15, 60), (-20, 115)],
        "SP": [(-18, 178), (-18, -160), (-30, -75)], "SA": [(-28, -48), (-30, 10)],
    }  # fmt: skip
    for code, where in places.items():
        assert [basins.BASINS[basins.basin(*np.atleast_1d(*place))[0]] for place in where] == [code] * len(where)
    assert set(np.unique(basins.over(GRID)).tolist()) == set(range(7))


def test_counts_and_frequencies_and_shares() -> None:
    masks = [
        mask_of((15.0, 140.0, 600e3, CYCLONE), (45.0, 200.0, 900e3, RIVER)),
        mask_of((15.0, 140.0, 600e3, CYCLONE)),
    ]
    rows = statistics.counts(follow(masks))
    assert [(row.year, row.season, row.basin, row.kind, row.tracks) for row in rows] == [
        (2002, "DJF", "EP", RIVER, 1),
        (2002, "DJF", "WP", CYCLONE, 1),
    ]
    wet = {"PRECT": np.where(masks[0] == CYCLONE, 1e-6, 1e-8)}
    tally, other = statistics.Tally(GRID), statistics.Tally(GRID)
    tally.add(masks[0], wet, START)
    other.add(masks[1], wet, np.datetime64("2002-07-01"))
    both = tally + other
    assert both.frequency(CYCLONE).max() == 1.0
    assert both.frequency(RIVER).max() == 0.5
    assert both.frequency(RIVER, "DJF").max() == 1.0
    assert both.frequency(RIVER, "JJA").max() == 0.0
    assert np.isnan(both.frequency(RIVER, "MAM")).all()
    share = {row.basin: row for row in both.shares()}
    west = basins.over(GRID) == basins.BASINS.index("WP")
    inside = (masks[0] == CYCLONE) & west
    area = GRID.areas[inside].sum() / GRID.areas[west].sum()
    assert share["WP"].cyclone_area == pytest.approx(area)
    assert share["WP"].cyclone_share == pytest.approx(100 * area / (100 * area + (1 - area)))
    assert share["NI"].cyclone_share == 0.0
    total = (wet["PRECT"] * GRID.areas).sum()
    assert share["all"].precipitation == pytest.approx(total)
    with pytest.raises(ValueError, match="no snapshot had PRECT"):
        statistics.Tally(GRID).shares()
    with pytest.raises(ValueError, match="grids differ"):
        tally + statistics.Tally(Grid.whole(18, 36))


def course(longitudes: list[float], latitude: float = 15.0, every: int = 6, start: int = 0) -> besttracks.Course:
    count = len(longitudes)
    time = START + (start + every * np.arange(count)) * HOUR
    unknown = np.full(count, np.nan)
    return besttracks.Course("", "", time, np.full(count, latitude), np.array(longitudes), unknown, unknown)


def test_comparison_with_best_tracks() -> None:
    truth = [course([170.0 + 2 * i for i in range(10)]), course([60.0, 61.0, 62.0], -15.0), course([30.0, 31.0], 60.0)]
    found = [
        course([-178.5 + 2 * i for i in range(4)], start=36),  # the first storm, found late and over the date line
        course([171.0, 173.0], 15.5, start=0),  # its beginning, as a track of its own
        course([60.0, 61.0, 62.0], -15.0, start=240),  # the place of the second, ten days late
    ]
    result = besttracks.compare(found, truth)
    (hit,) = result.hits
    assert (hit.truth, hit.found, hit.shared, hit.lead) == (0, 0, 4, -36.0)
    assert hit.distance == pytest.approx(0.5 * 111.19e3 * np.cos(np.deg2rad(15.0)), rel=0.01)
    assert (result.misses, result.false_alarms, result.fragments) == ([1, 2], [2], [1])
    assert result.detection_probability == pytest.approx(1 / 3)
    assert result.false_alarm_ratio == pytest.approx(1 / 3)
    assert not besttracks.compare(found, truth, within=20e3).hits
    assert np.isnan(besttracks.compare([], []).detection_probability)
    (track,) = follow([mask_of((15.0, 170.0 + 2 * i, 400e3, CYCLONE)) for i in range(4)])
    assert besttracks.compare([besttracks.from_track(track)], truth).hits[0].truth == 0


@pytest.fixture(scope="module")
def folder() -> Path:
    path = Path(os.environ.get("EXAFIELD_DATA", "")) / "climate"
    if not os.environ.get("EXAFIELD_DATA") or not (path / "hurdat2_sample.txt").is_file():
        pytest.skip("needs the folder climate in $EXAFIELD_DATA")
    return path


def test_hurdat2(folder: Path, tmp_path: Path) -> None:
    storms = besttracks.read_hurdat2(folder / "hurdat2_sample.txt")
    assert len(storms) == 37
    ana = storms[0]
    assert (ana.identifier, ana.name, len(ana.time)) == ("AL012021", "ANA", 17)
    assert (ana.time[0], ana.latitude[0], ana.longitude[0]) == (np.datetime64("2021-05-20T00:00:00"), 30.3, -55.5)
    assert ana.wind[0] == pytest.approx(30 * 0.514444, rel=1e-4)
    assert ana.pressure[0] == 101500.0
    text = (folder / "hurdat2_sample.txt").read_text()
    (tmp_path / "cut").write_text(text[: len(text) // 2 - 200].rsplit("\n", 1)[0])
    with pytest.raises(besttracks.TrackFileError, match="cut off"):
        besttracks.read_hurdat2(tmp_path / "cut")
    (tmp_path / "odd").write_text(text.replace("31.5N", "31.5", 1))
    with pytest.raises(besttracks.TrackFileError, match=r"line 3: no line of HURDAT2 \('31.5' must end in N or S\)"):
        besttracks.read_hurdat2(tmp_path / "odd")


def test_ibtracs(folder: Path) -> None:
    xarray = pytest.importorskip("xarray", reason="needs the extra climate")
    storms = besttracks.read_ibtracs(folder / "ibtracs_v04r00_2storms.nc")
    assert [storm.identifier for storm in storms] == ["2021001S14136", "2021005S10101"]
    first = storms[0]
    assert first.time[1] == np.datetime64("2021-01-01T03:00:00")
    assert first.wind[0] == pytest.approx(15 * 0.514444, rel=1e-4)
    assert np.isnan(first.wind[1])
    assert (np.diff(first.time) > 0).all()
    with xarray.open_dataset(folder / "ibtracs_v04r00_2storms.nc") as data:
        codes = data.basin.values[:, 0].astype(str)
    mine = [basins.BASINS[basins.basin(storm.latitude[:1], storm.longitude[:1])[0]] for storm in storms]
    assert mine == codes.tolist()
    with pytest.raises(besttracks.TrackFileError, match="lacks sid"):
        besttracks.read_ibtracs(folder / "merra2_iwv_ivt_20170228_00.nc")


def test_tempest_extremes(folder: Path, tmp_path: Path) -> None:
    tracks = besttracks.read_tempest_extremes(folder / "tempestextremes_tracks_era5_1996.csv")
    assert sum(len(track.time) for track in tracks) == 2274
    assert tracks[0].identifier == "1207"
    assert tracks[0].pressure[0] == 100590.3
    same = besttracks.compare(tracks[:20], tracks[:20])
    assert [hit.distance for hit in same.hits] == [0.0] * 20
    (tmp_path / "bad.csv").write_text("track_id,lon,lat\n1,2,3\n")
    with pytest.raises(besttracks.TrackFileError, match="lacks the columns year"):
        besttracks.read_tempest_extremes(tmp_path / "bad.csv")
