"""From masks to storms: events of each snapshot, followed in time, measured and counted; one snapshot at a time."""

import contextlib
import heapq
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from exafield.climate import bars, besttracks, clock, events, plots, statistics, storms
from exafield.climate.clock import SEASONS
from exafield.climate.events import Event
from exafield.climate.fields import CHANNELS, CLASSES, CYCLONE, RIVER
from exafield.climate.masks import Fields, Masks, OnError
from exafield.climate.snapshot import Axes, SnapshotError, Time
from exafield.climate.tables import Table
from exafield.climate.targets import add_axes, open_target
from exafield.climate.tracking import Summary, Track, Tracker, summary
from exafield.climate.writing import origin
from exafield.store import whole
from exafield.suggestion import counted

# Of the picture of tracks: more than these, the longest, cover each other. Our choice.
_DRAWN = 1000
# Of a film, which is kept in memory: some 100 kB each. Our choice.
_FRAMES = 400
# Fields behind the masks in pictures, the first that there is, and what is written at their colours.
_BEHIND = ("TMQ", "IVT", "PSL", "PRECT")
# All that may be written.
_TABLES = ("events", "tracks", "counts", "shares", "matches")
_PICTURES = ("snapshot", "tracks", "frequency", "counts", "shares")
_FILES = (*(f"{name}{suffix}" for name in _TABLES for suffix in (".csv", ".nc")), "frequency.nc",
          *(f"{name}.png" for name in _PICTURES), "film.gif")  # fmt: skip
#: What is drawn of a field: a factor, and the unit after it.
SHOWN = {"PSL": (1e-2, "hPa"), "PRECT": (3.6e6, "mm h-1"), "PS": (1e-2, "hPa"), "IVT": (1.0, "kg m-1 s-1")}


@dataclass(frozen=True, slots=True)
class TrackedEvent(Event):
    """An event of a track."""

    track: Annotated[int, "1", "number of the track that it belongs to"]


@dataclass(frozen=True)
class Limits:
    """What counts as an event and as a track.

    Args:
        smallest: area of an event [m2]; smaller ones are left out.
        overlap: least overlap to follow an event, as a share of the smaller area.
        patience: longest time for which a track may have no event [h].
        shortest: duration of a track [h]; shorter ones stand in the tables only.
    """

    smallest: float = 0.0
    overlap: float = 0.1
    patience: float = 12.0
    shortest: float = 0.0

    def __post_init__(self) -> None:
        if min(self.smallest, self.patience, self.shortest) < 0 or not 0 < self.overlap <= 1:
            raise ValueError(
                "smallest area, patience and shortest duration must not be below 0, and overlap must be above 0 and at "
                f"most 1; got {self.smallest:g} m2, {self.patience:g} h, {self.shortest:g} h and {self.overlap:g}"
            )


