"""Spawned processes whose numerical libraries compute on one thread each: the processes are what cores are for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess

# Read by OpenMP, OpenBLAS, MKL and Accelerate when they are loaded, which is before a process runs anything of ours.
_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@contextmanager
def _one_thread() -> Iterator[None]:
    """What is started inside finds the variables set, but for those that the user has set."""
    added = [name for name in _VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


class OneThreadProcess(SpawnProcess):
    """A process of :class:`OneThreadContext`."""

    def start(self) -> None:
        """See :meth:`multiprocessing.Process.start`."""
        with _one_thread():
            super().start()


class OneThreadContext(SpawnContext):
    """Starts processes as multiprocessing's "spawn" does: forked ones would inherit locks of our threads."""

    Process = OneThreadProcess
