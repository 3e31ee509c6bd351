"""exafield apply microscopy: a network on a scan in a file, from the command line to potential, columns and picture."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")

from exafield import runfile  # noqa: E402
from exafield.checkpoint import Checkpoints  # noqa: E402
from exafield.cli import FAILED, USAGE, main  # noqa: E402
from exafield.microscopy import assembly, results  # noqa: E402
from exafield.microscopy.calibration import Calibration, ScanError  # noqa: E402
from exafield.microscopy.columns import find_columns  # noqa: E402
from exafield.microscopy.conditions import conditions  # noqa: E402
from exafield.microscopy.model import Reconstructor  # noqa: E402
from exafield.microscopy.networks import Dense  # noqa: E402
from exafield.microscopy.prepare import prepare  # noqa: E402
from exafield.microscopy.readers import open_scan  # noqa: E402
from exafield.microscopy.reconstruct import _left as reconstruct_left  # noqa: E402
from exafield.microscopy.reconstruct import predictor, reconstruct  # noqa: E402
from exafield.microscopy.simulated import Recording, named_crystal, record  # noqa: E402
from exafield.question import Microscopy  # noqa: E402
from exafield.run import laptop  # noqa: E402
from exafield.world import World  # noqa: E402

NETWORK = "dense:growth=4,first=8,layers=1"


def save(folder: Path, model: nn.Module, step: int) -> None:
    with World.single("cpu") as world:
        Checkpoints(folder / "checkpoints", world).save(step, {"network": {"model": model.state_dict()}}, {}, {})


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, whose network has learnt nothing, and two scans of tungsten."""
    folder = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    model = Reconstructor(Dense(growth=4, first=8, layers=1))
    low, high = conditions(200e3, 0.025, 10.0, 1000.0), conditions(200e3, 0.025, 30.0, 1000.0)
    model.fit_statistics(torch.rand(4, 16, 16, 16, 16) * 0.1, torch.stack([low, high]), 100.0)
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "run.yaml").write_text(runfile.write(replace(laptop(), problem=Microscopy(network=NETWORK)), "0"))
    save(folder / "run", model, 3)
    how = Recording(size=(16, 16), detector_pixels=16, thickness=20.0, dose=1000.0)
    record(folder / "window.h5", named_crystal("W"), (0, 0, 1), how)
    record(folder / "scan.zarr", named_crystal("W"), (0, 0, 1), replace(how, size=(40, 30), detector_pixels=32))
    return folder


def apply(*words: object) -> int:
    return main(["apply", "microscopy", *map(str, words)])


def model_of(work: Path) -> Reconstructor:
    with World.single("cpu") as world:
        state = Checkpoints(work / "run" / "checkpoints", world).read(3, ["network"]).shared["network"]["model"]
    return assembly.reconstructor(Microscopy(network=NETWORK), state)


