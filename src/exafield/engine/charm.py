"""Charm4py: a chare on each processing element has a block of columns; outputs travel through channels."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Client, Connection
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from exafield.engine.graph import Work
from exafield.engine.mpi import Part
from exafield.engine.spmd import Crew, bind, cores, crew, serve
from exafield.requirement import require

# How often an idle chare looks for orders [s], our choice.
_LOOK = 0.005


class Block:
    """What a chare does: per row, send its outputs to those that take them, receive theirs, run the own columns.

    Args:
        channels: to the other chares, by their number.
    """

    def __init__(self, rank: int, size: int, channels: dict[int, Any]) -> None:
        self.rank, self.size, self._channels = rank, size, channels
        self.parts: list[Part] = []
        self.tasks = 0

    def prepare(self, works: Sequence[Work]) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self.parts = [Part(work, self.rank, self.size) for work in works]
        self.tasks = sum(part.tasks for part in self.parts)
        self._rows = [[self._exchange(part, t) for t in range(part.steps)] for part in self.parts]
        self._barrier()

    def _exchange(self, part: Part, t: int) -> tuple[list[Any], list[Any]]:
        """(channel, columns) of what is received and sent before row t."""
        if not t:
            return [], []
        exchange = part.plan.exchange(t)
        received, sent = (
            [(self._channels[r], columns[ranks == r]) for r in np.unique(ranks).tolist()]
            for columns, ranks in ((exchange.received, exchange.source), (exchange.sent, exchange.to))
        )
        return received, sent

    def _barrier(self) -> None:
        """All tell chare 0 that they are here, and hear from it that all are."""
        others = list(self._channels.values()) if self.rank == 0 else [self._channels[0]]
        if self.rank:
            others[0].send(0)
        for channel in others:
            channel.recv()
        if self.rank == 0:
            for channel in others:
                channel.send(0)

    def run(self) -> float:
        """See :class:`exafield.engine.spmd.Program`."""
        parts = list(zip(self.parts, self._rows, strict=True))
        self._barrier()
        began = time.perf_counter()
        for t in range(max(part.steps for part in self.parts)):
            for part, rows in parts:
                if t >= part.steps:
                    continue
                receives, sends = rows[t]
                arena, columns = part.arena, part.columns
                row, size = arena.outputs[(t - 1) % arena.slots], arena.size
                for channel, own in sends:
                    channel.send(row[own, :size])
                for channel, others in receives:
                    row[others, :size] = channel.recv()
                arena.run(t, columns.start, columns.stop)
        self._barrier()
        return time.perf_counter() - began

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """See :class:`exafield.engine.spmd.Program`."""
        return [part.outputs() for part in self.parts]

    def close(self) -> None:
        """See :class:`exafield.engine.spmd.Program`."""


class _Link:
    """The link to the crew, which lets the scheduler run while there are no orders: it is what sends messages off."""

    def __init__(self, link: Any, sleep: Callable[[float], None]) -> None:
        self.send, self._link, self._sleep = link.send, link, sleep

    def recv(self) -> Any:
        """The next order."""
        while not self._link.poll():
            self._sleep(_LOOK)
        return self._link.recv()


def main() -> None:
    """A processing element; its arguments are FOLDER SIZE."""
    from charm4py import Channel, Chare, Group, Reducer, charm, coro

    folder, size = sys.argv[1], int(sys.argv[2])

    class Rank(Chare):
        @coro  # type: ignore[untyped-decorator]
        def connect(self) -> None:
            """Opens the channels; nothing is sent yet."""
            rank = charm.myPe()
            self.channels = {r: Channel(self, remote=self.thisProxy[r]) for r in range(size) if r != rank}
            self.reduce(self.thisProxy.work, 0, Reducer.sum)

        @coro  # type: ignore[untyped-decorator]
        def work(self, _: int) -> None:
            """Does what the crew says."""
            rank = charm.myPe()
            bind(rank)
            with Client(f"{folder}/links", "AF_UNIX") as link:
                link.send(rank)
                serve(cast(Connection, _Link(link, charm.sleep)), Block(rank, size, self.channels), f"rank {rank}")
            charm.exit()

    def begin(_: list[str]) -> None:
        Group(Rank).connect()

    charm.start(begin, classes=[Rank])


def charmrun(command: list[str], size: int) -> list[list[str]]:
    """One charmrun for all, on this machine."""
    folder = command[3]
    program = ["-m", "exafield.engine.charm", folder, str(size)]
    return [[command[0], "-m", "charmrun.start", f"+p{size}", "++local", *program]]


@dataclass(frozen=True)
class CharmEngine:
    """Chares on this machine, one for each processing element.

    Args:
        workers: number of processing elements; None: one for each core.
    """

    workers: int | None = None

    def open(self) -> AbstractContextManager[Crew]:
        """See :class:`exafield.engine.GraphEngine`."""
        # Importing it here would start it here.
        if find_spec("charm4py") is None:
            raise ImportError("this needs the package 'charm4py', which is not installed: pip install charm4py")
        require("numba", extra="light")
        return crew("Charm4py", "exafield.engine.charm:Block", self.workers or len(cores()), charmrun)


if __name__ == "__main__":
    main()
