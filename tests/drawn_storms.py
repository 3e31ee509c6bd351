"""Storms whose answer is known, drawn on small grids."""

import numpy as np
from numpy.typing import NDArray

from exafield.climate.grid import Grid, distance

Fields = dict[str, NDArray[np.float64]]
RADIUS = 60e3  # of the strongest wind [m]


def calm(grid: Grid) -> Fields:
    """An atmosphere at rest: pressure, temperatures and moisture that depend on latitude alone."""
    north = np.broadcast_to(grid.latitude[:, None], grid.shape)
    flat = np.ones(grid.shape)
    return {
        "TMQ": 45 * np.exp(-((north / 20) ** 2)) + 3, "U850": 0 * flat, "V850": 0 * flat, "PSL": 101325 * flat,
        "T200": 220 * flat, "T500": 265 * flat, "PRECT": 1e-9 * flat, "QREFHT": 0.01 * flat,
        "Z1000": 100 * flat, "Z200": 12000 * flat,
    }  # fmt: skip


def add_cyclone(
    fields: Fields, grid: Grid, latitude: float, longitude: float, *, wind: float = 45.0, warm: float = 6.0
) -> None:
    """A vortex with the wind of a modified Rankine profile, a low, a warm core and rain."""
    away = grid.distance(latitude, longitude)
    speed = wind * np.where(away < RADIUS, away / RADIUS, (RADIUS / np.maximum(away, 1.0)) ** 0.6)
    speed = speed * np.exp(-((away / 900e3) ** 2))
    east = (grid.longitude[None, :] - longitude + 180) % 360 - 180
    x = east * np.cos(np.deg2rad(latitude))
    y = grid.latitude[:, None] - latitude
    turn = np.arctan2(y, x)
    sign = 1.0 if latitude >= 0 else -1.0
    fields["U850"] -= sign * speed * np.sin(turn)
    fields["V850"] += sign * speed * np.cos(turn)
    fields["PSL"] -= 5000 * np.exp(-away / 250e3)
    near = np.exp(-((away / 300e3) ** 2))
    fields["T200"] += warm * near
    fields["T500"] += warm * near
    fields["Z200"] += 150 * near * (warm > 0)
    fields["TMQ"] += 20 * near
    fields["PRECT"] += 3e-6 * near


def add_river(
    fields: Fields,
    start: tuple[float, float],
    end: tuple[float, float],
    grid: Grid,
    *,
    width: float = 4.0,
    wind: float = 15.0,
) -> None:
    """A straight band of moist air that blows from one place to another; its longitudes may go over the seam."""
    along = np.linspace(0, 1, 200)
    away = np.full(grid.shape, np.inf)
    for part in along:
        north, east = (a + part * (b - a) for a, b in zip(start, end, strict=True))
        np.minimum(away, grid.distance(north, east), out=away)
    near = np.exp(-((away / (width * 111e3)) ** 2))
    fields["TMQ"] += 45 * near
    north, east = end[0] - start[0], (end[1] - start[1]) * np.cos(np.deg2rad((start[0] + end[0]) / 2))
    fields["U850"] += wind * near * east / np.hypot(north, east)
    fields["V850"] += wind * near * north / np.hypot(north, east)


def add_disc(mask: NDArray[np.uint8], grid: Grid, latitude: float, longitude: float, radius: float, kind: int) -> None:
    """All cells within a distance [m] get a class."""
    mask[distance(latitude, longitude, grid.latitude[:, None], grid.longitude[None, :]) <= radius] = kind
