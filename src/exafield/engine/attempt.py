"""An item of a map on a worker: tried, and tried again, there; what went wrong comes back as a value."""

from collections.abc import Callable
from typing import Any

from exafield.engine import EngineError
from exafield.engine.local import _failed


def attempt(fn: Callable[[Any], Any], retry: int, index: int, item: Any) -> Any:
    """fn(item), or the EngineError that says why not.

    A value, since systems wrap exceptions in their own, and count a worker's exception as their own failure.
    """
    for left in reversed(range(retry + 1)):
        try:
            return fn(item)
        except Exception as error:
            if not left:
                return _failed(f"item {index}", error)
    raise ValueError(f"retry must not be negative, got {retry}")


def result(value: Any) -> Any:
    """What :func:`attempt` returned, on the driver.

    Raises:
        EngineError: it is one.
    """
    if isinstance(value, EngineError):
        raise value
    return value
