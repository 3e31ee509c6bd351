"""Private process groups: the only place that touches torch's process-group objects.

A channel is made on all its ranks together and driven by one thread at a time, but for `receive`, which may
block in a thread of its own. The default process group of torch.distributed is never used, so a program that has
one of its own is not disturbed.
"""

import json
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions, AllToAllOptions

Op = Literal["sum", "max"]

_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


@runtime_checkable
class Pending(Protocol):
    """A collective under way."""

    def wait(self, timeout: float | None = None) -> bool:
        """Returns True when the result is there (on CUDA: when the current stream will wait for it).

        False if that has not come about within `timeout` [s]; it may then be waited for again.

        Raises:
            RuntimeError: it went wrong.
        """
        ...

    def on_done(self, callback: Callable[[BaseException | None], None]) -> None:
        """Calls `callback` once, from any thread, with the error or None."""
        ...


@runtime_checkable
class Channel(Protocol):
    """What :class:`exafield.World` and the reducer need of a process group."""

    rank: int
    size: int

    def all_reduce(self, tensor: Tensor, op: Op = "sum") -> Pending:
        """Reduces `tensor` in place over all ranks."""
        ...

    def broadcast(self, tensor: Tensor, root: int = 0) -> Pending:
        """Overwrites `tensor` in place by that of `root`."""
        ...

    def reduce(self, tensor: Tensor, root: int) -> Pending:
        """Sums `tensor` over all ranks into that of `root`; elsewhere its contents are undefined afterwards."""
        ...

    def all_to_all(self, out: Tensor, tensor: Tensor) -> Pending:
        """Cuts `tensor` into one equal chunk per rank; chunk `r` of `out` becomes this rank's chunk of rank `r`."""
        ...

    def gather_into(self, out: Tensor, tensor: Tensor) -> Pending:
        """Fills `out` with the tensors of all ranks (equal sizes), in rank order."""
        ...

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks (equal shapes), in rank order."""
        ...

    def send(self, to: int, tensor: Tensor) -> None:
        """Hands `tensor` over for `to`; does not wait for the receiver."""
        ...

    def settle(self, keep: int = 64) -> None:
        """Waits until all but the last `keep` messages sent have been taken; until then each holds its tensor."""
        ...

    def receive(self, tensor: Tensor, source: int | None = None) -> int:
        """Fills `tensor` with the next message from `source`, or from anyone, and returns the sender. Blocks.

        That `source` has ended is an error at once. Of a message from anyone nobody can know that it will not come:
        then it is up to :meth:`exafield.World.check`, or to the time-out.
        """
        ...

    def close(self) -> None:
        """Waits until all sends have been taken, and ends the group's threads. Idempotent."""
        ...


class _Done:
    """A finished collective."""

    def wait(self, timeout: float | None = None) -> bool:
        return True

    def on_done(self, callback: Callable[[BaseException | None], None]) -> None:
        callback(None)


