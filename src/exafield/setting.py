"""What settings have in common: how they are checked, and the error that says what is wrong."""

import math
from typing import Protocol, runtime_checkable

from exafield.choice import Choice


class RunError(ValueError):
    """A run's settings are wrong; says which one, where, and what it should be."""


@runtime_checkable
class Advising(Protocol):
    """An error of a library whose advice is Python, and which can say it for the command line, too."""

    def as_flags(self) -> str:
        """Its text, in which what it advises is spelled as options."""
        ...


def pairs(what: str, text: str) -> dict[str, str]:
    """Channel to value, from CHANNEL=VALUE,CHANNEL=VALUE.

    Args:
        what: the setting, or the option, that was given.
        text: its value.
    Raises:
        RunError: a part is written otherwise.
    """
    found = {}
    for part in filter(None, text.split(",")):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (name and equals and value) or "=" in value:
            raise RunError(f"{what} {part}: it is to be CHANNEL=VALUE, with commas between several")
        found[name] = value
    return found


def at_least(owner: str, least: float, **values: float | None) -> None:
    """Raises RunError for a value below `least`; None is none."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise RunError(f"{owner}: {name} must be {least} or more, got {value}")


def above_zero(owner: str, **values: float | None) -> None:
    """Raises RunError for a value that is not above 0 and finite; None is none."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise RunError(f"{owner}: {name} must be above 0 and finite, got {value}")


def chosen(owner: str, choice: Choice, text: str) -> None:
    """Raises RunError for a text that names none of the choices."""
    try:
        choice.parse(text)
    except ValueError as error:
        raise RunError(f"{owner}: {error}") from error
