"""Trace: spans in, Perfetto JSON out, ranks on one clock."""

import json
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exafield.trace import Span, Trace


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_span_records_entry_and_exit_on_the_given_clock() -> None:
    clock = Clock()
    trace = Trace(rank=3, clock=clock)
    clock.now = 1.5
    with trace.span("trainer", "forward", player="net"):
        clock.now = 2.25
    trace.instant("reduce", "ready", group=1)
    assert trace.spans == [
        Span(3, "trainer", "forward", 1.5, 2.25, {"player": "net"}),
        Span(3, "reduce", "ready", 2.25, 2.25, {"group": 1}),
    ]
    assert trace.spans[0].duration == 0.75


def test_span_left_by_an_exception_is_recorded() -> None:
    trace = Trace()
    with pytest.raises(KeyError), trace.span("a", "b"):
        raise KeyError
    assert [span.name for span in trace.spans] == ["b"]


def test_disabled_trace_keeps_nothing() -> None:
    trace = Trace(enabled=False)
    with trace.span("a", "b"):
        trace.add("a", "c", 0.0, 1.0)
        trace.instant("a", "d")
    assert trace.spans == []


def test_threads_add_without_loss() -> None:
    trace = Trace()

    def work(lane: str) -> None:
        for i in range(500):
            trace.add(lane, str(i), float(i), i + 1.0)

    threads = [threading.Thread(target=work, args=(f"lane {k}",)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(4):
        assert [s.name for s in trace.spans if s.lane == f"lane {k}"] == [str(i) for i in range(500)]


def test_oldest_spans_go_first_and_are_counted() -> None:
    trace = Trace(limit=3)
    for i in range(5):
        trace.add("a", str(i), float(i), float(i))
    assert [s.name for s in trace.spans] == ["2", "3", "4"]
    assert trace.dropped == 2
    with pytest.raises(ValueError, match="enabled=False"):
        Trace(limit=0)


def test_merge_puts_ranks_on_one_clock() -> None:
    # Both ranks did the thing at wall time 100; their own clocks started at other moments.
    first = Trace(rank=0, clock=Clock(), offset=90.0)
    second = Trace(rank=1, clock=Clock(), offset=-900.0)
    second.add("a", "x", 1000.0, 1001.0)
    first.add("a", "x", 10.0, 11.0)
    merged = Trace.merge([first, second])
    assert [(s.rank, s.start, s.end) for s in merged.spans] == [(0, 100.0, 101.0), (1, 100.0, 101.0)]
    assert merged.offset == 0.0


def test_default_clock_is_aligned_to_the_wall() -> None:
    trace = Trace()
    trace.instant("a", "now")
    assert abs(Trace.merge([trace]).spans[0].start - time.time()) < 60.0
    assert Trace(clock=Clock()).offset == 0.0


def test_saved_json_has_a_process_per_rank_and_a_named_thread_per_lane(tmp_path: Path) -> None:
    traces = [Trace(rank=r, clock=Clock()) for r in range(2)]
    for trace in traces:
        trace.add("trainer", "forward", 1.0, 2.0)
        trace.add("trainer", "inner", 1.25, 1.5)
        trace.add("reduce", "ready", 1.5, 1.5)
    Trace.merge(traces).save(tmp_path / "trace.json")
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]
    document = json.loads((tmp_path / "trace.json").read_text())
    events = document["traceEvents"]
    assert document["otherData"]["version"] == 1
    assert {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"} == {0: "rank 0", 1: "rank 1"}
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert sorted((pid, name) for (pid, _), name in names.items()) == [
        (0, "reduce"), (0, "trainer"), (1, "reduce"), (1, "trainer"),
    ]  # fmt: skip
    for event in events:
        if event["ph"] in "Xi":
            assert names[event["pid"], event["tid"]] == event["cat"]
    forward = next(e for e in events if e["name"] == "forward")
    assert (forward["ts"], forward["dur"]) == (0.0, 1e6)


spans = st.tuples(
    st.integers(0, 2),
    st.sampled_from(["a", "b"]),
    st.integers(0, 50),
    st.integers(0, 20),
)


@settings(max_examples=60)
@given(st.lists(spans, max_size=20))
def test_round_trip_and_nesting_on_every_thread(tmp_path_factory: pytest.TempPathFactory, drawn: list) -> None:
    path = tmp_path_factory.mktemp("trace") / "t.json"
    traces = {rank: Trace(rank=rank, clock=Clock()) for rank in range(3)}
    for i, (rank, lane, start, length) in enumerate(drawn):
        traces[rank].add(lane, str(i), float(start), float(start + length), size=i)
    merged = Trace.merge(traces.values())
    merged.save(path)
    loaded = Trace.load(path)

    def key(s: Span) -> tuple[str, int, str, object]:
        return (s.name, s.rank, s.lane, s.args)

    assert sorted(map(key, loaded.spans), key=str) == sorted(map(key, merged.spans), key=str)
    ours = {s.name: s for s in merged.spans}
    for span in loaded.spans:
        assert abs(span.start - ours[span.name].start) < 2e-9
        assert abs(span.end - ours[span.name].end) < 2e-9
    rows: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in json.loads(path.read_text())["traceEvents"]:
        if event["ph"] == "X":
            rows.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    for row in rows.values():
        for i, (s1, e1) in enumerate(row):
            for s2, e2 in row[i + 1 :]:
                assert e1 <= s2 or e2 <= s1 or (s1 <= s2 and e2 <= e1) or (s2 <= s1 and e1 <= e2)


def test_load_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    for text in ("", "[1, 2]", '{"traceEvents": []}', '{"traceEvents": [], "otherData": {"format": "x"}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="not a trace written by exafield"):
            Trace.load(path)
    Trace().save(path)
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="update exafield"):
        Trace.load(path)
