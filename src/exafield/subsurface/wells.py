"""What wells say: a CSV table of transmissivities and heads read in them, and readings made of a site's own field."""

import csv
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from exafield.store import atomic_write
from exafield.subsurface.checks import SiteError
from exafield.subsurface.kriging import Readings, WellError, cells_of, readings
from exafield.subsurface.site import Site
from exafield.subsurface.tables import Table

# Heads farther off those at the boundary are of another datum or unit (our choice): mountains are not as high.
_FAR = 1000.0
_FOOT = 0.3048
# Of what is named one by one in a message (our choice).
_NAMED = 5


class WellWarning(UserWarning):
    """Something about readings is likely to be wrong; names the wells."""


@dataclass(frozen=True)
class Wells:
    """Readings in the cells of a site, each cell once.

    Args:
        log_transmissivity: natural logarithm of m2/d; None if nobody measured it.
        head: [m]; None if nobody measured it.
    """

    log_transmissivity: Readings | None
    head: Readings | None

    def split(self, share: float, seed: int = 0) -> tuple["Wells", "Wells"]:
        """Wells to use and wells to hold back, at random: what is inferred is then judged where it was not told.

        Args:
            share: of the readings of each kind that are held back, above 0 and below 1.
        Raises:
            WellError: of neither kind are there two readings, or the share is out of range.
        """
        if not 0 < share < 1:
            raise WellError(f"the share of wells held back must be above 0 and below 1, got {share}")
        rng = np.random.default_rng(seed)
        used: list[Readings | None] = []
        kept: list[Readings | None] = []
        for known in (self.log_transmissivity, self.head):
            if known is None or len(known) < 2:
                used.append(known)
                kept.append(None)
                continue
            order = rng.permutation(len(known))
            count = min(max(round(share * len(known)), 1), len(known) - 1)
            used.append(_some(known, np.sort(order[count:])))
            kept.append(_some(known, np.sort(order[:count])))
        if kept == [None, None]:
            raise WellError("wells cannot be held back: there must be two readings of a kind at least")
        return Wells(*used), Wells(*kept)


def _some(known: Readings, chosen: Int[np.ndarray, "some"]) -> Readings:
    names = tuple(known.names[number] for number in chosen) if known.names else ()
    return Readings(known.cells[chosen], known.values[chosen], known.errors[chosen], names)


def read_wells(
    path: Path | str, site: Site, *, log_error: float | None = None, head_error: float | None = None
) -> Wells:
    """Reads a table of wells; empty fields were not measured.

    Columns: well (its name; optional); x and y, such as x [m], or cell (number in the mesh); transmissivity, such as
    transmissivity [m2/d], or conductivity and thickness, and log_error, the standard deviation of its natural
    logarithm; head and head_error, such as head [m].

    Args:
        path: of the table.
        site: whose cells they are in.
        log_error: standard deviation of ln T where the table has no column log_error.
        head_error: [m], where the table has no column head_error.
    Raises:
        SiteError: the table is not as described; names file and row.
        WellError: a well is outside the mesh, or wells in one cell contradict each other; names the wells.
    Warns:
        WellWarning: rows repeat others, which are counted once, or heads are far from what the boundary lets expect.
    """
    table = Table(Path(path))
    table.allow(
        "well", "x", "y", "cell", "transmissivity", "conductivity", "thickness", "log_error", "head", "head_error"
    )
    given = table.columns.get("well") or [""] * table.rows
    names = [name or f"row {number}" for number, name in enumerate(given, 2)]
    labels = [f"{name} (row {number})" if name else f"row {number}" for number, name in enumerate(given, 2)]
    cells = _cells(table, site, names)
    once = _once(table, labels)
    measured = (table.filled("transmissivity") | table.filled("conductivity")) & once
    known, head = None, table.filled("head") & once
    if measured.any():
        values = _transmissivity(table, measured, labels)
        errors = _errors(table, "log_error", measured, log_error, labels, unit=False)
        known = readings(cells[measured], np.log(values), errors, _named(names, measured))
    read = None
    if head.any():
        errors = _errors(table, "head_error", head, head_error, labels, unit=True)
        values = table.numbers("head", 1, 0, head)
        _check_heads(table, site, values, _named(labels, head))
        read = readings(cells[head], values, errors, _named(names, head))
    if known is None and read is None:
        raise SiteError(
            f"{path} holds no reading: there must be values in a column transmissivity [m2/d] or head [m], and its "
            f"columns are {', '.join(table.columns)}"
        )
    return Wells(known, read)


def _once(table: Table, labels: list[str]) -> Bool[np.ndarray, "row"]:
    """Rows without those that repeat another in every field: twice in a table is not read twice."""
    first: dict[tuple[str, ...], int] = {}
    before = [first.setdefault(fields, row) for row, fields in enumerate(zip(*table.columns.values(), strict=True))]
    once = np.asarray(np.equal(before, np.arange(table.rows)))
    again = np.flatnonzero(~once)
    if again.size:
        shown = ", ".join(f"{labels[row]} is row {before[row] + 2}" for row in again[:_NAMED])
        warnings.warn(
            f"{table.path}: rows that repeat others in every field are counted once ({again.size} such: {shown}"
            f"{' ...' if again.size > _NAMED else ''}): if they are readings of their own, give them names of their "
            "own in a column well",
            WellWarning,
            stacklevel=3,
        )
    return once


