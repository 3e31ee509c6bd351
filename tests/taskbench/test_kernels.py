"""Kernels of Task Bench: called as C functions with memory made by hand."""

import ctypes
import gc
import itertools
import math
import os
import pickle
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from exafield.engine.graph import Relation, TaskGraph
from exafield.taskbench.kernels import (
    KINDS,
    MAGIC,
    Kernel,
    KernelError,
    flops,
    iterations,
    kernel_bytes,
    order,
    total_bytes,
    total_flops,
)
from exafield.taskbench.siphash import uniforms

BODY = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 10)
FRESH = itertools.count(1000)  # graphs that no other test has loaded


class Task:
    """One task, its inputs and its memory. Inputs are right at first."""

    def __init__(self, kernel: Kernel, t: int = 3, column: int = 2, producers: tuple[int, ...] = ()) -> None:
        self.loaded = kernel.load()
        self.body = BODY(self.loaded.address)
        self.t, self.column, self.n = t, column, len(producers)
        self.producers = np.array([*producers, 0], dtype=np.int64)
        self.where = np.arange(self.n + 1)[::-1].copy()  # input k lies elsewhere than producer k
        self.inputs = np.zeros((self.n + 1, kernel.output_bytes), dtype=np.uint8)
        self.output = np.full(kernel.output_bytes + 32, 7, dtype=np.uint8)
        self.scratch = np.zeros(kernel.scratch_bytes, dtype=np.uint8)
        self.loaded.prepare(self.scratch)
        for k, producer in enumerate(producers):
            self.pairs(k)[:] = t - 1, producer

    def pairs(self, k: int) -> Any:
        """The pairs of input k."""
        row = self.inputs[self.where[k]]
        return row[: row.size // 16 * 16].view(np.int64).reshape(-1, 2)

    def __call__(self, scratch: bool = True) -> int:
        memory = self.scratch.ctypes.data if self.scratch.size and scratch else 0
        return int(
            self.body(
                self.loaded.parameters, self.t, self.column, self.output.ctypes.data, self.inputs.ctypes.data,
                self.inputs.strides[0], self.where.ctypes.data, self.producers.ctypes.data, self.n, memory,
            )
        )  # fmt: skip


def loads(kind: str, steps: int = 5, width: int = 4) -> dict[str, Any]:
    """What load_given needs besides; for other kinds nothing."""
    if kind != "load_given":
        return {}
    table = np.random.default_rng(0).exponential(size=(steps, width))
    return {"loads": table.tobytes(), "loads_width": width}


def a_graph(steps: int = 5, width: int = 4) -> TaskGraph:
    """A graph whose rows are not all the same."""
    widths = np.minimum(width, np.arange(steps) + 1)
    relation = Relation.of([[p] for p in range(width)])
    return TaskGraph(width, width - widths, widths, np.zeros(steps, dtype=np.int64), (relation,))


@pytest.mark.parametrize("size", [16, 31, 32, 47, 64, 1000, 65536])
def test_a_task_writes_its_pairs_and_nothing_else(size: int) -> None:
    task = Task(Kernel(output_bytes=size), producers=(1, 2, 3))
    assert task() == 0
    whole = size // 16 * 16
    assert np.array_equal(task.output[:whole].view(np.int64).reshape(-1, 2), [(3, 2)] * (size // 16))
    assert np.all(task.output[whole:] == 7)


def test_inputs_may_lie_anywhere() -> None:
    task = Task(Kernel(output_bytes=33), producers=(1, 2))
    assert task.inputs.strides[0] % 8 == 1
    assert task() == 0


@pytest.mark.parametrize("size", [16, 48, 65536])
@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("which", [0, -1])
def test_every_wrong_pair_is_found(size: int, number: int, part: int, which: int) -> None:
    task = Task(Kernel(output_bytes=size), producers=(1, 2, 3))
    task.pairs(number)[which, part] = 9
    assert task() != 0
    expected = (2, number + 1)
    found = (9, number + 1) if part == 0 else (2, 9)
    text = f"graph 0, timestep 3, point 2, input {number}: expected {expected}, found {found}"
    assert task.loaded.explain() == text
    assert np.all(task.output == 7), "nothing is computed from wrong inputs"


def test_the_example_of_the_interface() -> None:
    task = Task(Kernel(), producers=(0, 1))
    task.pairs(1)[:] = 1, 1
    assert task() != 0
    assert task.loaded.explain() == "graph 0, timestep 3, point 2, input 1: expected (2, 1), found (1, 1)"


def test_the_first_failure_is_told_and_then_later_ones() -> None:
    kernel = Kernel(graph_index=next(FRESH))
    first, second = Task(kernel, producers=(0,)), Task(kernel, t=4, producers=(0,))
    assert first.loaded.explain() == "no task failed"
    first.pairs(0)[:] = 8
    second.pairs(0)[:] = 8
    assert first()
    assert second()
    assert "timestep 3" in first.loaded.explain()
    assert "timestep 3" in first.loaded.explain()
    assert second()
    assert "timestep 4" in first.loaded.explain()


def test_scratch_memory_is_the_columns_own() -> None:
    task = Task(Kernel(scratch_bytes=64, graph_index=1))
    assert np.all(task.scratch.view(np.uint64) == MAGIC)
    assert task() == 0
    task.scratch[7] = 0xFF
    assert task() != 0
    text = f"graph 1, timestep 3, point 2: scratch must begin with 0x5c4a7c8b, found {0xFF0000005C4A7C8B:#x}"
    assert task.loaded.explain() == text
    assert task(scratch=False) != 0
    assert task.loaded.explain() == "graph 1, timestep 3, point 2: got no scratch memory"


@pytest.mark.parametrize("kind", KINDS)
def test_scratch_memory_stays_good(kind: str) -> None:
    task = Task(Kernel(kind, iterations=21, scratch_bytes=1000, samples=7, **loads(kind)))
    for task.t in range(5):
        assert task() == 0, task.loaded.explain()


def test_prepare_takes_many_columns() -> None:
    scratch = np.zeros((3, 2, 16), dtype=np.uint8)
    Kernel(scratch_bytes=16).load().prepare(scratch)
    assert np.all(scratch.view(np.uint64) == MAGIC)


@pytest.mark.parametrize("kind", ["compute_bound", "load_imbalance"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_compute_bound(kind: str, count: int) -> None:
    task = Task(Kernel(kind, iterations=count))
    assert task() == 0
    values = np.tile([4.0, 3.0, 2.0, 1.0], 16)
    with np.errstate(over="ignore"):
        for _ in range(count):
            values = values * values + values
        assert task.loaded.result(2) == pytest.approx(np.prod(values), rel=1e-12)


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_compute_bound2(count: int) -> None:
    task = Task(Kernel("compute_bound2", iterations=count))
    assert task() == 0
    assert task.loaded.result(2) == pytest.approx(32 * count * 1.2345 * 1.010101, rel=1e-12)


@pytest.mark.parametrize("count", [0, 1, 100])
def test_busy_wait(count: int) -> None:
    task = Task(Kernel("busy_wait", iterations=count))
    assert task() == 0
    assert task.loaded.result(2) == 113 * pow(139, count, 2147483647) % 2147483647


def naive_memory_bound(memory: bytearray, samples: int, count: int, t: int) -> None:
    """Sample by sample where a block ends, then the halves of every block byte by byte."""
    sample = len(memory) // samples
    numbers = [(t * count + k) % samples for k in range(count)]
    blocks: list[list[int]] = []
    for number in numbers:
        if not blocks or number == 0:
            blocks.append([])
        blocks[-1].append(number)
    for block in blocks:
        begin, half = block[0] * sample, len(block) * sample // 2
        for i in range(half):
            memory[begin + half + i] = memory[begin + i]


@pytest.mark.parametrize("samples", [1, 3, 16])
@pytest.mark.parametrize("count", [0, 1, 5, 16, 40])
@pytest.mark.parametrize("t", [0, 1, 3])
def test_memory_bound(samples: int, count: int, t: int) -> None:
    kernel = Kernel("memory_bound", iterations=count, samples=samples, scratch_bytes=1608)
    task = Task(kernel, t=t)
    task.scratch[8:] = np.random.default_rng(0).integers(0, 256, 1600)
    expected = bytearray(task.scratch)
    naive_memory_bound(expected, samples, count, t)
    assert task() == 0
    assert bytes(task.scratch) == bytes(expected)


@pytest.mark.parametrize("size", [24, 24 * 17**2, 24 * 17**2 + 16])
def test_compute_dgemm(size: int) -> None:
    kernel = Kernel("compute_dgemm", iterations=2, scratch_bytes=size)
    n = order(kernel)
    task = Task(kernel)
    reals = task.scratch.view(np.float64)
    reals[1:] = np.random.default_rng(0).normal(size=reals.size - 1)
    before = reals.copy()
    a, b = (before[i * n * n : (i + 1) * n * n].reshape(n, n).T for i in range(2))  # column by column, as in Fortran
    assert task() == 0
    c = reals[2 * n * n : 3 * n * n].reshape(n, n).T
    assert np.allclose(c, a @ b)
    assert np.array_equal(
        np.delete(reals, np.s_[2 * n * n : 3 * n * n]), np.delete(before, np.s_[2 * n * n : 3 * n * n])
    )


def test_memory_daxpy() -> None:
    task = Task(Kernel("memory_daxpy", iterations=6, samples=4, scratch_bytes=4 * 96), t=1)
    before = task.scratch.view(np.float64).reshape(4, 2, 6).copy()
    assert task() == 0
    after = task.scratch.view(np.float64).reshape(4, 2, 6)
    assert np.array_equal(after[:, 0], before[:, 0])
    times = np.array([1, 1, 2, 2])  # samples 2, 3, 0, 1, 2, 3
    assert np.allclose(after[:, 1], before[:, 1] + times[:, None] * before[:, 0])


def test_io_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAFIELD_SCRATCH", str(tmp_path))
    task = Task(Kernel("io_bound", iterations=3, graph_index=next(FRESH)))
    assert task() == 0, task.loaded.explain()
    assert not list(tmp_path.iterdir())


def test_io_bound_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "missing"
    monkeypatch.setenv("EXAFIELD_SCRATCH", str(folder))
    index = next(FRESH)
    task = Task(Kernel("io_bound", iterations=3, graph_index=index))
    assert task() != 0
    text = (
        f"graph {index}, timestep 3, point 2: io_bound could not create a file in {folder}: No such file or directory"
    )
    assert task.loaded.explain() == text


def test_journal_counts_tasks(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    np.zeros((4, 5, 3), dtype=np.int32).tofile(path)
    task = Task(Kernel(journal=str(path), journal_width=5), producers=(1,))
    assert task() == 0
    expected = np.zeros((4, 5, 3), dtype=np.int32)
    expected[3, 2] = 1, os.getpid(), threading.get_native_id()
    assert np.array_equal(np.fromfile(path, dtype=np.int32).reshape(4, 5, 3), expected)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(task).result() == 0
        expected[3, 2] = 2, os.getpid(), pool.submit(threading.get_native_id).result()
    assert np.array_equal(np.fromfile(path, dtype=np.int32).reshape(4, 5, 3), expected)
    task.pairs(0)[:] = 0
    assert task() != 0
    assert np.array_equal(np.fromfile(path, dtype=np.int32).reshape(4, 5, 3), expected)


@pytest.mark.parametrize("place", [(4, 0), (0, 5)])
def test_journal_too_small(tmp_path: Path, place: tuple[int, int]) -> None:
    path = tmp_path / "journal"
    np.zeros((4, 5, 3), dtype=np.int32).tofile(path)
    t, column = place
    task = Task(Kernel(journal=str(path), journal_width=5), t=t, column=column)
    assert task() != 0
    assert task.loaded.explain() == f"graph 0, timestep {t}, point {column}: the journal has no place for it"


@pytest.mark.parametrize("kind", ["load_imbalance", "load_imbalance_persistent"])
@pytest.mark.parametrize("imbalance", [0.0, 0.5, 2.0])
def test_native_code_and_totals_agree_on_iterations(kind: str, imbalance: float) -> None:
    # Few, so that results tell how many there were.
    kernel = Kernel(kind, iterations=3, imbalance=imbalance, graph_index=2)
    counts = set()
    for t in range(4):
        for column in range(6):
            count = int(iterations(kernel, t, column)[0])
            task = Task(kernel, t=t, column=column)
            assert task() == 0
            plain = Task(Kernel("compute_bound", iterations=count))
            assert plain() == 0
            assert task.loaded.result(column) == plain.loaded.result(2)
            row = 0 if kind == "load_imbalance_persistent" else t
            exact = (1 + (float(uniforms(2, row, column)) - 0.5) * imbalance) * 3
            assert count == math.floor(exact + 0.5)
            counts.add(count)
    assert (len(counts) > 1) == (imbalance > 0)


def test_given_loads_are_what_tasks_do() -> None:
    table = np.array([[0.0, 1.0, 2.0], [0.4, 0.5, 1.2]])
    kernel = Kernel("load_given", iterations=3, loads=table.tobytes(), loads_width=3)
    for t, column in np.ndindex(table.shape):
        count = math.floor(table[t, column] * 3 + 0.5)
        assert iterations(kernel, t, column).tolist() == [count]
        task, plain = Task(kernel, t=t, column=column), Task(Kernel("compute_bound", iterations=count))
        assert task() == plain() == 0
        assert task.loaded.result(column) == plain.loaded.result(2)
    assert pickle.loads(pickle.dumps(kernel)) == kernel
    assert replace(kernel, loads=(2 * table).tobytes()) != kernel


@pytest.mark.parametrize(
    ("table", "width"), [(b"", 3), (b"1" * 12, 3), (np.ones(4), 3), (-np.ones(3), 3), (np.full(3, np.nan), 3)]
)
def test_loads_that_cannot_be_are_refused(table: Any, width: int) -> None:
    with pytest.raises(KernelError, match="load"):
        Kernel("load_given", loads=bytes(table), loads_width=width)


def test_flops_and_bytes_of_one_task() -> None:
    assert flops(Kernel("empty", iterations=5), 0, 0) == flops(Kernel("busy_wait", iterations=5), 0, 0) == 0
    assert flops(Kernel("compute_bound", iterations=5), 0, 0) == 2 * 64 * 5 + 64
    assert flops(Kernel("compute_bound2", iterations=5), 0, 0) == 2 * 32 * 5
    assert flops(Kernel("compute_dgemm", iterations=5, scratch_bytes=1000), 0, 0) == 2 * 6**3 * 5
    assert flops(Kernel("memory_bound", iterations=5, scratch_bytes=1000), 0, 0) == 0
    assert kernel_bytes(Kernel("memory_bound", iterations=5, scratch_bytes=1000), 0, 0) == 5000 // 16
    assert kernel_bytes(Kernel("memory_daxpy", iterations=5, scratch_bytes=1000, samples=3), 0, 0) == 5000 // 3
    assert kernel_bytes(Kernel("compute_dgemm", iterations=5, scratch_bytes=1000), 0, 0) == 0
    assert kernel_bytes(Kernel("compute_bound", iterations=5, samples=0), 0, 0) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_totals_are_sums(kind: str) -> None:
    kernel = Kernel(kind, iterations=1000, scratch_bytes=4096, imbalance=1.5, **loads(kind))
    graph = a_graph()
    assert total_flops(kernel, graph) == sum(flops(kernel, t, p) for t, p in graph.tasks())
    assert total_bytes(kernel, graph) == sum(kernel_bytes(kernel, t, p) for t, p in graph.tasks())


def test_totals_of_many_tasks() -> None:
    graph = a_graph(300, 300)
    kernel = Kernel("load_imbalance", iterations=100, imbalance=2.0)
    rows = (int(iterations(kernel, t, np.array(graph.columns(t))).sum()) for t in range(graph.steps))
    assert total_flops(kernel, graph) == 128 * sum(rows) + 64 * len(graph)


def test_a_kernel_can_be_pickled_and_is_loaded_once() -> None:
    kernel = Kernel("compute_bound", iterations=4, graph_index=3)
    again = pickle.loads(pickle.dumps(kernel))
    assert again == kernel
    assert hash(again) == hash(kernel)
    assert again.load() is kernel.load()
    assert replace(kernel, iterations=5).load() is not kernel.load()


def test_loaded_kernels_do_not_pile_up() -> None:
    held = Kernel("compute_bound", iterations=4, graph_index=next(FRESH)).load()
    seen = [weakref.ref(Kernel(graph_index=next(FRESH)).load()) for _ in range(300)]
    gc.collect()
    assert sum(loaded() is not None for loaded in seen) <= 64
    # Who uses one keeps it.
    assert held.kernel.load() is held


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"iterations": -1}, 'Invalid flag "-iter -1" must be >= 0'),
        ({"samples": -2}, 'Invalid flag "-sample -2" must be >= 0'),
        ({"imbalance": 2.5}, 'Invalid flag "-imbalance 2.5" must be >= 0 and <= 2'),
        ({"imbalance": math.nan}, 'Invalid flag "-imbalance nan" must be >= 0 and <= 2'),
        ({"output_bytes": 15}, 'Invalid flag "-output 15" must be >= 16'),
        ({"scratch_bytes": -8}, 'Invalid flag "-scratch -8" must be >= 0'),
        ({"scratch_bytes": 12}, 'Invalid flag "-scratch 12" must be a multiple of 8'),
        ({"kind": "memory_bound", "samples": 0}, 'Invalid flag "-sample 0" must be > 0 with -kernel memory_bound'),
        (
            {"kind": "memory_daxpy", "scratch_bytes": 248},
            'Invalid flag "-scratch 248" must be >= 256, 16 for each sample, with -kernel memory_daxpy',
        ),
        ({"kind": "compute_dgemm"}, 'Invalid flag "-scratch 0" must be >= 24 with -kernel compute_dgemm'),
        ({"kind": "compute_bond"}, "unknown kernel 'compute_bond': did you mean 'compute_bound'?"),
        ({"graph_index": -1}, "graph_index must be >= 0, got -1"),
        ({"journal": "x"}, "a journal needs a journal_width > 0, got 0"),
    ],
)
def test_what_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(KernelError) as raised:
        Kernel(**values)
    assert str(raised.value) == text


def test_python_goes_on_while_a_kernel_runs() -> None:
    task = Task(Kernel("busy_wait", iterations=100_000_000))
    started, results = threading.Event(), []

    def run() -> None:
        started.set()
        results.append(task())

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    turns = 0
    while thread.is_alive():
        thread.join(0.001)
        turns += 1
    assert results == [0]
    assert turns > 1


def test_descriptions_do_not_need_numba() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from exafield.taskbench.kernels import Kernel, flops\n"
        "print(flops(Kernel('compute_bound', iterations=1), 0, 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "192"
