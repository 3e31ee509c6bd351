"""The command `exafield climate`: parsing, printing and files. What is found and measured is elsewhere."""

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from exafield.climate import clock
from exafield.climate.fields import CHANNELS
from exafield.climate.masks import MEASURES, Fields, How, Masks, OnError, moment, present
from exafield.climate.snapshot import SnapshotError
from exafield.suggestion import unknown

FAILED, USAGE = 1, 2
# Seconds between lines about how far it is; our choice.
_PATIENCE = 10.0

_HELP = """\
usage: exafield climate COMMAND [OPTIONS]

  describe FILES      what the reader finds in files: grid, channels, units, times, labels, ranges, and what is wrong
  show FILES          a picture of a snapshot: fields, and outlines of its masks
  label FILES         masks of cyclones and rivers by rules of thumb, without a network
  events MASKS        storms in masks: events followed in time, tables, maps, counts, shares of rain, best tracks

exafield climate COMMAND --help says more. A network is trained by exafield train climate.
"""


class CommandError(RuntimeError):
    """Something about what was asked for is wrong; says what, and what to do."""


@dataclass(frozen=True)
class Reading:
    """How fields are read.

    Args:
        names: CHANNEL=VARIABLE where it cannot be known which variable a channel is, such as TMQ=IWV.
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
            _pairs("--names", self.names, known), _pairs("--units", self.units, known),
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


def main(argv: Sequence[str]) -> int:
    """Runs a command, given without `exafield climate`; returns the exit code.

    Raises:
        SnapshotError, TrackFileError: a file cannot be read, or does not fit the others.
        StoreError: something cannot be written.
        EngineError: an engine failed.
        ImportError: a package is not installed.
    """
    commands: Mapping[str, Callable[[list[str]], int]] = {
        "describe": _describe,
        "show": _show,
        "label": _label,
        "events": _events,
    }
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0 if argv else USAGE
    try:
        if argv[0] not in commands:
            raise CommandError(unknown("command", f"climate {argv[0]}", [f"climate {name}" for name in commands]))
        return commands[argv[0]](list(argv[1:]))
    except CommandError as error:
        print(f"exafield: {error}", file=sys.stderr, flush=True)
        return USAGE
    except SnapshotError as error:
        raise SnapshotError(as_flags(str(error))) from error


_Arguments = TypeVar("_Arguments")


def _parsed(kind: type[_Arguments], command: str, argv: list[str]) -> _Arguments:
    if not argv:
        raise CommandError(f"exafield climate {command}: which files? --help says more")
    return tyro.cli(kind, prog=f"exafield climate {command}", args=argv, config=(tyro.conf.OmitArgPrefixes,))


# What messages of the library advise, and how it is said on the command line.
_SPELLED = (
    (r"(names|units)=\{'(\w+)': '(\w[^']*)'\}", r"--\1 \2=\3"),
    (r"fill='nearest'", "--fill"),
    (r"plausible=False", "--implausible"),
    (r"cyclones=False", "--rivers-only"),
)


def as_flags(text: str) -> str:
    """A message in which what it advises is spelled as options of the command."""
    for pattern, flag in _SPELLED:
        text = re.sub(pattern, flag, text)
    return text


def _pairs(flag: str, given: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE as a mapping."""
    result = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise CommandError(f"{flag} {text}: it is to be CHANNEL=VALUE")
        if name not in known:
            raise CommandError(f"{flag} {text}: {unknown('channel', name, known)}")
        result[name] = value
    return result


