"""Reports: metrics that survive a kill, lines on rank 0 only, one trace of all ranks."""

import errno
import io
import json
from pathlib import Path

import pytest

from exafield.report import MetricsLog, Report, describe, read_metrics


def test_records_come_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    report = Report(metrics=path, stream=io.StringIO())
    report.begin("toy", 0.0, 20.0, "steps")
    report.train(10, {"loss": 0.5})
    report.evaluate(10, {"R2": 0.9, "odd": float("nan")})
    report.close()
    first, second = read_metrics(path)
    assert (first["kind"], first["step"], first["loss"]) == ("train", 10, 0.5)
    assert (second["kind"], second["R2"], second["odd"]) == ("evaluate", 0.9, None)
    assert json.loads(path.read_text().splitlines()[0]) == {"format": "exafield-metrics", "version": 1}


def test_every_record_is_on_its_way_when_write_returns(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write({"kind": "train", "step": 1})
    assert [r["step"] for r in read_metrics(log.path)] == [1]
    log.close()
    log.write({"kind": "train", "step": 2})
    assert [r["step"] for r in read_metrics(log.path)] == [1]


def test_a_kill_costs_at_most_the_line_it_cut(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    log = MetricsLog(path)
    for step in (1, 2):
        log.write({"kind": "train", "step": step, "loss": 0.25})
    log.close()
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        steps = [r["step"] for r in read_metrics(path)]
        assert steps == [1, 2][: whole[start:cut].count(b"\n") if cut > start else 0]
        again = MetricsLog(path)
        again.write({"kind": "train", "step": 9})
        again.close()
        assert [r["step"] for r in read_metrics(path)] == [*steps, 9]


def test_a_resumed_run_replaces_what_it_does_again(tmp_path: Path) -> None:
    report = Report(metrics=tmp_path / "m.jsonl", stream=io.StringIO())
    for step in (10, 20, 30):
        report.train(step, {"loss": 1.0})
    report.resume(20)
    report.train(30, {"loss": 2.0})
    report.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path / "m.jsonl")] == [(10, 1.0), (20, 1.0), (30, 2.0)]


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for text in ("hello\n", '{"format": "x"}\n', "hello"):
        path.write_text(text)
        with pytest.raises(ValueError, match="line 1: is not a metrics file"):
            read_metrics(path)
    path.write_text('{"format": "exafield-metrics", "version": 2}\n')
    with pytest.raises(ValueError, match="update exafield"):
        read_metrics(path)
    path.write_text('{"format": "exafield-metrics", "version": 1}\n{"kind": "tr\n{"kind": "train", "step": 1}\n')
    with pytest.raises(ValueError, match="line 2: is damaged"):
        read_metrics(path)


def test_a_full_disk_is_warned_of_once(tmp_path: Path) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    log = MetricsLog(tmp_path / "m.jsonl")
    assert log._file is not None
    log._file.close()
    log._file = Full()
    with pytest.warns(UserWarning, match=r"m\.jsonl: metrics are no longer written .*No space left"):
        log.write({"kind": "train", "step": 1})
    log.write({"kind": "train", "step": 2})


def test_only_one_rank_speaks(tmp_path: Path) -> None:
    stream = io.StringIO()
    report = Report(show=False, metrics=tmp_path / "m.jsonl", stream=stream)
    report.begin("toy", 0.0, 10.0, "steps")
    report.advance(5.0)
    report.train(5, {"loss": 1.0})
    report.evaluate(5, {"R2": 1.0})
    report.say("hello")
    report.close()
    assert stream.getvalue() == ""
    assert not (tmp_path / "m.jsonl").exists()


def test_plain_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("exafield.report.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    report = Report(stream=stream)
    report.begin("toy", 0.0, 100.0, "steps")
    for step in (10, 20, 30):
        now[0] += 4.0
        report.advance(float(step))
        report.train(step, {"loss": 0.123456, "samples/s": 123456.0, "FLOP/s": 2.5e12})
    report.evaluate(30, {"R2": 0.95})
    report.end()
    # Every 5 s at most: step 20 came 4 s after step 10. 30 steps in 12 s leave 70 steps and 28 s.
    assert stream.getvalue().splitlines() == [
        "step     10  loss 0.1235  samples/s 123k  FLOP/s 2.5T  left 0:36",
        "step     30  loss 0.1235  samples/s 123k  FLOP/s 2.5T  left 0:28",
        "step     30  evaluation: R2 0.95",
    ]


def test_time_left_of_a_run_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exafield.report.time.monotonic", lambda: 0.0)
    stream = io.StringIO()
    report = Report(stream=stream)
    report.begin("toy", 0.0, 120.0, "s")
    report.advance(30.0)
    report.train(7, {"loss": 1.0})
    assert stream.getvalue() == "step      7  loss 1  left 1:30\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    stream = Terminal()
    report = Report(stream=stream)
    report.begin("toy", 0.0, 10.0, "steps")
    report.advance(5.0)
    report.train(5, {"loss": 0.5})
    report.evaluate(5, {"R2": 0.75})
    report.end()
    text = stream.getvalue()
    assert "toy" in text
    assert "step 5  loss 0.5" in text
    assert "evaluation: R2 0.75" in text
    report.say("after the bar")
    assert stream.getvalue().endswith("after the bar\n")


def test_rates_have_prefixes() -> None:
    values = {"loss": 1234567.0, "samples/s": 9999.0, "a/s": 1.5e4, "b/s": 2e6, "c/s": 3e9, "d/s": 4e15}
    assert describe(values) == "loss 1.235e+06  samples/s 9999  a/s 15k  b/s 2M  c/s 3G  d/s 4P"
