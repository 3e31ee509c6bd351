"""Plots of METG measurements, after the figures of arXiv:1908.05790."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exafield.taskbench import published
from exafield.taskbench.metg import THRESHOLDS, Metg, Sweep, duration
from exafield.taskbench.picture import (
    COLOURS,
    GREY,
    Picture,
    blank,
    duration_axis,
    interval_bar,
    kind,
    look,
    looks,
    microseconds,
    rank,
    save,
    what_ran,
    where_it_ran,
)  # fmt: skip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Straight pieces of a curved bar; our choice.
_BENDS = 16

# The name of a series in a picture.
Label = Callable[[Sweep], str]


def by_output(sweep: Sweep) -> str:
    """The engine, and how much every dependency carries."""
    return f"{sweep.engine}, {sweep.graphs[0].output} B"


def by_imbalance(sweep: Sweep) -> str:
    """The engine, and how unequal its tasks are."""
    return f"{sweep.engine}, imbalance {sweep.graphs[0].imbalance:g}"


def efficiency(path: Path, sweeps: Sequence[Sweep], threshold: float = 0.5, label: Label | None = None) -> None:
    """Draws efficiency against granularity. METG is where a curve crosses the line at the threshold.

    Of each size that was run more than once a bar shows where the mean elapsed time puts it from one end of its 95 %
    interval to the other: the longer, the coarser and the less efficient.
    """
    sweeps = sweeps if label else _ranked(sweeps, threshold)
    top = max(105.0, 105 * max((max(s.efficiencies()) for s in sweeps), default=1.0))
    repeated = any(len(sample.elapsed) > 1 for sweep in sweeps for sample in sweep.samples)
    note = "bars: 95 % intervals of mean times" if repeated else ""
    with Picture(path, "efficiency against task granularity", sweeps, note) as axis:
        axis.axhline(threshold * 100, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        for style, sweep in looks(sweeps):
            # In order of granularity, which on a busy machine is not that of the iterations.
            points = sorted(zip(sweep.granularities(), sweep.efficiencies(), strict=True))
            axis.plot(
                [g * 1e6 for g, _ in points],
                [e * 100 for _, e in points],
                label=label(sweep) if label else _row(sweep, sweeps),
                **style,
            )
            _spread(axis, sweep, top / 100, style["color"])
        duration_axis(axis, "x", anything=bool(sweeps))
        axis.set_ylim(0, top)
        axis.set_xlabel("task granularity: wall time × cores / tasks")
        axis.set_ylabel("efficiency: rate / peak rate of this machine [%]")


def rate(path: Path, sweeps: Sequence[Sweep], label: Label | None = None) -> None:
    """Draws the rate against the problem size, with the peak."""
    sweeps = sweeps if label else _ranked(sweeps)
    with Picture(path, "rate against problem size", sweeps) as axis:
        for style, sweep in looks(sweeps):
            axis.plot(
                [s.iterations for s in sweep.samples],
                sweep.rates(),
                label=label(sweep) if label else _row(sweep, sweeps),
                **style,
            )
        for cores, peak in sorted({(sweep.cores, sweep.peak) for sweep in sweeps}):
            axis.axhline(peak, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
            axis.annotate(f"peak of {cores} core{'s' if cores > 1 else ''}", (0.01, peak),
                          xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points", fontsize=8,
                          color=GREY)  # fmt: skip
        if sweeps:
            axis.set_ylabel(f"{sweeps[0].graphs[0].kernel} [{sweeps[0].unit}]")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("problem size: iterations of a task's kernel")


def against(
    path: Path,
    sweeps: Sequence[Sweep],
    threshold: float,
    value: Callable[[Sweep], float],
    name: str,
    background: Mapping[str, Mapping[int, float]] | None = None,
) -> None:
    """Draws METG against something that was varied, such as the number of dependencies.

    Args:
        value: what was varied, of a sweep.
        name: of it, for the axis.
        background: published curves to show behind, METG [s] by value.
    """
    found = [(sweep.engine, value(sweep), sweep.metg(threshold)) for sweep in sweeps]
    engines = sorted({engine for engine, _, _ in found})  # with the same colours as in other pictures
    curves = {engine: sorted((x, metg) for own, x, metg in found if own == engine) for engine in engines}
    missing = {engine: xs for engine, own in curves.items() if (xs := [x for x, metg in own if metg.seconds is None])}
    notes = {
        "bars: 95 % intervals": any(metg.interval for _, _, metg in found),
        "hollow: at most": any(metg.bound for _, _, metg in found),
    }
    note = "; ".join(text for text, there in notes.items() if there)
    with Picture(path, f"METG({threshold:.0%}) against {name.partition(':')[0]}", sweeps, note) as axis:
        lowest = 0.0
        for system, curve in sorted((background or {}).items(), key=lambda item: list(item[1].values())[-1]):
            xs, ys = list(curve), [seconds * 1e6 for seconds in curve.values()]
            axis.plot(xs, ys, color=GREY, linewidth=0.7, alpha=0.6, zorder=1)
            lowest = max(ys[-1], 1.6 * lowest)  # names that would cover each other move up
            axis.annotate(system, (xs[-1], lowest), xytext=(6, 0), textcoords="offset points", va="center",
                          fontsize=6, color=GREY)  # fmt: skip
        # The highest line first, as they are read beside the legend.
        for engine, own in sorted(curves.items(), key=lambda item: -max(rank(metg) for _, metg in item[1])):
            style = look(engines.index(engine))
            heights = [float("nan") if metg.seconds is None else microseconds(metg) for _, metg in own]
            axis.plot([x for x, _ in own], heights, label=engine, **style)
            if bounds := [(x, microseconds(metg)) for x, metg in own if metg.bound]:
                hollow = style | {"linestyle": "none", "markerfacecolor": "white", "zorder": 3.2}
                axis.plot([x for x, _ in bounds], [y for _, y in bounds], **hollow)
            for x, metg in own:
                interval_bar(axis, metg, x, style["color"], vertical=True)
        reached = any(metg.seconds is not None for _, _, metg in found)
        duration_axis(axis, "y", anything=reached or bool(background))
        if missing:
            _never(axis, missing, engines, anything=reached or bool(background))
        values = sorted({value(sweep) for sweep in sweeps})
        if values and values[0] > 0 and values[-1] / values[0] >= 64:
            axis.set_xscale("log", base=2)
            axis.set_xlim(values[0] / 2, values[-1] * 2)
            axis.set_xticks([], minor=True)
        elif len(values) > 1:  # beside published curves with room for their names
            length = values[-1] - values[0]
            axis.set_xlim(values[0] - 0.04 * length, values[-1] + (0.3 if background else 0.04) * length)
        axis.set_xticks(values, [f"{x:g}" for x in values])
        axis.set_xlabel(name)
        axis.set_ylabel(f"METG({threshold:.0%})")
        if background:
            axis.set_title(
                f"grey: published, {published.MACHINE}, one node", fontsize=6.5, color=GREY, loc="right", y=-0.17
            )


def thresholds(path: Path, sweeps: Sequence[Sweep]) -> None:
    """Draws METG against the efficiency that is asked for, 5 to 95 %, with 95 % intervals as bands."""
    sweeps = _ranked(sweeps)[::-1]  # the highest line first
    bound = any(sweep.metg(THRESHOLDS[0], resamples=0).bound for sweep in sweeps)
    note = "hollow: at most" if bound else ""
    with Picture(path, "METG against the efficiency that is asked for", sweeps, note) as axis:
        for style, sweep in looks(sweeps):
            there = [metg for metg in sweep.metgs(THRESHOLDS) if metg.seconds is not None]
            x = [metg.threshold * 100 for metg in there]
            # Below the least efficiency there was, METG is a bound: the same again, which is no measurement.
            bounds = sum(metg.bound for metg in there)
            first = max(0, bounds - 1)
            name = _row(sweep, sweeps) + ("" if there else " (never reaches 5%)")
            heights = [microseconds(metg) for metg in there[first:]]
            axis.plot(x[first:], heights, label=name, **style)
            if bounds:
                hollow = style | {"markerfacecolor": "white", "linestyle": "none", "zorder": 3.2}
                axis.plot(x[first : first + 1], heights[:1], **hollow)
            known = [(metg, metg.interval) for metg in there[first:] if metg.interval is not None]
            known = [(metg, ends) for metg, ends in known if ends[1] != float("inf")]
            axis.fill_between(
                [metg.threshold * 100 for metg, _ in known], [ends[0] * 1e6 for _, ends in known],
                [ends[1] * 1e6 for _, ends in known], color=style["color"], alpha=0.15, linewidth=0,
            )  # fmt: skip
        duration_axis(axis, "y", anything=any(max(s.efficiencies()) >= THRESHOLDS[0] for s in sweeps))
        axis.set_xticks(range(0, 101, 10))
        axis.set_xlim(0, 100)
        axis.set_xlabel("efficiency that is asked for [%]")
        axis.set_ylabel("METG")


def compare(path: Path, sweeps: Sequence[Sweep], threshold: float = 0.5) -> None:
    """Draws METG of every engine, and, for comparison, what was published for such graphs on one node."""
    rows: list[tuple[str, Metg | float]] = [(_row(sweep, sweeps), sweep.metg(threshold)) for sweep in sweeps]
    if threshold == 0.5:
        tables = {
            f"{len(s.graphs)} × {s.graphs[0].type}, radix {s.graphs[0].radix}": published.beside(
                s.graphs[0].type, len(s.graphs), s.graphs[0].radix
            )
            for s in sweeps
        }
        different = [item for i, item in enumerate(tables.items()) if item[1] not in list(tables.values())[:i]]
        for what, table in different:
            rows += [(name if len(different) == 1 else f"{name} ({what})", value) for name, value in table.items()]
    ours = len(sweeps)
    shown = sorted(range(len(rows)), key=lambda i: rank(rows[i][1]))
    figure = blank((7.6, 1.5 + 0.2 * len(rows)))
    axis = figure.add_subplot()
    found = [value * 1e6 for value in map(rank, (row[1] for row in rows)) if value != float("inf")]
    middle = (min(found) * max(found)) ** 0.5 if found else 1.0
    for y, index in enumerate(shown):
        metg = rows[index][1]
        if isinstance(metg, float):
            axis.plot([metg * 1e6], [y], marker="o", color=GREY, markersize=3.5, alpha=0.8, linestyle="none")
            axis.annotate(duration(metg), (metg * 1e6, y), xytext=(6, 0), textcoords="offset points", va="center",
                          fontsize=6.5, color=GREY)  # fmt: skip
            continue
        colour = COLOURS[0]
        if metg.seconds is None:
            axis.annotate(f"✗ {metg}", (0.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=7.5,
                          color=COLOURS[1])  # fmt: skip
            continue
        marker = "<" if metg.bound else "s"
        axis.plot([microseconds(metg)], [y], marker=marker, color=colour, markersize=6, linestyle="none")
        interval_bar(axis, metg, y, colour, vertical=False)
        left = microseconds(metg) > middle  # where there is room for the text
        end = metg.interval[0 if left else 1] if metg.interval else metg.seconds
        beside = end if math.isfinite(end) else metg.seconds  # the bar of the interval is not covered
        axis.annotate(str(metg), (beside * 1e6, y), xytext=(-9 if left else 9, 0), textcoords="offset points",
                      ha="right" if left else "left", va="center", fontsize=7.5, color=colour,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6}, zorder=5)  # fmt: skip
    axis.set_yticks(range(len(rows)), [rows[index][0] for index in shown], fontsize=7.5)
    for tick, index in zip(axis.get_yticklabels(), shown, strict=True):
        tick.set_color("#000000" if index < ours else GREY)
        tick.set_fontweight("bold" if index < ours else "normal")
    duration_axis(axis, "x", anything=bool(found))
    axis.set_xmargin(0.18)
    axis.set_ylim(-0.8, len(rows) - 0.2)
    axis.grid(axis="x", color="#e3e5e7", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_xlabel(f"METG({threshold:.0%})")
    axis.set_title(f"METG of engines\n{what_ran(sweeps)}", fontsize=9, loc="left")
    note = f"grey: published, {published.MACHINE}, one node" if len(rows) > ours else ""
    figure.supxlabel(f"{where_it_ran(sweeps)}\n{note}".strip(), fontsize=6.5, color=GREY, x=0.99, ha="right",
                     multialignment="right")  # fmt: skip
    save(figure, path)


def _ranked(sweeps: Sequence[Sweep], threshold: float = 0.5) -> list[Sweep]:
    """In the order of their curves, so that a long legend can be read beside them."""
    return sorted(sweeps, key=lambda sweep: rank(sweep.metg(threshold, resamples=0)))


def _row(sweep: Sweep, sweeps: Sequence[Sweep]) -> str:
    """The engine's name, with what tells it apart from others of that name."""
    if len({s.engine for s in sweeps}) == len(sweeps):
        return sweep.engine
    parts = [sweep.engine]
    if len({kind(each) for each in sweeps}) > 1:
        parts.append(kind(sweep))
    for name in ("kernel", "radix", "width", "steps", "output", "imbalance"):
        value = getattr(sweep.graphs[0], name)
        if len({getattr(each.graphs[0], name) for each in sweeps}) > 1 and not (name == "imbalance" and value == 0.0):
            parts.append(value if name == "kernel" else f"{name} {value:g}")
    return ", ".join(parts)


