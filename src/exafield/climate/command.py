"""The command `exafield climate`: parsing, printing and files. What is found and measured is elsewhere."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exafield.climate import clock
from exafield.climate.advice import as_flags
from exafield.climate.fields import CHANNELS
from exafield.climate.flags import Describe, EventsOf, Label, Show, Simulate
from exafield.climate.masks import MEASURES, Fields, Masks, moment, present, turn
from exafield.climate.snapshot import SnapshotError
from exafield.progress import now_and_then
from exafield.setting import RunError
from exafield.subcommand import Command, carry_out, check_picture, parsed
from exafield.suggestion import counted, unknown

FAILED = 1

_HELP = """\
usage: exafield climate COMMAND [OPTIONS]

  describe FILES      what the reader finds in files: grid, channels, units, times, labels, ranges, and what is wrong
  show FILES          a picture of a snapshot: fields, and outlines of its masks
  simulate FOLDER     some days of a synthetic atmosphere, with the masks of its storms, to try things on
  label FILES         masks of cyclones and rivers by rules of thumb, without a network
  events MASKS        storms in masks: events followed in time, tables, maps, counts, shares of rain, best tracks

exafield climate COMMAND --help says more. A network is trained by exafield train climate.
"""


def main(argv: Sequence[str]) -> int:
    """Runs a command, given without `exafield climate`; returns the exit code.

    Raises:
        SnapshotError, TrackFileError: a file cannot be read, or does not fit the others.
        StoreError: something cannot be written.
        EngineError: an engine failed.
        ImportError: a package is not installed.
    """
    commands: Mapping[str, Command] = {
        "describe": _describe,
        "show": _show,
        "simulate": _simulate,
        "label": _label,
        "events": _events,
    }
    return carry_out("climate", _HELP, commands, argv)


def _describe(argv: list[str]) -> int:
    arguments = parsed(Describe, "climate describe", "which files?", argv)
    from exafield.climate.description import describe

    if arguments.samples < 1:
        raise RunError(f"--samples {arguments.samples}: at least one snapshot must be looked at")
    lines, good = describe(arguments.files, arguments.reading.how(), arguments.samples)
    print(as_flags("\n".join(lines)))
    return 0 if good else FAILED


def _show(argv: list[str]) -> int:
    arguments = parsed(Show, "climate show", "which files?", argv)
    from exafield.climate import plots
    from exafield.climate.reading import find_files, open_snapshots
    from exafield.climate.study import SHOWN, unit

    check_picture(arguments.out)
    how = arguments.reading.how(arguments.fields)
    fields = arguments.fields
    if not fields:
        path = find_files(arguments.files)[0]
        there, absent = present(path, [*MEASURES, *CHANNELS], how)
        if not there:
            raise RunError(f"{path} has nothing that is known: say what to show by --fields; {as_flags(absent['TMQ'])}")
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
                raise RunError(f"{arguments.masks} has no mask of {clock.text(snapshot.time)}")
            first = turn(masks.grid, snapshot.grid)
            if first is None:
                raise SnapshotError(
                    f"{masks.locate(at[0])} is on another grid than the fields: interpolate one of them"
                )
            mask = np.roll(masks[at[0]], -first, -1)
        shown = {
            unit(name, snapshots.unit(index, name)): snapshot[name] * SHOWN.get(name, (1.0, ""))[0] for name in fields
        }
        _folder(arguments.out.parent)
        plots.panels(arguments.out, shown, snapshot.grid, mask, title=clock.title(snapshot.time))
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
    raise RunError(f"--time {wanted}: there are {some}")


def _simulate(argv: list[str]) -> int:
    arguments = parsed(Simulate, "climate simulate", "which files?", argv)
    from exafield.climate.generate import series
    from exafield.engine import map_engine

    try:
        start = np.datetime64(arguments.start, "h")
    except ValueError as error:
        raise RunError(f"--start {arguments.start}: it is to be a time such as 2011-08-01 or 2011-08-01T12") from error
    began = time.monotonic()
    try:
        made = series(
            arguments.folder,
            start,
            24 * arguments.days // max(arguments.hours, 1),
            hours=arguments.hours,
            latitudes=arguments.latitudes,
            longitudes=arguments.longitudes,
            seed=arguments.weather_seed,
            engine=map_engine(arguments.engine, arguments.engine_address),
        )
    except ValueError as error:
        raise RunError(str(error)) from error
    print(f"{arguments.folder}: {counted(made, 'snapshot')} made in {time.monotonic() - began:.1f} s")
    return 0


def _label(argv: list[str]) -> int:
    arguments = parsed(Label, "climate label", "which files?", argv)
    from exafield.climate.heuristics.rivers import RULES
    from exafield.climate.labelling import label_files
    from exafield.engine import map_engine

    if arguments.out.suffix not in (".nc", ".nc4", ".zarr"):
        raise RunError(f"--out {arguments.out}: choose a name that ends in .nc or .zarr")
    if arguments.rule not in RULES:
        raise RunError(f"--rule: {unknown('rule', arguments.rule, RULES)}")
    try:
        summary = label_files(
            arguments.files, arguments.out, variant=arguments.variant, rule=arguments.rule,
            cyclones=not arguments.rivers_only,
            engine=map_engine(arguments.engine, arguments.engine_address),
            how=arguments.reading.how(), on_error=arguments.on_error,
            say=print,
        )  # fmt: skip
    except ValueError as error:
        raise RunError(as_flags(str(error))) from error
    print(as_flags("\n".join(summary.lines())))
    return 0


def _folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {path}: {error.strerror}") from error


def _events(argv: list[str]) -> int:
    arguments = parsed(EventsOf, "climate events", "which files?", argv)
    from exafield.climate import storms
    from exafield.climate.digest import digest
    from exafield.climate.study import Limits, Study, tidy

    if arguments.within <= 0 or arguments.hours < 0:
        raise RunError(
            f"--within must be above 0 and --hours not below, got {arguments.within:g} and {arguments.hours:g}"
        )
    try:
        limits = Limits(arguments.smallest * 1e6, arguments.overlap, arguments.patience, arguments.shortest)
    except ValueError as error:
        raise RunError(str(error)) from error
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
        study = Study(masks, fields, limits, arguments.on_error, now_and_then())
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
