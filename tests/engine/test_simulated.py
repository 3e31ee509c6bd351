"""Simulated: task graphs in virtual time, against sums by hand and what is known of METG."""

import numpy as np
import pytest

from exafield.engine import EngineError
from exafield.engine.simulated import Simulated
from exafield.machine import MachineError
from exafield.taskbench.patterns import pattern
from machine_of_tests import machine, quiet

LATENCY, OVERHEAD = 1.5e-6, 5e-7  # between nodes of these machines
NEAR, NEAR_OVERHEAD = 1e-6, 2e-7


def test_tasks_without_dependencies_cost_nothing_more() -> None:
    graph = pattern("trivial", 8, 10).graph()
    took = Simulated(quiet()).run(graph, 1e-3)
    assert took.elapsed == pytest.approx(0.01)
    assert took.computing == pytest.approx([0.01] * 8)
    assert took.messages == 0


def test_a_chain_over_two_nodes_pays_for_every_message() -> None:
    """`dom` on two columns: the second waits for the first and sends nothing back."""
    graph = pattern("stencil_1d", 2, 11).graph()
    took = Simulated(quiet(each=1)).run(graph, 1e-3, output_bytes=0)
    assert took.messages == 20
    assert took.elapsed == pytest.approx(0.011 + 10 * (LATENCY + 2 * OVERHEAD))
    near = Simulated(quiet(each=2)).run(graph, 1e-3, output_bytes=0)
    assert near.elapsed == pytest.approx(0.011 + 10 * (NEAR + 2 * NEAR_OVERHEAD))


def test_bytes_take_time_and_share_the_ways_out() -> None:
    graph = pattern("stencil_1d", 2, 11).graph()
    took = Simulated(quiet(each=1)).run(graph, 1e-3, output_bytes=12_500_000)
    assert took.elapsed == pytest.approx(0.011 + 10 * (LATENCY + 2 * OVERHEAD + 1e-3))
    # Six ranks of a node send to six of the other one, over two rails.
    crossing = pattern("fft", 12, 2).graph()
    alone = Simulated(quiet(each=6)).run(crossing, 0.0, output_bytes=12_500_000).elapsed
    assert alone > 2e-4


def test_a_slow_task_holds_up_who_takes_from_it() -> None:
    graph = pattern("stencil_1d", 8, 4).graph()
    seconds = np.full((4, 8), 1e-3)
    seconds[1, 3] = 1e-2
    took = Simulated(quiet()).run(graph, seconds, output_bytes=0)
    assert took.elapsed == pytest.approx(0.013, rel=0.01)
    assert took.computing[3] == pytest.approx(0.013)

    def per_row(t: int, columns: range) -> np.ndarray:
        return seconds[t, columns.start : columns.stop]

    again = Simulated(quiet()).run(graph, per_row, output_bytes=0)
    assert again.elapsed == took.elapsed


def test_ranks_run_their_columns_in_turn_and_send_nothing_to_themselves() -> None:
    graph = pattern("stencil_1d", 8, 5).graph()
    took = Simulated(quiet()).run(graph, 1e-3, ranks=2, output_bytes=0)
    assert took.messages == 4 * 2
    assert took.elapsed == pytest.approx(0.02, rel=0.01)
    assert Simulated(quiet()).run(graph, 1e-3, ranks=1).elapsed == pytest.approx(0.04)


@pytest.mark.parametrize("kind", ["tree", "dom", "spread", "random_nearest", "all_to_all", "nearest"])
def test_rows_that_grow_and_relations_that_change(kind: str) -> None:
    """Nothing ends before its longest path, nor later than all of it in turn."""
    graph = pattern(kind, 8, 6, radix=3).graph()
    took = Simulated(quiet()).run(graph, 1e-3)
    virtual = took.elapsed  # no clock is read
    assert 0.006 <= virtual <= 0.001 * len(graph) + took.messages * 1e-5
    assert took.computing.sum() == pytest.approx(0.001 * len(graph))


