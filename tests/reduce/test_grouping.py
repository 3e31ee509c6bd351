"""Groupings are pure: every tensor in exactly one group, of one kind, and cut as promised."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from exafield.message import Topology
from exafield.reduce import Flat, Fused, GraphAware, Grouped, Single
from exafield.reduce.agreement import scopes
from exafield.reduce.grouping import Grouping, Groups, TensorInfo

tensors = st.lists(
    st.builds(
        TensorInfo,
        name=st.just("w"),
        scope=st.sampled_from(["a", "b", "c"]),
        nbytes=st.integers(4, 10**6),
        kind=st.sampled_from(["torch.float32 cpu", "torch.float64 cpu"]),
        ready=st.floats(0, 1),
    ),
    min_size=1,
    max_size=40,
)
groupings = st.one_of(
    st.just(Single()),
    st.builds(Fused, mb=st.floats(1e-4, 2)),
    st.builds(Grouped, groups=st.integers(1, 9)),
    st.builds(GraphAware, groups=st.integers(1, 9)),
    st.just(GraphAware(per="scope")),
)


@given(tensors, groupings)
def test_every_tensor_is_in_one_group_of_its_kind(infos: list[TensorInfo], grouping: Grouping) -> None:
    groups = grouping.plan(infos)
    assert sorted(i for group in groups for i in group) == list(range(len(infos)))
    assert all(len({infos[i].kind for i in group}) == 1 for group in groups)
    # Groups come in the order in which they can leave.
    done = [max(infos[i].ready for i in group) for group in groups]
    assert all(a <= b for a, b in pairwise(done))


def _same(sizes: list[int], ready: list[float]) -> list[TensorInfo]:
    return [TensorInfo(str(i), None, s, "f", r) for i, (s, r) in enumerate(zip(sizes, ready, strict=True))]


def _end(groups: Groups, infos: list[TensorInfo]) -> float:
    """When the last transfer ends, by the cost model that GraphAware documents."""
    total = sum(t.nbytes for t in infos)
    end = 0.0
    for group in groups:
        end = max(end, *(infos[i].ready for i in group)) + sum(infos[i].nbytes for i in group) / total
    return end


def test_graph_aware_is_the_best_cut_of_the_backward_order() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        count = 8
        infos = _same(rng.integers(1, 100, count).tolist(), np.sort(rng.uniform(0, 1, count)).tolist())
        best = min(
            _end(tuple(tuple(range(a, b)) for a, b in pairwise((0, i, j, count))), infos)
            for i in range(1, count)
            for j in range(i + 1, count)
        )
        assert _end(GraphAware(groups=3).plan(infos), infos) == pytest.approx(best)


def test_fused_never_exceeds_its_size_but_for_single_tensors() -> None:
    infos = _same([400_000, 400_000, 400_000, 3_000_000, 100], [0.1, 0.2, 0.3, 0.4, 0.5])
    assert Fused(mb=1).plan(infos) == ((0, 1), (2,), (3,), (4,))


def test_grouped_has_equal_counts_in_reverse_order_of_the_model() -> None:
    infos = _same([1, 1000, 1, 1, 1, 1, 1], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    assert Grouped(groups=3).plan(infos) == ((6, 5, 4), (3, 2, 1), (0,))


def test_scopes_are_the_outermost_modules_that_are_no_containers() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ModuleDict({"block": nn.TransformerEncoderLayer(4, 2)}), nn.Sequential(nn.Linear(2, 2))
    )
    names = [name for name, _ in model.named_parameters()]
    found = scopes(model, names)
    assert set(found.values()) == {"0", "1.block", "2.0"}
    assert found["1.block.self_attn.in_proj_weight"] == "1.block"


def test_scopes_need_a_module() -> None:
    with pytest.raises(ValueError, match="attach the module itself"):
        GraphAware(per="scope").plan(_same([4, 4], [0.0, 1.0]))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Fused(mb=0), "above 0 MiB"),
        (lambda: Grouped(groups=0), "at least 1"),
        (lambda: GraphAware(groups=0), "at least 1"),
    ],
)
def test_bad_choices_say_what_to_change(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("topology", [Topology.regular(1, 1), Topology.regular(6, 2), Topology(((0, 3), (1, 2, 4)))])
def test_flat_is_priced_as_a_ring(topology: Topology) -> None:
    size, nbytes = topology.size, 600.0
    phases = Flat().schedule(topology, nbytes)
    sent = [0.0] * size
    for phase in phases:
        assert sorted(m.src for m in phase.messages) == sorted(m.dst for m in phase.messages) == list(range(size))
        for message in phase.messages:
            sent[message.src] += message.nbytes * phase.repeat
    assert sent == pytest.approx([2 * nbytes * (size - 1) / size] * size)
    if phases:
        leaving = [m for m in phases[0].messages if topology.node_of(m.src) != topology.node_of(m.dst)]
        assert len(leaving) == (len(topology.nodes) if len(topology.nodes) > 1 else 0)
