"""Pipes: what a modelled reduction occupies, and what that costs those who compute meanwhile."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Route:
    """The way of one group of gradients.

    Args:
        stages: what each of its pieces occupies, one after the other; how long it is under way before, and how long it
            occupies that [s].
        pieces: that pass the stages one behind the other.
    """

    stages: tuple[tuple[str, float, float], ...] = ()
    pieces: int = 1


class Pipes:
    """Resources that serve one thing at a time; who comes later may go first into a gap that is long enough.

    Every stage is at one piece at a time, and takes them in order: it waits for what it has sent.
    """

    def __init__(self) -> None:
        self._taken: dict[str, list[tuple[float, float]]] = {}
        self._done: dict[int, float] = {}

    def send(self, route: Route, at: float) -> float:
        """When a group arrives that leaves at a time [s]."""
        arrived = at
        for _ in range(route.pieces):
            now = at
            for number, (resource, latency, seconds) in enumerate(route.stages):
                now = self._take(resource, max(now, self._done.get(number, now)) + latency, seconds)
                self._done[number] = now
            arrived = max(arrived, now)
        return arrived

    def _take(self, resource: str, at: float, seconds: float) -> float:
        if seconds <= 0.0:
            return at
        taken = self._taken.setdefault(resource, [])
        place = bisect_left(taken, at, key=itemgetter(1))  # what ended before does not matter
        while place < len(taken) and taken[place][0] - at < seconds:
            at = max(at, taken[place][1])
            place += 1
        end = at + seconds
        if place and taken[place - 1][1] == at:
            taken[place - 1] = (taken[place - 1][0], end)
        else:
            taken.insert(place, (at, end))
        return end

    def forget(self, before: float) -> None:
        """Nothing will be sent before this time any more."""
        for resource, taken in self._taken.items():
            self._taken[resource] = [span for span in taken if span[1] > before]


class Progress:
    """How far computing has come while reductions under way take a share of it.

    Args:
        share: of computing that is lost while a reduction is under way.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._spans: list[tuple[float, float]] = []  # apart from each other, ascending

    def under_way(self, begin: float, end: float) -> None:
        """A reduction is under way in this time."""
        if self._share == 0.0 or end <= begin:
            return
        apart = [span for span in self._spans if span[1] < begin or span[0] > end]
        touched = [span for span in self._spans if not (span[1] < begin or span[0] > end)]
        insort(apart, (min([begin, *(a for a, _ in touched)]), max([end, *(b for _, b in touched)])))
        self._spans = apart

    def when(self, start: float, work: float) -> float:
        """When work that takes so long alone [s] is done if it begins at `start`, as far as is known."""
        at = start + work
        for begin, end in self._spans[bisect_right(self._spans, start, key=itemgetter(1)) :]:
            if at <= begin:
                break
            begin = max(begin, start)
            left = (at - begin) / (1.0 - self._share)
            at = begin + left if begin + left <= end else at + self._share * (end - begin)
        return at

    def all_when(self, start: Floats, work: Floats) -> Floats:
        """The same for many ranks."""
        at = start + work
        earliest = float(start.min()) if self._spans else 0.0
        for begin, end in self._spans[bisect_right(self._spans, earliest, key=itemgetter(1)) :]:
            if float(at.max()) <= begin:
                break
            first = np.maximum(begin, start)
            length = np.maximum(end - first, 0.0)
            left = np.maximum(at - first, 0.0) / (1.0 - self._share)
            slowed = np.where(left <= length, first + left, at + self._share * length)
            at = np.where((left > 0.0) & (length > 0.0), slowed, at)
        return at

    def forget(self, before: float) -> None:
        """Nothing is asked of earlier times any more."""
        self._spans = [span for span in self._spans if span[1] > before]


def busiest(routes: Sequence[Route]) -> float:
    """Time for which the busiest resource is occupied by all groups [s]."""
    total: dict[str, float] = {}
    for route in routes:
        for resource, _, seconds in route.stages:
            total[resource] = total.get(resource, 0.0) + seconds * route.pieces
    return max(total.values(), default=0.0)
