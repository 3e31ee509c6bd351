"""Accidents to real processes: a run always ends, says why, and goes on to the last bit as if nothing had happened."""

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exafield.launch import RankFailed, spawn
from exafield.report import read_metrics
from exafield.source import Sampler

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS.parent / "benchmarks"))
soak = importlib.import_module("soak")

STEPS, EVERY = 30, 5


@pytest.fixture(autouse=True)
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Marks all processes of a test; none may be left."""
    token = f"test-{os.getpid()}-{time.time_ns()}"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
    with monkeypatch.context() as patch:
        patch.setenv(soak.MARK, token)
        yield
    assert not soak.alive(token)


def run(folder: Path, log: Path, ranks: int = 2, steps: int = STEPS, **settings: Any) -> None:
    """Starts or resumes a run; `accident` is (what, on which rank, at which step)."""
    settings = {"every": EVERY, "pace": 0.0, "log_every": 4} | settings
    spawn([str(folder), str(log), str(steps), json.dumps(settings)], ranks, module="faulty", grace=2.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[str]]:
    """What an uninterrupted run records, and the weights it ends with."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
        run(folder / "run", folder / "log")
    return soak.records(folder / "log"), digests(folder / "run")


def digests(folder: Path, ranks: int = 2) -> list[str]:
    return [(folder / f"digest.{rank}").read_text() for rank in range(ranks)]


def check(folder: Path, log: Path, whole: tuple[Any, list[str]], complete: bool = False) -> None:
    """All that was recorded, also in steps that were done again, is what the uninterrupted run recorded."""
    found = soak.records(log)
    assert all(entries == whole[0][key] for key, entries in found.items())
    if complete:
        assert found.keys() == whole[0].keys()
        assert digests(folder) == whole[1]
        assert soak.partial(folder) == []


