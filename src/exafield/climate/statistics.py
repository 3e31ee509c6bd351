"""Statistics of extreme weather: how often, where, and how much of the rain it brings. Sums grow by one snapshot at a
time, and sums of several parts of the data add up, so that years of files can be shared out."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exafield.climate import basins, clock
from exafield.climate.clock import SEASONS
from exafield.climate.fields import CLASSES
from exafield.climate.grid import Grid
from exafield.climate.snapshot import Time
from exafield.climate.tracking import Track
from exafield.climate.values import checked, need


@dataclass(frozen=True, slots=True)
class Count:
    """How many tracks began in a season and a basin."""

    year: Annotated[int, "1", "year; December belongs to the next"]
    season: Annotated[str, "", "by the first letters of its months"]
    basin: Annotated[str, "", "where they began, as of IBTrACS"]
    kind: Annotated[int, "1", "class: 1 tropical cyclone, 2 atmospheric river"]
    tracks: Annotated[int, "1", "how many"]


def counts(tracks: Iterable[Track]) -> list[Count]:
    """Tracks by year, season, basin and class of their beginning; combinations without any are left out."""
    number = Counter((*clock.season(track.events[0].time), track.events[0].basin, track.kind) for track in tracks)
    order = sorted(number, key=lambda key: (key[0], SEASONS.index(key[1]), basins.BASINS.index(key[2]), key[3]))
    return [Count(*key, number[key]) for key in order]


@dataclass(frozen=True, slots=True)
class Share:
    """Precipitation of a basin by class."""

    basin: Annotated[str, "", "as of IBTrACS, or all"]
    precipitation: Annotated[float, "m3 s-1", "water that falls in the basin, on average over the snapshots"]
    cyclone_share: Annotated[float, "1", "of it that falls inside tropical cyclones"]
    river_share: Annotated[float, "1", "of it that falls inside atmospheric rivers"]
    cyclone_area: Annotated[float, "1", "share of the area of the basin that tropical cyclones cover, on average"]
    river_area: Annotated[float, "1", "share of the area of the basin that atmospheric rivers cover, on average"]


@dataclass(eq=False)
class Tally:
    """Sums over snapshots on one grid.

    Args:
        grid: of all snapshots.
        snapshots: by season; those without a time count as a fifth season.
        covered: in how many of these a cell was of a class, [season, class - 1, latitude, longitude].
        rainy: snapshots that had precipitation.
        rain: summed over these, by basin and class [m3/s].
        area: summed over these, by basin and class [m2].
    """

    grid: Grid
    snapshots: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SEASONS) + 1, np.int64))
    covered: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    rainy: int = 0
    rain: NDArray[np.float64] = field(default_factory=lambda: np.zeros((len(basins.BASINS), len(CLASSES))))
    area: NDArray[np.float64] = field(default_factory=lambda: np.zeros((len(basins.BASINS), len(CLASSES))))

    def __post_init__(self) -> None:
        self._basin = basins.over(self.grid).astype(np.int64)
        if not self.covered.size:
            self.covered = np.zeros((len(SEASONS) + 1, len(CLASSES) - 1, *self.grid.shape), np.int32)

    def add(self, mask: ArrayLike, values: Mapping[str, ArrayLike] | None = None, time: Time = None) -> None:
        """Counts a snapshot; its precipitation too, if PRECT is given.

        Raises:
            ValueError: the mask or the precipitation is unfit; nothing is counted then.
        """
        labels = checked(mask, self.grid)
        rate = None
        if values is not None and "PRECT" in values:
            (rate,) = need(values, ["PRECT"], self.grid, "shares of precipitation")
        season = len(SEASONS) if time is None else SEASONS.index(clock.season(time)[1])
        self.snapshots[season] += 1
        for kind in range(1, len(CLASSES)):
            self.covered[season, kind - 1] += labels == kind
        if rate is not None:
            self.rainy += 1
            cell = (self._basin * len(CLASSES) + labels).ravel()
            for total, weight in ((self.rain, rate * self.grid.areas), (self.area, self.grid.areas)):
                total += np.bincount(cell, weight.ravel(), total.size).reshape(total.shape)

    def __add__(self, other: "Tally") -> "Tally":
        """Of the snapshots of both.

        Raises:
            ValueError: their grids differ.
        """
        for mine, theirs in zip(
            (self.grid.latitude, self.grid.longitude), (other.grid.latitude, other.grid.longitude), strict=True
        ):
            if mine.shape != theirs.shape or not np.allclose(mine, theirs):
                raise ValueError(f"the grids differ: {self.grid.shape} and {other.grid.shape}")
        return Tally(
            self.grid, self.snapshots + other.snapshots, self.covered + other.covered, self.rainy + other.rainy,
            self.rain + other.rain, self.area + other.area,
        )  # fmt: skip

    def frequency(self, kind: int, season: str | None = None) -> NDArray[np.float64]:
        """Share of the snapshots in which a cell is of a class, [latitude, longitude]; NaN if there was none.

        Args:
            kind: class, 1 or 2.
            season: one of `clock.SEASONS`; None for all snapshots.
        """
        chosen = slice(None) if season is None else slice(SEASONS.index(season), SEASONS.index(season) + 1)
        total = self.snapshots[chosen].sum()
        often = self.covered[chosen, kind - 1].sum(axis=0, dtype=np.float64)
        return often / total if total else np.full(self.grid.shape, np.nan)

    def shares(self) -> list[Share]:
        """Precipitation inside cyclones and rivers, by basin and over all; basins outside the grid are left out.

        Raises:
            ValueError: no snapshot had precipitation.
        """
        if not self.rainy:
            raise ValueError("no snapshot had PRECT, so that there are no shares of precipitation")
        rows = [*zip(basins.BASINS, self.rain, self.area, strict=True), ("all", self.rain.sum(0), self.area.sum(0))]
        return [
            Share(name, float(rain.sum() / self.rainy), *_part(rain), *_part(area))
            for name, rain, area in rows
            if area.sum() > 0
        ]


def _part(by_class: NDArray[np.float64]) -> tuple[float, float]:
    """Shares of the two classes in the sum of all; NaN where that is nothing."""
    total = by_class.sum()
    return (float(by_class[1] / total), float(by_class[2] / total)) if total else (float("nan"), float("nan"))
