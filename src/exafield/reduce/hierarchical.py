"""Hierarchical: inside the nodes, between the nodes, inside the nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exafield.channel import Channel, Pending
from exafield.message import Phase, Stage, Topology
from exafield.reduce.collective import Links, plain_zeros
from exafield.reduce.exchange import Compress, Exchange, Part, checked, pieces
from exafield.reduce.flat import Flat
from exafield.reduce.pipeline import Pipeline
from exafield.reduce.schedule import broadcast, exchange, reduce, ring, together
from exafield.world import World


@dataclass(frozen=True, slots=True)
class Hierarchical:
    """A sum inside each node, one between nodes by some leaders of each, and a broadcast inside each node.

    The buffer is cut into one part per leader; leader `j` of every node sums part `j` (Kurth et al.,
    arXiv:1810.01993, had 4 leaders among the 6 ranks of a node). With as many leaders as ranks that is a reduce-scatter
    and an all-gather inside the node. Between N nodes each sends 2(N-1)/N of the bytes, where a flat ring over P
    ranks sends 2(P-1)/P. More than one leader pays where a node has more than one way out.

    Args:
        leaders: of each node; as many as the smallest node has ranks at the most.
        compress: what gradients wider than 16 bits travel as between nodes: "bf16" or "fp16"; sums are in single
            precision.
        feedback: what compression rounds off is added in the next step.
    """

    leaders: int = 1
    compress: Compress | None = None
    feedback: bool = False

    def __post_init__(self) -> None:
        checked(self.compress, self.feedback)
        if self.leaders < 1:
            raise ValueError(f"leaders must be at least 1, got {self.leaders}")

    def _flat(self, topology: Topology) -> Flat | None:
        """What remains if one of the levels is missing."""
        if len(topology.nodes) == 1:
            return Flat()
        if all(len(node) == 1 for node in topology.nodes):
            return Flat(self.compress, self.feedback)
        return None

    def teams(self, topology: Topology) -> list[list[int]]:
        """For each part of a buffer the ranks that sum it between nodes."""
        count = min(self.leaders, *map(len, topology.nodes))
        return [[node[number] for node in topology.nodes] for number in range(count)]

    def schedule(self, topology: Topology, nbytes: float) -> tuple[Phase, ...]:
        flat = self._flat(topology)
        if flat is not None:
            return flat.schedule(topology, nbytes)
        teams, nodes = self.teams(topology), topology.nodes
        part, count = nbytes / len(teams), len(nodes)
        if self.compress is None:
            between = [ring(team, part / count, 2 * (count - 1)) for team in teams]
        else:
            chunk = part / count / 2
            between = [(*exchange(team, chunk), *ring(team, chunk, count - 1)) for team in teams]
        # All teams send alike, so their rounds are kept together instead of being written out.
        merged = tuple(
            Phase(tuple(m for p in same for m in p.messages), same[0].repeat) for same in zip(*between, strict=True)
        )
        owners = [(node, leader) for node in nodes for leader in node[: len(teams)]]
        return (
            *together(reduce(node, leader, part) for node, leader in owners),
            *merged,
            *together(broadcast(node, leader, part) for node, leader in owners),
        )

    def stages(self, topology: Topology, nbytes: float) -> tuple[Stage, ...]:
        flat = self._flat(topology)
        if flat is not None:
            return flat.stages(topology, nbytes)
        teams = min(self.leaders, *map(len, topology.nodes))
        part = nbytes / teams
        between: tuple[Stage, ...] = (Stage("all_reduce", "between", part, teams),)
        if self.compress is not None:
            names = ("all_to_all", "all_gather")
            between = tuple(Stage(name, "between", part / 2, teams) for name in names)
        return (Stage("reduce", "inside", part, teams), *between, Stage("broadcast", "inside", part, teams))

    def pieces(self, topology: Topology, nbytes: float) -> int:
        flat = self._flat(topology)
        if flat is not None:
            return flat.pieces(topology, nbytes)
        return pieces(round(nbytes / 4), sum(map(len, self.teams(topology))))

    def connect(self, world: World, device: torch.device) -> Links:
        flat = self._flat(world.topology)
        if world.kind == "fake":  # identical ranks: there is nothing to be told apart inside a node
            flat = Flat(self.compress, self.feedback)
        return _Levels(self, world, device) if flat is None else flat.connect(world, device)


@dataclass(slots=True)
class _Cargo:
    """A buffer, cut into one part per team, and the part that this rank sums between nodes."""

    parts: list[Tensor]
    own: Part | None


class _Levels:
    """Two channels inside the node and one or two between nodes, each driven by one stage of a pipeline."""

    def __init__(self, choice: Hierarchical, world: World, device: torch.device) -> None:
        teams = choice.teams(world.topology)
        self._count, self._ranks = len(teams), sum(map(len, teams))
        worlds = world.split([*world.nodes, *teams])
        inside = worlds[world.node]
        assert inside is not None
        self._own = inside.rank if inside.rank < self._count else None
        self._up, self._down = inside.channel(device), inside.channel(device)
        self._between: list[Channel] = []
        self._exchange: Exchange | None = None
        if self._own is not None:
            team = worlds[len(world.nodes) + self._own]
            assert team is not None
            self._between = [team.channel(device) for _ in range(1 if choice.compress is None else 2)]
            if choice.compress is not None:
                outward, inward = self._between
                self._exchange = Exchange(outward, inward, choice.compress, choice.feedback)
        # Ranks that lead nothing pass the middle stages without a collective.
        middle = [self._sum] if choice.compress is None else [self._scatter, self._add]
        stages = (self._gather, *middle, self._spread, self._end)
        self._pipeline = Pipeline("exafield-hierarchical", stages, threaded=device.type != "cuda")

    # ---- the stages ----

    def _gather(self, cargo: _Cargo) -> Sequence[Pending]:
        return [self._up.reduce(part, leader) for leader, part in enumerate(cargo.parts)]

    def _sum(self, cargo: _Cargo) -> Sequence[Pending]:
        return [] if cargo.own is None else [self._between[0].all_reduce(cargo.own.tensor)]

    def _scatter(self, cargo: _Cargo) -> Sequence[Pending]:
        return [] if cargo.own is None or self._exchange is None else self._exchange.scatter(cargo.own)

    def _add(self, cargo: _Cargo) -> Sequence[Pending]:
        return [] if cargo.own is None or self._exchange is None else self._exchange.sum(cargo.own)

    def _spread(self, cargo: _Cargo) -> Sequence[Pending]:
        if cargo.own is not None and self._exchange is not None:
            self._exchange.land(cargo.own)
        return [self._down.broadcast(part, leader) for leader, part in enumerate(cargo.parts)]

    def _end(self, cargo: _Cargo) -> Sequence[Pending]:
        return ()

    # ---- as a reduction sees it ----

    def plan(self, groups: Sequence[str]) -> None:
        self._pipeline.settle()
        if self._exchange is not None:
            self._exchange.plan(groups)

    def zeros(self, numel: int, like: Tensor) -> Tensor:
        return plain_zeros(numel, like)

    def run(self, buffer: Tensor, gradients: int, group: str | None = None) -> Pending:
        pieces = Part(buffer, gradients, group).pieces(self._ranks)
        return self._pipeline.run([self._cargo(piece.split(self._count)) for piece in pieces])

    def _cargo(self, parts: Sequence[Part]) -> _Cargo:
        own = parts[self._own] if self._own is not None and self._own < len(parts) else None
        return _Cargo([part.tensor for part in parts], own)

    def state_dict(self) -> dict[str, Tensor]:
        self._pipeline.settle()
        return {} if self._exchange is None else self._exchange.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._pipeline.settle()
        if self._exchange is not None:
            self._exchange.load_state_dict(state)

    def close(self) -> None:
        self._pipeline.close()
        for channel in (self._up, self._down, *self._between):
            channel.close()
