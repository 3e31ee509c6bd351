"""Maps of a site: values in cells, with wells and the boundary where water enters and heads are given."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from exafield.subsurface.checks import SiteError
from exafield.subsurface.site import Site

#: Colours of quantities: one for each, whatever map it is on.
COLOURS = {"log_transmissivity": "viridis", "head": "cividis", "spread": "magma", "difference": "RdBu_r"}

# Colours span all but the outermost percent at either end, and beyond these up to this share of what they span, as far
# as there are values: all of a field without extremes, while few extremes do not take the colours from all others; our
# choice.
_OUTERMOST, _ROOM = 0.01, 0.25


@dataclass(frozen=True)
class Panel:
    """One map.

    Args:
        title: over it.
        values: of the cells.
        label: quantity and unit, beside the colours.
        colours: of matplotlib, see COLOURS.
        limits: of the colours; None: see :func:`span`.
        wells: cells that are marked.
        mark: what the marks are, in the legend.
        boundary: whether fixed heads, inflows and leaks are drawn.
    """

    title: str
    values: Float[np.ndarray, "cell"]
    label: str
    colours: str = "viridis"
    limits: tuple[float, float] | None = None
    wells: Integer[np.ndarray, "well"] | None = None
    mark: str = "read here"
    boundary: bool = False


def draw(path: str | Path, site: Site, panels: Sequence[Panel], *, columns: int = 3, title: str = "") -> None:
    """Draws maps side by side.

    Args:
        path: of the picture; its ending says what kind.
        site: of all maps.
        panels: maps, row by row.
        columns: maps in a row, at most.
        title: of the picture.
    Raises:
        SiteError: it is not known where the cells are, as in a MODFLOW DISU file without vertices.
    """
    from matplotlib.figure import Figure

    if not np.isfinite(site.mesh.centres).all():
        raise SiteError(f"{site.name} cannot be drawn: its files do not say where the cells are")
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    low, high = _extent(site)
    ratio = min(max((high[1] - low[1]) / (high[0] - low[0]), 0.4), 1.6)
    size = (3.9 * columns, (3.0 * ratio + 0.55) * rows + 0.3 + (0.3 if title else 0.0))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_one(figure, axis, site, panel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for number, axis in enumerate(axes[: len(panels)]):
        if number % columns == 0:
            axis.set_ylabel("y [km]")
        if number + columns >= len(panels):
            axis.set_xlabel("x [km]")
    # One legend for all, beside the maps: within it would cover what they show.
    keys = {name: mark for axis in axes for mark, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    if keys:
        figure.legend(keys.values(), keys.keys(), loc="outside lower center", ncols=len(keys), fontsize=8)
    if title:
        figure.suptitle(title)
    figure.savefig(path)


def _extent(site: Site) -> tuple[np.ndarray, np.ndarray]:
    points = site.mesh.vertices if len(site.mesh.vertices) else site.mesh.centres
    return points.min(axis=0), points.max(axis=0)


def _draw_one(figure: Any, axis: Any, site: Site, panel: Panel) -> None:
    from matplotlib.collections import LineCollection, PolyCollection

    mesh = site.mesh
    finite = panel.values[np.isfinite(panel.values)]
    if not len(finite):
        raise SiteError(f"{panel.title}: there is no finite value to draw")
    low, high = panel.limits or span(finite)
    limits = (low, high) if low < high else (low - 0.5, high + 0.5)
    marks: Any
    if mesh.corners is not None:
        cells = [mesh.vertices[row[row >= 0]] / 1e3 for row in mesh.corners]
        # Edges in the faces' colour close the hairlines between them.
        marks = PolyCollection(cells, array=panel.values, cmap=panel.colours, edgecolors="face", linewidths=0.2)
        axis.add_collection(marks)
    else:
        marks = axis.scatter(*mesh.centres.T / 1e3, c=panel.values, s=6, cmap=panel.colours)
    marks.set_clim(*limits)
    if panel.boundary and mesh.boundary_vertices is not None:
        for faces, colour, name in (
            (site.fixed_faces, "tab:blue", "head given"),
            (site.inflow_faces, "tab:red", "inflow"),
        ):
            if len(faces):
                ends = mesh.vertices[mesh.boundary_vertices[faces]] / 1e3
                axis.add_collection(LineCollection(list(ends), colors=colour, linewidths=1.8, label=name))
    if panel.boundary:
        for at, colour, name in (
            (site.fixed_cells, "tab:blue", "head given in a cell"),
            (site.leak_cells, "tab:cyan", "leak"),
        ):
            if len(at):
                axis.plot(*mesh.centres[at].T / 1e3, linestyle="", marker="s", markersize=4, color=colour, label=name)
    if panel.wells is not None and len(panel.wells):
        axis.plot(
            *mesh.centres[panel.wells].T / 1e3,
            linestyle="", marker="o", markersize=2.6, markerfacecolor="white", markeredgecolor="black",
            markeredgewidth=0.5, label=panel.mark,
        )  # fmt: skip
    (left, bottom), (right, top) = (corner / 1e3 for corner in _extent(site))
    gap = 0.02 * max(right - left, top - bottom)  # lines along the boundary are as thick within as without
    axis.set(xlim=(left - gap, right + gap), ylim=(bottom - gap, top + gap), aspect="equal")
    axis.set_title(panel.title, fontsize=9)
    axis.tick_params(labelsize=7)
    colours = figure.colorbar(marks, ax=axis, extend=beyond(finite, limits), shrink=0.85)
    colours.set_label(panel.label, fontsize=8)
    colours.ax.tick_params(labelsize=7)


def span(values: Float[np.ndarray, "..."]) -> tuple[float, float]:
    """Limits of the colours of finite values: all of them, but for the few that are far off."""
    low, high = (float(end) for end in np.quantile(values, [_OUTERMOST, 1 - _OUTERMOST]))
    room = _ROOM * (high - low)
    return max(float(values.min()), low - room), min(float(values.max()), high + room)


def beyond(values: Float[np.ndarray, "..."], limits: tuple[float, float]) -> str:
    """At which ends matplotlib is to mark the colours, since values are beyond them."""
    below, above = values.min() < limits[0], values.max() > limits[1]
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get((bool(below), bool(above)), "neither")
