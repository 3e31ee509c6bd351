"""Tracks found in masks beside best tracks: which storms were found, missed, or are none."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from exafield.climate import clock
from exafield.climate.besttracks import (
    Comparison,
    Course,
    TrackFileError,
    compare,
    read_hurdat2,
    read_ibtracs,
    read_tempest_extremes,
)
from exafield.climate.components import into_turn
from exafield.climate.grid import Grid
from exafield.climate.snapshot import Time
from exafield.suggestion import counted


@dataclass(frozen=True, slots=True)
class Match:
    """A storm of the best tracks and what was found of it, or a track that is no storm there."""

    outcome: Annotated[str, "", "hit, miss, false alarm, or fragment: a further track of a storm that is found"]
    storm: Annotated[str, "", "identifier in the best tracks, empty for a track that is none"]
    name: Annotated[str, "", "of the storm, empty if it has none"]
    track: Annotated[int, "1", "number of the track that was found, 0 if none"]
    start: Annotated[Time, "", "first time of the storm in the period and region of the masks, else of the track"]
    end: Annotated[Time, "", "last time, likewise"]
    positions: Annotated[int, "1", "of the track that are near the storm"]
    distance: Annotated[float, "km", "between the two, on average over these positions"]
    lead: Annotated[float, "h", "how much later the best track begins than the found one; below 0: found late"]


def read(path: str | Path) -> list[Course]:
    """Best tracks of IBTrACS (NetCDF) or HURDAT2, or tracks of TempestExtremes (CSV); which, the content tells.

    Raises:
        TrackFileError: the file is none of these, or damaged.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise TrackFileError(f"{path} cannot be read: {error.strerror}") from error
    if head.startswith((b"CDF", b"\x89HDF")):
        return read_ibtracs(path)
    if b"track_id" in head.partition(b"\n")[0]:
        return read_tempest_extremes(path)
    return read_hurdat2(path)


def gregorian(time: Time) -> np.datetime64:
    """A time of any calendar as the date of the same name.

    Raises:
        TrackFileError: there is no such date, as 30 February.
    """
    try:
        return np.datetime64(clock.text(time), "s")
    except ValueError as error:
        raise TrackFileError(f"best tracks have no {clock.text(time)}: the calendar of the masks is another") from error


def covered(storms: Sequence[Course], start: Time, end: Time, grid: Grid) -> list[Course]:
    """What of the storms lies in a period and on a grid.

    Raises:
        TrackFileError: nothing does.
    """
    first, last = gregorian(start), gregorian(end)
    north, east = grid.edges
    kept = []
    for storm in storms:
        turned = into_turn(storm.longitude, grid)
        inside = (storm.time >= first) & (storm.time <= last)
        inside &= (storm.latitude >= north[0]) & (storm.latitude <= north[-1]) & (turned <= east[-1])
        if inside.any():
            parts = ("time", "latitude", "longitude", "wind", "pressure")
            kept.append(replace(storm, **{part: getattr(storm, part)[inside] for part in parts}))
    if not kept:
        times = [time for storm in storms if storm.time.size for time in (storm.time[0], storm.time[-1])]
        period = f"; they are of {clock.text(min(times))} to {clock.text(max(times))}" if times else ""
        raise TrackFileError(
            f"of {counted(len(storms), 'best track')}, none is in the period of the masks, {first} to {last}, and on "
            f"their grid{period}"
        )
    return kept


def compared(found: Sequence[Course], storms: Sequence[Course], within: float, hours: float) -> Comparison:
    """Tracks beside storms, at dates of the same name.

    Args:
        found: tracks.
        storms: those that could be found, see `covered`.
        within: greatest distance [m].
        hours: greatest difference in time.
    """
    return compare(_dated(found), storms, within=within, hours=hours)


def _dated(found: Sequence[Course]) -> list[Course]:
    return [replace(one, time=np.array([gregorian(time) for time in one.time], "datetime64[s]")) for one in found]


def matches(comparison: Comparison, found: Sequence[Course], storms: Sequence[Course]) -> list[Match]:
    """A row for each storm, and one for each track that is not its match."""
    rows = []
    hits = {hit.truth: hit for hit in comparison.hits}
    for number, storm in enumerate(storms):
        about = storm.identifier, storm.name
        hit = hits.get(number)
        if hit is None:
            rows.append(Match("miss", *about, 0, storm.time[0], storm.time[-1], 0, np.nan, np.nan))
        else:
            track = int(found[hit.found].identifier)
            rows.append(
                Match(
                    "hit", *about, track, storm.time[0], storm.time[-1], hit.shared, hit.distance / 1e3, hit.lead
                )
            )  # fmt: skip
    others = [("false alarm", at) for at in comparison.false_alarms] + [("fragment", at) for at in comparison.fragments]
    for outcome, at in others:
        one = _dated([found[at]])[0]
        rows.append(Match(outcome, "", "", int(one.identifier), one.time[0], one.time[-1], 0, np.nan, np.nan))
    return rows


def lines(comparison: Comparison, within: float, hours: float) -> list[str]:
    """What came of it, to print."""
    hits, misses = len(comparison.hits), len(comparison.misses)
    false, pieces = len(comparison.false_alarms), len(comparison.fragments)
    found = (
        f"{counted(hits, 'hit')}, {counted(misses, 'miss', 'misses')} "
        f"(probability of detection {comparison.detection_probability:.2f})"
    )
    others = (
        f"{counted(false, 'false alarm')} (ratio {comparison.false_alarm_ratio:.2f}), {counted(pieces, 'fragment')}"
    )
    rows = [
        f"{counted(hits + misses, 'storm')} of the best tracks, looked for within {within / 1e3:g} km and {hours:g} h: "
        + found,
        f"{counted(hits + false + pieces, 'track')} of cyclones: {others} of storms found otherwise",
    ]
    if hits:
        apart = np.mean([hit.distance for hit in comparison.hits]) / 1e3
        lead = np.mean([hit.lead for hit in comparison.hits])
        when = f"{abs(lead):.1f} h {'before' if lead > 0 else 'after'} it" if abs(lead) >= 0.05 else "with it"
        rows.append(f"hits are {apart:.0f} km from the best track on average, and begin {when}")
    return rows
