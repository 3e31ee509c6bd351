"""Pricing: closed forms against messages one by one, and both against arithmetic."""

from dataclasses import replace

import pytest

from exafield.machine import MachineError
from exafield.message import Message, Phase, Stage, Topology
from exafield.pricing import Cost, cost, price
from exafield.reduce import Flat, Hierarchical
from exafield.reduce.collective import Collective
from machine_of_tests import library, machine

SHAPES = [(1, 2), (1, 6), (2, 1), (5, 1), (2, 2), (4, 6), (7, 3)]
COLLECTIVES = [
    Flat(),
    Flat(compress="bf16"),
    Hierarchical(1),
    Hierarchical(2),
    Hierarchical(6),
    Hierarchical(3, compress="fp16"),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("collective", COLLECTIVES)
def test_library_calls_cost_what_their_messages_do(shape: tuple[int, int], collective: Collective) -> None:
    """The schedules of reduce/ are executed as they are, message by message; closed forms give the same."""
    nodes, each = shape
    topology, test = Topology.regular(nodes * each, each), machine()
    for nbytes in (1e3, 1e6, 1e8):
        messages = price(collective.schedule(topology, nbytes), test, topology)
        calls = sum((cost(s, test, nodes, each) for s in collective.stages(topology, nbytes)), Cost())
        assert calls.latency == pytest.approx(messages.latency)
        assert calls.transfer == pytest.approx(messages.transfer)


def test_one_message() -> None:
    test, topology = machine(), Topology.regular(4, 2)
    inside = price([Phase((Message(0, 1, 5e6),))], test, topology)
    assert inside == Cost(1e-6 + 2 * 2e-7, 5e6 / 50e9)
    between = price([Phase((Message(0, 2, 5e6),), repeat=3)], test, topology)
    assert between.total == pytest.approx(3 * (1.5e-6 + 2 * 5e-7 + 5e6 / 12.5e9))


def test_rails_are_shared() -> None:
    """Two ranks of a node have a rail each; of four, two share one. One rank alone has one rail only."""
    test, topology = machine(), Topology.regular(8, 4)

    def seconds(senders: int) -> float:
        return price([Phase(tuple(Message(i, 4 + i, 1e7) for i in range(senders)))], test, topology).transfer

    assert seconds(2) == pytest.approx(seconds(1))
    assert seconds(4) == pytest.approx(2 * seconds(1))
    four, two = (cost(Stage("all_reduce", "between", 1e7, teams), test, 8, 4).transfer for teams in (4, 2))
    assert four == pytest.approx(2 * two)


def test_more_leaders_pay_where_there_are_more_rails() -> None:
    topology = Topology.regular(64, 4)

    def price(leaders: int, rails: int) -> float:
        test = machine(between__rails=rails)
        stages = Hierarchical(leaders).stages(topology, 1e8)
        return sum(cost(s, test, 16, 4).total for s in stages if s.scope == "between")

    assert price(4, 4) < 0.3 * price(1, 4)
    assert price(4, 1) == pytest.approx(price(1, 1), rel=0.01)


def test_contention_counts() -> None:
    test = machine(between__contention=0.5, between__full=16)
    before, after = (cost(Stage("all_reduce", "world", 1e9), test, nodes, 1).transfer for nodes in (16, 1024))
    assert after / before == pytest.approx(8.0 * (1023 / 1024) / (15 / 16))


@pytest.mark.parametrize(
    ("algorithm", "hops", "sent"),
    [
        ("ring", 2 * 63, 2 * 63 / 64),
        ("tree", 2 * 6, 2.0),
        ("recursive_doubling", 6, 6.0),
        ("halving_doubling", 2 * 6, 2 * 63 / 64),
    ],
)
def test_algorithms_of_all_reduce_on_single_ranks(algorithm: str, hops: int, sent: float) -> None:
    """Thakur et al. (2005): latencies and bytes per rank of each."""
    test = machine(64, 1).with_({"libraries.gloo.rules.all_reduce.0.algorithm": algorithm})
    found = cost(Stage("all_reduce", "world", 1e8), test, 64, 1)
    assert found.latency == pytest.approx(hops * (1.5e-6 + 2 * 5e-7))
    assert found.transfer == pytest.approx(sent * 1e8 / 12.5e9)


def test_halving_first_inside_nodes_leaves_little_for_their_ways_out() -> None:
    test = machine().with_({"libraries.gloo.rules.all_reduce.0.algorithm": "halving_doubling"})
    found = cost(Stage("all_reduce", "world", 1e8), test, 64, 6)
    inside, out = 2 * 1e8 * 5 / 6 / 50e9, 2 * 1e8 * 63 / 64 / (2 * 12.5e9)
    assert found.transfer == pytest.approx(inside + out)


def test_what_a_library_adds() -> None:
    slow = machine().with_(
        {
            "libraries.gloo.launch": 1e-3,
            "libraries.gloo.rules.all_reduce.0.hop": 1e-5,
            "libraries.gloo.rules.all_reduce.0.efficiency": 0.5,
            "libraries.gloo.rules.all_reduce.0.rails": 2,
        }
    )
    stage = Stage("all_reduce", "between", 1e8)
    plain, found = cost(stage, machine(), 4, 6), cost(stage, slow, 4, 6)
    assert found.latency == pytest.approx(1e-3 + plain.latency + 6 * 1e-5)
    assert found.transfer == pytest.approx(plain.transfer)  # half the efficiency on twice the rails


def test_nothing_to_send_costs_nothing() -> None:
    assert cost(Stage("all_reduce", "between", 1e8), machine(), 1, 1) == Cost()
    assert Flat().stages(Topology.regular(1, 1), 1e8) == ()
    assert price([], machine(), Topology.regular(2, 1)) == Cost()


def test_an_operation_that_the_library_lacks() -> None:
    known = library()
    rules = {name: rows for name, rows in known.rules.items() if name != "broadcast"}
    test = replace(machine(), libraries={"gloo": replace(known, rules=rules)})
    with pytest.raises(MachineError, match="unknown operation of this library 'broadcast'"):
        cost(Stage("broadcast", "inside", 1.0), test, 2, 6)
