"""torch.distributed.rpc: workers own blocks of columns, and call each other to deliver outputs."""

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine.gloo import second
from exafield.engine.graph import Integers, Work
from exafield.engine.mpi import Part
from exafield.engine.spmd import Crew, cores, crew
from exafield.requirement import require

# (graph, row, worker that delivers).
_Key = tuple[int, int, int]
# Stands for the graph in the keys of a barrier.
_BARRIER = -1


class _Boxes:
    """What was delivered, or is waited for; made by whoever comes first, the deliverer or the one who waits."""

    def __init__(self, future: Any) -> None:
        self._future, self._lock = future, threading.Lock()
        self._futures: dict[_Key, Any] = {}

    def put(self, key: _Key, value: Any) -> None:
        """Completes the future of that key."""
        with self._lock:
            future = self._futures.setdefault(key, self._future())
        future.set_result(value)

    def take(self, key: _Key) -> Any:
        """Waits for what is delivered under that key."""
        with self._lock:
            future = self._futures.setdefault(key, self._future())
        value = future.wait()
        with self._lock:
            del self._futures[key]
        return value


# Remote calls are plain functions, which find their worker's boxes here.
_boxes: _Boxes


def _deliver(number: int, t: int, sender: int, outputs: Any) -> None:
    """What other workers call here."""
    _boxes.put((number, t, sender), outputs)


def _by_rank(columns: Integers, ranks: Integers) -> list[tuple[int, Integers]]:
    return [(int(rank), columns[ranks == rank]) for rank in np.unique(ranks)]


class Peer:
    """A worker: per row, deliver what others take by one rpc_async each, take what they deliver, run the own columns.

    Outputs are pushed rather than asked for, which saves half of each round trip; that a push has arrived is looked
    at after the last row only.
    """

    def __init__(self, rank: int, size: int, folder: str) -> None:
        import torch
        from torch.distributed import rpc

        torch.set_num_threads(1)
        global _boxes
        _boxes = _Boxes(torch.futures.Future)
        self.rank, self.size = rank, size
        self._from_numpy, self._wait_all = torch.from_numpy, torch.futures.wait_all
        self._rpc, self._async = rpc, rpc.rpc_async
        self.parts: list[Part] = []
        self.tasks = self._meetings = 0
        self._rows: list[list[tuple[list[Any], list[Any]]]] = []
        # A file in the crew's private folder: no port is taken for meeting. A slow task is no error: no time limit.
        options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{folder}/store", rpc_timeout=0)
        rpc.init_rpc(f"worker{rank}", rank=rank, world_size=size, rpc_backend_options=options)
        self._names = [rpc.get_worker_info(f"worker{other}") for other in range(size)]

    def prepare(self, works: Sequence[Work]) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self.parts = [Part(work, self.rank, self.size) for work in works]
        self.tasks = sum(part.tasks for part in self.parts)
        self._rows = [[self._exchange(part, t) for t in range(part.steps)] for part in self.parts]
        self._barrier()

    def _exchange(self, part: Part, t: int) -> tuple[list[Any], list[Any]]:
        if not t:
            return [], []
        exchange = part.plan.exchange(t)
        return _by_rank(exchange.received, exchange.source), _by_rank(exchange.sent, exchange.to)

    def _send(self, to: int, number: int, t: int, outputs: Any) -> Any:
        return self._async(self._names[to], _deliver, args=(number, t, self.rank, outputs))

    def _barrier(self) -> None:
        """All tell worker 0 that they are here, and hear from it that all are."""
        self._meetings += 1
        self._send(0, _BARRIER, 2 * self._meetings, None).wait()
        if self.rank == 0:
            for other in range(self.size):
                _boxes.take((_BARRIER, 2 * self._meetings, other))
            self._wait_all([self._send(r, _BARRIER, 2 * self._meetings + 1, None) for r in range(self.size)])
        _boxes.take((_BARRIER, 2 * self._meetings + 1, 0))

    def run(self) -> float:
        """See :class:`exafield.engine.spmd.Program`."""
        from_numpy, send, take = self._from_numpy, self._send, _boxes.take
        parts = list(zip(self.parts, self._rows, strict=True))
        pushed = []
        with second("torch-rpc"):
            self._barrier()
            began = time.perf_counter()
            for t in range(max(part.steps for part in self.parts)):
                for number, (part, rows) in enumerate(parts):
                    if t >= part.steps:
                        continue
                    receives, sends = rows[t]
                    arena, columns = part.arena, part.columns
                    row, size = arena.outputs[(t - 1) % arena.slots], arena.size
                    for rank, own in sends:
                        # A copy, since a tensor is read while it travels, and the slot is written again in two rows.
                        pushed.append(send(rank, number, t, from_numpy(row[own, :size])))
                    for rank, others in receives:
                        row[others, :size] = take((number, t, rank)).numpy()
                    arena.run(t, columns.start, columns.stop)
            self._wait_all(pushed)
            self._barrier()
            return time.perf_counter() - began

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """See :class:`exafield.engine.spmd.Program`."""
        return [part.outputs() for part in self.parts]

    def close(self) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        # Without a limit, it would wait for lost workers too [s].
        self._rpc.shutdown(graceful=True, timeout=5)


@dataclass(frozen=True)
class TorchRpcEngine:
    """Workers on this machine that call each other over loopback.

    Args:
        workers: number of workers; None: one for each core.
    """

    workers: int | None = None

    def open(self) -> AbstractContextManager[Crew]:
        """See :class:`exafield.engine.GraphEngine`."""
        require("numba", extra="light")
        size = self.workers or len(cores())
        settings = {"TP_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
        return crew("torch-rpc", "exafield.engine.torch_rpc:Peer", size, environment=settings)
