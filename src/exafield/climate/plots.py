"""Pictures of extreme weather: maps of events, tracks and frequencies, counts, shares of rain, and films."""

from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.climate import basins, clock
from exafield.climate.besttracks import Course
from exafield.climate.clock import SEASONS
from exafield.climate.components import into_turn
from exafield.climate.events import Event
from exafield.climate.fields import CLASSES, CYCLONE, RIVER
from exafield.climate.grid import Grid
from exafield.climate.snapshot import Time
from exafield.climate.statistics import Count, Share
from exafield.climate.tracking import Track

# Colours of Okabe and Ito, told apart with any eyesight: vermilion for cyclones, sky blue for rivers.
COLOURS = {CYCLONE: "#d55e00", RIVER: "#0072b2"}
_SMALL = 8


def _coastlines() -> list[NDArray[np.float64]]:
    """Lines [n, 2] of degrees east and north: those of cartopy, where it and its map data are here already.

    It would download them by itself; a picture must not depend on that.
    """
    try:
        from cartopy import config
        from cartopy.io import shapereader
    except ImportError:
        return []
    for root in (config["pre_existing_data_dir"], config["repo_data_dir"], config["data_dir"]):
        file = Path(root) / "shapefiles/natural_earth/physical/ne_110m_coastline.shp"
        if file.is_file():
            shapes = shapereader.Reader(str(file)).geometries()
            return [np.asarray(line.coords) for shape in shapes for line in getattr(shape, "geoms", [shape])]
    return []


def _figure(grid: Grid, width: float = 9.0, *, extra: float = 0.9) -> Any:
    """A figure of the shape of the grid, and room for a title and a colour bar."""
    from matplotlib.figure import Figure

    north, east = grid.edges
    # A colour bar and labels take a part of the width.
    height = 0.88 * width * float((north[-1] - north[0]) / (east[-1] - east[0]))
    return Figure(figsize=(width, min(max(height, 1.5), 9.0) + extra), dpi=120, layout="constrained")


def _map(axes: Any, grid: Grid) -> None:
    """Limits, ticks in degrees, and coasts where they are known."""
    north, east = grid.edges
    for line in _coastlines():
        _line(axes, line[:, 1], line[:, 0], grid, color="0.35", linewidth=0.5, zorder=2.5)
    axes.set(xlim=(east[0], east[-1]), ylim=(north[0], north[-1]), aspect="equal")
    axes.xaxis.set_major_formatter(lambda value, _: _east(value))
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}°{'NS'[int(value < 0)] if value else ''}")
    axes.locator_params(nbins=9, steps=[1, 1.5, 3, 6, 10])
    axes.tick_params(labelsize=7)
    axes.grid(color="0.6", linewidth=0.3, alpha=0.6)


def _east(value: float) -> str:
    turned = (value + 180.0) % 360.0 - 180.0
    if turned in (0.0, -180.0):
        return f"{abs(turned):g}°"
    return f"{abs(turned):g}°{'EW'[int(turned < 0)]}"


def _line(axes: Any, latitude: Any, longitude: Any, grid: Grid, **style: Any) -> None:
    """A line over the globe; where it crosses the seam, it leaves on one side and comes in on the other."""
    north = np.asarray(latitude, np.float64)
    east = into_turn(np.asarray(longitude, np.float64), grid)
    crossings = np.nonzero(np.abs(np.diff(east)) > 180.0)[0] + 1
    for start, end in pairwise((0, *crossings.tolist(), north.size)):
        x, y = east[start:end], north[start:end]
        if start:
            x, y = np.insert(x, 0, _beyond(east[start - 1], x[0])), np.insert(y, 0, north[start - 1])
        if end < north.size:
            x, y = np.append(x, _beyond(east[end], x[-1])), np.append(y, north[end])
        axes.plot(x, y, **style)


def _beyond(place: float, near: float) -> float:
    """The same longitude, moved by a turn to where it is near."""
    return float(place + 360.0 * np.round((near - place) / 360.0))


def _field(axes: Any, field: NDArray[Any], grid: Grid, **style: Any) -> Any:
    north, east = grid.edges
    return axes.pcolormesh(east, north, field, shading="flat", rasterized=True, **style)


def _outlines(axes: Any, mask: NDArray[Any], grid: Grid) -> None:
    """Outlines of the classes; one column is repeated so that they close over the seam."""
    longitude, mask = grid.longitude, np.asarray(mask)
    if grid.periodic:
        longitude = np.append(longitude, longitude[0] + 360.0)
        mask = np.concatenate((mask, mask[:, :1]), axis=1)
    for kind, colour in COLOURS.items():
        if (mask == kind).any():
            of_kind = (mask == kind).astype(float)
            axes.contourf(longitude, grid.latitude, of_kind, levels=[0.5, 1.5], colors=[colour], alpha=0.25)
            axes.contour(longitude, grid.latitude, of_kind, levels=[0.5], colors=[colour], linewidths=1.1)


