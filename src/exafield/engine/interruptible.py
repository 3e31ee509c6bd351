"""Native code that runs for long, and that Ctrl-C must be able to stop."""

from collections.abc import Callable
from concurrent.futures import Executor, wait
from typing import TypeVar

_T = TypeVar("_T")


def call(thread: Executor, function: Callable[[], _T], stop: Callable[[], None]) -> _T:
    """What the function returns, called on that thread.

    Signals act in Python code of the main thread only: it waits here, where they reach it.

    Args:
        stop: has the function return soon; called if the wait is broken off.
    """
    future = thread.submit(function)
    try:
        return future.result()
    except BaseException:
        if not future.done():
            stop()
            wait([future])
        raise
