"""The loop of :mod:`exafield.engine.prange`, compiled."""

# mypy: disable-error-code="untyped-decorator,no-untyped-call,misc,no-any-return"

from typing import Any

import numpy as np
from numba import prange

from exafield.engine.blocks import OFFSETS, WIDTHS, task
from exafield.engine.lowlevel import acquire, native, read


def _rows(contexts: Any, steps: Any, firsts: Any, count: int, stop: int) -> int:
    """Runs all graphs, row by row; the columns of a row of all graphs form one parallel loop.

    Args:
        contexts: [graphs] of their arenas.
        steps: [graphs] rows of each.
        firsts: [graphs + 1] number of the first column of each, counted over all.
        count: rows of the longest.
        stop: address of a word; once it is not 0, no more rows run.
    """
    total = firsts[-1]
    failed = np.zeros(1, dtype=np.int64)
    for t in range(count):
        if acquire(stop):
            break
        for index in prange(total):
            g = np.searchsorted(firsts, index, side="right") - 1 if contexts.size > 1 else 0
            if t < steps[g]:
                column = index - firsts[g]
                low = read(read(contexts[g], OFFSETS), t)
                if low <= column < low + read(read(contexts[g], WIDTHS), t):
                    result = task(contexts[g], t, column)
                    if result:
                        failed[0] = result
        if failed[0]:
            break
    return failed[0]


rows = native(_rows, parallel=True)
