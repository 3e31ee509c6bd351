"""What :mod:`exafield.engine.native` runs, compiled by numba once and kept on disk."""

# mypy: disable-error-code="untyped-decorator,no-untyped-call,misc,no-any-return"

from typing import Any

import numpy as np

from exafield.engine.lowlevel import invoke, native, read

# Where things are in an arena's context; see Arena.
BODY, PARAMETERS, WIDTH, STEPS, OFFSETS, WIDTHS, CHOSEN = range(7)
STARTS, PRODUCERS, OUTPUTS, STRIDE, SLOTS, SCRATCH, SCRATCH_SIZE = range(7, 14)


@native
def task(context: int, t: int, column: int) -> int:
    """Runs one task in an arena; its row must have it."""
    slots, stride, width = read(context, SLOTS), read(context, STRIDE), read(context, WIDTH)
    outputs = read(context, OUTPUTS)
    output = outputs + ((t % slots) * width + column) * stride
    size = read(context, SCRATCH_SIZE)
    scratch = read(context, SCRATCH) + column * size if size else 0
    if t == 0:
        return invoke(read(context, BODY), (read(context, PARAMETERS), t, column, output, 0, 0, 0, 0, 0, scratch))
    base = outputs + (((t - 1) % slots) * width) * stride
    chosen = read(read(context, CHOSEN), t)
    starts = read(read(context, STARTS), chosen)
    begin, end = read(starts, column), read(starts, column + 1)
    producers = read(read(context, PRODUCERS), chosen) + 8 * begin
    low = read(read(context, OFFSETS), t - 1)
    high = low + read(read(context, WIDTHS), t - 1)
    body, parameters, n = read(context, BODY), read(context, PARAMETERS), end - begin
    if high - low == width:
        return invoke(body, (parameters, t, column, output, base, stride, producers, producers, n, scratch))
    # Columns that have no task in the row before are left out.
    present = np.empty(n, dtype=np.int64)
    kept = 0
    for k in range(n):
        producer = read(producers, k)
        if low <= producer < high:
            present[kept] = producer
            kept += 1
    where = present.ctypes.data
    return invoke(body, (parameters, t, column, output, base, stride, where, where, kept, scratch))


@native
def block(context: int, t: int, first: int, last: int) -> int:
    """Runs the tasks of row t in columns first..last-1; 0, or what the first that failed returned."""
    low = read(read(context, OFFSETS), t)
    high = low + read(read(context, WIDTHS), t)
    for column in range(max(first, low), min(last, high)):
        failed = task(context, t, column)
        if failed:
            return failed
    return 0


@native
def call(
    body: int, parameters: int, t: int, column: int, output: Any, where: Any, producers: Any, n: int, scratch: int
) -> int:
    """Runs one task whose inputs lie anywhere: `where` are their addresses."""
    inputs, expected = where.ctypes.data, producers.ctypes.data
    return invoke(body, (parameters, t, column, output.ctypes.data, 0, 1, inputs, expected, n, scratch))
