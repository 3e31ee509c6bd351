"""A process of an engine that is killed while it works: an error that says so, no hang, and nothing is left."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from exafield.engine import EngineError, Work, engine
from exafield.taskbench.kernels import Kernel
from exafield.taskbench.patterns import pattern

pytest.importorskip("numba", reason="pip install 'exafield[light]'")


def _descendants(pid: int) -> list[int]:
    """The processes below one, those it started first."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(folder.name)] = int(fields[1])
    found, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def _runs_tasks(pid: int) -> bool:
    """Ranks and pool workers, but not the launcher of ranks or what watches over shared resources."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
    return ("spmd" in line and "mpirun" not in line) or "spawn_main" in line


@pytest.mark.parametrize("name", ["processes", "shared", "mpi", "mpi-compiled"])
def test_a_killed_process_ends_the_run_with_its_name(name: str) -> None:
    if name.startswith("mpi"):
        pytest.importorskip("mpi4py", reason="pip install 'exafield[mpi]'")
    before = set(_descendants(os.getpid()))
    # Far longer than the test may last, if nobody is killed.
    work = Work(pattern("stencil_1d", width=2, steps=5000).graph(), Kernel("compute_bound", iterations=10**7))
    killed: list[int] = []

    def kill() -> None:
        time.sleep(1)
        victim = [pid for pid in _descendants(os.getpid()) if pid not in before and _runs_tasks(pid)][-1]
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    with pytest.raises(EngineError, match=r"MPI|shared memory|processes"), engine(name, workers=2).open() as session:  # noqa: PT012
        threading.Thread(target=kill).start()
        session.run([work])
    assert killed
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(_runs_tasks(p) for p in set(_descendants(os.getpid())) - before):
        time.sleep(0.1)
    assert not [pid for pid in set(_descendants(os.getpid())) - before if _runs_tasks(pid)]