def _legend(axes: Any, kinds: Iterable[int] = (CYCLONE, RIVER), *, best: bool = False) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=COLOURS[kind], label=CLASSES[kind]) for kind in kinds]
    handles += [Line2D([], [], color="black", linestyle="--", label="best track")] if best else []
    axes.legend(handles=handles, fontsize=7, loc="lower left", framealpha=0.85)


def draw_snapshot(
    axes: Any,
    mask: NDArray[Any],
    grid: Grid,
    field: NDArray[Any] | None = None,
    *,
    limits: tuple[float, float] | None = None,
    events: Sequence[Event] = (),
) -> Any:
    """Draws classes over a field into axes; `snapshot` makes a picture of it. Returns what a colour bar is made for."""
    shown = None
    if field is not None:
        low, high = limits or (float(np.nanmin(field)), float(np.nanpercentile(field, 99.8)))
        shown = _field(axes, field, grid, cmap="Greys", vmin=low, vmax=high)
    _outlines(axes, mask, grid)
    for event in events:
        if event.kind == CYCLONE:
            east = into_turn(event.longitude, grid)
            axes.plot(east, event.latitude, marker="x", color=COLOURS[CYCLONE], markersize=5)
    _map(axes, grid)
    return shown


def snapshot(
    path: str | Path,
    masks: dict[str, NDArray[Any]],
    grid: Grid,
    field: NDArray[Any] | None = None,
    *,
    unit: str = "",
    events: Sequence[Event] = (),
    title: str = "",
) -> None:
    """One or several masks of one snapshot over a field, below each other.

    Args:
        path: of the picture.
        masks: by what each is called, such as "network" and "published heuristic".
        grid: of masks and field.
        field: behind them, such as TMQ.
        unit: name and unit of the field, for its colour bar.
        events: of which the centres of cyclones are marked.
        title: over all.
    """
    figure = _figure(grid, extra=0.0)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height * len(masks) + 0.7)
    panels = figure.subplots(len(masks), 1, squeeze=False)[:, 0]
    shown = None
    for axes, (name, mask) in zip(panels, masks.items(), strict=True):
        shown = draw_snapshot(axes, mask, grid, field, events=events)
        axes.set_title(name, fontsize=_SMALL)
    _legend(panels[-1])
    if shown is not None:
        bar = figure.colorbar(shown, ax=list(panels), shrink=0.7, fraction=0.03, pad=0.01, extend="max")
        bar.set_label(unit, fontsize=7)
        bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path)


def panels(
    path: str | Path,
    fields: dict[str, NDArray[Any]],
    grid: Grid,
    mask: NDArray[Any] | None = None,
    *,
    title: str = "",
) -> None:
    """Several fields of one snapshot below each other, each with its own colours, and the mask over all.

    Args:
        path: of the picture.
        fields: by name and unit.
        grid: of fields and mask.
        mask: classes; None: there is none.
        title: over all.
    """
    figure = _figure(grid, extra=0.0)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height * len(fields) + 0.5)
    rows = figure.subplots(len(fields), 1, squeeze=False)[:, 0]
    for axes, (name, field) in zip(rows, fields.items(), strict=True):
        shown = draw_snapshot(axes, np.zeros(grid.shape) if mask is None else mask, grid, field)
        bar = figure.colorbar(shown, ax=axes, shrink=0.8, fraction=0.03, pad=0.01, extend="max")
        bar.set_label(name, fontsize=7)
        bar.ax.tick_params(labelsize=7)
    if mask is not None:
        _legend(rows[-1])
    figure.suptitle(title, fontsize=9)
    figure.savefig(path)


def tracks(
    path: str | Path, followed: Sequence[Track], grid: Grid, best: Sequence[Course] = (), *, title: str = ""
) -> None:
    """Ways of cyclones and rivers; a dot where each began, for cyclones the larger the stronger the wind.

    Args:
        path: of the picture.
        followed: tracks.
        grid: whose region is shown.
        best: best tracks, dashed and black.
        title: over all.
    """
    figure = _figure(grid)
    axes = figure.subplots()
    for storm in best:
        _line(axes, storm.latitude, storm.longitude, grid, color="black", linewidth=1.0, linestyle="--")
    for track in followed:
        north, east = ([getattr(event, name) for event in track.events] for name in ("latitude", "longitude"))
        colour = COLOURS[track.kind]
        _line(axes, north, east, grid, color=colour, linewidth=1.0, alpha=0.8)
        wind = max(event.peak_wind for event in track.events)
        size = 3.0 if track.kind != CYCLONE or np.isnan(wind) else float(np.clip(wind / 10.0, 2.0, 8.0))
        axes.plot(into_turn(east[0], grid), north[0], "o", color=colour, markersize=size)
    _map(axes, grid)
    _legend(axes, sorted({track.kind for track in followed}) or (CYCLONE, RIVER), best=bool(best))
    axes.set_title(title or f"{len(followed)} tracks", fontsize=_SMALL)
    figure.savefig(path)


