"""Pricing: how long messages and library calls take on a machine.

Messages of a phase travel at the same time; a phase ends with its last message. Its time has two parts. Latency: the
longest way of a message, with what it and all others cost the processors at its two ends (as in LogP: Culler et al.,
PPoPP 1993). Transfer: the bytes of the busiest resource over its rate; resources are, for each direction, a rank's link
inside its node, a rank's way out of it (one rail) and all rails of a node.

:func:`price` does that for lists of messages. :func:`cost` gives the same for library calls in closed form, where every
node is alike, so that it costs nothing for tens of thousands of ranks. Algorithms: Thakur, Rabenseifner and Gropp,
Int. J. High Perform. Comput. Appl. 19, 49 (2005); trees of which every rank is a leaf once (Sanders, Speck and Traeff,
Parallel Comput. 35, 581 (2009)), as NCCL has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exafield.machine import Link, Machine, Rule
from exafield.message import Phase, Stage, Topology


@dataclass(frozen=True, slots=True)
class Cost:
    """A time [s], and what it consists of: that which does not depend on the size, and the bytes."""

    latency: float = 0.0
    transfer: float = 0.0

    @property
    def total(self) -> float:
        """latency + transfer [s]."""
        return self.latency + self.transfer

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.latency + other.latency, self.transfer + other.transfer)

    def times(self, count: float) -> "Cost":
        """So many in a row."""
        return Cost(self.latency * count, self.transfer * count)


def price(schedule: Sequence[Phase], machine: Machine, topology: Topology) -> Cost:
    """The time of messages, phase after phase, when nothing else travels."""
    node = np.empty(topology.size, dtype=np.int64)
    for index, ranks in enumerate(topology.nodes):
        node[list(ranks)] = index
    total = Cost()
    for phase in schedule:
        if phase.messages:
            total += _phase(phase, machine, node).times(phase.repeat)
    return total


def _phase(phase: Phase, machine: Machine, node: np.ndarray) -> Cost:
    source = np.array([m.src for m in phase.messages])
    target = np.array([m.dst for m in phase.messages])
    nbytes = np.array([m.nbytes for m in phase.messages], dtype=float)
    inside, between = machine.inside, machine.between
    home = node[source] == node[target]
    overhead = np.where(home, inside.overhead, between.overhead)
    sending = np.bincount(source, overhead, node.size)
    receiving = np.bincount(target, overhead, node.size)
    latency = np.where(home, inside.latency, between.latency) + sending[source] + receiving[target]
    rate = between.rate(int(node.max()) + 1)
    local, away = np.where(home, nbytes, 0.0), np.where(home, 0.0, nbytes)
    busy = [
        (np.bincount(end, weights, node.size) / speed).max()
        for end in (source, target)
        for weights, speed in ((local, inside.bandwidth), (away, rate))
    ]
    busy += [(np.bincount(node[end], away) / (rate * between.rails)).max() for end in (source, target)]
    return Cost(float(latency.max()), float(max(busy)))


def cost(stage: Stage, machine: Machine, nodes: int, ranks_per_node: int) -> Cost:
    """The time of a library call by all its teams, on so many nodes of so many ranks each.

    Raises:
        MachineError: the library is not said to do this operation.
    """
    scope = "inside" if nodes == 1 else stage.scope
    if scope == "inside":
        nodes = 1
    elif scope == "between":
        ranks_per_node = 1
    library = machine.library(scope)
    rule = library.rule(stage.operation, stage.nbytes)
    if nodes * ranks_per_node == 1:
        return Cost()
    team = _Team(machine, rule, nodes, ranks_per_node, stage.teams)
    found: Cost = getattr(team, f"{stage.operation}_{rule.algorithm}")(stage.nbytes)
    return Cost(library.launch) + found


def _doublings(count: int) -> int:
    return (count - 1).bit_length()


@dataclass(frozen=True, slots=True)
class _Team:
    """Equal sets of ranks at work; `teams` of them share a node.

    A method for each operation and algorithm takes the bytes [B] and gives the cost.
    """

    machine: Machine
    rule: Rule
    nodes: int
    each: int
    teams: int

    @property
    def size(self) -> int:
        return self.nodes * self.each

    def _message(self, link: Link, sent: float, received: float) -> float:
        """Latency of a message by a rank that sends so many at a time to one that receives so many."""
        return link.latency + self.rule.hop + (sent + received) * link.overhead

    def _inside(self, nbytes: float, count: float = 1.0) -> Cost:
        """Every rank sends and receives `count` messages inside its node for every team."""
        link = self.machine.inside
        count *= self.teams
        rate = link.bandwidth * self.rule.efficiency
        return Cost(self._message(link, count, count), count * nbytes / rate)

    def _between(self, nbytes: float, ranks: float = 1.0) -> Cost:
        """So many ranks of each team on a node send a message out of it, and receive one."""
        link = self.machine.between
        rails = min(self.rule.rails, link.rails / (ranks * self.teams))
        rate = link.rate(self.nodes) * self.rule.efficiency * rails
        return Cost(self._message(link, 1, 1), nbytes / rate)

    def _both(self, nbytes: float) -> Cost:
        """Every rank sends to the next one, node by node: one message leaves each node, if there are several."""
        steps = [self._inside(nbytes)] if self.each > 1 else []
        steps += [self._between(nbytes)] if self.nodes > 1 else []
        return Cost(max(step.latency for step in steps), max(step.transfer for step in steps))

    def all_reduce_ring(self, nbytes: float) -> Cost:
        return self._both(nbytes / self.size).times(2 * (self.size - 1))

    def all_gather_ring(self, nbytes: float) -> Cost:
        return self._both(nbytes / self.size).times(self.size - 1)

    def all_reduce_tree(self, nbytes: float) -> Cost:
        """A chain in every node, two trees of nodes, up and down, in so small pieces that all of it overlaps."""
        up = self._inside(0.0).latency * (self.each - 1)
        up += self._between(0.0).latency * _doublings(self.nodes)
        return Cost(2 * up, self._both(2 * nbytes).transfer)

    def all_reduce_recursive_doubling(self, nbytes: float) -> Cost:
        inside = self._inside(nbytes).times(_doublings(self.each))
        return inside + self._between(nbytes, self.each).times(_doublings(self.nodes))

    def all_reduce_halving_doubling(self, nbytes: float) -> Cost:
        """First with ranks of the node, so that little is left to leave it."""
        share, near, far = nbytes / self.each, self._inside(0.0), self._between(0.0)
        inside = Cost(near.latency * _doublings(self.each), self._inside(nbytes - share).transfer)
        out = self._between(share - share / self.nodes, self.each).transfer
        return (inside + Cost(far.latency * _doublings(self.nodes), out)).times(2)

    def reduce_ring(self, nbytes: float) -> Cost:
        """Half a ring, then everybody's chunk to the root (gloo)."""
        chunk, others = nbytes / self.size, self.size - 1
        link = self.machine.inside if self.nodes == 1 else self.machine.between
        rate = link.rate(self.nodes) * self.rule.efficiency
        sent = self.teams if self.teams < self.size else self.teams - 1  # a root sends nothing to itself
        gather = Cost(self._message(link, sent, others), max(others, sent) * chunk / rate)
        return self._both(chunk).times(others) + gather

    def reduce_binomial(self, nbytes: float) -> Cost:
        return self.broadcast_binomial(nbytes)

    def broadcast_binomial(self, nbytes: float) -> Cost:
        """In each round every rank that has the bytes passes them on; roots differ from team to team."""
        total, have = Cost(), 1
        while have < self.size:
            pairs = min(have, self.size - have)
            if self.nodes == 1:
                at_once = min(self.teams, pairs) / self.teams
                total += self._inside(nbytes, at_once)
            else:
                total += self._between(nbytes, min(pairs, self.each))
            have *= 2
        return total

    def reduce_chain(self, nbytes: float) -> Cost:
        return self.broadcast_chain(nbytes)

    def broadcast_chain(self, nbytes: float) -> Cost:
        """From rank to rank in so small pieces that all of it overlaps (NCCL)."""
        step = self._both(nbytes)
        return Cost(step.latency * (self.size - 1), step.transfer)

    def all_to_all_direct(self, nbytes: float) -> Cost:
        """Every rank sends its part to every other one."""
        chunk = nbytes / self.size
        near, far = self.machine.inside, self.machine.between
        inside, outside = (self.each - 1) * self.teams, self.size - self.each
        busy = inside * near.overhead + outside * far.overhead
        latency = max(near.latency if inside else 0.0, far.latency if outside else 0.0)
        # One rank's way out is a rail; all of a node share the rails.
        out = self._between(outside * chunk, self.each).transfer if outside else 0.0
        home = inside * chunk / (near.bandwidth * self.rule.efficiency)
        return Cost(latency + self.rule.hop + 2 * busy, max(home, out))
