"""Best tracks of tropical cyclones, tracks found by others, and how tracks found here compare with them."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.climate import clock
from exafield.climate.grid import distance
from exafield.climate.heuristics.cyclones import Centre
from exafield.climate.layouts import damage
from exafield.climate.snapshot import Time
from exafield.climate.tracking import Track
from exafield.requirement import require

Floats = NDArray[np.float64]

_KNOT = 1852.0 / 3600.0  # metres per second


class TrackFileError(RuntimeError):
    """A file of tracks that cannot be read; says where in it and what is wrong."""


@dataclass(frozen=True, eq=False)
class Course:
    """Where a cyclone was when, and how strong.

    Args:
        identifier: in its data set.
        name: of the storm, empty if it has none.
        time: [n], rising.
        latitude, longitude: [n] degrees.
        wind: [n] highest sustained [m/s], NaN where unknown; the averaging time differs between agencies.
        pressure: [n] lowest at sea level [Pa], NaN where unknown.
    """

    identifier: str
    name: str
    time: NDArray[Any]
    latitude: Floats
    longitude: Floats
    wind: Floats
    pressure: Floats


def _path(identifier: str, name: str, rows: Sequence[tuple[Any, float, float, float, float]]) -> Course:
    columns = list(zip(*rows, strict=True))
    time = np.array(columns[0], dtype=None if isinstance(columns[0][0], np.datetime64) else object)
    return Course(identifier, name, time, *(np.array(column, np.float64) for column in columns[1:]))


def read_hurdat2(path: str | Path) -> list[Course]:
    """Storms of a HURDAT2 file (format: nhc.noaa.gov/data/hurdat).

    Raises:
        TrackFileError: a line is not as the format says; names it.
    """
    storms: list[Course] = []
    rows: list[Any] = []
    head: tuple[str, str, int] | None = None
    lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        parts = [part.strip() for part in line.split(",")]
        if not line.strip():
            continue
        try:
            if head is None:
                head, rows = (parts[0], "" if parts[1] == "UNNAMED" else parts[1], int(parts[2])), []
                if len(head[0]) != 8 or head[2] < 1:
                    raise ValueError("a storm begins with its code, name and number of lines")
                continue
            day, hour = parts[0], parts[1]
            time = np.datetime64(f"{day[:4]}-{day[4:6]}-{day[6:8]}T{hour[:2]}:{hour[2:4]}", "s")
            wind, pressure = (np.nan if float(value) < 0 else float(value) for value in parts[6:8])
            rows.append((time, _degrees(parts[4], "NS"), _degrees(parts[5], "EW"), wind * _KNOT, pressure * 100.0))
        except (ValueError, IndexError) as error:
            raise TrackFileError(f"{path}, line {number}: no line of HURDAT2 ({error}): {line[:60]!r}") from error
        if len(rows) == head[2]:
            storms.append(_path(head[0], head[1], rows))
            head = None
    if head is not None:
        raise TrackFileError(f"{path} ends after {len(rows)} of the {head[2]} lines of storm {head[0]}: it is cut off")
    return storms


def _degrees(value: str, signs: str) -> float:
    if value[-1:] not in tuple(signs):
        raise ValueError(f"{value!r} must end in {signs[0]} or {signs[1]}")
    return float(value[:-1]) * (1.0 if value[-1] == signs[0] else -1.0)


def read_ibtracs(path: str | Path) -> list[Course]:
    """Storms of an IBTrACS file in NetCDF (ncei.noaa.gov/products/international-best-track-archive).

    Wind and pressure are those of the agency that is responsible (wmo_), and of the US where that gives none; at the
    times in between, for which only a position is given, they are NaN.

    Raises:
        TrackFileError: the file is not such a file.
    """
    xarray = require("xarray", extra="climate")
    try:
        data = xarray.open_dataset(path)
    except (OSError, ValueError) as error:
        raise TrackFileError(f"{path} {damage(path, error) or f'cannot be read as NetCDF: {error}'}") from error
    with data:
        missing = [name for name in ("sid", "name", "lat", "lon", "time") if name not in data.variables]
        if missing:
            raise TrackFileError(f"{path} is no file of IBTrACS: it lacks {', '.join(missing)}")
        north, east, time = (data[name].values for name in ("lat", "lon", "time"))
        strength = []
        for agency, other in (("wmo_wind", "usa_wind"), ("wmo_pres", "usa_pres")):
            both = [data[name].values.astype(float) for name in (agency, other) if name in data.variables]
            first = both[0] if both else np.full(north.shape, np.nan)
            strength.append(np.where(np.isnan(first), both[-1], first) if both else first)
        names = [[_text(value) for value in data[name].values] for name in ("sid", "name")]
    storms = []
    for i, (identifier, name) in enumerate(zip(*names, strict=True)):
        there = np.isfinite(north[i]) & np.isfinite(east[i]) & ~np.isnat(time[i])
        # The file counts days as floating-point numbers: its seconds are off by parts of a millisecond.
        when = (time[i][there] + np.timedelta64(500, "ms")).astype("datetime64[s]")
        place = north[i][there].astype(float), east[i][there].astype(float)
        force = strength[0][i][there] * _KNOT, strength[1][i][there] * 100.0
        storms.append(Course(identifier, "" if name in ("NOT_NAMED", "UNNAMED") else name, when, *place, *force))
    return storms


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def read_tempest_extremes(path: str | Path) -> list[Course]:
    """Tracks that TempestExtremes (StitchNodes) wrote as CSV with a head.

    Raises:
        TrackFileError: a column is missing, or a line does not fit; names it.
    """
    tracks: dict[str, list[Any]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        needed = ("track_id", "year", "month", "day", "hour", "lon", "lat")
        missing = [name for name in needed if name not in (reader.fieldnames or ())]
        if missing:
            raise TrackFileError(f"{path} lacks the columns {', '.join(missing)}; it has {reader.fieldnames}")
        for row in reader:
            try:
                year, month, day, hour = (int(float(row[name])) for name in ("year", "month", "day", "hour"))
                time = np.datetime64(f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:00", "s")
                wind, pressure = (float(row[name]) if row.get(name) else np.nan for name in ("wind10", "slp"))
                place = (float(row["lat"]), float(row["lon"]))
            except (ValueError, TypeError) as error:
                raise TrackFileError(f"{path}, line {reader.line_num}: {error}") from error
            tracks.setdefault(row["track_id"], []).append((time, *place, wind, pressure))
    return [_path(number.removesuffix(".0"), "", rows) for number, rows in tracks.items()]


def from_track(track: Track) -> Course:
    """A track of the tracker as a path."""
    rows = [(e.time, e.latitude, e.longitude, e.peak_wind, e.minimum_pressure) for e in track.events]
    return _path(str(track.number), "", rows)


def from_centres(identifier: str, centres: Sequence[tuple[Time, Centre]]) -> Course:
    """Centres of the detector, joined by `heuristics.trajectories`, as a path."""
    rows = [(time, c.latitude, c.longitude, c.wind, c.pressure) for time, c in centres]
    return _path(identifier, "", rows)


@dataclass(frozen=True, slots=True)
class Hit:
    """A true storm and a track that found it.

    Args:
        truth, found: their indices.
        shared: at how many times of the found track they lie within the distance.
        distance: on average over these times [m].
        lead: how much later the true track begins than the found one [h]; negative where it was found late.
    """

    truth: int
    found: int
    shared: int
    distance: float
    lead: float


@dataclass(frozen=True)
class Comparison:
    """How found tracks compare with true ones.

    Args:
        hits: each storm that was found, with the track that shares most times with it.
        misses: indices of the storms that were not.
        false_alarms: indices of the tracks that found no storm.
        fragments: indices of the further tracks that found a storm already found.
    """

    hits: list[Hit]
    misses: list[int]
    false_alarms: list[int]
    fragments: list[int]

    @property
    def detection_probability(self) -> float:
        """Share of the true storms that were found; NaN if there are none."""
        total = len(self.hits) + len(self.misses)
        return len(self.hits) / total if total else float("nan")

    @property
    def false_alarm_ratio(self) -> float:
        """Share of the found tracks that found nothing true; NaN if there are none."""
        total = len(self.hits) + len(self.fragments) + len(self.false_alarms)
        return len(self.false_alarms) / total if total else float("nan")


def compare(
    found: Sequence[Course], truth: Sequence[Course], *, within: float = 300e3, hours: float = 3.0, times: int = 1
) -> Comparison:
    """Compares found tracks with true ones.

    Args:
        found: tracks.
        truth: such as best tracks of the same period.
        within: greatest distance between centres [m]; our choice, near what comparisons of trackers use.
        hours: greatest difference in time between two positions that are compared [h].
        times: at how many times the two must be so near.

    Raises:
        ValueError: a limit is out of range.
    """
    if within <= 0 or hours < 0 or times < 1:
        raise ValueError(f"within must be above 0, hours not below 0, times at least 1: got {within}, {hours}, {times}")
    near: dict[tuple[int, int], Hit] = {}
    spans = [_span(path) for path in truth]
    for j, path in enumerate(found):
        start, end = _span(path)
        for i, storm in enumerate(truth):
            if _hours(spans[i][1], start) > hours or _hours(end, spans[i][0]) > hours:
                continue
            away = _distances(path, storm, hours)
            close = away <= within
            if close.sum() >= times:
                lead = _hours(start, spans[i][0])
                near[i, j] = Hit(i, j, int(close.sum()), float(away[close].mean()), lead)
    best: dict[int, Hit] = {}
    taken: set[int] = set()
    # The pair that shares most is joined first, and neither is joined again.
    for hit in sorted(near.values(), key=lambda hit: (-hit.shared, hit.distance)):
        if hit.truth not in best and hit.found not in taken:
            best[hit.truth] = hit
            taken.add(hit.found)
    touched = {j for _, j in near}
    return Comparison(
        hits=[best[i] for i in sorted(best)],
        misses=[i for i in range(len(truth)) if i not in best],
        false_alarms=[j for j in range(len(found)) if j not in touched],
        fragments=[j for j in range(len(found)) if j in touched and j not in taken],
    )


def _hours(start: Time, end: Time) -> float:
    return clock.seconds(start, end) / 3600


def _span(path: Course) -> tuple[Time, Time]:
    return path.time[0], path.time[-1]


def _distances(path: Course, storm: Course, hours: float) -> Floats:
    """From each position of a path to the storm's nearest in time [m]; infinite where there is none in time."""
    start = path.time[0]
    mine = np.array([_hours(start, time) for time in path.time])
    theirs = np.array([_hours(start, time) for time in storm.time])
    nearest = np.abs(mine[:, None] - theirs).argmin(axis=1)
    away = distance(path.latitude, path.longitude, storm.latitude[nearest], storm.longitude[nearest])
    return np.where(np.abs(mine - theirs[nearest]) <= hours, away, np.inf)
