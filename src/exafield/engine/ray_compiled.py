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
from numpy.typing import NDArray

from exafield.engine import EngineError, Outcome, Session, Share
from exafield.engine.graph import Integers, Work
from exafield.engine.mpi import Part
from exafield.engine.plan import Plan
from exafield.engine.ray_system import LOOK, System, system
from exafield.engine.spmd import bind, peak_memory

# Rows in one compiled graph, our choice: more cost memory and time to compile, fewer cost more calls of the driver.
_ROWS = 16
# Calls of the compiled graph that are under way at the same time, our choice: the next waits where the work is.
_AHEAD = 3
# How long a call of the graph may take [s], our choice; that Ray lives is looked after otherwise.
_LONGEST = 10**6


class Block:
    """An actor: runs its columns row by row. Messages are the outputs that others take, as bytes."""

    def __init__(self, rank: int, size: int) -> None:
        bind(rank)
        self.rank, self.size, self.t = rank, size, 0
        self.parts: list[Part] = []

    def prepare(self, works: bytes, sources: list[int]) -> int:
        """Makes ready what is not timed; the memory that it takes.

        Args:
            works: pickled.
            sources: ranks whose messages this one is given, in this order.
        """
        self.parts = [Part(work, self.rank, self.size) for work in pickle.loads(works)]
        self.plans = [[Plan(part.plan.graph, rank, self.size) for rank in sources] for part in self.parts]
        for part in self.parts:
            part.arena.run(0, 0, 0)  # no columns: loads the machine code
        return peak_memory()

    def first(self, t: int) -> bytes:
        """Begins at row t."""
        self.t = t
        return self._run()

    def next(self, own: bytes, *messages: bytes) -> bytes:
        """Takes the outputs of the row before, and runs a row."""
        self.take(own, *messages)
        return self._run()

    def take(self, own: bytes, *messages: bytes) -> int:
        """Takes the outputs of the row before."""
        t = self.t
        offsets = [0] * len(messages)
        for part, plans in zip(self.parts, self.plans, strict=True):
            if not 0 < t < part.steps:
                continue
            arena = part.arena
            for k, (message, plan) in enumerate(zip(messages, plans, strict=True)):
                columns = _exported(plan, t)
                if columns.size:
                    shape = (columns.size, arena.size)
                    rows = np.frombuffer(message, np.uint8, columns.size * arena.size, offsets[k]).reshape(shape)
                    # All that the other sends, also what only others need: one message for all of them.
                    arena.outputs[(t - 1) % arena.slots, columns, : arena.size] = rows
                    offsets[k] += rows.nbytes
        return t

    def _run(self) -> bytes:
        t, found = self.t, []
        for part in self.parts:
            arena = part.arena
            if t < part.steps:
                arena.run(t, part.columns.start, part.columns.stop)
            if t + 1 < part.steps:
                found.append(arena.outputs[t % arena.slots, _exported(part.plan, t + 1), : arena.size].tobytes())
        self.t = t + 1
        return b"".join(found)

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """See :class:`exafield.engine.spmd.Program`."""
        return [part.outputs() for part in self.parts]


def _exported(plan: Plan, t: int) -> Integers:
    """The columns of which a rank sends outputs before row t."""
    exchange = plan.exchange(t)
    if not hasattr(exchange, "exported"):
        object.__setattr__(exchange, "exported", np.unique(exchange.sent))
    exported: Integers = exchange.exported  # type: ignore[attr-defined]
    return exported


def _links(works: Sequence[Work], size: int) -> list[list[int]]:
    """From whom each rank ever takes outputs."""
    found: list[set[int]] = [set() for _ in range(size)]
    for rank in range(size):
        for work in works:
            plan = Plan(work.graph, rank, size)
            for exchange in {id(e): e for e in map(plan.exchange, range(1, work.graph.steps))}.values():
                found[rank].update(exchange.source.tolist())
    return [sorted(sources) for sources in found]


class _Blocks:
    """A session: actors, and the graph that was compiled last."""

    def __init__(self, up: System) -> None:
        self._up, self.workers = up, up.workers
        actor = up.ray.remote(num_cpus=1, max_restarts=0)(Block)
        self.actors = [actor.remote(rank, up.workers) for rank in range(up.workers)]
        self._graph: Any = None
        self._key: Any = None

    def compiled(self, rows: int, links: list[list[int]], size: int) -> Any:
        """The calls of `rows` rows; `size` is that of the largest message."""
        from ray.dag import InputNode, MultiOutputNode

        if self._key != (rows, links, size):
            self.close()
            with InputNode() as begin:
                made = [actor.first.bind(begin) for actor in self.actors]
                for k in range(rows):
                    # After the last row of the graph only its outputs are taken: the next call goes on from there.
                    name = "next" if k + 1 < rows else "take"
                    made = [
                        getattr(actor, name).bind(made[rank], *(made[other] for other in links[rank]))
                        for rank, actor in enumerate(self.actors)
                    ]
                nodes = MultiOutputNode(made)
            self._graph = nodes.experimental_compile(_submit_timeout=_LONGEST, _buffer_size_bytes=size + 4096)
            self._key = (rows, links, size)
        return self._graph

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        links = _links(works, self.workers)
        blob = pickle.dumps(tuple(works))
        steps = max(work.graph.steps for work in works)
        rows = -(-steps // -(-steps // _ROWS))  # calls of the same length
        widest = sum(-(-work.graph.width // self.workers) * work.body.output_bytes for work in works)
        with self._watched():
            memory = self._all([a.prepare.remote(blob, s) for a, s in zip(self.actors, links, strict=True)])
            graph = self.compiled(rows, links, widest)
            # Beyond the last row nothing is run: the first call sets up the channels.
            self._up.ray.get(graph.execute(steps), timeout=_LONGEST)
            elapsed = [self._once(graph, steps, rows) for _ in range(passes)]
            # While a graph is compiled its actors do nothing else: ordinary calls wait until it is torn down.
            self.close()
            parts = self._all([actor.outputs.remote() for actor in self.actors])
        outputs = []
        for g, work in enumerate(works):
            found = {column: row for part in parts for column, row in part[g].items()}
            outputs.append(np.array([found[c] for c in work.graph.columns(work.graph.steps - 1)], dtype=np.uint8))
        shares = (Share(f"{self.workers} actors", sum(len(work.graph) for work in works), max(memory)),)
        return Outcome(tuple(elapsed), tuple(outputs), shares)

    def _once(self, graph: Any, steps: int, rows: int) -> float:
        get = self._up.ray.get
        began = time.perf_counter()
        open_calls: list[Any] = []
        for t in range(0, steps, rows):
            open_calls.append(graph.execute(t))
            if len(open_calls) >= _AHEAD:
                get(open_calls.pop(0), timeout=_LONGEST)
        for call in open_calls:
            get(call, timeout=_LONGEST)
        return time.perf_counter() - began

    def _all(self, refs: list[Any]) -> list[Any]:
        return list(self._up.ray.get(refs))

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
            self._key = None
            over.set()
            thread.join()
            raise found[0] if found else self._up.error(error) from error
        finally:
            over.set()

    def close(self) -> None:
        """Ends the compiled graph; its actors go on."""
        if self._graph is not None:
            graph, self._graph, self._key = self._graph, None, None
            with suppress(Exception):  # actors that are gone cannot be told
                graph.teardown()


@dataclass(frozen=True, slots=True)
class RayCompiledEngine:
    """Ray actors in a compiled graph, on this machine or on a cluster.

    Args:
        workers: number of actors; None: one for each core (of the cluster).
        address: of a running cluster, as ray.init takes it; its nodes must be able to import exafield.
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
