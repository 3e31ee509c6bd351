"""torch.distributed with gloo: each rank has a block of columns; outputs travel as tensors on the arena's memory."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine import EngineError
from exafield.engine.graph import Integers, Work
from exafield.engine.mpi import Part
from exafield.engine.spmd import Crew, cores, crew
from exafield.requirement import require

# A slow task is no error, and the crew notices lost ranks sooner [days], our choice.
_PATIENCE = timedelta(days=7)
# How long a rank that lost another keeps silent [s], our choice.
_SILENCE = 2.0


def runs(columns: Integers, ranks: Integers) -> list[tuple[int, int, int]]:
    """Messages (rank, first column, column after the last): neighbouring columns of one rank travel together.

    Both sides of a pair of ranks find the same ones in the same order.
    """
    found: list[tuple[int, int, int]] = []
    for rank, column in sorted(zip(ranks.tolist(), columns.tolist(), strict=True)):
        if found and found[-1][0] == rank and found[-1][2] == column:
            found[-1] = (rank, found[-1][1], column + 1)
        else:
            found.append((rank, column, column + 1))
    return found


@contextmanager
def second(system: str) -> Iterator[None]:
    """Holds back what a rank says of a lost neighbour, so that the crew sees first which one ended."""
    try:
        yield
    except EngineError:
        raise
    except RuntimeError as error:
        time.sleep(_SILENCE)
        raise EngineError(f"{system}: another rank was lost: {error}") from error


class Gloo:
    """A rank: per row, wait, irecv for the next one, run the own columns, isend."""

    def __init__(self, rank: int, size: int, folder: str) -> None:
        import torch
        from torch import distributed

        torch.set_num_threads(1)
        self._from_numpy = torch.from_numpy
        self._world: Any = distributed
        # A file in the crew's private folder: nobody else can join, and no port is taken for meeting.
        store = self._world.FileStore(f"{folder}/store", size)
        self._world.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE)
        self.rank, self.size = rank, size
        self.parts: list[Part] = []
        self.tasks = 0
        self._messages: list[list[tuple[list[Any], list[Any]]]] = []

    def prepare(self, works: Sequence[Work]) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self.parts = [Part(work, self.rank, self.size) for work in works]
        self.tasks = sum(part.tasks for part in self.parts)
        self._messages = [self._rows(part) for part in self.parts]
        self._world.barrier()

    def _rows(self, part: Part) -> list[tuple[list[Any], list[Any]]]:
        """What is received and sent before each row, as (tensor, rank); rows of one kind share it."""
        made: dict[tuple[int, int], tuple[list[Any], list[Any]]] = {}
        rows: list[tuple[list[Any], list[Any]]] = [([], [])]
        for t in range(1, part.steps):
            exchange, slot = part.plan.exchange(t), (t - 1) % part.arena.slots
            key = (id(exchange), slot)
            if key not in made:
                of = part.arena.outputs[slot]
                made[key] = (
                    [(self._from_numpy(of[a:b]), r) for r, a, b in runs(exchange.received, exchange.source)],
                    [(self._from_numpy(of[a:b]), r) for r, a, b in runs(exchange.sent, exchange.to)],
                )
            rows.append(made[key])
        return rows

    def run(self) -> float:
        """See :class:`exafield.engine.spmd.Program`."""
        isend, irecv, barrier = self._world.isend, self._world.irecv, self._world.barrier
        parts = [
            (part.steps, messages, part.arena.run, part.columns.start, part.columns.stop)
            for part, messages in zip(self.parts, self._messages, strict=True)
        ]
        with second("gloo"):
            barrier()
            began = time.perf_counter()
            # What arrives for the next row, what left for this one, and what left for the one before.
            arriving: list[list[Any]] = [[] for _ in parts]
            leaving: list[list[Any]] = [[] for _ in parts]
            left: list[list[Any]] = [[] for _ in parts]
            for t in range(max(part.steps for part in self.parts)):
                for index, (steps, messages, run, first, last) in enumerate(parts):
                    if t >= steps:
                        continue
                    # The row writes what was sent from for the row before.
                    for request in arriving[index] + left[index]:
                        request.wait()
                    receives, sends = messages[t + 1] if t + 1 < steps else ([], [])
                    # Posted before the row is run: gloo asks the receiver first, who answers late while he computes.
                    arriving[index] = [irecv(tensor, rank) for tensor, rank in receives]
                    run(t, first, last)
                    left[index], leaving[index] = leaving[index], [isend(tensor, rank) for tensor, rank in sends]
            for request in [one for requests in left + leaving for one in requests]:
                request.wait()
            barrier()
            return time.perf_counter() - began

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """See :class:`exafield.engine.spmd.Program`."""
        return [part.outputs() for part in self.parts]

    def close(self) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self._world.destroy_process_group()


@dataclass(frozen=True)
class GlooEngine:
    """Ranks on this machine that talk over loopback.

    Args:
        workers: number of ranks; None: one for each core.
    """

    workers: int | None = None

    def open(self) -> AbstractContextManager[Crew]:
        """See :class:`exafield.engine.GraphEngine`."""
        require("numba", extra="light")
        size = self.workers or len(cores())
        return crew("gloo", "exafield.engine.gloo:Gloo", size, environment={"GLOO_SOCKET_IFNAME": "lo"})
