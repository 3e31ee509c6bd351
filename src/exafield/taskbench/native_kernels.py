"""What :mod:`exafield.taskbench.kernels` runs, compiled by numba once and kept on disk.

numba compiles anew when this file changes; after a change of what it imports, delete its `__pycache__`.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-call"

import inspect
from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64

from exafield.engine.lowlevel import WORD, intrinsic, invoke, native, read
from exafield.taskbench import siphash as hashing
from exafield.taskbench.kernels import BLOCK, JOURNAL_WORDS, KINDS, LANES, MAGIC, SINKS
from exafield.taskbench.lowlevel import (
    claim,
    copy_byte,
    copy_quad,
    increase,
    products,
    real,
    squares,
    write,
    write_half,
    write_real,
)

# Where things are in a kernel's parameters. BLAS takes the addresses of some of them.
KIND, ITERATIONS, SAMPLES, IMBALANCE, PAIRS, SCRATCH, GRAPH, RECORD, SINK, START = range(10)
JOURNAL, JOURNAL_WIDTH, JOURNAL_SIZE, COUNT, UNIT, LETTER, ALPHA, BETA, GEMM, AXPY = range(10, 20)
MALLOC, FREE, MKSTEMP, UNLINK, WRITE, PREAD, CLOSE, ERRNO, TEMPLATE, TEMPLATE_SIZE = range(20, 30)
PROCESS, THREAD, LOADS, LOADS_WIDTH = range(30, 34)
PARAMETERS = 34

# The record of a failure: 0 (none), 1 (being written) or 2; reason, timestep, column, input, then two pairs.
RECORD_WORDS = 9
CORRUPT, NO_MAGIC, NO_FILE, NO_PLACE = 1, 2, 3, 4
OPERATIONS = ("allocate memory", "create a file", "write a block", "read a block", "get back what it wrote")

(
    EMPTY, BUSY_WAIT, COMPUTE_BOUND, COMPUTE_BOUND2, MEMORY_BOUND, COMPUTE_DGEMM, MEMORY_DAXPY, IO_BOUND,
    LOAD_IMBALANCE, LOAD_IMBALANCE_PERSISTENT, LOAD_GIVEN,
) = range(len(KINDS))  # fmt: skip

siphash = native(hashing.siphash)


@native
def fail(parameters, reason, t, column, number, a, b, c, d):  # type: ignore[no-untyped-def]
    """Records a failure, unless one is recorded already; gives the reason."""
    record = read(parameters, RECORD)
    if claim(record):
        write(record, 1, reason)
        write(record, 2, t)
        write(record, 3, column)
        write(record, 4, number)
        write(record, 5, a)
        write(record, 6, b)
        write(record, 7, c)
        write(record, 8, d)
        write(record, 0, 2)
    return reason


@native
def corrupt(parameters, t, column, number, producer, words, pairs):  # type: ignore[no-untyped-def]
    """Records the first pair of an input that is wrong."""
    for i in range(pairs):
        first, second = read(words, 2 * i), read(words, 2 * i + 1)
        if first != t - 1 or second != producer:
            return fail(parameters, CORRUPT, t, column, number, t - 1, producer, first, second)
    return 0


@native
def difference(words, pairs, t, column):  # type: ignore[no-untyped-def]
    """0 if all pairs are (t, column)."""
    wrong = 0
    for i in range(pairs):  # no way out of it early, so that it can be vectorised
        wrong |= (read(words, 2 * i) ^ t) | (read(words, 2 * i + 1) ^ column)
    return wrong


@native
def fill(words, pairs, t, column):  # type: ignore[no-untyped-def]
    """Writes pairs (t, column)."""
    for i in range(pairs):
        write(words, 2 * i, t)
        write(words, 2 * i + 1, column)


@native
def spin(count):  # type: ignore[no-untyped-def]
    """busy_wait: steps of an integer recurrence, each of which needs the one before."""
    value = 113
    for _ in range(count):
        value = (value * 139) % 2147483647
    return value


@native
def touch(base, size):  # type: ignore[no-untyped-def]
    """Copies the first half of a block of memory over the second."""
    half = size // 2
    for i in range(half // 32):
        copy_quad(base + half, base, i)
    for i in range(half - half % 32, half):
        copy_byte(base + half, base, i)


@native
def stream(scratch, size, samples, count, t):  # type: ignore[no-untyped-def]
    """memory_bound: touches `count` samples from number (t * count) % samples on, neighbours as one block."""
    sample = size // samples
    first = (t * count) % samples
    head = min(count, samples - first)
    touch(scratch + first * sample, head * sample)
    left = count - head
    while left >= samples:
        touch(scratch, samples * sample)
        left -= samples
    touch(scratch, left * sample)


@native
def multiply(parameters, scratch, count):  # type: ignore[no-untyped-def]
    """compute_dgemm: C = A * B. The three lie one after the other; A, where the magic word is, is only read."""
    size = 8 * read(parameters, COUNT) ** 2
    n, letter = parameters + 8 * COUNT, parameters + 8 * LETTER
    alpha, beta = parameters + 8 * ALPHA, parameters + 8 * BETA
    a, b, c = scratch, scratch + size, scratch + 2 * size
    for _ in range(count):
        invoke(read(parameters, GEMM), (letter, letter, n, n, n, alpha, a, n, b, n, beta, c, n))


@native
def add(parameters, scratch, size, samples, count, t):  # type: ignore[no-untyped-def]
    """memory_daxpy: y = x + y, where x is the first half of a sample and y the second."""
    n, alpha, unit = parameters + 8 * COUNT, parameters + 8 * ALPHA, parameters + 8 * UNIT
    sample = size // samples
    for k in range(count):
        x = scratch + ((t * count + k) % samples) * sample
        invoke(read(parameters, AXPY), (n, alpha, x, unit, x + 8 * read(parameters, COUNT), unit))


@native
def transfer(parameters, block, file, count, t, column):  # type: ignore[no-untyped-def]
    """Writes blocks, then reads them; number of the operation that failed, or -1."""
    last = BLOCK // 8 - 1
    fill(block, BLOCK // 16, t, column)
    for k in range(count):
        write(block, 0, k)
        if invoke(read(parameters, WRITE), (file, block, BLOCK)) != BLOCK:
            return 2
    for k in range(count):
        write(block, 0, -1)
        write(block, last, -1)
        if invoke(read(parameters, PREAD), (file, block, BLOCK, k * BLOCK)) != BLOCK:
            return 3
        if read(block, 0) != k or read(block, last) != column:
            return 4
    return -1


@native
def store(parameters, count, t, column):  # type: ignore[no-untyped-def]
    """io_bound: a file that nobody else sees; what fails is recorded."""
    size = read(parameters, TEMPLATE_SIZE)
    failed, errno = 0, 0
    block = invoke(read(parameters, MALLOC), (BLOCK + size,))
    if block:
        name = block + BLOCK
        for i in range(size):
            copy_byte(name, read(parameters, TEMPLATE), i)
        file = int64(np.int32(invoke(read(parameters, MKSTEMP), (name,))))
        failed = 1
        if file >= 0:
            invoke(read(parameters, UNLINK), (name,))
            failed = transfer(parameters, block, file, count, t, column)
        if failed > 0:
            errno = int64(np.int32(read(invoke(read(parameters, ERRNO), ()), 0))) if failed < 4 else 0
        if file >= 0:
            invoke(read(parameters, CLOSE), (file,))
        invoke(read(parameters, FREE), (block,))
    if failed < 0:
        return 0
    return fail(parameters, NO_FILE, t, column, failed, errno, 0, 0, 0)


@native
def drawn(parameters, kind, t, column):  # type: ignore[no-untyped-def]
    """From 0 to 1, by the hash of a task; see kernels.iterations."""
    row = 0 if kind == LOAD_IMBALANCE_PERSISTENT else t
    hashed = siphash((np.uint64(read(parameters, GRAPH)), np.uint64(row), np.uint64(column)))
    return np.float64(hashed) * 2.0**-64


@native
def share(parameters, kind, t, column):  # type: ignore[no-untyped-def]
    """Iterations of a task whose load is imbalanced; see kernels.iterations."""
    if kind == LOAD_GIVEN:
        load = real(read(parameters, LOADS), t * read(parameters, LOADS_WIDTH) + column)
    else:
        load = 1 + (drawn(parameters, kind, t, column) - 0.5) * real(parameters, IMBALANCE)
    exact = load * read(parameters, ITERATIONS)
    whole = np.floor(exact)
    return int64(whole) + (1 if exact - whole >= 0.5 else 0)


@native
def work(parameters, kind, t, column, scratch):  # type: ignore[no-untyped-def]
    """Runs a kernel that is not the empty one; 0, or why it failed."""
    count, samples, size = read(parameters, ITERATIONS), read(parameters, SAMPLES), read(parameters, SCRATCH)
    start, sink = read(parameters, START), read(parameters, SINK) + 64 * (column % SINKS)
    # Results are kept, or nothing would have to be computed.
    if kind in (LOAD_IMBALANCE, LOAD_IMBALANCE_PERSISTENT, LOAD_GIVEN):
        write_real(sink, 0, squares(start, share(parameters, kind, t, column)))
    elif kind == COMPUTE_BOUND:
        write_real(sink, 0, squares(start, count))
    elif kind == COMPUTE_BOUND2:
        write_real(sink, 0, products(real(start, LANES), real(start, LANES + 1), start + 8 * (LANES + 2), count))
    elif kind == BUSY_WAIT:
        write_real(sink, 0, float(spin(count)))
    elif kind == MEMORY_BOUND:
        stream(scratch, size, samples, count, t)
    elif kind == COMPUTE_DGEMM:
        multiply(parameters, scratch, count)
    elif kind == MEMORY_DAXPY:
        add(parameters, scratch, size, samples, count, t)
    elif kind == IO_BOUND:
        return store(parameters, count, t, column)
    return 0


@native
def note(parameters, journal, t, column):  # type: ignore[no-untyped-def]
    """Tells the journal that a task has run, and where."""
    width = read(parameters, JOURNAL_WIDTH)
    index = t * width + column
    if column >= width or index >= read(parameters, JOURNAL_SIZE):
        return fail(parameters, NO_PLACE, t, column, 0, 0, 0, 0, 0)
    index *= JOURNAL_WORDS
    increase(journal, index)
    write_half(journal, index + 1, invoke(read(parameters, PROCESS), ()))
    write_half(journal, index + 2, invoke(read(parameters, THREAD), ()))
    return 0


def _body(parameters, t, column, output, base, stride, where, producers, n, scratch):  # type: ignore[no-untyped-def]
    """One task; see LoadedBody."""
    pairs = read(parameters, PAIRS)
    for k in range(n):
        words, producer = base + stride * read(where, k), read(producers, k)
        if (read(words, 0) ^ (t - 1)) | (read(words, 1) ^ producer) or (
            pairs > 1 and difference(words, pairs, t - 1, producer)
        ):
            return corrupt(parameters, t, column, k, producer, words, pairs)
    write(output, 0, t)
    write(output, 1, column)
    if pairs > 1:
        fill(output, pairs, t, column)
    if read(parameters, SCRATCH):
        if scratch == 0:
            return fail(parameters, NO_MAGIC, t, column, -1, MAGIC, 0, 0, 0)
        found = read(scratch, 0)
        if found != MAGIC:
            return fail(parameters, NO_MAGIC, t, column, 0, MAGIC, 0, found, 0)
    kind = read(parameters, KIND)
    if kind != EMPTY:
        failed = work(parameters, kind, t, column, scratch)
        if failed:
            return failed
    journal = read(parameters, JOURNAL)
    if journal:
        return note(parameters, journal, t, column)
    return 0


@intrinsic
def entry(typing: Any) -> Any:
    """Address of a C function that runs `_body`.

    numba's own way to such a function, cfunc, has one call the other, with ten arguments and a question whether an
    exception was raised. None can be, and that would be half of the time of an empty task.
    """

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = ir.Function(builder.module, ir.FunctionType(WORD, [WORD] * 10), "exafield_taskbench_body")
        function.linkage = "internal"
        inside = ir.IRBuilder(function.append_basic_block())
        words = int64(*([int64] * 10))
        compiled = context.compile_subroutine(inside, inspect.unwrap(_body), words)
        _, result = context.call_internal_no_propagate(inside, compiled.fndesc, words, function.args)
        for instruction in inside.block.instructions:
            if isinstance(instruction, ir.CallInstr):
                instruction.attributes.add("alwaysinline")
        inside.ret(result)
        return builder.ptrtoint(function, WORD)

    return int64(), build


@native
def address():  # type: ignore[no-untyped-def]
    """Address of the body of all kernels."""
    return entry()
