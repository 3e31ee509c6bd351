"""Spark and Celery: the parts that can die besides workers, and clusters that are up already and must stay so."""

import math
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from exafield.engine import EngineError, Session, engine
from exafield.engine.celery_system import System, _quiet
from exafield.taskbench.conformance import Case, fault

pytestmark = pytest.mark.engines
pytest.importorskip("numba", reason="pip install 'exafield[light]'")

# Two graphs, whose columns do not divide among two workers, with scratch memory.
CASE = Case("stencil_1d", 7, 2, 1000, 4096)
# What a system may take to start on a busy machine [s].
_START = 120.0


def _needs(package: str, program: str) -> None:
    pytest.importorskip(package, reason=f"needs {package}: make test-engines")
    if shutil.which(program) is None:
        pytest.skip(f"needs {program} on PATH: make engine-packages")


@pytest.mark.parametrize(
    ("name", "package", "program", "victim", "said"),
    [
        ("spark", "pyspark", "java", "java", "Spark: the JVM was lost"),
        ("celery", "celery", "redis-server", "redis-server", "Celery: the broker (redis-server) died"),
    ],
)
def test_what_all_depends_on_is_killed(
    name: str, package: str, program: str, victim: str, said: str, disturbed: Callable[..., Any]
) -> None:
    _needs(package, program)
    run = disturbed(name)
    run.wait_until_it_works()
    found = [pid for pid in run.others() if Path(f"/proc/{pid}/comm").read_text().strip() == victim]
    assert len(found) == 1
    os.kill(found[0], signal.SIGKILL)
    assert run.code() > 0
    assert said in run.complained
    assert "Traceback" not in run.complained
    assert run.complained.rstrip().splitlines()[-1].startswith("exafield: ")
    assert not run.left()


@contextmanager
def _running(*command: str, log: Path, **settings: str) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **settings}
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(until: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _START
    while not until():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def _port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _is_right(session: Session) -> None:
    assert session.workers == 2
    assert fault(session, CASE) is None


@pytest.fixture
def celery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list["subprocess.Popen[bytes]"]]]:
    """A Redis with a password and a worker, as a user starts them; their address and processes."""
    _needs("celery", "redis-server")
    port, password = _port(), secrets.token_hex(8)
    address = f"redis://:{password}@127.0.0.1:{port}/0"
    monkeypatch.setenv("EXAFIELD_CELERY_KEY", secrets.token_hex(32))
    redis = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--requirepass", password, "--save", ""]
    worker = [sys.executable, "-m", "celery", "-A", "exafield.engine.celery_app", "worker", "-c", "2", "-l", "INFO"]
    with ExitStack() as stack:
        broker = stack.enter_context(_running(*redis, "--dir", str(tmp_path), log=tmp_path / "broker"))
        _wait(lambda: "Ready to accept" in (tmp_path / "broker").read_text(), tmp_path / "broker")
        log = tmp_path / "worker"
        workers = stack.enter_context(_running(*worker, log=log, EXAFIELD_CELERY=address))
        _wait(lambda: " ready." in log.read_text(), log)
        yield address, [broker, workers]


@pytest.mark.parametrize(("code", "shown"), [(3, "\nno memory left"), (-signal.SIGKILL, "")])
def test_what_a_process_of_celery_said_last_is_told_unless_it_was_killed(code: int, shown: str, tmp_path: Path) -> None:
    (tmp_path / "worker 0").write_text("\n".join(["start", *"12345678"[:7], "no memory left"]) + "\n")
    ended = SimpleNamespace(poll=lambda: code, returncode=code)
    module = SimpleNamespace(app=SimpleNamespace(backend=SimpleNamespace()))
    with pytest.raises(EngineError) as raised:
        System(module, 1, {"worker 0": ended}, set(), tmp_path).alive()  # type: ignore[dict-item]
    assert str(raised.value).startswith(f"Celery: the worker 0 died ({code})")
    assert str(raised.value).endswith(shown or f"({code})")
    assert "start" not in str(raised.value)


def test_a_result_that_is_dropped_after_the_broker_is_lost_says_nothing() -> None:
    def lost(sent: object) -> None:
        raise RuntimeError("Retry limit exceeded")

    backend = SimpleNamespace(remove_pending_result=lost)
    _quiet(backend)
    sent = object()
    assert backend.remove_pending_result(sent) is sent


def test_celery_elsewhere_whose_redis_is_killed(celery: tuple[str, list["subprocess.Popen[bytes]"]]) -> None:
    address, (broker, _) = celery
    results = engine("celery", address=address).map(time.sleep, [0.1, 0.1, *[600.0] * 4])
    next(results)
    broker.kill()
    with pytest.raises(EngineError, match="Celery: no answer any more from Redis at redis://"):
        list(results)


