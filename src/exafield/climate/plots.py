"""Maps of extreme weather: fields, events, tracks and frequencies, and films of them."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.climate import clock
from exafield.climate.besttracks import Course
from exafield.climate.components import into_turn
from exafield.climate.events import Event
from exafield.climate.fields import CHANNELS, CLASSES, CYCLONE, RIVER
from exafield.climate.grid import Grid
from exafield.climate.snapshot import Time
from exafield.climate.tracking import Track
from exafield.suggestion import counted

# Colours of Okabe and Ito, told apart with any eyesight: vermilion for cyclones, blue for rivers.
COLOURS = {CYCLONE: "#d55e00", RIVER: "#0072b2"}
# Fields behind outlines of these colours: no shade is so dark that they, or coasts, would drown in it.
_PALE = ("white", "0.45")
# What blows either way: green and purple, with white at rest; told apart with any eyesight (ColorBrewer's PRGn).
_WINDS, _EITHER_WAY = ("U850", "V850", "UBOT", "VBOT"), "PRGn"
# Of a field that is no channel, least share of the smaller sign in the larger that makes it one of those; our choice.
_BOTH_SIGNS = 0.05
# Winds that dots in pictures of tracks are explained by [m/s]; our choice.
_DOTS = (20.0, 60.0)
_SMALL = 8


@cache
def coastlines() -> list[NDArray[np.float64]]:
    """Lines [n, 2] of degrees east and north, good to some tenths of a degree; NOTICE says where they are from."""
    text = files("exafield.climate").joinpath("coastlines.txt").read_text(encoding="utf-8")
    return [np.array([pair.split(",") for pair in line.split()], np.float64) / 10.0 for line in text.splitlines()]


def _figure(grid: Grid, width: float = 9.0, *, extra: float = 0.9) -> Any:
    """A figure of the shape of the grid, and room for a title and a colour bar."""
    from matplotlib.figure import Figure

    north, east = grid.edges
    # A colour bar and labels take a part of the width.
    height = 0.88 * width * float((north[-1] - north[0]) / (east[-1] - east[0]))
    return Figure(figsize=(width, min(max(height, 1.5), 9.0) + extra), dpi=120, layout="constrained")


def _map(axes: Any, grid: Grid) -> None:
    """Limits, ticks in degrees, and coasts."""
    from matplotlib.collections import LineCollection

    north, east = grid.edges
    coasts = [np.stack(piece, -1) for line in coastlines() for piece in _pieces(line[:, 1], line[:, 0], grid)]
    axes.add_collection(LineCollection(coasts, colors="0.1", linewidths=0.5, zorder=2.5), autolim=False)
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


def _pieces(latitude: Any, longitude: Any, grid: Grid) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Degrees east and north of a line over the globe; at the seam it leaves on one side and comes in on the other."""
    north = np.asarray(latitude, np.float64)
    east = into_turn(np.asarray(longitude, np.float64), grid)
    crossings = np.nonzero(np.abs(np.diff(east)) > 180.0)[0] + 1
    for start, end in pairwise((0, *crossings.tolist(), north.size)):
        x, y = east[start:end], north[start:end]
        if start:
            x, y = np.insert(x, 0, _beyond(east[start - 1], x[0])), np.insert(y, 0, north[start - 1])
        if end < north.size:
            x, y = np.append(x, _beyond(east[end], x[-1])), np.append(y, north[end])
        yield x, y


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
            for shade, width in (("white", 2.4), (colour, 1.2)):
                axes.contour(longitude, grid.latitude, of_kind, levels=[0.5], colors=[shade], linewidths=width)


