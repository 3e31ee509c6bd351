"""The loop of a rank of :mod:`exafield.engine.shared`, compiled."""

# mypy: disable-error-code="untyped-decorator,no-untyped-call,misc"

from typing import Any

from llvmlite import ir
from numba import int64, njit, types
from numba.extending import intrinsic

from exafield.engine.blocks import CHOSEN, OFFSETS, PRODUCERS, SLOTS, STARTS, STEPS, WIDTHS, read, task

# Columns of a part's description.
CONTEXT, FLAGS, KINDS, ORDER, OWN, REVERSE_STARTS, CONSUMERS, UNUSED = range(8)
# From one flag to the next [bytes].
LINE = 64
# Looks at a flag before the core is offered to others: some microseconds, more than a neighbour's small task (ours).
SPINS = 2000


@intrinsic
def acquire(typingctx: Any, where: Any) -> Any:
    """Reads a flag; what was written before it was raised is seen after it."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()), "acquire", 8)

    return int64(int64), build


@intrinsic
def release(typingctx: Any, where: Any, value: Any) -> Any:
    """Raises a flag; what was written before is seen by who reads it."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        builder.store_atomic(arguments[1], target, "release", 8)
        return context.get_dummy_value()

    return types.void(int64, int64), build


@intrinsic
def offer(typingctx: Any, function: Any) -> Any:
    """Calls sched_yield at its address."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(int64), build


@njit(nogil=True, cache=True, error_model="numpy")
def reach(flag: int, value: int, yielding: int) -> None:
    """Waits until a flag has a value, or a higher one."""
    spins = 0
    while acquire(flag) < value:
        spins += 1
        if spins >= SPINS:
            offer(yielding)
            spins = 0


@njit(nogil=True, cache=True, error_model="numpy")
def meet(flags: int, rank: int, size: int, generation: int, yielding: int) -> None:
    """Waits until all ranks are here."""
    release(flags + rank * LINE, generation)
    for other in range(size):
        reach(flags + other * LINE, generation, yielding)


@njit(nogil=True, cache=True, error_model="numpy")
def _await(part: Any, t: int, column: int, base: int, yielding: int) -> None:
    """Waits until task (t, column) may run: its inputs are there, and nobody reads what it writes over."""
    context, flags = part[CONTEXT], part[FLAGS]
    offsets, widths, chosen = read(context, OFFSETS), read(context, WIDTHS), read(context, CHOSEN)
    if t:
        low = read(offsets, t - 1)
        high = low + read(widths, t - 1)
        relation = read(chosen, t)
        starts, producers = read(read(context, STARTS), relation), read(read(context, PRODUCERS), relation)
        for k in range(read(starts, column), read(starts, column + 1)):
            producer = read(producers, k)
            if low <= producer < high:
                reach(flags + producer * LINE, base + t, yielding)
    # Its slot holds the output of row t - slots, which row t - slots + 1 takes.
    reader = t - read(context, SLOTS) + 1
    if reader > 0:
        low = read(offsets, reader)
        high = low + read(widths, reader)
        before, end = read(offsets, reader - 1), read(offsets, reader - 1) + read(widths, reader - 1)
        if before <= column < end:
            relation = read(chosen, reader)
            starts, consumers = read(part[REVERSE_STARTS], relation), read(part[CONSUMERS], relation)
            for k in range(read(starts, column), read(starts, column + 1)):
                consumer = read(consumers, k)
                if low <= consumer < high:
                    reach(flags + consumer * LINE, base + reader + 1, yielding)


@njit(nogil=True, cache=True, error_model="numpy")
def run_rows(parts: Any, rows: int, base: int, yielding: int) -> int:
    """All rows of all graphs; columns that other ranks wait for run first.

    The flag of a column is `base` plus the number of rows that are done with it.
    """
    for t in range(rows):
        for g in range(parts.shape[0]):
            part = parts[g]
            context = part[CONTEXT]
            if t >= read(context, STEPS):
                continue
            low = read(read(context, OFFSETS), t)
            high = low + read(read(context, WIDTHS), t)
            order = part[ORDER] + 8 * part[OWN] * read(part[KINDS], t + 1)
            for k in range(part[OWN]):
                column = read(order, k)
                if low <= column < high:
                    _await(part, t, column, base, yielding)
                    failed = task(context, t, column)
                    if failed:
                        return failed
                    release(part[FLAGS] + column * LINE, base + t + 1)
    return 0
