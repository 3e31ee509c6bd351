"""Runs a function of a test module on several real processes that meet over gloo."""

import importlib.util
import inspect
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parent


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
    processes, outputs = [], []
    for rank in range(size):
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
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed below)
        source = inspect.getsourcefile(body) or body.__module__
        command = [sys.executable, str(Path(__file__)), source, body.__name__, *args]
        outputs.append(output)
        processes.append(subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, cwd=TESTS))
    deadline = time.monotonic() + timeout
    try:
        late = False
        for process in processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                late = True
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    texts = []
    for output in outputs:
        output.seek(0)
        texts.append(output.read())
        output.close()
    if late or any(process.returncode for process in processes):
        report = "\n".join(
            f"--- rank {r}, exit code {p.returncode}\n{t}"
            for r, (p, t) in enumerate(zip(processes, texts, strict=True))
        )
        raise AssertionError(f"{'time ran out' if late else 'a rank failed'}\n{report}")
    return texts


if __name__ == "__main__":
    from exafield.world import World

    source, name, *rest = sys.argv[1:]
    spec = importlib.util.spec_from_file_location(Path(source).stem, source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with World.from_env(timeout=60) as the_world:
        getattr(module, name)(the_world, *rest)
