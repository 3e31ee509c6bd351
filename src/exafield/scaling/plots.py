"""Plots of scaling studies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exafield.scaling.study import Curve, Point, Study
from exafield.scaling.waterfall import CAUSES, waterfall
from exafield.store import whole

# Distinct for colour-blind eyes as well (Okabe and Ito 2008), and never by colour alone.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "#8a8f94"
_PARTS: Mapping[str, str] = dict(
    zip(
        CAUSES,
        ("#d9dcdf", "#c9a27c", "#8a8f94", "#F0E442", "#E69F00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7"),
        strict=True,
    )
)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=140, layout="constrained")
    return figure, figure.subplots(1, columns)


def scaling(path: Path, made: Study) -> None:
    """Draws efficiency and rate against the number of ranks, one curve for each reducer."""
    figure, (left, right) = _figure(10.0, 4.2, 2)
    for number, curve in enumerate(made.curves):
        style = {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}
        ranks = [point.ranks for point in curve.points]
        left.plot(ranks, [100 * p.efficiency for p in curve.points], label=curve.name, markersize=4, **style)
        right.plot(ranks, [p.flops for p in curve.points], label=curve.name, markersize=4, **style)
    first = made.curves[0].points[0]
    ranks = [point.ranks for point in made.curves[0].points]
    ideal = [first.flops / first.efficiency * n / first.ranks for n in ranks]
    (without,) = right.plot(ranks, ideal, color=_GREY, linewidth=0.9, linestyle=(0, (4, 3)), label="no loss", zorder=1)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("ranks")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.tick_params(labelsize=8)
        axes.grid(color="0.85", linewidth=0.6)
    lowest = min(100 * point.efficiency for curve in made.curves for point in curve.points)
    left.set_ylim(max(0.0, 10 * (lowest // 10 - 1)), 102)
    left.set_ylabel(f"efficiency of {'strong' if made.strong else 'weak'} scaling [%]")
    right.set_yscale("log")
    right.set_ylabel("sustained [FLOP/s]")
    left.legend(fontsize=7, loc="lower left")
    right.legend(handles=[without], fontsize=7, loc="upper left")
    figure.suptitle(f"{made.step.name} on {made.machine.name}, modelled", fontsize=10)
    with whole(path) as part:
        figure.savefig(part)


def losses(path: Path, made: Study) -> None:
    """Draws what a step consists of: against the number of ranks, and as a waterfall at the largest."""
    figure, (left, right) = _figure(11.0, 4.2, 2)
    curve = made.curves[0]
    _stacked(left, curve)
    _fall(right, curve.last)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(_PARTS), fontsize=7)
    figure.suptitle(f"{made.step.name} on {made.machine.name}, {curve.name}, modelled", fontsize=10)
    with whole(path) as part:
        figure.savefig(part)


def _stacked(axes: Any, curve: Curve) -> None:
    """Shares of a step's time, one bar for each number of ranks."""
    below = [0.0] * len(curve.points)
    for name in (name for name in _PARTS if name in curve.last.loss):
        shares = [100 * p.loss[name] / p.seconds for p in curve.points]
        axes.bar(range(len(shares)), shares, bottom=below, color=_PARTS[name], width=0.85, label=name)
        below = [a + b for a, b in zip(below, shares, strict=True)]
    axes.set_xticks(range(len(below)), [f"{p.ranks:,}" for p in curve.points], rotation=60, fontsize=7)
    lowest = min(100 * p.loss["compute"] / p.seconds for p in curve.points)
    axes.set_ylim(max(0.0, 10 * (lowest // 10 - 1)), 100)
    axes.set_xlabel("ranks")
    axes.set_ylabel("share of a step [%]")


def _fall(axes: Any, point: Point) -> None:
    """The parts of one step, each beginning where the one before it ends."""
    parts = waterfall(point.loss)
    ends = 0.0
    unit, size = ("ms", 1e3) if point.seconds < 1 else ("s", 1.0)
    for number, part in enumerate(parts):
        axes.barh(
            number, part.seconds * size, left=ends * size, color=_PARTS[part.name], edgecolor="0.4", linewidth=0.5
        )
        said = f"{part.seconds * size:.3g} {unit}, {100 * part.share:.1f} %"
        large = part.share > 0.4
        axes.annotate(said, ((ends + part.seconds) * size, number), xytext=(-5 if large else 5, 0), fontsize=7,
                      textcoords="offset points", va="center", ha="right" if large else "left")  # fmt: skip
        ends += part.seconds
    axes.set_yticks(range(len(parts)), [part.name for part in parts], fontsize=8)
    axes.invert_yaxis()
    # Where computing takes nearly all of a step, losses would be too thin to see.
    first = parts[0].seconds
    begin = max(0.0, first - 0.7 * (ends - first)) if parts[0].share > 0.6 else 0.0
    axes.set_xlim(begin * size, (ends + 0.35 * (ends - begin)) * size)
    axes.set_xlabel(f"time in a step on {point.ranks:,} ranks [{unit}]")
