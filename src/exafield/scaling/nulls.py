"""Null models of scaling: what a prediction has to beat before it says anything."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Curve = Callable[[Sequence[int]], NDArray[np.float64]]
"""Efficiency (0 to 1) at each of some numbers of ranks."""


def constant(known: Mapping[int, float]) -> Curve:
    """The efficiency at the largest scale that is known, for all scales.

    Args:
        known: efficiency by number of ranks.
    """
    _check(known)
    last = known[max(known)]
    return lambda ranks: np.full(len(ranks), last)


def line(known: Mapping[int, float]) -> Curve:
    """A straight line in the logarithm of the number of ranks, by least squares.

    Args:
        known: efficiency by number of ranks. If only one scale is known, the line goes through it and through 1 at one
            rank, which is what efficiency is measured by.
    """
    _check(known)
    points = dict(known) if len(known) > 1 else {1: 1.0} | dict(known)
    if len(points) == 1:
        return constant(known)
    slope, at_one = np.polyfit(np.log2(np.array(list(points), dtype=float)), np.array(list(points.values())), 1)
    return lambda ranks: at_one + slope * np.log2(np.asarray(ranks, dtype=float))


def _check(known: Mapping[int, float]) -> None:
    if not known:
        raise ValueError("a null model needs the efficiency at one number of ranks at least")
    for ranks, efficiency in known.items():
        if ranks < 1 or not np.isfinite(efficiency):
            raise ValueError(f"efficiency {efficiency} on {ranks} ranks is no point of a scaling curve")
