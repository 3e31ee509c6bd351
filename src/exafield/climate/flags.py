"""What the commands on climate files take."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from exafield.climate.fields import CHANNELS
from exafield.climate.masks import How, OnError
from exafield.setting import RunError, pairs
from exafield.suggestion import unknown


def channel_pairs(flag: str, given: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """CHANNEL=VALUE as a mapping.

    Raises:
        RunError: one is written otherwise, or names no channel.
    """
    result = pairs(flag, ",".join(given))
    for name, value in result.items():
        if name not in known:
            raise RunError(f"{flag} {name}={value}: {unknown('channel', name, known)}")
    return result


@dataclass(frozen=True)
class Reading:
    """How fields are read.

    Args:
        names: CHANNEL=VARIABLE where it cannot be known which variable a channel is, such as TMQ=IWV,PSL=slp.
        units: CHANNEL=UNIT where a file tells none or a wrong one, such as PSL=hPa.
        fill: take the nearest value where one is missing. Else such a snapshot is refused.
        implausible: read also values that a channel cannot have.
    """

    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    fill: tyro.conf.FlagCreatePairsOff[bool] = False
    implausible: tyro.conf.FlagCreatePairsOff[bool] = False

    def how(self, channels: Sequence[str] = ()) -> How:
        """As the readers take it."""
        known = [*CHANNELS, "IVT", *channels]
        return How(
            channel_pairs("--names", self.names, known), channel_pairs("--units", self.units, known),
            "nearest" if self.fill else None, not self.implausible,
        )  # fmt: skip


@dataclass(frozen=True)
class EventsOf:
    """Finds the storms in masks, follows them in time, and writes tables, maps and pictures of them.

    An event is a connected region of one class at one time, a track an event followed from one time to the next.
    Without fields, only their places, areas, durations and paths are known. The files of fields may hold all channels,
    or each its own; they belong to masks by their time. TMQ, U850, V850, UBOT, VBOT, PSL, PRECT and IVT are of use.

    Args:
        masks: files or folders with masks: what exafield climate label or a network wrote, or labelled data.
        fields: files or folders with fields of the same times on the same grid.
        best_tracks: file to compare the cyclones with: IBTrACS (NetCDF), HURDAT2, or TempestExtremes (CSV).
        out: folder for all that is written.
        film: also make an animated picture of all snapshots.
        tables_only: make no pictures.
        variable: that holds the masks. None: LABELS, labels or label.
        version: of the masks, where a file has several.
        smallest: area of an event [km2]; smaller ones are left out.
        overlap: least overlap to follow an event, as a share of the smaller of the two areas.
        patience: longest time for which a track may be unseen [h].
        shortest: duration of a track [h]; shorter ones stand in the tables, but are not counted, drawn or compared.
        within: greatest distance from a best track [km].
        hours: greatest difference in time from a position of a best track [h].
        on_error: what a snapshot that cannot be read does: stop, or be skipped and told.
        reading: how fields are read.
    """

    masks: tyro.conf.Positional[tuple[str, ...]]
    fields: tuple[str, ...] = ()
    best_tracks: Path | None = None
    out: Path = Path("storms")
    film: tyro.conf.FlagCreatePairsOff[bool] = False
    tables_only: tyro.conf.FlagCreatePairsOff[bool] = False
    variable: str | None = None
    version: int = 0
    smallest: float = 0.0
    overlap: float = 0.1
    patience: float = 12.0
    shortest: float = 0.0
    within: float = 300.0
    hours: float = 3.0
    on_error: OnError = "stop"
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True)
class Simulate:
    """Makes some days of a synthetic atmosphere, with the masks of its storms, one file for each time.

    Args:
        folder: of the files.
        start: first time, UTC, such as 2011-08-01.
        days: how many.
        hours: between two snapshots.
        latitudes: rows of the global grid, poles included.
        longitudes: columns of the grid.
        weather_seed: 0 or more; other seeds have other weather in the same climate.
        engine: what runs it: processes (all cores), or another that maps, see exafield taskbench engines.
        engine_address: of a cluster of that system that is up already. None: it is started here.
    """

    folder: tyro.conf.Positional[Path]
    start: str = "2011-08-01"
    days: int = 10
    hours: int = 3
    latitudes: int = 144
    longitudes: int = 216
    weather_seed: int = 0
    engine: str = "processes"
    engine_address: str | None = None


@dataclass(frozen=True)
class Label:
    """Labels fields by rules of thumb: cyclones by vorticity, pressure and warm core, rivers by moisture and shape.

    Args:
        files: files or folders with fields.
        out: file for the masks; its name ends in .nc or .zarr.
        variant: corrected, or published with the slips of the code behind the published labels.
        rule: for rivers: label 0 or label 1 (by moisture), transport 94 or transport 95.
        rivers_only: look for no cyclones, which need fields of more channels.
        engine: what runs it: processes (all cores), or another that maps, see exafield taskbench engines.
        engine_address: of a cluster of that system that is up already. None: it is started here.
        on_error: what a snapshot that cannot be read does: stop, or be skipped and told in the file.
        reading: how fields are read.
    """

    files: tyro.conf.Positional[tuple[str, ...]]
    out: Path
    variant: Literal["corrected", "published"] = "corrected"
    rule: str = "label 0"
    rivers_only: tyro.conf.FlagCreatePairsOff[bool] = False
    engine: str = "processes"
    engine_address: str | None = None
    on_error: OnError = "stop"
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True)
class Show:
    """Makes a picture of one snapshot.

    Args:
        files: files or folders with fields.
        masks: file of masks. None: the labels in the files, if there are some.
        time: of the snapshot, such as 2003-10-24T06. None: the first.
        fields: what to show, below each other: channels, or variables of the file. None: one that there is.
        out: the picture.
        reading: how fields are read.
    """

    files: tyro.conf.Positional[tuple[str, ...]]
    masks: str | None = None
    time: str | None = None
    fields: tuple[str, ...] = ()
    out: Path = Path("snapshot.png")
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True)
class Describe:
    """Tells what the reader finds in files, before anything is trained or applied.

    The exit code is 1 if a file cannot be read, or holds what a training would refuse.

    Args:
        files: files, folders or patterns.
        samples: snapshots of which values are read, spread over files that are alike.
        reading: how fields are read.
    """

    files: tyro.conf.Positional[tuple[str, ...]]
    samples: int = 8
    reading: Reading = field(default_factory=Reading)
