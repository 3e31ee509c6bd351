"""The loop of :mod:`exafield.engine.mpi_prange`, compiled."""

# mypy: disable-error-code="untyped-decorator,no-untyped-call,misc,no-any-return"

from typing import Any

import numpy as np
from numba import njit, prange

from exafield.engine.blocks import OFFSETS, WIDTHS, task
from exafield.engine.lowlevel import read


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def row(contexts: Any, steps: Any, lows: Any, firsts: Any, t: int) -> int:
    """Runs a rank's columns of row t of all graphs as one parallel loop; 0, or what one that failed returned.

    Args:
        contexts: [graphs] of their arenas.
        steps: [graphs] rows of each.
        lows: [graphs] first column that the rank has of each.
        firsts: [graphs + 1] how many columns the rank has of the graphs before each.
        t: row.
    """
    failed = np.zeros(1, dtype=np.int64)
    for index in prange(firsts[-1]):
        g = np.searchsorted(firsts, index, side="right") - 1 if contexts.size > 1 else 0
        if t < steps[g]:
            column = lows[g] + index - firsts[g]
            low = read(read(contexts[g], OFFSETS), t)
            if low <= column < low + read(read(contexts[g], WIDTHS), t):
                result = task(contexts[g], t, column)
                if result:
                    failed[0] = result
    return failed[0]
