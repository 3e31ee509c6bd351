"""The process that has the pool of :mod:`exafield.engine.joblib_steps`, and what its workers do."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine import EngineError
from exafield.engine.cells import packed, unpacked
from exafield.engine.child import settle
from exafield.engine.graph import Work
from exafield.engine.native import Arena, address, stride

# How often a worker looks whether its parent still lives [s], our choice.
_LOOK = 1.0


def lost(error: BaseException, when: str) -> EngineError:
    return EngineError(f"joblib: a worker process was lost {when}: {type(error).__name__}: {error}")


class Steps:
    """The process that has the pool; a :class:`exafield.engine.spmd.Program`."""

    def __init__(self, rank: int, size: int, folder: str) -> None:
        import joblib

        self._folder, self._workers, self._prepared = folder, settle(), 0
        # Told to end, it ends its workers first.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        # All calls of a row go out at once, one for each worker. With one worker joblib calls in this process.
        self._parallel = joblib.Parallel(self._workers, backend="loky", pre_dispatch="all", batch_size=1)
        self._delayed, self._loky = joblib.delayed, joblib.externals.loky
        self._parallel.__enter__()
        self._arenas: list[Arena] = []
        self.tasks = 0

    def prepare(self, works: Sequence[Work]) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self._prepared += 1
        # A worker that got no share of the preparations maps the files later: they stay until the next ones are made.
        for path in Path(self._folder).glob("arena-*"):
            path.unlink()
        base = f"{self._folder}/arena-{self._prepared}"
        Path(base).write_bytes(packed(works))
        self._arenas = _mapped(base, True)
        self._call([self._delayed(_ready)(base, os.getpid()) for _ in range(self._workers)])
        ran = self._delayed(_run)
        steps = max(arena.graph.steps for arena in self._arenas)
        self._rows = [[ran(base, t, part, self._workers) for part in range(self._workers)] for t in range(steps)]
        self.tasks = sum(len(work.graph) for work in works)

    def run(self) -> float:
        """See :class:`exafield.engine.spmd.Program`."""
        began = time.perf_counter()
        for row in self._rows:
            self._call(row)
        return time.perf_counter() - began

    def _call(self, calls: Sequence[Any]) -> None:
        try:
            self._parallel(calls)
        except BrokenProcessPool as error:
            raise lost(error, "before its work was done") from error

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """See :class:`exafield.engine.spmd.Program`."""
        return [
            dict(zip(arena.graph.columns(arena.graph.steps - 1), arena.last(), strict=True)) for arena in self._arenas
        ]

    def close(self) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self._parallel.__exit__(None, None, None)
        if self._workers > 1:
            self._loky.get_reusable_executor().shutdown(wait=True, kill_workers=True)


# ---- in a worker ----


def _file(path: str, size: int, make: bool) -> NDArray[np.uint8]:
    if make:
        with open(path, "xb") as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))  # a full disk would be a bus error later
    return np.memmap(path, dtype=np.uint8, mode="r+")


@lru_cache(maxsize=1)
def _mapped(base: str, make: bool = False) -> list[Arena]:
    """Arenas whose outputs and scratch memory lie in files; two slots, as rows run one after the other."""
    from exafield.engine.blocks import SCRATCH

    arenas = []
    for number, work in enumerate(unpacked(Path(base).read_bytes())):
        width, size = work.graph.width, work.body.scratch_bytes
        outputs = _file(f"{base}-{number}", 2 * width * stride(work), make)
        arena = Arena(work, 2, outputs=outputs, columns=range(0))
        if size:
            # A column may run in another process in the next row.
            arena.scratch = _file(f"{base}-{number}-scratch", width * size, make).reshape(width, size)
            arena.context[SCRATCH] = address(arena.scratch)
            if make:
                arena.body.prepare(arena.scratch)
        arenas.append(arena)
    return arenas


@lru_cache(maxsize=1)
def follow_driver(driver: int) -> None:
    """Ends this worker when the driver does, even if that is killed and can tell nobody."""

    def follow() -> None:
        while os.getppid() == driver:
            time.sleep(_LOOK)
        os._exit(1)

    if os.getpid() != driver:
        threading.Thread(target=follow, name="follow driver", daemon=True).start()


def _ready(base: str, driver: int) -> None:
    follow_driver(driver)
    _mapped(base)
    time.sleep(0.05)  # long enough that no worker takes the share of another


def _run(base: str, t: int, part: int, parts: int) -> None:
    """Runs one block of columns of each graph's row t."""
    for arena in _mapped(base):
        if t < arena.graph.steps:
            width = arena.graph.width
            arena.run(t, part * width // parts, (part + 1) * width // parts)
