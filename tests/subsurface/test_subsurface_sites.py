"""Meshes, sites and their files: what is read is what was written, and what is wrong is named."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from exafield.datasets import DatasetError
from exafield.subsurface import darcy, modflow, readers
from exafield.subsurface.checks import SiteError, SlantedMeshWarning, log_transmissivity_of, unit_factor
from exafield.subsurface.generated import box, random_log_transmissivity, rectangles
from exafield.subsurface.mesh import Mesh, MeshError
from exafield.subsurface.modflow import from_modflow
from exafield.subsurface.readers import from_npz, from_tables
from exafield.subsurface.site import Site

DATA = Path(os.environ.get("EXAFIELD_DATA", "")) / "subsurface"
SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


@pytest.fixture(scope="module")
def site() -> Site:
    return box(8, 6, wells=5)


# Meshes


def test_geometry_of_quads_and_triangles() -> None:
    vertices, quads = rectangles(np.array([0.0, 2.0, 5.0]), np.array([0.0, 4.0]))
    corners = np.array(
        [[*quads[0]], [quads[1, 0], quads[1, 1], quads[1, 2], -1], [quads[1, 0], quads[1, 2], quads[1, 3], -1]]
    )
    mesh = Mesh.of(vertices + 1e6, corners)
    assert np.allclose(mesh.areas, [8.0, 6.0, 6.0])
    assert np.allclose(mesh.centres - 1e6, [[1.0, 2.0], [4.0, 4 / 3], [3.0, 8 / 3]])
    assert sorted(map(sorted, mesh.neighbours.tolist())) == [[0, 2], [1, 2]]
    assert sorted(mesh.lengths) == pytest.approx([4.0, 5.0])
    assert len(mesh.boundary_cells) == 6
    assert mesh.boundary_lengths.sum() == pytest.approx(18.0)
    wall = mesh.boundary_face([[quads[0, 3], quads[0, 0]]])  # the western side, its ends either way round
    assert mesh.boundary_cells[wall] == [0]
    assert mesh.boundary_shapes[wall] == pytest.approx(4.0)  # 4 m long, 1 m from the centre
    assert mesh.boundary_face([[quads[0, 1], quads[0, 2]]]) == [-1]
    flipped = Mesh.of(vertices + 1e6, np.array([quads[0, ::-1], corners[1], corners[2]]))
    assert np.allclose(np.sort(flipped.shapes.ravel()), np.sort(mesh.shapes.ravel()))


def test_points_are_located() -> None:
    mesh = box(7, 5, shape="quads").mesh
    assert np.array_equal(mesh.locate(mesh.centres), np.arange(mesh.cells))
    assert (mesh.locate(mesh.vertices) >= 0).all()
    assert mesh.locate([[-1.0, 10.0], [1.0, 10.0]]).tolist() == [-1, 0]
    bent = Mesh.of(np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [2.6, 1.4]]), [[0, 1, 2, 3]])
    assert bent.locate([[1.0, 1.5], [3.0, 1.0]]).tolist() == [-1, 0]  # beside the bend, and below it


@pytest.mark.parametrize(
    ("vertices", "corners", "message"),
    [
        (SQUARE[[0, 1, 2, 0]], [[0, 1, 2, 3]], "cell 0 is not on the inner side|degenerate"),
        (SQUARE * [1.0, 0.0], [[0, 1, 2, 3]], "cell 0 is degenerate: its area"),
        (SQUARE, [[0, 1, 2, 3], [0, 2, 1, 3]], r"cell 1 is degenerate|cells \[0, 1\]"),
        (SQUARE, [[0, 1, 1, 3]], "cell 0 is degenerate: it names vertex 1 twice"),
        (SQUARE, [[0, 1, 2, -1], [0, 1, 2, -1], [0, 1, 3, -1]], "share the edge between vertices"),
        (SQUARE, [[0, 1, 4, -1]], r"cell 0 has corners \[0, 1, 4, -1\]: it needs at least three of the 4"),
        (SQUARE, [[0, 1, -1, 2]], "at least three"),
        (SQUARE, [[0, 1]], r"at least three vertices, got shape \(1, 2\)"),
        (SQUARE * np.nan, [[0, 1, 2, 3]], "vertex 0 is not finite"),
    ],
)
def test_bad_meshes_name_the_cell(vertices: Any, corners: Any, message: str) -> None:
    with pytest.raises(MeshError, match=message):
        Mesh.of(vertices, corners)


def test_a_centre_outside_its_cell_is_named() -> None:
    with pytest.raises(MeshError, match="centre of cell 0 is not on the inner side of its face"):
        Mesh.of(SQUARE, [[0, 1, 2, 3]], centres=[[1.5, 0.5]])


# Sites


def change(site: Site, **what: Any) -> Callable[[], Site]:
    return lambda: replace(site, **what)


def test_bad_sites_say_what_is_wrong(site: Site) -> None:
    fixed, heads = site.fixed_faces, site.fixed_heads
    none, nothing = np.zeros(0, dtype=np.int64), np.zeros(0)
    holes = site.log_transmissivity.copy()
    holes[13] = np.nan
    for wrong, message in (
        (change(site, fixed_faces=none, fixed_heads=nothing), "no head is fixed anywhere"),
        (change(site, fixed_heads=heads[:-1]), "6 boundary face and 5 values"),
        (change(site, fixed_faces=fixed + 100), "there is no boundary face"),
        (change(site, fixed_faces=fixed[[0, 0, 2, 3, 4, 5]]), "is given twice"),
        (change(site, fixed_heads=heads * np.nan), "not finite"),
        (change(site, inflow_faces=fixed[:1], inflows=np.ones(1)), "both a fixed head and an inflow"),
        (change(site, well_cells=np.array([3, 48])), "well 1 is in cell 48, outside the mesh of 48 cells"),
        (change(site, log_transmissivity=holes), "log-transmissivity is nan in cell 13"),
        (change(site, head=np.zeros(47)), r"one value for each of the 48 cells, got shape \(47,\)"),
        (change(site, source=np.full(48, np.inf)), "source is inf in cell 0"),
        (
            change(site, leak_cells=np.array([3]), leak_conductances=-np.ones(1), leak_heads=np.ones(1)),
            "leak of cell 3",
        ),
        (change(site, fixed_cells=np.array([60]), fixed_cell_heads=np.ones(1)), "no cell 60"),
        (lambda: site.with_wells([[1.0, 1.0], [-5.0, 3.0]]), r"well 1 at \(-5, 3\) m is outside the mesh"),
        (lambda: site.with_wells([[np.nan, 1.0]]), "finite pairs"),
        (lambda: site.with_wells([[1.0, 1.0]], [np.nan]), "rates must be one finite value"),
        (lambda: Site.load("hanfrod"), "did you mean 'hanford'"),
        (lambda: box(1, 5), "two columns"),
        (lambda: box(4, 3, wells=13), "13 wells do not fit into 12 cells"),
        (lambda: replace(site, log_transmissivity=None).solved(), "is not known"),
    ):
        with pytest.raises(SiteError, match=message):
            wrong()


def test_cells_cut_off_from_every_given_head_are_named() -> None:
    vertices, corners = rectangles(np.arange(4.0), np.arange(2.0))
    apart = np.concatenate([vertices, SQUARE + 10.0])
    mesh = Mesh.of(apart, np.concatenate([corners, [[8, 9, 10, 11]]]))
    known = {"fixed_faces": np.array([0]), "fixed_heads": np.array([5.0])}
    with pytest.raises(SiteError, match=r"cell 3 and 0 more are connected to no fixed head \(the mesh has 2 parts\)"):
        Site(mesh=mesh, **known)
    whole = Site(mesh=mesh, **known, fixed_cells=np.array([3]), fixed_cell_heads=np.array([7.0]))
    assert darcy.solve(whole, np.zeros(4)).tolist() == pytest.approx([5.0, 5.0, 5.0, 7.0])


def test_one_cell_is_a_site() -> None:
    alone = Site(mesh=Mesh.of(SQUARE, [[0, 1, 2, 3]]), fixed_faces=np.array([0]), fixed_heads=np.array([5.0]))
    assert darcy.solve(alone, np.zeros(1), np.ones(1)).tolist() == pytest.approx([5.5])  # 2 m2/d to the face


def test_wells_are_placed_and_pump(site: Site) -> None:
    pumped = site.with_wells(site.mesh.centres[[20, 20, 31]] + 1.0, [-50.0, -20.0, 5.0])
    assert pumped.well_cells.tolist() == [20, 20, 31]
    assert pumped.source[[20, 31]].tolist() == [-70.0, 5.0]
    assert (pumped.solved().head < site.head)[20]


@pytest.mark.parametrize(
    ("unit", "length", "time", "factor"),
    [("m/d", 1, -1, 1.0), ("m/s", 1, -1, 86400.0), ("ft/d", 1, -1, 0.3048), ("ft2/d", 2, -1, 0.3048**2),
     ("m^3/s", 3, -1, 86400.0), ("ft", 1, 0, 0.3048), ("m²/d", 2, -1, 1.0), ("m³/s", 3, -1, 86400.0),
     ("L/s", 3, -1, 86.4), ("gpm", 3, -1, 1440 * 3.785411784e-3)],
)  # fmt: skip
def test_units(unit: str, length: int, time: int, factor: float) -> None:
    assert unit_factor(unit, length, time) == pytest.approx(factor, rel=1e-14)


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (None, "not stated"),
        ("", "not stated"),
        ("m2/d", "not one of what is meant"),
        ("l/s", "'l' is not known"),
        ("darcy/d", "'darcy' is not known"),
    ],
)
def test_units_are_stated_or_refused(unit: str | None, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        unit_factor(unit, 1)


def test_conductivity_is_positive() -> None:
    assert log_transmissivity_of(np.array([1e-4]), 20.0, "m/s") == pytest.approx(np.log(1e-4 * 86400 * 20))
    for bad in (0.0, -1.0, np.nan):
        with pytest.raises(SiteError, match=r"conductivity is .* in cell 1"):
            log_transmissivity_of(np.array([1.0, bad]), 20.0, "m/d")
    with pytest.raises(SiteError, match="thickness is 0 in cell 0"):
        log_transmissivity_of(np.array([1.0]), 0.0, "m/d")


def test_the_generated_field_has_its_law() -> None:
    """Variance and correlation over 200 draws at two points one correlation length apart (Matern 5/2: 0.524)."""
    points = np.array([[0.0, 0.0], [1900.0, 0.0]])
    draws = np.array(
        [random_log_transmissivity(points, mean=7.8, variance=2.6, length=1900.0, seed=seed) for seed in range(400)]
    )
    assert draws.mean() == pytest.approx(7.8, abs=0.25)
    assert draws.var() == pytest.approx(2.6, rel=0.2)
    assert np.corrcoef(draws.T)[0, 1] == pytest.approx((1 + 5**0.5 + 5 / 3) * np.exp(-(5**0.5)), abs=0.12)


@pytest.mark.parametrize("shape", ["quads", "triangles", "mixed"])
@pytest.mark.filterwarnings("ignore::exafield.subsurface.checks.SlantedMeshWarning")
def test_the_generated_site_is_a_site(shape: Any) -> None:
    made = box(10, 8, shape=shape)
    assert made.cells == {"quads": 80, "triangles": 160, "mixed": 120}[shape]
    y = torch.tensor(made.log_transmissivity)
    assert darcy.imbalance(made, y, torch.tensor(made.head)) < 1e-10
    assert made.head.min() >= made.fixed_heads.min()
    assert np.array_equal(box(10, 8, shape=shape).head, made.head)


# Files


def saved(site: Site, path: Path, **changes: Any) -> Path:
    mesh = site.mesh
    arrays = {
        "nodes": mesh.vertices / 100.0,
        "cell_nodes": mesh.corners,
        "face_nodes": np.concatenate([mesh.face_vertices, mesh.boundary_vertices]),
        "bc_face": len(mesh.face_vertices) + np.r_[site.fixed_faces, site.inflow_faces],
        "bc_kind": np.array(["D"] * len(site.fixed_faces) + ["N"] * len(site.inflow_faces)),
        "bc_value": np.r_[site.fixed_heads, site.inflows],
        "log_transmissivity": site.log_transmissivity,
        "head": site.head,
        "well_cells": site.well_cells,
        "y_sensors_3": np.array([[1, 2, 3], [4, 5, 6]]),
    } | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_npz(site: Site, tmp_path: Path) -> None:
    read = from_npz(saved(site, tmp_path / "a.npz"), scale=100.0)
    assert np.abs(read.solved().head - site.head).max() < 1e-9
    assert read.well_cells.tolist() == site.well_cells.tolist()
    assert read.sensors["3"].shape == (2, 3)
    for changes, message in (
        ({"nodes": None}, "no array 'nodes'"),
        ({"bc_kind": np.array(["X"] * 12)}, "condition 0 is of kind 'X'"),
        ({"bc_value": np.zeros(3)}, "12, 12 and 3 rows"),
        ({"bc_face": np.zeros(12, dtype=int)}, "no boundary face lies between"),
        ({"bc_face": np.full(12, 10**6)}, "at face 1000000"),
    ):
        with pytest.raises(SiteError, match=message):
            from_npz(saved(site, tmp_path / "b.npz", **changes))


def tables(site: Site, folder: Path) -> None:
    """The site's tables in feet and seconds, some conditions by ends and in other files by places."""
    mesh, feet = site.mesh, 0.3048
    rows = [(face, f"{head / feet!r},") for face, head in zip(site.fixed_faces, site.fixed_heads.tolist(), strict=True)]
    rows += [(face, f",{flow / 86400!r}") for face, flow in zip(site.inflow_faces, site.inflows.tolist(), strict=True)]
    ends = ["vertex_a,vertex_b,head [ft],inflow [m3/s]"]
    ends += [f"{mesh.boundary_vertices[face, 0]},{mesh.boundary_vertices[face, 1]},{text}" for face, text in rows]
    (folder / "ends.csv").write_text("\n".join(ends))
    places = ["x,y,head [ft],inflow [m3/s]"]
    places += [
        f"{mesh.boundary_centres[face, 0] / feet},{mesh.boundary_centres[face, 1] / feet},{t}" for face, t in rows
    ]
    (folder / "places.csv").write_text("\n".join(places))
    t = np.exp(site.log_transmissivity)
    cells = [f"{cell},{t[cell] / feet**2!s}" for cell in range(site.cells)]
    (folder / "cells.csv").write_text("\n".join(["cell,transmissivity [ft2/d]", *cells[::-1]]))
    (folder / "wells.csv").write_text(f"x,y,rate [m3/d]\n{mesh.centres[9, 0] / feet},{mesh.centres[9, 1] / feet},-40\n")


