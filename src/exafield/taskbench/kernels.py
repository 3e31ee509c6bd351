"""Kernels: what the tasks of Task Bench compute, and what each of them costs.

The kernels are those of Slaughter et al., arXiv:1908.05790, with the numbers of its published code where the two
differ. `io_bound`, which is only a name there, `load_imbalance_persistent` and `load_given` are ours.
"""

import ctypes
import math
import os
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from exafield.engine.graph import TaskGraph
from exafield.requirement import require
from exafield.suggestion import unknown
from exafield.taskbench.siphash import uniforms

# The place of a kind in this list is its number in native code.
KINDS = (
    "empty",
    "busy_wait",
    "compute_bound",
    "compute_bound2",
    "memory_bound",
    "compute_dgemm",
    "memory_daxpy",
    "io_bound",
    "load_imbalance",
    "load_imbalance_persistent",
    "load_given",
)
IMBALANCED = ("load_imbalance", "load_imbalance_persistent", "load_given")
SAMPLED = ("memory_bound", "memory_daxpy")
BLAS = ("compute_dgemm", "memory_daxpy")

LANES = 64  # doubles that compute_bound works on
LANES2 = 32  # doubles that compute_bound2 works on
BLOCK = 4096  # bytes that io_bound writes and reads in one iteration
MAGIC = 0x5C4A7C8B  # first word of scratch memory
JOURNAL_WORDS = 3  # of a task: how often it ran, and in which process and thread it did so last
SINKS = 64  # places for results, a cache line each


class KernelError(ValueError):
    """A kernel cannot be what was asked for."""


