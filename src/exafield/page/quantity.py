"""Quantities in words, and numbers from files that may hold anything."""

import math


def number(value: object) -> float:
    """A number that was read; NaN for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an integer with hundreds of digits
        return math.nan


def rate(value: float, unit: str) -> str:
    """With three digits and a prefix, such as "21.4 GFLOP/s"."""
    if not math.isfinite(value):
        return "unknown"
    name, size = prefix(value)
    return f"{digits(value / size)} {name}{unit}"


def prefix(value: float) -> tuple[str, float]:
    """The decimal prefix that fits a value, and what it stands for."""
    named = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
    return next(((name, size) for name, size in named if abs(value) >= size), ("", 1.0))


def digits(value: float) -> str:
    """Three digits, without an exponent for what has fewer than seven."""
    return f"{value:.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:#.3g}".rstrip(".")


def duration(seconds: float) -> str:
    """Such as "1 h 05 min", "2 min 07 s", "12.3 s" or "4.56 ms"."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds >= 3599.5:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    if seconds >= 99.95:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1.0:
            return f"{digits(seconds * factor)} {unit}"
    return f"{digits(seconds * 1e6)} µs" if seconds else "0 s"


def share(value: float) -> str:
    """Percent."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "unknown"


def plain(value: object) -> str:
    """A value of a table: numbers with four digits, text as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "none" if value is None else str(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**12 else f"{number(value):.4g}"
    return f"{value:#.4g}".rstrip(".") if math.isfinite(value) else "not finite"
