"""Trace files: one trace of all ranks, also after a bad end."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from exafield.cli import USAGE, main
from exafield.problem import Player
from exafield.report import Report
from exafield.store import RunFolder
from exafield.trace import Trace
from exafield.tracefile import TraceError, load_trace, remove_parts, save_part, save_trace
from exafield.trainer import Trainer
from exafield.world import World
from ranks import run_ranks
from test_trainer import Regression


def write_trace(world: World, path: str, blocked: str) -> None:
    trace = Trace(world.rank)
    trace.add("trainer", "forward", 1.0, 2.0)
    if blocked and world.rank == 1:

        def refuse(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        trace.save = refuse  # type: ignore[method-assign]
    save_trace(trace, world, path)


def test_one_trace_of_all_ranks(tmp_path: Path) -> None:
    run_ranks(2, write_trace, str(tmp_path / "trace.json"), "")
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
    assert sorted(span.rank for span in Trace.load(tmp_path / "trace.json").spans) == [0, 1]


def test_a_part_that_cannot_be_written_is_left_out(tmp_path: Path) -> None:
    said = run_ranks(2, write_trace, str(tmp_path / "trace.json"), "blocked")
    assert [span.rank for span in Trace.load(tmp_path / "trace.json").spans] == [0]
    assert "the trace lacks ranks [1]" in said[0]
    assert "No space left" in said[0]


def test_one_rank_that_cannot_write_its_trace_goes_on(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the trace is not written"):
        save_trace(Trace(), World.single(), tmp_path / "nowhere" / "trace.json")


# ---- a bad end ----


class Failing(Regression):
    """Its third step fails in a way that depends on `how`."""

    def __init__(self, how: str, rank: int = 0) -> None:
        super().__init__()
        self.how, self.rank = how, rank

    def players(self, world: World) -> Any:
        (player,) = super().players(world)

        def begin(step: int) -> None:
            self.begun.append(step)
            if step == 2 and world.rank == self.rank:
                if self.how == "raises":
                    raise LookupError("the third step")
                os.kill(os.getpid(), getattr(signal, self.how))

        return [Player(player.name, player.module, player.loss, player.optimiser, begin=begin)]


@pytest.mark.parametrize(("how", "error"), [("raises", LookupError), ("SIGINT", KeyboardInterrupt)])
def test_a_bad_end_leaves_the_trace_and_the_error(how: str, error: type[BaseException], tmp_path: Path) -> None:
    trainer = Trainer(Failing(how), World.single(), folder=RunFolder(tmp_path), report=Report(show=False))
    with pytest.raises(error):
        trainer.fit(steps=9)
    assert (tmp_path / "trace.rank0.json").exists()
    spans = load_trace(tmp_path).spans
    assert [s.args["number"] for s in spans if s.name == "step"] == [0, 1, 2]
    assert sum(s.name == "optimiser" for s in spans) == 2
    assert sorted(p.name for p in tmp_path.glob("trace*")) == ["trace.json"]
    assert load_trace(tmp_path).spans == spans


def test_a_trace_that_cannot_be_written_does_not_hide_the_error(tmp_path: Path) -> None:
    trace = Trace()

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    trace.save = refuse  # type: ignore[method-assign]
    trainer = Trainer(
        Failing("raises"), World.single(), folder=RunFolder(tmp_path), trace=trace, report=Report(show=False)
    )
    with pytest.raises(LookupError, match="the third step"):
        trainer.fit(steps=9)
    with pytest.raises(TraceError, match="holds no trace"):
        load_trace(tmp_path)


def fail_together(world: World, folder: str) -> None:
    trainer = Trainer(Failing("raises", rank=1), world, folder=RunFolder(folder), report=Report(show=False))
    expected = LookupError if world.rank == 1 else RuntimeError
    with pytest.raises(expected) as caught:
        trainer.fit(steps=9)
    if world.rank == 1:
        world.abort(f"rank 1: {caught.value!r}")
    print("ended", flush=True)
    os._exit(0)


def test_each_rank_leaves_its_part_and_they_are_joined_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert all("ended" in said for said in run_ranks(2, fail_together, str(tmp_path)))
    assert {p.name for p in tmp_path.glob("trace*")} == {"trace.rank0.json", "trace.rank1.json"}
    assert main(["trace", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "ranks          2 (0, 1)" in said
    assert "steps          3" in said
    assert {p.name for p in tmp_path.glob("trace*")} == {"trace.json"}


def test_a_new_training_removes_old_parts_only(tmp_path: Path) -> None:
    save_part(Trace(), World.single(), tmp_path / "trace.json")
    (tmp_path / "trace.rankled.json").write_text("not ours")
    remove_parts(tmp_path / "trace.json")
    assert {p.name for p in tmp_path.glob("trace*")} == {"trace.rankled.json"}


def test_a_disabled_trace_leaves_no_part(tmp_path: Path) -> None:
    save_part(Trace(enabled=False), World.single(), tmp_path / "trace.json")
    assert not list(tmp_path.iterdir())


# ---- reading ----


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("nowhere", None, "there is no such run folder or trace file"),
        (".", None, "holds no trace: it is written when training ends"),
        ("trace.json", '{"traceEvents": [', "is not a trace written by exafield"),
        (
            "trace.json",
            '{"traceEvents": [], "otherData": {"format": "exafield-trace", "version": 9}}',
            "update exafield",
        ),
    ],
)
def test_what_is_no_trace_is_said(
    name: str, text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(TraceError, match=said):
        load_trace(tmp_path / name)
    assert main(["trace", str(tmp_path / name)]) not in (0, USAGE)
    assert said in capsys.readouterr().err


def test_a_part_can_be_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace()
    trace.add("trainer", "forward", 1.0, 2.0)
    save_part(trace, World.single(), tmp_path / "trace.json")

    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Trace, "save", refuse)
    assert [s.name for s in load_trace(tmp_path).spans] == ["forward"]
    assert (tmp_path / "trace.rank0.json").exists()


def test_numbers_that_json_has_not_are_words(tmp_path: Path) -> None:
    trace = Trace()
    trace.instant("reducer net", "odd", gain=float("nan"), limit=float("inf"))
    trace.save(tmp_path / "trace.json")
    (span,) = load_trace(tmp_path).spans
    assert span.args == {"gain": "nan", "limit": "inf"}
    json.loads((tmp_path / "trace.json").read_text(), parse_constant=pytest.fail)
