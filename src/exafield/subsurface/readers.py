"""Sites from files: npz archives, and a mesh that meshio reads, or a plain grid, with CSV tables beside it."""

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, Int

from exafield.requirement import require
from exafield.subsurface.checks import SiteError, check_positive, length_unit
from exafield.subsurface.generated import rectangles
from exafield.subsurface.mesh import Mesh
from exafield.subsurface.site import Site
from exafield.subsurface.tables import Table

# Corners of meshio's cells in the plane, and cells that are none of a plane's.
_CORNERS = {"triangle": 3, "quad": 4}
_SIDES = {"west": (0, False), "east": (0, True), "south": (1, False), "north": (1, True)}
_PASSED_OVER = {"vertex", "line", "line3"}


class PumpingWarning(UserWarning):
    """A well takes more than the aquifer can give; names it."""


def from_npz(path: Path | str, *, scale: float = 1.0, name: str | None = None) -> Site:
    """A site from an npz archive.

    Arrays: nodes (vertex x 2) and cell_nodes (cell x corner, 0-based); bc_kind ('D' head [m], 'N' inflow [m3/d]),
    bc_value and bc_face, which numbers the rows of face_nodes; optionally log_transmissivity (natural logarithm of
    m2/d), head [m], well_cells and y_sensors_*, sets of cells.

    Args:
        path: of the archive.
        scale: metres in the archive's unit of length.
        name: of the site, the file's if not given.

    Raises:
        SiteError: an array is missing or does not fit the others.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays: dict[str, Any] = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise SiteError(f"{path} cannot be read as an npz archive: it is damaged, or something else") from error
    for key in ("nodes", "cell_nodes", "bc_face", "bc_kind", "bc_value", "face_nodes"):
        if key not in arrays:
            raise SiteError(f"{path} has no array {key!r}, only {', '.join(sorted(arrays))}")
    mesh = Mesh.of(np.asarray(arrays["nodes"], dtype=np.float64) * scale, arrays["cell_nodes"])
    kinds, values = arrays["bc_kind"].astype(str), np.asarray(arrays["bc_value"], dtype=np.float64)
    numbers, ends = np.asarray(arrays["bc_face"], dtype=np.int64), arrays["face_nodes"]
    if not numbers.shape == kinds.shape == values.shape:
        raise SiteError(
            f"{path}: bc_face, bc_kind and bc_value have {numbers.size}, {kinds.size} and {values.size} rows"
        )
    strange = np.flatnonzero((numbers < 0) | (numbers >= len(ends)))
    if strange.size:
        raise SiteError(f"{path}: condition {strange[0]} is at face {numbers[strange[0]]} of {len(ends)}")
    faces = _boundary_faces(mesh, ends[numbers], str(path))
    fixed, inflow = kinds == "D", kinds == "N"
    other = np.flatnonzero(~(fixed | inflow))
    if other.size:
        raise SiteError(f"{path}: condition {other[0]} is of kind '{kinds[other[0]]}', not 'D' (head) or 'N' (inflow)")
    return Site(
        mesh=mesh,
        fixed_faces=faces[fixed],
        fixed_heads=values[fixed],
        inflow_faces=faces[inflow],
        inflows=values[inflow],
        well_cells=np.asarray(arrays.get("well_cells", ()), dtype=np.int64),
        log_transmissivity=arrays.get("log_transmissivity"),
        head=arrays.get("head"),
        sensors={
            key.removeprefix("y_sensors_"): np.asarray(rows, dtype=np.int64)
            for key, rows in arrays.items()
            if key.startswith("y_sensors_")
        },
        name=name or Path(path).stem,
    )


def from_tables(
    mesh: Path | str,
    boundary: Path | str,
    *,
    length: str | None = None,
    cells: Path | str | None = None,
    wells: Path | str | None = None,
) -> Site:
    """A site from a mesh that meshio reads and CSV tables.

    Values carry their unit in the column's head, as in "transmissivity [m2/d]".

    Args:
        mesh: triangles and quads; points and lines are passed over. Or a CSV of rectangles that are all alike: one row
            with columns nx, ny, and dx, dy of a cell or lx, ly of all, such as dx [m]; optionally x, y of the lower
            left corner, else 0. Cells are numbered row by row from below, each row from the left.
        boundary: columns vertex_a, vertex_b (ends of the face, numbered from 0 as in the mesh), or x, y (in the mesh's
            unit; the nearest boundary face is meant), or side (west, east, south or north, of a rectangle: all its
            faces); head and inflow through the face, or in all through the side, one of them in each row and the other
            left empty.
        length: unit of the mesh, m or ft; it must be stated, since meshes tell none, but for a CSV, which does.
        cells: columns cell and transmissivity, or conductivity and thickness, and recharge, such as recharge [m/d], if
            there is any; every cell once, numbered from 0: all cells of the mesh's first block, then its next.
        wells: columns x, y and, if they pump, rate (below zero).

    Raises:
        SiteError: a table does not fit the mesh; names the file and the line.
        ImportError: meshio is not installed.
    Warns:
        PumpingWarning: a well takes more than the aquifer can give.
    """
    scale = None if length is None and Path(mesh).suffix == ".csv" else length_unit(length)
    grid = _rectangles(Path(mesh)) if Path(mesh).suffix == ".csv" else _meshio(Path(mesh), length_unit(length))
    known, recharge = (None, None) if cells is None else _cell_values(Path(cells), grid)
    stem = Path(mesh).stem
    site = Site(
        mesh=grid,
        **_conditions(Path(boundary), grid, scale),
        log_transmissivity=known,
        source=recharge,
        name=Path(mesh).absolute().parent.name if stem == "mesh" else stem,
    )
    if wells is None:
        return site
    table = Table(Path(wells))
    table.allow("well", "x", "y", "rate")
    rates = table.numbers("rate", 3, -1) if table.has("rate") else None
    pumped = site.with_wells(_points(table, scale), rates)
    if rates is not None and rates.min() < 0:
        _check_pumping(table, rates, site, pumped)
    return pumped


def _check_pumping(table: Table, rates: Float[np.ndarray, "well"], before: Site, pumped: Site) -> None:
    """Warns if a well takes more than enters, or than the aquifer lets through where that is known."""
    assert before.source is not None
    entering = float(before.inflows.clip(min=0).sum() + before.source.clip(min=0).sum())
    most = int(rates.argmin())
    name, rate = table.columns.get("well", [""] * table.rows)[most], -float(rates[most])
    label = f"{name} (row {most + 2})" if name else f"row {most + 2}"
    found = []
    if 0 < entering < rate:
        found.append(
            f"{rate / entering:.3g} times all that inflow and recharge bring ({entering:,.0f} m3/d), so that the rest "
            "must come from where heads are given"
        )
    if pumped.log_transmissivity is not None:
        head = pumped.solved().head
        assert head is not None
        given, lowest = pumped.given_heads, float(head[pumped.well_cells[most]])
        if lowest < pumped.plausible_heads[0]:
            found.append(
                f"heads in its cell fall to {lowest:,.6g} m, where {given.min():.6g} to {given.max():.6g} m are given "
                "at the boundary: the aquifer would be dry"
            )
    if found:
        text = f"{table.path}, {label} takes {rate:,.0f} m3/d: {'; '.join(found)}. Check its unit and decimal point"
        warnings.warn(text, PumpingWarning, stacklevel=3)


def _rectangles(path: Path) -> Mesh:
    """A grid of rectangles that are all alike."""
    table = Table(path)
    table.allow("nx", "ny", "dx", "dy", "lx", "ly", "x", "y")
    if table.rows != 1:
        raise SiteError(f"{path} is one grid, and must have one row under its head line, not {table.rows}")
    lines = []
    for axis in "xy":
        count = int(table.whole(f"n{axis}")[0])
        if count < 1:
            raise SiteError(f"{path}: n{axis} is {count}, and there must be one cell at least")
        if table.has(f"d{axis}") == table.has(f"l{axis}"):
            raise SiteError(f"{path} needs one of d{axis}, of a cell, and l{axis}, of all, such as d{axis} [m]")
        each = table.has(f"d{axis}")
        size = float(table.numbers(f"d{axis}" if each else f"l{axis}", 1, 0)[0]) * (count if each else 1)
        if not size > 0:
            raise SiteError(f"{path}: {'d' if each else 'l'}{axis} must be above 0")
        start = float(table.numbers(axis, 1, 0)[0]) if table.has(axis) else 0.0
        lines.append(start + np.linspace(0, size, count + 1))
    return Mesh.of(*rectangles(*lines))


def _read(path: Path) -> Any:
    """What meshio makes of a file. It ends the program where it finds no reader, after printing why."""
    meshio, said = require("meshio", extra="subsurface"), io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return meshio.read(path)
    except (Exception, SystemExit) as error:  # its readers raise whatever a file that they do not expect leads to
        if isinstance(error, SystemExit) and error.code != 1:
            raise  # somebody else ends the program
        why = (str(error) if isinstance(error, Exception) else " ".join(said.getvalue().split())).rstrip(".")
        endings = sorted({Path(f"a{ending}").suffix for ending in meshio.extension_to_filetypes})
        advice = (
            "it may be damaged, or not what its ending says"
            if path.suffix in endings
            else f"the ending says what it is, and meshio reads {', '.join(endings)}"
        )
        raise SiteError(
            f"{path} cannot be read as a mesh: {why or type(error).__name__}; {advice}; Gmsh's .msh and "
            "VTK's .vtk and .vtu are safe choices; for a plain grid write mesh.csv with nx,ny,dx [m],dy [m]"
        ) from error


def _meshio(path: Path, scale: float) -> Mesh:
    read = _read(path)
    points = np.asarray(read.points, dtype=np.float64)
    if points.shape[1] > 2 and np.ptp(points[:, 2]) > 1e-9 * max(np.ptp(points[:, 0]), np.ptp(points[:, 1])):
        raise SiteError(f"{path} is not flat: its third coordinate spans {np.ptp(points[:, 2]):g}")
    rows = []
    for block in read.cells:
        if block.type in _CORNERS:
            filled = np.full((len(block.data), 4), -1, dtype=np.int64)
            filled[:, : _CORNERS[block.type]] = block.data
            rows.append(filled)
        elif block.type not in _PASSED_OVER:
            raise SiteError(f"{path} holds cells of type {block.type}, and triangles and quads are read here")
    if not rows:
        found = ", ".join(sorted({block.type for block in read.cells})) or "nothing"
        raise SiteError(f"{path} holds no triangles or quads, only {found}")
    return Mesh.of(points[:, :2] * scale, np.concatenate(rows))


def _points(table: Table, scale: float | None) -> Float[np.ndarray, "row 2"]:
    """[m]; in the mesh's unit, if it has one, unless the column's head states another."""
    stated = [
        table.numbers(n, 1, 0) if table.units.get(n) or scale is None else table.plain(n) * scale for n in ("x", "y")
    ]
    return np.stack(stated, axis=-1)


def _sides(table: Table, mesh: Mesh) -> list[Int[np.ndarray, "face"]]:
    """Boundary faces of each row's side of a rectangle."""
    groups, centres = [], mesh.boundary_centres
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    near = 1e-6 * (high - low)
    for row, name in enumerate(table.columns["side"], 2):
        if name.lower() not in _SIDES:
            raise SiteError(f"{table.path}, row {row}: side is {name!r}, and must be one of {', '.join(_SIDES)}")
        axis, last = _SIDES[name.lower()]
        faces = np.flatnonzero(np.abs(centres[:, axis] - (high if last else low)[axis]) < near[axis])
        length = mesh.boundary_lengths[faces].sum()
        if not np.isclose(length, (high - low)[1 - axis]):
            raise SiteError(
                f"{table.path}, row {row}: the mesh has no straight side in the {name.lower()} (faces there are "
                f"{length:.6g} m long, and it is {(high - low)[1 - axis]:.6g} m wide): name faces by x and y"
            )
        groups.append(faces)
    return groups


