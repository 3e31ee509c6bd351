"""Which launcher started this process, and as which rank: read from environment variables alone."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Launcher = Literal["alone", "exafield", "torchrun", "srun", "openmpi", "mpich"]

# Ports derived from a job's number lie here: below Linux's ephemeral range, above the registered services
# clusters commonly run (our choice).
_PORTS = range(20_000, 30_000)


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands.

    Args:
        launcher: what started it.
        rank, size: its number and how many there are.
        local_rank: its number on its node.
        master_addr, master_port: where the ranks meet.
    """

    launcher: Launcher
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 29_500

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.rank < self.size:
            raise ValueError(
                f"{self.launcher} says this is rank {self.rank} of {self.size}: ranks must lie in 0..size-1; "
                "check the environment variables it sets, or unset them to run alone"
            )
        if not 0 <= self.local_rank < self.size:
            raise ValueError(f"{self.launcher} says this is process {self.local_rank} on its node, of {self.size}")
        if not 0 < self.master_port < 65_536:
            raise ValueError(f"MASTER_PORT must lie in 1..65535, got {self.master_port}")


def detect(environ: Mapping[str, str]) -> Place:
    """The place in the launcher's world, from its environment variables.

    Known are torchrun, srun, Open MPI's and MPICH's mpirun (also Intel's, Cray's and Hydra's), our own `--ranks`
    and, if nothing is set, a process alone. The innermost launcher wins: mpirun inside a Slurm job is mpirun.

    Raises:
        ValueError: the variables are incomplete or contradict each other; says which to set.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return _torchrun(environ)
    if "OMPI_COMM_WORLD_RANK" in environ:
        return _mpi(environ, "openmpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", _OPENMPI_LOCAL)
    if "PMI_RANK" in environ and "SLURM_STEP_ID" not in environ:
        return _mpi(environ, "mpich", "PMI_RANK", "PMI_SIZE", _MPICH_LOCAL)
    if "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
        return _srun(environ)
    return Place("alone")


_OPENMPI_LOCAL = ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
_MPICH_LOCAL = ("MPI_LOCALRANKID", "MPI_LOCALNRANKS")


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name)
    if text is None:
        raise ValueError(f"the launcher's environment is incomplete: {name} is not set; set it, or unset the others")
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} must be a whole number, got {text!r}") from None


def _torchrun(environ: Mapping[str, str]) -> Place:
    if "MASTER_ADDR" not in environ:
        raise ValueError(
            "RANK or WORLD_SIZE is set but MASTER_ADDR is not: start with torchrun, or set RANK, WORLD_SIZE, "
            "LOCAL_RANK, MASTER_ADDR and MASTER_PORT"
        )
    return Place(
        "exafield" if "EXAFIELD_SPAWNED" in environ else "torchrun",
        _number(environ, "RANK"),
        _number(environ, "WORLD_SIZE"),
        _number(environ, "LOCAL_RANK") if "LOCAL_RANK" in environ else 0,
        environ["MASTER_ADDR"],
        _number(environ, "MASTER_PORT"),
    )


def _mpi(environ: Mapping[str, str], launcher: Launcher, rank: str, size: str, local: tuple[str, str]) -> Place:
    ranks = _number(environ, size)
    local_rank = _number(environ, local[0]) if local[0] in environ else 0
    one_node = environ.get(local[1]) == str(ranks)
    address = environ.get("MASTER_ADDR")
    if address is None:
        if not one_node and ranks > 1:
            raise ValueError(
                f"{launcher} runs on several nodes and does not tell where rank 0 is: export "
                "MASTER_ADDR=<host of rank 0> (and MASTER_PORT) to all ranks, with mpirun -x MASTER_ADDR (Open MPI) or "
                "-genv MASTER_ADDR <host> (MPICH)"
            )
        address = "127.0.0.1"
    job = next(
        (environ[n] for n in ("PMIX_NAMESPACE", "PMI_FD", "PMI_ID", "HYDRA_BSTRAP_LOCALHOST") if n in environ),
        "",
    )
    return Place(launcher, _number(environ, rank), ranks, local_rank, address, _port(environ, job))


def _srun(environ: Mapping[str, str]) -> Place:
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    if not nodes and "MASTER_ADDR" not in environ:
        raise ValueError(
            "srun set no SLURM_STEP_NODELIST: export MASTER_ADDR=<host of rank 0> and MASTER_PORT before srun"
        )
    job = f"{environ.get('SLURM_JOB_ID', '')}.{environ['SLURM_STEP_ID']}"
    return Place(
        "srun",
        _number(environ, "SLURM_PROCID"),
        _number(environ, size),
        _number(environ, "SLURM_LOCALID"),
        environ.get("MASTER_ADDR") or first_host(nodes),
        _port(environ, job),
    )


def _port(environ: Mapping[str, str], job: str) -> int:
    """The port asked for, or one that two jobs on one machine are unlikely to share."""
    if "MASTER_PORT" in environ:
        return _number(environ, "MASTER_PORT")
    digest = hashlib.sha256(job.encode()).digest()
    return _PORTS[int.from_bytes(digest[:4]) % len(_PORTS)]


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list such as ``gpu[003-007,9],login1``.

    Raises:
        ValueError: not a node list.
    """
    match = re.match(r"([^,\[\]]+)(?:\[(\w+)[^\]]*\]([^,\[\]]*))?", nodes)
    if match is None:
        raise ValueError(f"cannot read the Slurm node list {nodes!r}: export MASTER_ADDR=<host of rank 0>")
    prefix, number, suffix = match.groups()
    return prefix + (number or "") + (suffix or "")