def _check_heads(table: Table, site: Site, values: Float[np.ndarray, "some"], labels: list[str]) -> None:
    """Heads that are of another datum or unit: raises SiteError where there is no doubt, and warns elsewhere."""
    given = site.given_heads
    low, high, least, most = float(given.min()), float(given.max()), *site.plausible_heads
    off = np.maximum(values - high, low - values)
    span = high - low
    # Of a site near sea level no height is striking, and all of them together are.
    middle = float(np.median(values))
    feet = not low - span <= middle <= high + span and low <= middle * _FOOT <= high
    strange = (off > 0) if feet else (values < least) | (values > most)
    if not strange.any():
        return
    worst = int(np.where(strange, off, -np.inf).argmax())
    value = float(values[worst])
    feet = feet or low - span <= value * _FOOT <= high + span
    advice = "check datum and unit"
    if feet:
        advice += f": in feet it would be {value * _FOOT:.6g} m, as 1 m is 3.28 feet; a column of feet is head [ft]"
    elif low - span <= value / _FOOT <= high + span:
        advice += (
            f": {value:.6g} m are {value / _FOOT:.6g} feet; are heads of the boundary in feet, and said to be in m?"
        )
    text = (
        f"{table.path}, {labels[worst]}: a head of {value:.6g} m is {off[worst]:.6g} m "
        f"{'above' if value > high else 'below'} all heads given at the boundary, {low:.6g} to {high:.6g} m"
    )
    if off[worst] > _FAR:
        raise SiteError(f"{text}, more than {_FAR:g} m: {advice}")
    others = f" ({int(strange.sum())} of {len(values)} heads are as strange)" if strange.sum() > 1 else ""
    warnings.warn(f"{text}{others}: {advice}", WellWarning, stacklevel=3)


def _named(names: list[str], rows: Bool[np.ndarray, "row"]) -> list[str]:
    return [name for name, chosen in zip(names, rows, strict=True) if chosen]


def _cells(table: Table, site: Site, names: list[str]) -> Int[np.ndarray, "row"]:
    if table.has("cell"):
        cells = table.whole("cell")
        outside = np.flatnonzero((cells < 0) | (cells >= site.cells))
        if outside.size:
            raise WellError(
                f"{table.path}: {names[outside[0]]} is in cell {cells[outside[0]]}, and the cells of {site.name} are "
                f"numbered 0 to {site.cells - 1}"
            )
        return cells
    points = np.stack([table.numbers(name, 1, 0) for name in ("x", "y")], axis=-1)
    if site.mesh.corners is not None:
        cells = site.mesh.locate(points)
    else:
        cells = cells_of(points, site.mesh.centres, site.mesh.areas)
    outside = np.flatnonzero(cells < 0)
    if outside.size:
        low, high = site.mesh.centres.min(axis=0), site.mesh.centres.max(axis=0)
        raise WellError(
            f"{table.path}: {names[outside[0]]} at ({points[outside[0], 0]:.6g}, {points[outside[0], 1]:.6g}) m is "
            f"outside the mesh of {site.name} ({outside.size} of {len(cells)} wells are), whose centres span "
            f"{low[0]:.6g} to {high[0]:.6g} m by {low[1]:.6g} to {high[1]:.6g} m: check unit and origin"
        )
    return cells


def _transmissivity(table: Table, rows: Bool[np.ndarray, "row"], labels: list[str]) -> Float[np.ndarray, "some"]:
    """[m2/d]."""
    if table.has("transmissivity"):
        lacking = rows & ~table.filled("transmissivity")
        if lacking.any():
            raise SiteError(f"{table.path}, {labels[np.flatnonzero(lacking)[0]]}: there is no transmissivity")
        values = table.numbers("transmissivity", 2, -1, rows)
    else:
        values = table.numbers("conductivity", 1, -1, rows) * table.numbers("thickness", 1, 0, rows)
    bad = np.flatnonzero(~(values > 0))
    if bad.size:
        label = labels[np.flatnonzero(rows)[bad[0]]]
        raise SiteError(f"{table.path}, {label}: transmissivity is {values[bad[0]]:g} m2/d, and must be above 0")
    return values


def _errors(
    table: Table, name: str, rows: Bool[np.ndarray, "row"], given: float | None, labels: list[str], *, unit: bool
) -> Float[np.ndarray, "some"]:
    if table.has(name):
        values = table.numbers(name, 1, 0, rows) if unit else table.plain(name, rows)
    elif given is not None:
        values = np.full(int(rows.sum()), float(given))
    else:
        meaning = "of heads [m]" if unit else "of the natural logarithm of transmissivity"
        raise SiteError(
            f"{table.path} has no column {name}, the standard deviation {meaning}, and --{name.replace('_', '-')} is "
            "not given: how much the readings are to be believed cannot be guessed"
        )
    bad = np.flatnonzero(~(values > 0))
    if bad.size:
        label = labels[np.flatnonzero(rows)[bad[0]]]
        raise SiteError(f"{table.path}, {label}: {name} is {values[bad[0]]:g}, and nothing is known exactly")
    return values


