"""Bars: storms counted by basin and season, and the shares of rain that they bring."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exafield.climate import basins
from exafield.climate.clock import SEASONS
from exafield.climate.fields import CLASSES, CYCLONE, RIVER
from exafield.climate.plots import COLOURS
from exafield.climate.statistics import Count, Share

# Of Okabe and Ito, and told apart in grey, too.
_SHADES = dict(zip(SEASONS, ("#56b4e9", "#009e73", "#f0e442", "#8c5a00"), strict=True))
_MONTHS = dict(
    zip(SEASONS, ("December to February", "March to May", "June to August", "September to November"), strict=True)
)
_SMALL = 7


def counts(path: str | Path, rows: Sequence[Count], *, title: str = "") -> None:
    """Tracks by basin, a bar for each season that has some, one panel for each class."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.6), dpi=120, layout="constrained")
    seasons = [season for season in SEASONS if any(row.season == season for row in rows)]
    panels = figure.subplots(1, 2)
    for axes, kind in zip(panels, (CYCLONE, RIVER), strict=True):
        for i, season in enumerate(seasons):
            height = [
                sum(row.tracks for row in rows if (row.kind, row.season, row.basin) == (kind, season, basin))
                for basin in basins.BASINS
            ]
            place, width = _place(i, len(seasons))
            bars = axes.bar(
                np.arange(len(height)) + place, height, width, color=_SHADES[season], edgecolor="black", linewidth=0.4,
                label=f"{season}, {_MONTHS[season]}",
            )  # fmt: skip
            if max(height) < 100:  # else they cover each other
                axes.bar_label(bars, [str(number or "") for number in height], fontsize=6)
        _basins(axes, basins.BASINS)
        axes.set_title(CLASSES[kind], fontsize=_SMALL + 1)
        axes.set_ylabel("tracks that began", fontsize=_SMALL)
        axes.set_ylim(0, max(1.0, 1.05 * axes.get_ylim()[1]))  # also where there is none
        axes.yaxis.get_major_locator().set_params(integer=True)
    if seasons:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, fontsize=_SMALL, loc="outside upper center", ncols=len(seasons))
    figure.supxlabel(basins.LEGEND, fontsize=6)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path)


def shares(path: str | Path, rows: Sequence[Share], *, title: str = "") -> None:
    """Shares of precipitation by basin, beside the shares of the area that the same events cover."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    bars = (
        ("cyclone_share", COLOURS[CYCLONE], "rain in cyclones"), ("cyclone_area", "#f0b890", "area of cyclones"),
        ("river_share", COLOURS[RIVER], "rain in rivers"), ("river_area", "#99c6e0", "area of rivers"),
    )  # fmt: skip
    for i, (name, colour, label) in enumerate(bars):
        height = [100.0 * getattr(row, name) for row in rows]
        place, width = _place(i, len(bars))
        axes.bar(np.arange(len(rows)) + place, height, width, color=colour, label=label)
    _basins(axes, [row.basin for row in rows])
    axes.set_ylabel("share of the basin [%]", fontsize=_SMALL)
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    figure.legend(fontsize=_SMALL, loc="outside upper center", ncols=len(bars))
    axes.set_title(title, fontsize=_SMALL + 1)
    figure.supxlabel(basins.LEGEND, fontsize=6)
    figure.savefig(path)


def _place(number: int, of: int) -> tuple[float, float]:
    """Where a bar of a group stands, and how wide it is."""
    width = 0.8 / of
    return (number - (of - 1) / 2) * width, width


def _basins(axes: Any, names: Sequence[str]) -> None:
    axes.set_xticks(np.arange(len(names)), names)
    axes.tick_params(labelsize=_SMALL)