def test_metg_grows_with_the_radix_by_the_overheads() -> None:
    """Half the time is spent on tasks that take as long as everything else: METG(50 %) of a row is twice that."""
    test = quiet(nodes=64, each=4)

    def granularity(radix: int) -> float:
        graph = pattern("nearest", 256, 40, radix=radix).graph()
        low, high = 1e-8, 1e-3
        for _ in range(40):
            middle = (low * high) ** 0.5
            took = Simulated(test).run(graph, middle, output_bytes=16).elapsed
            low, high = (low, middle) if middle * 40 / took > 0.5 else (middle, high)
        return 2 * high

    three, five = granularity(3), granularity(5)
    assert 2 * (LATENCY + 2 * OVERHEAD) < three < five < 2 * (LATENCY + 16 * OVERHEAD)


def test_jitter_is_drawn_again_for_another_seed() -> None:
    graph = pattern("stencil_1d", 24, 10).graph()
    runs = [Simulated(machine()).run(graph, 1e-3, seed=seed).elapsed for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0] > Simulated(machine()).run(graph, 1e-3).elapsed
    paused = Simulated(quiet(jitter__tail=1.0, jitter__pause=1e-3)).run(graph, 1e-3, seed=0)
    assert paused.elapsed > 0.02


def test_a_trace_of_tasks_and_messages() -> None:
    graph = pattern("stencil_1d", 4, 3).graph()
    took = Simulated(quiet(each=1)).run(graph, 1e-3, trace=True)
    assert took.trace is not None
    tasks = [s for s in took.trace.spans if s.lane == "tasks"]
    assert len(tasks) == 12
    assert max(s.end for s in tasks) == pytest.approx(took.elapsed)
    assert {s.name for s in took.trace.spans if s.lane == "messages"} == {"row 1", "row 2"}


def test_what_is_not_accepted() -> None:
    graph = pattern("stencil_1d", 4, 3).graph()
    with pytest.raises(MachineError, match="cannot be placed"):
        Simulated(machine(nodes=1, each=2)).run(graph, 1.0)
    with pytest.raises(EngineError, match="a row for each of 3 rows and 4 columns"):
        Simulated(machine()).run(graph, np.ones((4, 3)))
    with pytest.raises(EngineError, match="each must take 0 s or more"):
        Simulated(machine()).run(graph, -1.0)
    with pytest.raises(EngineError, match="row 0 has 4 tasks"):
        Simulated(machine()).run(graph, lambda t, columns: np.ones(2))


def test_messages_are_held_up_as_often_and_as_long_as_said() -> None:
    """A chain of two columns on two nodes waits for every message in turn."""
    graph = pattern("dom", 2, 2).graph()
    held = quiet(each=1).with_({"between.held": 0.25, "between.hold": 1e-2})
    took = Simulated(held).elapsed(graph, 1e-3, 4000, output_bytes=0, seed=0)
    late = took - 0.002 - (LATENCY + 2 * OVERHEAD)
    assert late.shape == (4000,)
    assert late.min() == pytest.approx(0, abs=1e-12)
    assert (late > 1e-9).mean() == pytest.approx(0.25, abs=4 * 0.007)
    assert late[late > 1e-9].mean() == pytest.approx(1e-2, rel=4 / 1000**0.5)
    # Inside a node they are not, nor without a seed.
    near = quiet(each=2).with_({"between.held": 1.0, "between.hold": 1e-2})
    for virtual in (Simulated(near).run(graph, 1e-3, seed=0), Simulated(held).run(graph, 1e-3)):
        assert virtual.elapsed == pytest.approx(0.002, rel=0.01)


def test_runs_at_once_are_runs_one_by_one() -> None:
    graph = pattern("spread", 24, 10, radix=3).graph()
    several = Simulated(machine()).elapsed(graph, 1e-3, 50, seed=3)
    assert len(set(several.tolist())) == 50
    alone = [Simulated(machine()).run(graph, 1e-3, seed=seed).elapsed for seed in range(50)]
    assert several.mean() == pytest.approx(np.mean(alone), rel=0.01)
    assert Simulated(machine()).elapsed(graph, 1e-3, 2) == pytest.approx(
        [Simulated(machine()).run(graph, 1e-3).elapsed] * 2
    )
