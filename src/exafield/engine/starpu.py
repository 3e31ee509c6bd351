"""StarPU, through its C library: tasks are submitted in order, and their accesses to data make the dependencies."""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from exafield.engine import EngineError, Outcome, Session, Share, interruptible
from exafield.engine.graph import Work
from exafield.engine.native import Arena, address
from exafield.engine.spmd import cores, peak_memory
from exafield.engine.starpu_library import Library
from exafield.requirement import require

# Rows of outputs that are kept, our choice: enough that no task waits long for the readers of what it overwrites,
# which StarPU sees to, and few, since a handle takes kilobytes.
_ROWS = 8
# Tasks under way beyond which submission waits, and down to which it then does: a task takes a kilobyte, our choice.
_MOST, _LEAST = "100000", "50000"
# STARPU_CL_ARGS_NFREE in starpu_task_util.h of 1.3: fstarpu_get_constant knows only that whose memory StarPU frees.
_ARGUMENT = 26 << 17


class _Threads:
    """StarPU in this process, with one thread for each worker; another one submits, and waits."""

    def __init__(self, library: Library, caller: ThreadPoolExecutor, workers: int) -> None:
        from exafield.engine import starpu_loop

        self._library, self._caller, self._loop, self.workers = library, caller, starpu_loop, workers
        self._codelet = library.codelet(starpu_loop.codelet.address)

    def close(self) -> None:
        """Gives back what StarPU does not."""
        self._library.free(self._codelet)

    def _handles(self, memory: NDArray[np.uint8], size: int) -> NDArray[np.int64]:
        """A handle for each of the pieces of memory, [..., bytes], of which tasks use `size` bytes."""
        pieces = memory.reshape(-1, memory.shape[-1])
        handles = np.zeros(len(pieces), dtype=np.int64)
        for index in range(len(pieces)):
            self._library.register(address(handles[index:]), 0, address(pieces[index]), size)
        return handles

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        arenas = [Arena(work, slots=_ROWS) for work in works]
        outputs = [self._handles(arena.outputs, arena.size) for arena in arenas]
        scratches = [
            self._handles(arena.scratch, work.body.scratch_bytes) if work.body.scratch_bytes else np.zeros(0, np.int64)
            for arena, work in zip(arenas, works, strict=True)
        ]
        failed, size = np.zeros(1, dtype=np.int64), 8 * self._loop.WORDS
        counts = [len(work.graph) for work in works]
        arguments = np.zeros((sum(counts), self._loop.WORDS), dtype=np.int64)
        most = max(int(np.diff(relation.starts).max()) for work in works for relation in work.graph.relations)
        fixed = [self._library.insert, self._codelet, _ARGUMENT, size, *self._library.modes(), address(failed)]
        given = (
            np.array([arena.address for arena in arenas]),
            np.array([address(handles) for handles in outputs]),
            np.array([address(handles) for handles in scratches]),
            np.cumsum([0, *counts[:-1]]),
            arguments,
            np.zeros(2 * most + 9, dtype=np.int64),
            np.array(fixed),
        )
        elapsed = []
        try:
            # Compiles without running anything.
            self._loop.submit(given[0][:0], *given[1:])

            def once() -> float:
                began = time.perf_counter()
                self._loop.submit(*given)
                self._library.wait()
                return time.perf_counter() - began

            for _ in range(passes):
                elapsed.append(interruptible.call(self._caller, once, partial(failed.fill, -1)))
                if failed[0]:
                    raise next(arena.failure() for arena in arenas if arena.address == failed[0])
        finally:
            self._library.wait()
            for handle in np.concatenate(outputs + scratches).tolist():
                self._library.unregister(handle)
        share = Share(f"{self.workers} workers", sum(counts), peak_memory())
        return Outcome(tuple(elapsed), tuple(arena.last() for arena in arenas), (share,))


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set while StarPU starts, which reads them then."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class StarpuEngine:
    """StarPU in this process, one thread for each worker and this one, which submits.

    Args:
        workers: number of workers; None: one for each core.
    """

    workers: int | None = None

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        require("numba", extra="light")
        library = Library()
        size = self.workers or len(cores())
        with tempfile.TemporaryDirectory(prefix="exafield-") as folder:
            settings = {"STARPU_HOME": folder, "STARPU_NCPU": str(size), "STARPU_NCUDA": "0", "STARPU_NOPENCL": "0"}
            # Signals are Python's to handle.
            settings |= {"STARPU_SILENT": "1", "STARPU_WORKERS_NOBIND": "1", "STARPU_CATCH_SIGNALS": "0"}
            settings |= {"STARPU_LIMIT_MAX_SUBMITTED_TASKS": _MOST, "STARPU_LIMIT_MIN_SUBMITTED_TASKS": _LEAST}
            with _environment(settings):
                code = library.start(None)
            if code:
                raise EngineError(f"StarPU does not start: starpu_init returned {code}")
            try:
                with ThreadPoolExecutor(1) as caller:
                    session = _Threads(library, caller, size)
                    yield session
                    session.close()
            finally:
                library.shutdown()
