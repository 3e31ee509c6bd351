"""ZeroMQ: each rank has a block of columns; outputs travel as multipart messages over local sockets."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine.graph import Integers, Work
from exafield.engine.mpi import Part
from exafield.engine.spmd import Crew, cores, crew
from exafield.requirement import require

# A socket and the frames of a message.
_Message = tuple[Any, list[memoryview]]


class Sockets:
    """A rank: per row, send one message to each rank that takes something, receive theirs, run the own columns.

    Each two ranks have a pair of DEALER sockets: like PAIR, but meant for other transports than threads, and made
    anew by the library if the connection breaks (zmq_socket(3)). Messages of one pair arrive in order, so they need
    no header.
    """

    def __init__(self, rank: int, size: int, folder: str) -> None:
        zmq: Any = require("zmq", extra="light")

        self._more = zmq.SNDMORE
        self._context = zmq.Context()
        self.rank, self.size = rank, size
        self.parts: list[Part] = []
        self.tasks = 0
        self._rows: list[list[tuple[list[_Message], list[_Message]]]] = []
        self._sockets: dict[int, Any] = {}
        for other in range(size):
            if other == rank:
                continue
            socket = self._sockets[other] = self._context.socket(zmq.DEALER)
            # No limit on what is under way: all ranks send before they receive, and must not wait for each other.
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.LINGER, 0)
            # The folder is the crew's own, which no other user may enter.
            address = f"ipc://{folder}/{min(rank, other)}-{max(rank, other)}"
            if rank < other:
                socket.bind(address)
            else:
                socket.connect(address)

    def prepare(self, works: Sequence[Work]) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self.parts = [Part(work, self.rank, self.size) for work in works]
        self.tasks = sum(part.tasks for part in self.parts)
        self._rows = [self._messages(part) for part in self.parts]
        self._barrier()

    def _messages(self, part: Part) -> list[tuple[list[_Message], list[_Message]]]:
        """What is received and sent before each row; rows of one kind share it."""
        made: dict[tuple[int, int], tuple[list[_Message], list[_Message]]] = {}
        rows: list[tuple[list[_Message], list[_Message]]] = [([], [])]
        for t in range(1, part.steps):
            exchange = part.plan.exchange(t)
            key = (id(exchange), (t - 1) % part.arena.slots)
            if key not in made:

                def frames(columns: Integers, ranks: Integers, t: int = t) -> list[_Message]:
                    return [
                        (self._sockets[r], [part.arena.output(t - 1, c).data for c in columns[ranks == r]])
                        for r in np.unique(ranks).tolist()
                    ]

                made[key] = frames(exchange.received, exchange.source), frames(exchange.sent, exchange.to)
            rows.append(made[key])
        return rows

    def _barrier(self) -> None:
        """All tell rank 0 that they are here, and hear from it that all are."""
        if self.rank:
            self._sockets[0].send(b"")
            self._sockets[0].recv()
            return
        for socket in self._sockets.values():
            socket.recv()
        for socket in self._sockets.values():
            socket.send(b"")

    def run(self) -> float:
        """See :class:`exafield.engine.spmd.Program`."""
        more = self._more
        parts = [
            (part.steps, rows, part.arena.run, part.columns.start, part.columns.stop)
            for part, rows in zip(self.parts, self._rows, strict=True)
        ]
        self._barrier()
        began = time.perf_counter()
        for t in range(max(part.steps for part in self.parts)):
            for steps, rows, run, first, last in parts:
                if t >= steps:
                    continue
                receives, sends = rows[t]
                for socket, frames in sends:
                    # Copied, since the library reads frames while they travel, and the slot is written again in two
                    # rows.
                    for frame in frames[:-1]:
                        socket.send(frame, more)
                    socket.send(frames[-1])
                for socket, frames in receives:
                    for frame in frames:
                        socket.recv_into(frame)
                run(t, first, last)
        self._barrier()
        return time.perf_counter() - began

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """See :class:`exafield.engine.spmd.Program`."""
        return [part.outputs() for part in self.parts]

    def close(self) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self._context.destroy(linger=0)


@dataclass(frozen=True)
class ZeromqEngine:
    """Ranks on this machine with sockets in a private folder.

    Args:
        workers: number of ranks; None: one for each core.
    """

    workers: int | None = None

    def open(self) -> AbstractContextManager[Crew]:
        """See :class:`exafield.engine.GraphEngine`."""
        require("zmq", extra="light")
        require("numba", extra="light")
        return crew("ZeroMQ", "exafield.engine.zeromq:Sockets", self.workers or len(cores()))
