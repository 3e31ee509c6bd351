"""Patterns: the vectorised definitions against scalar ones, which are written from the specification."""

import math
import pickle
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from exafield.engine.graph import Relation
from exafield.taskbench.beyond import GivenGraph, from_csr, from_file, of_relations, to_file
from exafield.taskbench.intervals import Intervals
from exafield.taskbench.patterns import BEYOND, PERIODIC, TYPES, Pattern, PatternError, pattern
from exafield.taskbench.siphash import KEY, siphash, uniforms

ALL = (*TYPES, *BEYOND)


# Scalar definitions ----------------------------------------------------------------------------------------------


REFERENCE_KEY = bytes([*range(1, 16), 0])


def siphash24(message: bytes, key: bytes) -> int:
    """SipHash-2-4 in whole numbers, from its authors' description."""
    k0, k1 = (int.from_bytes(key[at : at + 8], "little") for at in (0, 8))
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def turned(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) % 2**64

    def rounds(count: int) -> None:
        for _ in range(count):
            for a, b, bits in ((0, 1, 13), (2, 3, 16)):
                v[a] = (v[a] + v[b]) % 2**64
                v[b] = turned(v[b], bits) ^ v[a]
            v[0] = turned(v[0], 32)
            for a, b, bits in ((2, 1, 17), (0, 3, 21)):
                v[a] = (v[a] + v[b]) % 2**64
                v[b] = turned(v[b], bits) ^ v[a]
            v[2] = turned(v[2], 32)

    padded = message + bytes(-(len(message) + 1) % 8) + bytes([len(message) % 256])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


@cache
def drawn(*numbers: int) -> float:
    message = b"".join(number.to_bytes(8, "little", signed=True) for number in numbers)
    return siphash24(message, REFERENCE_KEY) * 2.0**-64


def ends(low: int, high: int) -> list[tuple[int, int]]:
    return [(low, high)] if low <= high else []


