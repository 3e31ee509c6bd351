"""Simulation: against arithmetic where there is a formula, the few against all, and where the time goes."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from exafield.machine import Machine, MachineError
from exafield.message import ControlPlane, Event, Launch, Ready, Received, Send
from exafield.pricing import cost
from exafield.reduce import (
    Auto,
    Bitvector,
    Central,
    Flat,
    GraphAware,
    Grouped,
    Hierarchical,
    Reducer,
    Single,
    Static,
    Tree,
)
from exafield.reduce.collective import Collective
from exafield.reduce.control import Control
from exafield.scaling import Step, StepError, simulate
from exafield.scaling.simulation import PARTS
from machine_of_tests import library, machine, quiet, step

CONTROLS = [Static(), Central(), Tree(), Tree(radix=2), Bitvector()]


def reducer(control: Control | None = None, **more: Any) -> Reducer:
    return Reducer(control=control or Static(), **{"grouping": GraphAware(), **more})


# ---- formulas ----


def test_one_rank_takes_what_it_computes() -> None:
    outcome = simulate(step(), reducer(), quiet(), 1)
    assert outcome.seconds == pytest.approx(0.1)
    assert outcome.efficiency == pytest.approx(1.0)
    assert outcome.breakdown["compute"] == pytest.approx(0.1)
    assert outcome.samples_per_second == pytest.approx(20.0)
    assert outcome.flops == pytest.approx(2e13)


def test_shared_memory_is_priced_where_a_reducer_takes_it() -> None:
    """On one node, by a flat all-reduce without lag or compression."""
    plain = quiet()
    sums = replace(library(launch=0.05), rules={"all_reduce": library().rules["all_reduce"]})
    test = replace(
        plain, libraries={**plain.libraries, "shared": sums}, uses={**plain.uses, "world": "shared", "inside": "shared"}
    )
    slow = simulate(step(), reducer(grouping=Single(), collective=Flat()), test, 6).seconds
    assert slow > simulate(step(), reducer(grouping=Single(), collective=Flat()), plain, 6).seconds + 0.04
    for other in (
        {"collective": Flat(shared=False)},
        {"collective": Flat(compress="bf16")},
        {"collective": Hierarchical()},
        {"lag": 1},
    ):
        how = reducer(**{"grouping": Single(), "collective": Flat(), **other})
        assert simulate(step(), how, test, 6).seconds == simulate(step(), how, plain, 6).seconds, other


@pytest.mark.parametrize("collective", [Flat(), Flat(compress="bf16"), Hierarchical(), Hierarchical(leaders=2)])
@pytest.mark.parametrize("ranks", [4, 24])
def test_one_group_is_computed_copied_and_reduced(collective: Collective, ranks: int) -> None:
    """Nothing overlaps with one group, so that the time is a sum."""
    test, one = quiet(), step()
    outcome = simulate(one, reducer(grouping=Single(), collective=collective), test, ranks)
    nodes = test.nodes_for(ranks)
    stages = collective.stages(test.topology(ranks), one.nbytes)
    reducing = sum(cost(stage, test, nodes, min(6, ranks)).total for stage in stages)
    assert outcome.seconds == pytest.approx(0.1 + one.nbytes / 5e11 + reducing, rel=1e-6)
    assert outcome.breakdown["bandwidth"] == 0.0  # it would hide, could it leave earlier
    assert outcome.breakdown["exposed communication"] > 0.9 * reducing


def test_two_groups_overlap_with_backward() -> None:
    """The first half of the bytes leaves after half of backward, and the second when it is over."""
    test, one = quiet(), step()
    outcome = simulate(one, reducer(grouping=Grouped(2)), test, 24)
    half = cost(Flat().stages(test.topology(24), one.nbytes / 2)[0], test, 4, 6).total
    copy = one.nbytes / 2 / 5e11
    ready = 0.06 * one.tensors[20].ready
    end = max(0.06 + copy, ready + copy + half) + half
    assert outcome.seconds == pytest.approx(0.03 + end + 0.01, rel=1e-6)


def test_lag_hides_what_is_shorter_than_a_step() -> None:
    test, one = quiet(), step()
    for grouping in (Single(), Grouped(4)):
        assert simulate(one, reducer(grouping=grouping, lag=1), test, 24).seconds == pytest.approx(0.1)
    slow = quiet(between__bandwidth=5e8)
    outcome = simulate(one, reducer(grouping=Single(), lag=1), slow, 24)
    reducing = cost(Flat().stages(slow.topology(24), one.nbytes)[0], slow, 4, 6)
    assert reducing.total > 0.3
    # Two reductions are under way at the most, and the link carries one.
    assert outcome.seconds == pytest.approx(reducing.total, rel=0.01)
    assert outcome.breakdown["bandwidth"] == pytest.approx(reducing.transfer - 0.1, rel=0.01)


def test_stages_of_hierarchical_overlap_between_groups() -> None:
    """While one group is summed between nodes, the next is summed inside them."""
    test, one = quiet(), step(backward=1e-6)
    count = 8
    outcome = simulate(one, reducer(grouping=Grouped(count), collective=Hierarchical()), test, 24)
    stages = Hierarchical().stages(test.topology(24), one.nbytes / count)
    up, between, down = (cost(stage, test, 4, 6).total for stage in stages)
    longest = max(up, between, down)
    expected = 0.03 + up + between + down + (count - 1) * longest + 0.01
    assert outcome.seconds == pytest.approx(expected + one.nbytes / count / 5e11, rel=0.001)


def test_interference_slows_computing_while_a_reduction_is_under_way() -> None:
    one = step(backward=0.5)
    free, taken = (simulate(one, reducer(grouping=Grouped(2)), quiet(interference=share), 24) for share in (0.0, 0.2))
    first = cost(Flat().stages(quiet().topology(24), one.nbytes / 2)[0], quiet(), 4, 6).total + one.nbytes / 2 / 5e11
    assert taken.seconds - free.seconds == pytest.approx(0.2 * first, rel=1e-6)


def test_data_are_waited_for_if_they_take_longer_than_a_step() -> None:
    test = quiet(files__local=1e8)
    outcome = simulate(step(read=2e6), reducer(), test, 24)  # 2 samples x 2 MB x 6 ranks at 100 MB/s
    assert outcome.seconds == pytest.approx(0.24, rel=0.01)
    assert outcome.breakdown["data"] == pytest.approx(0.14, rel=0.01)
    hidden = simulate(step(read=5e5), reducer(), test, 24)
    assert hidden.breakdown["data"] == pytest.approx(0.0, abs=1e-12)
    shared = simulate(step(read=2e6), reducer(), quiet(files__total=1e8), 24, data="shared")
    assert shared.seconds == pytest.approx(4 * 0.24, rel=0.01)
    assert simulate(step(wait=0.05), reducer(), test, 24).breakdown["data"] == pytest.approx(0.05)


def test_ranks_of_a_node_that_get_in_each_others_way() -> None:
    test = replace(quiet(), host=replace(quiet().host, crowding={1: 1.0, 6: 1.5}))
    outcome = simulate(step(), reducer(), test, 6)
    assert outcome.breakdown["crowding"] == pytest.approx(0.05)
    assert simulate(step(), reducer(), test, 1).breakdown["crowding"] == 0.0


def test_stragglers_are_the_maximum_of_normal_numbers() -> None:
    """With small spreads a step takes 1 + s times the expected maximum longer."""
    test = machine(jitter__rank=0.0, jitter__step=0.01)
    free = step(nbytes=1)
    for ranks, expected in ((64, 2.343), (1024, 3.245)):  # of the maximum of n standard normal numbers
        found = simulate(free, reducer(), test, ranks, steps=60, full=False).breakdown["stragglers"]
        assert found / 0.1 == pytest.approx(0.01 * expected, rel=0.15)


def test_pauses_hold_all_ranks_up() -> None:
    test = quiet(jitter__tail=1.0, jitter__pause=0.01)
    found = simulate(step(), reducer(), test, 60, steps=40).breakdown["stragglers"]
    harmonic = sum(1 / n for n in range(1, 61))  # expected maximum of 60 exponential numbers
    assert found == pytest.approx(0.01 * harmonic, rel=0.15)


def test_the_same_seed_gives_the_same_and_the_first_ranks_draw_alike() -> None:
    a, b, c = (simulate(step(), reducer(), machine(), 60, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(a.times, b.times)
    assert not np.array_equal(a.times, c.times)
    longer = simulate(step(), reducer(), machine(), 600, seed=1, full=False)
    assert (longer.times >= a.times - 1e-12).all()


# ---- control planes ----


def test_a_central_coordinator_serves_one_message_after_the_other() -> None:
    """Rank 0 handles P - 1 messages up and sends as many down, one at a time."""
    test, one = quiet(host__handling=1e-5), step(nbytes=1)
    ranks = 240
    outcome = simulate(one, reducer(Central(), grouping=Single()), test, ranks, steps=1, full=True)
    end = 5e-7 + 1e-5
    assert outcome.messages == 2 * (ranks - 1)
    assert outcome.breakdown["control plane"] == pytest.approx(2 * (ranks - 1) * end, rel=0.02)


def test_a_bitvector_takes_as_many_phases_as_there_are_doublings() -> None:
    test, one = quiet(each=1), step(nbytes=1)
    outcome = simulate(one, reducer(Bitvector(), grouping=Single()), test, 100, steps=1, full=True)
    hop = 2 * (5e-7 + 1e-6) + 1.5e-6 + 32 / 12.5e9
    assert outcome.messages == 700
    assert outcome.breakdown["control plane"] == pytest.approx(7 * hop, rel=0.01)


@pytest.mark.parametrize("control", [*CONTROLS, Auto()])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 21, 64])
def test_depth_is_the_longest_chain_of_messages(control: Control, size: int) -> None:
    """Every message takes one unit of time and nothing else does: when all know, so long was the longest way."""
    planes = [control.plane(rank, size, 1) for rank in range(size)]
    events: list[tuple[float, int, Event]] = [(0.0, r, Ready(0.0, r, 1, True)) for r in range(size)]
    over = 0.0
    while events:
        events.sort(key=lambda e: e[0])
        now, rank, event = events.pop(0)
        for action in planes[rank].handle(event):
            if isinstance(action, Send):
                arrival = Received(now + 1, action.to, rank, action.words)
                events.append((now + 1, action.to, arrival))
            elif isinstance(action, Launch):
                over = max(over, now)
    assert control.depth(size) == over


@pytest.mark.parametrize("collective", [Flat(), Flat(compress="bf16"), Hierarchical(leaders=4)])
@pytest.mark.parametrize("control", CONTROLS)
def test_a_few_stand_for_all(control: Control, collective: Collective) -> None:
    """Within 1 % where both can be carried out."""
    agree(reducer(control, collective=collective, grouping=Grouped(2)), 100)


@pytest.mark.parametrize("control", [Static(), Central(), Tree(), Bitvector()])
def test_a_few_stand_for_all_with_lag(control: Control) -> None:
    agree(reducer(control, lag=1), 100)


@pytest.mark.parametrize("control", [Central(cycle=0.002), Tree(cycle=0.002), Bitvector(cycle=0.002)])
def test_a_few_stand_for_all_where_messages_wait_for_each_other(control: Control) -> None:
    agree(reducer(control, grouping=Grouped(2)), 80)


def agree(policy: Reducer, ranks: int, steps: int = 1) -> None:
    test = machine(host__handling=5e-6, jitter__tail=0.01, jitter__pause=0.005)
    full, few = (simulate(step(), policy, test, ranks, steps=steps, full=full) for full in (True, False))
    assert few.seconds == pytest.approx(full.seconds, rel=0.01)
    for part in PARTS:
        assert few.breakdown[part] == pytest.approx(full.breakdown[part], abs=0.01 * full.seconds)


@pytest.mark.heavy
@pytest.mark.parametrize("control", CONTROLS)
def test_a_few_stand_for_a_thousand(control: Control) -> None:
    for collective, lag in itertools.product((Flat(), Hierarchical(leaders=4)), (0, 1)):
        agree(reducer(control, collective=collective, lag=lag), 1024, steps=2)


class _Disagreeing:
    """Launches groups in an order of its own."""

    def __init__(self, rank: int) -> None:
        self.rounds, self._rank, self._ready = 0, rank, 0

    def handle(self, event: Event) -> list[Any]:
        assert isinstance(event, Ready)
        self._ready |= event.groups
        if not event.complete:
            return []
        groups = range(self._ready.bit_length())
        self._ready = 0
        return [Launch(tuple(groups if self._rank % 2 else reversed(groups)))]


class _Silent:
    def __init__(self) -> None:
        self.rounds = 0

    def handle(self, event: Event) -> list[Any]:
        return []


@pytest.mark.parametrize(
    ("make", "message"), [(_Disagreeing, "different orders"), (lambda rank: _Silent(), "stopped talking")]
)
def test_planes_that_break_their_promise(make: Any, message: str) -> None:
    class Broken(Static):
        def plane(self, rank: int, size: int, groups: int) -> ControlPlane:
            plane: ControlPlane = make(rank)
            return plane

    with pytest.raises(RuntimeError, match=message):
        simulate(step(), reducer(Broken()), quiet(), 4, full=True)


# ---- where the time goes ----


@pytest.mark.parametrize("control", [Static(), Central(), Bitvector()])
@pytest.mark.parametrize("lag", [0, 1])
def test_the_parts_add_up(control: Control, lag: int) -> None:
    test = machine(jitter__tail=0.01, jitter__pause=0.002, files__local=2e8, interference=0.1)
    outcome = simulate(step(), reducer(control, lag=lag, collective=Hierarchical()), test, 30, steps=4)
    assert tuple(outcome.breakdown) == PARTS
    assert sum(outcome.breakdown.values()) == pytest.approx(outcome.seconds, rel=1e-9)
    for part in PARTS[:-1]:
        assert outcome.breakdown[part] >= -1e-9, part


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("stragglers", {"jitter__step": 0.05}),
        ("data", {"files__local": 1e8}),
        ("bandwidth", {"between__bandwidth": 3e8}),
        ("latency", {"between__latency": 1e-4}),
        ("control plane", {"host__handling": 1e-4}),
    ],
)
def test_what_is_made_worse_is_blamed(part: str, changes: dict[str, Any]) -> None:
    policy = reducer(Central())
    before, after = (simulate(step(), policy, made, 40, steps=2) for made in (quiet(), quiet(**changes)))
    grown = {name: after.breakdown[name] - before.breakdown[name] for name in PARTS}
    assert max(grown, key=grown.__getitem__) == part
    assert grown[part] > 0.5 * (after.seconds - before.seconds) > 0.001


def test_a_trace_like_that_of_a_run() -> None:
    outcome = simulate(step(), reducer(Bitvector()), machine(), 12, steps=3, trace=True)
    assert outcome.trace is not None
    spans = outcome.trace.spans
    assert {s.rank for s in spans} == set(range(8))
    names = {s.name for s in spans if s.lane == "trainer"}
    assert names >= {"step", "forward", "backward", "finish", "optimiser"}
    assert {s.lane for s in spans} == {"trainer", "ready net", "reduce net"}
    assert all(s.duration >= 0 for s in spans)
    assert sum(s.name == "step" and s.rank == 0 for s in spans) == 5
    assert outcome.launches.shape == (12, outcome.groups)
    assert (outcome.launches > 0.03).all()


def test_a_whole_study_is_quick_in_events_that_are_carried_out() -> None:
    """What a point of 27,600 ranks costs is that of 64 ranks and vectors, so messages stay few."""
    policy = reducer(Bitvector(), collective=Hierarchical(4))
    outcome = simulate(step(), policy, Machine.load("summit"), 27_600, steps=1)
    assert outcome.messages <= 64 * 6 * 4
    assert outcome.launches.shape[0] == 64
    assert outcome.nodes == 4600


# ---- bad input ----


def test_more_ranks_than_there_are() -> None:
    with pytest.raises(MachineError, match="27,648 ranks"):
        simulate(step(), reducer(), Machine.load("summit"), 30_000)


def test_a_step_without_times() -> None:
    counted: Step = step(forward=0.0, backward=0.0)
    with pytest.raises(StepError, match="counted and not timed"):
        simulate(counted, reducer(), machine(), 4)
