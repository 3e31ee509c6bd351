"""Inside an MPI job: its ranks are the crew. Rank 0 drives, the others do what it says, and all end together.

Who starts a command by mpirun or srun has it run in every rank. There rank 0 goes on alone, and the others serve: they
wait for calls, each of which names a function that all ranks call together.
"""

import os
import time
from collections.abc import Callable
from typing import Any

from exafield.engine import EngineError
from exafield.engine.rank import named
from exafield.environment import detect
from exafield.requirement import require

# How long ranks with nothing to do sleep before they look again [s], our choice: waiting inside MPI takes a core.
_LOOK = 1e-3

# What rank 0 reaches the others by, as long as they serve.
_comm: Any = None


def started() -> int:
    """How many ranks an MPI launcher has started, as its environment variables tell; 1 if none has."""
    place = detect(os.environ)
    return place.size if place.launcher in ("openmpi", "mpich", "srun", "pals") else 1


def driving() -> int:
    """How many ranks there are if this one drives and the others serve; else 0."""
    return _comm.Get_size() if _comm is not None else 0


def drive(command: Callable[[], int]) -> int:
    """Carries out a command whose process may be a rank of an MPI job: then rank 0 does, and all return its code."""
    expected = started()
    return together(command, expected) if expected > 1 else command()


def together(drive: Callable[[], int], expected: int | None = None) -> int:
    """Calls `drive` on rank 0 while the other ranks serve; returns on all of them what that returned.

    Args:
        expected: how many ranks there should be; None: any number.
    Raises:
        EngineError: there are not so many.
    """
    global _comm
    world = require("mpi4py.MPI", extra="mpi").COMM_WORLD
    if expected not in (None, world.Get_size()):
        raise EngineError(
            f"MPI: {expected} processes were started, but MPI sees {world.Get_size()}: start them by the launcher of "
            "the MPI that mpi4py uses (with srun: --mpi=pmix)"
        )
    comm = world.Dup()
    if comm.Get_rank():
        while True:
            function, arguments = told(comm)
            if function is None:
                return int(arguments)
            named(function)(comm, *arguments)
    _comm, code = comm, 1
    try:
        code = drive()
    finally:
        _comm = None
        tell(comm, (None, code))
    return code


def call(function: str, *arguments: Any) -> Any:
    """Has the other ranks call "module:function" with a communicator, which is returned, and these arguments."""
    tell(_comm, (function, arguments))
    return _comm


def tell(comm: Any, what: Any) -> None:
    """What the others are told."""
    comm.Ibarrier().Wait()
    comm.bcast(what)


def told(comm: Any) -> Any:
    """The next thing rank 0 says."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(_LOOK)
    return comm.bcast(None)
