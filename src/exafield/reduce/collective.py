"""Collectives: how one group of gradients is summed over all ranks.

Each has two faces: `schedule`, the messages it takes, for a machine to price; and `run`, which does it.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from exafield.channel import Channel, Pending
from exafield.message import Message, Phase, Topology


@runtime_checkable
class Collective(Protocol):
    """A choice of all-reduce."""

    def schedule(self, topology: Topology, nbytes: float) -> tuple[Phase, ...]:
        """The messages of summing `nbytes` on every rank, phase after phase."""
        ...

    def run(self, channel: Channel, buffer: Tensor) -> Pending:
        """Starts summing `buffer` in place over the channel's ranks."""
        ...


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

    def run(self, channel: Channel, buffer: Tensor) -> Pending:
        return channel.all_reduce(buffer)