def _conditions(path: Path, mesh: Mesh, scale: float | None) -> dict[str, Any]:
    """Faces and values of fixed heads and inflows, as a site's arguments."""
    table = Table(path)
    table.allow("vertex_a", "vertex_b", "x", "y", "side", "head", "inflow")
    groups = _sides(table, mesh) if table.has("side") else None
    if groups is not None:
        faces = np.concatenate(groups)
    elif table.has("vertex_a"):
        faces = _boundary_faces(mesh, np.stack([table.whole("vertex_a"), table.whole("vertex_b")], axis=-1), str(path))
    else:
        points = _points(table, scale)
        gaps = np.linalg.norm(mesh.boundary_centres[None] - points[:, None], axis=-1)
        faces = gaps.argmin(axis=1)
        far = np.flatnonzero(gaps.min(axis=1) > mesh.boundary_lengths[faces])
        if far.size:
            raise SiteError(
                f"{path}, row {far[0] + 2}: the nearest boundary face is {gaps[far[0]].min():.6g} m away, farther than "
                "it is long: check unit and origin of the coordinates"
            )
    nothing = [""] * table.rows
    given = {name: np.array([x != "" for x in table.columns.get(name, nothing)]) for name in ("head", "inflow")}
    unclear = np.flatnonzero(given["head"] == given["inflow"])
    if unclear.size:
        raise SiteError(f"{path}, row {unclear[0] + 2} needs one of head and inflow, and only one")
    values = {
        name: table.numbers(name, power, time, rows) if (rows := given[name]).any() else np.zeros(0)
        for name, power, time in (("head", 1, 0), ("inflow", 3, -1))
    }
    if groups is not None:  # a side has one head; what flows in through it spreads evenly
        sizes = np.array([len(group) for group in groups])
        lengths = [mesh.boundary_lengths[group] for group, there in zip(groups, given["inflow"], strict=True) if there]
        values = {
            "head": np.repeat(values["head"], sizes[given["head"]]),
            "inflow": np.concatenate(
                [flow * part / part.sum() for flow, part in zip(values["inflow"], lengths, strict=True)]
                or [np.zeros(0)]
            ),
        }
        given = {name: np.repeat(rows, sizes) for name, rows in given.items()}
    return {
        "fixed_faces": faces[given["head"]],
        "fixed_heads": values["head"],
        "inflow_faces": faces[given["inflow"]],
        "inflows": values["inflow"],
    }


