"""A child process for systems that are set up by their environment before they are imported, and never taken down."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from exafield.engine import Outcome, Session, Work
from exafield.engine.spmd import Crew, cores, crew
from exafield.requirement import require

_CORES, _WORKERS = "EXAFIELD_CORES", "EXAFIELD_WORKERS"


class _Alone:
    """The session of a single process that runs several tasks at a time."""

    def __init__(self, crew: Crew, workers: int) -> None:
        self._crew, self.workers = crew, workers

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        return self._crew.run(works, passes)


@contextmanager
def alone(
    system: str,
    package: str,
    extra: str,
    program: str,
    workers: int | None,
    environment: Callable[[int], dict[str, str]],
) -> Iterator[Session]:
    """Starts one process for a system with threads of its own.

    Args:
        system: as errors call it.
        package: that it needs; looked for here, imported only there.
        extra: that brings it.
        program: "module:class" of a :class:`exafield.engine.spmd.Program`.
        workers: how many tasks at a time; None: one for each core.
        environment: set for the process, by number of workers.
    Raises:
        ImportError: the package is not installed.
        EngineError: the process does not start.
    """
    if find_spec(package) is None:
        require(package, extra=extra)  # says how to install it
    count = workers or len(cores())
    settings = {_CORES: ",".join(map(str, cores())), _WORKERS: str(count), **environment(count)}
    with crew(system, program, 1, environment=settings) as ranks:
        yield _Alone(ranks, count)


def xla(count: int) -> dict[str, str]:
    """What a process must be told so that JAX has this many devices of the CPU."""
    # A task may take longer than the 40 s after which XLA gives up waiting for other devices.
    flags = f"--xla_force_host_platform_device_count={count} --xla_cpu_collective_call_terminate_timeout_seconds=86400"
    return {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1", "XLA_FLAGS": flags, "TF_CPP_MIN_LOG_LEVEL": "2"}


def settle() -> int:
    """Called first in the child: takes all cores, ends with the parent. Returns the number of workers."""
    # A rank is kept on one core, which is not for a system with threads of its own.
    os.sched_setaffinity(0, {int(core) for core in os.environ[_CORES].split(",")})

    def follow() -> None:
        # Ends when the parent does, even if that is killed and can tell nobody while a pass is under way here.
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=follow, name="follow parent", daemon=True).start()
    return int(os.environ[_WORKERS])