def grid(width: int) -> tuple[int, int]:
    rows = max(r for r in range(1, width + 1) if width % r == 0 and r <= width // r)
    return rows, width // rows


def naive_random(x: Pattern, d: int, p: int, low: int, high: int, back: bool) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for i in range(low, high + 1):
        producer, consumer = (p, i) if back else (i, p)
        if i == p or drawn(x.graph_index, x.radix, d, producer, consumer) < x.fraction:
            if found and found[-1][1] == i - 1:
                found[-1] = (found[-1][0], i)
            else:
                found.append((i, i))
    return found


def naive_spread(x: Pattern, d: int, p: int, back: bool) -> list[tuple[int, int]]:
    found = []
    for i in range(x.radix):
        shift = (i * x.width) // x.radix + (d if i > 0 else 0)
        q = (p - shift if back else p + shift) % x.width
        producer, consumer = (p, q) if back else (q, p)
        if x.type == "spread" or i == 0 or drawn(x.graph_index, x.radix, d, producer, consumer) < x.fraction:
            found.append((q, q))
    return found


def naive_grid(x: Pattern, p: int) -> list[tuple[int, int]]:
    rows, columns = grid(x.width)
    row, column = p // columns, p % columns
    found = []
    for r in (row - 1, row, row + 1):
        if 0 <= r < rows:
            side = 1 if x.type == "stencil_2d_9" or r == row else 0
            low, high = max(column - side, 0), min(column + side, columns - 1)
            found.append((r * columns + low, r * columns + high))
    return found


def naive(x: Pattern, d: int, p: int, back: bool) -> list[tuple[int, int]]:
    W, r = x.width, x.radix
    line = [(max(0, p - 1), min(p + 1, W - 1))]
    children, parent = ends(2 * p, min(2 * p + 1, W - 1)), [(p // 2, p // 2)]
    before, after = (r - 1) // 2 if back else r // 2, r // 2 if back else (r - 1) // 2
    match x.type:
        case "trivial":
            return []
        case "no_comm":
            return [(p, p)]
        case "stencil_1d":
            return line
        case "stencil_1d_periodic":
            return line + [(W - 1, W - 1)] * (p == 0) + [(0, 0)] * (p == W - 1)
        case "dom":
            return [(p, min(W - 1, p + 1))] if back else [(max(0, p - 1), p)]
        case "tree":
            return children if back else parent
        case "fft":
            return [(q, q) for q in (p - 2**d, p, p + 2**d) if 0 <= q < W]
        case "all_to_all":
            return [(0, W - 1)]
        case "nearest":
            return [(max(0, p - before), min(p + after, W - 1))] if r else []
        case "random_nearest":
            return naive_random(x, d, p, max(0, p - before), min(p + after, W - 1), back)
        case "spread" | "random_spread":
            return naive_spread(x, d, p, back)
        case "stencil_2d" | "stencil_2d_9":
            return naive_grid(x, p)
        case "multigrid":
            return line if d == 0 else children if (d == 1) != back else parent
    raise AssertionError(x.type)


def naive_sets(x: Pattern) -> int:
    if x.type == "fft":
        return math.ceil(math.log2(x.width))
    return x.period if x.type in PERIODIC else 3 if x.type == "multigrid" else 1


def multigrid_row(width: int, t: int) -> tuple[int, int]:
    """Number of points and set of row t, found by walking."""
    level, down, smooth = 0, True, True
    points = [width]
    while points[-1] > 1:
        points.append((points[-1] + 1) // 2)
    dset = 0
    for _ in range(t):
        if smooth and len(points) > 1:
            down = level < len(points) - 1 and (down or level == 0)
            level += 1 if down else -1
            dset, smooth = (1 if down else 2), False
        else:
            dset, smooth = 0, True
    return points[level], dset


def naive_row(x: Pattern, t: int) -> tuple[int, int, int]:
    """Offset, width, set."""
    if not 0 <= t < x.steps:
        return 0, 0, 0
    W, T, D = x.width, x.steps, naive_sets(x)
    match x.type:
        case "dom":
            return max(0, t + W - T), min(W, t + 1, T - t), 0
        case "tree":
            return 0, min(W, 2 ** min(t, 62)), 0
        case "fft":
            return 0, W, (t + D - 1) % D
        case "multigrid":
            return 0, *multigrid_row(W, t)
    return 0, W, t % D


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    kind = draw(st.sampled_from(ALL))
    width, steps, radix = draw(st.integers(1, 20)), draw(st.integers(1, 12)), draw(st.integers(0, 24))
    if kind in ("spread", "random_spread"):
        radix = draw(st.integers(1, width))
    period = draw(st.integers(1, min(5, -(-width // max(1, radix))) if "spread" in kind else 5))
    try:
        return pattern(
            kind,
            width,
            steps,
            radix,
            period if kind in PERIODIC else None,
            draw(st.floats(0, 1)),
            draw(st.integers(0, 9)),
        )
    except PatternError:
        least = {"fft": 2, "stencil_1d_periodic": 3}.get(kind, 1)
        assert width < least or (kind == "random_nearest" and not radix)
        assume(False)
        raise


@settings(deadline=None, max_examples=100)
@given(patterns())
def test_the_graph_is_that_of_the_scalar_definitions(x: Pattern) -> None:
    graph = x.graph()
    assert graph is x.graph()
    assert x.sets == naive_sets(x) == len(graph.relations)
    taken: dict[tuple[int, int], list[int]] = {}
    edges = {(d, False): set() for d in range(x.sets)} | {(d, True): set() for d in range(x.sets)}
    for d in range(x.sets):
        for p in range(x.width):
            forward, back = x.dependencies(d, p), x.reverse_dependencies(d, p)
            assert forward == naive(x, d, p, False)
            assert back == naive(x, d, p, True)
            flat = [q for first, last in forward for q in range(first, last + 1)]
            assert graph.relations[d].of_column(p).tolist() == flat
            taken[d, p] = flat
            edges[d, False] |= {(q, p) for q in flat}
            edges[d, True] |= {(p, q) for first, last in back for q in range(first, last + 1)}
        assert edges[d, False] == edges[d, True]
    for t in range(x.steps):
        offset, width, dset = naive_row(x, t)
        assert (x.offset(t), x.width_at(t), x.dependence_set(t)) == (offset, width, dset)
        assert graph.columns(t) == range(offset, offset + width)
        low, before, _ = naive_row(x, t - 1)
        for p in graph.columns(t):
            flat = taken[dset, p]
            assert x.inputs(t, p) == graph.inputs(t, p) == [q for q in flat if low <= q < low + before]


@settings(deadline=None, max_examples=30)
@given(patterns())
def test_a_pickle_holds_the_parameters_alone(x: Pattern) -> None:
    x.graph()
    packed = pickle.dumps(x)
    copy = pickle.loads(packed)
    assert len(packed) < 200
    assert copy == x
    assert hash(copy) == hash(x)
    assert x != replace(x, steps=x.steps + 1)


# Hash ------------------------------------------------------------------------------------------------------------


def test_siphash_vectors() -> None:
    assert siphash24(bytes(range(15)), bytes(range(16))) == 0xA129CA6149BE45E5  # the authors' own
    assert b"".join(int(word).to_bytes(8, "little") for word in KEY) == REFERENCE_KEY

    def hashed(*numbers: int) -> int:
        return int(siphash(tuple(np.array([number], dtype=np.uint64) for number in numbers))[0])

    assert hashed(0, 0, 0) == siphash24(bytes(24), REFERENCE_KEY) == 0xEFE88AE871C90C00
    assert hashed(0, 0, 1) == 0x1E8C9583434CC332
    assert uniforms(0, 0, 0) == drawn(0, 0, 0) == 0.93714206862367555
    assert uniforms(0, 0, 1) == drawn(0, 0, 1) == 0.11933264212284471


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=3), min_size=1, max_size=4))
def test_the_hash_of_arrays_is_that_of_each(words: list[list[int]]) -> None:
    # The first words are the same in all messages if they have one entry.
    for shared in (0, 1):
        made = [word[:1] * 3 if number < shared else word for number, word in enumerate(words)]
        given = [word[:1] if number < shared else word for number, word in enumerate(words)]
        found = np.broadcast_to(siphash(tuple(np.array(word, dtype=np.uint64) for word in given)), 3)
        for k in range(3):
            message = b"".join(word[k].to_bytes(8, "little") for word in made)
            assert found[k] == siphash24(message, REFERENCE_KEY)


def test_uniforms_broadcast_in_chunks() -> None:
    found = uniforms(3, np.arange(130)[:, None], np.arange(-100, 100))
    assert found.shape == (130, 200)
    for p, q in ((0, 0), (81, 184), (129, 199)):
        assert found[p, q] == drawn(3, p, q - 100)


# Rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"type": "stencil"}, 'Invalid flag "-type stencil" must be one of trivial, '),
        ({"type": "trivial", "steps": 0}, 'Invalid flag "-steps 0" must be > 0'),
        ({"type": "trivial", "width": -1}, 'Invalid flag "-width -1" must be > 0'),
        ({"type": "nearest", "radix": -1}, 'Invalid flag "-radix -1" must be >= 0'),
        ({"type": "spread", "period": -1}, 'Invalid flag "-period -1" must be >= 0'),
        ({"type": "random_nearest", "fraction": 1.5}, 'Invalid flag "-fraction 1.5" must be >= 0 and <= 1'),
        ({"type": "random_nearest", "fraction": math.nan}, "must be >= 0 and <= 1"),
        ({"type": "trivial", "graph_index": -1}, "graph_index -1 must be >= 0"),
        ({"type": "nearest", "radix": 1 << 63}, "must be below 2^63"),
        ({"type": "stencil_1d", "period": 1}, "does not take a period"),
        ({"type": "spread", "period": 0}, "requires a period above 0"),
        ({"type": "random_nearest", "period": 0}, "requires a period above 0"),
        ({"type": "spread"}, "requires a period that is at most 2"),
        ({"type": "random_spread"}, "requires a period that is at most 2"),
        ({"type": "spread", "radix": 5, "period": 1}, "requires a radix that is at most the width 4"),
        ({"type": "spread", "radix": 0}, "requires a radix above 0"),
        ({"type": "random_nearest", "radix": 0}, "requires a radix above 0"),
        ({"type": "fft", "width": 1}, "requires a width that is at least 2"),
        ({"type": "stencil_1d_periodic", "width": 2}, "requires a width that is at least 3"),
    ],
)
def test_what_the_reference_refuses_or_crashes_on_is_refused(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(PatternError) as caught:
        pattern(**parameters)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_default_periods() -> None:
    for kind in ALL:
        assert pattern(kind, width=12).period == (3 if kind in PERIODIC else 0)
    assert pattern("spread", period=2).sets == 2


def test_points_sets_and_rows_that_are_not_there_are_refused() -> None:
    for x in (pattern("dom"), of_relations([Relation.of([[0]] * 4)] * 3)):
        for call in (x.dependencies, x.reverse_dependencies):
            for dset, point in ((0, 4), (0, -1), (x.sets, 0)):
                with pytest.raises(PatternError, match="there is no"):
                    call(dset, point)
        with pytest.raises(PatternError, match="there is no row 4"):
            x.dependence_set(4)
        assert x.width_at(-1) == x.width_at(4) == x.offset(4) == 0
    with pytest.raises(PatternError, match="row 0 has no task at point 3"):
        pattern("dom", steps=9).inputs(0, 3)


def windows(x: Pattern) -> list[tuple[int, int]]:
    return [(x.offset(t), x.width_at(t)) for t in range(x.steps)]


def test_windows() -> None:
    assert windows(pattern("dom", width=3, steps=5)) == [(0, 1), (0, 2), (0, 3), (1, 2), (2, 1)]
    assert windows(pattern("dom", width=4, steps=2)) == [(2, 1), (3, 1)]
    assert windows(pattern("tree", width=6, steps=5)) == [(0, 1), (0, 2), (0, 4), (0, 6), (0, 6)]
    assert pattern("tree", width=3, steps=100).width_at(99) == 3
    assert pattern("dom", width=3, steps=5).inputs(3, 1) == [0, 1]
    assert pattern("tree", width=4, steps=3).inputs(2, 3) == [1]
    assert [pattern("fft", width=5, steps=5).dependence_set(t) for t in range(5)] == [2, 0, 1, 2, 0]


def test_multigrid_goes_down_and_up() -> None:
    x = pattern("multigrid", width=5, steps=14)
    assert [x.width_at(t) for t in range(14)] == [5, 3, 3, 2, 2, 1, 1, 2, 2, 3, 3, 5, 5, 3]
    assert [x.dependence_set(t) for t in range(14)] == [0, 1, 0, 1, 0, 1, 0, 2, 0, 2, 0, 2, 0, 1]
    assert x.inputs(1, 2) == [4]
    assert x.inputs(2, 2) == [1, 2]
    assert x.inputs(11, 4) == [2]


def test_spread_and_wrapped_neighbours_keep_their_order() -> None:
    assert pattern("spread", width=7, radix=3).inputs(1, 5) == [5, 1, 3]
    assert pattern("stencil_1d_periodic").inputs(1, 0) == [0, 1, 3]
    assert pattern("stencil_1d_periodic").inputs(1, 3) == [2, 3, 0]
    assert pattern("stencil_2d", width=6).inputs(1, 4) == [1, 3, 4, 5]
    assert pattern("stencil_2d_9", width=6).inputs(1, 5) == [1, 2, 4, 5]


@pytest.mark.parametrize("width", [3, 40])  # by the table of all pairs, and by their list
def test_the_checks_find_what_is_wrong(width: int) -> None:
    def made(rows: dict[int, list[tuple[int, int]]]) -> Intervals:
        counts = [len(rows.get(p, ())) for p in range(width)]
        pairs = np.array([pair for p in range(width) for pair in rows.get(p, ())], dtype=np.int64).reshape(-1, 2)
        return Intervals(np.concatenate(([0], np.cumsum(counts))), pairs[:, 0], pairs[:, 1])

    assert made({1: [(2, 2), (0, 2)]}).twice() == 1
    forward = made({1: [(2, 2), (0, 1)], 2: [(0, 0)]})
    assert forward.twice() is None
    assert made({0: [(1, 2)], 1: [(1, 1)], 2: [(1, 1)]}).is_transpose_of(forward)
    assert not made({0: [(1, 2)], 1: [(1, 1)], 2: [(2, 2)]}).is_transpose_of(forward)
    assert not made({0: [(1, 2)], 1: [(1, 1)]}).is_transpose_of(forward)


# Given graphs ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(patterns())
def test_a_pattern_given_as_arrays_is_the_same(x: Pattern) -> None:
    graph = x.graph()
    y = from_csr(
        [(relation.starts, relation.producers) for relation in graph.relations],
        graph.chosen,
        graph.offsets,
        graph.widths,
    )
    assert (y.width, y.steps, y.sets) == (x.width, x.steps, x.sets)
    for d in range(x.sets):
        for p in range(x.width):
            flat = [q for first, last in x.dependencies(d, p) for q in range(first, last + 1)]
            assert [q for first, last in y.dependencies(d, p) for q in range(first, last + 1)] == flat
            takers = {q for first, last in x.reverse_dependencies(d, p) for q in range(first, last + 1)}
            found = [q for first, last in y.reverse_dependencies(d, p) for q in range(first, last + 1)]
            assert found == sorted(takers)
    assert all(y.inputs(t, p) == x.inputs(t, p) for t, p in graph.tasks())
    assert windows(x) == [(y.offset(t), y.width_at(t)) for t in range(y.steps)]


def test_given_relations() -> None:
    x = of_relations([Relation.of([[2, 0, 1], [], [1, 2]]), Relation.of([[0], [0], [0]])])
    assert x.steps == 3
    assert x.dependencies(0, 0) == [(2, 2), (0, 1)]
    assert x.reverse_dependencies(1, 0) == [(0, 2)]
    assert x.inputs(1, 0) == [2, 0, 1]
    assert x.inputs(0, 0) == []
    copy = pickle.loads(pickle.dumps(x))
    assert isinstance(copy, GivenGraph)
    assert copy.inputs(2, 2) == [0]
    with pytest.raises(PatternError, match="there is no row 3"):
        x.inputs(3, 0)


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PatternError, match="set 0: point 1 depends on point 0 twice"):
        from_csr([([0, 1, 4], [0, 0, 1, 0])])
    with pytest.raises(PatternError, match="relation 0: producers must be"):
        from_csr([([0, 1], [1])])
    with pytest.raises(PatternError, match="at least one relation"):
        from_csr([])
    with pytest.raises(PatternError, match="chosen must be"):
        from_csr([([0, 1], [0])], chosen=[0, 1])
    with pytest.raises(PatternError, match="columns"):
        of_relations([Relation.of([[0]]), Relation.of([[0], [1]])])


GIVEN = """
graph 3 3   # rows, points
0 0:
0 1:
1 1: 1 0
# a remark
1 2:
2 0: 2
"""


def test_a_graph_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "graph.txt"
    path.write_text(GIVEN)
    x = from_file(path, graph_index=2)
    assert (x.width, x.steps, x.sets, x.graph_index) == (3, 3, 2, 2)
    assert list(x.graph().tasks()) == [(0, 0), (0, 1), (1, 1), (1, 2), (2, 0)]
    assert [x.inputs(t, p) for t, p in x.graph().tasks()] == [[], [], [1, 0], [], [2]]
    path.write_text("graph 1 1\n0 0:")
    assert list(from_file(path).graph().tasks()) == [(0, 0)]


def test_loads_of_a_file_are_one_on_average_and_come_back_from_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "graph.txt"
    path.write_text(GIVEN.replace("1 1: 1 0", "1 1: 1 0 * 5").replace("2 0: 2", "2 0: 2 *0.5"))
    x = from_file(path)
    assert x.loads is not None
    assert x.loads == pytest.approx(np.array([[1, 1, 0], [0, 5, 1], [0.5, 0, 0]]) * 5 / 8.5)
    to_file(x.graph(), x.loads, tmp_path / "again.txt", "two\nlines")
    again = from_file(tmp_path / "again.txt")
    assert again.loads == pytest.approx(x.loads)
    assert [again.inputs(t, p) for t, p in again.graph().tasks()] == [[], [], [1, 0], [], [2]]
    path.write_text(GIVEN)
    assert from_file(path).loads is None


def test_rows_of_a_file_that_are_alike_share_a_relation(tmp_path: Path) -> None:
    path = tmp_path / "graph.txt"
    path.write_text("graph 9 1\n0 0:\n" + "".join(f"{t} 0: 0\n" for t in range(1, 9)))
    x = from_file(path)
    assert x.sets == 1
    assert x.graph().dependencies() == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the file has no `graph` line"),
        ("graph 3", "line 1: expected `graph STEPS WIDTH`"),
        ("graph 0 3", "line 1: expected `graph STEPS WIDTH`"),
        ("graph 2 2\n\n0 0", "line 3: expected `T P: Q Q ...`"),
        ("graph 2 2\n0 0: -1", "line 2: expected `T P: Q Q ...`"),
        ("graph 2 2\n0 2:", "line 2: task (0, 2) is outside of 2 rows of 2 points"),
        ("graph 2 2\n1 0:", "line 2: task (1, 0) is out of order: next may be (0, any point)"),
        ("graph 2 4\n0 0:\n0 2:", "line 3: task (0, 2) is out of order: next may be (0, 1) or (1, any point)"),
        ("graph 1 4\n0 0:\n0 0:", "line 3: task (0, 0) is out of order: next may be (0, 1) or none"),
        ("graph 2 2\n0 0: 0", "line 2: task (0, 0) takes from (-1, 0), which is no task"),
        ("graph 2 2\n0 0:\n1 0: 1", "line 3: task (1, 0) takes from (0, 1), which is no task"),
        ("graph 2 2\n0 0:\n1 0: 0 0", "line 3: task (1, 0) takes from (0, 0) twice"),
        ("graph 1 1\n0 0: * -1", "line 2: a load must be a number >= 0, found `-1`"),
        ("graph 1 1\n0 0: * much", "line 2: a load must be a number >= 0, found `much`"),
        ("graph 1 1\n0 0: * inf", "line 2: a load must be a number >= 0, found `inf`"),
        ("graph 1 1\n0 0: * 0", "line 1: no task has anything to do"),
        ("graph 2 2\n0 0:\n", "line 3: the file ends after 1 of 2 rows"),
        ("\ngraph 1 99\n0 0:\n0 1:", "line 2: WIDTH is 99, but no task is at a point beyond 1: it should be 2"),
        ("graph 1 " + "9" * 5000, "line 1: expected `graph STEPS WIDTH`"),
    ],
)
def test_errors_of_a_file_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "graph.txt"
    path.write_text(text)
    with pytest.raises(PatternError) as caught:
        from_file(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_of_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.bin"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PatternError, match="not UTF-8"):
        from_file(path)
