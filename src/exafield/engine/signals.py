"""Signals that end this process while something that it has started must be ended first."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def _handled(handler: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """Only a main thread may choose what signals do; in others nothing is changed."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if main}
    try:
        yield
    finally:
        with suppress(ValueError):
            for number, old in before.items():
                signal.signal(number, old)


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM ends this process as Ctrl-C does, by an exception, unless somebody has other plans for it."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    with _handled(lambda number, _: sys.exit(128 + number), signal.SIGTERM):
        yield


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM are noted; they act at its end."""
    noted: list[int] = []
    try:
        with _handled(lambda number, _: noted.append(number), signal.SIGINT, signal.SIGTERM):
            yield
    finally:
        for number in noted[:1]:
            os.kill(os.getpid(), number)
