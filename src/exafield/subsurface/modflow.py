"""Sites from MODFLOW 6 input: one steady confined layer on a DISV or DISU grid.

Text files as the MODFLOW 6 guide to input and output describes them. Read are the packages DISV, DISU, NPF, CHD, WEL,
GHB and RCH; those that do not change steady heads are passed over, all others refused.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from exafield.subsurface.checks import SiteError, check_positive, length_unit, time_unit
from exafield.subsurface.mesh import Mesh
from exafield.subsurface.modflow_text import Blocks, read_blocks
from exafield.subsurface.site import Site

# Packages that do not change steady heads.
_WITHOUT_EFFECT = {"IC6", "OC6", "OBS6", "STO6"}
_READ = {"DISV6", "DISU6", "NPF6", "CHD6", "WEL6", "GHB6", "RCH6"}
# Options of NPF by which conductances are not harmonic means of confined transmissivity.
_OTHER_FLOW = ("ALTERNATIVE_CELL_AVERAGING", "XT3D", "THICKSTRT", "VARIABLECV", "TVK6")


def _unit(
    kind: str, known: Callable[[str | None], float], stated: str | None, given: str | None, path: Path | str
) -> float:
    """What a file states, or, where it states nothing, what was given.

    Raises:
        SiteError: they are not the same.
    """
    if not stated or stated.strip().lower() == "unknown":
        return known(given)
    unit = known(stated)
    if given is not None and known(given) != unit:
        raise SiteError(f"{path} states {stated} as its unit of {kind}, and {given} was given: leave that out")
    return unit


def from_modflow(path: Path | str, *, length: str | None = None, time: str | None = None) -> Site:
    """A site from the folder of a MODFLOW 6 simulation.

    Conductances are those of MODFLOW: DISV measures distances to faces along their normals. Cells with CHD keep their
    head, GHB become leaks, WEL and RCH sources; cells outside IDOMAIN are left out. Well cells are those of WEL.

    Args:
        path: of the folder with mfsim.nam, or of the name file of a flow model.
        length: unit, where the grid does not state one.
        time: unit, where the simulation does not state one.

    Raises:
        SiteError: something there has no counterpart here, a unit is stated nowhere, or files contradict each other.
    """
    folder, name_file, stated = _simulation(Path(path))
    packages = _packages(folder, name_file)
    grids = [kind for kind in ("DISV6", "DISU6") if kind in packages]
    if len(grids) != 1 or "NPF6" not in packages:
        raise SiteError(f"{name_file} needs one grid, DISV6 or DISU6, and NPF6; it lists {', '.join(sorted(packages))}")
    grid = read_blocks(packages[grids[0]][0])
    metre = _unit("length", length_unit, grid.option("LENGTH_UNITS"), length, grid.path)
    per_day = _unit("time", time_unit, stated, time, Path(path))
    mesh, place, thickness = (_disv if grids[0] == "DISV6" else _disu)(grid, metre)
    conductivity = _conductivity(read_blocks(packages["NPF6"][0]), grid, place) * metre * per_day
    check_positive("conductivity", conductivity)
    check_positive("thickness", thickness)
    stresses: dict[str, Any] = {"fixed_cells": [], "fixed_cell_heads": [], "leak_cells": [], "leak_conductances": [],
                                "leak_heads": []}  # fmt: skip
    source, wells = np.zeros(mesh.cells), []
    for kind in ("CHD6", "GHB6", "WEL6", "RCH6"):
        for file in packages.get(kind, ()):
            for cell, values in _period(read_blocks(file), grids[0], place, 2 if kind == "GHB6" else 1):
                if kind == "CHD6":
                    stresses["fixed_cells"].append(cell)
                    stresses["fixed_cell_heads"].append(values[0] * metre)
                elif kind == "GHB6":
                    stresses["leak_cells"].append(cell)
                    stresses["leak_heads"].append(values[0] * metre)
                    stresses["leak_conductances"].append(values[1] * metre**2 * per_day)
                elif kind == "WEL6":
                    source[cell] += values[0] * metre**3 * per_day
                    wells.append(cell)
                else:
                    source[cell] += values[0] * metre * per_day * mesh.areas[cell]
    # Several leaks of one cell act as one: conductances add up, heads by their weights.
    cells, where = np.unique(np.array(stresses["leak_cells"], dtype=np.int64), return_inverse=True)
    conductance = np.bincount(where, stresses["leak_conductances"], len(cells)) if len(cells) else np.zeros(0)
    weighted = np.multiply(stresses["leak_conductances"], stresses["leak_heads"])
    heads = np.bincount(where, weighted, len(cells)) / conductance if len(cells) else np.zeros(0)
    return Site(
        mesh=mesh,
        fixed_cells=np.array(stresses["fixed_cells"], dtype=np.int64),
        fixed_cell_heads=np.array(stresses["fixed_cell_heads"], dtype=np.float64),
        leak_cells=cells,
        leak_conductances=conductance,
        leak_heads=heads,
        source=source,
        well_cells=np.unique(np.array(wells, dtype=np.int64)),
        log_transmissivity=np.log(conductivity * thickness),
        name=name_file.stem,
    )


def _simulation(path: Path) -> tuple[Path, Path, str | None]:
    """Folder, name file of the flow model, and the unit of time if it is stated."""
    if path.is_file() and path.name != "mfsim.nam":
        return path.parent, path, None
    folder = path.parent if path.is_file() else path
    if not (folder / "mfsim.nam").is_file():
        raise SiteError(f"{folder} has no mfsim.nam: give the folder of a MODFLOW 6 simulation, or a model's name file")
    blocks = read_blocks(folder / "mfsim.nam")
    models = [row for row in blocks.rows("MODELS") if row[0].upper() == "GWF6"]
    if len(models) != 1:
        raise SiteError(f"{folder / 'mfsim.nam'} lists {len(models)} flow models (GWF6), and one is needed")
    unit = None
    for row in blocks.rows("TIMING"):
        if row[0].upper() == "TDIS6":
            unit = read_blocks(folder / row[1]).option("TIME_UNITS")
    return folder, folder / models[0][1], None if unit is None or unit.upper() == "UNKNOWN" else unit


def _packages(folder: Path, name_file: Path) -> dict[str, list[Path]]:
    """Files of each kind of package."""
    found: dict[str, list[Path]] = {}
    for row in read_blocks(name_file).rows("PACKAGES"):
        kind = row[0].upper()
        if kind in _READ:
            found.setdefault(kind, []).append(folder / row[1])
        elif kind not in _WITHOUT_EFFECT:
            raise SiteError(
                f"{name_file} has package {kind}, which is not read here; read are {', '.join(sorted(_READ))}"
            )
    return found


def _kept(grid: Blocks, cells: int) -> tuple[Int[np.ndarray, "kept"], Int[np.ndarray, "cell"]]:
    """Cells inside IDOMAIN, and the new number of every cell, -1 for those left out."""
    inside = grid.array("GRIDDATA", "IDOMAIN", cells)
    kept = np.arange(cells) if inside is None else np.flatnonzero(inside > 0)
    place = np.full(cells, -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    return kept, place


def _thickness(grid: Blocks, bottom: str, cells: int) -> Float[np.ndarray, "cell"]:
    return np.asarray(grid.needed("GRIDDATA", "TOP", cells) - grid.needed("GRIDDATA", bottom, cells))


def _points(grid: Blocks, metre: float) -> Float[np.ndarray, "vertex 2"]:
    points = np.full((grid.dimension("NVERT"), 2), np.nan)
    for row in grid.rows("VERTICES"):
        points[grid.number(row[0], len(points), "vertex")] = [float(row[1]), float(row[2])]
    return np.asarray(points * metre)


def _polygons(grid: Blocks, cells: int, metre: float) -> tuple[Float[np.ndarray, "cell 2"], list[list[int]]]:
    """Centre and corners of each cell; the last corner may repeat the first one."""
    centres = np.full((cells, 2), np.nan)
    corners: list[list[int]] = [[] for _ in range(cells)]
    vertices = grid.dimension("NVERT")
    for row in grid.rows("CELL2D"):
        cell = grid.number(row[0], cells, "cell")
        ring = [grid.number(x, vertices, "vertex") for x in row[4 : 4 + int(row[3])]]
        corners[cell] = ring[:-1] if ring[0] == ring[-1] else ring
        centres[cell] = [float(row[1]), float(row[2])]
    missing = [cell for cell, ring in enumerate(corners) if not ring]
    if missing:
        raise SiteError(f"{grid.path}: CELL2D leaves out cell {missing[0] + 1}")
    return centres * metre, corners


def _disv(grid: Blocks, metre: float) -> tuple[Mesh, Int[np.ndarray, "cell"], Float[np.ndarray, "kept"]]:
    """Mesh, new number of each cell, thickness [m]."""
    if grid.dimension("NLAY") != 1:
        raise SiteError(f"{grid.path} has {grid.dimension('NLAY')} layers, and one is needed")
    cells = grid.dimension("NCPL")
    kept, place = _kept(grid, cells)
    centres, rings = _polygons(grid, cells, metre)
    corners = np.full((len(kept), max(3, *(len(rings[cell]) for cell in kept))), -1, dtype=np.int64)
    for number, cell in enumerate(kept):
        corners[number, : len(rings[cell])] = rings[cell]
    mesh = Mesh.of(_points(grid, metre), corners, centres=centres[kept], perpendicular=True)
    return mesh, place, _thickness(grid, "BOTM", cells)[kept] * metre


def _disu(grid: Blocks, metre: float) -> tuple[Mesh, Int[np.ndarray, "cell"], Float[np.ndarray, "kept"]]:
    """Mesh, new number of each cell, thickness [m]; the file states lengths and distances of faces itself."""
    cells, entries = grid.dimension("NODES"), grid.dimension("NJA")
    kept, place = _kept(grid, cells)
    count = grid.needed("CONNECTIONDATA", "IAC", cells).astype(np.int64)
    if count.sum() != entries:
        raise SiteError(f"{grid.path}: IAC adds up to {count.sum()} and NJA is {entries}")
    here = np.repeat(np.arange(cells), count)
    there = np.abs(grid.needed("CONNECTIONDATA", "JA", entries)).astype(np.int64) - 1
    if (grid.needed("CONNECTIONDATA", "IHC", entries)[here != there] == 0).any():
        raise SiteError(f"{grid.path} has vertical connections (IHC 0), so more than one layer; one is needed")
    distance = grid.needed("CONNECTIONDATA", "CL12", entries) * metre
    length = grid.needed("CONNECTIONDATA", "HWVA", entries) * metre
    back = {(int(a), int(b)): number for number, (a, b) in enumerate(zip(here, there, strict=True))}
    up = np.flatnonzero((here < there) & (place[here] >= 0) & (place[there] >= 0))
    try:
        down = np.array([back[int(there[k]), int(here[k])] for k in up], dtype=np.int64)
    except KeyError as error:
        raise SiteError(f"{grid.path}: a connection is given one way only, nodes {error} (from 0)") from None
    sides = np.stack([distance[up], distance[down]], axis=-1)
    if (sides <= 0).any() or (length[up] <= 0).any():
        raise SiteError(
            f"{grid.path}: node {here[up[np.argmin(sides.min(axis=1))]] + 1} has a face of no length or distance"
        )
    areas = grid.needed("GRIDDATA", "AREA", cells)[kept] * metre**2
    centres = np.full((len(kept), 2), np.nan)
    if grid.has("CELL2D"):
        centres = _polygons(grid, cells, metre)[0][kept]
    empty = np.zeros(0)
    mesh = Mesh(
        centres=centres,
        areas=areas,
        neighbours=place[np.stack([here[up], there[up]], axis=-1)],
        lengths=length[up],
        shapes=length[up, None] / sides,
        boundary_cells=np.zeros(0, dtype=np.int64),
        boundary_lengths=empty,
        boundary_shapes=empty,
        boundary_centres=np.zeros((0, 2)),
    )
    return mesh, place, _thickness(grid, "BOT", cells)[kept] * metre


def _conductivity(flow: Blocks, grid: Blocks, place: Int[np.ndarray, "cell"]) -> Float[np.ndarray, "kept"]:
    other = [name for name in _OTHER_FLOW if flow.has_option(name)]
    if other or flow.array("GRIDDATA", "K22", len(place)) is not None:
        raise SiteError(
            f"{flow.path} asks for {other[0] if other else 'K22'}, and conductances here are harmonic means, isotropic"
        )
    if (flow.needed("GRIDDATA", "ICELLTYPE", len(place)) != 0).any():
        raise SiteError(f"{flow.path} has convertible cells (ICELLTYPE other than 0), and flow here is confined")
    return flow.needed("GRIDDATA", "K", len(place))[place >= 0]


def _period(
    blocks: Blocks, kind: str, place: Int[np.ndarray, "cell"], needed: int
) -> Iterable[tuple[int, list[float]]]:
    """Cell and values of each row of the one stress period; rows of cells that were left out are passed over."""
    periods = blocks.names("PERIOD")
    if len(periods) > 1:
        raise SiteError(f"{blocks.path} has {len(periods)} stress periods, and flow here is steady")
    for option in ("READASARRAYS", "AUXMULTNAME"):
        if blocks.has_option(option):
            raise SiteError(f"{blocks.path} has the option {option}, and plain lists are read here")
    ids = 2 if kind == "DISV6" else 1
    for name in periods:
        for row in blocks.rows(name):
            if ids == 2 and row[0] != "1":
                raise SiteError(f"{blocks.path}: there is one layer, and a row is in layer {row[0]}")
            cell = int(place[blocks.number(row[ids - 1], len(place), "cell")])
            try:  # names of boundaries and auxiliary values may follow
                values = [float(field) for field in row[ids : ids + needed]]
            except ValueError:
                values = []
            if len(values) < needed:
                raise SiteError(f"{blocks.path}: {' '.join(row)!r} needs {needed} numbers after the cell's")
            if cell >= 0:
                yield cell, values
