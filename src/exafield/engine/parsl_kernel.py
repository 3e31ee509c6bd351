"""Parsl's own parts: its configuration, and a kernel that is watched while futures are waited for."""

import shlex
import sys
import sysconfig
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from pathlib import Path
from typing import Any

from exafield.engine import EngineError

# How often it is looked whether Parsl's processes live while tasks run [s], our choice.
_LOOK = 1.0
# Ctrl-C reaches all processes of a terminal, but ending needs the interchange: it is ended by who started it.
_DEAF = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"


def config(count: int, folder: str, threads: bool) -> Any:
    """A configuration for this machine.

    Args:
        count: of workers.
        folder: for what Parsl writes.
        threads: of this process; otherwise processes of HTEX.
    """
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
    from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
    from parsl.providers import LocalProvider

    if threads:
        executor: Any = ThreadPoolExecutor(label="threads", max_threads=count)
    else:
        # By their full paths: an environment that is not activated is not on PATH either.
        scripts = Path(sysconfig.get_path("scripts"))
        executor = HighThroughputExecutor(
            label="htex",
            address="127.0.0.1",
            loopback_address="127.0.0.1",
            max_workers_per_node=count,
            # As many workers as asked for, also where there are fewer cores.
            cores_per_worker=1e-3,
            encrypted=True,
            heartbeat_period=2,
            heartbeat_threshold=20,
            interchange_launch_cmd=[sys.executable, "-c", _DEAF, sys.executable, str(scripts / "interchange.py")],
            launch_cmd=f"{sys.executable} {scripts / DEFAULT_LAUNCH_CMD}",
            worker_logdir_root=folder,
            # What a manager that is ended leaves behind goes with the folder.
            provider=LocalProvider(
                init_blocks=1, min_blocks=1, max_blocks=1, worker_init=f"export TMPDIR={shlex.quote(folder)}"
            ),
        )
    return Config(
        executors=[executor],
        run_dir=folder,
        usage_tracking=0,
        strategy="none",
        initialize_logging=False,
    )


class Kernel:
    """A kernel that is up."""

    def __init__(self, flow: Any, workers: int) -> None:
        self._flow, self.workers, self._halted = flow, workers, False

    def app(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function as an app."""
        from parsl import python_app

        if self._halted:
            raise EngineError("parsl: a task of this session has failed: open another one")
        made: Callable[..., Any] = python_app(function, data_flow_kernel=self._flow)
        return made

    def wait_any(self, futures: Collection["Future[Any]"]) -> None:
        """Until one is done."""
        while not wait(futures, _LOOK, FIRST_COMPLETED).done:
            self._alive()

    def wait_all(
        self, futures: Collection["Future[Any]"], failed: Callable[[], BaseException | None] = lambda: None
    ) -> None:
        """Until all are done.

        Args:
            failed: the error of what they depend on.
        Raises:
            EngineError: one failed, or a process of Parsl died.
        """
        waiting = set(futures)
        while waiting:
            finished, waiting = wait(waiting, _LOOK, FIRST_EXCEPTION)
            for future in finished:
                if error := future.exception():
                    raise cause(error)
            if (error := failed()) is not None:
                raise cause(error)
            if waiting:
                self._alive()

    def _dead(self) -> list[Any]:
        """Executors whose interchange has ended."""
        found = []
        for executor in self._flow.executors.values():
            interchange = getattr(executor, "interchange_proc", None)
            if interchange is not None and interchange.poll() is not None:
                found.append(executor)
        return found

    def _alive(self) -> None:
        for executor in self._dead():
            raise EngineError(
                f"parsl: the interchange of {executor.label} died ({executor.interchange_proc.returncode})"
            )
        for executor in self._flow.executors.values():
            # Tasks that wait for a manager would do so for ever. Elsewhere a batch system may start another.
            jobs = list(getattr(executor, "blocks_to_job_id", {}).values())
            local = jobs and getattr(executor.provider, "label", "") == "local"
            if local and all(status.terminal for status in executor.provider.status(jobs)):
                raise EngineError(f"parsl: the manager of {executor.label} died")

    def halt(self) -> None:
        """Starts nothing any more. Parsl would fail each task that depends on a failed one, which takes it minutes."""
        self._halted, self._flow.launch_if_ready = True, lambda *_, **__: None

    def end(self) -> None:
        """Ends all that Parsl has started."""
        self.halt()
        for executor in self._dead():
            # Parsl asks it which managers are connected, and would wait for the answer without end. Nobody is.
            executor.command_client.run = lambda *_, **__: []
        self._flow.cleanup()


def cause(error: BaseException) -> EngineError:
    """What lies behind the error of a task, or of one that needed it."""
    while getattr(error, "dependent_exceptions_tids", None):
        error = error.dependent_exceptions_tids[0][0]  # type: ignore[attr-defined]
    if isinstance(error, EngineError):
        return error
    return EngineError(f"parsl: a worker was lost, or could not run a task: {type(error).__name__}: {error}")
