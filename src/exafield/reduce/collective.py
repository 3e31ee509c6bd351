"""Collectives: how one group of gradients is summed over all ranks.

Each has two faces: `schedule`, the messages it takes, for a machine to price; and `connect`, which opens the channels
to do it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from exafield.channel import Channel, Pending
from exafield.message import Message, Phase, Topology
from exafield.world import World


@runtime_checkable
class Links(Protocol):
    """The channels of one reduction, at work. Buffers are summed in the order of the calls, the same on all ranks."""

    def run(self, buffer: Tensor, gradients: int) -> Pending:
        """Starts summing `buffer` in place over all ranks.

        Args:
            buffer: flat; gradients (divided by the number of ranks already), then marks: whole numbers of which
                only matters whether their sum is 0.
            gradients: number of elements that are gradients.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What must be kept for a run to go on alike; mostly nothing."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a saved state."""
        ...

    def close(self) -> None:
        """Ends threads and channels. Idempotent."""
        ...


@runtime_checkable
class Collective(Protocol):
    """A choice of all-reduce."""

    def schedule(self, topology: Topology, nbytes: float) -> tuple[Phase, ...]:
        """The messages of summing `nbytes` on every rank, phase after phase."""
        ...

    def connect(self, world: World, device: torch.device) -> Links:
        """Opens the channels for buffers on `device`. Collective."""
        ...


class FlatLinks:
    """One channel, one all-reduce per buffer."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def run(self, buffer: Tensor, gradients: int) -> Pending:
        return self._channel.all_reduce(buffer)

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        return

    def close(self) -> None:
        self._channel.close()


@dataclass(frozen=True, slots=True)
class Flat:
    """One all-reduce over all ranks by the library (gloo, NCCL); priced as a ring.

    A ring of P ranks reduces and then gathers P chunks: 2(P-1) phases in which every rank sends 1/P of the
    bytes to the next (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 117, 2009).
    """

    def schedule(self, topology: Topology, nbytes: float) -> tuple[Phase, ...]:
        size = topology.size
        if size == 1:
            return ()
        # Ring neighbours node by node, so that only one message per node and phase leaves the node.
        ring = [rank for node in topology.nodes for rank in node]
        chunk = nbytes / size
        messages = tuple(Message(rank, after, chunk) for rank, after in zip(ring, [*ring[1:], ring[0]], strict=True))
        return (Phase(messages, repeat=2 * (size - 1)),)

    def connect(self, world: World, device: torch.device) -> Links:
        return FlatLinks(world.channel(device))
