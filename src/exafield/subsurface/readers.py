"""Sites from files: npz archives, and a mesh that meshio reads with CSV tables beside it."""

import warnings
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, Int

from exafield.requirement import require
from exafield.subsurface.checks import SiteError, check_positive, length_unit
from exafield.subsurface.mesh import Mesh
from exafield.subsurface.site import Site
from exafield.subsurface.tables import Table

# Corners of meshio's cells in the plane, and cells that are none of a plane's.
_CORNERS = {"triangle": 3, "quad": 4}
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
        mesh: triangles and quads; points and lines are passed over.
        boundary: columns vertex_a, vertex_b (ends of the face, numbered from 0 as in the mesh), or x, y (in the mesh's
            unit; the nearest boundary face is meant); head and inflow through the face, one of them in each row and the
            other left empty.
        length: unit of the mesh, m or ft; it must be stated, since meshes tell none.
        cells: columns cell and transmissivity, or conductivity and thickness, and recharge, such as recharge [m/d], if
            there is any; every cell once, numbered from 0: all cells of the mesh's first block, then its next.
        wells: columns x, y and, if they pump, rate (below zero).

    Raises:
        SiteError: a table does not fit the mesh; names the file and the line.
        ImportError: meshio is not installed.
    Warns:
        PumpingWarning: a well takes more than the aquifer can give.
    """
    scale = length_unit(length)
    grid = _meshio(Path(mesh), scale)
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
            f"{rate / entering:.3g} times all that inflow and recharge bring ({entering:,.6g} m3/d), so that the rest "
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
        text = f"{table.path}, {label} takes {rate:,.6g} m3/d: {'; '.join(found)}. Check its unit and decimal point"
        warnings.warn(text, PumpingWarning, stacklevel=3)


def _meshio(path: Path, scale: float) -> Mesh:
    read = require("meshio", extra="subsurface").read(path)
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


def _points(table: Table, scale: float) -> Float[np.ndarray, "row 2"]:
    """[m]; in the mesh's unit, unless the column's head states another."""
    stated = [table.numbers(n, 1, 0) if table.units.get(n) else table.plain(n) * scale for n in ("x", "y")]
    return np.stack(stated, axis=-1)


def _conditions(path: Path, mesh: Mesh, scale: float) -> dict[str, Any]:
    """Faces and values of fixed heads and inflows, as a site's arguments."""
    table = Table(path)
    table.allow("vertex_a", "vertex_b", "x", "y", "head", "inflow")
    if table.has("vertex_a"):
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
    nothing = [""] * len(faces)
    given = {name: np.array([x != "" for x in table.columns.get(name, nothing)]) for name in ("head", "inflow")}
    unclear = np.flatnonzero(given["head"] == given["inflow"])
    if unclear.size:
        raise SiteError(f"{path}, row {unclear[0] + 2} needs one of head and inflow, and only one")
    values = {
        name: table.numbers(name, power, time, rows) if (rows := given[name]).any() else np.zeros(0)
        for name, power, time in (("head", 1, 0), ("inflow", 3, -1))
    }
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
