"""Times of snapshots: numpy.datetime64, or dates of datetime or cftime, whose calendar may have no leap days."""

import numpy as np

from exafield.climate.snapshot import Time

#: Seasons by the first letters of their months, as in atmospheric science.
SEASONS = ("DJF", "MAM", "JJA", "SON")


def seconds(start: Time, end: Time) -> float:
    """From one time to another [s].

    Raises:
        TypeError: the two are of kinds, or calendars, that have no difference.
    """
    gap = end - start
    return float(gap / np.timedelta64(1, "s")) if isinstance(gap, np.timedelta64) else float(gap.total_seconds())


def year_and_month(time: Time) -> tuple[int, int]:
    """Of the calendar that the time belongs to."""
    if isinstance(time, np.datetime64):
        months = int(time.astype("datetime64[M]").astype(np.int64))
        return 1970 + months // 12, months % 12 + 1
    return int(time.year), int(time.month)


def season(time: Time) -> tuple[int, str]:
    """Year and name of the season; December belongs to the year after, with the rest of its season."""
    year, month = year_and_month(time)
    return year + (month == 12), SEASONS[month % 12 // 3]


def text(time: Time) -> str:
    """As in ISO 8601, to the second; empty where there is none."""
    if time is None:
        return ""
    if isinstance(time, np.datetime64):
        return str(time.astype("datetime64[s]"))
    return str(time.isoformat())[:19]


def title(time: Time) -> str:
    """To the minute, to stand above a picture; empty where there is none."""
    return f"{text(time)[:16].replace('T', ' ')} UTC" if time is not None else ""