def frequency(path: str | Path, maps: dict[str, NDArray[np.float64]], grid: Grid, *, title: str = "") -> None:
    """How often each cell belongs to a class, one map for each entry."""
    figure = _figure(grid, extra=0.0)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, (height + 0.3) * len(maps) + 0.4)
    panels = figure.subplots(len(maps), 1, squeeze=False)[:, 0]
    for axes, (name, often) in zip(panels, maps.items(), strict=True):
        high = float(np.nanmax(often)) if np.isfinite(often).any() else 0.0
        shown = _field(axes, 100.0 * often, grid, cmap="YlGnBu", vmin=0.0, vmax=100.0 * high or 1.0)
        _map(axes, grid)
        axes.set_title(name, fontsize=_SMALL)
        bar = figure.colorbar(shown, ax=axes, shrink=0.8, fraction=0.03, pad=0.01)
        bar.set_label("% of snapshots", fontsize=7)
        bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path)


def counts(path: str | Path, rows: Sequence[Count], *, title: str = "") -> None:
    """Tracks by basin, a bar for each season, one panel for each class."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.2), dpi=120, layout="constrained")
    shades = ("#56b4e9", "#009e73", "#e69f00", "#999999")
    for axes, kind in zip(figure.subplots(1, 2), (CYCLONE, RIVER), strict=True):
        for i, season in enumerate(SEASONS):
            height = [
                sum(row.tracks for row in rows if (row.kind, row.season, row.basin) == (kind, season, basin))
                for basin in basins.BASINS
            ]
            axes.bar(np.arange(len(height)) + 0.2 * i - 0.3, height, 0.2, label=season, color=shades[i])
        axes.set_xticks(np.arange(len(basins.BASINS)), basins.BASINS)
        axes.set_title(CLASSES[kind], fontsize=_SMALL)
        axes.set_ylabel("tracks that began", fontsize=7)
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))  # also where there is none
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path)


def shares(path: str | Path, rows: Sequence[Share], *, title: str = "") -> None:
    """Shares of precipitation by basin, beside the shares of the area that the same events cover."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    bars = (
        ("cyclone_share", COLOURS[CYCLONE], "rain in cyclones"), ("cyclone_area", "#f0b890", "area of cyclones"),
        ("river_share", COLOURS[RIVER], "rain in rivers"), ("river_area", "#99c6e0", "area of rivers"),
    )  # fmt: skip
    for i, (name, colour, label) in enumerate(bars):
        height = [100.0 * getattr(row, name) for row in rows]
        axes.bar(np.arange(len(rows)) + 0.2 * i - 0.3, height, 0.2, color=colour, label=label)
    axes.set_xticks(np.arange(len(rows)), [row.basin for row in rows])
    axes.set_ylabel("share of the basin [%]", fontsize=7)
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    axes.tick_params(labelsize=7)
    figure.legend(fontsize=7, loc="outside lower center", ncols=len(bars))
    axes.set_title(title, fontsize=_SMALL)
    figure.savefig(path)


def film(
    path: str | Path,
    frames: Iterable[tuple[Time, NDArray[Any], NDArray[Any] | None]],
    grid: Grid,
    *,
    unit: str = "",
    limits: tuple[float, float] | None = None,
    milliseconds: int = 200,
) -> int:
    """An animated GIF of masks over a field. Returns how many frames it has.

    Frames are drawn as they come and kept only as indexed pictures of some 100 kB.

    Args:
        path: of the GIF.
        frames: time, mask and field of each snapshot.
        grid: of all.
        unit: name and unit of the field.
        limits: of the field's colours; those of the first frame if None.
        milliseconds: for which each frame is shown.

    Raises:
        ValueError: there are no frames.
    """
    from PIL import Image

    pictures: list[Any] = []
    for time, mask, field in frames:
        if limits is None and field is not None:
            limits = (float(np.nanmin(field)), float(np.nanpercentile(field, 99.8)))
        figure = _figure(grid, 7.5, extra=0.5)
        axes = figure.subplots()
        shown = draw_snapshot(axes, mask, grid, field, limits=limits)
        if shown is not None:
            bar = figure.colorbar(shown, ax=axes, shrink=0.8, fraction=0.03, pad=0.01, extend="max")
            bar.set_label(unit, fontsize=7)
            bar.ax.tick_params(labelsize=7)
        axes.set_title(clock.text(time).replace("T", " "), fontsize=_SMALL)
        _legend(axes)
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        pictures.append(Image.open(buffer).convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT))
    if not pictures:
        raise ValueError(f"there are no snapshots to make {path} of")
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
    return len(pictures)
