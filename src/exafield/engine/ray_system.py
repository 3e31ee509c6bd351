"""Starts Ray on this machine, or joins a cluster, and leaves nothing behind."""

import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from exafield.engine import EngineError
from exafield.engine.spmd import cores
from exafield.requirement import require

# Memory of our own object store [bytes], our choice: boundaries of columns are small.
_STORE = 256 * 2**20
# While tasks run, how often it is looked whether Ray still lives [s], our choice.
LOOK = 1.0


@cache
def _token() -> str:
    # One a process: Ray reads it once and keeps it.
    return secrets.token_hex(32)


class System:
    """Ray, up."""

    def __init__(self, ray: Any, workers: int) -> None:
        self.ray, self.workers = ray, workers

    def alive(self) -> None:
        """Raises EngineError if one of the processes started here is gone."""
        node = self.ray._private.worker._global_node
        dead = [kind for kind, _ in node.dead_processes()] if node is not None else []
        if dead:
            raise EngineError(f"Ray: the process {', '.join(map(str, dead))} died")

    def error(self, error: Exception) -> EngineError:
        """What happened, in our words."""
        cause = getattr(error, "cause", None)
        for one in (error, cause):
            if isinstance(one, EngineError):
                return EngineError(str(cause if isinstance(cause, EngineError) else one))
        return EngineError(f"Ray: a worker was lost, or could not run a task: {type(error).__name__}: {error}")


@contextmanager
def system(workers: int | None, address: str | None) -> Iterator[System]:
    """Ray on loopback, or the cluster at `address`; where this process has joined one already, that one.

    Raises:
        ImportError: Ray is not installed.
        EngineError: it does not start.
    """
    ray = require("ray", extra="ray")
    if ray.is_initialized():
        yield System(ray, workers or _cpus(ray))
        return
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder, _settings(folder, address):
        count = workers or len(cores())
        own: dict[str, Any] = {
            "address": "local", "num_cpus": count, "include_dashboard": False, "object_store_memory": _STORE,
            "_node_ip_address": "127.0.0.1", "_temp_dir": folder,
        }  # fmt: skip
        options = own if address is None else {"address": address}
        try:
            try:
                ray.init(log_to_driver=False, configure_logging=False, logging_level="ERROR", **options)
            except Exception as error:
                raise EngineError(f"Ray does not start: {type(error).__name__}: {error}") from error
            yield System(ray, count if address is None else workers or _cpus(ray))
        finally:
            node = ray._private.worker._global_node
            raylets = [one.process.pid for one in (node.all_processes if node else {}).get("raylet", ())]
            ray.shutdown()
            # Semaphores of channels, named after the raylet: Ray leaves them in shared memory.
            for path in [path for pid in raylets for path in Path("/dev/shm").glob(f"sem.???{pid}-*")]:
                path.unlink(missing_ok=True)


def _cpus(ray: Any) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


@contextmanager
def _settings(folder: str, address: str | None) -> Iterator[None]:
    """What Ray reads from the environment, and what it changes in this process, as long as it is up."""
    from ray._private import ray_constants as constants

    changed = {"RAY_USAGE_STATS_ENABLED": "0"}
    clusters = constants.ENABLE_RAY_CLUSTER
    if address is None:
        # Ray takes the machine's outer address for 127.0.0.1, and then listens on all, unless told that there can be
        # no cluster; as it does by itself where clusters are not supported. Our own processes read the environment.
        changed["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        constants.ENABLE_RAY_CLUSTER = False
    if address is None and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        # Otherwise Ray writes a token into the home folder, and leaves it there.
        path = Path(folder, "token")
        path.touch(0o600)
        path.write_text(_token())
        changed["RAY_AUTH_TOKEN_PATH"] = str(path)
    before = {name: os.environ.get(name) for name in changed | {"RAY_AUTH_MODE": ""}}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    os.environ.update(changed)
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = clusters
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if main and handler is not None:
            with suppress(ValueError):
                signal.signal(signal.SIGTERM, handler)
