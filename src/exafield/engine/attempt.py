"""Items of a map: tried, and tried again, on a worker; what went wrong comes back as a value. And a window of them."""

import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from typing import Any

from exafield.engine import EngineError


def failed(what: str, error: BaseException) -> EngineError:
    """The error that says what failed, with the traceback unless it is one of ours, which says what to do."""
    if type(error).__module__.partition(".")[0] == "exafield":
        return EngineError(f"{what} failed: {error}")
    text = "".join(traceback.format_exception(error)).rstrip()
    return EngineError(f"{what} failed: {type(error).__name__}: {error}\n{text}")


def attempt(fn: Callable[[Any], Any], retry: int, index: int, item: Any) -> Any:
    """fn(item), or the EngineError that says why not.

    A value, since systems wrap exceptions in their own, and count a worker's exception as their own failure.
    """
    for left in reversed(range(retry + 1)):
        try:
            return fn(item)
        except Exception as error:
            if not left:
                return failed(f"item {index}", error)
    raise ValueError(f"retry must not be negative, got {retry}")


def result(value: Any) -> Any:
    """What :func:`attempt` returned, on the driver.

    Raises:
        EngineError: it is one.
    """
    if isinstance(value, EngineError):
        raise value
    return value


def todo(items: Iterable[Any], done: Collection[int]) -> Iterator[tuple[int, Any]]:
    """The items with their indices, without those that are done."""
    return ((index, item) for index, item in enumerate(items) if index not in done)


def mapped(
    submit: Callable[..., "Future[Any]"],
    fn: Callable[[Any], Any],
    items: Iterator[tuple[int, Any]],
    retry: int,
    ahead: int,
    died: Callable[[BaseException, str], EngineError],
) -> Iterator[tuple[int, Any]]:
    """Has workers make attempts at items, a bounded number at a time; yields (index, result) as they finish.

    Args:
        submit: hands a call to a worker.
        ahead: how many items may be handed out at the same time.
        died: the error if a worker was lost while "item 5" was under way. What killed one would kill the next as
            well, so it is not tried again: that is for the user to see.
    Raises:
        EngineError: an item failed, or a worker was lost.
    """
    running: dict[Future[Any], int] = {}
    for index, item in items:
        try:
            running[submit(attempt, fn, retry, index, item)] = index
        except BrokenExecutor as error:
            raise died(error, f"item {index}") from error
        if len(running) >= ahead:
            yield from _finished(running, died)
    while running:
        yield from _finished(running, died)


def _finished(
    running: "dict[Future[Any], int]", died: Callable[[BaseException, str], EngineError]
) -> Iterator[tuple[int, Any]]:
    """Waits for at least one item."""
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        index = running.pop(future)
        try:
            value = future.result()
        except BrokenExecutor as error:
            raise died(error, f"item {index}") from error
        except Exception as error:  # it could not be sent, or its result not sent back
            raise failed(f"item {index}", error) from error
        yield index, result(value)