def test_what_is_written_is_what_the_network_says(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.h5"
    words = (work / "run", work / "window.h5", "--out", out, "--quick", "--truth")
    assert apply(*words) == 0
    said = capsys.readouterr().out
    assert "warning" not in said
    assert "note     the whole scan was seen at once" in said
    assert "against the known potential: relative L2 " in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result-columns.csv", "result.h5", "result.png"]
    with h5py.File(work / "window.h5") as file:
        counts = torch.from_numpy(file["scan/datacube/data"][...].astype(np.float32))
        thickness = float(file["scan/metadatabundle/specimen/thickness_angstrom"][()])
    with h5py.File(out) as file:
        # The detector is that of the network, but that its centre is found to a tenth of a pixel.
        told = json.loads(file.attrs["calibration"])
        assert told["dose"] == 1000.0
        assert told["thickness"] == thickness
        assert told["centre"] == pytest.approx((7.5, 7.5), abs=0.15)
        assert file.attrs["format"] == "exafield-potential"
        assert file.attrs["version"] == 1
        assert json.loads(file.attrs["provenance"])["exafield"]
        potential, deviation = file["potential"][...], file["deviation"][...]
        assert file["potential"].attrs["units"] == "V angstrom"
        assert file["x"][...] == pytest.approx(np.arange(64) * 0.125 - 0.1875)
        assert file["potential"].dims[0][0].name == "/x"
    assert abs(potential.mean()) < 1e-3 * potential.std()
    assert apply(*words, "--centre", 7.5, 7.5) == 0  # in the place of the one before
    with h5py.File(out) as file:
        exact = file["potential"][...]
    with torch.no_grad():
        told_network = conditions(200e3, 0.025, thickness, 1000.0)[None]
        wanted, logarithm = model_of(work)((counts / 1000).sqrt()[None], told_network)
    wanted, expected = wanted[0].numpy() * 100, logarithm[0].exp().numpy() * 100
    assert np.abs(exact - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert np.abs(potential - wanted).std() < 0.2 * wanted.std()
    assert deviation.mean() == pytest.approx(expected.mean(), rel=0.1)


def test_tiles_columns_and_zarr(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.zarr"
    assert apply(work / "run", work / "scan.zarr", "--out", out, "--quick", "--threshold", 0.4) == 0
    said = capsys.readouterr().out
    assert "12 tiles, which differ by " in said
    group = zarr.open_group(str(out), mode="r")
    assert group["potential"].shape == group["deviation"].shape == (160, 120)
    assert group["potential"].metadata.dimension_names == ("x", "y")
    assert group.attrs["warnings"] == ""
    head, *rows = (tmp_path / "result-columns.csv").read_text().splitlines()
    assert head == "x [A],y [A],height [V A],deviation [V A],significance"
    assert f"; {len(rows)} columns" in said
    assert len(rows) > 10
    for row in rows:
        x, y, height, deviation, significance = map(float, row.split(","))
        assert -0.2 < x < 20
        assert -0.2 < y < 15
        assert significance == pytest.approx(height / deviation, rel=0.05, abs=0.06)


class _Local(nn.Module):
    """Features of one position alone: how much of its pattern is scattered, and where to."""

    width = 2

    def forward(self, scan: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        return torch.stack([scan[..., 7:9, 7:9].mean((3, 4)), scan[..., :4, :].mean((3, 4))], 1)


def test_tiles_give_what_one_pass_gives(work: Path) -> None:
    """The error of tiling of a network that sees one position at a time is rounding; constants are found."""
    torch.manual_seed(0)
    model = Reconstructor(_Local())  # type: ignore[arg-type]
    # All pixels of a position alike: else a window's mean pattern is no constant, but one for each of them.
    model.shape.weight.data[:] = model.shape.weight.data[:1]
    with open_scan(work / "scan.zarr") as scan:
        prepared = prepare(scan, Calibration())
        tiled, whole = (reconstruct(prepared, model, assembly.sight(), tile=tile, quick=True) for tile in (16, 0))
    assert (tiled.tiles, whole.tiles) == (12, 1)
    assert whole.disagreement is None
    assert np.abs(tiled.potential - whole.potential).max() < 1e-4 * whole.potential.std()
    assert np.allclose(tiled.deviation, whole.deviation, rtol=0.03)  # it goes with a window's contrast


def test_turns_and_mirrors_are_undone_and_averaged(work: Path) -> None:
    model, told = model_of(work), conditions(200e3, 0.025, 20.0, 1000.0)
    scan = np.random.default_rng(0).uniform(0, 0.1, (1, 16, 16, 16, 16)).astype(np.float32)
    once, _ = predictor(model, told, 1)(scan)
    mean, deviation = predictor(model, told)(scan)
    # Whatever the network is, the mean turns as the scan does.
    turned = predictor(model, told)(scan[:, ::-1, :, ::-1])[0][:, ::-1]
    assert np.abs(turned - mean).max() < 1e-4 * np.abs(mean).max()
    swapped = predictor(model, told)(scan.transpose(0, 2, 1, 4, 3))[0].transpose(0, 2, 1)
    assert np.abs(swapped - mean).max() < 1e-4 * np.abs(mean).max()
    assert np.abs(once - mean).max() > 0.05 * np.abs(mean).max()
    assert (deviation > 0).all()


def test_what_is_left_of_a_variance() -> None:
    assert reconstruct_left(0.0, 8) == 1.0  # all of the error is shared
    assert reconstruct_left(0.4, 8) == pytest.approx(0.6 + 0.4 / 8)
    assert reconstruct_left(0.5, 4) == pytest.approx(0.5 + 0.5 / 4)
    # Answers that differ by all that is expected: twice as much is expected, and half of that is shared.
    assert reconstruct_left(1.0, 8) == pytest.approx(2 * (0.5 + 0.5 / 8))


def test_a_finer_scan_is_read_as_several(work: Path, tmp_path: Path) -> None:
    """Four scans of 0.5 A lie in one of 0.25 A: all of its electrons are used, and the mean is on the same pixels."""
    path = tmp_path / "fine.h5"
    record(path, named_crystal("W"), (0, 0, 1), Recording(size=(34, 33), step=0.25, detector_pixels=16, thickness=20.0))
    model = Reconstructor(_Local())  # type: ignore[arg-type]
    with open_scan(path) as scan:
        prepared = prepare(scan, Calibration())
        found = reconstruct(prepared, model, assembly.sight())
        quick = reconstruct(prepared, model, assembly.sight(), quick=True)
    assert any("the scan holds 4 scans of 0.5 A side by side" in note for note in found.notes)
    assert found.potential.shape == quick.potential.shape == (68, 68)
    assert (found.tiles, quick.tiles) == (4 + 2 * 2 + 4, 4)
    assert found.deviation.mean() < quick.deviation.mean()


def test_scans_within_a_finer_one_that_are_too_small_are_left_out(work: Path, tmp_path: Path) -> None:
    """Of 31 positions of 0.25 A every second makes 16, and those between 15: the network sees 16."""
    path = tmp_path / "fine.h5"
    record(path, named_crystal("W"), (0, 0, 1), Recording(size=(31, 33), step=0.25, detector_pixels=16, thickness=20.0))
    model = Reconstructor(_Local())  # type: ignore[arg-type]
    with open_scan(path) as scan:
        found = reconstruct(prepare(scan, Calibration()), model, assembly.sight())
    assert any("the scan holds 2 scans of 0.5 A side by side" in note for note in found.notes)
    assert found.potential.shape == (64, 68)


def test_a_coarser_scan_is_interpolated_and_warned_of(work: Path) -> None:
    with open_scan(work / "scan.zarr") as scan:
        found = reconstruct(prepare(scan, Calibration(scan_step=(0.6, 0.5))), model_of(work), assembly.sight())
    assert found.potential.shape == (4 * (1 + int(39 * 0.6 / 0.5)), 4 * 30)
    assert any("the scan step along x, 0.6 A, is coarser than that of the network" in text for text in found.warnings)


def test_outside_of_training(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--energy", 80e3, "--thickness", 100, "--dose", 50)
    assert apply(work / "run", work / "window.h5", "--out", tmp_path / "r.h5", "--quick", *given) == 0
    said = capsys.readouterr().out
    for text in (
        "energy is 200000 in the file, and 80000 was given: what was given is taken",
        "the energy, 80 keV, is outside of what the network was trained on (200 keV)",
        "the thickness, 100 A, is outside of what the network was trained on (10 A to 30 A)",
        "the dose, 50 electrons per pattern, is outside of what the network was trained on (1,000 electrons",
        "a pattern holds 9",
    ):
        assert text in said
    with h5py.File(tmp_path / "r.h5") as file:
        assert "the energy, 80 keV" in file.attrs["warnings"]


def test_a_run_that_is_refused_leaves_nothing(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    window, out = work / "window.h5", tmp_path / "r.h5"
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.yaml").write_text(runfile.write(laptop(), "0"))
    older = tmp_path / "older"
    (older / "checkpoints").mkdir(parents=True)
    (older / "run.yaml").write_text((work / "run" / "run.yaml").read_text())
    save(older, nn.Linear(3, 3), 7)
    mine = tmp_path / "mine.h5"
    mine.write_bytes(b"my own")
    (tmp_path / "shot.png").write_bytes(b"my own")
    before = sorted(tmp_path.rglob("*"))
    for words, code, said in (
        ((tmp_path, window, "--out", out), USAGE, "is no folder of a run"),
        ((other, window, "--out", out), FAILED, "has no checkpoint yet"),
        ((older, window, "--out", out), FAILED, "the checkpoint of step 7 in .*older does not fit"),
        (
            (work / "run", window, "--out", tmp_path / "r.tif"),
            FAILED,
            r"choose a name that ends in \.h5, \.hdf5, \.zarr",
        ),
        ((work / "run", window, "--out", tmp_path / "no" / "r.h5"), FAILED, "there is no folder"),
        ((work / "run", window, "--out", mine), FAILED, r"mine\.h5 is there, and no result of ours"),
        ((work / "run", window, "--out", window), FAILED, r"window\.h5 is there, and no result of ours"),
        ((work / "run", window, "--out", tmp_path / "shot.h5"), FAILED, r"shot\.png is there, and no result of ours"),
        ((work / "run", window, "--out", out, "--centre", 90, 90), FAILED, "covers 0% of what the network sees"),
        ((work / "run", window, "--out", out, "--centre", "nan", 8), FAILED, "centre must be finite, got nan x 8"),
        ((work / "run", window, "--out", out, "--detector-step", 0.05), FAILED, "one of the two is wrong"),
        ((work / "run", window, "--out", out, "--scan-step", 1.1), FAILED, "the scan step of 1.1 A is too coarse"),
        ((work / "run", window, "--out", out, "--scan-step", 0.8, "--truth"), FAILED, "known potential reaches along"),
        ((work / "run", mine, "--out", out), FAILED, "is no HDF5 file"),
        ((work / "run", window, "--out", out, "--scan-step", 0.1), FAILED, "the scan is too small: .* it has 4 x 4"),
        ((work / "run", window, "--out", out, "--tile", 8, "--overlap", 8), FAILED, "below the tile of 8 positions"),
        ((work / "run", window, "--out", out, "--threshold", 2), USAGE, "it is a share of the range"),
        ((work / "run", window, "--out", out, "--step", 9), FAILED, "has no checkpoint of step 9"),
    ):
        assert apply(*words) == code, words
        assert re.search(said, capsys.readouterr().err), said
    monkeypatch.setattr(results, "_hdf5", _full)
    assert apply(work / "run", window, "--out", out, "--quick") == FAILED
    assert re.search(r"cannot write .*r\.h5: No space left on device", capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before
    assert mine.read_bytes() == b"my own"


def _full(path: Path, *_: object) -> None:
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_columns_of_a_large_map() -> None:
    x, y = np.arange(800) * 0.125, np.arange(640) * 0.125
    lattice = [(i * 2.03 + 1, j * 3.1 + 1.57) for i in range(49) for j in range(25)]
    potential = np.zeros((800, 640))
    for a, b in lattice:
        i, j = round(a / 0.125), round(b / 0.125)
        near = np.s_[max(0, i - 12) : i + 13, max(0, j - 12) : j + 13]
        potential[near] += np.exp(-((x[near[0], None] - a) ** 2 + (y[near[1]] - b) ** 2) / (2 * 0.3**2)) * 500
    found = find_columns(potential, np.full_like(potential, 20.0), x, y, 0.2)
    assert len(found.places) == len(lattice)
    wanted = np.array(sorted(lattice))
    assert np.abs(found.places[np.lexsort((found.places[:, 1], found.places[:, 0].round(1)))] - wanted).max() < 0.02
    assert found.height == pytest.approx(500, rel=0.05)
    assert found.significance == pytest.approx(25, rel=0.05)


def test_a_scan_without_a_known_potential(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(work / "window.h5") as file:
        np.save(tmp_path / "scan.npy", file["scan/datacube/data"][...])
    words = (work / "run", tmp_path / "scan.npy", "--out", tmp_path / "r.h5", "--quick")
    assert apply(*words, "--truth") == USAGE
    assert "holds no known potential" in capsys.readouterr().err
    assert apply(*words) == FAILED
    assert "does not state, and neither was given: energy (--energy [eV]), convergence angle" in capsys.readouterr().err
    known = ("--energy", 200e3, "--convergence-angle", 0.025, "--scan-step", 0.5, "--thickness", 20)
    assert apply(*words, *known, "--detector-angle", 0.040, "--detector-step", 0.005) == FAILED
    assert "say the same: give one of them" in capsys.readouterr().err
    assert apply(*words, *known, "--detector-angle", 0.040) == 0
    with open_scan(tmp_path / "scan.npy") as scan, pytest.raises(ScanError, match="of the scan is not known: energy"):
        _ = prepare(scan, Calibration(convergence_angle=0.025), {}).recorded
