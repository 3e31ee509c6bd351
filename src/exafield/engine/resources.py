"""What a process has of the machine."""

import os
import resource
from contextlib import suppress


def cores() -> list[int]:
    """The cores this process may use."""
    return sorted(os.sched_getaffinity(0))


def peak_memory() -> int:
    """The most memory this process has had resident [bytes]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bind(rank: int) -> None:
    """Keeps a rank on one core, so that its neighbours do not push it about."""
    own = cores()
    with suppress(OSError):
        os.sched_setaffinity(0, {own[rank % len(own)]})
