"""The loop of a rank of :mod:`exafield.engine.shared`, compiled."""

# mypy: disable-error-code="untyped-decorator,no-untyped-call,misc,no-any-return"

from typing import Any

from exafield.engine.blocks import CHOSEN, OFFSETS, PRODUCERS, SLOTS, STARTS, STEPS, WIDTHS, task
from exafield.engine.lowlevel import acquire, invoke_int, native, read, release

# Columns of a part's description.
CONTEXT, FLAGS, KINDS, ORDER, OWN, REVERSE_STARTS, CONSUMERS, UNUSED = range(8)
# From one flag to the next [bytes].
LINE = 64
# Looks at a flag before the core is offered to others: some microseconds, more than a neighbour's small task (ours).
SPINS = 2000


@native
def reach(flag: int, value: int, yielding: int) -> None:
    """Waits until a flag has a value, or a higher one."""
    spins = 0
    while acquire(flag) < value:
        spins += 1
        if spins >= SPINS:
            invoke_int(yielding, (0,))  # sched_yield takes nothing, and does not mind
            spins = 0


@native
def meet(flags: int, rank: int, size: int, generation: int, yielding: int) -> None:
    """Waits until all ranks are here."""
    release(flags + rank * LINE, generation)
    for other in range(size):
        reach(flags + other * LINE, generation, yielding)


@native
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


@native
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