def test_celery_elsewhere_is_used_and_stays(celery: tuple[str, list["subprocess.Popen[bytes]"]]) -> None:
    import redis

    address, processes = celery
    made = engine("celery", address=address)
    with made.open() as session:
        _is_right(session)
    results = dict(made.map(math.sqrt, (float(i * i) for i in range(20)), done={3, 4}))
    assert results == {i: float(i) for i in range(20) if i not in (3, 4)}
    # Broken off: nothing is left for the workers to do, and results that nobody fetches expire.
    broken = made.map(time.sleep, [0.2] * 100)
    next(broken)
    broken.close()
    with pytest.raises(EngineError, match=r"item 0 failed: ValueError: .*math domain error"):
        list(made.map(math.sqrt, [-1.0]))
    there = redis.Redis.from_url(address)
    _wait(lambda: not there.keys("exafield*"), Path(os.devnull))
    assert all(there.ttl(key) > 0 for key in there.keys("celery-task-meta*"))
    there.close()
    assert [process.poll() for process in processes] == [None, None]


def test_celery_elsewhere_that_dies_or_is_not_there(celery: tuple[str, list["subprocess.Popen[bytes]"]]) -> None:
    address, (_, worker) = celery
    wrong = address.replace(":" + address.split(":")[2].split("@")[0], ":wrong")
    with pytest.raises(EngineError, match=r"Celery: no Redis at redis://:\*\*@127\.0\.0\.1.*password"):
        list(engine("celery", address=wrong).map(math.sqrt, [1.0]))
    results = engine("celery", address=address).map(time.sleep, [0.1, 0.1, *[600.0] * 4])
    next(results)
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    os.kill(worker.pid, signal.SIGKILL)
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    with pytest.raises(EngineError, match="Celery: no answer any more from worker celery@"):
        list(results)
    with pytest.raises(EngineError, match="no worker answers at redis"):
        list(engine("celery", address=address).map(math.sqrt, [1.0]))


@pytest.fixture
def spark(tmp_path: Path) -> Iterator[tuple[str, list["subprocess.Popen[bytes]"]]]:
    """A master and a worker of Spark, as a user starts them; their address and processes."""
    _needs("pyspark", "java")
    import pyspark

    start = [str(Path(pyspark.__file__).parent / "bin" / "spark-class")]
    settings = {"SPARK_WORKER_DIR": str(tmp_path), "SPARK_LOCAL_DIRS": str(tmp_path), "SPARK_LOCAL_IP": "127.0.0.1"}
    settings |= {"SPARK_DAEMON_JAVA_OPTS": f"-XX:-UsePerfData -Djava.io.tmpdir={tmp_path}", "TMPDIR": str(tmp_path)}
    address = f"spark://127.0.0.1:{_port()}"
    at = ["--host", "127.0.0.1", "--webui-port", "0"]
    master = [*start, "org.apache.spark.deploy.master.Master", *at, "--port", address.rpartition(":")[2]]
    worker = [*start, "org.apache.spark.deploy.worker.Worker", *at, "--cores", "2", "--memory", "1g", address]
    with ExitStack() as stack:
        first = stack.enter_context(_running(*master, log=tmp_path / "master", **settings))
        second = stack.enter_context(_running(*worker, log=tmp_path / "worker", **settings))
        _wait(lambda: "Successfully registered" in (tmp_path / "worker").read_text(), tmp_path / "worker")
        yield address, [first, second]


def _executors() -> list[int]:
    """Processes of this user in which Spark runs what a worker is given."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if b"CoarseGrainedExecutorBackend" in line:
            found.append(int(path.name))
    return found


def test_spark_elsewhere_is_used_and_stays(spark: tuple[str, list["subprocess.Popen[bytes]"]], tmp_path: Path) -> None:
    address, processes = spark
    made = engine("spark", address=address)
    with made.open() as session:
        _is_right(session)
    results = dict(made.map(math.sqrt, (float(i * i) for i in range(20)), done={3, 4}))
    assert results == {i: float(i) for i in range(20) if i not in (3, 4)}
    assert [process.poll() for process in processes] == [None, None]
    master = (tmp_path / "master").read_text()
    assert master.count("Registered app exafield") == 2
    _wait(lambda: (tmp_path / "master").read_text().count("Removing app") == 2, tmp_path / "master")


def test_spark_elsewhere_whose_executor_is_killed(spark: tuple[str, list["subprocess.Popen[bytes]"]]) -> None:
    address, processes = spark
    results = engine("spark", address=address).map(time.sleep, [0.1] * 8 + [600.0] * 4)
    before = set(_executors())
    next(results)
    (victim,) = set(_executors()) - before
    for _ in range(7):
        next(results)
    threading.Timer(2.0, os.kill, (victim, signal.SIGKILL)).start()
    with pytest.raises(EngineError, match=r"item 8 or one of the 3 after it failed: Spark: .*executor"):
        next(results)
    assert [process.poll() for process in processes] == [None, None]


def test_spark_that_is_not_there() -> None:
    _needs("pyspark", "java")
    with pytest.raises(EngineError, match="Spark does not start: nobody answers at spark://"):
        list(engine("spark", address=f"spark://127.0.0.1:{_port()}").map(math.sqrt, [1.0]))
