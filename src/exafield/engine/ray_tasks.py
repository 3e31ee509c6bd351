"""Ray tasks: each is given the references of what it takes, and waits for them by itself."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from exafield.engine import EngineError, Outcome, Session, Share
from exafield.engine.attempt import attempt, result
from exafield.engine.cells import callers, last, needs, output, packed, run_cell, unread
from exafield.engine.graph import Work
from exafield.engine.ray_system import LOOK, System, system
from exafield.engine.spmd import peak_memory

# Items handed out per worker: one running, one waiting (our choice).
_AHEAD = 2
# Tasks between two looks whether Ray still lives while they are submitted, and looked at together later (our choice).
_ASK = 1000
# Arguments up to this size travel with the task; Ray would put larger ones in its store anew for every task
# (max_direct_call_object_size, 100 KiB).
_DIRECT = 100 * 1024


class _Tasks:
    """A session."""

    def __init__(self, up: System) -> None:
        self._up, self.workers = up, up.workers
        # Journals count runs, and what killed one worker would kill the next: nothing is tried again.
        self._run = up.ray.remote(max_retries=0)(run_cell)
        self._warm = up.ray.remote(max_retries=0)(_warm)

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        ray, run = self._up.ray, self._run
        blob = packed(works)
        handed = blob if len(blob) <= _DIRECT else ray.put(blob)
        tasks = [
            (g, t, column, [(g, t - 1, q) for q in needs(work, t, column)])
            for t in range(max(work.graph.steps for work in works))
            for g, work in enumerate(works)
            for column in work.graph.columns(t)
        ]
        ends = [(g, *key) for g, work in enumerate(works) for key in unread(work)]
        finals = [[(g, *key) for key in last(work.graph)] for g, work in enumerate(works)]
        memory = self._up.values([self._warm.remote(handed) for _ in range(self.workers)])
        elapsed: list[float] = []
        refs: dict[tuple[int, int, int], Any] = {}
        for _ in range(passes):
            refs = {}
            began = time.perf_counter()
            for number, (g, t, column, needed) in enumerate(tasks):
                if number % _ASK == 0:
                    self._up.alive()
                refs[g, t, column] = run.remote(handed, g, t, column, *[refs[key] for key in needed])
            waited = [refs[key] for key in ends]
            self._finish(waited, list(refs.values()))
            elapsed.append(time.perf_counter() - began)
            self._up.values(waited)  # raises what went wrong
        outputs = tuple(
            np.array([output(work, cell) for cell in self._up.values([refs[key] for key in keys])])
            for work, keys in zip(works, finals, strict=True)
        )
        return Outcome(tuple(elapsed), outputs, (Share(f"{self.workers} workers", len(tasks), max(memory)),))

    def _finish(self, waited: list[Any], refs: list[Any]) -> None:
        """Until `waited` are done, or one of all that were submitted has failed.

        Whoever takes a failed value fails with all that was said about it, and so on row by row: longer and longer.
        """
        ray, seen = self._up.ray, 0
        while len(ray.wait(waited, num_returns=len(waited), timeout=LOOK, fetch_local=False)[0]) < len(waited):
            self._up.alive()
            some = refs[seen : seen + _ASK]
            done, _ = ray.wait(some, num_returns=len(some), timeout=0, fetch_local=False)
            self._up.values(done[-1:])
            seen += len(done) if len(done) == len(some) else 0

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], retry: int, done: Collection[int]
    ) -> Iterator[tuple[int, Any]]:
        """As MapEngine.map."""
        run = self._up.ray.remote(max_retries=0)(attempt)
        function = self._up.ray.put(fn)
        running: dict[Any, int] = {}

        def finished() -> Iterator[tuple[int, Any]]:
            for ref in self._up.wait(list(running), 1):
                index = running.pop(ref)
                try:
                    value = self._up.values([ref])[0]
                except EngineError as error:
                    raise EngineError(f"item {index} failed: {error}") from error
                yield index, result(value)

        for index, item in enumerate(items):
            if index in done:
                continue
            running[run.remote(function, retry, index, item)] = index
            if len(running) >= _AHEAD * self.workers:
                yield from finished()
        while running:
            yield from finished()


def _warm(blob: bytes) -> int:
    callers(blob)
    time.sleep(0.05)  # so that no worker takes the share of another
    return peak_memory()


@dataclass(frozen=True, slots=True)
class RayEngine:
    """Ray tasks, on this machine or on a cluster.

    A cluster elsewhere, whose machines can import exafield and have the same token (RAY_AUTH_TOKEN, or the file that
    RAY_AUTH_TOKEN_PATH names) in their environment::

        ray start --head --node-ip-address NODE --port 6379      # and on each machine: ray start --address NODE:6379
        exafield taskbench run --engine ray --address NODE:6379 ...     # on one of them

    Args:
        workers: how many tasks run at the same time; None: one for each core (of the cluster).
        address: of a running cluster, as ray.init takes it.
    """

    workers: int | None = None
    address: str | None = None

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        with system(self.workers, self.address) as up:
            yield _Tasks(up)

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`."""
        with system(self.workers, self.address) as up:
            yield from _Tasks(up).map(fn, items, retry, done)
