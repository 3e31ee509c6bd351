"""From training to posterior at the command line: what is written, said and refused."""

import functools
import json
from pathlib import Path

import pytest

xarray = pytest.importorskip("xarray")

from exafield.cli import main  # noqa: E402
from exafield.subsurface import progress  # noqa: E402


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, and wells beside it."""
    folder = tmp_path_factory.mktemp("subsurface")
    few = "--train 40 --test 10 --steps 4 --batch-size 8 --device cpu"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXAFIELD_CACHE", str(folder))
        words = [
            "train",
            "subsurface",
            "--folder",
            str(folder / "run"),
            "--store",
            str(folder / "data.h5"),
            *few.split(),
        ]
        assert main(words) == 0
    wells = ["measure", "box", "--out", str(folder / "wells.csv"), "--log-transmissivities", "30", "--heads", "20"]
    assert main(["subsurface", *wells]) == 0
    return folder


def apply(folder: Path, out: str, *more: str) -> int:
    words = [str(folder / "run"), "--wells", str(folder / "wells.csv"), "--out", str(folder / out)]
    return main(["apply", "subsurface", *words, "--samples", "20", *more])


@pytest.mark.parametrize("out", ["posterior.zarr", "posterior.nc"])
def test_the_posterior_is_written_with_maps_and_numbers(
    trained: Path, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply(trained, out, "--hold-back", "0.2") == 0
    said = capsys.readouterr().out
    assert "ln T read, held back                    6" in said
    opened = xarray.open_zarr(trained / out, consolidated=False) if out.endswith("zarr") else None
    with opened or xarray.open_dataset(trained / out) as dataset:
        assert dict(dataset.sizes)["sample"] == 20
        assert dict(dataset.sizes)["log_transmissivity_well"] == 24
        assert dataset.head_mean.attrs["units"] == "m"
        assert float(dataset.head_std.max()) > 0
        assert dataset.cell_nodes.dims == ("cell", "corner")
    numbers = json.loads((trained / "posterior.json").read_text())
    assert numbers["method"] == "laplace"
    assert {one["name"] for one in numbers["judged"]} >= {"ln T read, held back", "head read [m], held back"}
    for name in ("posterior-maps.png", "posterior-known.png"):
        assert (trained / name).read_bytes()[:4] == b"\x89PNG"


def test_all_is_as_before_where_something_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in trained.iterdir())
    assert apply(trained, "posterior.txt") == 1
    assert "choose a name that ends in .zarr or .nc" in capsys.readouterr().err
    assert apply(trained, "posterior.zarr", "--hold-back", "1.5") == 1
    assert "above 0 and below 1" in capsys.readouterr().err
    assert apply(trained, "posterior.zarr", "--method", "facies") == 2
    assert "needs a prior of two kinds of rock" in capsys.readouterr().err
    assert apply(trained, "posterior.zarr", "--step", "3") == 1
    assert "no checkpoint of step 3" in capsys.readouterr().err
    assert main(["apply", "subsurface", str(trained), "--wells", "w.csv", "--out", "o.nc"]) == 2
    assert "is no folder of a run" in capsys.readouterr().err
    assert sorted(path.name for path in trained.iterdir()) == before


def test_what_takes_long_says_how_far_it_is(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "now_and_then", functools.partial(progress.now_and_then, 0.0))
    for method, says in (
        ("rml", ["maximum: step 1, objective", "optimum of sample 20 of 20"]),
        ("esmda", ["esmda: step 1 of 4, 500 members", "esmda: step 4 of 4"]),
    ):
        assert apply(trained, f"{method}.nc", "--method", method) == 0
        said = capsys.readouterr()
        for text in says:
            assert text in said.err
            assert text not in said.out


def test_what_a_law_cannot_be_learnt_from_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["train", "subsurface", "--folder", str(tmp_path / "run"), "--steps", "2"]
    for words, says in (
        (["--site", "nowhere"], "there is no site 'nowhere'"),
        (["--sensors", "1000"], "sensors are 1000, and site box has 768"),
        (["--snapshots", str(tmp_path / "none.npz")], "there is no file"),
        (["--generator", "spectral:scales=7"], "scales must be 1 to 2"),
    ):
        assert main([*run, "--train", "12", "--test", "4", "--store", str(tmp_path / "d.h5"), *words]) == 2, words
        assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
