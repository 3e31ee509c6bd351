"""Starts Ray on this machine, or joins a cluster, and leaves nothing behind."""

import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exafield.engine import EngineError
from exafield.engine.ray_settings import settings
from exafield.engine.signals import deferred, terminable
from exafield.engine.spmd import cores
from exafield.requirement import require

# Memory of our own object store [bytes], our choice: boundaries of columns are small.
_STORE = 256 * 2**20
# While tasks run, how often it is looked whether Ray still lives [s], our choice.
LOOK = 1.0
# How often a folder is removed that processes still write to, about a third of a second apart, our choice.
_TRIES = 30


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

    def wait(self, refs: list[Any], count: int) -> list[Any]:
        """Those that are done, once at least `count` are."""
        while refs:
            # fetch_local: what is done may stay where it is.
            done, _ = self.ray.wait(refs, num_returns=count, timeout=LOOK, fetch_local=False)
            if len(done) >= count:
                return list(done)
            self.alive()
        return []

    def values(self, refs: list[Any]) -> list[Any]:
        """What they stand for, once all are done.

        Raises:
            EngineError: one has failed, or Ray has.
        """
        self.wait(refs, len(refs))
        try:
            return list(self.ray.get(refs))
        except Exception as error:
            raise self.error(error) from error

    def error(self, error: Exception) -> EngineError:
        """What happened, in our words."""
        one: Any = error
        while isinstance(one, Exception):
            if isinstance(one, EngineError):
                return EngineError(str(one))
            one = getattr(one, "cause", None)
        said = str(error).rstrip().rpartition("\n")[2]  # what happened first is told last
        return EngineError(f"Ray: a worker was lost, or could not run a task: {type(error).__name__}: {said}")


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
    with (
        terminable(),
        _folder() as folder,
        settings(folder, address),
    ):
        main = threading.current_thread() is threading.main_thread()
        handler, noted = signal.getsignal(signal.SIGTERM), list[int]()
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
            # Ray handles SIGTERM in its own way, which may end in an abort before anything is cleaned up.
            if main:
                signal.signal(signal.SIGTERM, _noting(handler, noted))
            yield System(ray, count if address is None else workers or _cpus(ray))
        except BaseException:
            if noted:  # Ray makes another exception of that of the handler
                raise SystemExit(128 + signal.SIGTERM) from None
            raise
        finally:
            node = ray._private.worker._global_node
            raylets = [one.process.pid for one in (node.all_processes if node else {}).get("raylet", ())]
            with deferred():
                ray.shutdown()
            if main:
                signal.signal(signal.SIGTERM, handler)
            # Semaphores of channels, named after the raylet: Ray leaves them in shared memory.
            for path in [path for pid in raylets for path in Path("/dev/shm").glob(f"sem.???{pid}-*")]:
                path.unlink(missing_ok=True)


@contextmanager
def _folder() -> Iterator[str]:
    """A temporary folder, removed until it is gone: processes that outlive their raylet for a moment still write."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        yield str(folder)
    finally:
        for _ in range(_TRIES):
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.3)
            if not folder.exists():
                break


def _cpus(ray: Any) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _noting(handler: Any, noted: list[int]) -> Any:
    """A handler that also notes that it was called."""
    if not callable(handler):
        return handler

    def handle(number: int, frame: Any) -> None:
        noted.append(number)
        handler(number, frame)

    return handle
