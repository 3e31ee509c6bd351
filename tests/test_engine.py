"""Engines that apply a function: the same results however they run; failures are named; nothing is left running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from exafield.engine import EngineError, MapEngine, engine
from exafield.engine.local import ProcessEngine, SerialEngine
from exafield.engine.threads import ThreadEngine

ENGINES = [SerialEngine(), ProcessEngine(workers=2), ThreadEngine(workers=2)]
NAMES = ["serial", "processes", "threads"]


def square(x: int) -> int:
    return x * x


def fails_at_three(x: int) -> int:
    if x == 3:
        raise ArithmeticError("three is not allowed")
    return x


def fails_once(path: str) -> str:
    """Fails unless somebody has been here before."""
    marker = Path(path)
    if marker.exists():
        return "second time"
    marker.touch()
    raise OSError("first time")


def dies(x: int) -> int:
    if x == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def own_pid(x: int) -> int:
    return os.getpid()


def threads(x: int) -> int:
    import torch

    return torch.get_num_threads()


@pytest.mark.parametrize("system", ENGINES, ids=NAMES)
def test_map_gives_every_result_with_its_index(system: MapEngine) -> None:
    assert dict(system.map(square, range(7))) == {i: i * i for i in range(7)}
    assert dict(system.map(square, iter([5, 6, 7]), done={1})) == {0: 25, 2: 49}
    assert list(system.map(square, [])) == []


@pytest.mark.parametrize("system", ENGINES, ids=NAMES)
def test_a_failing_item_is_named_with_its_traceback(system: MapEngine) -> None:
    with pytest.raises(EngineError, match=r"(?s)item 3 failed: ArithmeticError: three is not allowed.*fails_at_three"):
        list(system.map(fails_at_three, range(9)))


@pytest.mark.parametrize("system", ENGINES, ids=NAMES)
def test_an_item_is_tried_again_as_often_as_allowed(system: MapEngine, tmp_path: Path) -> None:
    assert dict(system.map(fails_once, [str(tmp_path / "a")], retry=1)) == {0: "second time"}
    with pytest.raises(EngineError, match="first time"):
        list(system.map(fails_once, [str(tmp_path / "b")]))


def test_a_killed_worker_is_an_error_not_a_hang() -> None:
    with pytest.raises(EngineError, match="a worker process died"):
        list(ProcessEngine(workers=2).map(dies, range(5), retry=3))


def test_a_worker_killed_between_two_results_is_an_error_too() -> None:
    results = ProcessEngine(workers=1).map(own_pid, iter(range(100)))
    _, pid = next(results)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="a worker process died"):
        list(results)


def test_workers_use_one_thread() -> None:
    assert dict(ProcessEngine(workers=1).map(threads, [0])) == {0: 1}


def test_map_takes_items_only_as_there_is_room() -> None:
    taken = []

    def items() -> Any:
        for i in range(1000):
            taken.append(i)
            yield i

    results = ProcessEngine(workers=2).map(square, items())
    next(results)
    assert len(taken) <= 2 * 2 + 1
    results.close()  # type: ignore[attr-defined]


def test_an_unknown_engine_suggests_the_nearest() -> None:
    assert isinstance(engine("serial"), SerialEngine)
    with pytest.raises(ValueError, match="did you mean 'processes'"):
        engine("proceses")
    with pytest.raises(ValueError, match="at least 1"):
        engine("processes", workers=0)


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from test_engine import forever
from exafield.engine.local import ProcessEngine
if __name__ == "__main__":
    print("started", flush=True)
    list(ProcessEngine(workers=2).map(forever, [{folder!r}] * 2))
"""


def forever(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    while True:
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie waits for nobody but its parent.
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["ctrl-c", "term", "kill"])
def test_no_worker_outlives_its_parent(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    folder = tmp_path / "pids"
    folder.mkdir()
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder)))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    pids = [int(p.name) for p in folder.iterdir()]
    assert len(pids) == 2
    process.send_signal(how)
    process.wait(timeout=30)
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in pids)


def test_workers_compute_on_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")  # the user's own wish
    before = dict(os.environ)
    (_, began), *_ = ProcessEngine(1).map(Path.read_bytes, [Path("/proc/self/environ")])
    settings = dict(item.split("=", 1) for item in began.decode().split("\0") if "=" in item)
    assert settings["OPENBLAS_NUM_THREADS"] == "1"
    assert settings["MKL_NUM_THREADS"] == "3"
    assert dict(os.environ) == before
