"""From training to posterior at the command line: what is written, said and refused."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

xarray = pytest.importorskip("xarray")

from exafield import progress  # noqa: E402
from exafield.cli import main  # noqa: E402
from exafield.subsurface import results  # noqa: E402
from exafield.subsurface.generated import Shape, box  # noqa: E402
from exafield.subsurface.posterior import Posterior  # noqa: E402
from exafield.subsurface.wells import measure  # noqa: E402


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


@pytest.mark.parametrize("out", ["posterior.zarr", "file.nc"])
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
        assert dataset.cell_nodes.dtype == "int32"
        assert dataset.cell_nodes.attrs["start_index"] == 0
    stem = out.partition(".")[0]
    numbers = json.loads((trained / f"{stem}.json").read_text())
    assert numbers["method"] == "laplace"
    assert {one["name"] for one in numbers["judged"]} >= {"ln T read, held back", "head read [m], held back"}
    for name in (f"{stem}-maps.png", f"{stem}-known.png"):
        assert (trained / name).read_bytes()[:4] == b"\x89PNG"


def test_all_is_as_before_where_something_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in trained.iterdir())
    assert apply(trained, "none.txt") == 2
    assert "choose a name that ends in .zarr or .nc" in capsys.readouterr().err
    assert apply(trained, "none.zarr", "--hold-back", "1.5") == 2
    assert "above 0 and below 1" in capsys.readouterr().err
    assert apply(trained, "none.zarr", "--method", "facies") == 2
    assert "needs a prior of two kinds of rock" in capsys.readouterr().err
    assert apply(trained, "none.zarr", "--step", "3") == 1
    assert "no checkpoint of step 3" in capsys.readouterr().err
    assert main(["apply", "subsurface", str(trained), "--wells", "w.csv", "--out", "o.nc"]) == 2
    assert "is no folder of a run" in capsys.readouterr().err
    assert sorted(path.name for path in trained.iterdir()) == before


@pytest.mark.parametrize(("shape", "corners"), [("quads", 4), ("triangles", 3), ("mixed", 4)])
@pytest.mark.parametrize("name", ["p.zarr", "p.nc"])
def test_nodes_of_cells_are_whole_numbers(tmp_path: Path, name: str, shape: Shape, corners: int) -> None:
    site = box(4, 4, shape=shape)
    assert site.log_transmissivity is not None
    assert site.head is not None
    y, u = (np.stack([values, values]) for values in (site.log_transmissivity, site.head))
    wells = measure(site, log_transmissivities=2, heads=1)
    results.write(tmp_path / name, site, Posterior(y[0], y, u, misfit=1.0, steps=1), wells)
    engine = "zarr" if name.endswith("zarr") else "h5netcdf"
    with xarray.open_dataset(tmp_path / name, engine=engine, mask_and_scale=False) as stored:
        nodes = stored.cell_nodes
        assert nodes.shape == (site.cells, corners)
        assert nodes.dtype == "int32"
        assert nodes.attrs.get("_FillValue") == (-1 if shape == "mixed" else None)
        assert site.mesh.corners is not None
        np.testing.assert_array_equal(nodes, site.mesh.corners[:, :corners])
    with xarray.open_dataset(tmp_path / name, engine=engine) as masked:
        assert masked.cell_nodes.dtype == ("float64" if shape == "mixed" else "int32")


@pytest.mark.parametrize("out", ["kept.zarr", "kept.nc4.nc"])
def test_what_was_made_otherwise_is_not_replaced(trained: Path, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert apply(trained, out) == 0
    numbers = trained / f"{out.rpartition('.')[0]}.json"
    before = numbers.read_bytes()
    for more, differing in (
        (["--method", "kriging"], "method"),
        (["--seed", "1", "--hold-back", "0.2"], "hold_back, seed"),
        (["--head-error", "0.3"], "wells"),
    ):
        capsys.readouterr()
        assert apply(trained, out, *more) == 1
        assert f"made otherwise ({differing}): choose another name, or remove it" in capsys.readouterr().err
    assert numbers.read_bytes() == before
    assert apply(trained, out) == 0


@pytest.mark.parametrize("name", ["other.nc", "other.zarr", "other.json"])
def test_what_is_no_posterior_is_not_replaced(trained: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    there = trained / name
    there.write_text("of somebody")
    assert apply(trained, "other.zarr" if name.endswith("zarr") else "other.nc") == 1
    assert f"{there} is there, and no result of ours" in capsys.readouterr().err
    assert there.read_text() == "of somebody"
    there.unlink()


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