def _legend(
    axes: Any,
    kinds: Iterable[int] = (CYCLONE, RIVER),
    *,
    best: bool = False,
    dots: Iterable[tuple[str, str, float]] = (),
) -> None:
    """What lines are, and dots, each with its text, colour and wind."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=COLOURS[kind], label=CLASSES[kind]) for kind in kinds]
    handles += [Line2D([], [], color="black", linestyle="--", label="best track")] if best else []
    handles += [
        Line2D([], [], color=colour, marker="o", markersize=_dot(wind), linestyle="", label=label)
        for label, colour, wind in dots
    ]
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
    """Draws classes over a field into axes; `snapshot` makes a picture of it. Returns what a colour bar is made for.

    Limits that are alike on both sides of 0 give the colours of what blows either way.
    """
    from matplotlib.colors import LinearSegmentedColormap

    shown = None
    if field is not None:
        low, high = limits or (float(np.nanmin(field)), float(np.nanpercentile(field, 99.8)))
        colours = _EITHER_WAY if low == -high < 0 else LinearSegmentedColormap.from_list("pale", _PALE)
        shown = _field(axes, field, grid, cmap=colours, vmin=low, vmax=high)
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
        fields: by name and unit; those with values of both signs, such as winds, have colours about 0.
        grid: of fields and mask.
        mask: classes; None: there is none.
        title: over all.
    """
    figure = _figure(grid, extra=0.0)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height * len(fields) + 0.5)
    rows = figure.subplots(len(fields), 1, squeeze=False)[:, 0]
    for axes, (name, field) in zip(rows, fields.items(), strict=True):
        limits = _about_zero(name, field)
        shown = draw_snapshot(axes, np.zeros(grid.shape) if mask is None else mask, grid, field, limits=limits)
        bar = figure.colorbar(shown, ax=axes, shrink=0.8, fraction=0.03, pad=0.01, extend="both" if limits else "max")
        bar.set_label(name, fontsize=7)
        bar.ax.tick_params(labelsize=7)
    if mask is not None:
        _legend(rows[-1])
    figure.suptitle(title, fontsize=9)
    figure.savefig(path)


def _about_zero(name: str, field: NDArray[Any]) -> tuple[float, float] | None:
    """Limits that are alike on both sides of 0, for what has a direction; None for all else."""
    channel = name.partition(",")[0]
    low, high = (float(x) for x in np.nanpercentile(field, (0.2, 99.8)))
    most = max(-low, high)
    signed = channel in _WINDS if channel in CHANNELS else min(-low, high) >= _BOTH_SIGNS * most
    return (-most, most) if signed and most > 0 else None


def tracks(
    path: str | Path, followed: Sequence[Track], grid: Grid, best: Sequence[Course] = (), *, title: str = ""
) -> None:
    """Ways of cyclones and rivers; a dot where each began, for cyclones the larger the stronger the wind at its peak.

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
        for piece in _pieces(storm.latitude, storm.longitude, grid):
            axes.plot(*piece, color="black", linewidth=1.0, linestyle="--")
    measured = False
    for track in followed:
        north, east = ([getattr(event, name) for event in track.events] for name in ("latitude", "longitude"))
        colour = COLOURS[track.kind]
        for piece in _pieces(north, east, grid):
            axes.plot(*piece, color=colour, linewidth=1.0, alpha=0.8)
        wind = max(event.peak_wind for event in track.events)
        size = _dot(wind if track.kind == CYCLONE else np.nan)
        measured = measured or (track.kind == CYCLONE and not np.isnan(wind))
        axes.plot(into_turn(east[0], grid), north[0], "o", color=colour, markersize=size)
    _map(axes, grid)
    dots = [("where it began", "0.4", np.nan)]
    dots += [(f"cyclone of {wind:g} m/s at its peak", COLOURS[CYCLONE], wind) for wind in _DOTS if measured]
    _legend(axes, sorted({track.kind for track in followed}) or (CYCLONE, RIVER), best=bool(best), dots=dots)
    axes.set_title(title or counted(len(followed), "track"), fontsize=_SMALL)
    figure.savefig(path)


def _dot(wind: float) -> float:
    """Size of the dot where a track begins."""
    return 3.0 if np.isnan(wind) else float(np.clip(wind / 8.0, 2.0, 9.0))


def frequency(path: str | Path, maps: dict[str, NDArray[np.float64]], grid: Grid, *, title: str = "") -> None:
    """How often each cell belongs to a class, one map for each entry; white is never."""
    figure = _figure(grid, extra=0.0)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, (height + 0.3) * len(maps) + 0.4)
    panels = figure.subplots(len(maps), 1, squeeze=False)[:, 0]
    for axes, (name, often) in zip(panels, maps.items(), strict=True):
        high = float(np.nanmax(often)) if np.isfinite(often).any() else 0.0
        ever = np.where(often > 0, 100.0 * often, np.nan)
        shown = _field(axes, ever, grid, cmap="viridis_r", vmin=0.0, vmax=100.0 * high or 1.0)
        _map(axes, grid)
        axes.set_title(name, fontsize=_SMALL)
        bar = figure.colorbar(shown, ax=axes, shrink=0.8, fraction=0.03, pad=0.01)
        bar.set_label("% of snapshots", fontsize=7)
        bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=9)
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
        axes.set_title(clock.title(time), fontsize=_SMALL)
        _legend(axes)
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        pictures.append(Image.open(buffer).convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT))
    if not pictures:
        raise ValueError(f"there are no snapshots to make {path} of")
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
    return len(pictures)
