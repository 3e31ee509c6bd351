"""`exafield subsurface`: what a user types, and what is said and written."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exafield.cli import main
from exafield.subsurface.generated import box
from exafield.subsurface.maps import Panel, beyond, draw, span
from exafield.subsurface.opening import open_site
from exafield.subsurface.readers import PumpingWarning
from exafield.subsurface.site import Site
from exafield.subsurface.wells import read_wells


def run(*words: str) -> int:
    return main(["subsurface", *words])


def test_describe_tells_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wells = tmp_path / "wells.csv"
    assert run("measure", "box", "--out", str(wells), "--log-transmissivities", "60", "--heads", "20") == 0
    assert run("describe", "box", "--wells", str(wells)) == 0
    said = capsys.readouterr().out
    for text in ("768, of 192 km2", "24 faces, 104.167 to 111.833 m", "10000 m3/d", "in 60 cells", "law suggested"):
        assert text in said


def test_a_site_of_csv_tables_and_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("describe", str(tmp_path / "nowhere")) == 2
    assert "neither box nor hanford, nor a file" in capsys.readouterr().err
    assert run("describe", str(tmp_path)) == 1
    assert "must hold one mesh.*" in capsys.readouterr().err
    (tmp_path / "site.npz").write_bytes(b"no archive")
    assert run("describe", str(tmp_path / "site.npz")) == 1
    assert "cannot be read as an npz archive" in capsys.readouterr().err


def test_arguments_that_cannot_be_meant_are_errors_of_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wells, table = str(tmp_path / "wells.csv"), tmp_path / "heads.csv"
    table.write_text("cell,head [m]\n3,110\n")
    for words, says in (
        (["measure", "box", "--out", wells, "--heads", "100000"], "has 76 wells; give other places for heads"),
        (["measure", "box", "--out", wells, "--log-error", "0"], "the error of transmissivities must be above 0"),
        (["describe", "box", "--length", "furlong"], "the unit of length 'furlong' is not known"),
        (["describe", "box", "--wells", str(table), "--head-error", "-1"], "--head-error -1: it must be above 0"),
    ):
        assert run(*words) == 2, words
        assert says in capsys.readouterr().err
    # What is in a file is none.
    assert run("describe", "box", "--wells", str(table)) == 1
    assert "no column head_error" in capsys.readouterr().err


def test_heads_are_read_where_one_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site, places, out = box(), tmp_path / "places.csv", tmp_path / "wells.csv"
    places.write_text("well,x [m],y [m]\nA,700,600\nB,9000,8000\n,200,100\n")
    assert run("measure", "box", "--out", str(out), "--log-transmissivities", "5", "--heads-at", str(places)) == 0
    wells = read_wells(out, site)
    assert wells.head is not None
    assert site.head is not None
    at = site.mesh.locate([[700, 600], [9000, 8000], [200, 100]])
    assert wells.head.cells.tolist() == sorted(at.tolist())
    assert {"A", "B"} < set(wells.head.names)
    assert np.abs(wells.head.values - site.head[wells.head.cells]).max() < 0.5
    places.write_text("x [m],y [m]\n-5,600\n")
    assert run("measure", "box", "--out", str(out), "--heads-at", str(places)) == 1
    assert "row 2 at (-5, 600) m is outside the mesh of box" in capsys.readouterr().err


def grid(folder: Path, mesh: str, boundary: str) -> str:
    (folder / "mesh.csv").write_text(mesh)
    (folder / "boundary.csv").write_text(boundary)
    return str(folder)


def test_a_plain_grid_needs_no_mesh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = grid(
        tmp_path, "nx,ny,dx [m],ly [ft]\n8,6,500,9842.52\n", "side,head [m],inflow [m3/d]\nWest,,90\neast,100,\n"
    )
    assert run("describe", made) == 0
    said = capsys.readouterr().out
    for text in ("48, of 12 km2", "x 0 to 4000 m, y 0 to 3000 m", "6 faces, 100 to 100 m", "6 faces, 90 m3/d in all"):
        assert text in said
    site = replace(open_site(made), log_transmissivity=np.zeros(48)).solved()
    assert site.head is not None
    # Of T = 1 m2/d: 0.03 m2/d over each metre, from the middle of the last cell to the east.
    np.testing.assert_allclose(site.head[:8], 100 + 0.03 * np.arange(3750, 0, -500), rtol=1e-6)
    grid(tmp_path, "nx,ny,lx [m],ly [m],x [m],y [m]\n2,1,20,10,100,-5\n", "x [m],y [m],head [m]\n100,0,5\n120,0,6\n")
    moved = open_site(made)
    np.testing.assert_allclose(moved.mesh.centres, [[105, 0], [115, 0]])
    assert moved.fixed_heads.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("mesh", "boundary", "says"),
    [
        ("nx,ny,dx,dy\n2,2,1,1", "side,head [m]\neast,1", "column 'dx': a unit is not stated"),
        ("nx,ny,dx [m],dy [m]\n2,0,1,1", "side,head [m]\neast,1", "ny is 0, and there must be one cell"),
        ("nx,ny,dx [m]\n2,2,1", "side,head [m]\neast,1", "needs one of dy, of a cell, and ly, of all"),
        ("nx,ny,dx [m],dy [m]\n2,2,1,1\n2,2,1,1", "side,head [m]\neast,1", "must have one row"),
        ("nx,ny,dx [m],dy [m]\n2,2,-1,1", "side,head [m]\neast,1", "dx must be above 0"),
        ("nx,ny,dx [m],dy [m]\n2,2,1,1", "side,head [m]\nup,1", "row 2: side is 'up', and must be one of west, east"),
        ("nx,ny,dx [m],dy [m]\n2,2,1,1", "side,head [m]\neast,1\neast,2", "is given twice"),
        ("nx,ny,dx [m],dy [m]\n2,2,1,1", "x,y,head [m]\n2,1,1", "column 'x': a unit is not stated"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mesh: str, boundary: str, says: str
) -> None:
    assert run("describe", grid(tmp_path, mesh, boundary)) == 1
    assert says in capsys.readouterr().err


def test_a_well_that_takes_more_than_there_is_is_named(tmp_path: Path) -> None:
    made = grid(tmp_path, "nx,ny,dx [m],dy [m]\n8,6,500,500\n", "side,head [m],inflow [m3/d]\nwest,,90\neast,100,\n")
    (tmp_path / "wells.csv").write_text("well,x [m],y [m],rate [m3/d]\nA,300,300,-80\nB,900,900,-4500\n")
    with pytest.warns(PumpingWarning, match=r"B \(row 3\) takes 4,500 m3/d: 50 times all .* \(90 m3/d\)[^;]*$"):
        open_site(made)
    rows = "".join(f"{cell},100\n" for cell in range(48))
    (tmp_path / "cells.csv").write_text(f"cell,transmissivity [m2/d]\n{rows}")
    with pytest.warns(PumpingWarning, match=r"; heads in its cell fall to [\d.-]+ m, where 100 to 100 m are given"):
        open_site(made)
    (tmp_path / "wells.csv").write_text("well,x [m],y [m],rate [m3/d]\nA,300,300,-80\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_site(made)


@pytest.mark.parametrize("name", ["mesh.vtk", "mesh.msh", "mesh.foo"])
def test_a_mesh_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    pytest.importorskip("meshio", reason="needs meshio")
    (tmp_path / name).write_bytes(b"no mesh")
    (tmp_path / "boundary.csv").write_text("x,y,head [m]\n0,0,3\n")
    assert run("describe", str(tmp_path), "--length", "m") == 1
    told = capsys.readouterr()
    assert f"{tmp_path / name} cannot be read as a mesh" in told.err
    assert ("meshio reads .avs, " in told.err) == (name == "mesh.foo")
    assert told.out == ""


def test_show_draws_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "box.png"
    assert run("show", "box", "--out", str(picture)) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert run("show", "box", "--out", str(tmp_path / "box.txt")) == 2
    assert "choose a name that ends in .png" in capsys.readouterr().err
    assert run("show", "box", "--out", str(tmp_path / "none" / "box.png")) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("describ", "box") == 2
    assert "subsurface describe" in capsys.readouterr().err
    assert run() == 2
    assert "measure SITE" in capsys.readouterr().out


@pytest.fixture(scope="module")
def site() -> Site:
    return box(6, 4)


def test_a_map_of_nothing_is_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="speed: there is no finite value to draw"):
        draw(tmp_path / "a.png", site, [Panel("speed", np.full(site.cells, np.nan), "m/d")])


def test_equal_values_and_gaps_are_drawn(site: Site, tmp_path: Path) -> None:
    values = np.ones(site.cells)
    values[3] = np.nan
    draw(tmp_path / "a.png", site, [Panel("one", values, "m", wells=np.array([1, 2]), boundary=True)])
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_colours_span_all_values_but_a_few_that_are_far_off() -> None:
    values = np.linspace(3.0, 9.0, 768)
    assert span(values) == (3.0, 9.0)
    assert beyond(values, span(values)) == "neither"
    values[:2] = 300.0
    low, high = span(values)
    assert low == values.min()
    assert 9.0 < high < 12.0
    assert beyond(values, (low, high)) == "max"
