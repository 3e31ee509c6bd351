"""Dask distributed: how a graph becomes tasks of a scheduler, and how their end is seen."""

import time
import traceback
import uuid
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Any

from exafield.engine import EngineError, Outcome, Share
from exafield.engine.cells import packed
from exafield.engine.graph import Work
from exafield.engine.rowblocks import Block, gathered, interleaved, ready, run_block, tally

# How often it is looked whether all workers are there while tasks run [s], our choice.
_LOOK = 1.0


def failed(what: str, future: Any) -> EngineError:
    """Why a future has no result."""
    if future.status == "cancelled":
        return EngineError(f"dask: the scheduler was lost while {what} was under way")
    error = future.exception() if future.status == "error" else None
    if error is None:
        return EngineError(f"dask: {what} was {future.status}: the worker that had it died")
    if type(error).__name__ == "KilledWorker":
        return EngineError(f"dask: a worker died while {what} was under way: {error}")
    text = "".join(traceback.format_exception(type(error), error, future.traceback())).rstrip()
    return EngineError(f"{what} failed: {type(error).__name__}: {error}\n{text}")


class _Named(dict[Any, Any]):
    """A graph whose name is known."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def token(self) -> str:
        return self.name


class DaskSession:
    """A client whose workers wait for work; `plain` as in :class:`exafield.engine.dask_graphs.DaskEngine`."""

    def __init__(self, client: Any, plain: bool) -> None:
        self._client, self._plain = client, plain
        self._threads: dict[str, int] = client.nthreads()
        self.workers = sum(self._threads.values())

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        blob = packed(works)
        width = max(work.graph.width for work in works)
        rows = interleaved(works, width if self._plain else self.workers)
        send = self._delayed if self._plain else self._graph
        elapsed, futures = [], dict[Block, Any]()
        for _ in range(passes):
            futures = {}  # lets go of what the pass before left with the workers
            self._each(ready, blob)
            # Dask takes a key it knows for a result it has.
            name = f"exafield-{uuid.uuid4()}"
            began = time.perf_counter()
            futures = send(name, blob, rows)
            self._wait(list(futures.values()))
            elapsed.append(time.perf_counter() - began)
            self._check(futures)
        shares = tuple(Share(*each) for each in self._each(tally))
        last = [(block, futures[block]) for block in futures if block.t + 1 == works[block.number].graph.steps]
        values = self._client.gather([future for _, future in last])
        found: list[list[Any]] = [[] for _ in works]
        for (block, _), value in zip(last, values, strict=True):
            found[block.number].append(value)
        return Outcome(tuple(elapsed), tuple(map(gathered, works, found)), shares)

    def _graph(self, name: str, blob: bytes, rows: list[list[Block]]) -> dict[Block, Any]:
        from dask._task_spec import Task, TaskRef
        from dask.tokenize import normalize_token

        # Dask hashes every task to name a graph, which takes longer than all else; ours has a name.
        normalize_token.register(_Named, _Named.token)
        graph = _Named(name)
        final: dict[Block, Any] = {}
        for row in rows:
            for i, b in enumerate(row):
                key = (name, b.number, b.t, i)
                before = [TaskRef((name, b.number, b.t - 1, other)) for other in b.before]
                graph[key] = Task(key, run_block, blob, b.number, b.t, b.first, b.last, b.read, *before)
                if b.final:
                    final[b] = key
        return dict(zip(final, self._client.get(graph, list(final.values()), sync=False), strict=True))

    def _delayed(self, name: str, blob: bytes, rows: list[list[Block]]) -> dict[Block, Any]:
        from dask.delayed import delayed

        call = delayed(run_block, pure=False)
        made: dict[tuple[int, int, int], Any] = {}
        final: dict[Block, Any] = {}
        for row in rows:
            for i, b in enumerate(row):
                before = [made[b.number, b.t - 1, other] for other in b.before]
                key = (name, b.number, b.t, i)
                task = call(blob, b.number, b.t, b.first, b.last, b.read, *before, dask_key_name=key)
                made[b.number, b.t, i] = task
                if b.final:
                    final[b] = task
        return dict(zip(final, self._client.compute(list(final.values())), strict=True))

    def _each(self, function: Any, *arguments: Any) -> list[Any]:
        """Calls a function once in every worker."""
        # Not by client.run, which waits long for a worker that has died.
        submit = self._client.submit
        futures = [submit(function, *arguments, workers=[worker], pure=False) for worker in self._threads]
        self._wait(futures)
        for future in futures:
            if future.status != "finished":
                raise failed(function.__name__, future)
        return list(self._client.gather(futures))

    def _wait(self, futures: list[Any]) -> None:
        from distributed import wait

        while True:
            try:
                with self._client.as_current():
                    wait(futures, timeout=_LOOK)
                return
            except TimeoutError:
                self._alive()
            except CancelledError:
                # That becomes of them when their scheduler is lost.
                return

    def _alive(self) -> None:
        try:
            lost = set(self._threads) - set(self._client.nthreads())
        except Exception as error:
            raise EngineError(f"dask: the scheduler was lost: {error}") from error
        if lost:
            raise EngineError(f"dask: a worker died before its work was done: {', '.join(sorted(lost))}")

    def _check(self, futures: dict[Block, Any]) -> None:
        for block, future in futures.items():
            if future.status == "error":
                error = future.exception()
                raise error if isinstance(error, EngineError) else failed(f"timestep {block.t}", future)
            if future.status != "finished":
                raise failed(f"timestep {block.t}", future)
        # Dask runs again what a lost worker held: tasks would have run twice.
        self._alive()
