"""TensorBoard and other loggers: what they are told, by whom, and that a run is not lost for one."""

import io
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from exafield.assembly import check_loggers, loggers
from exafield.cli import USAGE, main
from exafield.report import Logger, Report
from exafield.run import Record, RunError
from exafield.tensorboard import TensorBoard


def report(*told: Logger, show: bool = True) -> Report:
    return Report(show, stream=io.StringIO(), loggers=told)


class Notes:
    """A logger that notes what it is told, and breaks at a step."""

    def __init__(self, breaks: int = -1) -> None:
        self.told: list[tuple[object, ...]] = []
        self.breaks = breaks

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        if step == self.breaks:
            raise OSError("no network")
        self.told.append((kind, step, dict(values)))

    def picture(self, step: int, path: Path) -> None:
        self.told.append(("picture", step, path))

    def close(self) -> None:
        self.told.append(("close",))


def test_a_logger_is_told_everything_in_order() -> None:
    notes = Notes()
    told = report(notes)
    told.resume(5)
    told.train(10, {"loss": 1.0})
    told.evaluate(10, {"R2": 0.5})
    told.picture(10, Path("a.png"))
    told.close()
    assert notes.told == [
        ("resume", 5, {}),
        ("train", 10, {"loss": 1.0}),
        ("evaluate", 10, {"R2": 0.5}),
        ("picture", 10, Path("a.png")),
        ("close",),
    ]


def test_other_ranks_tell_loggers_nothing() -> None:
    notes = Notes()
    silent = report(notes, show=False)
    silent.train(1, {"loss": 1.0})
    silent.close()
    assert notes.told == []


def test_a_logger_that_breaks_is_warned_of_once_and_costs_nothing_else() -> None:
    broken, sound = Notes(breaks=2), Notes()
    told = report(broken, sound)
    told.train(1, {"loss": 1.0})
    with pytest.warns(UserWarning, match="Notes is no longer told: OSError"):
        told.train(2, {"loss": 1.0})
    told.train(3, {"loss": 1.0})
    assert [step for _, step, _ in broken.told] == [1]
    assert [step for _, step, _ in sound.told] == [1, 2, 3]


def test_event_files_hold_metrics_and_the_picture_and_go_on_after_a_resume(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    picture = tmp_path / "toy.png"
    Image.new("RGB", (8, 4), "red").save(picture)
    first = report(TensorBoard(tmp_path / "events"))
    for step in (1, 2, 3):
        first.train(step, {"loss": 1.0 / step, "published FLOP/s": 1e9, "odd": math.nan})
    first.close()
    second = report(TensorBoard(tmp_path / "events"))
    second.resume(2)
    second.train(3, {"loss": 9.0})
    second.evaluate(3, {"R2": 0.5})
    second.picture(3, picture)
    second.close()
    events = accumulator.EventAccumulator(str(tmp_path / "events")).Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/published_FLOP/s", "evaluate/R2"}
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.0), (2, 0.5), (3, 9.0)]
    (image,) = events.Images("toy")
    assert (image.step, image.width, image.height) == (3, 8, 4)


def test_no_files_without_anything_to_tell(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    report(*loggers(Record(tensorboard=True), tmp_path)).close()
    assert list(tmp_path.iterdir()) == []
    assert loggers(Record(), tmp_path) == []


def test_a_missing_package_is_found_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setenv("EXAFIELD_CACHE", str(tmp_path / "cache"))
    check_loggers(Record())
    with pytest.raises(RunError, match=r"record: tensorboard: .*pip install 'exafield\[tensorboard\]'"):
        check_loggers(Record(tensorboard=True))
    words = ["train", "microscopy", "--steps", "3", "--tensorboard", "--folder", str(tmp_path / "run")]
    assert main(words) == USAGE
    assert "pip install 'exafield[tensorboard]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