class Study:
    """Goes through masks once, and keeps what tables and pictures need.

    Args:
        masks: to go through.
        values: fields to measure by; None: none.
        limits: of events and tracks.
        on_error: whether a snapshot that cannot be read ends it.
        say: takes lines about how far it is.
    """

    def __init__(
        self, masks: Masks, values: Fields | None, limits: Limits, on_error: OnError, say: Callable[[str], None]
    ) -> None:
        self._masks, self._fields, self._limits, self._on_error, self._say = masks, values, limits, on_error, say
        self.grid = masks.grid
        self.tally = statistics.Tally(self.grid)
        self.events, self.tracks = Table(TrackedEvent), Table(Summary)
        #: Events by class; tracks by class; tracks that last long enough, by class.
        self.seen: Counter[int] = Counter()
        self.followed: Counter[int] = Counter()
        self.lasting: Counter[int] = Counter()
        self.courses: list[besttracks.Course] = []  # of cyclones that last long enough
        self.skipped: list[str] = [*masks.skipped, *(values.skipped if values else ())]
        self._begun: list[Track] = []
        self._longest: list[tuple[float, int, Track]] = []
        self._picture: tuple[int, Time, NDArray[np.uint8], NDArray[np.float64] | None, list[Event]] | None = None
        #: One snapshot in so many is shown in a film.
        self.every = math.ceil(len(masks) / _FRAMES)
        self.behind = next((name for name in _BEHIND if values and name in values.channels), None)

    def run(self, film: Path | None = None) -> int:
        """Takes all snapshots. Returns how many were taken.

        Args:
            film: animated picture to make on the way.
        Raises:
            SnapshotError: one cannot be read, or none can.
        """
        frames = self._frames()
        if film is not None:
            shown = (frame for number, frame in enumerate(frames) if number % self.every == 0)
            with whole(film) as partial:
                try:
                    plots.film(partial, shown, self.grid, unit=unit(self.behind))
                except ValueError as error:
                    raise SnapshotError(f"no snapshot can be read, the first: {self.skipped[0]}") from error
        for _ in frames:
            pass
        taken = int(self.tally.snapshots.sum())
        if not taken:
            raise SnapshotError(f"no snapshot can be read, the first: {self.skipped[0]}")
        return taken

    def _frames(self) -> Iterator[tuple[Time, NDArray[np.uint8], NDArray[np.float64] | None]]:
        tracker = Tracker(self.grid, overlap=self._limits.overlap, patience=self._limits.patience)
        for number, time in enumerate(self._masks.times):
            try:
                mask = self._masks[number]
                values = self._fields.at(time) if self._fields else None
                found = events.find(mask, self.grid, values, time, smallest=self._limits.smallest)
                self.tally.add(mask, values, time)
            except (SnapshotError, ValueError) as error:
                reason = str(error) if isinstance(error, SnapshotError) else f"{self._masks.locate(number)}: {error}"
                if self._on_error == "stop":
                    raise SnapshotError(reason) from error
                self.skipped.append(reason)
                continue
            for track in tracker.step(found):
                self._end(track)
            self.seen.update(event.kind for event in found.events)
            field = None
            if values and self.behind:
                field = values[self.behind].astype(np.float64) * SHOWN.get(self.behind, (1.0, ""))[0]
            self._choose(time, mask, field, found.events)
            self._say(f"{number + 1} of {counted(len(self._masks), 'snapshot')}")
            yield time, mask, field
        for track in tracker.finish():
            self._end(track)

    def _end(self, track: Track) -> None:
        row = summary(track)
        self.tracks.add(row)
        for event in track.events:
            known = {one.name: getattr(event, one.name) for one in fields(Event)}
            self.events.add(TrackedEvent(**known, track=track.number))
        self.followed[track.kind] += 1
        if row.duration < self._limits.shortest:
            return
        self.lasting[track.kind] += 1
        self._begun.append(Track(track.number, track.kind, track.events[:1]))
        if track.kind == CYCLONE:
            self.courses.append(besttracks.from_track(track))
        entry = (row.duration, -track.number, track)
        (heapq.heappush if len(self._longest) < _DRAWN else heapq.heappushpop)(self._longest, entry)

    def _choose(
        self, time: Time, mask: NDArray[np.uint8], field: NDArray[np.float64] | None, found: list[Event]
    ) -> None:
        """Keeps the snapshot with the most cyclones, and of these with the most rivers."""
        worth = sum(1000 if event.kind == CYCLONE else 1 for event in found)
        if self._picture is None or worth > self._picture[0]:
            self._picture = (worth, time, mask, field, found)

    def counts(self) -> list[statistics.Count]:
        """Tracks that last long enough by season, basin and class."""
        return statistics.counts(self._begun)

    def shares(self) -> list[statistics.Share]:
        """Of precipitation, by basin; none without PRECT."""
        return self.tally.shares() if self.tally.rainy else []

    def write(self, folder: Path, source: Mapping[str, str]) -> list[Path]:
        """Writes all tables and maps; returns their paths.

        Raises:
            StoreError: one cannot be written.
        """
        told = origin(source=source)
        titled = told | {"title": "events of extreme weather"}
        files = self.events.write(folder / "events", titled, ("time", "number"), "event")
        titled = told | {"title": "tracks of extreme weather"}
        files += self.tracks.write(folder / "tracks", titled, ("number",), "track")
        counted = Table(statistics.Count).extend(self.counts())
        files += counted.write(folder / "counts", told | {"title": "tracks by season and basin"})
        if shares := self.shares():
            rain = Table(statistics.Share).extend(shares)
            files += rain.write(folder / "shares", told | {"title": "precipitation in extreme weather by basin"})
        files.append(self._write_frequency(folder / "frequency.nc", told))
        return files

    def _write_frequency(self, path: Path, told: Mapping[str, str]) -> Path:
        grid, seasons = self.grid, (None, *SEASONS)
        with whole(path) as partial, contextlib.closing(open_target(partial, ".nc")) as target:
            add_axes(target, Axes(grid.latitude, grid.longitude))
            flags = {"long_name": "season", "flag_values": np.arange(5, dtype=np.int8)}
            flags["flag_meanings"] = " ".join(("all", *SEASONS))
            target.create("season", ("season",), np.arange(5, dtype=np.int8), flags)
            often = {"long_name": "snapshots", "units": "1"}
            number = np.array([self.tally.snapshots.sum(), *self.tally.snapshots[:4]])
            target.create("snapshots", ("season",), number, often)
            for kind, name in ((CYCLONE, "cyclone_frequency"), (RIVER, "river_frequency")):
                maps = np.stack([self.tally.frequency(kind, season) for season in seasons]).astype(np.float32)
                about = {"long_name": f"share of snapshots in which there is a {CLASSES[kind]}", "units": "1"}
                target.create(name, ("season", "lat", "lon"), maps, about)
            target.describe({**told, "title": "frequency of extreme weather"})
        return path

    def draw(self, folder: Path, truth: Sequence[besttracks.Course] = ()) -> list[Path]:
        """Makes all pictures, that of the tracks with best tracks if there are some; returns their paths."""
        grid, files = self.grid, []
        if self._picture is not None:
            _, time, mask, field, found = self._picture
            title = clock.title(time)
            files.append(folder / "snapshot.png")
            plots.snapshot(files[-1], {title: mask}, grid, field, unit=unit(self.behind), events=found)
        files.append(folder / "tracks.png")
        longest = [track for *_, track in sorted(self._longest, key=lambda one: one[1], reverse=True)]
        total = self.lasting.total()
        kept = f"the longest {len(longest)} of {counted(total, 'track')}" if total > len(longest) else ""
        plots.tracks(files[-1], longest, grid, truth, title=kept)
        taken = int(self.tally.snapshots.sum())
        files.append(folder / "frequency.png")
        maps = {CLASSES[kind]: self.tally.frequency(kind) for kind in (CYCLONE, RIVER)}
        plots.frequency(files[-1], maps, grid, title=f"how often, of {counted(taken, 'snapshot')}")
        files.append(folder / "counts.png")
        bars.counts(files[-1], self.counts())
        if shares := self.shares():
            files.append(folder / "shares.png")
            bars.shares(files[-1], shares, title=f"precipitation of {counted(self.tally.rainy, 'snapshot')}")
        return files

    def beside(
        self, folder: Path, truth: list[besttracks.Course], within: float, hours: float, source: Mapping[str, str]
    ) -> tuple[list[str], list[Path]]:
        """Compares the tracks of cyclones with best tracks; returns lines to print, and files.

        Args:
            folder: for the table.
            truth: the storms that could be found.
            within: greatest distance [m].
            hours: greatest difference in time.
            source: attributes of the masks.
        """
        comparison = storms.compared(self.courses, truth, within, hours)
        table = Table(storms.Match).extend(storms.matches(comparison, self.courses, truth))
        told = origin(source=source, title="tracks of cyclones beside best tracks")
        return storms.lines(comparison, within, hours), table.write(folder / "matches", told)


def tidy(folder: Path, written: Sequence[Path]) -> None:
    """Removes what an earlier study left in the folder and this one did not write, such as shares without fields."""
    for name in _FILES:
        if folder / name not in written:
            (folder / name).unlink(missing_ok=True)


def unit(channel: str | None, told: str | None = None) -> str:
    """What is written at the colours of a field in a picture.

    Args:
        channel: its name.
        told: unit of one that is not known here, as its file tells it.
    """
    if channel is None:
        return ""
    what = f", {CHANNELS[channel].meaning}" if channel in CHANNELS else ""
    if channel in SHOWN:
        told = SHOWN[channel][1]
    elif channel in CHANNELS:
        told = CHANNELS[channel].unit
    if not told:
        return channel
    raised = re.sub(r"(?<=[A-Za-z])(?:\*\*|\^)?(-?[0-9]+)", r"$^{\1}$", told.replace("$", r"\$"))
    return f"{channel}{what} [{raised}]"
