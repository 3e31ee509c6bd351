"""Summaries: figures of traces made by hand, and of a real run of two ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from exafield.batchnorm import LANE, SyncBatchNorm
from exafield.reduce import Bitvector, Grouped, Reducer
from exafield.report import Report
from exafield.store import RunFolder
from exafield.summary import _covered, _union, size, summarise
from exafield.trace import Trace
from exafield.tracefile import load_trace
from exafield.trainer import Trainer
from exafield.world import World
from ranks import run_ranks
from test_trainer import Noisy, Regression


def step(trace: Trace, number: int, at: float, backward: float, finish: float) -> float:
    """A step of one player: 1 s forward, one group that leaves half a second before backward ends, and one at its end
    that lasts as long as `finish`.
    """
    a, b = at + 1.0, at + 1.0 + backward
    end = b + finish
    trace.add("trainer", "forward", at, a, player="net")
    trace.add("trainer", "backward", a, b, player="net")
    trace.add("ready net", "group 0", b - 0.75, b - 0.5, bytes=400)
    trace.add("reduce net", "group 0", b - 0.5, b + 0.25, bytes=400)
    trace.add("agree net", "round 1", b - 0.75, b - 0.5)
    trace.add("ready net", "group 1", b, b + 0.125, bytes=600)
    trace.add("reduce net", "group 1", b + 0.125, end, bytes=600)
    trace.add("trainer", "finish", b, end, player="net")
    trace.add("trainer", "optimiser", end, end + 0.5, player="net")
    trace.add("trainer", "step", at, end + 0.5, number=number)
    return end + 0.5


def made(rank: int, backward: float, finish: float, steps: int = 4) -> Trace:
    # Clocks that do not agree: nothing compares times of different ranks.
    trace, at = Trace(rank, clock=lambda: 0.0), 100.0 * rank
    for number in range(steps):
        at = step(trace, number, at, backward, finish)
    return trace


def test_one_rank() -> None:
    s = summarise(made(0, backward=2.0, finish=1.0))
    assert (s.ranks, s.steps, s.step_time, s.duration) == ((0,), 4, 4.5, 18.0)
    assert s.phases == {"forward": 4.0, "backward": 8.0, "finish": 4.0, "optimiser": 2.0}
    assert s.compute == pytest.approx(12 / 18)
    assert s.straggler is None
    (c,) = s.communication
    # Under way from 0.5 s before backward's end to 1 s after it: two groups that overlap count once.
    assert c.total == pytest.approx(1.5)
    assert c.exposed == pytest.approx(1.0)
    assert c.hidden == pytest.approx(1 / 3)
    assert (c.groups, c.rounds, c.bytes) == (2, 1, 1000)
    assert c.waited == pytest.approx((0.25 + 0.125) / 2)


def test_the_rank_that_others_wait_for() -> None:
    ranks = [made(0, 2.0, 2.0), made(1, 3.0, 1.0), made(2, 1.0, 3.0)]
    s = summarise(Trace.merge(ranks)).straggler
    assert s is not None
    assert (s.rank, s.share, s.steps) == (1, 1.0, 4)
    assert s.lead == pytest.approx((1.0 + 2.0) / 2)


def test_who_is_last_may_change() -> None:
    first, second = Trace(0, clock=lambda: 0.0), Trace(1, clock=lambda: 0.0)
    at = [0.0, 0.0]
    for number, slow in enumerate([0, 1, 1, 1]):
        at[0] = step(first, number, at[0], 3.0 if slow == 0 else 2.0, 1.0)
        at[1] = step(second, number, at[1], 3.0 if slow == 1 else 2.0, 1.0)
    s = summarise(Trace.merge([first, second])).straggler
    assert s is not None
    assert (s.rank, s.share, s.lead) == (1, 0.75, pytest.approx(1.0))


def test_a_rank_whose_trace_is_cut_short() -> None:
    s = summarise(Trace.merge([made(0, 2.0, 2.0, steps=4), made(1, 3.0, 1.0, steps=2)]))
    assert s.steps == 4
    assert s.straggler is not None
    assert s.straggler.steps == 2


def test_dropped_spans_take_their_steps_with_them() -> None:
    whole = made(0, 2.0, 1.0)
    for kept in range(1, len(whole.spans)):
        trace = Trace(clock=lambda: 0.0, limit=kept)
        for span in whole.spans:
            trace.add(span.lane, span.name, span.start, span.end, **span.args)
        s = summarise(trace)
        assert s.dropped == len(whole.spans) - kept
        assert f"the oldest {s.dropped} spans" in "\n".join(s.lines())
        assert s.steps == (kept - 1) // 10  # a step is 10 spans, and what ended before it tells that it is whole
        if s.steps:
            assert s.step_time == 4.5
            assert s.compute == pytest.approx(12 / 18)


def test_reductions_without_a_trainer() -> None:
    trace = Trace(clock=lambda: 0.0)
    trace.add("reduce model", "group 0", 1.0, 2.0, bytes=10)
    (c,) = summarise(trace).communication
    assert (c.total, c.exposed, c.hidden) == (1.0, None, None)
    assert "hidden" not in "\n".join(summarise(trace).lines())


def test_an_empty_trace() -> None:
    assert summarise(Trace()).lines() == ["ranks          0 (), 0 µs in all"]


def test_lag_hides_what_crosses_steps() -> None:
    trace = Trace(clock=lambda: 0.0)
    for number in range(3):
        at = 2.0 * number
        trace.add("trainer", "step", at, at + 2.0, number=number)
        trace.add("trainer", "finish", at + 1.5, at + 1.75, player="net")
        trace.add("reduce net", "group 0", at + 1.5, at + 2.5, bytes=1)
    (c,) = summarise(trace).communication
    assert c.hidden == pytest.approx(0.75)


def test_changes_are_told_once_and_the_last_ones() -> None:
    ranks = []
    for rank in range(2):
        trace = made(rank, 2.0, 1.0)
        for number in range(20):
            trace.add("reducer net", f"change {number}", 1.0 + number, 1.0 + number, why="because")
        ranks.append(trace)
    s = summarise(Trace.merge(ranks))
    assert len(s.events) == 20
    assert s.events[0][1:] == ("net, change 0", "because")
    said = s.lines()
    assert said[-2].endswith("net, change 19: because")
    assert said[-1] == "  and 8 before"


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8))),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8))),
)
def test_what_intervals_have_in_common(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    parts, wholes = (_union((float(a), float(a + n)) for a, n in some) for some in (first, second))
    ticks = [{t for a, n in some for t in range(a, a + n)} for some in (first, second)]
    assert sum(_covered(parts, wholes)) == len(ticks[0] & ticks[1])
    assert sum(end - start for start, end in parts) == len(ticks[0])


def test_sizes_have_prefixes() -> None:
    assert [size(x) for x in (0, 999, 1500, 2.5e6, 3e9)] == ["0 B", "999 B", "1.5 kB", "2.5 MB", "3 GB"]


def test_messages_of_batch_norms_are_exposed_and_no_computing() -> None:
    trace = made(0, backward=2.0, finish=1.0)
    for number in range(4):
        at = 4.5 * number
        for start, took in ((at + 0.25, 0.25), (at + 1.5, 0.5)):  # in forward, and in backward
            trace.add(LANE, "all_reduce", start, start + took, bytes=40)
    s = summarise(trace)
    norms, net = s.communication
    assert (norms.player, norms.total, norms.exposed, norms.groups, norms.bytes) == ("batch norms", 0.75, 0.75, 2, 80)
    assert net.exposed == pytest.approx(1.0)
    assert s.phases == {"forward": 3.0, "backward": 6.0, "batch norms": 3.0, "finish": 4.0, "optimiser": 2.0}
    assert s.compute == pytest.approx(9 / 18)
    said = "\n".join(s.lines())
    assert "sums of batch norms, mean over ranks and steps" in said
    assert "100.0 %  in forward and backward" in said


def test_a_rank_that_waits_for_batch_norms_is_not_the_slow_one() -> None:
    # Both take as long in all: rank 0 waits for rank 1 in forward.
    ranks = [made(0, 2.0, 1.0), made(1, 2.0, 1.0)]
    for number in range(4):
        ranks[0].add(LANE, "all_reduce", 4.5 * number + 0.25, 4.5 * number + 0.75)
    straggler = summarise(Trace.merge(ranks)).straggler
    assert straggler is not None
    assert (straggler.rank, straggler.lead) == (1, pytest.approx(0.5))


# ---- a real run ----


def train(world: World, folder: str) -> None:
    reducer = Reducer(control=Bitvector(), grouping=Grouped(3))
    trainer = Trainer(Regression(Noisy), world, reducer, folder=RunFolder(folder), report=Report(show=False))
    trainer.fit(steps=12)
    if world.rank == 0:
        print(json.dumps(trainer.seats.here["net"].reduction.stats.bytes), flush=True)


def test_a_run_of_two_ranks(tmp_path: Path) -> None:
    said = run_ranks(2, train, str(tmp_path))
    s = summarise(load_trace(tmp_path))
    assert (s.ranks, s.steps) == ((0, 1), 12)
    assert set(s.phases) == {"forward", "backward", "finish", "optimiser", "data wait", "evaluate", "checkpoint"}
    assert 0 < sum(s.phases.values()) < s.duration
    (c,) = s.communication
    assert (c.player, c.groups) == ("net", 3)
    assert c.bytes == json.loads(said[0].splitlines()[-1]) / 12
    assert c.rounds >= 1
    assert c.exposed is not None
    assert 0 < c.exposed <= c.total
    assert s.straggler is not None
    assert s.straggler.steps == 12
    check_chrome_rules(json.loads((tmp_path / "trace.json").read_text()), ranks=2)


def train_normed(world: World, folder: str) -> None:
    def made() -> nn.Module:
        return SyncBatchNorm.convert(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), world)

    Trainer(Regression(made), world, Reducer(), folder=RunFolder(folder), report=Report(show=False)).fit(steps=5)


def test_a_run_with_batch_norms_over_ranks(tmp_path: Path) -> None:
    run_ranks(2, train_normed, str(tmp_path))
    s = summarise(load_trace(tmp_path))
    norms = s.communication[0]
    assert (norms.player, norms.groups) == ("batch norms", 4)  # two sums forward, two backward
    assert norms.bytes == 4 * (3 + 1) + 4 * 3 + 4 * 3 + 4 * (3 + 1)  # with the number of samples, and its gradient
    assert norms.exposed == norms.total > 0
    assert s.phases["batch norms"] == pytest.approx(5 * norms.total)


def check_chrome_rules(document: dict[str, Any], ranks: int) -> None:
    """What the trace-event format asks for (Google, "Trace Event Format"), and the viewer needs."""
    assert isinstance(document["traceEvents"], list)
    assert document["displayTimeUnit"] in ("ms", "ns")
    threads, lanes = {}, set()
    for event in document["traceEvents"]:
        assert isinstance(event["name"], str)
        assert event["ph"] in ("X", "i", "M")
        assert type(event["pid"]) is int
        assert isinstance(event["args"], dict)
        if event["ph"] == "M":
            wanted = {"process_name": "name", "thread_name": "name"}.get(event["name"], "sort_index")
            assert event["name"] in ("process_name", "process_sort_index", "thread_name", "thread_sort_index")
            assert set(event["args"]) == {wanted}
            if event["name"] == "thread_name":
                threads[event["pid"], event["tid"]] = event["args"]["name"]
            continue
        assert type(event["tid"]) is int
        assert event["ts"] >= 0
        assert threads[event["pid"], event["tid"]] == event["cat"]
        lanes.add(event["cat"])
        if event["ph"] == "X":
            assert event["dur"] > 0
        else:
            assert event["s"] == "t"
    assert {pid for pid, _ in threads} == set(range(ranks))
    assert {"trainer", "ready net", "reduce net", "agree net"} <= lanes
