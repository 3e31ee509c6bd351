"""TaskGraph and Relation: what tasks take, forwards and backwards; Plan: who sends what to whom."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exafield.engine import Relation, TaskGraph
from exafield.engine.plan import Plan


@st.composite
def graphs(draw: st.DrawFn) -> TaskGraph:
    """Any graph of a few rows and columns."""
    width, steps = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    columns = st.lists(st.integers(0, width - 1), max_size=4, unique=True)
    relations = [Relation.of([draw(columns) for _ in range(width)]) for _ in range(draw(st.integers(1, 3)))]
    offsets = [draw(st.integers(0, width)) for _ in range(steps)]
    widths = [draw(st.integers(0, width - offset)) for offset in offsets]
    chosen = [draw(st.integers(0, len(relations) - 1)) for _ in range(steps)]
    return TaskGraph(width, np.array(offsets), np.array(widths), np.array(chosen), tuple(relations))


@settings(max_examples=100)
@given(graphs())
def test_consumers_are_inputs_read_backwards(graph: TaskGraph) -> None:
    forwards = {(t - 1, q, p) for t, p in graph.tasks() for q in graph.inputs(t, p)}
    backwards = {(t, q, p) for t, q in graph.tasks() for p in graph.consumers(t, q)}
    assert forwards == backwards
    assert graph.dependencies() == sum(len(graph.inputs(t, p)) for t, p in graph.tasks())
    assert len(graph) == len(list(graph.tasks()))


@settings(max_examples=100)
@given(graphs(), st.integers(1, 4))
def test_what_is_sent_is_what_is_received_and_what_is_needed(graph: TaskGraph, size: int) -> None:
    plans = [Plan(graph, rank, size) for rank in range(size)]
    assert [c for plan in plans for c in plan.columns] == list(range(graph.width))
    owner = {c: rank for rank, plan in enumerate(plans) for c in plan.columns}
    for t in range(graph.steps):
        exchanges = [plan.exchange(t) for plan in plans]
        needed = {(q, owner[q], owner[p]) for p in graph.columns(t) for q in graph.inputs(t, p) if owner[q] != owner[p]}
        sent = {(int(c), rank, int(r)) for rank, e in enumerate(exchanges) for c, r in zip(e.sent, e.to, strict=True)}
        got = {
            (int(c), int(s), rank)
            for rank, e in enumerate(exchanges)
            for c, s in zip(e.received, e.source, strict=True)
        }
        assert sent == got == needed
        for a in range(size):  # one tag is enough only if both list their messages in the same order
            for b in range(size):
                out = [int(c) for c, r in zip(exchanges[a].sent, exchanges[a].to, strict=True) if r == b]
                into = [int(c) for c, s in zip(exchanges[b].received, exchanges[b].source, strict=True) if s == a]
                assert out == into


@settings(max_examples=50)
@given(graphs(), st.integers(1, 3))
def test_the_table_of_a_plan_says_the_same_as_its_exchanges(graph: TaskGraph, size: int) -> None:
    for rank in range(size):
        plan = Plan(graph, rank, size)
        table, own = plan.table(), len(plan.columns)
        for t in range(graph.steps):
            exchange, kind = plan.exchange(t), table.kinds[t]
            assert np.array_equal(table.sent[table.sent_starts[kind] : table.sent_starts[kind + 1]], exchange.sent)
            assert np.array_equal(table.to[table.sent_starts[kind] : table.sent_starts[kind + 1]], exchange.to)
            part = slice(table.received_starts[kind], table.received_starts[kind + 1])
            assert np.array_equal(table.received[part], exchange.received)
            assert np.array_equal(table.source[part], exchange.source)
            order = table.order[kind * own : (kind + 1) * own]
            assert sorted(order) == list(plan.columns)
            assert set(order[: table.exported[kind]]) == set(exchange.sent)


@given(graphs())
def test_a_graph_survives_being_pickled(graph: TaskGraph) -> None:
    again = pickle.loads(pickle.dumps(graph))
    assert [again.inputs(t, p) for t, p in again.tasks()] == [graph.inputs(t, p) for t, p in graph.tasks()]


@pytest.mark.parametrize(
    ("starts", "producers", "says"),
    [
        ([0], [], "at least two"),
        ([0, 2], [0], "rise from 0"),
        ([0, 1, 0], [], "rise"),
        ([0, 1], [1], r"columns 0\.\.0"),
    ],
)
def test_relations_are_checked(starts: list[int], producers: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Relation(np.array(starts), np.array(producers, dtype=np.int64))


def test_rows_are_checked() -> None:
    none = Relation.of([[], []])
    one = np.array([0])
    with pytest.raises(ValueError, match=r"row 0 is not inside the columns 0\.\.1"):
        TaskGraph(2, one, np.array([3]), one, (none,))
    with pytest.raises(ValueError, match="indices of the 1 relations"):
        TaskGraph(2, one, one, np.array([1]), (none,))
    with pytest.raises(ValueError, match="every relation must have 3 columns"):
        TaskGraph(3, one, one, one, (none,))
    with pytest.raises(ValueError, match="one entry for each row"):
        TaskGraph(2, one, np.array([1, 1]), one, (none,))
