"""Counting noise for training: nearly Poisson counts, two to three times cheaper than exact ones.

Exact Poisson counts take longer to draw than everything else in a window. Here counts come from a table of quantiles.
Expectations between its rows are reached by drawing the upper or lower row at random, which keeps the mean and adds a
few thousandths to the variance; large counts are rounded normal numbers. Windows that a network is judged by have
exact counts.
"""

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from scipy import stats

# Distance of the table's rows in the square root of the expected count, the largest root in it, and quantiles of each
# row; our choice: the table fits in a core's cache.
_STEP, _LARGEST, _QUANTILES = 0.05, 8.0, 8192


@cache
def _table() -> tuple[Float[np.ndarray, "row"], UInt8[np.ndarray, "entry"]]:
    """Expected count of each row, and all rows of counts one after the other."""
    expected = (np.arange(round(_LARGEST / _STEP) + 2) * _STEP) ** 2
    at = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    below = stats.poisson.cdf(np.arange(200)[None], expected[:, None])
    rows = [np.searchsorted(row, at) for row in below]
    return expected.astype(np.float32), np.concatenate(rows).astype(np.uint8)


def counts(expected: Float[np.ndarray, "*shape"], random: np.random.Generator) -> Float[np.ndarray, "*shape"]:
    """Counts for expected counts, a little beside Poisson's law (see the head of this file)."""
    rows, table = _table()
    mean = np.ascontiguousarray(expected, dtype=np.float32)
    low = np.minimum(np.sqrt(mean) * np.float32(1 / _STEP), len(rows) - 2).astype(np.int32)
    # Rows lie at (i step)^2, so that the next one is (2 i + 1) step^2 higher.
    share = (mean - rows[low]) / ((2 * low + 1) * np.float32(_STEP**2))
    low += random.random(mean.shape, dtype=np.float32) < share
    low *= _QUANTILES
    low += random.integers(_QUANTILES, size=mean.shape, dtype=np.uint16)
    drawn = table.take(low).astype(np.float32)
    large = np.flatnonzero(mean >= _LARGEST**2)
    if len(large):
        some = mean.ravel()[large]
        spread = np.sqrt(some) * random.standard_normal(len(large), dtype=np.float32)
        drawn.ravel()[large] = np.maximum(np.rint(some + spread), 0)
    return drawn
