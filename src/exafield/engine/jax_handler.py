"""What :mod:`exafield.engine.jax_ffi` registers, compiled by numba.

It reads XLA's call frame by its offsets (64 bit), as `xla/ffi/api/c_api.h` of jaxlib has them in version 0.3. Fields
are only ever added at the end while the major version stays; sizes are checked at each call as well.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-call"

from typing import Any

import numba
import numpy as np

from exafield.engine.blocks import (
    BODY,
    CHOSEN,
    OFFSETS,
    PARAMETERS,
    PRODUCERS,
    SCRATCH,
    SCRATCH_SIZE,
    STARTS,
    STRIDE,
    WIDTH,
    WIDTHS,
)
from exafield.engine.jax_ffi import CHANGED, FAILED, HEADER, MAJOR, MINOR
from exafield.engine.lowlevel import acquire, invoke, native, read, release

# In words: the frame's arguments and results, number and array of pointers; where a buffer has its data and shape.
_ARGUMENTS, _COUNT, _BUFFERS, _RESULTS, _OUTPUTS, _DATA, _SHAPE = 5, 7, 9, 10, 14, 3, 5


@native
def _describe(frame: int) -> bool:
    """Whether registration asks which version this is written for, which it is told; no call then."""
    extension = read(frame, 1)
    while extension:
        if read(extension, 1) & 0xFFFFFFFF == 1:
            # Two numbers of 32 bits in a word.
            release(read(extension, 3) + 24, MAJOR | MINOR << 32)
            return True
        extension = read(extension, 2)
    return False


@native
def _tasks(t: int, table: int, given: Any, output: int) -> int:
    """Runs the tasks of row t in the columns of a table; `given` are the addresses of other columns' outputs."""
    context, first, last = read(table, 0), read(table, 1), read(table, 2)
    low = read(read(context, OFFSETS), t)
    high = low + read(read(context, WIDTHS), t)
    before, until = 0, 0
    if t:
        before = read(read(context, OFFSETS), t - 1)
        until = before + read(read(context, WIDTHS), t - 1)
    chosen = read(read(context, CHOSEN), t)
    starts, producers = read(read(context, STARTS), chosen), read(read(context, PRODUCERS), chosen)
    body, parameters, size = read(context, BODY), read(context, PARAMETERS), read(context, SCRATCH_SIZE)
    stride = read(context, STRIDE)
    for column in range(max(first, low), min(last, high)):
        begin, end = read(starts, column), read(starts, column + 1)
        where, names, n = np.empty(end - begin + 1, np.int64), np.empty(end - begin + 1, np.int64), 0
        for k in range(begin, end):
            producer = read(producers, k)
            if before <= producer < until:
                where[n], names[n] = given[producer], producer
                n += 1
        scratch = read(context, SCRATCH) + column * size if size else 0
        place = output + (column - first) * stride
        inputs, expected = where.ctypes.data, names.ctypes.data
        if invoke(body, (parameters, t, column, place, 0, 1, inputs, expected, n, scratch)):
            return 1
    return 0


@native
def _block(frame: int) -> None:
    arguments = read(frame, _BUFFERS)
    table = read(read(arguments, 1), _DATA)
    state = read(table, 3)
    if acquire(state):
        return
    if read(frame, _ARGUMENTS) < 40 or read(frame, _RESULTS) < 40 or read(read(arguments, 0), 0) < 48:
        release(state, CHANGED)
        return
    context = read(table, 0)
    stride, entry = read(context, STRIDE), HEADER
    given = np.empty(read(context, WIDTH), np.int64)
    for index in range(2, read(frame, _COUNT)):
        buffer = read(arguments, index)
        for row in range(read(read(buffer, _SHAPE), 0)):
            column = read(table, entry)
            if column >= 0:
                given[column] = read(buffer, _DATA) + row * stride
            entry += 1
    t = read(read(read(arguments, 0), _DATA), 0)
    if _tasks(t, table, given, read(read(read(frame, _OUTPUTS), 0), _DATA)):
        release(state, FAILED + read(table, 4))


@native
def _handle(frame: int) -> int:
    # No error is ever returned: other devices would wait for this one for ever. The state tells instead.
    if not _describe(frame):
        _block(frame)
    return 0


#: The C function `XLA_FFI_Error* (XLA_FFI_CallFrame*)`.
handler = numba.cfunc("int64(int64)", cache=True)(_handle.py_func)
