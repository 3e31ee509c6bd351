"""State: trees of tensors and plain values to bytes and back, and the generators' states."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from exafield.state import misfit, pack, random_state, seed_everything, set_random_state, unpack

dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
tensors = st.builds(
    lambda shape, dtype, seed: torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    dtypes,
    st.integers(0, 100),
)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | tensors
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@settings(max_examples=150, deadline=None)
@given(trees)
def test_what_is_packed_comes_back(tree: Any) -> None:
    assert same(unpack(pack(tree)), tree)


def test_views_complex_and_tied_tensors() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tree = {"t": base.t(), "row": base[1], "tied": base, "again": base, "c": torch.tensor([1 + 2j, 3j]).conj()}
    back = unpack(pack(tree))
    assert all(torch.equal(back[key], tree[key]) for key in tree)
    large = torch.zeros(1000)
    assert len(pack({"a": large, "b": large})) < len(pack({"a": large})) + 200


def test_what_cannot_be_packed_is_named() -> None:
    with pytest.raises(TypeError, match=r"a/0/b is a ndarray, which cannot be saved: keep tensors"):
        pack({"a": [{"b": np.zeros(3)}]})
    with pytest.raises(TypeError, match=r"a has a key \(1, 2\)"):
        pack({"a": {(1, 2): 3}})


def test_a_newer_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exafield.state.VERSION", 2)
    data = pack({})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="update exafield"):
        unpack(data)


def draw() -> tuple[float, float, float, list[float]]:
    return random.random(), random.gauss(0, 1), float(np.random.standard_normal()), torch.randn(3).tolist()  # noqa: NPY002


def test_generators_go_on_where_they_were() -> None:
    device = torch.device("cpu")
    draw()  # leaves Python and numpy with half a pair of normal numbers in store
    state = pack(random_state(device))
    first = [draw() for _ in range(3)]
    set_random_state(unpack(state), device)
    assert [draw() for _ in range(3)] == first


def test_seeds_repeat_and_differ() -> None:
    def after(*entropy: int) -> tuple[float, float, float, list[float]]:
        seed_everything(*entropy)
        return draw()

    assert after(3, 1) == after(3, 1)
    assert len({str(after(*e)) for e in [(3,), (3, 1), (3, 2), (4, 1)]}) == 4


def test_misfit_names_what_differs() -> None:
    net = nn.Linear(2, 3)
    state = net.state_dict()
    assert misfit(net, state) is None
    assert misfit(net, {"bias": state["bias"]}) == "missing weight"
    assert misfit(net, state | {"a": state["bias"]}) == "unexpected a"
    assert (
        misfit(net, state | {"bias": torch.zeros(4)}) == "bias has shape (4,) in the checkpoint and (3,) in the model"
    )
    assert "torch.float64 in the checkpoint" in str(misfit(net, state | {"bias": torch.zeros(3).double()}))
    many = {f"x{i}": state["bias"] for i in range(9)}
    assert misfit(net, state | many) == "unexpected x0, x1, x2, x3, x4 and 4 more"
