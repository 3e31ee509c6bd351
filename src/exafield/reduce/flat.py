"""Flat: every rank alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exafield.channel import Channel, LoopbackChannel, Pending
from exafield.message import Phase, Stage, Topology
from exafield.reduce.collective import Links, plain_zeros
from exafield.reduce.exchange import Compress, Exchange, Part, checked, pieces
from exafield.reduce.pipeline import Pipeline
from exafield.reduce.schedule import exchange, ring
from exafield.reduce.shared import connect, usable
from exafield.world import World


@dataclass(frozen=True, slots=True)
class Flat:
    """One all-reduce over all ranks.

    By the library (gloo, NCCL); on the CPU, where all ranks are on one node, through memory they share; or,
    compressed, by all-to-all and all-gather.

    Args:
        compress: what gradients wider than 16 bits travel as: "bf16" or "fp16"; sums are in single precision.
        feedback: what compression rounds off is added in the next step.
        shared: whether ranks on one node may reduce through shared memory; never with compression.
    """

    compress: Compress | None = None
    feedback: bool = False
    shared: bool = True

    def __post_init__(self) -> None:
        checked(self.compress, self.feedback)

    def schedule(self, topology: Topology, nbytes: float) -> tuple[Phase, ...]:
        size = topology.size
        if size == 1:
            return ()
        # Ring neighbours node by node, so that only one message per node and phase leaves the node.
        ranks = [rank for node in topology.nodes for rank in node]
        chunk = nbytes / size
        if self.compress is None:
            return ring(ranks, chunk, 2 * (size - 1))
        return (*exchange(ranks, chunk / 2), *ring(ranks, chunk / 2, size - 1))

    def stages(self, topology: Topology, nbytes: float) -> tuple[Stage, ...]:
        if topology.size == 1:
            return ()
        if self.compress is None:
            return (Stage("all_reduce", "world", nbytes),)
        return (Stage("all_to_all", "world", nbytes / 2), Stage("all_gather", "world", nbytes / 2))

    def pieces(self, topology: Topology, nbytes: float) -> int:
        return 1 if self.compress is None else pieces(round(nbytes / 4), topology.size)

    def connect(self, world: World, device: torch.device) -> Links:
        if self.compress is None or world.size == 1:
            links = connect(world) if self.shared and usable(world, device) else None
            return links or _Plain(world.channel(device))
        return _Compressed(self.compress, self.feedback, world, device)


class _Plain:
    """One channel, one all-reduce per buffer."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def plan(self, groups: Sequence[str]) -> None:
        return

    def zeros(self, numel: int, like: Tensor) -> Tensor:
        return plain_zeros(numel, like)

    def run(self, buffer: Tensor, gradients: int, group: str | None = None) -> Pending:
        return self._channel.all_reduce(buffer)

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        return

    def close(self) -> None:
        self._channel.close()


class _Compressed:
    """Two channels of all ranks, and an exchange over them."""

    def __init__(self, compress: Compress, feedback: bool, world: World, device: torch.device) -> None:
        self._size = world.size
        self._fake = world.size if world.kind == "fake" else 1
        # Identical ranks send identical numbers: the mean of what they send is what one sends.
        outward, inward = (LoopbackChannel() if self._fake > 1 else world.channel(device) for _ in range(2))
        self._channels = (outward, inward)
        self._exchange = e = Exchange(outward, inward, compress, feedback)
        threaded = world.kind == "real" and device.type != "cuda"
        self._pipeline = Pipeline("exafield-flat", (e.scatter, e.sum, self._end), threaded=threaded)

    def _end(self, part: Part) -> Sequence[Pending]:
        self._exchange.land(part)
        return ()

    def plan(self, groups: Sequence[str]) -> None:
        self._pipeline.settle()
        self._exchange.plan(groups)

    def zeros(self, numel: int, like: Tensor) -> Tensor:
        return plain_zeros(numel, like)

    def run(self, buffer: Tensor, gradients: int, group: str | None = None) -> Pending:
        if self._fake > 1:
            buffer.mul_(self._fake)
        return self._pipeline.run(Part(buffer, gradients, group).pieces(self._size))

    def state_dict(self) -> dict[str, Tensor]:
        self._pipeline.settle()
        return self._exchange.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._pipeline.settle()
        self._exchange.load_state_dict(state)

    def close(self) -> None:
        self._pipeline.close()
        for channel in self._channels:
            channel.close()
