"""What all plots of METG have in common: a figure, colours, axes of durations, and what was measured where."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exafield.run import RunError
from exafield.taskbench.metg import Metg, Sweep, duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinct for colour-blind eyes as well (Okabe and Ito 2008, black last), and never by colour alone.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (7, 2, 1, 2, 1, 2)))
GREY = "#8a8f94"


class Picture:
    """A figure with one plot, a legend beside it and a line that says what was measured on what."""

    def __init__(self, path: Path, title: str, sweeps: Sequence[Sweep], note: str = "") -> None:
        self._path, self._below = path, "; ".join(text for text in (where_it_ran(sweeps), note) if text)
        self._figure = blank((7.2, 5.0))
        self._axis = self._figure.add_subplot()
        self._axis.set_title(f"{title}\n{what_ran(sweeps)}", fontsize=9.5, loc="left")
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
            self._figure.legend(loc="outside right center", fontsize=8, frameon=False, handlelength=4.2)
        self._figure.supxlabel(self._below, fontsize=6.5, color=GREY, x=0.01, ha="left")
        save(self._figure, self._path)


def blank(size: tuple[float, float]) -> Any:
    """A figure without anything, of a width and a height [inch]."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=150, layout="constrained")


def look(index: int) -> dict[str, Any]:
    """Colour, marker and line of a curve."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _LINES[index // len(COLOURS) % len(_LINES)],
        "linewidth": 1.4,
        "markersize": 4.5,
        "zorder": 3,
    }


def looks(sweeps: Sequence[Sweep]) -> list[tuple[dict[str, Any], Sweep]]:
    """Colours are the engines', markers and lines what was varied on one."""
    engines = sorted({sweep.engine for sweep in sweeps})  # alike in all pictures, however they are ranked
    seen: dict[str, int] = {}
    styled = []
    for sweep in sweeps:
        index, again = engines.index(sweep.engine), seen.get(sweep.engine, 0)
        seen[sweep.engine] = again + 1
        style = look(index)
        if len(engines) == 1:
            style = look(again)
        elif again:
            style |= {"linestyle": _LINES[again % len(_LINES)], "markerfacecolor": "white"}
        styled.append((style, sweep))
    return styled


def duration_axis(axes: "Axes", which: str, *, anything: bool = True) -> None:
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


def microseconds(metg: Metg) -> float:
    """METG [µs]; 0 if there is none."""
    return (metg.seconds or 0.0) * 1e6


def interval_bar(axis: "Axes", metg: Metg, at: float, colour: str, *, vertical: bool) -> None:
    """Draws the interval of a METG, if it has ends, at a place on the other axis."""
    if metg.interval is None or metg.interval[1] == float("inf"):
        return
    ends = [end * 1e6 for end in metg.interval]
    xs, ys = ([at, at], ends) if vertical else (ends, [at, at])
    axis.plot(xs, ys, color=colour, linewidth=2.6, alpha=0.35, solid_capstyle="butt", zorder=2)


def rank(metg: Metg | float) -> float:
    """By what METG are ordered [s]: infinite where the efficiency is never reached."""
    if isinstance(metg, float):
        return metg
    return float("inf") if metg.seconds is None else metg.seconds


def what_ran(sweeps: Sequence[Sweep]) -> str:
    """What was run, as far as it is the same in all."""
    if not sweeps:
        return ""
    first = sweeps[0].graphs[0]
    kinds = {kind(sweep) for sweep in sweeps}
    parts = [kinds.pop() if len(kinds) == 1 else "different graphs"]
    for name in ("radix", "width", "steps", "output", "imbalance"):
        values = {getattr(sweep.graphs[0], name) for sweep in sweeps}
        shown = name != "radix" or first.type in ("nearest", "spread", "random_nearest", "random_spread")
        if len(values) == 1 and shown and not (name == "imbalance" and values == {0.0}):
            parts.append(f"{name} {values.pop()}{' B' if name == 'output' else ''}")
    kernels = dict.fromkeys(sweep.graphs[0].kernel for sweep in sweeps)
    return ", ".join([*parts, " and ".join(kernels)])


def kind(sweep: Sweep) -> str:
    """The type of its graphs, and how many there are."""
    count, type_ = len(sweep.graphs), sweep.graphs[0].type
    return f"{count} × {type_}" if count > 1 else type_


def where_it_ran(sweeps: Sequence[Sweep]) -> str:
    """The processors, and the peaks of as many of their cores as were used."""
    if not sweeps:
        return ""
    processors = dict.fromkeys(sweep.machine.get("processor", "unknown processor") for sweep in sweeps)
    texts = []
    for n in sorted({sweep.cores for sweep in sweeps}, reverse=True):
        peaks = [sweep.peak for sweep in sweeps if sweep.cores == n]
        ends = dict.fromkeys(f"{peak:.3g}" for peak in (min(peaks), max(peaks)))
        texts.append(f"{n} core{'s' if n > 1 else ''}, peak {' to '.join(ends)} {sweeps[0].unit}")
    return "; ".join([f"{' and '.join(processors)}, {texts[0]}", *texts[1:]])


def save(figure: Any, path: Path) -> None:
    """Writes a picture.

    Raises:
        RunError: it cannot be written.
    """
    try:
        figure.savefig(path)
    except OSError as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)  # a part of it
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
