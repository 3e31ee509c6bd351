"""The processes of a Celery of our own: Redis, and workers."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exafield.engine import EngineError

# What the broker and the workers may take to start, and to end when told to [s], our choice.
_START, _END = 60.0, 10.0

Processes = dict[str, "subprocess.Popen[bytes]"]


def start(
    folder: Path, alive: Callable[[], None], ping: Callable[..., list[Any]], count: int, processes: Processes
) -> None:
    """Redis without a port, and workers; what they say goes into files of the folder.

    Args:
        alive: raises if one of the processes is gone.
        ping: Celery's, which has the answers of workers.
        processes: gets what is started, even if not all of it starts.
    Raises:
        EngineError: they do not start.
    """
    redis = ["redis-server", "--port", "0", "--unixsocket", f"{folder}/socket", "--unixsocketperm", "700"]
    redis += ["--save", "", "--appendonly", "no", "--dir", str(folder)]
    # One process a worker, which takes its messages from Redis itself, instead of one that hands them to a pool.
    worker = [sys.executable, "-m", "celery", "-A", "exafield.engine.celery_app", "worker", "-P", "solo", "-l", "ERROR"]
    worker += ["--without-gossip", "--without-mingle", "--without-heartbeat", "-n"]
    commands = {"broker (redis-server)": redis, **{f"worker {n}": [*worker, f"exafield-{n}@%h"] for n in range(count)}}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "EXAFIELD_CELERY_FOLLOW": "1"}
    deadline = time.monotonic() + _START
    for name, command in commands.items():
        with open(folder / name, "wb") as log:
            # A session of its own: Ctrl-C is for this process, which then ends the others in order.
            processes[name] = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        while not Path(folder, "socket").exists():
            _living(alive, folder, deadline)
            time.sleep(0.01)
    while len(ping(timeout=0.5)) < count:
        _living(alive, folder, deadline)


def _living(alive: Callable[[], None], folder: Path, deadline: float) -> None:
    try:
        alive()
        if time.monotonic() > deadline:
            raise EngineError(f"Celery does not start within {_START:g} s")
    except EngineError as error:
        said = "\n".join(path.read_text(errors="replace").strip()[-1000:] for path in folder.glob("* *"))
        raise EngineError(f"{error}: {said.strip()}") from error


def end(processes: Processes) -> None:
    """Ends all of them, by force where they do not."""
    deadline = time.monotonic() + _END
    for process in reversed(processes.values()):  # workers first: they say goodbye to the broker
        process.terminate()
    for process in reversed(processes.values()):
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
