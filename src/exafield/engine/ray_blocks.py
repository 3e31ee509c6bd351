"""Ray actors that own blocks of columns: what runs in their processes, and who sends to whom."""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from exafield.engine.graph import Work
from exafield.engine.mpi import Part
from exafield.engine.plan import Plan
from exafield.engine.spmd import bind, peak_memory


class Block:
    """An actor: runs its columns row by row. Messages are the outputs that others take, as bytes."""

    def __init__(self, rank: int, size: int) -> None:
        bind(rank)
        self.rank, self.size, self.t = rank, size, 0
        self.parts: list[Part] = []
        self.leaving: list[list[memoryview]] = []
        self.coming: list[list[list[memoryview]]] = []
        self.reply: Any = None

    def _prepare(self, works: bytes, sources: list[int]) -> int:
        """Makes ready what is not timed; the memory that it takes.

        Args:
            works: pickled.
            sources: ranks whose messages this one is given, in this order.
        """
        self.parts = [Part(work, self.rank, self.size) for work in pickle.loads(works)]
        steps = range(max(part.steps for part in self.parts))
        # Where outputs lie, by row: what is sent after it, and where what each source sends goes before it.
        own = [_Places(part, part.plan) for part in self.parts]
        self.leaving = [[view for each in own for view in each(t + 1)] for t in steps]
        others = [[_Places(part, Plan(part.plan.graph, rank, self.size)) for part in self.parts] for rank in sources]
        self.coming = [[[view for each in source for view in each(t)] for source in others] for t in steps]
        for part in self.parts:
            part.arena.run(0, 0, 0)  # no columns: loads the machine code
        return peak_memory()

    def first(self, request: int | tuple[bytes, list[list[int]]] | None) -> bytes:
        """Does what is asked for: begins at a row; or gets ready for works, with the sources of all ranks; or, None,
        tells the outputs."""
        self.reply = None
        if isinstance(request, int):
            self.t = request
        else:
            if request is None:
                self.reply = [part.outputs() for part in self.parts]
            else:
                self.reply = self._prepare(request[0], request[1][self.rank])
            self.t = len(self.leaving)  # no row is run
        return self._run()

    def next(self, *messages: bytes) -> bytes:
        """Takes the outputs of the row before, and runs a row."""
        self._take(*messages)
        return self._run()

    def last(self, *messages: bytes) -> Any:
        """Takes the outputs of the row before, and answers the request."""
        self._take(*messages)
        return self.reply

    def _take(self, *messages: bytes) -> None:
        # A message more than there are sources is its own, and known.
        t = self.t
        if t < len(self.coming):
            for message, places in zip(messages, self.coming[t], strict=False):
                begin = 0
                for place in places:
                    end = begin + len(place)
                    place[:] = message[begin:end]
                    begin = end

    def _run(self) -> bytes:
        t = self.t
        self.t = t + 1
        if t >= len(self.leaving):
            return b""
        for part in self.parts:
            if t < part.steps:
                part.arena.run(t, part.columns.start, part.columns.stop)
        return b"".join(self.leaving[t])


class _Places:
    """Where a rank, whose plan it is, has the outputs of which others take some for a row.

    All that it sends to any other, so that there is one message for all of them.
    """

    def __init__(self, part: Part, plan: Plan) -> None:
        self._part, self._plan = part, plan
        self._known: dict[tuple[int, int], list[memoryview]] = {}  # rows of one kind share them

    def __call__(self, t: int) -> list[memoryview]:
        if not 0 < t < self._part.steps:
            return []
        exchange, arena = self._plan.exchange(t), self._part.arena
        key = (id(exchange), (t - 1) % arena.slots)
        if key not in self._known:
            self._known[key] = [arena.output(t - 1, column).data for column in np.unique(exchange.sent).tolist()]
        return self._known[key]


def links(works: Sequence[Work], size: int) -> list[list[int]]:
    """From whom each rank ever takes outputs."""
    found: list[set[int]] = [set() for _ in range(size)]
    for rank in range(size):
        for work in works:
            plan = Plan(work.graph, rank, size)
            for exchange in {id(e): e for e in map(plan.exchange, range(1, work.graph.steps))}.values():
                found[rank].update(exchange.source.tolist())
    return [sorted(sources) for sources in found]


def program(actors: Sequence[Any], rows: int, sources: list[list[int]]) -> Any:
    """The calls of one request and `rows` rows, to be compiled: an actor makes its calls in this order."""
    from ray.dag import InputNode, MultiOutputNode

    # An actor's own message is for calls that take no other, and for messages that nobody else takes: Ray wants each
    # call to take something, and to be taken.
    read = {other for each in sources for other in each}
    takes = [[*each] if each and rank in read else [*each, rank] for rank, each in enumerate(sources)]
    with InputNode() as begin:
        made = [actor.first.bind(begin) for actor in actors]
        for k in range(rows):
            # After the last row of the graph only its outputs are taken: the next call goes on from there.
            name = "next" if k + 1 < rows else "last"
            made = [
                getattr(actor, name).bind(*(made[other] for other in takes[rank])) for rank, actor in enumerate(actors)
            ]
        return MultiOutputNode(made)