class LoopbackChannel:
    """One process alone, or one process standing for `size` identical ones in lockstep."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def all_reduce(self, tensor: Tensor, op: Op = "sum") -> Pending:
        if op == "sum" and self.size > 1:
            tensor.mul_(self.size)
        return _Done()

    def broadcast(self, tensor: Tensor, root: int = 0) -> Pending:
        return _Done()

    def reduce(self, tensor: Tensor, root: int) -> Pending:
        return self.all_reduce(tensor)

    def all_to_all(self, out: Tensor, tensor: Tensor) -> Pending:
        out.view(self.size, -1).copy_(tensor.view(self.size, -1)[self.rank])
        return _Done()

    def gather_into(self, out: Tensor, tensor: Tensor) -> Pending:
        out.view(self.size, -1).copy_(tensor.view(-1))
        return _Done()

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor.clone() for _ in range(self.size)]

    def send(self, to: int, tensor: Tensor) -> None:
        raise ValueError(f"no rank {to} to send to: this process is alone")

    def settle(self, keep: int = 64) -> None:
        return

    def receive(self, tensor: Tensor, source: int | None = None) -> int:
        raise ValueError("nobody to receive from: this process is alone")

    def close(self) -> None:
        return


class _Work:
    """A collective of torch under way. Keeps its tensors alive."""

    def __init__(self, work: Any, *keep: Tensor) -> None:
        self._work, self._keep, self._cuda = work, keep, keep[0].is_cuda

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is None or self._cuda:
            self._work.wait()
            return True
        try:
            # torch takes whole milliseconds, and 0 for ever.
            self._work.wait(timedelta(seconds=max(timeout, 0.001)))
        except RuntimeError:
            # Either it went wrong, or the time is over: torch tells by the same kind of error.
            if self._work.is_completed():
                self._work.wait()
                return True
            return False
        return True

    def on_done(self, callback: Callable[[BaseException | None], None]) -> None:
        def finished(future: Any) -> None:
            error: BaseException | None = None
            try:
                future.value()
            except Exception as caught:
                error = caught
            callback(error)

        self._work.get_future().add_done_callback(finished)


class ProcessGroupChannel:
    """A channel over gloo (any device's host) or NCCL (CUDA tensors).

    Args:
        store: rendezvous store; its prefix must be this channel's alone.
        timeout: of every collective [s].
        closed: is told when the channel has been closed, with its `close`.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        timeout: float,
        backend: Literal["gloo", "nccl"] = "gloo",
        closed: Callable[[Callable[[], None]], None] = lambda close: None,
    ) -> None:
        self.rank, self.size, self._closed = rank, size, closed
        limit = timedelta(seconds=timeout)
        if backend == "gloo":
            self._group: Any = dist.ProcessGroupGloo(store, rank, size, limit)
        else:
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = limit
            self._group = dist.ProcessGroupNCCL(store, rank, size, options)
        self._sends: deque[tuple[Any, Tensor]] = deque()

    def all_reduce(self, tensor: Tensor, op: Op = "sum") -> Pending:
        options = dist.AllreduceOptions()
        options.reduceOp = _OPS[op]  # type: ignore[assignment]  # torch types the enum as another class
        return _Work(self._group.allreduce([tensor], options), tensor)

    def broadcast(self, tensor: Tensor, root: int = 0) -> Pending:
        options = dist.BroadcastOptions()
        options.rootRank = root
        options.rootTensor = 0
        return _Work(self._group.broadcast([tensor], options), tensor)

    def reduce(self, tensor: Tensor, root: int) -> Pending:
        options = dist.ReduceOptions()
        options.rootRank = root
        return _Work(self._group.reduce([tensor], options), tensor)

    def all_to_all(self, out: Tensor, tensor: Tensor) -> Pending:
        return _Work(self._group.alltoall_base(out, tensor, [], [], AllToAllOptions()), out, tensor)

    def gather_into(self, out: Tensor, tensor: Tensor) -> Pending:
        return _Work(self._group._allgather_base(out, tensor, AllgatherOptions()), out, tensor)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        out = [torch.empty_like(tensor) for _ in range(self.size)]
        self._group.allgather([out], [tensor.contiguous()]).wait()
        return out

    def send(self, to: int, tensor: Tensor) -> None:
        self._sends.append((self._group.send([tensor], to, 0), tensor))

    def settle(self, keep: int = 64) -> None:
        while len(self._sends) > keep:
            self._sends.popleft()[0].wait()

    def receive(self, tensor: Tensor, source: int | None = None) -> int:
        if source is not None:
            self._group.recv([tensor], source, 0).wait()
            return source
        work = self._group.recv_anysource([tensor], 0)
        work.wait()
        return int(work._source_rank())

    def close(self) -> None:
        self.settle(0)
        # The destructor joins the group's threads. Left to the end of the interpreter, one of them could still
        # want the interpreter for a callback, which ends the process by an abort.
        self._group = None
        self._closed(self.close)


def gather_json(channel: Channel, obj: object) -> list[Any]:
    """Every rank's `obj` (anything JSON can hold), in rank order, on every rank."""
    payload = bytearray(json.dumps(obj).encode())
    lengths = [int(n) for n in channel.all_gather(torch.tensor([len(payload)]))]
    padded = torch.zeros(max(1, *lengths), dtype=torch.uint8)
    if payload:
        padded[: len(payload)] = torch.frombuffer(payload, dtype=torch.uint8)
    rows = channel.all_gather(padded)
    return [json.loads(bytes(row[:n].tolist())) for row, n in zip(rows, lengths, strict=True)]


def broadcast_json(channel: Channel, obj: object, root: int = 0) -> Any:
    """`root`'s `obj` (anything JSON can hold) on every rank."""
    payload = bytearray(json.dumps(obj).encode()) if channel.rank == root else bytearray()
    length = torch.tensor([len(payload)])
    channel.broadcast(length, root).wait()
    data = torch.zeros(int(length), dtype=torch.uint8)
    if channel.rank == root:
        data = torch.frombuffer(payload, dtype=torch.uint8)
    channel.broadcast(data, root).wait()
    return json.loads(bytes(data.tolist()))