def test_tables(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What meshio would hand over is played by an object of the same attributes."""
    vertices = np.pad(site.mesh.vertices / 0.3048, ((0, 0), (0, 1)))
    blocks = [SimpleNamespace(type="line", data=[[0, 1]]), SimpleNamespace(type="quad", data=site.mesh.corners)]
    grid = SimpleNamespace(points=vertices, cells=blocks)
    monkeypatch.setattr(readers, "require", lambda name, extra: SimpleNamespace(read=lambda path: grid))
    tables(site, tmp_path)
    for boundary in ("ends.csv", "places.csv"):
        read = from_tables("grid.msh", tmp_path / boundary, length="ft", cells=tmp_path / "cells.csv")
        assert np.abs(read.solved().head - site.head).max() < 1e-8
    read = from_tables("grid.msh", tmp_path / "ends.csv", length="ft", wells=tmp_path / "wells.csv")
    assert read.well_cells.tolist() == [9]
    assert read.source[9] == -40.0
    others = {"cells": tmp_path / "cells.csv", "wells": tmp_path / "wells.csv"}
    for name, text, message in (
        ("ends.csv", "vertex_a,vertex_b,head\n0,1,3", "column 'head': a unit is not stated"),
        ("ends.csv", "vertex_a,vertex_b,head [m/d]\n0,1,3", "not one of what is meant"),
        ("ends.csv", "vertex_a,vertex_b,head [m],inflow [m3/d]\n0,1,3,4", "row 2 needs one of head and inflow"),
        ("ends.csv", "vertex_a,vertex_b,head [m]\n0,1,x", "row 2: head is 'x'"),
        ("ends.csv", "vertex_a,vertex_b,head [m]\n0,1.5,3", "no whole number"),
        ("ends.csv", "vertex_a,vertex_b,head [m]\n0,1", "row 2 has 2 fields"),
        ("ends.csv", "vertex_a,vertex_b,head [m]\n0,40,3", "no boundary face lies between vertices"),
        ("ends.csv", "a,b\n0,40", "column 'a' is not known, and what it holds would be lost"),
        ("ends.csv", "x,y,head [m]", "no rows"),
        ("ends.csv", "x,y,head [m]\n1e9,0,3", "farther than it is long"),
        ("cells.csv", "cell,transmissivity [m2/d]\n0,3", "must name each of the cells 0..47 once"),
        ("wells.csv", "x,y\n1e9,0", "outside the mesh"),
    ):
        tables(site, tmp_path)
        (tmp_path / name).write_text(text)
        with pytest.raises(SiteError, match=message):
            from_tables("grid.msh", tmp_path / "ends.csv", length="ft", **others)
    tables(site, tmp_path)
    cells = (tmp_path / "cells.csv").read_text().replace("0,", "0,-", 1)
    (tmp_path / "cells.csv").write_text(cells)
    with pytest.raises(SiteError, match="transmissivity is -"):
        from_tables("grid.msh", tmp_path / "ends.csv", length="ft", cells=tmp_path / "cells.csv")
    with pytest.raises(SiteError, match="unit of length"):
        from_tables("grid.msh", tmp_path / "ends.csv", length="furlong")
    grid.cells = [*blocks, SimpleNamespace(type="tetra", data=[[0, 1, 2, 3]])]
    with pytest.raises(SiteError, match="cells of type tetra"):
        from_tables("grid.msh", tmp_path / "ends.csv", length="ft")
    grid.points = vertices + np.arange(len(vertices))[:, None]
    with pytest.raises(SiteError, match="is not flat"):
        from_tables("grid.msh", tmp_path / "ends.csv", length="ft")
    grid.points, grid.cells = vertices, blocks[:1]
    with pytest.raises(SiteError, match="no triangles or quads, only line"):
        from_tables("grid.msh", tmp_path / "ends.csv", length="ft")


def test_meshio_itself(site: Site, tmp_path: Path) -> None:
    meshio = pytest.importorskip("meshio", reason="needs meshio")
    meshio.write_points_cells(
        tmp_path / "grid.vtk", np.pad(site.mesh.vertices, ((0, 0), (0, 1))), [("quad", site.mesh.corners)]
    )
    tables(site, tmp_path)
    read = from_tables(tmp_path / "grid.vtk", tmp_path / "ends.csv", length="m", cells=tmp_path / "cells.csv")
    assert np.abs(read.solved().head - site.head).max() < 1e-8


@pytest.mark.skipif(
    not (DATA / "hanford_site_1x.npz").is_file(), reason="needs the data set subsurface in EXAFIELD_DATA"
)
def test_the_real_site() -> None:
    with pytest.warns(SlantedMeshWarning, match=r"4\.3 degrees"):
        real = Site.load("hanford")
    assert (real.cells, len(real.mesh.neighbours), len(real.mesh.boundary_cells)) == (1475, 2766, 368)
    assert real.mesh.areas.sum() == pytest.approx(773e6, rel=2e-3)
    assert len(real.well_cells) == 323
    assert real.sensors["100"].shape == (10, 100)


def test_a_data_set_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAFIELD_DATA", str(tmp_path))
    monkeypatch.setenv("EXAFIELD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DatasetError, match="set EXAFIELD_DATA"):
        Site.load("hanford")


# MODFLOW 6


def disv(site: Site, *, bottom: float = -10.0) -> str:
    mesh, feet = site.mesh, 0.3048
    rows = [f"{i + 1} {x / feet!r} {y / feet!r}" for i, (x, y) in enumerate(mesh.vertices.tolist())]
    cells = [
        f"{i + 1} {x / feet!r} {y / feet!r} 4 {' '.join(str(v + 1) for v in mesh.corners[i])}"
        for i, (x, y) in enumerate(mesh.centres.tolist())
    ]
    idomain = " ".join("0" if cell == 47 else "1" for cell in range(48))
    return "\n".join(
        ["# a grid", "BEGIN options", " LENGTH_UNITS FEET", "END options", "BEGIN dimensions", " NLAY 1", " NCPL 48",
         f" NVERT {len(rows)}", "END dimensions", "BEGIN griddata", " top", "  CONSTANT 1.0D1", " botm LAYERED",
         f"  CONSTANT {bottom}", " idomain", "  INTERNAL", *idomain.split(), "END griddata", "BEGIN vertices", *rows,
         "END vertices", "BEGIN cell2d", *cells, "END cell2d"]
    )  # fmt: skip


def disu(site: Site) -> str:
    mesh = site.mesh
    entries: list[list[tuple[int, float, float]]] = [[(cell, 0.0, 0.0)] for cell in range(48)]
    for (a, b), length, shapes in zip(mesh.neighbours.tolist(), mesh.lengths, mesh.shapes, strict=True):
        entries[a].append((b, length / shapes[0], length))
        entries[b].append((a, length / shapes[1], length))
    flat = [entry for cell in entries for entry in cell]
    feet = 0.3048

    def array(name: str, values: Any) -> list[str]:
        return [f" {name}", "  INTERNAL FACTOR 1", " ".join(repr(value) for value in values)]

    return "\n".join(
        ["BEGIN options", " LENGTH_UNITS FEET", "END options", "BEGIN dimensions", " NODES 48", f" NJA {len(flat)}",
         "END dimensions", "BEGIN griddata", " TOP", "CONSTANT 10", " BOT", "CONSTANT -10",
         *array("AREA", (mesh.areas / feet**2).tolist()), "IDOMAIN", "INTERNAL", " ".join(["1"] * 47), "0",
         "END griddata", "BEGIN connectiondata",
         *array("IAC", [len(cell) for cell in entries]), *array("JA", [to + 1 for to, _, _ in flat]),
         *array("IHC", [1] * len(flat)), *array("CL12", [float(d / feet) for _, d, _ in flat]),
         *array("HWVA", [float(w / feet) for _, _, w in flat]), "END connectiondata"]
    )  # fmt: skip


def simulation(site: Site, folder: Path, kind: str, **changes: str) -> Path:
    """A model in feet and seconds: 20 ft thick, a constant head, a leak, a well, recharge."""
    at = "1 " if kind == "DISV" else ""
    k = np.exp(site.log_transmissivity) / 20.0 / 0.3048**2 / 86400
    files = {
        "mfsim.nam": "BEGIN timing\n TDIS6 m.tdis\nEND timing\nBEGIN models\n GWF6 m.nam m\nEND models",
        "m.tdis": "BEGIN options\n TIME_UNITS seconds\nEND options",
        "m.nam": f"BEGIN packages\n {kind}6 m.grid\n NPF6 m.npf npf\n IC6 m.ic\n CHD6 m.chd\n GHB6 m.ghb\n WEL6 m.wel\n"
        " RCH6 m.rch\n OC6 m.oc\nEND packages",
        "m.grid": disv(site) if kind == "DISV" else disu(site),
        "m.npf": "BEGIN griddata\n ICELLTYPE\n CONSTANT 0\n K\n OPEN/CLOSE k.txt\nEND griddata",
        "k.txt": "\n".join(repr(value) for value in k.tolist()),
        "m.chd": f"BEGIN period 1\n {at}1 350.0\n {at}9 345.0 'name'\nEND period",
        "m.ghb": f"BEGIN period 1\n {at}24 330.0 0.05\n {at}24 320.0 0.15\nEND period",
        "m.wel": f"BEGIN period 1\n {at}20 -0.03\n {at}48 -9.0\nEND period 1",
        "m.rch": f"BEGIN period 1\n {at}30 1e-8\nEND period",
    } | {name.replace("_", "."): text for name, text in changes.items()}
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("kind", ["DISV", "DISU"])
def test_modflow(site: Site, kind: str, tmp_path: Path) -> None:
    """The same aquifer written by hand, less the cell outside IDOMAIN."""
    read = from_modflow(simulation(site, tmp_path, kind))
    feet = 0.3048
    keep = Mesh.of(site.mesh.vertices, site.mesh.corners[:47])
    source = np.zeros(47)
    source[19], source[29] = -0.03 * feet**3 * 86400, 1e-8 * feet * 86400 * keep.areas[29]
    hand = Site(
        mesh=keep,
        fixed_cells=np.array([0, 8]),
        fixed_cell_heads=np.array([350.0, 345.0]) * feet,
        leak_cells=np.array([23]),
        leak_conductances=np.array([0.2 * feet**2 * 86400]),
        leak_heads=np.array([322.5 * feet]),
        source=source,
        log_transmissivity=site.log_transmissivity[:47],
    ).solved()
    assert np.abs(read.log_transmissivity - hand.log_transmissivity).max() < 1e-12
    assert np.abs(read.solved().head - hand.head).max() < 1e-9
    assert read.well_cells.tolist() == [19]
    # Each grid lists its faces in an order of its own.
    assert np.allclose(np.sort(read.mesh.distances), np.sort(keep.distances))
    assert darcy.imbalance(read, torch.tensor(hand.log_transmissivity), torch.tensor(hand.head)) < 1e-10


def test_modflow_that_has_no_counterpart_is_refused(site: Site, tmp_path: Path) -> None:
    packages = "BEGIN packages\n DISV6 m.grid\n NPF6 m.npf\n{} \nEND packages"
    grid = disv(site)
    flow = "BEGIN options\n{}\nEND options\nBEGIN griddata\n ICELLTYPE\n CONSTANT {}\n K\n CONSTANT {}\nEND griddata"
    for changes, message in (
        ({"m_nam": packages.format("RIV6 m.riv")}, "package RIV6"),
        ({"m_nam": "BEGIN packages\n NPF6 m.npf\nEND packages"}, "needs one grid"),
        ({"m_nam": packages.format("CHD6 none.chd")}, "there is no file .*none.chd"),
        ({"m_nam": packages.format("")}, "no head is fixed anywhere"),
        ({"m_npf": flow.format("XT3D", 0, 1)}, "asks for XT3D"),
        ({"m_npf": flow.format("", 1, 1)}, "convertible"),
        ({"m_npf": flow.format("", 0, -3)}, "conductivity is .* in cell 0"),
        ({"m_npf": flow.format("", 0, "x")}, "K has 'x' where a number is needed"),
        ({"m_npf": "BEGIN griddata\n ICELLTYPE\n CONSTANT 0\nEND griddata"}, "no array K"),
        ({"k_txt": "1 2 3"}, "K has 3 values, and 48 are needed"),
        ({"m_grid": grid.replace("LENGTH_UNITS FEET", "")}, "unit of length is not stated"),
        ({"m_tdis": ""}, "unit of time is not stated"),
        ({"m_grid": grid.replace("NLAY 1", "NLAY 2")}, "2 layers"),
        ({"m_grid": disv(site, bottom=10.0)}, "thickness is 0 in cell 0"),
        ({"m_grid": grid.replace("END cell2d", "")}, "block CELL2D does not end"),
        ({"m_chd": "BEGIN period 1\n1 99 3.0\nEND period"}, "no cell '99'"),
        ({"m_chd": "BEGIN period 1\n1 9\nEND period"}, "needs 1 numbers"),
        ({"m_chd": "BEGIN period 1\n1 9 series\nEND period"}, "needs 1 numbers"),
        ({"m_chd": "BEGIN period 1\n1 9 3\n1 9 4\nEND period"}, "cell 8 is given twice"),
        ({"m_wel": "BEGIN period 1\n1 9 3\nEND period\nBEGIN period 2\n1 9 4\nEND period"}, "2 stress periods"),
        ({"m_rch": "BEGIN options\nREADASARRAYS\nEND options"}, "READASARRAYS"),
    ):
        with pytest.raises(SiteError, match=message):
            from_modflow(simulation(site, tmp_path, "DISV", **changes))
    stated = simulation(site, tmp_path, "DISV", m_grid=grid.replace("LENGTH_UNITS FEET", ""), m_tdis="")
    assert modflow.from_modflow(stated / "m.nam", length="ft", time="s").cells == 47
    told = simulation(site, tmp_path, "DISV")
    assert from_modflow(told, length="feet", time="seconds").cells == 47
    for given, message in (
        ({"length": "m"}, "states FEET as its unit of length, and m was given: leave that out"),
        ({"time": "d"}, "states seconds as its unit of time, and d was given: leave that out"),
    ):
        with pytest.raises(SiteError, match=message):
            from_modflow(told, **given)
    with pytest.raises(SiteError, match=r"has no mfsim\.nam"):
        from_modflow(tmp_path / "none")