def test_a_chain_of_accidents_changes_nothing(
    tmp_path: Path, whole: tuple[Any, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    """kill -9 of either rank, an exception, a stopped rank, and signals that ask for an end, at random steps."""
    folder, log, dice = tmp_path / "run", tmp_path / "log", random.Random()
    later = 0

    def step() -> int:
        nonlocal later
        later += dice.randrange(1, 4)
        print("at step", later)
        return later

    with pytest.raises(RankFailed, match=r"rank 1 of 2 was killed by signal 9"):
        run(folder, log, accident=("SIGKILL", 1, step()))
    check(folder, log, whole)
    with pytest.raises(RankFailed, match=r"rank 0 of 2 was killed by signal 9"):
        run(folder, log, accident=("SIGKILL", 0, step()))
    check(folder, log, whole)
    with pytest.raises(RankFailed, match=r"(?s)rank 1 of 2 ended with exit code 1.*the flux capacitor is empty"):
        run(folder, log, accident=("raise", 1, step()))
    check(folder, log, whole)
    with pytest.raises(RankFailed, match=r"(?s)rank 1 had been stopped \(SIGSTOP\).*rank 1"):
        run(folder, log, accident=("SIGSTOP", 1, step()), patience=4.0)
    check(folder, log, whole)
    capfd.readouterr()
    for rank, sent in ((1, "SIGUSR1"), (0, "SIGTERM")):
        run(folder, log, accident=(sent, rank, step()), pace=0.1)  # and this ends well
        said = capfd.readouterr().out
        _, at = said.split(f"stopped by {signal.Signals[sent].value} at step ")
        assert later < int(at) <= later + 4
        later = int(at)
        assert soak.checkpoints(folder)[-1] == later
        check(folder, log, whole)
        assert soak.partial(folder) == []
    run(folder, log)
    check(folder, log, whole, complete=True)


def mounted(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("how", ["file system", "limit"])
def test_a_full_disk_costs_no_checkpoint(tmp_path: Path, whole: tuple[Any, list[str]], how: str) -> None:
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.mkdir()
    if how == "file system" and not mounted(disk):
        pytest.skip("file systems cannot be mounted here")
    folder, filler = disk / "run", disk / "filler"
    what, said = (
        (f"fill {filler}", "No space left on device: free space there")
        if how == "file system"
        else ("limit", "File too large: check the file system")
    )
    try:
        with pytest.raises(RankFailed, match=rf"(?s){said}.*the checkpoint of step 5 is untouched"):
            run(folder, log, accident=(what, 1, 7))
        assert soak.checkpoints(folder) == [5]
        check(folder, log, whole)
        filler.unlink(missing_ok=True)
        run(folder, log)
        check(folder, log, whole, complete=True)
    finally:
        if how == "file system":
            subprocess.run(["umount", str(disk)], check=True)


def test_a_slow_disk_only_takes_longer(tmp_path: Path, whole: tuple[Any, list[str]]) -> None:
    """One rank waits for its disk for longer than the others' patience with silence."""
    folder, log = tmp_path / "run", tmp_path / "log"
    run(folder, log, accident=("slow 6", 1, 20), patience=4.0, every=100)
    check(folder, log, whole, complete=True)


# ---- another number of ranks ----


def dealt(log: Path, ranks: int) -> dict[int, list[int]]:
    """The samples of each step, of all ranks together."""
    found: dict[int, list[int]] = {}
    for (_, step), entries in soak.records(log, ranks).items():
        for entry in entries:
            found.setdefault(step, []).extend(json.loads(entry)[1])
    return {step: sorted(numbers) for step, numbers in sorted(found.items())}


def means(log: Path, ranks: int) -> list[float]:
    """The mean loss of each step."""
    found: dict[int, list[float]] = {}
    for (_, step), entries in soak.records(log, ranks).items():
        found.setdefault(step, []).extend(float.fromhex(json.loads(entry)[0]) for entry in entries)
    return [sum(values) / len(values) for _, values in sorted(found.items())]


def sequence(steps: int, batch: int) -> dict[int, list[int]]:
    """The one sequence all ranks share, a global batch per step."""
    sampler = Sampler(61, batch)
    return {step: sorted(e * 61 + i for e, indices in sampler.draw() for i in indices) for step in range(steps)}


def test_another_number_of_ranks_loses_and_repeats_no_sample(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """2 -> 1, 2 -> 4 -> 2, and 2 -> 4 with a batch that follows."""
    first, log = tmp_path / "two", tmp_path / "log-two"
    run(first, log, steps=7, plain=True)
    for name in ("one", "four", "scaled", "stay"):
        shutil.copytree(first, tmp_path / name)
        for rank in range(2):
            shutil.copy(f"{log}.{rank}", tmp_path / f"log-{name}.{rank}")
    run(tmp_path / "stay", tmp_path / "log-stay", steps=20, plain=True)
    capfd.readouterr()

    def go_on(name: str, ranks: int, steps: int, **settings: Any) -> str:
        run(tmp_path / name, tmp_path / f"log-{name}", ranks, steps, plain=True, **settings)
        return capfd.readouterr().out

    said = go_on("one", 1, 20)
    assert (
        "resumed at step 7, on 1 rank instead of 2: global batch of 12 kept = 1 rank x 6 samples x 2 draws, "
        "learning rate as scheduled" in said
    )
    assert "on 4 ranks instead of 2: global batch of 12 kept = 4 ranks x 3 samples, learning" in go_on("four", 4, 14)
    assert "on 2 ranks instead of 4: global batch of 12 kept = 2 ranks x 6 samples, learning" in go_on("four", 2, 20)
    said = go_on("scaled", 4, 10, on_resize="scale")
    assert "global batch 24 = 4 ranks x 6 samples instead of 12, learning rate as scheduled all the same" in said
    expected = sequence(20, 12)
    # On one rank a step is two draws: the log has two entries for it.
    assert dealt(tmp_path / "log-one", 2) == expected
    assert dealt(tmp_path / "log-four", 4) == expected
    scaled = dealt(tmp_path / "log-scaled", 4)
    assert sorted(n for numbers in scaled.values() for n in numbers) == sorted(
        n for numbers in sequence(7 + 3 * 2, 12).values() for n in numbers
    )
    assert [len(scaled[step]) for step in (6, 7)] == [12, 24]
    # The same samples give the same steps, but for the order of addition.
    for name in ("one", "four"):
        assert means(tmp_path / f"log-{name}", 4) == pytest.approx(means(tmp_path / "log-stay", 2), rel=1e-4)
    recorded = [json.loads(line) for line in (tmp_path / "four" / "metrics.jsonl").read_text().splitlines()]
    resumes = [{k: r[k] for k in ("size", "accumulate", "ranks")} for r in recorded if r.get("kind") == "resume"]
    assert resumes == [{"size": 3, "accumulate": 1, "ranks": 4}, {"size": 6, "accumulate": 1, "ranks": 2}]
    assert [r["step"] for r in read_metrics(tmp_path / "four" / "metrics.jsonl") if r["kind"] == "train"][-1] == 20


def test_ranks_that_cannot_share_the_batch_say_which_can(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    run(folder, log, 1, 3, batch_size=5, lag=1)
    with pytest.raises(RankFailed, match=r"(?s)step 3 cannot be used: its global batch of 5 samples.*on 1, 5 ranks"):
        run(folder, log, 2, 5, batch_size=5, lag=1)
