"""World: the processes we have.

``World.from_env()`` is the same call on a laptop, under torchrun, srun, mpirun or our own launcher.
"""

import atexit
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from exafield.channel import (
    Channel,
    LoopbackChannel,
    Op,
    ProcessGroupChannel,
    broadcast_json,
    gather_json,
)
from exafield.environment import Place, detect
from exafield.message import Topology
from exafield.watchdog import Watchdog, WorldAborted

__all__ = ["World", "WorldAborted"]

Kind = Literal["real", "single", "fake"]

# Collectives give up after this long [s]; gloo and NCCL then raise. Our choice: longer than any checkpoint.
TIMEOUT = 600.0
# Silence after which a rank is taken for dead [s]; our choice, above a node's worst swap or disk pause.
PATIENCE = 60.0


# Worlds made by this process: each has its own keys in a store that may outlive it.
_worlds = 0


class World:
    """A set of processes: who we are, who shares our node, and a way to talk.

    Made by :meth:`from_env`, :meth:`single`, :meth:`fake` or :meth:`split`. A context manager: leaving it by an
    exception tells the other ranks, so that they end with the reason instead of waiting.

    Attributes:
        rank, size: this process's number and how many there are.
        device: where tensors of this rank live.
        topology: which ranks share a node.
        kind: "real", "single" (one process) or "fake" (one process that stands for `size` identical ones).
        control: the world's own channel, for the main thread's collectives on host memory.
        parent_ranks: this world's ranks as numbered in the world it was split from.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        *,
        kind: Kind,
        device: torch.device,
        topology: Topology,
        store: Any = None,
        timeout: float = TIMEOUT,
        watchdog: Watchdog | None = None,
        parent_ranks: tuple[int, ...] | None = None,
        origins: tuple[int, ...] | None = None,
        closers: "list[Callable[[], None]] | None" = None,
        path: str = "world",
    ) -> None:
        self.rank, self.size, self.kind, self.device = rank, size, kind, device
        self.topology, self.timeout, self._watchdog = topology, timeout, watchdog
        self.parent_ranks = parent_ranks or tuple(range(size))
        self._origins = origins or tuple(range(size))
        self._is_root = parent_ranks is None
        self._store, self._made, self._closed, self._path = store, 0, False, path
        # Shared with sub-worlds, so that what was opened is closed in one order everywhere.
        self._closers: list[Callable[[], None]] = [] if closers is None else closers
        self.control = self.channel()

    # ---- making one ----

    @classmethod
    def from_env(
        cls,
        device: str | torch.device | None = None,
        *,
        timeout: float = TIMEOUT,
        patience: float = PATIENCE,
        threads: int | None = None,
    ) -> "World":
        """The world that the launcher has set up, or a single process.

        Args:
            device: default: the GPU with this process's number on its node if torch sees one, else the CPU.
            timeout: of every collective [s].
            patience: silence after which another rank is taken for dead [s].
            threads: torch threads of this process; default: one on a CPU rank among several, unless
                OMP_NUM_THREADS is set. More ranks than cores would otherwise fight for them.
        Raises:
            ValueError: the launcher's environment is incomplete or contradicts itself.
        """
        place = detect(os.environ)
        chosen = _device(device, place.local_rank)
        if threads is not None:
            torch.set_num_threads(threads)
        elif place.size > 1 and chosen.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)
        if place.size == 1:
            return cls.single(chosen)
        global _worlds
        _worlds += 1
        store = _prefixed(_rendezvous(place, timeout), f"world{_worlds}")
        watchdog = Watchdog(_client(store, "watchdog"), place.rank, place.size, patience)
        probe = ProcessGroupChannel(_prefixed(store, "topology"), place.rank, place.size, timeout)
        # EXAFIELD_NODE lets several "nodes" be set up on one machine.
        names = gather_json(probe, os.environ.get("EXAFIELD_NODE") or socket.gethostname())
        probe.close()
        nodes: dict[str, list[int]] = {}
        for rank, name in enumerate(names):
            nodes.setdefault(name, []).append(rank)
        topology = Topology(tuple(tuple(ranks) for ranks in nodes.values()))
        world = cls(
            place.rank,
            place.size,
            kind="real",
            device=chosen,
            topology=topology,
            store=store,
            timeout=timeout,
            watchdog=watchdog,
        )
        atexit.register(world._at_exit)
        return world

    @classmethod
    def single(cls, device: str | torch.device = "cpu") -> "World":
        """This process alone."""
        return cls(0, 1, kind="single", device=torch.device(device), topology=Topology(((0,),)))

    @classmethod
    def fake(cls, size: int, rank: int = 0, ranks_per_node: int = 1) -> "World":
        """One process standing for `size` identical ones: sums are `size` times what this rank gives."""
        if not 0 <= rank < size:
            raise ValueError(f"rank must lie in 0..{size - 1}, got {rank}")
        topology = Topology.regular(size, ranks_per_node)
        return cls(rank, size, kind="fake", device=torch.device("cpu"), topology=topology)

    def split(self, groups: Sequence[Sequence[int]]) -> list["World | None"]:
        """Makes a sub-world of each group of ranks. Collective: every rank gives the same groups.

        Args:
            groups: ranks of this world; groups may overlap and need not cover it.
        Returns:
            one entry per group: the sub-world, or None if this rank is not in it. Rank `i` of a sub-world is
            the i-th entry of its group.
        Raises:
            ValueError: a group is empty, repeats a rank, or names one that does not exist; ranks disagree.
        """
        cleaned = [tuple(int(r) for r in group) for group in groups]
        for group in cleaned:
            if not group or len(set(group)) != len(group) or not all(0 <= r < self.size for r in group):
                raise ValueError(
                    f"cannot split ranks {list(group)} off a world of {self.size}: give each group at least one rank, "
                    f"each once, all in 0..{self.size - 1}"
                )
        said = [[list(g) for g in cleaned]] if self.kind == "fake" else self.all_gather_objects(cleaned)
        if any(other != said[0] for other in said):
            raise ValueError(f"ranks disagree on how to split the world: {said}")
        serial, self._made = self._made, self._made + 1
        return [
            self._sub_world(group, f"split{serial}.{index}") if self.rank in group else None
            for index, group in enumerate(cleaned)
        ]

    def _sub_world(self, group: tuple[int, ...], name: str) -> "World":
        nodes: dict[int, list[int]] = {}
        for number, rank in enumerate(group):
            nodes.setdefault(self.topology.node_of(rank), []).append(number)
        return World(
            group.index(self.rank),
            len(group),
            kind=self.kind if len(group) > 1 or self.kind == "fake" else "single",
            device=self.device,
            topology=Topology(tuple(tuple(ranks) for ranks in nodes.values())),
            store=None if self._store is None else _prefixed(self._store, name),
            timeout=self.timeout,
            watchdog=self._watchdog,
            parent_ranks=group,
            origins=tuple(self._origins[rank] for rank in group),
            closers=self._closers,
            path=f"{self._path}/{name}",
        )

    # ---- who shares our node ----

    @property
    def nodes(self) -> tuple[tuple[int, ...], ...]:
        """For each node the ranks on it."""
        return self.topology.nodes

    @property
    def node(self) -> int:
        """Index of this rank's node."""
        return self.topology.node_of(self.rank)

    @property
    def local_rank(self) -> int:
        """This rank's number on its node."""
        return self.nodes[self.node].index(self.rank)

    # ---- talking ----

    def channel(self, device: torch.device | None = None, *, timeout: float | None = None) -> Channel:
        """A new private process group. Collective; NCCL for a CUDA device, gloo otherwise."""
        if self.kind != "real":
            return LoopbackChannel(self.rank, self.size)
        serial, self._made = self._made, self._made + 1
        backend: Literal["gloo", "nccl"] = "nccl" if device is not None and device.type == "cuda" else "gloo"
        store = _prefixed(self._store, f"channel{serial}")
        channel = ProcessGroupChannel(store, self.rank, self.size, timeout or self.timeout, backend, self.forget)
        self._closers.append(channel.close)
        return channel

    def barrier(self) -> None:
        """Returns when every rank has come here."""
        self.all_reduce(torch.zeros(1))

    def all_reduce(self, tensor: Tensor, op: Op = "sum") -> None:
        """Reduces a tensor in place over all ranks (through host memory: for small things)."""
        self._collective(tensor, lambda host: self.control.all_reduce(host, op).wait())

    def broadcast(self, tensor: Tensor, root: int = 0) -> None:
        """Overwrites a tensor in place by that of `root` (through host memory)."""
        self._collective(tensor, lambda host: self.control.broadcast(host, root).wait())

    def all_gather_objects(self, obj: object) -> list[Any]:
        """Every rank's `obj`, in rank order. Only what JSON can hold travels, so nothing read executes code."""
        gathered: list[Any] = self.guarded(lambda: gather_json(self.control, obj))
        return gathered

    def broadcast_object(self, obj: object, root: int = 0) -> Any:
        """`root`'s `obj` on every rank. Only what JSON can hold travels."""
        return self.guarded(lambda: broadcast_json(self.control, obj, root))

    def _collective(self, tensor: Tensor, act: Any) -> None:
        host = tensor.detach().cpu().contiguous()
        self.guarded(lambda: act(host))
        if host.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(host)

    def guarded(self, act: Callable[[], Any]) -> Any:
        """Runs something that holds collectives; if it breaks because the run ended elsewhere, says so instead."""
        self.check()
        try:
            return act()
        except RuntimeError as error:
            self.fail(error)

    def fail(self, error: BaseException) -> NoReturn:
        """Turns a broken collective into an error that says what happened, and tells the other ranks."""
        reason = f"rank {self.rank}: a collective broke: {str(error).splitlines()[0] if str(error) else error!r}"
        self.abort(reason)
        raise WorldAborted(self._watchdog.reason or reason if self._watchdog else reason) from error

    # ---- what the others are doing ----

    def unique(self) -> str:
        """A word without blanks that all ranks of this world have in common, and nobody else. Collective."""
        serial, self._made = self._made, self._made + 1
        return f"{self._path}/{serial}"

    @property
    def origin(self) -> int:
        """This process's rank in the world that all sub-worlds come from."""
        return self._origins[self.rank]

    def answer(self, key: str, describe: Callable[[], Mapping[str, Any]] | None) -> None:
        """What other ranks are told that inquire about `key`, by a thread of its own; None ends that."""
        if self._watchdog is not None:
            self._watchdog.answer(key, describe)

    def inquire(self, key: str) -> dict[int, Mapping[str, Any] | None]:
        """What each rank of this world, by its origin, says about `key`; None for one that does not answer."""
        if self._watchdog is None:
            return {}
        return self._watchdog.inquire(key, self._origins)

    # ---- the end ----

    def check(self) -> None:
        """Raises WorldAborted if another rank gave up or died."""
        if self._watchdog is not None:
            self._watchdog.check()

    def abort(self, reason: str) -> None:
        """Tells every rank of the whole run to stop with `reason`."""
        if self._watchdog is not None:
            self._watchdog.abort(reason)

    def close(self) -> None:
        """Ends the world; waits for the other ranks to come here too. Sub-worlds end with their root."""
        if self._closed or not self._is_root:
            return
        if self._watchdog is None or self._watchdog.reason is None:
            self.barrier()
            while self._closers:
                self._closers.pop()()
            if self._watchdog is not None:
                self._watchdog.leave()
        self._closed = True

    def on_close(self, closer: Callable[[], None]) -> None:
        """Calls `closer` when the world ends well, last come first; every rank must ask in the same order."""
        self._closers.append(closer)

    def forget(self, closer: Callable[[], None]) -> None:
        """Takes back :meth:`on_close`: what `closer` would close is closed."""
        with suppress(ValueError):
            self._closers.remove(closer)

    def __enter__(self) -> "World":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif not isinstance(error, SystemExit) or error.code not in (None, 0):
            self.abort(f"rank {self.rank} ended by {type(error).__name__}: {error}")

    def _at_exit(self) -> None:
        if self._watchdog is None or self._closed:
            return
        error = getattr(sys, "last_value", None)
        if error is None and self._watchdog.reason is None:
            self.close()
            return
        # Process groups with work under way join their threads when destroyed, for as long as the collective
        # time-out. A world that did not end cleanly is therefore left without destructors.
        self.abort(f"rank {self.rank} ended by {type(error).__name__}: {error}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    def __repr__(self) -> str:
        return f"World(rank={self.rank}, size={self.size}, kind={self.kind!r}, device={str(self.device)!r})"


def _device(wanted: str | torch.device | None, local_rank: int) -> torch.device:
    if wanted is not None:
        return torch.device(wanted)
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def _rendezvous(place: Place, timeout: float) -> Any:
    """The key-value store all ranks meet in: the one in use already, the launcher's, or one on rank 0."""
    import datetime

    import torch.distributed as dist

    if dist.is_initialized():
        return dist.distributed_c10d._get_default_store()
    limit = datetime.timedelta(seconds=timeout)
    if place.launcher == "torchrun":
        from torch.distributed.rendezvous import rendezvous

        return next(iter(rendezvous("env://", place.rank, place.size, timeout=limit)))[0]
    return dist.TCPStore(  # type: ignore[attr-defined]
        place.master_addr, place.master_port, place.size, place.rank == 0, limit
    )


def _prefixed(store: Any, name: str) -> Any:
    from torch.distributed.distributed_c10d import PrefixStore

    return PrefixStore(f"exafield/{name}", store)


def _client(store: Any, name: str) -> Any:
    """A connection of its own to the same store: a waiting call on the first does not hold it up."""
    return _prefixed(store.clone() if hasattr(store, "clone") else store, name)
