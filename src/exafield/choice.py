"""A choice among classes, written as text: ``tree:radix=8,cycle=0.001``.

This is how run files and the command line name what is an object in Python, such as ``Tree(radix=8, cycle=0.001)``.
Text is checked against what is listed here, before anything heavy is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any

from exafield.suggestion import unknown

Value = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Option:
    """One class to choose.

    Args:
        name: of the class in Python.
        parameters: those that can be set by text, with their types. Other types a parameter may have (None, or
            one of some words) are listed as `str`.
    """

    name: str
    parameters: Mapping[str, type[int] | type[float] | type[bool] | type[str]]


@dataclass(frozen=True, slots=True)
class Choice:
    """What can be chosen for one thing.

    Args:
        kind: the thing, as errors call it.
        module: where the classes are.
        options: by the name used in text.
    """

    kind: str
    module: str
    options: Mapping[str, Option]

    def parse(self, text: str) -> tuple[str, dict[str, Value]]:
        """Name and parameters that a text gives.

        Raises:
            ValueError: there is no such name or parameter, or a value has the wrong type; names the nearest.
        """
        name, _, rest = text.partition(":")
        name = name.strip().lower().replace("-", "_")
        if name not in self.options:
            raise ValueError(unknown(self.kind, name, self.options))
        parameters = self.options[name].parameters
        values: dict[str, Value] = {}
        for part in filter(None, (p.strip() for p in rest.split(","))):
            key, equals, value = part.partition("=")
            key = key.strip().replace("-", "_")
            if not equals:
                raise ValueError(f"{self.kind} {text!r}: parameters are written {name}:NAME=VALUE,NAME=VALUE")
            if not parameters:
                raise ValueError(f"{self.kind} {name!r} has no parameters, got {part!r}")
            if key not in parameters:
                raise ValueError(f"{self.kind} {name!r}: " + unknown("parameter", key, parameters))
            values[key] = self._value(name, key, value.strip(), parameters[key])
        return name, values

    def _value(self, name: str, key: str, text: str, type_: type) -> Value:
        if type_ is str:
            return None if text.lower() == "none" else text
        if type_ is bool:
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
        else:
            try:
                return int(text) if type_ is int else float(text)
            except ValueError:
                pass
        wanted = {int: "a whole number", float: "a number", bool: "true or false"}[type_]
        raise ValueError(f"{self.kind} {name!r}: {key} must be {wanted}, got {text!r}")

    def write(self, name: str, values: Mapping[str, Value]) -> str:
        """The text for a name and parameters."""
        inside = ",".join(f"{key}={_text(value)}" for key, value in values.items())
        return f"{name}:{inside}" if inside else name

    def build(self, text: str, **more: Any) -> Any:
        """The object that a text describes; `more` adds parameters that text does not give.

        Raises:
            ValueError: see :meth:`parse`, or a value is out of range.
        """
        name, values = self.parse(text)
        kind = getattr(import_module(self.module), self.options[name].name)
        return kind(**{**more, **values})

    def complete(self, text: str, **more: Any) -> str:
        """The same choice with every parameter written out, so that later defaults do not change it."""
        name, given = self.parse(text)
        built = self.build(text, **more)
        usual = signature(type(built)).parameters
        # What does not keep a parameter was made with the one given, or the usual one.
        kept = {k: getattr(built, k, given.get(k, usual[k].default)) for k in self.options[name].parameters}
        return self.write(name, kept)


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
