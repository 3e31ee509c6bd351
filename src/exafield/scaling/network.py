"""Network: links, and libraries that use them, from measured times.

A line a + b S is fitted to the times of every operation, for small sizes and for large ones. A link is as fast as the
fastest thing done with it; what an operation takes beyond that is its library's: `hop` for a, `efficiency` for b.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

from exafield.hardware import SHARED, Device, Files, Host, Jitter, Library, Link, Rule
from exafield.machine import Machine
from exafield.message import Stage
from exafield.pricing import Cost, cost
from exafield.reduce import Bitvector, Flat, Static
from exafield.reduce.collective import Collective
from exafield.reduce.shared import usable
from exafield.scaling import probe
from exafield.scaling.probe import Line
from exafield.world import World

# How libraries do things, as their sources have it.
_ALGORITHMS: Mapping[str, Mapping[str, str]] = {
    "gloo": {
        "all_reduce": "ring",
        "reduce": "ring",
        "broadcast": "binomial",
        "all_gather": "ring",
        "all_to_all": "direct",
    },
    "nccl": {
        "all_reduce": "ring",
        "reduce": "chain",
        "broadcast": "chain",
        "all_gather": "ring",
        "all_to_all": "direct",
    },
    SHARED: {"all_reduce": "ring"},
}
# Up to here one line is fitted to times by size, beyond another one [bytes]: our choice.
_SMALL = 65_536
# Groups whose reductions are timed together, to tell what one of them costs: our choice.
_GROUPS = 16


@dataclass(frozen=True)
class Network:
    """See the fields of the same names of :class:`exafield.machine.Machine`; `handling` is the host's [s]."""

    inside: Link
    between: Link
    handling: float
    libraries: Mapping[str, Library]
    uses: Mapping[str, str]


@dataclass(frozen=True)
class _Timed:
    """What was measured of one operation: sizes [bytes] and times [s] among the ranks of a scope."""

    library: str
    scope: Literal["world", "inside", "between"]
    operation: str
    times: Mapping[int, float]

    def lines(self) -> tuple[tuple[float, Line], ...]:
        """Up to which size each line holds."""
        small = {n: t for n, t in self.times.items() if n <= _SMALL}
        large = {n: t for n, t in self.times.items() if n >= _SMALL}
        return (float(_SMALL), probe.line(small)), (inf, probe.line(large, relative=False))

    def cost(self, shape: "_Shape", inside: Link, between: Link, hop: float) -> Cost:
        """What one byte would cost with these links, and nothing but `hop` from the library."""
        rule = Rule(_ALGORITHMS[self.library][self.operation], inf, hop, 1.0, 1)
        return cost(Stage(self.operation, self.scope, 1.0), shape.machine(inside, between, {self.operation: (rule,)}),
                    shape.nodes, shape.each)  # fmt: skip


@dataclass(frozen=True)
class _Shape:
    """How many nodes, and ranks on each."""

    nodes: int
    each: int

    @property
    def wide(self) -> str:
        """The link that an operation of all ranks is bound by."""
        return "between" if self.nodes > 1 else "inside"

    def machine(self, inside: Link, between: Link, rules: Mapping[str, tuple[Rule, ...]]) -> Machine:
        """One to ask for prices of messages only."""
        return Machine(
            "", "", self.nodes, self.each, inside, between, Host(1, 0.0, 0.0, 1.0, {}), Device("cpu", {}, {}, 1.0),
            Jitter(0.0, 0.0, 0.0, 0.0), Files(1.0, 1.0, 0.0), {"one": Library(0.0, 0.0, rules)},
            dict.fromkeys(("world", "inside", "between"), "one"),
        )  # fmt: skip


def network(world: World) -> Network:
    """Measures links and libraries of a world. Collective; the same on every rank."""
    shape = _Shape(len(world.nodes), max(map(len, world.nodes)))
    library = "nccl" if world.device.type == "cuda" else "gloo"
    plain = Flat(shared=False)
    ours = Flat() if usable(world, world.device) else plain
    own = library if ours == plain else SHARED
    single = _messages(world)
    tables = _tables(world, library)
    if own == SHARED:
        tables.append(_Timed(own, "inside", "all_reduce", probe.sums(world, ours)))
    said = world.broadcast_object([[t.library, t.scope, t.operation, list(t.times.items())] for t in tables])
    tables = [_Timed(name, scope, operation, dict(rows)) for name, scope, operation, rows in said]
    collectives: dict[str, Collective] = {library: plain, own: ours}
    groups = {name: _of_groups(world, choice) for name, choice in collectives.items()}
    lost = {name: min(probe.interference(world, choice), 0.99) for name, choice in collectives.items()}
    agreeing = groups[own][1]
    links = {
        scope: _link(shape, scope, times, cpu, tables, agreeing if scope == shape.wide else inf)
        for scope, (times, cpu) in single.items()
    }
    inside, between = (links.get(scope, links[shape.wide]) for scope in ("inside", "between"))
    wide = links[shape.wide]
    libraries = {
        name: Library(
            max(0.0, groups[name][0] - _least(tables, name)),
            lost[name],
            _rules([t for t in tables if t.library == name], shape, inside, between),
        )
        for name in collectives
    }
    handling = max(0.0, agreeing - wide.latency - 2 * wide.overhead) / 2
    uses = {"world": own, "inside": own if shape.nodes == 1 else library, "between": library}
    return Network(inside, between, handling, libraries, uses)


