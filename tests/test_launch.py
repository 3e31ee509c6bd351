"""The launcher with real processes: however a rank ends, the others end too and nothing is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exafield import launch
from exafield.launch import RankFailed, bind_to_parent, spawn

# What a rank runs. No torch here, so that these tests take fractions of a second each.
RANK = """
import os, pathlib, signal, subprocess, sys, time
from exafield.launch import bind_to_parent
bind_to_parent()
rank, folder, what = int(os.environ["RANK"]), pathlib.Path(sys.argv[1]), sys.argv[2]
def mark(name, text=""):
    (folder / f".{name}").write_text(str(text))
    (folder / f".{name}").rename(folder / name)
mark(f"pid{rank}", os.getpid())
if what == "environment":
    print(*[os.environ[n] for n in sys.argv[3:]])
elif what.startswith("deaf"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
elif what in ("polite", "one-fails"):
    asked = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: asked.append(number))
elif what == "child":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    mark(f"child{rank}", child.pid)
mark(f"ready{rank}")
while not all((folder / f"ready{r}").exists() for r in range(int(os.environ["WORLD_SIZE"]))):
    time.sleep(0.01)
if rank == 1:
    if what in ("raise", "deaf-raise", "child"):
        raise ValueError("the flux capacitor is empty")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "victim":
        time.sleep(0.5)
        sys.exit("the real reason")
if rank == 0 and what == "victim":
    sys.exit(70)
if what in ("polite", "one-fails"):
    while not asked:
        time.sleep(0.01)
    time.sleep(0.8)  # longer than grace: this is the checkpoint
    mark(f"asked{rank}", asked[0])
    sys.exit("no space left" if what == "one-fails" and rank == 1 else 0)
if what in ("environment", "well"):
    sys.exit(0)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the ranks' module lies; afterwards none of the processes they told of may live."""
    (tmp_path / "lone_rank.py").write_text(RANK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    yield tmp_path
    deadline = time.monotonic() + 5
    while any(lives(pid) for pid in pids(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.02)  # a killed process takes a moment
    left = [pid for pid in pids(tmp_path) if lives(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "processes were left behind"


def pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for name in ("pid", "child") for path in folder.glob(f"{name}*")]


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_for(*paths: Path, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"{paths} did not appear"
        time.sleep(0.02)


def run(folder: Path, what: str, *names: str, ranks: int = 2, grace: float = 1.0) -> None:
    spawn([str(folder), what, *names], ranks, module="lone_rank", grace=grace)


def test_ranks_that_end_well(folder: Path) -> None:
    run(folder, "well", ranks=3)
    assert len(pids(folder)) == 3


def test_every_rank_knows_its_place_and_says_who_it_is(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(folder, "environment", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS")
    out = capfd.readouterr().out.splitlines()
    assert sorted(out) == ["0 2 0 2 127.0.0.1 1", "[rank 1] 1 2 1 2 127.0.0.1 1"]


def test_what_the_user_set_stays(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    run(folder, "environment", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", ranks=1)
    assert capfd.readouterr().out == "3 eth7\n"


def test_a_killed_rank_ends_the_run_and_is_named(folder: Path) -> None:
    with pytest.raises(RankFailed, match=r"rank 1 of 2 was killed by signal 9 \(SIGKILL\).*memory") as caught:
        run(folder, "die")
    assert (caught.value.rank, caught.value.code) == (1, -9)


def test_a_rank_that_raises_is_quoted(folder: Path) -> None:
    with pytest.raises(RankFailed) as caught:
        run(folder, "raise", ranks=3)
    text = str(caught.value)
    assert text.startswith("rank 1 of 3 ended with exit code 1")
    assert text.endswith("ValueError: the flux capacitor is empty")


def test_ranks_deaf_to_sigterm_are_killed(folder: Path) -> None:
    with pytest.raises(RankFailed, match="flux capacitor"):
        run(folder, "deaf-raise", grace=0.3)


def test_what_ranks_have_started_ends_too(folder: Path) -> None:
    with pytest.raises(RankFailed, match="flux capacitor"):
        run(folder, "child")
    assert len(pids(folder)) == 4


def test_the_blame_goes_to_the_cause(folder: Path) -> None:
    with pytest.raises(RankFailed, match="rank 1 of 2") as caught:
        run(folder, "victim")
    assert str(caught.value).endswith("the real reason")


def launcher(folder: Path, what: str, stop_grace: float = 20.0) -> "subprocess.Popen[str]":
    arguments = f"[{str(folder)!r}, {what!r}], 2, module='lone_rank', grace=0.5, stop_grace={stop_grace}"
    code = f"from exafield.launch import spawn; spawn({arguments})"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for(folder / "ready0", folder / "ready1")
    return process


@pytest.mark.parametrize("what", ["wait", "deaf"])
def test_ctrl_c_ends_all(folder: Path, what: str) -> None:
    process = launcher(folder, what)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    assert process.returncode != 0


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1])
def test_ranks_that_do_not_train_die_of_stop_signals(folder: Path, sent: signal.Signals) -> None:
    process = launcher(folder, "wait")
    process.send_signal(sent)
    process.communicate(timeout=30)
    assert process.returncode == 128 + sent


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1])
def test_ranks_asked_to_stop_may_take_their_time(folder: Path, sent: signal.Signals) -> None:
    process = launcher(folder, "polite")
    process.send_signal(sent)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert [int((folder / f"asked{rank}").read_text()) for rank in range(2)] == [sent, sent]


def test_a_rank_that_fails_to_stop_well_is_blamed(folder: Path) -> None:
    process = launcher(folder, "one-fails")
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "RankFailed: rank 1 of 2 ended with exit code 1" in errors
    assert "no space left" in errors


def test_ranks_that_do_not_stop_in_time_are_ended(folder: Path) -> None:
    process = launcher(folder, "deaf", stop_grace=0.3)
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the ranks have not ended within 0 s of SIGTERM: ending them" in errors


def test_ranks_do_not_outlive_a_killed_launcher(folder: Path) -> None:
    process = launcher(folder, "deaf")
    process.kill()
    process.communicate(timeout=30)  # and the fixture looks


def test_a_rank_whose_launcher_died_early_ends_itself(folder: Path) -> None:
    code = "from exafield.launch import bind_to_parent; bind_to_parent(); print('alive')"
    # A process that is not our child's parent.
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"EXAFIELD_SPAWNED": "1"}, capture_output=True, check=False
    )
    assert done.returncode == launch.VICTIM
    assert done.stdout == b""


def test_alone_nothing_is_bound() -> None:
    bind_to_parent({})


@pytest.mark.parametrize("ranks", [0, -3])
def test_no_ranks(ranks: int) -> None:
    with pytest.raises(ValueError, match=f"--ranks {ranks}: at least one process"):
        spawn([], ranks)


def test_more_ranks_than_cores_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "cores", lambda: 1)
    run(folder, "well")
    assert "2 ranks on 1 cores" in capsys.readouterr().err
