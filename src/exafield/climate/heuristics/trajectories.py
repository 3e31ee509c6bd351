"""Centres of cyclones joined through time, and only those kept that last, as the published labels do (TECA)."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from exafield.climate import clock
from exafield.climate.components import between
from exafield.climate.heuristics.cyclones import Centre, Thresholds
from exafield.climate.snapshot import Time

Trajectory = list[tuple[Time, Centre]]


def trajectories(
    snapshots: Iterable[tuple[Time, Sequence[Centre]]],
    thresholds: Thresholds | None = None,
    *,
    daily_distance: float = 1600e3,
    days: float = 2.0,
) -> list[Trajectory]:
    """Tracks whose centres are cyclones for long enough in all.

    A track goes on with the nearest centre of the next snapshot that no earlier track took; it has no gaps.

    Args:
        snapshots: times, rising, and what `cyclones.detect` found there.
        thresholds: those of the detection.
        daily_distance: farthest that a storm moves in a day [m]; of TECA.
        days: how long, not necessarily at a stretch, wind, warmth and thickness must be those of a cyclone; of TECA.
    """
    limits = thresholds or Thresholds()
    growing: list[Trajectory] = []
    kept: list[Trajectory] = []

    def end(track: Trajectory) -> None:
        lasted = sum(
            clock.seconds(time, later) for (time, centre), (later, _) in pairwise(track)
            if centre.is_cyclone(limits)
        )  # fmt: skip
        if lasted >= days * 86400:
            kept.append(track)

    for time, centres in snapshots:
        free = list(centres)
        going = []
        for track in growing:
            last, here = track[-1]
            reach = daily_distance * clock.seconds(last, time) / 86400
            away = [between(here.latitude, here.longitude, c.latitude, c.longitude) for c in free]
            nearest = min(range(len(free)), key=away.__getitem__, default=-1)
            if nearest >= 0 and away[nearest] <= reach:
                track.append((time, free.pop(nearest)))
                going.append(track)
            else:
                end(track)
        growing = going + [[(time, centre)] for centre in free]
    for track in growing:
        end(track)
    return kept