# ---- measuring ----


def _messages(world: World) -> dict[str, tuple[dict[int, float], float]]:
    """Single messages by scope; see :func:`exafield.scaling.probe.messages`. Collective."""
    home = max(world.nodes, key=len)
    leaders = [ranks[0] for ranks in world.nodes]
    pairs = {"inside": home} if len(home) > 1 else {}
    pairs |= {"between": tuple(leaders)} if len(leaders) > 1 else {}
    channel = world.channel()
    found = {scope: probe.messages(channel, world, (ranks[0], ranks[1])) for scope, ranks in pairs.items()}
    channel.close()
    said = world.broadcast_object({scope: [list(times.items()), cpu] for scope, (times, cpu) in found.items()})
    return {scope: (dict(rows), cpu) for scope, (rows, cpu) in said.items()}


def _tables(world: World, library: str) -> list[_Timed]:
    """Collectives of all ranks, of those of each node, all nodes at once, and of one rank of each node. Collective.

    Whole on rank 0, which is on the first node, and its first one.
    """
    scopes: dict[Literal["world", "inside", "between"], World | None] = {}
    if len(world.nodes) == 1:
        scopes["inside"] = world
    else:
        *homes, leaders = world.split([*world.nodes, [ranks[0] for ranks in world.nodes]])
        home = homes[world.node]
        scopes = {"world": world, "between": leaders}
        if home is not None and max(map(len, world.nodes)) > 1:
            scopes["inside"] = home
    found = []
    for scope, members in scopes.items():
        if members is not None and members.size > 1:
            timed = probe.collectives(members)
            found += [_Timed(library, scope, operation, times) for operation, times in timed.items()]
        world.barrier()
    return found


def _of_groups(world: World, collective: Collective) -> tuple[float, float]:
    """What one more group and a control message take [s]. Collective.

    All gradients are there, and tiny: so steps of many groups and of one differ by groups only, and with bit vectors
    there is one round of messages that wait for each other.
    """
    many, one, agreed = probe.finishing(world, collective, [(Static(), _GROUPS), (Static(), 1), (Bitvector(), _GROUPS)])
    group, message = (many - one) / (_GROUPS - 1), (agreed - many) / Bitvector().depth(world.size)
    return max(0.0, group), max(0.0, message)


# ---- fitting ----


def _link(
    shape: _Shape, scope: str, times: Mapping[int, float], cpu: float, tables: Sequence[_Timed], agreeing: float
) -> Link:
    """A link that is as fast as the fastest thing done with it.

    Args:
        times, cpu: of single messages.
        agreeing: what a control message over it takes [s].
    """
    latency, rate = probe.line(dict(times))
    unit = Link(0.0, 1.0, 1, 0.0, 0.0, shape.nodes)
    for timed in tables:
        if (shape.wide if timed.scope == "world" else timed.scope) == scope:
            one = timed.cost(shape, unit, unit, 1.0)
            (_, (small, _)), (_, (_, large)) = timed.lines()
            latency, rate = min(latency, small / one.latency), max(rate, one.transfer * large)
    latency = min(latency, agreeing or inf)
    # A message needs its ends; where processors are shared by ranks, they were busy with other ranks' as well, and
    # more than half of a message's time cannot be theirs: the rest of it is the way (our choice).
    overhead = min(cpu, latency / 4)
    return Link(latency - 2 * overhead, rate, 1, overhead, 0.0, shape.nodes)


def _rules(tables: Sequence[_Timed], shape: _Shape, inside: Link, between: Link) -> dict[str, tuple[Rule, ...]]:
    """The rules of a library, by operation: from the scope of most ranks in which it was timed."""
    rules = {}
    for timed in sorted(tables, key=lambda t: ("between", "inside", "world").index(t.scope)):
        bare, one = (timed.cost(shape, inside, between, hop) for hop in (0.0, 1.0))
        hops, algorithm = one.latency - bare.latency, _ALGORITHMS[timed.library][timed.operation]
        rules[timed.operation] = tuple(
            Rule(algorithm, most, max(0.0, first - bare.latency) / hops, min(2.0, bare.transfer * rate), 1)
            for most, (first, rate) in timed.lines()
        )
    return rules


def _least(tables: Sequence[_Timed], library: str) -> float:
    """The time of the smallest sum over the most ranks [s]."""
    sums = {t.scope: min(t.times.values()) for t in tables if t.library == library and t.operation == "all_reduce"}
    return sums.get("world", sums.get("inside", sums.get("between", 0.0)))
