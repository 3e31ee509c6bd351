"""torch.distributed.rpc: workers own blocks of columns, and call each other to deliver outputs."""

import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from exafield.engine.gloo import second
from exafield.engine.peers import Peer
from exafield.engine.spmd import Crew, cores, crew
from exafield.requirement import require

# (graph, row, worker that delivers).
_Key = tuple[int, int, int]


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


class RemotePeer(Peer):
    """A rank that sends by one rpc_async to each rank that takes something.

    Outputs are pushed rather than asked for, which saves half of each round trip; that a push has arrived is looked
    at after the last row only.
    """

    def __init__(self, rank: int, size: int, folder: str) -> None:
        import torch
        from torch.distributed import rpc

        torch.set_num_threads(1)
        global _boxes
        _boxes = _Boxes(torch.futures.Future)
        super().__init__(rank, size)
        self._from_numpy, self._wait_all = torch.from_numpy, torch.futures.wait_all
        self._rpc, self._async = rpc, rpc.rpc_async
        self._pushed: list[Any] = []
        # A file in the crew's private folder: no port is taken for meeting. A slow task is no error: no time limit.
        options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{folder}/store", rpc_timeout=0)
        rpc.init_rpc(f"worker{rank}", rank=rank, world_size=size, rpc_backend_options=options)
        self._names = [rpc.get_worker_info(f"worker{other}") for other in range(size)]

    def send(self, to: int, number: int, t: int, outputs: Any) -> None:
        """See :class:`exafield.engine.peers.Peer`."""
        tensor = None if outputs is None else self._from_numpy(outputs)
        self._pushed.append(self._async(self._names[to], _deliver, args=(number, t, self.rank, tensor)))

    def receive(self, source: int, number: int, t: int) -> Any:
        """See :class:`exafield.engine.peers.Peer`."""
        outputs = _boxes.take((number, t, source))
        return None if outputs is None else outputs.numpy()

    def flush(self) -> None:
        """See :class:`exafield.engine.peers.Peer`."""
        self._wait_all(self._pushed)
        self._pushed = []

    def guard(self) -> AbstractContextManager[None]:
        """See :class:`exafield.engine.peers.Peer`."""
        return second("torch-rpc")

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
        return crew("torch-rpc", "exafield.engine.torch_rpc:RemotePeer", size, environment=settings)
