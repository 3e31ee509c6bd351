"""Figure: a number with its unit and where it comes from, and files that consist of such numbers.

A description made of dataclasses says what each field may hold, as in ``latency: Annotated[float, Number("s")]``; a
field that is a dataclass itself is another description. :func:`build` makes it of what a YAML file says,
:func:`unbuild` goes the other way round, and :func:`check` looks at numbers that were given in Python.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Final, get_type_hints

from exafield.suggestion import unknown

SOURCES: Final = ("published", "measured", "fitted", "our choice")
"""What a number can rest on."""

# Nothing that a number measures is larger: our choice, so that prices stay finite.
_MOST = 1e30
_KEYS = ("value", "unit", "source", "reference")


class FigureError(ValueError):
    """A number that cannot be, or a key that means nothing."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and what it rests on.

    Args:
        value: the number.
        unit: as the field that takes it wants it; "1" for ratios and counts.
        source: one of SOURCES.
        reference: where it was published, what it was fitted to or why it was chosen.
    """

    value: float
    unit: str
    source: str
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Number:
    """One number from `least` (or, with `above`, more) to `most` [unit]."""

    unit: str = "1"
    least: float = 0.0
    most: float = _MOST
    above: bool = False
    whole: bool = False

    def problem(self, value: object) -> str | None:
        """Why a value cannot be; None if it can."""
        kind = "a whole number" if self.whole else "a number"
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # not a number
            return f"must be {kind}, got {value!r}"
        if value < self.least or value > self.most or (self.above and value == self.least):
            low = f"above {self.least:g}" if self.above else f"at least {self.least:g}"
            high = "" if self.most >= _MOST else f" and at most {self.most:g}"
            unit = "" if self.unit == "1" else f" {self.unit}"
            return f"must be {low}{high}{unit}, got {value!r}"
        if self.whole and value != math.inf and value != int(value):
            return f"must be a whole number, got {value!r}"
        return None


@dataclass(frozen=True, slots=True)
class Numbers:
    """A mapping from a `key` to numbers in a range."""

    each: Number
    key: type = str


@dataclass(frozen=True, slots=True)
class Word:
    """Text, one of some choices if there are any."""

    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Words:
    """A mapping from some keys to text."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """A mapping from names to other descriptions."""

    kind: type


@dataclass(frozen=True, slots=True)
class Lists:
    """A mapping from some of the keys to several descriptions, in an order."""

    kind: type
    keys: tuple[str, ...]


@cache
def _described(kind: type) -> dict[str, Any]:
    """What each field of a description may hold: one of the above, or the class of another description."""
    found = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if isinstance(hint, type) and is_dataclass(hint):
            found[name] = hint
        elif hasattr(hint, "__metadata__"):
            found[name] = hint.__metadata__[0]
    return found


def check(made: Any) -> None:
    """Raises FigureError if a number or word of a description cannot be; for its `__post_init__`."""
    kind: Any = type(made)
    for name, what in _described(kind).items():
        value = getattr(made, name)
        if isinstance(what, Number) and (why := what.problem(value)):
            raise FigureError(f"{name} {why}")
        if isinstance(what, Numbers):
            for key, one in value.items():
                if why := what.each.problem(one):
                    raise FigureError(f"{name}.{key} {why}")
        if isinstance(what, Word) and what.choices and value not in what.choices:
            raise FigureError(unknown(name, str(value), what.choices))


def build(kind: type, tree: object, figures: dict[str, Figure], key: str = "") -> Any:
    """Makes a description of what a file says.

    Args:
        figures: takes every number, by its dotted key.
        key: of the whole, in messages.
    Raises:
        FigureError: a key is unknown or missing, or a value impossible; names the key.
    """
    given, expected = _mapping(tree, key), _described(kind)
    _known(given, expected, key)
    optional = {one.name for one in fields(kind) if one.default is not MISSING}
    for name in expected:
        if name not in given and name not in optional:
            raise FigureError(f"{_dotted(key, name)} is missing")
    there = {name: what for name, what in expected.items() if name in given}
    values = {name: _built(what, given[name], figures, _dotted(key, name)) for name, what in there.items()}
    try:
        return kind(**values)
    except FigureError as error:
        raise FigureError(f"{key}: {error}" if key else str(error)) from error


def _built(what: Any, tree: Any, figures: dict[str, Figure], key: str) -> Any:
    if isinstance(what, Number):
        return _number(what, tree, figures, key)
    if isinstance(what, Word):
        if not isinstance(tree, str):
            raise FigureError(f"{key} must be text, got {tree!r}")
        return tree
    if isinstance(what, type):
        return build(what, tree, figures, key)
    named = _mapping(tree, key)
    if isinstance(what, Words):
        _known(named, what.keys, key)
        for name, word in named.items():
            if not isinstance(word, str):
                raise FigureError(f"{key}.{name} must be text, got {word!r}")
        return dict(named)
    if isinstance(what, Numbers):
        for name in named:
            if type(name) is not what.key:
                kinds = "whole numbers" if what.key is int else "names"
                raise FigureError(f"{key}: keys must be {kinds}, got {name!r}")
        return {name: _number(what.each, value, figures, f"{key}.{name}") for name, value in named.items()}
    if isinstance(what, Parts):
        return {name: build(what.kind, value, figures, f"{key}.{name}") for name, value in named.items()}
    _known(named, what.keys, key)
    made = {}
    for name, rows in named.items():
        if not isinstance(rows, list) or not rows:
            raise FigureError(f"{key}.{name} must be a list, got {rows!r}")
        made[name] = tuple(build(what.kind, row, figures, f"{key}.{name}.{i}") for i, row in enumerate(rows))
    return made


def _number(allowed: Number, tree: Any, figures: dict[str, Figure], key: str) -> float:
    given = _mapping(tree, key)
    _known(given, _KEYS, key)
    for name in ("value", "unit", "source"):
        if name not in given:
            raise FigureError(f"{key}.{name} is missing: every number has a value, a unit and a source")
    if given["unit"] != allowed.unit and not (allowed.unit == "1" and str(given["unit"]) == "1"):
        raise FigureError(f"{key} must be given in {allowed.unit!r}, got {given['unit']!r}")
    if given["source"] not in SOURCES:
        raise FigureError(f"{key}: " + unknown("source", str(given["source"]), SOURCES))
    reference = str(given.get("reference", ""))
    if given["source"] == "published" and not reference:
        raise FigureError(f"{key} is said to be published: reference must say where")
    value = _plain(given["value"])
    if why := allowed.problem(value):
        raise FigureError(f"{key} {why}")
    value = int(value) if allowed.whole and math.isfinite(value) else float(value)
    figures[key] = Figure(value, allowed.unit, given["source"], reference)
    return value


def _plain(value: Any) -> Any:
    """YAML takes 1e-6 for text, since it has no point."""
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


def unbuild(made: Any, figures: Mapping[str, Figure], key: str = "") -> dict[str, Any]:
    """What a file says of a description; `figures` tell what its numbers rest on, and others are our choice."""
    kind: Any = type(made)
    what = _described(kind)
    return {name: _unbuilt(what[name], getattr(made, name), figures, _dotted(key, name)) for name in what}


def _unbuilt(what: Any, value: Any, figures: Mapping[str, Figure], key: str) -> Any:
    if isinstance(what, Number):
        known = figures.get(key)
        if known is None or known.value != value:
            known = Figure(value, what.unit, "our choice")
        row = {"value": value, "unit": what.unit, "source": known.source}
        return row | ({"reference": known.reference} if known.reference else {})
    if isinstance(what, Word):
        return value
    if isinstance(what, Words):
        return dict(value)
    if isinstance(what, type):
        return unbuild(value, figures, key)
    if isinstance(what, Lists):
        return {
            name: [unbuild(row, figures, f"{key}.{name}.{i}") for i, row in enumerate(rows)]
            for name, rows in value.items()
        }
    each = what.each if isinstance(what, Numbers) else what.kind
    return {name: _unbuilt(each, one, figures, f"{key}.{name}") for name, one in value.items()}


def _dotted(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _mapping(tree: Any, key: str) -> Mapping[Any, Any]:
    if not isinstance(tree, Mapping):
        raise FigureError(f"{key or 'the file'} must be a mapping, got {tree!r}")
    return tree


def _known(given: Mapping[Any, Any], expected: Iterable[str], key: str) -> None:
    for name in given:
        if name not in expected:
            raise FigureError((f"{key}: " if key else "") + unknown("key", str(name), expected))
