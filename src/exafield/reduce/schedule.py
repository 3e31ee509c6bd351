"""Schedule: the messages that the steps of a collective take, as gloo sends them."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from exafield.message import Message, Phase


def ring(ranks: Sequence[int], nbytes: float, rounds: int) -> tuple[Phase, ...]:
    """Every rank sends `nbytes` to the next one, so many times over.

    A ring of P ranks sums and then gathers P chunks in 2(P-1) rounds in which every rank sends 1/P of the bytes
    (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 117, 2009).
    """
    after = [*ranks[1:], ranks[0]]
    messages = tuple(Message(rank, to, nbytes) for rank, to in zip(ranks, after, strict=True))
    return (Phase(messages, repeat=rounds),) if rounds else ()


def exchange(ranks: Sequence[int], nbytes: float) -> tuple[Phase, ...]:
    """Every rank sends `nbytes` to every other one."""
    return (Phase(tuple(Message(rank, to, nbytes) for rank in ranks for to in ranks if to != rank)),)


def reduce(ranks: Sequence[int], root: int, nbytes: float) -> tuple[Phase, ...]:
    """The sum of `nbytes` reaches `root`: half a ring, then everybody's chunk."""
    chunk = nbytes / len(ranks)
    chunks = tuple(Message(rank, root, chunk) for rank in ranks if rank != root)
    return (*ring(ranks, chunk, len(ranks) - 1), Phase(chunks)) if chunks else ()


def broadcast(ranks: Sequence[int], root: int, nbytes: float) -> tuple[Phase, ...]:
    """`nbytes` spread from `root`: in each round every rank that has them passes them on to one that has not."""
    start = ranks.index(root)
    order = [*ranks[start:], *ranks[:start]]
    phases = []
    have = 1
    while have < len(order):
        pairs = zip(order[:have], order[have:], strict=False)
        phases.append(Phase(tuple(Message(rank, to, nbytes) for rank, to in pairs)))
        have *= 2
    return tuple(phases)


def together(schedules: Iterable[tuple[Phase, ...]]) -> tuple[Phase, ...]:
    """Several schedules at the same time."""
    written_out = ([phase.messages for phase in s for _ in range(phase.repeat)] for s in schedules)
    merged = zip_longest(*written_out, fillvalue=())
    return tuple(Phase(tuple(message for messages in row for message in messages)) for row in merged)