@dataclass(frozen=True)
class Kernel:
    """What every task of a graph does: check its inputs, write its output, compute. A `NativeBody`.

    Every 16 bytes of an output are the pair (timestep, column) of the task that wrote it, and every pair of every
    input is checked, always. Messages name the flags of Task Bench's command line.

    Args:
        kind: one of `KINDS`.
        iterations: how often the kernel repeats its unit of work.
        samples: pieces that the memory kernels cut their scratch memory into.
        imbalance: how far the iterations of a task of the load_imbalance kernels may lie from `iterations`; 2: between
            nothing and twice as many.
        output_bytes: size of a task's output.
        scratch_bytes: memory that each column keeps from row to row; whole 8-byte words.
        graph_index: number of the graph among those that run together.
        journal: path of an existing file of int32, [steps, journal_width, 3], in which every task that has run adds
            1, and leaves the numbers of its process and of its thread. It is mapped by every process that runs tasks,
            so a task that ran twice, or never, shows, and so does who ran it; see :mod:`exafield.taskbench.journal`.
        journal_width: columns of the journal.
        loads: for load_given, by how much more or less than `iterations` each task repeats its unit of work: float64,
            [steps, loads_width], as bytes, so that kernels can be compared and sent to other processes.
        loads_width: columns of the loads.
    Raises:
        KernelError: a value is not allowed.
    """

    kind: str = "empty"
    iterations: int = 0
    samples: int = 16
    imbalance: float = 0.0
    output_bytes: int = 16
    scratch_bytes: int = 0
    graph_index: int = 0
    journal: str | None = None
    journal_width: int = 0
    loads: bytes = field(default=b"", repr=False)
    loads_width: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise KernelError(unknown("kernel", self.kind, KINDS))
        _allow("iter", self.iterations, self.iterations >= 0, ">= 0")
        _allow("sample", self.samples, self.samples >= 0, ">= 0")
        _allow("imbalance", self.imbalance, 0 <= self.imbalance <= 2, ">= 0 and <= 2")
        _allow("output", self.output_bytes, self.output_bytes >= 16, ">= 16")
        _allow("scratch", self.scratch_bytes, self.scratch_bytes >= 0, ">= 0")
        _allow("scratch", self.scratch_bytes, self.scratch_bytes % 8 == 0, "a multiple of 8")
        if self.graph_index < 0:
            raise KernelError(f"graph_index must be >= 0, got {self.graph_index}")
        if self.kind in SAMPLED:
            _allow("sample", self.samples, self.samples > 0, f"> 0 with -kernel {self.kind}")
            # A smaller sample would be copied over the first word, which is checked.
            least = 16 * self.samples
            enough = self.scratch_bytes >= least
            _allow("scratch", self.scratch_bytes, enough, f">= {least}, 16 for each sample, with -kernel {self.kind}")
        if self.kind == "compute_dgemm":
            _allow("scratch", self.scratch_bytes, self.scratch_bytes >= 24, ">= 24 with -kernel compute_dgemm")
        if self.kind == "load_given":
            if not self.loads:
                raise KernelError("the kernel load_given needs a graph whose file gives the loads of tasks (--graph)")
            loads = np.frombuffer(self.loads[: len(self.loads) // 8 * 8])
            whole = self.loads_width > 0 and len(self.loads) % (8 * self.loads_width) == 0
            if not (whole and np.isfinite(loads).all() and (loads >= 0).all()):
                raise KernelError(f"loads must be rows of {self.loads_width} finite numbers >= 0")
        if self.journal is not None and self.journal_width <= 0:
            raise KernelError(f"a journal needs a journal_width > 0, got {self.journal_width}")

    def load(self) -> "LoadedKernel":
        """Made ready in this process, once.

        Raises:
            ImportError: numba is not installed.
            OSError: there is no journal at that path.
        """
        with _lock:
            loaded = _loaded.get(self)
            if loaded is None:
                loaded = _loaded[self] = LoadedKernel(self)
            if self.journal is None:  # that of a run that is over would keep its file's space
                _latest.append(loaded)
            return loaded


_lock = threading.Lock()
# Who uses a loaded kernel's addresses holds it, and with it its memory. Beside those only the latest ones stay, so that
# to load one again costs nothing; how many is our choice.
_loaded: WeakValueDictionary[Kernel, "LoadedKernel"] = WeakValueDictionary()
_latest: "deque[LoadedKernel]" = deque(maxlen=64)


def _allow(flag: str, value: float, allowed: bool, rule: str) -> None:
    if not allowed:
        raise KernelError(f'Invalid flag "-{flag} {value}" must be {rule}')


class LoadedKernel:
    """A kernel in this process. A `LoadedBody`."""

    def __init__(self, kernel: Kernel) -> None:
        require("numba", extra="light")
        from exafield.taskbench import native_kernels as low

        self.kernel = kernel
        self.address = int(low.address())
        self._operations = low.OPERATIONS
        self._record = np.zeros(low.RECORD_WORDS, dtype=np.int64)
        self._sink = np.zeros((SINKS, 8))
        # In memory rather than in the code, where the compiler would see that all lanes come to the same: starts of
        # compute_bound, then factors and starts of compute_bound2.
        self._start = np.array([4.0, 3.0, 2.0, 1.0] * (LANES // 4) + [1.2345, 1.010101] + [0.0] * LANES2)
        self._words = np.zeros(low.PARAMETERS, dtype=np.int64)
        self._text = "no task failed"
        reals = self._words.view(np.float64)
        self._set(
            {
                low.KIND: KINDS.index(kernel.kind),
                low.ITERATIONS: kernel.iterations,
                low.SAMPLES: kernel.samples,
                low.PAIRS: kernel.output_bytes // 16,
                low.SCRATCH: kernel.scratch_bytes,
                low.GRAPH: kernel.graph_index,
                low.RECORD: self._record.ctypes.data,
                low.SINK: self._sink.ctypes.data,
                low.START: self._start.ctypes.data,
            }
        )
        reals[low.IMBALANCE] = kernel.imbalance
        if kernel.kind == "load_given":
            self._loads = np.frombuffer(kernel.loads)
            self._set({low.LOADS: self._loads.ctypes.data, low.LOADS_WIDTH: kernel.loads_width})
        if kernel.journal is not None:
            self._journal = np.memmap(kernel.journal, dtype=np.int32, mode="r+")
            self._set(
                {
                    low.JOURNAL: self._journal.ctypes.data,
                    low.JOURNAL_WIDTH: kernel.journal_width,
                    low.JOURNAL_SIZE: self._journal.size // JOURNAL_WORDS,
                }
            )
            # What has no gettid (C libraries before 2020) tells threads apart by the addresses it gives them.
            libc = cast(Any, ctypes.CDLL(None))
            names = {low.PROCESS: "getpid", low.THREAD: "gettid" if hasattr(libc, "gettid") else "pthread_self"}
            self._set({word: ctypes.cast(libc[name], ctypes.c_void_p).value or 0 for word, name in names.items()})
        if kernel.kind in BLAS:
            from numba.extending import get_cython_function_address

            names = {low.GEMM: "dgemm", low.AXPY: "daxpy"}
            module = "scipy.linalg.cython_blas"
            self._set({word: get_cython_function_address(module, name) for word, name in names.items()})
            _single_thread()
            # Whether BLAS reads 4 or 8 bytes of these, they are the same number on little-endian machines.
            count = order(kernel) if kernel.kind == "compute_dgemm" else kernel.scratch_bytes // kernel.samples // 16
            self._set({low.COUNT: count, low.UNIT: 1, low.LETTER: ord("N")})
            reals[low.ALPHA], reals[low.BETA] = 1.0, 0.0
        if kernel.kind == "io_bound":
            libc = cast(Any, ctypes.CDLL(None))
            names = {low.MALLOC: "malloc", low.FREE: "free", low.MKSTEMP: "mkstemp", low.UNLINK: "unlink",
                     low.WRITE: "write", low.PREAD: "pread", low.CLOSE: "close",
                     low.ERRNO: "__errno_location" if hasattr(libc, "__errno_location") else "__error"}  # fmt: skip
            self._set({word: ctypes.cast(libc[name], ctypes.c_void_p).value or 0 for word, name in names.items()})
            self._folder = os.environ.get("EXAFIELD_SCRATCH") or tempfile.gettempdir()
            path = os.path.join(os.path.abspath(self._folder), "exafield-XXXXXX")
            self._template = np.frombuffer(os.fsencode(path) + b"\0", dtype=np.uint8)
            self._set({low.TEMPLATE: self._template.ctypes.data, low.TEMPLATE_SIZE: self._template.size})

    def _set(self, words: dict[int, int]) -> None:
        for index, value in words.items():
            self._words[index] = value

    @property
    def parameters(self) -> int:
        """Address of the parameters."""
        return int(self._words.ctypes.data)

    def result(self, column: int) -> float:
        """What the last task of this column computed here; of columns that are 64 apart, the last of them."""
        return float(self._sink[column % SINKS, 0])

    def prepare(self, scratch: NDArray[np.uint8]) -> None:
        """Writes the magic word everywhere into the scratch memory of one or several columns, [..., scratch_bytes].

        For kernels that compute with what lies there it is only the first word, and the others are 1.0: read as a
        double, the magic word is denormal, and processors that are slow at those would spoil the measurement.
        """
        if not scratch.size:
            return
        words = scratch.view(np.uint64)
        words[...] = MAGIC
        if self.kernel.kind in BLAS:
            scratch.view(np.float64)[..., 1:] = 1.0

    def explain(self) -> str:
        """What was wrong in the first task that failed since this was last asked; the same again if none has since."""
        while self._record[0] == 1:  # another thread is writing it
            time.sleep(0)
        if self._record[0]:
            reason, t, column, number, *values = (int(value) for value in self._record[1:])
            task = f"graph {self.kernel.graph_index}, timestep {t}, point {column}"
            self._text = self._worded(reason, task, number, values)
            self._record[0] = 0
        return self._text

    def _worded(self, reason: int, task: str, number: int, values: list[int]) -> str:
        if reason == 1:
            expected, found = tuple(values[:2]), tuple(values[2:4])
            return f"{task}, input {number}: expected {expected}, found {found}"
        if reason == 2:
            if number < 0:
                return f"{task}: got no scratch memory"
            return f"{task}: scratch must begin with {values[0]:#x}, found {values[2] & (1 << 64) - 1:#x}"
        if reason == 3:
            why = os.strerror(values[0]) if values[0] else "not all of it"
            return f"{task}: io_bound could not {self._operations[number]} in {self._folder}: {why}"
        return f"{task}: the journal has no place for it"


def _single_thread() -> None:
    """Keeps BLAS to the calling thread, in the whole process: tasks are what runs in parallel."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            paths = {line.split(maxsplit=5)[-1].strip() for line in maps}
    except OSError:
        return
    for path in paths:
        if "blas" in os.path.basename(path).lower() or "mkl_rt" in path:
            try:
                library = ctypes.CDLL(path)
            except OSError:
                continue
            for name in ("scipy_openblas_set_num_threads", "openblas_set_num_threads", "MKL_Set_Num_Threads"):
                if hasattr(library, name):
                    getattr(library, name)(1)


def iterations(kernel: Kernel, t: Any, column: Any) -> NDArray[np.int64]:
    """How many iterations tasks run, [tasks]."""
    t, column = np.broadcast_arrays(np.atleast_1d(t), np.atleast_1d(column))
    if kernel.kind not in IMBALANCED:
        return np.full(t.shape, kernel.iterations, dtype=np.int64)
    if kernel.kind == "load_given":
        exact = np.frombuffer(kernel.loads).reshape(-1, kernel.loads_width)[t, column] * kernel.iterations
    else:
        chance = uniforms(kernel.graph_index, 0 * t if kernel.kind == "load_imbalance_persistent" else t, column)
        exact = (1 + (chance - 0.5) * kernel.imbalance) * kernel.iterations
    whole = np.floor(exact)
    return np.asarray(whole.astype(np.int64) + (exact - whole >= 0.5))  # halves upwards, as C's round() does


def order(kernel: Kernel) -> int:
    """Rows of the square matrices that fit into the scratch memory three times."""
    return math.isqrt(kernel.scratch_bytes // 24)


def flops(kernel: Kernel, t: int, column: int) -> int:
    """Floating point operations of one task."""
    return _flops(kernel, int(iterations(kernel, t, column)[0]), 1)


def _flops(kernel: Kernel, repeated: int, tasks: int) -> int:
    """Of `tasks` tasks that repeat their unit of work `repeated` times together."""
    if kernel.kind == "compute_bound" or kernel.kind in IMBALANCED:
        return 2 * LANES * repeated + LANES * tasks
    if kernel.kind == "compute_bound2":
        return 2 * LANES2 * repeated
    return 2 * order(kernel) ** 3 * repeated if kernel.kind == "compute_dgemm" else 0


def kernel_bytes(kernel: Kernel, t: int, column: int) -> int:
    """Bytes that the kernel of one task reads and writes in memory; its inputs and its output are not counted."""
    return kernel.scratch_bytes * kernel.iterations // kernel.samples if kernel.kind in SAMPLED else 0


def total_flops(kernel: Kernel, graph: TaskGraph) -> int:
    """Floating point operations of all tasks."""
    if kernel.kind not in IMBALANCED:
        return _flops(kernel, kernel.iterations * len(graph), len(graph))
    ends = np.cumsum(graph.widths)
    repeated, piece = 0, 1 << 16
    for first in range(0, len(graph), piece):
        number = np.arange(first, min(first + piece, len(graph)))
        t = np.searchsorted(ends, number, side="right")
        column = graph.offsets[t] + number - (ends - graph.widths)[t]
        repeated += int(iterations(kernel, t, column).sum())
    return _flops(kernel, repeated, len(graph))


def total_bytes(kernel: Kernel, graph: TaskGraph) -> int:
    """Bytes that the kernels of all tasks read and write in memory."""
    return kernel_bytes(kernel, 0, 0) * len(graph)
