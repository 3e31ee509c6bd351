"""How far a method is that takes minutes or hours."""

import sys
import time
from collections.abc import Callable

Say = Callable[[str], None]
"""Is told how far it is, as often as there is something new; what it shows of that is its own affair."""

# Between two lines [s], our choice.
_PATIENCE = 10.0


def silent(text: str) -> None:
    """Shows nothing."""


def now_and_then(patience: float = _PATIENCE) -> Say:
    """Shows a line on stderr, then nothing until `patience` seconds are over: what is quick stays mute.

    Args:
        patience: [s], from the start and between lines.
    """
    last = time.monotonic()

    def say(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= patience:
            last = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    return say
