"""A grid of latitude and longitude on the sphere."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Radius of the sphere with the Earth's volume [m] (WGS 84, mean radius R3 as of IUGG).
EARTH_RADIUS = 6_371_000.8
#: Rotation of the Earth [1/s].
EARTH_ROTATION = 7.292115e-5


@dataclass(frozen=True, eq=False)
class Grid:
    """Cell centres. Fields on it are arrays [..., latitude, longitude].

    Args:
        latitude: [n] degrees north, from south to north.
        longitude: [m] degrees east, from west to east, within one turn.
    Raises:
        ValueError: an axis is not so.
    """

    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name, limit in (("latitude", 90.0), ("longitude", 540.0)):
            axis = np.ascontiguousarray(getattr(self, name), dtype=np.float64).copy()
            axis.setflags(write=False)
            object.__setattr__(self, name, axis)
            if axis.ndim != 1 or axis.size < 2:
                raise ValueError(f"{name} must have one dimension and at least two values, got shape {axis.shape}")
            if not np.all(np.isfinite(axis)) or np.abs(axis).max() > limit + 1e-6:
                raise ValueError(f"{name} must lie within {limit:g} degrees, got {axis.min():g} to {axis.max():g}")
            if not np.all(np.diff(axis) > 0):
                where = int(np.argmin(np.diff(axis) > 0))
                raise ValueError(f"{name} must rise, but {axis[where]:g} is followed by {axis[where + 1]:g}")
        steps = np.diff(self.longitude)
        at = int(steps.argmax())
        if self.periodic and steps[at] > 2.5 * np.median(steps):
            raise ValueError(
                f"longitude has a hole: {self.longitude[at]:g} is followed by {self.longitude[at + 1]:g}, where steps "
                f"are {np.median(steps):g} otherwise; select a region without it"
            )
        if self.longitude[-1] - self.longitude[0] >= 360.0:
            raise ValueError(
                f"longitude must lie within one turn, got {self.longitude[0]:g} to {self.longitude[-1]:g}: "
                "leave out the repeated column"
            )

    @classmethod
    def whole(cls, latitudes: int, longitudes: int) -> "Grid":
        """The whole globe: cells of equal angles, from the south pole and the Greenwich meridian."""
        step = 180.0 / latitudes
        north = np.arange(latitudes, dtype=np.float64) * step - 90.0 + step / 2
        return cls(north, np.arange(longitudes, dtype=np.float64) * (360.0 / longitudes))

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of latitudes and longitudes."""
        return self.latitude.size, self.longitude.size

    @cached_property
    def periodic(self) -> bool:
        """Whether the last column is a neighbour of the first: the gap between them is like the others."""
        gap = self.longitude[0] + 360.0 - self.longitude[-1]
        return bool(gap <= 1.5 * np.diff(self.longitude).max())

    @cached_property
    def edges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bounds of the cells, [n + 1] degrees north and [m + 1] degrees east: half-way, and at most at the poles."""
        both = []
        for axis in (self.latitude, self.longitude):
            middle = (axis[1:] + axis[:-1]) / 2
            both.append(np.concatenate(([2 * axis[0] - middle[0]], middle, [2 * axis[-1] - middle[-1]])))
        north = np.clip(both[0], -90.0, 90.0)
        # Latitudes that start at the poles themselves, as in CAM5, have half a cell there.
        return north, both[1]

    @cached_property
    def areas(self) -> NDArray[np.float64]:
        """Of the cells [m2], [n, m]."""
        north, east = (np.deg2rad(axis) for axis in self.edges)
        zones: NDArray[np.float64] = np.outer(np.diff(np.sin(north)), np.diff(east)) * EARTH_RADIUS**2
        return zones

    def mean(self, field: NDArray[np.floating[Any]]) -> float:
        """Mean over the area of all cells of a field [n, m]; in its precision, without a copy of it."""
        north, east = self._shares
        return float(north.astype(field.dtype) @ field @ east.astype(field.dtype))

    @cached_property
    def _shares(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of each row and each column in the area: that of a cell is their product."""
        total = self.areas.sum()
        return self.areas.sum(1) / total, self.areas.sum(0) / total

    @cached_property
    def coriolis(self) -> NDArray[np.float64]:
        """Coriolis parameter of each latitude [1/s], [n]."""
        value: NDArray[np.float64] = 2 * EARTH_ROTATION * np.sin(np.deg2rad(self.latitude))
        return value

    def distance(self, latitude: ArrayLike, longitude: ArrayLike) -> NDArray[np.float64]:
        """Along great circles from a point to all cells [m], [n, m]."""
        return distance(latitude, longitude, self.latitude[:, None], self.longitude[None, :])


def distance(
    latitude: ArrayLike, longitude: ArrayLike, other_latitude: ArrayLike, other_longitude: ArrayLike
) -> NDArray[np.float64]:
    """Along great circles [m], of points in degrees; arrays are broadcast (haversine formula)."""
    north, east, other_north, other_east = (
        np.deg2rad(np.asarray(x, dtype=np.float64)) for x in (latitude, longitude, other_latitude, other_longitude)
    )
    half = (
        np.sin((other_north - north) / 2) ** 2
        + np.cos(north) * np.cos(other_north) * np.sin((other_east - east) / 2) ** 2
    )
    return np.asarray(2 * EARTH_RADIUS * np.arcsin(np.sqrt(np.clip(half, 0.0, 1.0))))
