"""Runs a function of a test module on several real processes that meet over gloo.

The processes are forked off one that has imported torch already, which takes longer than most tests.
"""

import atexit
import functools
import importlib.util
import inspect
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@functools.cache
def context() -> Any:
    """What starts processes. Its server has no threads, so that it can be forked."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["pytest", "hypothesis", "exafield.trainer"])
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    forkserver.ensure_running()
    if threads is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = threads
    return made


def run_ranks(
    size: int, body: Callable[..., None], *args: str, timeout: float = 90.0, nodes: str | None = None
) -> list[str]:
    """Calls `body(world, *args)` (a function at module level) on `size` processes.

    Args:
        nodes: one letter per rank; ranks with the same one are on the same "node".
    Returns:
        what each rank printed.
    Raises:
        AssertionError: a rank failed or the time ran out; holds what every rank printed.
    """
    port = free_port()
    source = inspect.getsourcefile(body) or body.__module__
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(rank) for rank in range(size)]
        for rank, output in enumerate(outputs):
            env = os.environ | {
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "EXAFIELD_SPAWNED": "1",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
            }
            if nodes is not None:
                env["EXAFIELD_NODE"] = nodes[rank]
            process = context().Process(target=_rank, args=(env, str(output), source, body.__name__, args))
            process.start()
            processes.append(process)
        deadline = time.monotonic() + timeout
        try:
            for process in processes:
                process.join(max(0.1, deadline - time.monotonic()))
            late = any(process.exitcode is None for process in processes)
        finally:
            for process in processes:
                process.kill()
                process.join()
        texts = [output.read_text() if output.exists() else "" for output in outputs]
    if late or any(process.exitcode for process in processes):
        report = "\n".join(
            f"--- rank {r}, exit code {p.exitcode}\n{t}" for r, (p, t) in enumerate(zip(processes, texts, strict=True))
        )
        raise AssertionError(f"{'time ran out' if late else 'a rank failed'}\n{report}")
    return texts


def _rank(env: Mapping[str, str], output: str, source: str, name: str, args: tuple[str, ...]) -> None:
    """A whole program, but for the start of the interpreter; ends as one does, too."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(TESTS)
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 0
    try:
        _call(source, name, args)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        traceback.print_exc()
        sys.last_value, code = error, 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _call(source: str, name: str, args: tuple[str, ...]) -> None:
    from exafield.world import World

    spec = importlib.util.spec_from_file_location(Path(source).stem, source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with World.from_env(timeout=60) as world:
        getattr(module, name)(world, *args)
