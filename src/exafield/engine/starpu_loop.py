"""What :mod:`exafield.engine.starpu` runs, compiled by numba."""

# mypy: disable-error-code="untyped-decorator,no-untyped-call"

import inspect
from typing import Any

from numba import cfunc, int64, types

from exafield.engine.blocks import CHOSEN, OFFSETS, PRODUCERS, SCRATCH_SIZE, SLOTS, STARTS, STEPS, WIDTH, WIDTHS, task
from exafield.engine.lowlevel import acquire, invoke, native, read, release

# The words of a task's argument: arena, row, column, and where the arena of a task that failed is written.
WORDS = 4


def _run(buffers: int, argument: int) -> None:
    """A task of StarPU; it finds its data in the arena, where the handles say that they are."""
    failed = read(argument, 3)
    # After a failure the rest is let run dry.
    if acquire(failed) == 0 and task(read(argument, 0), read(argument, 1), read(argument, 2)) != 0:
        release(failed, read(argument, 0))


codelet: Any = cfunc(types.void(int64, int64), cache=True)(inspect.unwrap(_run))


@native
def submit(contexts: Any, handles: Any, scratches: Any, starts: Any, arguments: Any, words: Any, fixed: Any) -> None:
    """Inserts all tasks, rows of equal number of all graphs one after the other; StarPU finds the dependencies.

    Args:
        contexts: [graphs] addresses of arenas.
        handles: [graphs] addresses of the handles of outputs, [slots, width].
        scratches: [graphs] addresses of the handles of scratch memory, [width].
        starts: [graphs] first argument of each graph.
        arguments: [tasks, WORDS], written here.
        words: room for the list by which one task is inserted.
        fixed: fstarpu_task_insert, codelet, what announces an argument, its size, R, W, RW, where failures are written.
    """
    function, code, announce, size, r, w, rw, failed = fixed
    words[0], words[1], words[3], words[4] = code, announce, size, w
    following = starts.copy()
    steps = 0
    for context in contexts:
        steps = max(steps, read(context, STEPS))
    for t in range(steps):
        for g in range(contexts.size):
            context = contexts[g]
            if t >= read(context, STEPS):
                continue
            slots, width, keeps = read(context, SLOTS), read(context, WIDTH), read(context, SCRATCH_SIZE)
            low = read(read(context, OFFSETS), t)
            high = low + read(read(context, WIDTHS), t)
            chosen = read(read(context, CHOSEN), t)
            relation, producers = read(read(context, STARTS), chosen), read(read(context, PRODUCERS), chosen)
            here, before = (t % slots) * width, ((t - 1) % slots) * width
            # Row 0 takes nothing.
            first = read(read(context, OFFSETS), t - 1) if t else 0
            last = first + read(read(context, WIDTHS), t - 1) if t else 0
            for column in range(low, high):
                argument = arguments[following[g]]
                following[g] += 1
                argument[0], argument[1], argument[2], argument[3] = context, t, column, failed
                words[2], words[5] = argument.ctypes.data, read(handles[g], here + column)
                n = 6
                if keeps:
                    words[n], words[n + 1] = rw, read(scratches[g], column)
                    n += 2
                for k in range(read(relation, column), read(relation, column + 1)):
                    producer = read(producers, k)
                    if first <= producer < last:
                        words[n], words[n + 1] = r, read(handles[g], before + producer)
                        n += 2
                words[n] = 0
                # It returns an int, or nothing worth reading: tasks are counted by who waits for them.
                invoke(function, (words.ctypes.data,))
