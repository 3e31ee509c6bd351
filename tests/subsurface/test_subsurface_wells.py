"""Tables of wells: what is read, what is refused, and what is written comes back."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exafield.subsurface.checks import SiteError
from exafield.subsurface.generated import box
from exafield.subsurface.kriging import WellError
from exafield.subsurface.site import Site
from exafield.subsurface.wells import WellWarning, measure, read_wells, write_wells


@pytest.fixture(scope="module")
def site() -> Site:
    return box(8, 6)


def table(folder: Path, text: str) -> Path:
    path = folder / "wells.csv"
    path.write_text(text)
    return path


def test_what_is_measured_comes_back_from_its_table(site: Site, tmp_path: Path) -> None:
    wells = measure(site, log_transmissivities=12, heads=4, seed=3)
    write_wells(tmp_path / "wells.csv", site, wells)
    found = read_wells(tmp_path / "wells.csv", site)
    for told, read in ((wells.log_transmissivity, found.log_transmissivity), (wells.head, found.head)):
        assert told is not None
        assert read is not None
        np.testing.assert_array_equal(told.cells, read.cells)
        np.testing.assert_allclose(told.values, read.values, atol=1e-3)
        np.testing.assert_allclose(told.errors, read.errors)


def test_measured_errors_are_as_large_as_said(site: Site) -> None:
    wells = measure(site, log_transmissivities=40, heads=0, log_error=0.5, seed=1)
    assert wells.head is None
    assert wells.log_transmissivity is not None
    assert site.log_transmissivity is not None
    off = wells.log_transmissivity.values - site.log_transmissivity[wells.log_transmissivity.cells]
    assert 0.3 < off.std() < 0.7


def test_units_are_converted(site: Site, tmp_path: Path) -> None:
    path = table(tmp_path, "x [ft],y [ft],conductivity [m/s],thickness [m],head [ft]\n3000,3000,0.001,20,360\n")
    wells = read_wells(path, site, log_error=0.1, head_error=0.2)
    assert wells.log_transmissivity is not None
    assert wells.head is not None
    assert wells.log_transmissivity.values[0] == pytest.approx(np.log(0.001 * 86400 * 20))
    assert wells.head.values[0] == pytest.approx(360 * 0.3048)
    assert wells.head.cells[0] == site.mesh.locate([[914.4, 914.4]])[0]


def test_empty_fields_were_not_measured(site: Site, tmp_path: Path) -> None:
    text = "cell,transmissivity [m2/d],log_error,head [m],head_error [m]\n3,100,0.1,,\n4,,,110,0.1\n5,50,0.2,109,0.1\n"
    wells = read_wells(table(tmp_path, text), site)
    assert wells.log_transmissivity is not None
    assert wells.head is not None
    assert wells.log_transmissivity.cells.tolist() == [3, 5]
    assert wells.head.cells.tolist() == [4, 5]


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("x [m],y [m],head [m]\n1e9,0,110\n", WellError, "row 2 at .* is outside the mesh of box"),
        ("x,y,head [m]\n100,100,110\n", SiteError, "column 'x': a unit is not stated"),
        ("cell,head\n3,110\n", SiteError, "column 'head': a unit is not stated"),
        ("cell,head [m3]\n3,110\n", SiteError, "'m3' is not one of what is meant"),
        ("cell,head [m],head_error [m]\n3,nan,0.1\n", SiteError, "row 2: head is 'nan'"),
        ("cell,transmissivity [m2/d]\n3,-5\n", SiteError, "row 2: transmissivity is -5 m2/d, and must be above 0"),
        ("cell,head [m],head_error [m]\n3,110,0\n", SiteError, "row 2: head_error is 0, and nothing is known exactly"),
        ("cell,head [m]\n99,110\n", WellError, "row 2 is in cell 99, .* numbered 0 to 47"),
        ("well,cell,head [m],head_error [m]\nA,3,110,0.1\nB,3,120,0.1\n", WellError, "A and B are both in cell 3 but"),
        ("cell,well\n3,W\n", SiteError, "holds no reading"),
        ("cell,pumping [m3/d]\n3,5\n", SiteError, "column .pumping. is not known"),
        ("cell,head [m],head_error [m]\n3,1e9,0.1\n", SiteError, "row 2: a head of 1e.09 m .* more than 1000 m"),
        ("cell\n", SiteError, "no rows under its head line"),
        ("x;y;head [m]\n1;2;110\n", SiteError, "divided by semicolons"),
        ("cell,cell\n1,2\n", SiteError, "two columns 'cell'"),
        ("cell,head [m],head_error [m]\n3,110\n", SiteError, "row 2 has 2 fields, the head line has 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(
    site: Site, tmp_path: Path, text: str, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        read_wells(table(tmp_path, text), site, log_error=0.1, head_error=0.1)


HEAD = "well,cell,head [m],head_error [m]\n"


def test_rows_that_repeat_others_are_counted_once(site: Site, tmp_path: Path) -> None:
    twice = HEAD + "A,3,110,0.1\nB,4,111,0.1\nA,3,110,0.1\n"
    with pytest.warns(WellWarning, match=r"counted once \(1 such: A \(row 4\) is row 2\): .* names of their own"):
        wells = read_wells(table(tmp_path, twice), site)
    assert wells.head is not None
    assert wells.head.cells.tolist() == [3, 4]
    np.testing.assert_array_equal(wells.head.errors, [0.1, 0.1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        joined = read_wells(table(tmp_path, HEAD + "A,3,110,0.1\nB,3,110,0.1\n"), site)
    assert joined.head is not None
    assert joined.head.names == ("A, B",)
    np.testing.assert_allclose(joined.head.errors, [0.1 / np.sqrt(2)])


@pytest.mark.parametrize(
    ("heads", "match"),
    [
        ("A,3,110,0.1\nFAR,4,1000,0.1\n", r"FAR \(row 3\): a head of 1000 m is 888.\d+ m above .* to 111.\d+ m"),
        ("A,3,110,0.1\nFEET,4,361,0.1\n", r"FEET \(row 3\): .*: check datum and unit: in feet it would be 110.\d+ m"),
        ("A,3,110,0.1\nLOW,4,33.2,0.1\n", r"LOW \(row 3\): .* below all .*: 33.2 m are 108.9\d* feet"),
        ("A,3,350,0.1\nB,4,360,0.1\n", r"B \(row 3\): a head .* \(2 of 2 heads are as strange\): .* 3.28 feet"),
    ],
)  # fmt: skip
def test_heads_of_another_datum_or_unit_are_named(site: Site, tmp_path: Path, heads: str, match: str) -> None:
    with pytest.warns(WellWarning, match=match):
        read_wells(table(tmp_path, HEAD + heads), site)


def test_heads_near_sea_level_in_feet_are_seen(site: Site, tmp_path: Path) -> None:
    low = replace(site, fixed_heads=site.fixed_heads - 103.0, log_transmissivity=None, head=None)
    with pytest.warns(WellWarning, match="a head of 24 m is .*3 of 3 heads .*: in feet it would be 7.3152 m"):
        read_wells(table(tmp_path, HEAD + "A,3,22,0.1\nB,4,24,0.1\nC,5,20,0.1\n"), low)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_wells(table(tmp_path, HEAD + "A,3,5,0.1\nB,4,24,0.1\nC,5,7,0.1\n"), low)  # a mound may be that high


def test_readings_know_their_wells(site: Site, tmp_path: Path) -> None:
    wells = read_wells(table(tmp_path, HEAD + "A,5,110,0.1\nB,3,111,0.1\n,4,111,0.1\n"), site)
    assert wells.head is not None
    assert wells.head.names == ("B", "row 4", "A")
    assert wells.head.called(0) == "B (cell 3)"
    used, held = wells.split(0.4)
    assert used.head is not None
    assert held.head is not None
    assert sorted(used.head.names + held.head.names) == ["A", "B", "row 4"]
    with pytest.raises(SiteError, match=r"A \(row 2\): head_error is 0"):
        read_wells(table(tmp_path, HEAD + "A,5,110,0\n"), site)


def test_an_error_that_nobody_states_is_not_guessed(site: Site, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"no column head_error, .* --head-error is not given"):
        read_wells(table(tmp_path, "cell,head [m]\n3,110\n"), site)


def test_wells_held_back_are_told_to_nobody(site: Site) -> None:
    wells = measure(site, log_transmissivities=10, heads=4)
    used, held = wells.split(0.3)
    for whole, one, other in ((getattr(w, n) for w in (wells, used, held)) for n in ("log_transmissivity", "head")):
        assert sorted([*one.cells, *other.cells]) == sorted(whole.cells)
    assert held.log_transmissivity is not None
    assert len(held.log_transmissivity) == 3
    with pytest.raises(WellError, match="above 0 and below 1"):
        wells.split(1.0)


def test_more_readings_than_wells_are_refused(site: Site) -> None:
    with pytest.raises(SiteError, match="5 heads cannot be read: box has 4 wells"):
        measure(site, log_transmissivities=1, heads=5)
