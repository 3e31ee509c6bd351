"""What the reader finds in files: grid, channels and units, times, labels, ranges; and what is wrong with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.climate import checks, clock
from exafield.climate.cam5 import GroupReader
from exafield.climate.fields import CHANNELS, CLASSES
from exafield.climate.layouts import Reader, calendar_of, open_reader, time_text
from exafield.climate.masks import How, nowhere
from exafield.climate.names import LABEL_NAMES
from exafield.climate.reading import find_files
from exafield.climate.snapshot import Axes, Time
from exafield.climate.units import conversion
from exafield.suggestion import counted

_INDENT = " " * 12


@dataclass(eq=False)
class _Alike:
    """Files with the same grid, channels and units."""

    kind: str
    axes: Axes
    channels: dict[str, tuple[str, str | None]]  # variable and unit
    absent: dict[str, str]
    others: list[str]
    files: list[str] = field(default_factory=list)
    places: list[tuple[str, int, Time]] = field(default_factory=list)


@dataclass(eq=False)
class _Seen:
    """What the values of some snapshots are."""

    # Lowest value, sum of value times area, highest value, sum of area.
    ranges: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    classes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(CLASSES), np.int64))
    labelled: int = 0
    versions: int = 0
    problems: dict[str, str] = field(default_factory=dict)  # by what it concerns; the first of each


def describe(paths: Sequence[str], how: How, samples: int = 8) -> tuple[list[str], bool]:
    """Lines to print, and whether all can be read as it is.

    Args:
        paths: files, folders or patterns.
        how: names and units that the user gives.
        samples: snapshots of which values are read, spread over files that are alike.
    Raises:
        SnapshotError: there are no files.
    """
    groups: list[_Alike] = []
    broken: list[str] = []
    for path in find_files(paths):
        try:
            mine, times = _header(path, how)
        except Exception as error:  # readers of damaged files raise whatever they stumble over
            if isinstance(error, ImportError):
                raise
            broken.append(str(error) if path in str(error) else f"{path}: {error}")
            continue
        group = next((one for one in groups if _same(one, mine)), mine)
        if group is mine:
            groups.append(mine)
        group.files.append(path)
        group.places += [(path, at, time) for at, time in enumerate(times)]
    rows: list[str] = []
    good = not broken
    for group in groups:
        seen = _look(group, how, samples)
        twice = len({str(time) for _, _, time in group.places}) < len(group.places)
        good = good and not seen.problems and not twice and not any(name in group.absent for name in how.names)
        rows += [*_lines(group, seen, min(samples, len(group.places)), how), ""]
    if len({str(group.axes) for group in groups}) > 1:
        good = False
        rows += ["The files are on different grids: they cannot be read together.", ""]
    fields = [group for group in groups if group.channels]
    common = [name for name in CHANNELS if all(name in group.channels for group in fields)]
    if len(fields) > 1:
        rows += [f"Channels that all files have: {', '.join(common) or 'none'}.", ""]
    rows += [f"cannot be read: {text}" for text in broken]
    return rows[:-1] if rows and not rows[-1] else rows, good


def _header(path: str, how: How) -> tuple[_Alike, Sequence[Time]]:
    reader = open_reader(path, how.names)
    try:
        channels, absent = {}, {}
        for name in CHANNELS:
            try:
                channels[name] = reader.variable(name), how.units.get(name, reader.unit(name))
            except LookupError as error:
                absent[name] = str(error.args[0] if error.args else error)
        used = {variable for variable, _ in channels.values()} | {*LABEL_NAMES, how.names.get("labels")}
        others = [name for name in reader.variables if name not in used]
        return _Alike(_kind(path, reader), reader.axes, channels, absent, others), reader.times
    finally:
        reader.close()


def _kind(path: str, reader: Reader) -> str:
    if isinstance(reader, GroupReader):
        return "HDF5 in the layout of the published set"
    if "://" in path or Path(path).is_dir():
        return "Zarr"
    with open(path, "rb") as file:
        return "NetCDF-3" if file.read(3) == b"CDF" else "NetCDF-4"


def _same(one: _Alike, other: _Alike) -> bool:
    return (one.kind, one.channels, one.others) == (other.kind, other.channels, other.others) and one.axes == other.axes


def _look(group: _Alike, how: How, samples: int) -> _Seen:
    seen = _Seen()
    chosen = np.unique(np.linspace(0, len(group.places) - 1, min(samples, len(group.places))).round().astype(int))
    for index in chosen if group.places else ():
        path, at, time = group.places[index]
        try:
            reader = open_reader(path, how.names)
        except Exception as error:  # as above: it could be opened a moment ago
            seen.problems.setdefault(path, str(error))
            continue
        try:
            for what, problem in _values(reader, at, group, seen, how):
                seen.problems.setdefault(what, f"{problem} ({path}, {time_text(time)})")
        finally:
            reader.close()
    return seen


def _values(reader: Reader, at: int, group: _Alike, seen: _Seen, how: How) -> Iterator[tuple[str, str]]:
    """Takes in one snapshot; yields what is wrong with it."""
    axes = reader.axes
    for channel, (_, unit) in group.channels.items():
        try:
            raw = axes.arrange(reader.read(at, [channel])[0]).astype(np.float32)
            lack = checks.missing(raw, axes)
            if lack and (how.fill is None or not np.isfinite(raw).any()):
                yield channel, f"{channel}: {lack}; fill='nearest' takes the nearest value there is"
            field = checks.in_channel_units(channel, unit, raw)
            there = np.isfinite(field)
            if there.any():
                values, areas = field[there], axes.grid.areas[there]
                low, total, high, area = seen.ranges.get(channel, (np.inf, 0.0, -np.inf, 0.0))
                seen.ranges[channel] = (
                    min(low, float(values.min())), total + float(np.vdot(values, areas)),
                    max(high, float(values.max())), area + float(areas.sum()),
                )  # fmt: skip
                if how.plausible:
                    checks.plausible(channel, unit, field, axes.grid)
        except Exception as error:
            text = str(error)
            yield channel, text if text.startswith(channel) else f"{channel}: {text}"
    try:
        labels = reader.labels(at, 0)
        if labels is None:
            return
        seen.labelled += 1
        seen.classes += np.bincount(checks.labels_of(axes.arrange(labels), axes).ravel(), minlength=len(CLASSES))
        while seen.versions < 1 or _has_version(reader, at, seen.versions):
            seen.versions += 1
    except Exception as error:
        yield "labels", f"labels: {error}"


def _has_version(reader: Reader, at: int, version: int) -> bool:
    try:
        return reader.labels(at, version) is not None
    except LookupError:
        return False


def _lines(group: _Alike, seen: _Seen, looked: int, how: How) -> Iterator[str]:
    count = len(group.files)
    yield f"{group.files[0]}{f' and {count - 1} more like it' if count > 1 else ''}: {group.kind}"
    yield f"  grid      {_grid(group.axes)}"
    yield f"  times     {_times([time for *_, time in group.places])}"
    yield f"  channels  {len(group.channels)} of {len(CHANNELS)}"
    told = {name: (variable, _unit(name, unit)) for name, (variable, unit) in group.channels.items()}
    wide = [2 + max(map(len, column)) for column in zip(("variable", "unit"), *told.values(), strict=True)]
    if told:
        head = f"{'channel':9s}{'variable':{wide[0]}s}{'unit':{wide[1]}s}"
        yield f"{_INDENT}{head}{'lowest':>11s}{'area mean':>11s}{'highest':>11s}"
    for channel, (variable, unit) in told.items():
        low, total, high, area = seen.ranges.get(channel, (np.nan, np.nan, np.nan, 1.0))
        values = "".join(f"{value:11.4g}" for value in (low, total / area, high))
        yield f"{_INDENT}{channel:9s}{variable:{wide[0]}s}{unit:{wide[1]}s}{values}"
    if group.absent:
        yield f"  missing   {', '.join(group.absent)}"
    # That a channel is nowhere says the line above; that it may be one of several, or at no level, is worth a line.
    for name, reason in group.absent.items():
        if not nowhere(reason):
            yield f"{_INDENT}{name}: {reason}"
    if group.others:
        yield f"  also      {', '.join(group.others)}"
    if seen.labelled:
        part = seen.classes / max(int(seen.classes.sum()), 1)
        shares = ", ".join(f"{name} {share:.2%}" for name, share in zip(CLASSES, part, strict=True))
        several = f", {seen.versions} versions" if seen.versions > 1 else ""
        yield f"  labels    in {seen.labelled} of {counted(looked, 'snapshot')}{several}; of the cells: {shares}"
    else:
        yield "  labels    none"
    of = f"in {looked} of {counted(len(group.places), 'snapshot')}, which {'was' if looked == 1 else 'were'} looked at"
    if not seen.problems:
        yield f"  problems  none {of}"
        return
    yield f"  problems  {len(seen.problems)}, {of}:"
    for text in seen.problems.values():
        yield f"{_INDENT}{text}"


def _grid(axes: Axes) -> str:
    north, east = axes.grid.latitude, axes.grid.longitude
    order = ", stored from north to south" if axes.latitude[0] > axes.latitude[-1] else ""
    whole = "round the globe" if axes.grid.periodic else "a region"
    again = f", {axes.longitude.size} columns in the file, of which the last is the first again" if axes.repeats else ""
    places = f"{_place(north[0], 'SN')} to {_place(north[-1], 'SN')} {_steps(north)}"
    return (
        f"{axes.grid.shape[0]} x {axes.grid.shape[1]}: {places}, {_place(east[0], 'WE')} to "
        f"{_place(east[-1], 'WE')} {_steps(east)}; {whole}{again}{order}"
    )


def _place(value: float, sides: str) -> str:
    return f"{abs(value):g} {sides[int(value >= 0)]}"


def _steps(axis: NDArray[np.float64]) -> str:
    steps = np.diff(axis)
    if np.ptp(steps) < 2e-3 * steps.mean():  # coordinates in single precision
        return f"every {steps.mean():.4g}"
    return f"in steps of {steps.min():.4g} to {steps.max():.4g}"


def _times(times: Sequence[Time]) -> str:
    known = [time for time in times if time is not None]
    if not known:
        return f"{len(times)}, not told"
    if len({calendar_of(time) for time in known}) > 1:
        return f"{len(times)}, of several calendars"
    known.sort()
    steps = sorted({clock.seconds(a, b) / 3600 for a, b in pairwise(known)})
    every = ""
    if steps:
        every = f", every {steps[0]:g} h" if len(steps) == 1 else f", {steps[0]:g} to {steps[-1]:g} h apart"
    span = f", {time_text(known[0])}" + (f" to {time_text(known[-1])}" if len(known) > 1 else "")
    untold = f", {len(times) - len(known)} not told" if len(known) < len(times) else ""
    return f"{len(times)}{span}{every}, calendar {calendar_of(known[0])}{untold}"


def _unit(channel: str, unit: str | None) -> str:
    """Unit of the channel, and how it comes about."""
    known: Any = CHANNELS[channel]
    if unit is None:
        return f"{known.unit} (taken for it)"
    try:
        way = conversion(known, unit)
    except ValueError:
        return f"{known.unit} (not from {unit})"
    if way.factor == 1.0 and way.offset == 0.0:
        return str(known.unit)
    plus = f" {'+' if way.offset > 0 else '-'} {abs(way.offset):g}" if way.offset else ""
    return f"{known.unit} ({unit} x {way.factor:.4g}{plus})"
