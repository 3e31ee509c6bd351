"""Collectives: how one group of gradients is summed over all ranks.

Each has two faces: `schedule` and `stages`, the messages or the library calls it takes, for a machine to price; and
`connect`, which opens the channels to do it.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from exafield.channel import Pending
from exafield.message import Phase, Stage, Topology
from exafield.world import World


@runtime_checkable
class Links(Protocol):
    """The channels of one reduction, at work. Buffers are summed in the order of the calls, the same on all ranks."""

    def plan(self, groups: Sequence[str]) -> None:
        """Names the groups of gradients from now on; what was kept for others is dropped."""
        ...

    def zeros(self, numel: int, like: Tensor) -> Tensor:
        """A flat buffer to be summed, of the dtype and on the device of `like`: `run` takes no other."""
        ...

    def run(self, buffer: Tensor, gradients: int, group: str | None = None) -> Pending:
        """Starts summing `buffer` in place over all ranks.

        Args:
            buffer: flat; gradients (divided by the number of ranks already), then marks: whole numbers of which
                only matters whether their sum is 0.
            gradients: number of elements that are gradients.
            group: whose they are, if what is rounded off is to be kept for the next time.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What this rank must keep for a run to go on alike; mostly nothing."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a saved state, for the groups planned next."""
        ...

    def close(self) -> None:
        """Ends threads and channels. Idempotent."""
        ...


@runtime_checkable
class Collective(Protocol):
    """A choice of all-reduce."""

    def schedule(self, topology: Topology, nbytes: float) -> tuple[Phase, ...]:
        """The messages of summing `nbytes` of single-precision numbers on every rank, phase after phase."""
        ...

    def stages(self, topology: Topology, nbytes: float) -> tuple[Stage, ...]:
        """The same as the library calls that it takes, each when the one before is done."""
        ...

    def pieces(self, topology: Topology, nbytes: float) -> int:
        """Into how many pieces a buffer is cut on CPUs, so that the stages of several overlap."""
        ...

    def connect(self, world: World, device: torch.device) -> Links:
        """Opens the channels for buffers on `device`. Collective."""
        ...


def plain_zeros(numel: int, like: Tensor) -> Tensor:
    """A buffer wherever torch puts it, for links that do not mind."""
    return torch.zeros(numel, dtype=like.dtype, device=like.device)
