"""Who plays what on which rank, and the messages between them.

A game has one hub, which makes the coarse field and solves for heads; a fine generator and a judge for each subdomain;
a judge of the whole and one of the overlap strips. All messages go to or from the hub, point to point, in an order that
both ends know. Their sizes are fixed, so a bill can be made out beforehand.
"""

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from exafield.channel import Channel, Pending
from exafield.world import World

HUB, WHOLE, STRIPS = "coarse", "judge-whole", "judge-strips"

# How long to wait for a message before looking whether the run has ended [s] (our choice: soon, and cheap).
_LOOK = 0.5


def fine(subdomain: int) -> str:
    """The role that makes a subdomain's fine field."""
    return f"fine-{subdomain}"


def judge(subdomain: int) -> str:
    """The role that judges a subdomain's readings."""
    return f"judge-{subdomain}"


def roles(subdomains: int) -> tuple[str, ...]:
    """All of a game; with one subdomain there are no strips to judge."""
    numbers = range(subdomains)
    strips = (STRIPS,) if subdomains > 1 else ()
    return (HUB, *map(fine, numbers), WHOLE, *map(judge, numbers), *strips)


@dataclass(frozen=True)
class Layout:
    """Which rank plays which role, in each replica of the game.

    Replicas play the same game with other noise and other snapshots; gradients are averaged over them.

    Args:
        seats: for each replica the rank of each role. A rank plays in one replica only.
    """

    seats: tuple[Mapping[str, int], ...]

    def __post_init__(self) -> None:
        owner: dict[int, int] = {}
        for number, seats in enumerate(self.seats):
            if set(seats) != set(self.seats[0]) or HUB not in seats:
                raise ValueError(f"layout: replica {number} has the roles {sorted(seats)}, others have other ones")
            for role, rank in seats.items():
                if owner.setdefault(rank, number) != number:
                    raise ValueError(f"layout: rank {rank} plays in replicas {owner[rank]} and {number} ({role})")

    def ranks(self, role: str) -> tuple[int, ...]:
        """The ranks of a role, one in each replica."""
        return tuple(seats[role] for seats in self.seats)

    def replica(self, rank: int) -> int | None:
        """The replica a rank plays in; None for one that plays nothing."""
        return next((number for number, seats in enumerate(self.seats) if rank in seats.values()), None)

    def plays(self, rank: int) -> tuple[str, ...]:
        """The roles of a rank, in the order of the game."""
        return tuple(role for seats in self.seats for role, where in seats.items() if where == rank)

    def spokes(self) -> list[tuple[int, int]]:
        """The links: pairs of a hub and another rank of its replica."""
        return [(seats[HUB], rank) for seats in self.seats for rank in sorted(set(seats.values()) - {seats[HUB]})]


def layout(ranks: int, subdomains: int, replicas: int | None = None) -> Layout:
    """Deals the roles out to any number of ranks.

    Fewer ranks than roles: each plays several. More: several replicas of the game, which share the ranks as evenly as
    can be. Within a replica roles go round in turn, so that generators, which all work at the same time, are on
    different ranks, and so are judges.

    Args:
        ranks: of the world.
        subdomains: of the partition.
        replicas: of the game; None: as few as leave no rank without a role.

    Raises:
        ValueError: there are more replicas than ranks, or so few that ranks would have nothing to do.
    """
    every = roles(subdomains)
    least = math.ceil(ranks / len(every))
    count = least if replicas is None else replicas
    if not least <= count <= ranks:
        raise ValueError(
            f"{ranks} ranks can play {least} to {ranks} replicas of a game of {len(every)} roles, got {count}"
        )
    bounds = [ranks * number // count for number in range(count + 1)]
    return Layout(
        tuple({role: low + place % (high - low) for place, role in enumerate(every)} for low, high in pairwise(bounds))
    )


class Links:
    """A rank's links: to the spokes if it is a hub, else to its hub. Made on all ranks together.

    Messages are float32; both ends of a link name them in the same order. One that does not come breaks after the
    world's time-out, or as soon as the watchdog knows that a rank is gone; all ranks end then, with the reason.

    Args:
        world: the ranks.
        spokes: all links of the layout, the same on all ranks.

    Attributes:
        sent: bytes this rank has handed over, by receiver.
    """

    def __init__(self, world: World, spokes: Sequence[tuple[int, int]]) -> None:
        self._world = world
        self._channels: dict[int, tuple[Channel, int]] = {}
        self.sent: Counter[int] = Counter()
        self._under_way: deque[tuple[Pending, Tensor]] = deque()
        # A broadcast in a group of two is a message, and can be waited for in turns, which `Channel.receive` cannot.
        for pair, both in zip(spokes, world.split(spokes) if spokes else [], strict=True):
            if both is not None:
                other = pair[1 - both.rank]
                self._channels[other] = both.channel(), 1 - both.rank

    def send(self, to: int, message: Tensor) -> None:
        """Hands a message over; does not wait for the receiver."""
        channel, there = self._channels[to]
        body = message.detach().to("cpu", torch.float32, copy=True).contiguous()
        self.sent[to] += body.nbytes

        def act() -> None:
            self._under_way.append((channel.broadcast(body, 1 - there), body))
            while self._under_way and self._under_way[0][0].wait(0.0):
                self._under_way.popleft()

        self._world.guarded(act)

    def receive(self, source: int, shape: Sequence[int]) -> Tensor:
        """The next message of a rank, on this world's device. Blocks."""
        channel, there = self._channels[source]
        body = torch.empty(*shape, dtype=torch.float32)

        def act() -> None:
            pending = channel.broadcast(body, there)
            while not pending.wait(_LOOK):
                self._world.check()

        self._world.guarded(act)
        return body.to(self._world.device)


def bill(
    seats: Mapping[str, int], rows: int, moves: int, cells: Mapping[str, int], readings: Mapping[str, int]
) -> Counter[tuple[int, int]]:
    """Bytes that each link of a replica carries in a step, by sender and receiver.

    Down to a fine generator go the coarse field of its cells for all moves and the gradient of the last; up comes its
    field. Down to a judge go the readings for all moves; up come the gradient of the last and what the judgement is.

    Args:
        seats: rank of each role.
        rows: fields of each move.
        moves: of the judges.
        cells: of each fine role.
        readings: of each judge, columns.
    """
    hub, bytes_of = seats[HUB], torch.float32.itemsize
    total: Counter[tuple[int, int]] = Counter()
    for role, rank in seats.items():
        if rank == hub:
            continue
        if role in cells:
            total[hub, rank] += bytes_of * rows * cells[role] * (moves + 1)
            total[rank, hub] += bytes_of * rows * cells[role] * moves
        else:
            total[hub, rank] += bytes_of * rows * readings[role] * moves
            total[rank, hub] += bytes_of * (rows * readings[role] + 1)
    return total
