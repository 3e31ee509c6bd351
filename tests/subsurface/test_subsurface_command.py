"""`exafield subsurface`: what a user types, and what is said and written."""

from pathlib import Path

import numpy as np
import pytest

from exafield.cli import main
from exafield.subsurface.generated import box
from exafield.subsurface.maps import Panel, beyond, draw, span
from exafield.subsurface.site import Site


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
    assert run("describe", str(tmp_path / "nowhere")) == 1
    assert "neither box nor hanford, nor a file" in capsys.readouterr().err
    assert run("describe", str(tmp_path)) == 1
    assert "must hold one mesh.*" in capsys.readouterr().err
    (tmp_path / "site.npz").write_bytes(b"no archive")
    assert run("describe", str(tmp_path / "site.npz")) == 1
    assert "cannot be read as an npz archive" in capsys.readouterr().err


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
