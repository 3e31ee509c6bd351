"""Units as files write them, and the way from there to the units of the channels."""

import re
from dataclasses import dataclass

import numpy as np

from exafield.climate.fields import Channel

#: Standard acceleration of free fall [m s-2] (BIPM); geopotential over it is geopotential height (WMO).
GRAVITY = 9.80665
#: Density of liquid water [kg m-3] by which mass of water is taken as depth, as CF and all models do.
WATER = 1000.0

# Symbols: factor, and exponents of kg, m, s, K. Names as they occur in CF, GRIB-to-NetCDF, NCL and MERRA files.
_SYMBOLS: dict[str, tuple[float, tuple[int, int, int, int]]] = {
    "1": (1.0, (0, 0, 0, 0)),
    "kg": (1.0, (1, 0, 0, 0)), "g": (1e-3, (1, 0, 0, 0)),
    "m": (1.0, (0, 1, 0, 0)), "km": (1e3, (0, 1, 0, 0)), "cm": (1e-2, (0, 1, 0, 0)), "mm": (1e-3, (0, 1, 0, 0)),
    "gpm": (1.0, (0, 1, 0, 0)), "dam": (10.0, (0, 1, 0, 0)), "gpdam": (10.0, (0, 1, 0, 0)),
    "s": (1.0, (0, 0, 1, 0)), "sec": (1.0, (0, 0, 1, 0)), "second": (1.0, (0, 0, 1, 0)), "min": (60.0, (0, 0, 1, 0)),
    "h": (3600.0, (0, 0, 1, 0)), "hr": (3600.0, (0, 0, 1, 0)), "hour": (3600.0, (0, 0, 1, 0)),
    "d": (86400.0, (0, 0, 1, 0)), "day": (86400.0, (0, 0, 1, 0)),
    "k": (1.0, (0, 0, 0, 1)), "kelvin": (1.0, (0, 0, 0, 1)), "degk": (1.0, (0, 0, 0, 1)),
    "pa": (1.0, (1, -1, -2, 0)), "pascal": (1.0, (1, -1, -2, 0)), "pascals": (1.0, (1, -1, -2, 0)),
    "hpa": (100.0, (1, -1, -2, 0)), "mb": (100.0, (1, -1, -2, 0)), "mbar": (100.0, (1, -1, -2, 0)),
    "millibar": (100.0, (1, -1, -2, 0)), "millibars": (100.0, (1, -1, -2, 0)), "kpa": (1e3, (1, -1, -2, 0)),
    "bar": (1e5, (1, -1, -2, 0)),
    "j": (1.0, (1, 2, -2, 0)),
    "knot": (1852 / 3600, (0, 1, -1, 0)), "knots": (1852 / 3600, (0, 1, -1, 0)), "kt": (1852 / 3600, (0, 1, -1, 0)),
    "kts": (1852 / 3600, (0, 1, -1, 0)),
}  # fmt: skip
_CELSIUS = {"degc", "deg_c", "c", "celsius", "degrees_c", "degree_c", "degree_celsius", "degrees_celsius", "°c"}
_FACTOR = re.compile(r"(?P<over>/)?\s*(?P<symbol>[A-Za-z]+|1)\s*(?P<power>(?:\*\*|\^)?\s*[-+]?\d+)?\s*")
_DIMENSIONS = {"depth": (0, 1, 0, 0), "mass over area": (1, -2, 0, 0), "geopotential": (0, 2, -2, 0)}
# What a field that claims another unit is most often in; tried for the hint of a message.
_LIKELY = ("hPa", "kPa", "degC", "g kg-1", "m2 s-2", "dam", "km", "kg m-2 s-1", "mm h-1", "mm d-1", "knots", "cm", "m")


@dataclass(frozen=True, slots=True)
class Conversion:
    """value x factor + offset is in the channel's unit."""

    factor: float = 1.0
    offset: float = 0.0


def parse(unit: str) -> tuple[float, tuple[int, int, int, int]]:
    """Factor to SI, and exponents of kg, m, s and K.

    Raises:
        ValueError: a part of it is unknown.
    """
    text = unit.replace("·", " ").strip()
    text = re.sub(r"(?<=[A-Za-z0-9)])\.(?=[A-Za-z])", " ", text)
    text = re.sub(r"(?<!\*)\*(?!\*)", " ", text).replace("(", " ").replace(")", " ").strip()
    factor, exponents, at = 1.0, np.zeros(4, dtype=int), 0
    while at < len(text):
        found = _FACTOR.match(text, at)
        if found is None or found["symbol"].lower() not in _SYMBOLS:
            raise ValueError(f"unit {unit!r} is not known")
        scale, dimension = _SYMBOLS[found["symbol"].lower()]
        power = int(re.sub(r"[*^\s]", "", found["power"] or "1")) * (-1 if found["over"] else 1)
        factor *= scale**power
        exponents += power * np.array(dimension)
        at = found.end()
    kg, m, s, k = (int(x) for x in exponents)
    return factor, (kg, m, s, k)


def conversion(channel: Channel, unit: str) -> Conversion:
    """From `unit` to the channel's.

    Raises:
        ValueError: there is no way; says why, and what to do about accumulated precipitation.
    """
    kelvin = channel.unit == "K"
    if unit.strip().lower() in _CELSIUS:
        if not kelvin:
            raise ValueError(f"unit {unit!r} is one of temperature, and {channel.name} is in {channel.unit}")
        return Conversion(offset=273.15)
    factor, have = parse(unit)
    to, wanted = parse(channel.unit)
    if have == wanted:
        return Conversion(factor / to)
    if channel.name.startswith("Z") and have == _DIMENSIONS["geopotential"]:
        return Conversion(factor / to / GRAVITY)
    # A mass of water over an area is a depth: 1 kg m-2 is 1 mm.
    if channel.name == "TMQ" and have == _DIMENSIONS["depth"]:
        return Conversion(factor / to * WATER)
    if channel.name == "PRECT":
        if have == (1, -2, -1, 0):
            return Conversion(factor / to / WATER)
        if have in (_DIMENSIONS["depth"], _DIMENSIONS["mass over area"]):
            raise ValueError(
                f"unit {unit!r} is that of an amount gathered over some time, and {channel.name} is a rate: divide it "
                f"by that time first, so that its unit is mm h-1 or {channel.unit}"
            )
    raise ValueError(f"unit {unit!r} cannot be converted to {channel.unit}")


def likely(channel: Channel, lowest: float, highest: float, mean: float | None = None) -> str | None:
    """The unit in which values of that range would be plausible, None if there is none.

    Args:
        mean: of their magnitude over most of the globe, if that is to be as usual too.
    """
    for unit in _LIKELY:
        try:
            way = conversion(channel, unit)
        except ValueError:
            continue
        low, high = (value * way.factor + way.offset for value in (lowest, highest))
        fits = channel.typical[0] <= low and high <= channel.typical[1]
        if fits and mean is not None and channel.usual is not None:
            fits = channel.usual[0] <= mean * way.factor <= channel.usual[1]
        if fits:
            return unit
    return None


def pressure(unit: str | None, levels: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> float:
    """Factor from a vertical axis to Pa; an axis without a unit is in hPa unless it exceeds what hPa can be.

    Raises:
        ValueError: its unit is none of pressure.
    """
    if not unit:
        return 1.0 if np.abs(levels).max() > 2000.0 else 100.0
    factor, have = parse(unit)
    if have != _SYMBOLS["pa"][1]:
        raise ValueError(f"unit {unit!r} is not one of pressure")
    return factor