def _boundary_faces(mesh: Mesh, ends: Int[np.ndarray, "row 2"], source: str) -> Int[np.ndarray, "row"]:
    faces = mesh.boundary_face(ends)
    missing = np.flatnonzero(faces < 0)
    if missing.size:
        raise SiteError(
            f"{source}, condition {missing[0]}: no boundary face lies between vertices {ends[missing[0]].tolist()} "
            f"({missing.size} such in all)"
        )
    return faces


def _cell_values(path: Path, mesh: Mesh) -> tuple[Float[np.ndarray, "cell"], Float[np.ndarray, "cell"] | None]:
    """Natural logarithm of m2/d, and what recharge brings into each cell [m3/d]."""
    table, cells = Table(path), mesh.cells
    table.allow("cell", "transmissivity", "conductivity", "thickness", "recharge")
    numbers = table.whole("cell")
    if not np.array_equal(np.sort(numbers), np.arange(cells)):
        raise SiteError(f"{path} must name each of the cells 0..{cells - 1} once; it has {len(numbers)} rows")
    if table.has("transmissivity"):
        values = table.numbers("transmissivity", 2, -1)
    else:
        conductivity, thickness = table.numbers("conductivity", 1, -1), table.numbers("thickness", 1, 0)
        check_positive("conductivity", conductivity[np.argsort(numbers)])
        values = conductivity * thickness
    order = np.argsort(numbers)
    check_positive("transmissivity", values[order])
    recharge = table.numbers("recharge", 1, -1)[order] * mesh.areas if table.has("recharge") else None
    return np.asarray(np.log(values[order])), recharge
