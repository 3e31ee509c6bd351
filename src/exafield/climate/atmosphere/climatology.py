"""The mean state: what each channel is on average, by latitude and season, over sea and land.

Simple functions, our choice, fitted by hand to the monthly means of real CAM5 output at the points of
`climatenet_cam5_points_train` (two bands near 23 N and 27 S); elsewhere to what textbooks draw (Peixoto and Oort 1992).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.climate.grid import Grid

Values = NDArray[np.float32]
# Warmest day of the northern summer in the sea's surface, and how far the rain belts follow the sun [degrees].
_WARMEST, _SHIFT = 220.0, 6.0
GRAVITY = 9.80665


def season(day_of_year: float) -> float:
    """1 in the northern summer, -1 in the southern."""
    return float(np.cos(2 * np.pi * (day_of_year - _WARMEST) / 365.25))


def saturation(temperature: NDArray[Any], pressure: float) -> NDArray[Any]:
    """Specific humidity of saturated air [kg/kg] (Bolton 1980, eq. 10).

    Args:
        temperature: [K].
        pressure: [Pa].
    """
    celsius = temperature - 273.15
    vapour = 611.2 * np.exp(17.67 * celsius / (celsius + 243.5))
    return np.asarray(0.622 * vapour / (pressure - 0.378 * vapour))


def _bump(x: NDArray[np.float64], middle: float, width: float) -> NDArray[np.float64]:
    return np.exp(-(((x - middle) / width) ** 2))


def mean_state(grid: Grid, day_of_year: float, land: Values, height: Values) -> dict[str, Values]:
    """The channels [latitude, longitude] on a day of the year, without weather.

    Args:
        land, height: see :func:`exafield.climate.atmosphere.geography.land`.
    """
    s = season(day_of_year)
    north = grid.latitude[:, None]
    shifted = north - _SHIFT * s  # degrees from the thermal equator
    polar = np.sin(np.deg2rad(shifted)) ** 2
    south = 1 / (1 + np.exp(north / 6))
    # Land is warmer than the sea in its summer, and colder in its winter.
    summer = s * np.tanh(north / 25)
    land_excess = land * (7 * summer * (1 - _bump(north, 0, 15)) - 2)
    surface = 303.3 - 22 * polar - 28 * polar**3 - 2.2 * south + land_excess - 0.006 * height
    reference = surface - 1.5 - 3 * polar**3 - 0.8 * south
    middle = 268.2 - 14 * polar - 20 * polar**3 - 3.0 * south
    top = 217.3 + 1.3 * s - 1.6 * south - 5 * polar**4 * np.where(summer > 0, -1.0, 1.0)
    geopotential = 12455 - 700 * polar - 600 * polar**3 - 85 * south
    sea_level = (
        101325
        + (420 - 480 * s) * _bump(north, 33, 12) + (730 + 110 * s) * _bump(north, -30, 13)
        - 250 * _bump(shifted, 0, 14) - 700 * _bump(north, 60, 11) - 2300 * _bump(north, -64, 11)
        - 500 * land * summer
    )  # fmt: skip
    trades, westerlies = _bump(np.abs(shifted), 10, 11), _bump(np.abs(north), 46, 12)
    storms = 1 - 0.3 * summer
    u850 = -6.0 * trades + 9.5 * westerlies * storms
    moist = 52.5 * np.exp(-((shifted / 38) ** 2)) * (1 - 0.10 * south) * (1 - 0.3 * land) * np.exp(-height / 2500)
    ones = np.ones(grid.shape)
    mean = {
        "TMQ": moist + 1.0,
        "U850": u850,
        "V850": 0.0,
        "UBOT": 0.72 * u850 - 1.2 * trades - 3.0 * south * _bump(north, -26, 10),
        "VBOT": -1.8 * np.tanh(shifted / 8) * trades,
        "QREFHT": 0.77 * (1 - 0.35 * land) * saturation(reference, 101000.0),
        "PS": sea_level * np.exp(-height / 8000),
        "PSL": sea_level,
        "T200": top,
        "T500": middle,
        "PRECT": 0.0,
        "TS": surface,
        "TREFHT": reference,
        "Z1000": (sea_level - 100000) / 11.5,
        "Z200": geopotential,
        "ZBOT": 0.2205 * reference,
    }
    return {name: (value * ones).astype(np.float32) for name, value in mean.items()}


def activity(grid: Grid, day_of_year: float) -> Mapping[str, Values]:
    """How strong weather is [latitude, 1]: `synoptic` of travelling lows and highs, `convective` of tropical rain."""
    s = season(day_of_year)
    north = grid.latitude[:, None]
    shifted = north - _SHIFT * s
    winter = 1 - 0.35 * s * np.tanh(north / 20)
    synoptic = 0.20 + winter * (0.9 * _bump(np.abs(north), 50, 16) + 0.22 * _bump(np.abs(north), 28, 10))
    convective = _bump(shifted, 0, 16) + 0.25 * _bump(np.abs(north), 48, 15)
    return {"synoptic": synoptic.astype(np.float32), "convective": convective.astype(np.float32)}
