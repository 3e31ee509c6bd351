"""A session on the ranks of an MPI job (:mod:`exafield.engine.mpi_job`), each of which runs the same program."""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from exafield.engine import EngineError, Outcome
from exafield.engine.graph import Work
from exafield.engine.mpi_job import call, tell, told
from exafield.engine.rank import carry_out, named, worded
from exafield.engine.reports import Order, gathered
from exafield.engine.resources import cores

# How long other ranks let rank 0 speak first, if all have failed in the same way [s], our choice.
_SILENCE = 1.0


@contextmanager
def _vital(comm: Any, system: str) -> Iterator[None]:
    """Who fails inside ends the job: others may wait in MPI for this rank, where nothing else would reach them."""
    try:
        yield
    except BaseException as error:
        if comm.Get_rank():
            time.sleep(_SILENCE)
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        if not stopped:
            print(f"exafield: {system}, rank {comm.Get_rank()}: {worded(error)}", file=sys.stderr, flush=True)
        comm.Abort(128 + signal.SIGINT if stopped else 1)
        raise


def _share(comm: Any) -> list[int]:
    """The cores of this rank: those its launcher gave it, dealt out if ranks have the same ones."""
    own = cores()
    local = comm.Split_type(named("mpi4py.MPI:COMM_TYPE_SHARED"))
    mates = [rank for rank, theirs in enumerate(local.allgather(own)) if theirs == own]
    place, count = mates.index(local.Get_rank()), len(mates)
    local.Free()
    return own[place * len(own) // count : (place + 1) * len(own) // count] or [own[place % len(own)]]


@contextmanager
def _ready(comm: Any, system: str, program: str, threads: bool) -> Iterator[tuple[Any, int]]:
    """A rank's program, kept to the cores of this rank, of which it takes all if it has threads; and of all ranks, how
    many tasks run at the same time."""
    before = cores()
    with _vital(comm, system):
        mine = _share(comm) if threads else _share(comm)[:1]
        os.sched_setaffinity(0, mine)
        made = named(program)(comm.Get_rank(), comm.Get_size(), "")
        count = comm.allreduce(len(mine))
    try:
        yield made, count
    finally:
        with _vital(comm, system):
            made.close()
        os.sched_setaffinity(0, before)


def _part(comm: Any, system: str, made: Any, order: Order) -> Any:
    with _vital(comm, system):
        name = f"rank {comm.Get_rank()} on {socket.gethostname()}"
        return comm.gather(carry_out(made, order, name))


def serve(comm: Any, system: str, program: str, threads: bool) -> None:
    """What the other ranks do while rank 0 has a session."""
    with _ready(comm, system, program, threads) as (made, _):
        while (order := told(comm)) is not None:
            _part(comm, system, made, order)


class _Joined:
    """The session of rank 0, which has a part of the work itself."""

    def __init__(self, comm: Any, system: str, made: Any, workers: int) -> None:
        self._comm, self._system, self._made, self.workers = comm, system, made, workers

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        order = Order(tuple(works), passes)
        tell(self._comm, order)
        return gathered(works, _part(self._comm, self._system, self._made, order))


@contextmanager
def session(system: str, program: str, workers: int | None, threads: bool = False) -> Iterator[_Joined]:
    """The session of all ranks of this job.

    Args:
        system: as errors call it.
        program: "module:class" of a :class:`exafield.engine.spmd.Program`.
        workers: as asked for; must be what there is.
        threads: a rank runs one task on each of its cores at a time, not one in all.
    Raises:
        EngineError: there are other numbers of workers.
    """
    comm = call("exafield.engine.mpi_session:serve", system, program, threads)
    try:
        with _ready(comm, system, program, threads) as (made, count):
            if workers not in (None, count):
                raise EngineError(f"{system}: {workers} workers, but this MPI job has {count}: leave out their number")
            yield _Joined(comm, system, made, count)
    finally:
        tell(comm, None)
