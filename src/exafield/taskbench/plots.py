"""Plots of METG measurements, after the figures of arXiv:1908.05790."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exafield.taskbench import published
from exafield.taskbench.metg import THRESHOLDS, Metg, Sweep, duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinct for colour-blind eyes as well (Okabe and Ito 2008, black last), and never by colour alone.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (7, 2, 1, 2, 1, 2)))
_GREY = "#8a8f94"

# The name of a series in a picture.
Label = Callable[[Sweep], str]


def by_output(sweep: Sweep) -> str:
    """The engine, and how much every dependency carries."""
    return f"{sweep.engine}, {sweep.graphs[0].output} B"


def by_imbalance(sweep: Sweep) -> str:
    """The engine, and how unequal its tasks are."""
    return f"{sweep.engine}, imbalance {sweep.graphs[0].imbalance:g}"


def efficiency(path: Path, sweeps: Sequence[Sweep], threshold: float = 0.5, label: Label | None = None) -> None:
    """Draws efficiency against granularity. METG is where a curve crosses the line at the threshold."""
    sweeps = sweeps if label else _ranked(sweeps, threshold)
    with _Picture(path, "efficiency against task granularity", sweeps) as axis:
        axis.axhline(threshold * 100, color=_GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        for style, sweep in _styled(sweeps):
            # In order of granularity, which on a busy machine is not that of the iterations.
            points = sorted(zip(sweep.granularities(), sweep.efficiencies(), strict=True))
            axis.plot(
                [g * 1e6 for g, _ in points],
                [e * 100 for _, e in points],
                label=label(sweep) if label else _row(sweep, sweeps),
                **style,
            )
        _durations(axis, "x", anything=bool(sweeps))
        axis.set_ylim(0, max(105, 105 * max((max(s.efficiencies()) for s in sweeps), default=1)))
        axis.set_xlabel("task granularity: wall time × cores / tasks")
        axis.set_ylabel("efficiency: rate / peak rate of this machine [%]")


def rate(path: Path, sweeps: Sequence[Sweep], label: Label | None = None) -> None:
    """Draws the rate against the problem size, with the peak."""
    sweeps = sweeps if label else _ranked(sweeps)
    with _Picture(path, "rate against problem size", sweeps) as axis:
        for style, sweep in _styled(sweeps):
            axis.plot(
                [s.iterations for s in sweep.samples],
                sweep.rates(),
                label=label(sweep) if label else _row(sweep, sweeps),
                **style,
            )
        for peak in sorted({sweep.peak for sweep in sweeps}):
            axis.axhline(peak, color=_GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        if sweeps:
            axis.annotate("peak", (0.01, max(s.peak for s in sweeps)), xycoords=("axes fraction", "data"),
                          xytext=(0, 3), textcoords="offset points", fontsize=8, color=_GREY)  # fmt: skip
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
    with _Picture(path, f"METG({threshold:.0%}) against {name}", sweeps) as axis:
        lowest = 0.0
        for system, curve in sorted((background or {}).items(), key=lambda item: list(item[1].values())[-1]):
            xs, ys = list(curve), [seconds * 1e6 for seconds in curve.values()]
            axis.plot(xs, ys, color=_GREY, linewidth=0.7, alpha=0.6, zorder=1)
            lowest = max(ys[-1], 1.6 * lowest)  # names that would cover each other move up
            axis.annotate(system, (xs[-1], lowest), xytext=(4, 0), textcoords="offset points", va="center",
                          fontsize=6, color=_GREY)  # fmt: skip
        names = list(dict.fromkeys(sweep.engine for sweep in sweeps))
        reached = False
        for engine in names:
            style = _style(names.index(engine))
            own = sorted((value(s), s.metg(threshold)) for s in sweeps if s.engine == engine)
            heights = [float("nan") if metg.seconds is None else _micro(metg) for _, metg in own]
            axis.plot([x for x, _ in own], heights, label=engine, **style)
            for x, metg in own:
                _interval(axis, metg, x, style["color"], vertical=True)
            missing = [x for x, metg in own if metg.seconds is None]
            reached |= len(missing) < len(own)
            # At the top, one below the other.
            axis.plot(missing, [0.97 - 0.03 * names.index(engine)] * len(missing), "x", color=style["color"],
                      markersize=5, transform=axis.get_xaxis_transform())  # fmt: skip
        if any(sweep.metg(threshold, resamples=0).seconds is None for sweep in sweeps):
            axis.plot([], [], "x", color=_GREY, markersize=5, label="never reached")
        _durations(axis, "y", anything=reached or bool(background))
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
                f"grey: published, {published.MACHINE}, one node", fontsize=6.5, color=_GREY, loc="right", y=-0.17
            )


def thresholds(path: Path, sweeps: Sequence[Sweep]) -> None:
    """Draws METG against the efficiency that is asked for, 5 to 95 %, with 95 % intervals as bands."""
    sweeps = _ranked(sweeps)[::-1]  # the highest line first
    with _Picture(path, "METG against the efficiency that is asked for", sweeps) as axis:
        for style, sweep in _styled(sweeps):
            there = [metg for metg in sweep.metgs(THRESHOLDS) if metg.seconds is not None]
            x = [metg.threshold * 100 for metg in there]
            # Below the least efficiency there was, METG is a bound: the same again, which is no measurement.
            bounds = sum(metg.bound for metg in there)
            first = max(0, bounds - 1)
            name = _row(sweep, sweeps) + ("" if there else " (never reaches 5%)")
            axis.plot(x[first:], [_micro(metg) for metg in there[first:]], label=name, **style)
            known = [(metg, metg.interval) for metg in there[first:] if metg.interval is not None]
            known = [(metg, ends) for metg, ends in known if ends[1] != float("inf")]
            axis.fill_between(
                [metg.threshold * 100 for metg, _ in known], [ends[0] * 1e6 for _, ends in known],
                [ends[1] * 1e6 for _, ends in known], color=style["color"], alpha=0.15, linewidth=0,
            )  # fmt: skip
        _durations(axis, "y", anything=any(max(s.efficiencies()) >= THRESHOLDS[0] for s in sweeps))
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
    shown = sorted(range(len(rows)), key=lambda i: _order(rows[i][1]))
    figure = _figure((7.6, 1.5 + 0.2 * len(rows)))
    axis = figure.add_subplot()
    found = [value * 1e6 for value in map(_order, (row[1] for row in rows)) if value != float("inf")]
    middle = (min(found) * max(found)) ** 0.5 if found else 1.0
    for y, index in enumerate(shown):
        metg = rows[index][1]
        if isinstance(metg, float):
            axis.plot([metg * 1e6], [y], marker="o", color=_GREY, markersize=3.5, alpha=0.8, linestyle="none")
            axis.annotate(duration(metg), (metg * 1e6, y), xytext=(6, 0), textcoords="offset points", va="center",
                          fontsize=6.5, color=_GREY)  # fmt: skip
            continue
        colour = _COLOURS[0]
        if metg.seconds is None:
            axis.annotate(f"✗ {metg}", (0.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=7.5,
                          color=_COLOURS[1])  # fmt: skip
            continue
        axis.plot([_micro(metg)], [y], marker="<" if metg.bound else "s", color=colour, markersize=6, linestyle="none")
        _interval(axis, metg, y, colour, vertical=False)
        left = _micro(metg) > middle  # where there is room for the text
        end = metg.interval[0 if left else 1] if metg.interval else metg.seconds
        beside = end if math.isfinite(end) else metg.seconds  # the bar of the interval is not covered
        axis.annotate(str(metg), (beside * 1e6, y), xytext=(-9 if left else 9, 0), textcoords="offset points",
                      ha="right" if left else "left", va="center", fontsize=7.5, color=colour,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6}, zorder=5)  # fmt: skip
    axis.set_yticks(range(len(rows)), [rows[index][0] for index in shown], fontsize=7.5)
    for tick, index in zip(axis.get_yticklabels(), shown, strict=True):
        tick.set_color("#000000" if index < ours else _GREY)
        tick.set_fontweight("bold" if index < ours else "normal")
    _durations(axis, "x", anything=bool(found))
    axis.set_xmargin(0.18)
    axis.set_ylim(-0.8, len(rows) - 0.2)
    axis.grid(axis="x", color="#e3e5e7", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_xlabel(f"METG({threshold:.0%})")
    axis.set_title(f"METG of engines\n{_graphs(sweeps)}", fontsize=9, loc="left")
    note = f"grey: published, {published.MACHINE}, one node" if len(rows) > ours else ""
    figure.supxlabel(f"{_where(sweeps)}\n{note}".strip(), fontsize=6.5, color=_GREY, x=0.99, ha="right",
                     multialignment="right")  # fmt: skip
    figure.savefig(path)


def _ranked(sweeps: Sequence[Sweep], threshold: float = 0.5) -> list[Sweep]:
    """In the order of their curves, so that a long legend can be read beside them."""
    return sorted(sweeps, key=lambda sweep: _order(sweep.metg(threshold, resamples=0)))


def _order(metg: Metg | float) -> float:
    if isinstance(metg, float):
        return metg
    return float("inf") if metg.seconds is None else metg.seconds


def _row(sweep: Sweep, sweeps: Sequence[Sweep]) -> str:
    """The engine's name, with what tells it apart from others of that name."""
    if len({s.engine for s in sweeps}) == len(sweeps):
        return sweep.engine
    graph = sweep.graphs[0]
    parts = [f"{sweep.engine}"]
    for text, of in (("type", lambda s: s.graphs[0].type), ("radix", lambda s: s.graphs[0].radix),
                     ("width", lambda s: s.graphs[0].width), ("output", lambda s: s.graphs[0].output),
                     ("imbalance", lambda s: s.graphs[0].imbalance)):  # fmt: skip
        if len({of(s) for s in sweeps}) > 1:
            parts.append(f"{text} {getattr(graph, text)}")
    return ", ".join(parts)