def _never(axis: "Axes", missing: Mapping[str, Sequence[float]], engines: Sequence[str], *, anything: bool) -> None:
    """A strip above all curves, with a row of crosses for each engine that does not reach the efficiency somewhere.

    Args:
        missing: where, by engine.
        engines: all of them, in the order of their colours.
        anything: whether there is anything else.
    """
    share = min(0.5, 0.025 + 0.03 * len(missing))
    if anything:
        low, high = axis.get_ylim()
        axis.set_ylim(low, high * (high / low) ** (share / (1 - share)))
        for minor in (False, True):  # the strip has no scale
            axis.set_yticks([tick for tick in axis.get_yticks(minor=minor) if low <= tick <= high], minor=minor)
    axis.fill_between([0, 1], 1 - share, 1, transform=axis.transAxes, facecolor="#eef0f2", linewidth=0, zorder=2.5)
    for row, (engine, xs) in enumerate(missing.items()):
        axis.plot(xs, [1 - share * (row + 1) / (len(missing) + 1)] * len(xs), "x", markersize=5, zorder=3,
                  color=look(engines.index(engine))["color"], transform=axis.get_xaxis_transform())  # fmt: skip
    axis.text(-0.01, 1 - share / 2, "never reached", transform=axis.transAxes, ha="right", va="center",
              fontsize=7, color=GREY)  # fmt: skip


def _spread(axis: "Axes", sweep: Sweep, top: float, colour: str) -> None:
    """95 % intervals of mean times: granularity is proportional to them, efficiency inversely.

    Args:
        top: efficiency up to which there is room, for intervals that have no lower end.
    """
    from matplotlib.collections import LineCollection

    bars = []
    for sample, g, e in zip(sweep.samples, sweep.granularities(), sweep.efficiencies(), strict=True):
        if math.isfinite(sample.uncertainty):  # it was run more than once
            low, high = max(1 - sample.uncertainty, e / top), 1 + sample.uncertainty
            times = [low * (high / low) ** (step / _BENDS) for step in range(_BENDS + 1)]
            bars.append([(g * 1e6 * time, e * 100 / time) for time in times])
    # What is known worst does not decide how much the axes show.
    drawn = LineCollection(bars, colors=colour, linewidths=1.8, alpha=0.35, capstyle="butt", zorder=2)
    axis.add_collection(drawn, autolim=False)
