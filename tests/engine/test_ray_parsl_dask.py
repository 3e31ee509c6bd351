"""Ray, Parsl and Dask: clusters that are up already, and processes of theirs that are killed."""

import math
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from exafield.engine import EngineError, engine
from exafield.taskbench.conformance import Case, fault

pytest.importorskip("numba", reason="pip install 'exafield[light]'")

# Until a system has started, or has ended after a fault [s].
START, END = 120, 60
CASE = Case("stencil_1d", 7, 2, 1000, 4096)
# Far longer than a test may last.
RUN = ["-type", "stencil_1d", "-width", "2", "-steps", "1000", "-kernel", "compute_bound", "-iter", "100000000"]


def _needs(name: str) -> None:
    pytest.importorskip(name, reason=f"pip install 'exafield[{'dask' if name == 'distributed' else name}]'")


def _processes(mark: str, session: int) -> dict[int, str]:
    """Processes that have the mark in their environment, or belong to the session, with their command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            # Some overwrite their environment when they name themselves.
            own = int(fields[3]) == session or mark.encode() in (folder / "environ").read_bytes()
            if own and fields[0] not in "ZX":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
    return found


def _until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


class Command:
    """`exafield taskbench run` in a session of its own, as a shell starts it in a terminal."""

    def __init__(self, name: str, folder: Path) -> None:
        self.mark, self.folder = secrets.token_hex(16), folder
        command = [sys.executable, "-m", "exafield", "taskbench", "run", "--engine", name, "--workers", "2", *RUN]
        self.process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, "EXAFIELD_MARK": self.mark, "TMPDIR": str(folder)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def find(self, pattern: str) -> list[int]:
        """Processes of the system whose command line has the pattern."""
        seen = _processes(self.mark, self.process.pid).items()
        return [pid for pid, line in seen if pid != self.process.pid and re.search(pattern, line)]

    def working(self, pattern: str) -> int:
        """Waits until there is such a process, and for some time in which it can get work; its number."""
        _until(lambda: self.find(pattern) or self.process.poll() is not None, START, f"no {pattern}")
        time.sleep(3)
        assert self.process.poll() is None, self.process.communicate()
        return self.find(pattern)[-1]

    def end(self) -> tuple[int, str]:
        """What it says in the end, and that nothing is left."""
        said = self.process.communicate(timeout=END)[0]
        # Ray's workers end by themselves once they notice that their raylet is gone.
        _until(lambda: not self.find(""), END, f"still there: {_processes(self.mark, self.process.pid)}")
        assert not list(self.folder.iterdir())
        return self.process.returncode, said

    def kill(self) -> None:
        """After a failure: all of it."""
        for pid in [*self.find(""), self.process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[[str], Command]]:
    made: list[Command] = []

    def start(name: str) -> Command:
        # Paths of sockets must be short.
        folder = Path(f"/tmp/{secrets.token_hex(4)}")
        folder.mkdir()
        made.append(Command(name, folder))
        return made[-1]

    yield start
    for one in made:
        one.kill()
        shutil.rmtree(one.folder, ignore_errors=True)


MODULES = {"ray": "ray", "ray-compiled": "ray", "parsl": "parsl", "dask": "distributed"}


@pytest.mark.engines
@pytest.mark.parametrize(
    ("name", "victim", "message"),
    [
        ("ray", r"ray::(run_cell|IDLE\s)", "Ray: .*worker"),
        ("ray", "raylet/raylet", "Ray: .*raylet"),
        ("ray-compiled", "ray::Block", "Ray: .*actor"),
        ("ray-compiled", "raylet/raylet", "Ray: .*raylet"),
        ("parsl", "interchange", "parsl: the interchange"),
        ("parsl", "process_worker_pool", "parsl: .*manager"),
        ("dask", "dask worker", "dask: a worker died"),
    ],
)
def test_a_killed_process_is_named(name: str, victim: str, message: str, command: Callable[[str], Command]) -> None:
    _needs(MODULES[name])
    run = command(name)
    os.kill(run.working(victim), signal.SIGKILL)
    code, said = run.end()
    assert code == 1, said
    assert re.search(f"exafield: {message}", said), said
    assert "Traceback" not in said


# ---- clusters that are up already ----


@contextmanager
def _started(*commands: list[str], environment: dict[str, str]) -> Iterator[list["subprocess.Popen[bytes]"]]:
    made: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            made.append(  # noqa: PERF401
                subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
        yield made
    finally:
        for process in reversed(made):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _serves(name: str, address: str) -> None:
    """A graph and a map, on the same cluster: the first session must not have ended it."""
    made = engine(name, workers=2, address=address)
    with made.open() as session:
        wrong = fault(session, CASE)
        assert wrong is None, wrong
    if hasattr(made, "map"):
        assert dict(made.map(math.sqrt, [float(i * i) for i in range(9)])) == {i: float(i) for i in range(9)}


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_dask_uses_a_cluster_that_is_up(tmp_path: Path) -> None:
    _needs("distributed")
    _needs("cryptography")
    import dask
    from distributed.security import Security

    # One certificate for all, as a site could have it: whoever does not show it is refused.
    made = Security.temporary()
    (tmp_path / "ca.pem").write_text(made.tls_ca_file)
    (tmp_path / "key.pem").write_text(made.tls_client_key)
    (tmp_path / "cert.pem").write_text(made.tls_client_cert)
    pair = {"key": str(tmp_path / "key.pem"), "cert": str(tmp_path / "cert.pem")}
    # A scheduler that is gone is tried to be reached for as long as a connection may take.
    tls = {"distributed.comm.tls.ca-file": str(tmp_path / "ca.pem"), "distributed.comm.timeouts.connect": "5s"}
    tls |= {f"distributed.comm.tls.client.{key}": path for key, path in pair.items()}
    environment = {**os.environ, "TMPDIR": str(tmp_path), "DASK_TEMPORARY_DIRECTORY": str(tmp_path)}
    for role in ("SCHEDULER", "WORKER"):
        environment |= {f"DASK_DISTRIBUTED__COMM__TLS__{role}__{key.upper()}": path for key, path in pair.items()}
    environment["DASK_DISTRIBUTED__COMM__TLS__CA_FILE"] = str(tmp_path / "ca.pem")
    address = f"tls://127.0.0.1:{_port()}"
    scheduler = f"-m dask scheduler --host {address} --no-dashboard --no-show".split()
    worker = f"-m dask worker {address} --host 127.0.0.1 --protocol tls --no-nanny --no-dashboard --nthreads 2".split()
    with (
        dask.config.set(tls),
        _started([sys.executable, *scheduler], [sys.executable, *worker], environment=environment) as processes,
    ):
        _serves("dask", address)
        assert [process.poll() for process in processes] == [None, None]
        with engine("dask", address=address).open() as session:
            processes[0].kill()
            with pytest.raises(EngineError, match="dask: the scheduler was lost"):
                session.run(CASE.works())


@pytest.mark.engines
def test_ray_uses_a_cluster_that_is_up() -> None:
    _needs("ray")
    port, mark = _port(), secrets.token_hex(16)
    folder = Path(f"/tmp/{secrets.token_hex(4)}")  # paths of sockets must be short
    folder.mkdir()
    # Ray reads its token once, when it is imported: so each driver is a process of its own. The last keeps it on
    # loopback, see ray_settings.
    environment = {
        **os.environ, "EXAFIELD_MARK": mark, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }  # fmt: skip
    ray = str(Path(sysconfig.get_path("scripts"), "ray"))
    options = f"--node-ip-address 127.0.0.1 --port {port} --num-cpus 2 --include-dashboard false --temp-dir {folder}"
    try:
        with _started([ray, "start", "--head", "--block", *options.split()], environment=environment) as processes:
            up = "raylet/raylet"
            _until(lambda: any(up in line for line in _processes(mark, -1).values()), START, "Ray does not start")
            time.sleep(5)
            for name in ("ray", "ray-compiled"):
                driver = [sys.executable, __file__, name, f"127.0.0.1:{port}"]
                done = subprocess.run(
                    driver, env=environment, capture_output=True, text=True, timeout=START, check=False
                )
                assert done.returncode == 0, done.stderr
                assert processes[0].poll() is None
            assert any(up in line for line in _processes(mark, -1).values())
        _until(lambda: not _processes(mark, -1), 30, "Ray is still there")
    finally:
        for pid in _processes(mark, -1):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


SITE = """
import sys, sysconfig
from pathlib import Path
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

