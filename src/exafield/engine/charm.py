"""Charm4py: a chare on each processing element has a block of columns; outputs travel through channels."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Client, Connection
from typing import Any, cast

from exafield.engine.peers import Peer
from exafield.engine.rank import serve
from exafield.engine.spmd import Crew, bind, cores, crew
from exafield.requirement import require

# How often an idle chare looks for orders [s], our choice.
_LOOK = 0.005


class Block(Peer):
    """What a chare does: it sends through channels, whose messages arrive in order.

    Args:
        channels: to the other chares, by their number.
    """

    def __init__(self, rank: int, size: int, channels: dict[int, Any]) -> None:
        super().__init__(rank, size)
        self._channels = channels

    def send(self, to: int, number: int, t: int, outputs: Any) -> None:
        """See :class:`exafield.engine.peers.Peer`."""
        self._channels[to].send(0 if outputs is None else outputs)

    def receive(self, source: int, number: int, t: int) -> Any:
        """See :class:`exafield.engine.peers.Peer`."""
        return self._channels[source].recv()


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
