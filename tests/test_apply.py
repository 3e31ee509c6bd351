"""exafield apply: a network that was trained marks storms in files that it never saw."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

for _package in ("xarray", "h5netcdf", "h5py", "cftime"):
    pytest.importorskip(_package)

import h5py  # noqa: E402

from climate_made import dataset  # noqa: E402
from exafield import runfile  # noqa: E402
from exafield.apply.climate import NETWORK, TrainedSegmenter  # noqa: E402
from exafield.apply.run import newest  # noqa: E402
from exafield.checkpoint import Checkpoints  # noqa: E402
from exafield.cli import FAILED, USAGE, main  # noqa: E402
from exafield.climate.fields import CHANNELS  # noqa: E402
from exafield.climate.generate import Generation, generate  # noqa: E402
from exafield.climate.normalisation import Statistics  # noqa: E402
from exafield.climate.reading import open_snapshots  # noqa: E402
from exafield.climate.snapshot import Snapshot  # noqa: E402
from exafield.climate.summary import Summary  # noqa: E402
from exafield.climate.tiramisu import Tiramisu  # noqa: E402
from exafield.engine.local import SerialEngine  # noqa: E402
from exafield.question import Climate  # noqa: E402
from exafield.run import Run, Training  # noqa: E402
from exafield.world import World  # noqa: E402
from made_run import make_run  # noqa: E402

ROWS, COLUMNS, STEPS = 24, 36, 4
DATA = Generation(latitudes=ROWS, longitudes=COLUMNS, train=4, validation=1, test=3)
# Two checkpoints, of networks that differ and that both find all classes somewhere.
TRAIN = (
    f"--latitudes {ROWS} --longitudes {COLUMNS} --train 4 --validation 1 --test 3 --network tiramisu:width=0.1 "
    f"--steps {STEPS} --checkpoint-every 2 --batch-size 2 --log-every 2 --schedule constant:warmup=0 "
    "--weights inverse_root --optimiser adamw:learning_rate=0.0003"
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its data, and a file of three snapshots."""
    folder = tmp_path_factory.mktemp("work")
    generate(folder / "data", DATA, SerialEngine())
    words = ["train", "climate", *TRAIN.split(), "--store", str(folder / "data"), "--folder", str(folder / "run")]
    assert main(words) == 0
    write(folder / "year.nc", snapshots(folder))
    return folder


def snapshots(work: Path) -> list[Snapshot]:
    with open_snapshots(work / "data" / "test") as found:
        return list(found)


def write(path: Path, snapshots: list[Snapshot], **renamed: str) -> None:
    dataset(snapshots, **renamed).to_netcdf(path, engine="h5netcdf")


def apply(*words: object) -> int:
    return main(["apply", "climate", *map(str, words)])


def stored(path: Path) -> np.ndarray:
    with open_snapshots(path, channels=()) as found:
        return np.stack([one.labels for one in found if one.labels is not None])


def by_hand(work: Path, step: int = STEPS) -> np.ndarray:
    """What the network of a checkpoint gives, without what `apply` uses."""
    with World.single("cpu") as world:
        state = Checkpoints(work / "run" / "checkpoints", world).read(step, ["network"]).shared["network"]["model"]
    network = Tiramisu(len(CHANNELS), width=0.1, periodic=True)
    inside = "network."
    network.load_state_dict({k.removeprefix(inside): v for k, v in state.items() if k.startswith(inside)})
    scaled = Statistics.load(work / "data" / "statistics.json").standardised
    fields = np.stack([scaled(one.values) for one in snapshots(work)])
    with torch.no_grad():
        return network.eval()(torch.from_numpy(fields)).argmax(1).numpy()


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """But for pixels in which two classes are as good, and rounding decides."""
    return one.shape == other.shape and bool((one == other).mean() > 0.999)


