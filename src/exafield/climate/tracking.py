"""Events followed through time, one snapshot after another: memory holds the open tracks and the last snapshot."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from exafield.climate import clock
from exafield.climate.events import Event, Found
from exafield.climate.fields import CYCLONE, RIVER
from exafield.climate.grid import Grid, distance
from exafield.climate.snapshot import Time

# A pair of events that must not be joined costs more than any number of pairs that may.
_NEVER = 1e6


@dataclass(eq=False)
class Track:
    """One cyclone or river through its life.

    Args:
        number: among the tracks of a tracker, from 1.
        kind: class.
        events: in the order of time.
        parent: number of the track from which it split off, if it did.
        merged_into: number of the track that it became part of, if it did.
    """

    number: int
    kind: int
    events: list[Event]
    parent: int | None = None
    merged_into: int | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """A track in one row. What was not given to measure it by is NaN."""

    number: Annotated[int, "1", "of the track, from 1"]
    kind: Annotated[int, "1", "class: 1 tropical cyclone, 2 atmospheric river"]
    start: Annotated[Time, "", "first time"]
    end: Annotated[Time, "", "last time"]
    duration: Annotated[float, "h", "from the first time to the last"]
    snapshots: Annotated[int, "1", "how many times it was seen"]
    basin: Annotated[str, "", "where it began, as of IBTrACS"]
    latitude: Annotated[float, "degrees_north", "where it began"]
    longitude: Annotated[float, "degrees_east", "where it began"]
    last_latitude: Annotated[float, "degrees_north", "where it ended"]
    last_longitude: Annotated[float, "degrees_east", "where it ended"]
    path: Annotated[float, "km", "length of the way along great circles"]
    mean_area: Annotated[float, "m2", "on average over its snapshots"]
    largest_area: Annotated[float, "m2", "at its largest"]
    peak_wind: Annotated[float, "m s-1", "strongest wind"]
    minimum_pressure: Annotated[float, "Pa", "lowest pressure at sea level"]
    precipitation: Annotated[float, "m3", "water that fell inside, rates joined by straight lines in time"]
    mean_transport: Annotated[float, "kg s-1", "vapour carried by a river, on average over its snapshots"]
    largest_transport: Annotated[float, "kg s-1", "vapour carried by a river, at its strongest"]
    parent: Annotated[int, "1", "track from which it split off, 0 if none"]
    merged_into: Annotated[int, "1", "track that it became part of, 0 if none"]


def summary(track: Track) -> Summary:
    """A track in one row."""
    events = track.events
    first, last = events[0], events[-1]
    latitude, longitude, area, wind, pressure, rain, transport = (
        np.array([getattr(event, name) for event in events])
        for name in ("latitude", "longitude", "area", "peak_wind", "minimum_pressure", "precipitation", "transport")
    )
    timed = first.time is not None
    hours = np.array([clock.seconds(first.time, event.time) / 3600 if timed else np.nan for event in events])
    return Summary(
        number=track.number, kind=track.kind, start=first.time, end=last.time, duration=float(hours[-1]),
        snapshots=len(events), basin=first.basin, latitude=first.latitude, longitude=first.longitude,
        last_latitude=last.latitude, last_longitude=last.longitude,
        path=float(distance(latitude[:-1], longitude[:-1], latitude[1:], longitude[1:]).sum() / 1e3),
        mean_area=float(area.mean()), largest_area=float(area.max()),
        peak_wind=float(wind.max()), minimum_pressure=float(pressure.min()),
        precipitation=float(np.trapezoid(rain, hours * 3600)),
        mean_transport=float(transport.mean()), largest_transport=float(transport.max()),
        parent=track.parent or 0, merged_into=track.merged_into or 0,
    )  # fmt: skip


@dataclass
class Tracker:
    """Joins the events of successive snapshots.

    Events of one class are joined where they overlap; those left, where the next is near enough. All pairs are weighed
    at once, so that two storms that pass each other keep their numbers. Of events that merge, the track goes on whose
    last shape is most like the new one, and the others end there; of one that splits, likewise.

    Args:
        grid: of all snapshots.
        overlap: least overlap to join, as a share of the smaller of the two areas; our choice.
        speed: fastest that the centre may move, by class [m/s]; our choice. For cyclones that of a fast one after its
            turn to the pole; centroids of rivers jump as ends come and go.
        patience: longest time between two events of a track where snapshots between have none [h]; our choice, for
            an event that drops below a threshold once at 6 hours, or thrice at 3.
    """

    grid: Grid
    overlap: float = 0.1
    speed: dict[int, float] = field(default_factory=lambda: {CYCLONE: 25.0, RIVER: 40.0})
    patience: float = 12.0
    _open: list[Track] = field(default_factory=list, init=False)
    _numbers: NDArray[np.int32] | None = field(default=None, init=False)
    _time: Time = field(default=None, init=False)
    _count: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.overlap <= 1:
            raise ValueError(f"overlap must be above 0 and at most 1, got {self.overlap}")
        if self.patience < 0 or min(self.speed.values()) < 0:
            raise ValueError(f"patience and speeds must not be below 0, got {self.patience} and {self.speed}")

    def step(self, found: Found) -> list[Track]:
        """Takes the next snapshot. Returns the tracks that have ended, which it then forgets.

        Raises:
            ValueError: it has no time, is not later than the one before, or is on another grid.
        """
        if found.numbers.shape != self.grid.shape:
            raise ValueError(f"the snapshot is on a grid of {found.numbers.shape}, the tracker on {self.grid.shape}")
        if found.time is None:
            raise ValueError("tracking needs the time of each snapshot")
        if self._time is not None and clock.seconds(self._time, found.time) <= 0:
            raise ValueError(
                f"{clock.text(found.time)} is not later than the snapshot before, {clock.text(self._time)}"
            )
        likeness = self._overlaps(found)
        home: dict[int, Track] = {}  # by number of the event
        for kind in sorted({event.kind for event in found.events}):
            tracks = [track for track in self._open if track.kind == kind]
            events = [event for event in found.events if event.kind == kind]
            for i, j in self._pairs(tracks, events, likeness, found.time):
                home[events[j].number] = tracks[i]
        continued = {track.number for track in home.values()}
        for event in found.events:
            if event.number not in home:
                self._count += 1
                parents = [(like, a) for (a, b), like in likeness.items() if b == event.number and a in continued]
                home[event.number] = Track(self._count, event.kind, [], max(parents)[1] if parents else None)
        ended = self._close(home, likeness, found)
        for event in found.events:
            home[event.number].events.append(event)
        self._open = [track for track in self._open if track not in ended]
        self._open += [track for track in home.values() if len(track.events) == 1]
        self._numbers, self._time = found.numbers, found.time
        return ended

    def finish(self) -> list[Track]:
        """Ends all tracks that are still open, and returns them."""
        ended, self._open, self._numbers = self._open, [], None
        return ended

    def _close(self, home: dict[int, Track], likeness: dict[tuple[int, int], float], found: Found) -> list[Track]:
        """The tracks that end: they merged into another, or were not seen for too long."""
        continued = {track.number for track in home.values()}
        ended = []
        for track in self._open:
            if track.number in continued:
                continue
            hosts = [(like, b) for (a, b), like in likeness.items() if a == track.number]
            if hosts:
                track.merged_into = home[max(hosts)[1]].number
            if hosts or clock.seconds(track.events[-1].time, found.time) > self.patience * 3600:
                ended.append(track)
        return ended

    def _overlaps(self, found: Found) -> dict[tuple[int, int], float]:
        """Of each track and event that overlap enough, by their numbers: shared area over the area of both together."""
        if self._numbers is None:
            return {}
        both = (self._numbers > 0) & (found.numbers > 0)
        width = len(found.events) + 1
        key, where = np.unique(self._numbers[both].astype(np.int64) * width + found.numbers[both], return_inverse=True)
        shared = np.bincount(where, self.grid.areas[both])
        last = {track.events[-1].number: track for track in self._open if track.events[-1].time == self._time}
        likeness = {}
        for pair, area in zip(key, shared, strict=True):
            before, now = divmod(int(pair), width)
            if before in last and last[before].kind == found.events[now - 1].kind:
                old, new = last[before].events[-1].area, found.events[now - 1].area
                if area >= self.overlap * min(old, new):
                    likeness[last[before].number, now] = float(area / (old + new - area))
        return likeness

    def _pairs(
        self, tracks: Sequence[Track], events: Sequence[Event], likeness: dict[tuple[int, int], float], time: Time
    ) -> list[tuple[int, int]]:
        """Which of the tracks goes on in which of the events."""
        if not tracks or not events:
            return []
        places = [event.latitude for event in events], [event.longitude for event in events]
        apart = np.full((len(tracks), len(events)), _NEVER)
        near = np.full((len(tracks), len(events)), _NEVER)
        for i, track in enumerate(tracks):
            last = track.events[-1]
            passed = clock.seconds(last.time, time)
            # The step after a snapshot is always allowed, however long; only gaps try the patience.
            if last.time != self._time and passed > self.patience * 3600:
                continue
            apart[i] = [1.0 - likeness.get((track.number, event.number), -_NEVER) for event in events]
            reach = self.speed[track.kind] * passed
            away = distance(last.latitude, last.longitude, *places)
            near[i] = np.where(away <= reach, away / max(reach, 1.0), _NEVER)
        # Overlaps come first, so that no event nearby takes a track away from where it lies: not even a track whose
        # place another one has taken, for that has merged.
        joined = _assigned(apart)
        near[(apart < _NEVER).any(axis=1)] = _NEVER
        near[:, [j for _, j in joined]] = _NEVER
        return joined + _assigned(near)


def _assigned(cost: NDArray[np.float64]) -> list[tuple[int, int]]:
    """As many pairs as there may be, of these the cheapest."""
    pairs = zip(*optimize.linear_sum_assignment(cost), strict=True)
    return [(int(i), int(j)) for i, j in pairs if cost[i, j] < _NEVER]