def config():
    scripts = Path(sysconfig.get_path("scripts"))
    executor = HighThroughputExecutor(
        address="127.0.0.1", loopback_address="127.0.0.1", max_workers_per_node=2, cores_per_worker=0.1, encrypted=True,
        interchange_launch_cmd=[sys.executable, str(scripts / "interchange.py")], provider=LocalProvider(),
        launch_cmd=f"{sys.executable} {scripts}/" + HighThroughputExecutor(address="127.0.0.1").launch_cmd,
    )
    return Config(executors=[executor], run_dir=str(Path(__file__).parent / "runs"), usage_tracking=0, strategy="none")
"""


@pytest.mark.engines
def test_parsl_uses_the_configuration_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _needs("parsl")
    (tmp_path / "site_of_a_test.py").write_text(SITE)
    monkeypatch.syspath_prepend(str(tmp_path))
    _serves("parsl", "site_of_a_test:config")
    with pytest.raises(EngineError, match="MODULE:NAME"), engine("parsl", address="site_of_a_test:other").open():
        pass
    with pytest.raises(ValueError, match="engine 'parsl-threads' takes no address; these do: mpi, "):
        engine("parsl-threads", address="site_of_a_test:config")


if __name__ == "__main__":
    _serves(*sys.argv[1:])
