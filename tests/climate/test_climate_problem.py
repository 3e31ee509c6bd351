"""The problem of climate: it trains, judges, draws, and goes on; from generated snapshots and from given ones."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

for _package in ("xarray", "h5py", "cftime"):
    pytest.importorskip(_package)

from exafield import assembly, runfile  # noqa: E402
from exafield.cli import FAILED  # noqa: E402
from exafield.climate import plots  # noqa: E402
from exafield.climate.assembly import MakeNetwork, channels, segmenter  # noqa: E402
from exafield.climate.fields import CHANNELS, FOUR  # noqa: E402
from exafield.climate.generate import Generation, generate  # noqa: E402
from exafield.climate.loss import FREQUENCIES, Focal, inverse_power  # noqa: E402
from exafield.climate.parts import Parts  # noqa: E402
from exafield.climate.problem import ClimateProblem  # noqa: E402
from exafield.climate.snapshot import SnapshotError  # noqa: E402
from exafield.climate.tiramisu import Tiramisu  # noqa: E402
from exafield.engine.local import SerialEngine  # noqa: E402
from exafield.job import carry_out  # noqa: E402
from exafield.optim import AdamW  # noqa: E402
from exafield.problem import Prepared, Problem  # noqa: E402
from exafield.question import Climate, Weather  # noqa: E402
from exafield.report import Report  # noqa: E402
from exafield.run import Record, Run, RunError, Training  # noqa: E402
from exafield.trainer import Trainer  # noqa: E402
from exafield.world import World  # noqa: E402

TINY = Generation(latitudes=24, longitudes=36, train=6, validation=2, test=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weather")
    generate(path, TINY, SerialEngine())
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXAFIELD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def small(channels: int, periodic: bool) -> Tiramisu:
    return Tiramisu(channels, layers=(1, 1), growth=8, first=8, kernel=3, dropout=0.0, periodic=periodic)


def test_it_learns_judges_and_draws(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = ClimateProblem(TINY, folder, network=small, optimiser=AdamW(0.01))
    assert isinstance(problem, Problem)
    with World.single("cpu") as world:
        trainer = Trainer(problem, world, batch_size=2, report=Report(show=False))
        assert problem.model is not None
        before = problem.report(world)
        assert before is not None
        values = trainer.fit(steps=40)
        verdict = problem.report(world)
    assert set(values) == {"mean_iou", "iou_cyclone", "iou_river"}
    assert verdict is not None
    assert verdict.network.mean_iou > before.network.mean_iou + 0.05
    assert verdict.network.samples == TINY.test
    assert list(verdict.scores) == [
        "network",
        "published heuristics",
        "corrected heuristics",
        "single pixels",
        "all background",
    ]
    told = json.loads(json.dumps(verdict.values(), allow_nan=False))
    assert told["network"]["mean_iou"] == verdict.network.mean_iou
    assert np.sum(told["network"]["table"]) == TINY.test * TINY.latitudes * TINY.longitudes
    problem.picture(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    titles: list[str] = []
    monkeypatch.setattr(plots, "snapshot", lambda *_, title, **__: titles.append(title))
    problem.picture(tmp_path / "again.png")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:00 UTC, of years never seen", titles[0])


def test_there_is_nothing_to_draw_before_the_report(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="call report"):
        ClimateProblem(TINY, folder).picture(tmp_path / "x.png")


def test_a_checkpoint_holds_how_fields_are_scaled(folder: Path) -> None:
    network = "tiramisu:width=0.1,kernel=3"
    problem = ClimateProblem(TINY, folder, network=MakeNetwork(network), scaling="range")
    with World.single("cpu") as world:
        problem.players(world)
    assert problem.model is not None
    snapshot = problem.parts.train[0]
    scaled = torch.from_numpy(problem.parts.statistics.to_unit_range(snapshot.values))
    with torch.no_grad():
        expected = problem.model.eval()(scaled[None]).argmax(1)[0].numpy()
    other = segmenter(Climate(network=network, scaling="range"), problem.model.state_dict())
    assert (other.classify(snapshot.values) == expected).mean() > 0.999
    with pytest.raises(ValueError, match=r"expected \(16, lat, lon\)"):
        other.classify(snapshot.values[:4])


def test_folders_of_ones_own_on_a_subset_of_channels(folder: Path, tmp_path: Path, cache: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for part in ("train", "validation", "test"):
        (own / part).symlink_to(folder / part)
    parts = Parts(own, FOUR)
    assert parts.statistics.channels == FOUR
    made = Parts(folder, FOUR).statistics  # those of the generator
    np.testing.assert_allclose(parts.statistics.mean, made.mean)
    np.testing.assert_allclose(sum(parts.frequencies), 1.0)
    labels = np.stack([snapshot.labels for snapshot in parts.train if snapshot.labels is not None])
    np.testing.assert_allclose(parts.frequencies, np.bincount(labels.ravel(), minlength=3) / labels.size)
    assert len(list(cache.glob("climate-*.json"))) == 2
    problem = assembly.problem(
        Run(
            problem=Climate(
                data=Weather(snapshots=str(own), channels="four"), network="tiramisu:width=0.1", frequencies="measured"
            ),
            training=Training(steps=1),
        )
    )
    assert isinstance(problem, ClimateProblem)
    with World.single("cpu") as world:
        trainer = Trainer(problem, world, batch_size=2, report=Report(show=False))
        trainer.step()
        verdict = problem.report(world)
    assert verdict is not None
    assert problem.model is not None
    assert problem.model.shift.shape == (4,)


def test_settings_become_the_objects_they_describe(folder: Path) -> None:
    question = Climate(
        data=Weather(store=str(folder), latitudes=24, longitudes=36, train=6, validation=2, test=3),
        network="deeplab:depth=26,output_stride=16,width=0.125",
        loss="focal:gamma=1",
        weights="inverse_eighth_root",
        scaling="range",
        workers=2,
    )
    run = Run(problem=question, training=Training(steps=10))
    again = runfile.read(runfile.write(assembly.complete(run), "1"))
    assert isinstance(again.problem, Climate)
    assert "decoder=deconv1x" in again.problem.network
    problem = assembly.problem(again)
    assert isinstance(problem, ClimateProblem)
    assert problem.generation == TINY
    assert problem._loss == Focal(1.0, inverse_power(FREQUENCIES, 0.125))


def test_what_is_staged_is_learnt_from(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    settings = {"channels": FOUR, "network": small, "augment": False}
    here = ClimateProblem(TINY, folder, **settings)  # type: ignore[arg-type]
    there = ClimateProblem(TINY, folder, stage=tmp_path / "local", **settings)  # type: ignore[arg-type]
    assert isinstance(there, Prepared)
    with World.single("cpu") as world:
        here.prepare(world, said.append)
        assert not said
        there.prepare(world, said.append)
    assert f"staged {TINY.train} of {TINY.train} files" in said[0]
    assert len(list((tmp_path / "local").glob("*.npz"))) == TINY.train
    one, other = here.source.batch([0, 5, 2], 0), there.source.batch([0, 5, 2], 0)
    assert torch.equal(one["labels"], other["labels"])
    torch.testing.assert_close(one["fields"], other["fields"], rtol=2e-3, atol=2e-3)  # 16 bits
    for path in (tmp_path / "local").glob("*.npz"):
        path.unlink()
    with pytest.raises(SnapshotError, match="local"):
        there.source.batch([1], 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("all", tuple(CHANNELS)), ("four", FOUR), ("PSL, TMQ", ("PSL", "TMQ"))],
)
def test_channels_are_named(text: str, expected: tuple[str, ...]) -> None:
    assert channels(text) == expected


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (lambda: channels("TMQ,U851"), "did you mean 'U850'"),
        (lambda: channels("TMQ,TMQ"), "twice"),
        (lambda: Weather(latitudes=8), "latitudes must be 16 or more"),
        (lambda: Weather(names="TMQ"), "CHANNEL=VALUE"),
        (lambda: Weather(snapshots="here", store="there"), "store is for synthetic"),
        (lambda: Climate(network="tiramisu:widht=1"), "did you mean 'width'"),
        (lambda: Climate(loss="jacard"), "did you mean 'jaccard'"),
        (lambda: Climate(workers=-1), "workers must be 0 or more"),
    ],
)
def test_settings_that_make_no_sense(question: object, says: str) -> None:
    assert callable(question)
    with pytest.raises(RunError, match=says):
        question()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    run = Run(problem=Climate(data=Weather(snapshots=str(tmp_path / "no"))), training=Training(steps=1))
    with pytest.raises(RunError, match="there is no folder"):
        assembly.problem(run)
    run = replace(run, problem=Climate(data=Weather(snapshots=str(tmp_path))))
    problem = assembly.problem(run)
    with pytest.raises(SnapshotError, match="has no folder 'train'"):
        _ = problem.source


def test_a_network_that_cannot_be(tmp_path: Path) -> None:
    run = Run(problem=Climate(network="tiramisu:kernel=4"), training=Training(steps=1))
    with pytest.raises(RunError, match="kernel odd"):
        assembly.complete(run)


def test_a_run_goes_on_with_its_own_channels_and_network(folder: Path, tmp_path: Path, cache: Path) -> None:
    question = Climate(data=Weather(snapshots=str(folder), channels="four"), network="tiramisu:width=0.1")
    record = Record(folder=str(tmp_path / "run"))

    def train(question: Climate, steps: int, resume: Path | None = None) -> Path:
        run = Run(problem=question, training=Training(steps=steps, batch_size=1), record=record)
        return carry_out(run, resume=resume, say=said.append).folder

    said: list[str] = []
    path = train(question, 1)
    settings = (path / "run.yaml").read_bytes()
    for other, text in (
        (
            replace(question, data=replace(question.data, channels="all")),
            r"channels is now TMQ,U850,V850,UBOT,.* leave",
        ),
        (replace(question, network="tiramisu:width=0.2"), r"network is now tiramisu:width=0\.2,.*width=0\.1"),
        (replace(question, scaling="range"), "scaling is now range, and what was learnt there is for standard"),
    ):
        with pytest.raises(RunError, match=text):
            train(other, 2, path)
    assert (path / "run.yaml").read_bytes() == settings
    assert (path / "result.json").exists()
    # The same channels by other words.
    train(replace(question, data=replace(question.data, channels="TMQ,U850,V850,PSL")), 2, path)
    assert json.loads((path / "result.json").read_text())["steps"] == 2


def test_a_training_on_files_that_cannot_be_read_leaves_no_run(folder: Path, tmp_path: Path, cache: Path) -> None:
    shutil.copytree(folder, tmp_path / "data")
    first = min((tmp_path / "data" / "train").glob("*.h5"))
    first.write_bytes(first.read_bytes()[:3000])
    # As a user does: the types that tests check look at the source, too.
    words = ("train", "climate", "--snapshots", str(tmp_path / "data"), "--steps", "1", "--batch-size", "1")
    done = subprocess.run(
        [sys.executable, "-m", "exafield", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == FAILED
    assert re.fullmatch(r"exafield: .*\.h5 seems damaged or incomplete \(3000 of \d+ bytes\): .*\n", done.stderr), done
    assert not (tmp_path / "runs").exists()
