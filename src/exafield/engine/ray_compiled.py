"""Ray compiled graphs: actors own blocks of columns, and some rows of their calls are compiled once and run again.

Compiled graphs keep channels in shared memory between actors that know beforehand who calls what (Ray documentation,
"Compiled Graph"). So who sends to whom must not change from row to row: it is whoever ever does.
"""

import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import numpy as np

from exafield.engine import EngineError, Outcome, Session, Share
from exafield.engine.graph import Work
from exafield.engine.ray_blocks import Block, links, program
from exafield.engine.ray_system import LOOK, System, system

# Rows in one compiled graph, our choice: more cost memory and time to compile, fewer cost more calls of the driver.
_ROWS = 16
# Calls of the compiled graph that are under way at the same time, our choice: the next waits where the work is.
_AHEAD = 3
# Share of the time that the call before took for which the driver sleeps, our choice.
_ASLEEP = 0.8
# How long a call of the graph may take [s], our choice; that Ray lives is looked after otherwise.
_LONGEST = 10**6


class _Blocks:
    """A session: actors, and the graph that is compiled while it runs."""

    def __init__(self, up: System) -> None:
        self._up, self.workers = up, up.workers
        actor = up.ray.remote(num_cpus=1, max_restarts=0)(Block)
        self.actors = [actor.remote(rank, up.workers) for rank in range(up.workers)]
        self._graph: Any = None
        self._made_for: object = None

    def _compiled(self, rows: int, sources: list[list[int]], size: int) -> Any:
        """The calls of `rows` rows, beside which actors do nothing else; `size` is that of the largest message.

        It takes longer to compile than a short run takes, and so is kept for the next run with the same links.
        """
        if self._graph is not None and self._made_for == (rows, sources):
            return self._graph
        self.close()
        nodes = program(self.actors, rows, sources)
        self._graph = nodes.experimental_compile(_submit_timeout=_LONGEST, _buffer_size_bytes=size + 4096)
        self._made_for = rows, sources
        return self._graph

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        get, sources = self._up.ray.get, links(works, self.workers)
        blob = pickle.dumps(tuple(works))
        steps = max(work.graph.steps for work in works)
        rows = -(-steps // -(-steps // _ROWS))  # calls of the same length
        widest = sum(-(-work.graph.width // self.workers) * work.body.output_bytes for work in works)
        with self._watched():
            graph = self._compiled(rows, sources, widest)
            memory = get(graph.execute((blob, sources)), timeout=_LONGEST)
            elapsed = [self._once(graph, steps, rows) for _ in range(passes)]
            parts = get(graph.execute(None), timeout=_LONGEST)
        outputs = []
        for g, work in enumerate(works):
            found = {column: row for part in parts for column, row in part[g].items()}
            outputs.append(np.array([found[c] for c in work.graph.columns(work.graph.steps - 1)], dtype=np.uint8))
        shares = (Share(f"{self.workers} actors", sum(len(work.graph) for work in works), max(memory)),)
        return Outcome(tuple(elapsed), tuple(outputs), shares)

    def _once(self, graph: Any, steps: int, rows: int) -> float:
        get = self._up.ray.get
        began = last = time.perf_counter()
        pause, open_calls = 0.0, list[Any]()
        for t in range(0, steps, rows):
            open_calls.append(graph.execute(t))
            if len(open_calls) < _AHEAD:
                continue
            # Whoever waits for a channel polls it: the driver sleeps instead while its turn cannot have come yet, or
            # it would take turns with the actors on their cores.
            time.sleep(pause)
            get(open_calls.pop(0), timeout=_LONGEST)
            now = time.perf_counter()
            pause, last = _ASLEEP * (now - last), now
        for call in open_calls:
            get(call, timeout=_LONGEST)
        return time.perf_counter() - began

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """While it lasts, the graph is torn down as soon as Ray is gone: reads of channels then end."""
        over, found = Event(), []

        def watch() -> None:
            while not over.wait(LOOK):
                try:
                    self._up.alive()
                except EngineError as error:
                    found.append(error)
                    self.close()
                    return

        thread = Thread(target=watch, name="ray watch", daemon=True)
        thread.start()
        try:
            yield
        except Exception as error:
            over.set()
            thread.join()
            self.close()
            raise found[0] if found else self._up.error(error) from error
        finally:
            over.set()

    def close(self) -> None:
        """Ends the compiled graph; its actors go on."""
        if self._graph is not None:
            graph, self._graph, self._made_for = self._graph, None, None
            with suppress(Exception):  # actors that are gone cannot be told
                graph.teardown()


@dataclass(frozen=True, slots=True)
class RayCompiledEngine:
    """Ray actors in a compiled graph, here or on a cluster, see :class:`exafield.engine.ray_tasks.RayEngine`.

    Args:
        workers: number of actors; None: one for each core (of the cluster).
        address: of a running cluster, as ray.init takes it.
    """

    workers: int | None = None
    address: str | None = None

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        with system(self.workers, self.address) as up:
            blocks = _Blocks(up)
            try:
                yield blocks
            finally:
                blocks.close()
                for actor in blocks.actors:
                    up.ray.kill(actor)
