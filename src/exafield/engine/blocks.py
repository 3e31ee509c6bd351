"""What :mod:`exafield.engine.native` runs, compiled by numba once and kept on disk."""

# mypy: disable-error-code="untyped-decorator,no-untyped-call"

from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64, njit, types
from numba.extending import intrinsic

# Where things are in an arena's context; see Arena.
BODY, PARAMETERS, WIDTH, STEPS, OFFSETS, WIDTHS, CHOSEN = range(7)
STARTS, PRODUCERS, OUTPUTS, STRIDE, SLOTS, SCRATCH, SCRATCH_SIZE = range(7, 14)


@intrinsic
def pointer(typingctx: Any, number: Any) -> Any:
    """A whole number as an address."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(int64), build


@intrinsic
def read(typingctx: Any, number: Any, index: Any) -> Any:
    """The 64-bit word of that index after an address."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(base, [arguments[1]]))

    return int64(int64, int64), build


def _call(count: int) -> Any:
    """An intrinsic that calls the C function at an address with `count` words; it returns a word."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        function = ir.FunctionType(word, [word] * count)
        return builder.call(builder.inttoptr(arguments[0], function.as_pointer()), arguments[1:])

    return int64(*([int64] * (count + 1))), build


@intrinsic
def call_body(
    typingctx: Any, function: Any, parameters: Any, t: Any, column: Any, output: Any, base: Any, stride: Any,
    where: Any, producers: Any, n: Any, scratch: Any,
) -> Any:  # fmt: skip
    """Calls a native body; see LoadedBody. Addresses are passed as whole numbers."""
    return _call(10)


@njit(nogil=True, cache=True, inline="never", error_model="numpy")
def task(context: int, t: int, column: int) -> int:
    """Runs one task in an arena; its row must have it."""
    slots, stride, width = read(context, SLOTS), read(context, STRIDE), read(context, WIDTH)
    outputs = read(context, OUTPUTS)
    output = outputs + ((t % slots) * width + column) * stride
    size = read(context, SCRATCH_SIZE)
    scratch = read(context, SCRATCH) + column * size if size else 0
    if t == 0:
        return call_body(read(context, BODY), read(context, PARAMETERS), t, column, output, 0, 0, 0, 0, 0, scratch)
    base = outputs + (((t - 1) % slots) * width) * stride
    chosen = read(read(context, CHOSEN), t)
    starts = read(read(context, STARTS), chosen)
    begin, end = read(starts, column), read(starts, column + 1)
    producers = read(read(context, PRODUCERS), chosen) + 8 * begin
    low = read(read(context, OFFSETS), t - 1)
    high = low + read(read(context, WIDTHS), t - 1)
    body, parameters, n = read(context, BODY), read(context, PARAMETERS), end - begin
    if high - low == width:
        return call_body(body, parameters, t, column, output, base, stride, producers, producers, n, scratch)
    # Columns that have no task in the row before are left out.
    present = np.empty(n, dtype=np.int64)
    kept = 0
    for k in range(n):
        producer = read(producers, k)
        if low <= producer < high:
            present[kept] = producer
            kept += 1
    where = present.ctypes.data
    return call_body(body, parameters, t, column, output, base, stride, where, where, kept, scratch)


@njit(nogil=True, cache=True, error_model="numpy")
def block(context: int, t: int, first: int, last: int) -> int:
    """Runs the tasks of row t in columns first..last-1; 0, or what the first that failed returned."""
    low = read(read(context, OFFSETS), t)
    high = low + read(read(context, WIDTHS), t)
    for column in range(max(first, low), min(last, high)):
        failed = task(context, t, column)
        if failed:
            return failed
    return 0


@njit(nogil=True, cache=True, error_model="numpy")
def call(
    body: int, parameters: int, t: int, column: int, output: Any, where: Any, producers: Any, n: int, scratch: int
) -> int:
    """Runs one task whose inputs lie anywhere: `where` are their addresses."""
    return call_body(
        body, parameters, t, column, output.ctypes.data, 0, 1, where.ctypes.data, producers.ctypes.data, n, scratch
    )