def read_places(path: Path | str, site: Site) -> tuple[Int[np.ndarray, "place"], list[str]]:
    """Cells of places in a table, each once, and names of the wells there, empty where they have none.

    Args:
        path: of a CSV: x and y, such as x [m], or cell; optionally well.
        site: whose cells they are.
    Raises:
        SiteError: the table is not as described.
        WellError: a place is outside the mesh.
    """
    table = Table(Path(path))
    table.allow("well", "x", "y", "cell")
    given = table.columns.get("well", [""] * table.rows)
    names = [name or f"row {number}" for number, name in enumerate(given, 2)]
    cells, first = np.unique(_cells(table, site, names), return_index=True)
    return cells, [given[row] for row in first]


def measure(
    site: Site,
    *,
    log_transmissivities: int = 100,
    heads: int = 100,
    log_error: float = 0.02,
    head_error: float = 0.1,
    seed: int = 0,
    heads_at: tuple[Int[np.ndarray, "place"], list[str]] | None = None,
) -> Wells:
    """Readings of a site's own field with errors: an inverse problem whose answer is known.

    Transmissivities are read in cells drawn at random, or those of a set of the site if it has one of that size (the
    seed chooses among its alternatives); heads in wells drawn at random from those there are, in any
    cells where no wells are known.

    Args:
        site: with log-transmissivity and heads.
        log_transmissivities, heads: how many.
        log_error: standard deviation of ln T.
        head_error: [m].
        seed: of the places and errors.
        heads_at: cells in which heads are read instead, each once, and names of their wells.
    Raises:
        SiteError: the field is not known, or there are not so many cells or wells.
    """
    if site.log_transmissivity is None or site.head is None:
        raise SiteError(f"readings cannot be made: log-transmissivity or heads of {site.name} are not known")
    rng = np.random.default_rng(seed)
    parts: list[Readings | None] = []
    for name, count, places, values, error in (
        ("transmissivities", log_transmissivities, np.arange(site.cells), site.log_transmissivity, log_error),
        ("heads", heads, site.well_cells if len(site.well_cells) else np.arange(site.cells), site.head, head_error),
    ):
        if not error > 0:
            raise SiteError(f"the error of {name} must be above 0, got {error}")
        if name == "heads" and heads_at is not None:
            places, named = heads_at
            noisy = values[places] + error * rng.standard_normal(len(places))
            parts.append(Readings(places, noisy, np.full(len(places), error), tuple(named)))
            continue
        if not 0 <= count <= len(places):
            known = "wells" if places is site.well_cells else "cells"
            others = "; give other places for heads (--heads-at)" if known == "wells" else ""
            raise SiteError(f"{count} {name} cannot be read: {site.name} has {len(places)} {known}{others}")
        drawn = rng.permutation(places)[:count]
        sets = site.sensors.get(str(count)) if name == "transmissivities" else None
        cells = np.sort(drawn if sets is None else sets[seed % len(sets)])
        noisy = values[cells] + error * rng.standard_normal(count)
        parts.append(Readings(cells, noisy, np.full(count, error)) if count else None)
    if parts == [None, None]:
        raise SiteError("readings cannot be made: ask for some transmissivities or heads")
    return Wells(*parts)


def write_wells(path: Path | str, site: Site, wells: Wells) -> None:
    """Writes a table that :func:`read_wells` reads, a row for each cell with a reading."""
    y, u = (
        {}
        if known is None
        else {int(c): (v, e) for c, v, e in zip(known.cells, known.values, known.errors, strict=True)}
        for known in (wells.log_transmissivity, wells.head)
    )
    placed = bool(np.isfinite(site.mesh.centres).all())
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    where = ["x [m]", "y [m]"] if placed else ["cell"]
    rows.writerow(["well", *where, "transmissivity [m2/d]", "log_error", "head [m]", "head_error [m]"])
    called = {
        int(cell): name
        for known in (wells.log_transmissivity, wells.head)
        if known is not None
        for cell, name in zip(known.cells, known.names, strict=False)
    }
    for number, cell in enumerate(sorted(y | u), start=1):
        place = [f"{x:.3f}" for x in site.mesh.centres[cell]] if placed else [str(cell)]
        t = [f"{np.exp(y[cell][0]):.12g}", f"{y[cell][1]:g}"] if cell in y else ["", ""]
        h = [f"{u[cell][0]:.12g}", f"{u[cell][1]:g}"] if cell in u else ["", ""]
        rows.writerow([called.get(cell) or f"W{number}", *place, *t, *h])
    atomic_write(path, text.getvalue().encode())
