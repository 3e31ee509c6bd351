"""Exchange: an all-reduce that sends numbers of 16 bits and adds them up in single precision.

Each rank sums one chunk: it receives that chunk from everybody (all-to-all), adds up in single precision, and
sends the rounded mean to everybody (all-gather). A ring would round at every hop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from exafield.channel import Channel, Pending

Compress = Literal["bf16", "fp16"]

# Elements that each rank sums of one piece (our choice).
_CHUNK = 1 << 15

_WIRE = {"bf16": torch.bfloat16, "fp16": torch.float16}


def checked(compress: str | None, feedback: bool) -> None:
    """Raises ValueError unless this is a way to compress."""
    if compress not in (None, *_WIRE):
        raise ValueError(f"compress must be None, 'bf16' or 'fp16', got {compress!r}")
    if feedback and compress is None:
        raise ValueError("feedback=True keeps what compression rounds off: set compress='bf16' or 'fp16' as well")


def pieces(elements: int, ranks: int) -> int:
    """Into how many pieces a buffer is cut that so many ranks exchange on CPUs."""
    return max(1, round(elements / (ranks * _CHUNK)))


@dataclass(slots=True)
class Part:
    """What one rank gives to an exchange.

    Args:
        tensor: flat; gradients, then marks. Overwritten by the sums.
        gradients: how many of its elements are gradients.
        group: their name, under which what is rounded off is kept.
    """

    tensor: Tensor
    gradients: int
    group: str | None
    sent: Tensor = field(init=False)
    received: Tensor = field(init=False)

    def split(self, count: int) -> list["Part"]:
        """Cuts it into so many parts of about equal length, but into no empty ones."""
        length = self.tensor.numel()
        count = max(1, min(count, length))
        ends = [length * number // count for number in range(count + 1)]
        return [
            Part(
                self.tensor[start:end],
                min(max(self.gradients - start, 0), end - start),
                None if self.group is None else f"{self.group}/{number}",
            )
            for number, (start, end) in enumerate(pairwise(ends))
        ]

    def pieces(self, ranks: int) -> list["Part"]:
        """Cuts it for so many ranks to exchange, piece after piece, on CPUs.

        Then the stages of one buffer overlap, too, and gloo uses both directions of a link: two ranks tell each
        other in the same connection what they send and what they are ready for, and so would take turns.
        """
        return [self] if self.tensor.is_cuda else self.split(pieces(self.tensor.numel(), ranks))


class Exchange:
    """Three stages, for a :class:`exafield.reduce.pipeline.Pipeline`.

    What is sent is the tensor times the number of ranks: means over all ranks of the world, as the reducer gives them,
    thus travel as means over one node, in the range of a gradient however large the world is. A tensor that is no wider
    than the wire format travels in its own.

    With feedback, what a rank rounds off (when it sends, and when it has summed) is added the next time (Seide et
    al., Interspeech 2014; on both sides: Tang et al., DoubleSqueeze, arXiv:1905.05957). Marks are left alone, and so
    is what overflows.

    Args:
        outward, inward: channels of the same ranks, for the all-to-all and the all-gather.
    """

    def __init__(self, outward: Channel, inward: Channel, compress: Compress, feedback: bool) -> None:
        self._outward, self._inward = outward, inward
        self._size, self._rank = outward.size, outward.rank
        self._wire, self._feedback = _WIRE[compress], feedback
        # What was rounded off, by "sent" or "summed" and the group's name.
        self._owed: dict[str, Tensor] = {}
        self._spare: dict[tuple[int, torch.dtype], list[Tensor]] = {}

    # ---- the stages ----

    @torch.no_grad()
    def scatter(self, part: Part) -> Sequence[Pending]:
        """Rounds, and sends every chunk to the rank that sums it."""
        count = part.tensor.numel()
        wire = self._wire if part.tensor.element_size() > self._wire.itemsize else part.tensor.dtype
        whole = -(-count // self._size) * self._size
        part.sent, part.received = self._take(whole, wire, part), self._take(whole, wire, part)
        part.tensor.mul_(self._size)
        self._round(part, "sent", part.tensor, part.gradients, part.sent)
        part.sent[count:] = 0
        return [self._outward.all_to_all(part.received, part.sent)]

    @torch.no_grad()
    def sum(self, part: Part) -> Sequence[Pending]:
        """Adds up this rank's chunk, and sends the mean to all."""
        rows = part.received.view(self._size, -1)
        total = rows.sum(0, dtype=torch.promote_types(part.tensor.dtype, torch.float32)).div_(self._size)
        chunk = rows[self._rank]
        gradients = min(max(part.gradients - self._rank * chunk.numel(), 0), chunk.numel())
        self._round(part, "summed", total, gradients, chunk)
        return [self._inward.gather_into(part.sent, chunk)]

    @torch.no_grad()
    def land(self, part: Part) -> None:
        """Puts the sums in place."""
        part.tensor.copy_(part.sent[: part.tensor.numel()])
        for tensor in (part.sent, part.received):
            self._spare[tensor.numel(), tensor.dtype].append(tensor)

    def _take(self, count: int, wire: torch.dtype, part: Part) -> Tensor:
        spare = self._spare.setdefault((count, wire), [])
        return spare.pop() if spare else torch.empty(count, dtype=wire, device=part.tensor.device)

    def _round(self, part: Part, what: str, exact: Tensor, gradients: int, out: Tensor) -> None:
        """Rounds `exact` to the beginning of `out`; changes `exact` where feedback is on."""
        out = out[: exact.numel()]
        if not self._feedback or part.group is None or out.dtype == exact.dtype or not gradients:
            out.copy_(exact)
            return
        key = f"{what} {part.group}"
        owed = self._owed.get(key)
        if owed is None or owed.numel() != gradients:
            owed = self._owed[key] = torch.zeros(gradients, dtype=exact.dtype, device=exact.device)
        elif owed.device != exact.device:
            owed = self._owed[key] = owed.to(exact.device)
        exact[:gradients].add_(owed)
        out.copy_(exact)
        torch.sub(exact[:gradients], out[:gradients], out=owed)
        owed.nan_to_num_(0.0, 0.0, 0.0)

    # ---- what is owed ----

    def plan(self, groups: Sequence[str]) -> None:
        """Keeps what is owed to these groups, and nothing else."""
        known = set(groups)
        self._owed = {key: owed for key, owed in self._owed.items() if key.split()[1].split("/")[0] in known}

    def state_dict(self) -> dict[str, Tensor]:
        """What is owed."""
        return {key: owed.clone() for key, owed in self._owed.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what is owed."""
        self._owed = {key: owed.clone() for key, owed in state.items()}