class _Picture:
    """A figure with one plot, a legend below it and a line that says what was measured on what."""

    def __init__(self, path: Path, title: str, sweeps: Sequence[Sweep]) -> None:
        self._path, self._sweeps = path, sweeps
        self._figure = _figure((7.2, 5.0))
        self._axis = self._figure.add_subplot()
        self._axis.set_title(f"{title}\n{_graphs(sweeps)}", fontsize=9.5, loc="left")
        self._axis.grid(color="#e3e5e7", linewidth=0.6)
        self._axis.set_axisbelow(True)

    def __enter__(self) -> "Axes":
        axis: Axes = self._axis
        return axis

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            return
        if names := self._axis.get_legend_handles_labels()[1]:
            self._figure.set_figheight(max(5.0, 0.8 + 0.17 * len(names)))
            self._figure.legend(loc="outside right center", fontsize=8, frameon=False, handlelength=3.2)
        self._figure.supxlabel(_where(self._sweeps), fontsize=6.5, color=_GREY, x=0.01, ha="left")
        self._figure.savefig(self._path)


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=150, layout="constrained")


def _style(index: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _LINES[index // len(_COLOURS) % len(_LINES)],
        "linewidth": 1.4,
        "markersize": 4.5,
        "zorder": 3,
    }


def _styled(sweeps: Sequence[Sweep]) -> list[tuple[dict[str, Any], Sweep]]:
    """Colours are the engines', markers and lines what was varied on one."""
    engines = sorted({sweep.engine for sweep in sweeps})  # alike in all pictures, however they are ranked
    seen: dict[str, int] = {}
    styled = []
    for sweep in sweeps:
        index, again = engines.index(sweep.engine), seen.get(sweep.engine, 0)
        seen[sweep.engine] = again + 1
        style = _style(index)
        if len(engines) == 1:
            style = _style(again)
        elif again:
            style |= {"linestyle": _LINES[again % len(_LINES)], "markerfacecolor": "white"}
        styled.append((style, sweep))
    return styled


def _durations(axes: "Axes", which: str, *, anything: bool = True) -> None:
    """Makes an axis that is in microseconds logarithmic, with durations at its ticks.

    Args:
        which: "x" or "y".
        anything: whether there is anything on it, without which it cannot be logarithmic.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    if not anything:
        axis.set_ticks([])
        return
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")

    def minor(x: float, _: object) -> str:
        low, high = axis.get_view_interval()
        digits = "25" if high > 4 * low else "23456789"
        return duration(x * 1e-6) if high < 20 * low and f"{x:.0e}"[0] in digits else ""

    axis.set_major_formatter(lambda x, _: duration(x * 1e-6))
    axis.set_minor_formatter(minor)
    axis.set_tick_params(which="both", labelsize=8)


def _micro(metg: Metg) -> float:
    return (metg.seconds or 0.0) * 1e6


def _interval(axis: "Axes", metg: Metg, at: float, colour: str, *, vertical: bool) -> None:
    if metg.interval is None or metg.interval[1] == float("inf"):
        return
    ends = [end * 1e6 for end in metg.interval]
    xs, ys = ([at, at], ends) if vertical else (ends, [at, at])
    axis.plot(xs, ys, color=colour, linewidth=2.6, alpha=0.35, solid_capstyle="butt", zorder=2)


def _graphs(sweeps: Sequence[Sweep]) -> str:
    """What was run, as far as it is the same in all."""
    if not sweeps:
        return ""
    first, count = sweeps[0].graphs[0], len(sweeps[0].graphs)
    parts = [f"{count} × {first.type}" if count > 1 else first.type]
    for name in ("radix", "width", "steps", "output", "imbalance"):
        values = {getattr(sweep.graphs[0], name) for sweep in sweeps}
        shown = name != "radix" or first.type in ("nearest", "spread", "random_nearest", "random_spread")
        if len(values) == 1 and shown and not (name == "imbalance" and values == {0.0}):
            parts.append(f"{name} {values.pop()}{' B' if name == 'output' else ''}")
    return ", ".join([*parts, first.kernel])


def _where(sweeps: Sequence[Sweep]) -> str:
    if not sweeps:
        return ""
    first = sweeps[0]
    processor = first.machine.get("processor", "unknown processor")
    return f"{processor}, {first.cores} cores, peak {first.peak:.3g} {first.unit}"
