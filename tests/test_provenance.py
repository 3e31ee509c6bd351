"""Provenance and peak: what is recorded of a session, what is not, and how fast matrices are multiplied."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from exafield import job, page
from exafield.peak import matrix_peak
from exafield.provenance import NAME, Provenance, command, session, sessions
from exafield.report import Report
from exafield.store import RunFolder
from exafield.trainer import Trainer
from exafield.world import World
from made_run import make_run
from test_trainer import Regression


def begun(ranks: int = 2) -> dict[str, object]:
    return session("srun", ranks, 1, torch.device("cpu"))


def test_sessions_are_recorded_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "provenance.json"
    assert sessions(path) == []
    Provenance(path, begun()).end("stopped by SIGTERM", steps=5)
    with Provenance(path, begun(4)):
        (first, second) = sessions(path)
        assert (first["outcome"], first["steps"], first["ranks"]) == ("stopped by SIGTERM", 5, 2)
        assert (second["outcome"], second["ended"], second["ranks"]) == (None, None, 4)
    assert sessions(path)[1]["outcome"] is None  # what left without a word was perhaps killed
    assert second["packages"]["torch"] == torch.__version__
    assert second["launcher"] == "srun"


def test_an_error_is_an_outcome_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "provenance.json"
    with pytest.raises(ValueError, match="no such"), Provenance(path, begun()):
        raise ValueError(f"no such file {Path.home()}/x")
    with pytest.raises(KeyboardInterrupt), Provenance(path, begun()):
        raise KeyboardInterrupt
    assert [s["outcome"] for s in sessions(path)] == [
        "ended with an error: ValueError: no such file ~/x",
        "interrupted",
    ]


def test_a_session_names_no_user_no_home_and_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setattr("sys.argv", ["/opt/bin/exafield", "train", "--folder", "/home/somebody/my runs/1"])
    text = json.dumps(begun())
    assert "exafield train --folder '~/my runs/1'" in text
    assert "somebody" not in text
    assert "hunter2" not in text
    assert "/opt/bin" not in text


@pytest.mark.parametrize(
    ("program", "launcher", "said"),
    [
        ("/a/exafield/__main__.py", "exafield", "exafield train microscopy"),
        ("/a/exafield/__main__.py", "srun", "python -m exafield train microscopy"),
        ("/a/bin/exafield", "alone", "exafield train microscopy"),
        ("/a/mine.py", "torchrun", "mine.py train microscopy"),
    ],
)
def test_the_command_is_what_was_typed(program: str, launcher: str, said: str) -> None:
    assert command([program, "train", "microscopy"], launcher) == said


@pytest.mark.parametrize(
    "damage", ["", "[]", '{"format": "other"}', '{"format": "exafield-provenance", "sessions": [1]}']
)
def test_a_damaged_file_is_warned_of_and_begun_anew(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "provenance.json"
    path.write_text(damage)
    with pytest.raises(ValueError, match="remove it if it is damaged"):
        sessions(path)
    with pytest.warns(UserWarning, match="no longer told"):
        recorded = Provenance(path, begun())
    recorded.end("complete")
    assert [s["outcome"] for s in sessions(path)] == ["complete"]


def test_a_newer_format_says_to_update(tmp_path: Path) -> None:
    path = tmp_path / "provenance.json"
    path.write_text('{"format": "exafield-provenance", "version": 2, "sessions": []}')
    with pytest.raises(ValueError, match="update exafield"):
        sessions(path)


def test_what_cannot_be_written_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="provenance is not recorded: cannot write"):
        Provenance(tmp_path / "nowhere" / "provenance.json", begun())


def test_the_peak_is_a_rate_of_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still but for products, of which each takes a second, tells what is counted."""
    now, edges = [0.0], list[int]()

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        edges.append(a.shape[0])
        now[0] += 1.0
        return a

    monkeypatch.setattr("exafield.peak.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    monkeypatch.setattr("exafield.peak._EDGES", (256, 512, 1024))
    assert matrix_peak(torch.device("cpu"), torch.float32, seconds=1e6) == 2.0 * 1024**3
    assert set(edges) == {256, 512, 1024}
    edges.clear()
    assert matrix_peak(torch.device("cpu"), torch.float32, seconds=0.5) == 2.0 * 256**3
    assert set(edges) == {256}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_peak_is_measured_in_every_precision(dtype: torch.dtype) -> None:
    rate = matrix_peak(torch.device("cpu"), dtype, seconds=0.02)
    assert math.isfinite(rate)
    assert rate > 0


# ---- the end of a session ----


def ended(folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[str]:
    """Ends a session in a run folder as a job does; returns what is said."""
    said: list[str] = []
    monkeypatch.setattr(job, "matrix_peak", more.get("peak", lambda device, dtype: 5e9))
    monkeypatch.setattr(page, "write", more.get("write", page.write))
    with World.single("cpu") as world:
        trainer = Trainer(Regression(), world, report=Report(show=False))
        trainer.steps, trainer.elapsed = 7, 1.23456
        recorded = Provenance(folder / NAME, begun())
        job._report(world, RunFolder(folder), trainer, recorded, "stopped by SIGTERM", said.append)
    return said


def test_a_session_ends_with_its_peak_and_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run")
    assert ended(folder, monkeypatch) == [f"report      {folder / 'report.html'}", f"run folder  {folder}"]
    last = sessions(folder / NAME)[-1]
    assert (last["steps"], last["elapsed"], last["peak"]) == (7, 1.235, {"all_ranks": 5e9, "dtype": "float32"})
    assert "stopped by SIGTERM at step" in (folder / "report.html").read_text()


def test_a_page_or_peak_that_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("no memory left")

    folder = make_run(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != NAME}
    with pytest.warns(UserWarning, match=rf"no memory left.*to try again: exafield report {folder}"):
        assert ended(folder, monkeypatch, peak=broken, write=broken) == [f"run folder  {folder}"]
    last = sessions(folder / NAME)[-1]
    assert (last["outcome"], last["peak"]) == ("stopped by SIGTERM", None)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != NAME} == before
