"""What a process has of the machine."""

import itertools
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
    """Keeps the calling thread, that of a rank, on one core, so that its neighbours do not push it about."""
    own = cores()
    with suppress(OSError):
        os.sched_setaffinity(0, {own[rank % len(own)]})


class Places:
    """Keeps the threads of a pool on a core each, if there is one for every core: what each of them calls first.

    With fewer, two pools would meet on the same cores while others have nothing to do.

    Linux likes to wake a thread on the core of who wakes it. Then two of them take turns there while another core has
    nothing to do, until that is noticed some milliseconds later.
    """

    def __init__(self, count: int) -> None:
        # Looked up here, since a thread that another one of the pool starts inherits that one's core and sees no other.
        own = cores()
        self._cores = itertools.cycle(own) if count >= len(own) else None

    def __call__(self) -> None:
        if self._cores is not None:
            with suppress(OSError):  # the core is no longer ours
                os.sched_setaffinity(0, {next(self._cores)})