def _progress() -> Callable[[str], None]:
    """Lines on how far it is, every few seconds."""
    last = time.monotonic()

    def say(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _PATIENCE:
            last = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    return say


def _describe(argv: list[str]) -> int:
    arguments = _parsed(Describe, "describe", argv)
    from exafield.climate.description import describe

    if arguments.samples < 1:
        raise CommandError(f"--samples {arguments.samples}: at least one snapshot must be looked at")
    lines, good = describe(arguments.files, arguments.reading.how(), arguments.samples)
    print(as_flags("\n".join(lines)))
    return 0 if good else FAILED


def _show(argv: list[str]) -> int:
    arguments = _parsed(Show, "show", argv)
    from exafield.climate import plots
    from exafield.climate.reading import find_files, open_snapshots
    from exafield.climate.study import SHOWN, unit

    how = arguments.reading.how(arguments.fields)
    fields = arguments.fields
    if not fields:
        path = find_files(arguments.files)[0]
        there, absent = present(path, [*MEASURES, *CHANNELS], how)
        if not there:
            raise CommandError(f"{path} has nothing that is known: say what to show by --fields; {absent['TMQ']}")
        fields = there[:1]
    snapshots = open_snapshots(
        arguments.files, channels=fields, names=how.names, units=how.units, fill=how.fill, plausible=how.plausible
    )
    with snapshots:
        index = _at(snapshots.times, arguments.time)
        snapshot = snapshots[index]
        mask = snapshot.labels
        if arguments.masks is not None:
            masks = Masks([arguments.masks])
            at = [number for number, one in enumerate(masks.times) if moment(one) == moment(snapshot.time)]
            if not at:
                raise CommandError(f"{arguments.masks} has no mask of {clock.text(snapshot.time)}")
            mask = masks[at[0]]
            if mask.shape != snapshot.grid.shape:
                raise SnapshotError(f"{masks.locate(at[0])} has shape {mask.shape}, the fields {snapshot.grid.shape}")
        shown = {unit(name): snapshot[name] * SHOWN.get(name, (1.0, ""))[0] for name in fields}
        _folder(arguments.out.parent)
        plots.panels(arguments.out, shown, snapshot.grid, mask, title=clock.text(snapshot.time).replace("T", " "))
    print(arguments.out)
    return 0


def _at(times: Sequence[Any], wanted: str | None) -> int:
    """Which of the times it is; a beginning, such as a day, stands for the first."""
    if wanted is None:
        return 0
    texts = [clock.text(one) for one in times]
    for index, text in enumerate(texts):
        if text.startswith(wanted.replace(" ", "T")):
            return index
    some = ", ".join(texts[:4]) + (f" ... {texts[-1]}" if len(texts) > 4 else "")
    raise CommandError(f"--time {wanted}: there are {some}")


def _label(argv: list[str]) -> int:
    arguments = _parsed(Label, "label", argv)
    from exafield.climate.heuristics.rivers import RULES
    from exafield.climate.labelling import label_files
    from exafield.engine import MapEngine, engine

    address = {} if arguments.engine_address is None else {"address": arguments.engine_address}
    try:
        chosen = engine(arguments.engine, **address)
    except ValueError as error:
        raise CommandError(str(error)) from error
    if not isinstance(chosen, MapEngine):
        raise CommandError(
            f"engine {arguments.engine!r} runs task graphs only: exafield taskbench engines tells which map"
        )
    if arguments.out.suffix not in (".nc", ".nc4", ".zarr"):
        raise CommandError(f"--out {arguments.out}: choose a name that ends in .nc or .zarr")
    if arguments.rule not in RULES:
        raise CommandError(f"--rule: {unknown('rule', arguments.rule, RULES)}")
    try:
        summary = label_files(
            arguments.files, arguments.out, variant=arguments.variant, rule=arguments.rule,
            cyclones=not arguments.rivers_only, engine=chosen, how=arguments.reading.how(), on_error=arguments.on_error,
            say=print,
        )  # fmt: skip
    except ValueError as error:
        raise CommandError(as_flags(str(error))) from error
    print("\n".join(summary.lines()))
    return 0


def _folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot make the folder {path}: {error.strerror}") from error


def _events(argv: list[str]) -> int:
    arguments = _parsed(EventsOf, "events", argv)
    from exafield.climate import storms
    from exafield.climate.digest import digest
    from exafield.climate.study import Limits, Study, tidy

    if arguments.within <= 0 or arguments.hours < 0:
        raise CommandError(
            f"--within must be above 0 and --hours not below, got {arguments.within:g} and {arguments.hours:g}"
        )
    try:
        limits = Limits(arguments.smallest * 1e6, arguments.overlap, arguments.patience, arguments.shortest)
    except ValueError as error:
        raise CommandError(str(error)) from error
    how = arguments.reading.how()
    best = None if arguments.best_tracks is None else storms.read(arguments.best_tracks)
    masks = Masks(arguments.masks, version=arguments.version, variable=arguments.variable, on_error=arguments.on_error)
    fields = Fields(arguments.fields, masks.grid, how, arguments.on_error) if arguments.fields else None
    try:
        if fields is not None and arguments.on_error == "stop":
            fields.check(masks.times)
        if best is not None:
            best = storms.covered(best, masks.times[0], masks.times[-1], masks.grid)
        _folder(arguments.out)
        study = Study(masks, fields, limits, arguments.on_error, _progress())
        film = arguments.out / "film.gif" if arguments.film else None
        taken = study.run(film)
        files = study.write(arguments.out, masks.attributes)
        print(as_flags("\n".join(digest(study, masks, fields, taken))))
        if best is not None:
            lines, more = study.beside(arguments.out, best, arguments.within * 1e3, arguments.hours, masks.attributes)
            files += more
            print("\n".join(["", *lines]))
        files += [] if arguments.tables_only else study.draw(arguments.out, best or ())
        if film is not None:
            files.append(film)
            if study.every > 1:
                print(f"\n{film} shows one snapshot in {study.every}")
        tidy(arguments.out, files)
    finally:
        masks.close()
        if fields is not None:
            fields.close()
    print(f"\n{arguments.out}: {', '.join(path.name for path in files)}")
    for reason in study.skipped:
        print(f"left out: {reason}", file=sys.stderr)
    return 0