def test_masks_are_what_the_trained_network_gives(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, out = by_hand(work), tmp_path / "masks.nc"
    assert set(np.unique(truth)) == {0, 1, 2}
    assert not alike(truth, by_hand(work, 2)), "the steps differ in nothing: the test could not fail"
    assert apply(work / "run", work / "year.nc", "--out", out) == 0  # on processes
    said = capsys.readouterr().out
    assert said.startswith(f"3 snapshots, {ROWS} x {COLUMNS}, ")
    assert f"{out}: 3 masks, 3 made now in " in said
    assert "warning" not in said
    assert alike(stored(out), truth)
    assert [path.name for path in tmp_path.iterdir()] == ["masks.nc"]
    # The files of the published layout, the checkpoint of an earlier step, tiles, and Zarr.
    earlier = tmp_path / "earlier.zarr"
    words = ("--step", 2, "--tile", ROWS, COLUMNS, "--overlap", 4, "--engine", "threads")
    assert apply(work / "run", work / "data" / "test", "--out", earlier, *words) == 0
    assert alike(stored(earlier), by_hand(work, 2))
    # Under the same name, masks of another checkpoint are not taken for those of this one.
    capsys.readouterr()
    assert apply(work / "run", work / "year.nc", "--out", out, "--step", 2, "--engine", "serial") == FAILED
    assert "masks.nc was made otherwise (checkpoint): choose another name" in capsys.readouterr().err
    assert apply(work / "run", work / "year.nc", "--out", out, "--engine", "serial") == 0
    assert "3 masks, 0 made now" in capsys.readouterr().out


def test_a_run_that_failed_is_gone_on_with(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(work / "year.nc", tmp_path / "year.nc")
    with h5py.File(tmp_path / "year.nc", "r+") as file:
        kept = float(file["PSL"][1, 3, 4])
        file["PSL"][1, 3, 4] = np.nan
    words = (work / "run", tmp_path / "year.nc", "--out", tmp_path / "m.nc", "--engine", "serial")
    assert apply(*words) == FAILED
    said = capsys.readouterr()
    assert "stopped with 1 of 3 masks done, which are kept: the same again goes on from here" in said.out
    assert "year.nc, " in said.err
    assert "PSL: 1 of 864 values are missing" in said.err
    assert "--fill takes the nearest value there is" in said.err
    with h5py.File(tmp_path / "year.nc", "r+") as file:
        file["PSL"][1, 3, 4] = kept
    assert apply(*words) == 0
    said = capsys.readouterr()
    assert "; 1 done already" in said.out
    assert "3 masks, 2 made now" in said.out
    assert alike(stored(tmp_path / "m.nc"), by_hand(work))


def test_names_and_units_of_the_user(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "own.nc", snapshots(work), TMQ="water")
    with h5py.File(tmp_path / "own.nc", "r+") as file:
        file["PSL"][...] /= 100
        file["water"].attrs["long_name"] = "w"
        del file["PSL"].attrs["units"]
    words = (work / "run", tmp_path / "own.nc", "--out", tmp_path / "m.nc", "--engine", "serial")
    assert apply(*words) == FAILED
    said = capsys.readouterr().err
    assert "own.nc lacks TMQ; the network was trained on TMQ, U850, " in said
    assert "--names TMQ=VARIABLE" in said
    assert apply(*words, "--names", "TMQ=water") == FAILED
    assert "--units PSL=hPa" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*")), "what was begun without a mask stands in the way"
    assert apply(*words, "--names", "TMQ=water", "--units", "PSL=hPa") == 0
    assert alike(stored(tmp_path / "m.nc"), by_hand(work))


def test_a_grid_much_finer_than_in_training_is_warned_of(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(tmp_path / "fine", Generation(latitudes=48, longitudes=72, train=1, validation=1, test=1), SerialEngine())
    assert apply(work / "run", tmp_path / "fine" / "test", "--out", tmp_path / "m.nc", "--engine", "serial") == 0
    said = capsys.readouterr().out
    assert "this grid has a spacing of 3.83 x 5 degrees, and the network was trained on one of 7.83 x 10 deg" in said
    assert "interpolate the fields to the spacing it was trained on, or train" in said


# ---- checkpoints ----


@pytest.fixture
def copy(work: Path, tmp_path: Path) -> Path:
    """The run once more, to be damaged."""
    return Path(shutil.copytree(work / "run", tmp_path / "copy"))


def weights(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}" / "network.safetensors"


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_one_before_is_taken_for_a_damaged_checkpoint(
    work: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(weights(copy, STEPS))
    before = sorted(copy.rglob("*"))
    words = (copy, work / "year.nc", "--out", tmp_path / "m.nc", "--engine", "serial")
    with pytest.warns(UserWarning, match=r"step-00000004 cannot be read: the checksum of .*: taking the one before"):
        assert apply(*words) == 0
    assert alike(stored(tmp_path / "m.nc"), by_hand(work, 2))
    assert sorted(copy.rglob("*")) == before, "a run that may be in progress was touched"
    capsys.readouterr()
    assert apply(*words, "--step", STEPS) == FAILED
    assert "step-00000004 cannot be read: the checksum of network.safetensors is wrong" in capsys.readouterr().err
    weights(copy, STEPS).with_name("manifest.json").unlink()
    assert apply(*words, "--step", STEPS) == FAILED
    assert "manifest.json cannot be read" in capsys.readouterr().err
    weights(copy, 2).unlink()
    with pytest.warns(UserWarning, match="taking the one before"):
        assert apply(*words) == FAILED
    assert "is whole: train again, or restore a backup" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("growth=32", "growth=320", "(tiramisu:width=0.1,growth=320,first=48"),
        ("channels: all", "channels: four", ", 4 channels): "),
        ("network: tiramisu:", "network: deeplab:depth=26,width=0.1 #", "(deeplab:depth=26,width=0.1, 16 channels): "),
        ("kernel=5", "kernel=4", "kernel"),
    ],
)
def test_settings_of_another_network(
    work: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, says: str
) -> None:
    text = (copy / "run.yaml").read_text()
    assert text.count(old) == 1
    (copy / "run.yaml").write_text(text.replace(old, new))
    assert apply(copy, work / "year.nc", "--out", tmp_path / "m.nc") == FAILED
    said = capsys.readouterr().err
    assert f"the checkpoint of step 4 in {copy} does not fit its run.yaml: " in said
    assert says in said
    assert said.endswith("was run.yaml changed after the training?\n")
    assert len(said) < 1000, "more is said than anybody reads"


def test_a_training_in_the_same_folder_is_another_one(work: Path, copy: Path) -> None:
    first = TrainedSegmenter.of(copy, newest(copy, NETWORK))
    shutil.rmtree(copy / "checkpoints" / "step-00000004")
    shutil.copytree(copy / "checkpoints" / "step-00000002", copy / "checkpoints" / "step-00000004")
    assert TrainedSegmenter.of(copy, 4) != first  # so a worker that outlives the first loads it anew
    assert TrainedSegmenter.of(work / "run", 4).digest == first.digest


# ---- what is refused ----


def about_microscopy(folder: Path) -> Path:
    return make_run(folder / "run")


def not_trained(folder: Path) -> Path:
    (folder / "run").mkdir()
    run = Run(problem=Climate(), training=Training(steps=1))
    (folder / "run" / "run.yaml").write_text(runfile.write(run, "1"))
    return folder / "run"


def nothing(folder: Path) -> Path:
    return folder / "run"


@pytest.mark.parametrize(
    ("run", "code", "says"),
    [
        (about_microscopy, USAGE, "is a run about microscopy, not climate"),
        (not_trained, FAILED, "has no checkpoint yet: train it first"),
        (nothing, USAGE, "run is no folder of a run: it has no run.yaml"),
    ],
)
def test_runs_that_cannot_be_applied(
    work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run: Callable[[Path], Path],
    code: int,
    says: str,
) -> None:
    folder = run(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert apply(folder, work / "year.nc", "--out", tmp_path / "m.nc") == code
    assert says in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_device_asked_for_is_where_workers_compute(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TrainedSegmenter] = []

    def made(files: object, out: Path, trained: TrainedSegmenter, **_: object) -> Summary:
        asked.append(trained)
        return Summary(out, 0, 0, 0, (), (), 0, 0.0)

    monkeypatch.setattr("exafield.climate.apply.apply", made)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for words, device in (((), "cpu"), (("--device", "cuda"), "cuda")):
        assert apply(work / "run", work / "year.nc", "--out", tmp_path / "m.nc", *words) == 0
        assert asked[-1].device == device
    # A device that every torch has, in place of a GPU; nothing can be computed on it.
    network = replace(asked[-1], device="meta")()
    assert {weight.device.type for weight in network.parameters()} == {"meta"}


@pytest.mark.gpu
def test_masks_on_a_gpu_are_those_of_the_processor(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.nc"
    assert apply(work / "run", work / "year.nc", "--out", out, "--device", "cuda") == 0  # on processes
    assert alike(stored(out), by_hand(work))


def test_arguments_that_are_wrong(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run, year, out = work / "run", work / "year.nc", ("--out", tmp_path / "m.nc")
    for words, code, says in (
        ((run, tmp_path / "none.nc", *out), FAILED, "there is no file "),
        ((run, tmp_path, *out), FAILED, "holds no file that ends in .nc"),
        ((run, year, *out, "--step", 3), FAILED, "has no checkpoint of step 3, but of 2, 4"),
        ((run, year, *out, "--engine", "proceses"), USAGE, "did you mean 'processes'"),
        ((run, year, *out, "--engine", "shared"), USAGE, "engine 'shared' runs task graphs only"),
        ((run, year, *out, "--names", "TMQ"), USAGE, "--names TMQ: it is to be CHANNEL=VALUE"),
        ((run, year, *out, "--units", "TMK=mm"), USAGE, "did you mean 'TMQ'"),
        ((run, year, *out, "--device", "cuda"), USAGE, "torch sees no GPU here: leave it out"),
        ((run, year, *out, "--tile", 20, 30), USAGE, "take tiles larger than 128"),
        ((run, year, "--out", tmp_path / "m.grib"), USAGE, "m.grib: choose a name that ends in .nc or .zarr"),
        ((run, year, "--out", year), FAILED, "is the only file given"),
    ):
        assert apply(*words) == code, words
        assert says in capsys.readouterr().err
    for words, code in ((["apply"], USAGE), (["apply", "--help"], 0), (["apply", "climat", str(run)], USAGE)):
        assert main(words) == code
    assert "did you mean 'climate'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        apply(run)
    assert ended.value.code == USAGE
    assert not list(tmp_path.iterdir())
