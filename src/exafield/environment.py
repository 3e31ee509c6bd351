"""Which launcher started this process, and as which rank: read from environment variables alone."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal, overload

Launcher = Literal["alone", "exafield", "torchrun", "srun", "openmpi", "mpich", "pals"]

# Ports derived from a job's identity lie here: below Linux's ephemeral range, above the registered services
# clusters commonly run (our choice).
_PORTS = range(20_000, 30_000)

# What stands between the brackets of a Slurm node list.
_RANGES = r"\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*"

# Slurm numbers steps that are no srun (the batch script, an interactive shell, the container of outside
# processes) from here on: SLURM_MAX_NORMAL_STEP_ID of slurm.h.
_LAST_STEP = 0xFFFFFFF0

# What names a job for every launcher of the PMI family, most specific first.
_JOB_NAMES = ("PMIX_NAMESPACE", "PALS_APID", "PMI_PORT", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID")


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands.

    Args:
        launcher: what started it.
        rank, size: its number and how many there are.
        local_rank: its number on its node.
        master_addr, master_port: where the ranks meet: the host of rank 0.
        local_size: ranks on this node, if the launcher tells.
        node: what the launcher calls this node, if it does.
        hint: something the user probably wants to know, or None.
    """

    launcher: Launcher
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 29_500
    local_size: int | None = None
    node: str | None = None
    hint: str | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.rank < self.size:
            raise ValueError(
                f"{self.launcher} says this is rank {self.rank} of {self.size}: ranks must lie in 0..size-1; "
                "check the environment variables it sets, or unset them to run alone"
            )
        limit = self.size if self.local_size is None else self.local_size
        if not 1 <= limit <= self.size or not 0 <= self.local_rank < limit:
            raise ValueError(
                f"{self.launcher} says this is process {self.local_rank} of {limit} on its node, in a run of "
                f"{self.size}: check the environment variables it sets, or unset them to run alone"
            )
        if not 0 < self.master_port < 65_536:
            raise ValueError(f"MASTER_PORT must lie in 1..65535, got {self.master_port}")


def detect(environ: Mapping[str, str]) -> Place:
    """The place in the launcher's world, from its environment variables.

    Known are torchrun, srun, Open MPI's and MPICH's mpirun (with it Intel's, and all that use Hydra), Cray's PALS,
    our own `--ranks` and, if nothing is set, a process alone. The innermost launcher wins: torchrun inside srun is
    torchrun, mpirun inside a Slurm job is mpirun. A Slurm job's own shell (salloc, or a batch script before its
    first srun) is alone, whatever SLURM_NTASKS says.

    Raises:
        ValueError: the variables are incomplete or contradict each other; says which to set.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return _torchrun(environ)
    if "OMPI_COMM_WORLD_RANK" in environ or "OMPI_COMM_WORLD_SIZE" in environ:
        return _openmpi(environ)
    if "PALS_RANKID" in environ:
        return _pals(environ)
    step = _slurm_step(environ)
    # srun --mpi=pmi2 sets PMI_RANK as well; a node number within a local one is what only Hydra sets.
    if "MPI_LOCALRANKID" in environ or (("PMI_RANK" in environ or "PMI_SIZE" in environ) and step is None):
        return _mpich(environ)
    if step is not None:
        return _srun(environ, step)
    return Place("alone", hint=_slurm_hint(environ))


def _torchrun(environ: Mapping[str, str]) -> Place:
    """torchrun's variables; our own launcher sets the same and one more."""
    launcher: Launcher = "exafield" if "EXAFIELD_SPAWNED" in environ else "torchrun"
    alone = environ.get("RANK") == "0" and environ.get("WORLD_SIZE") == "1"
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    _require(environ, "torchrun or a job script", names[:2] if alone else names)
    return Place(
        launcher,
        _number(environ, "RANK"),
        _number(environ, "WORLD_SIZE"),
        _number(environ, "LOCAL_RANK", 0),
        environ.get("MASTER_ADDR", "127.0.0.1"),
        _number(environ, "MASTER_PORT", 29_500),
        _number(environ, "LOCAL_WORLD_SIZE", None),
        environ.get("GROUP_RANK"),
    )


def _openmpi(environ: Mapping[str, str]) -> Place:
    """Open MPI 4 and 5."""
    prefix = "OMPI_COMM_WORLD_"
    _require(environ, "Open MPI's mpirun", [prefix + n for n in ("RANK", "SIZE", "LOCAL_RANK")])
    size, local_size = _number(environ, f"{prefix}SIZE"), _number(environ, f"{prefix}LOCAL_SIZE", None)
    return Place(
        "openmpi",
        _number(environ, f"{prefix}RANK"),
        size,
        _number(environ, f"{prefix}LOCAL_RANK"),
        _master(environ, "openmpi", size, local_size, "mpirun -x MASTER_ADDR -x MASTER_PORT"),
        _port(environ),
        local_size,
        environ.get("PMIX_HOSTNAME"),
    )


def _mpich(environ: Mapping[str, str]) -> Place:
    """MPICH, Intel MPI and others whose mpirun is Hydra; also srun --mpi=pmi2 of old, without a step."""
    _require(environ, "MPICH's mpirun", ("PMI_RANK", "PMI_SIZE"))
    size = _number(environ, "PMI_SIZE")
    local_size = _number(environ, "MPI_LOCALNRANKS", _number(environ, "PMI_LOCAL_SIZE", None))
    local_rank = _number(environ, "MPI_LOCALRANKID", _number(environ, "PMI_LOCAL_RANK", None))
    if local_rank is None:
        if size > 1:
            raise ValueError(
                "PMI_RANK is set, but neither MPI_LOCALRANKID nor PMI_LOCAL_RANK: the launcher does not tell a "
                "process's number on its node; export RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT"
            )
        local_rank = 0
    return Place(
        "mpich",
        _number(environ, "PMI_RANK"),
        size,
        local_rank,
        _master(environ, "mpich", size, local_size, "mpirun -genvlist MASTER_ADDR,MASTER_PORT"),
        _port(environ),
        local_size,
        environ.get("PMI_HOSTNAME"),
    )


def _pals(environ: Mapping[str, str]) -> Place:
    """Cray's Parallel Application Launch Service: mpiexec and aprun of HPE machines."""
    _require(environ, "PALS", ("PALS_RANKID", "PALS_LOCAL_RANKID", "PMI_SIZE"))
    size = _number(environ, "PMI_SIZE")
    local_size = _number(environ, "PALS_LOCAL_SIZE", _number(environ, "PMI_LOCAL_SIZE", None))
    return Place(
        "pals",
        _number(environ, "PALS_RANKID"),
        size,
        _number(environ, "PALS_LOCAL_RANKID"),
        _master(environ, "pals", size, local_size, "mpiexec --env MASTER_ADDR=HOST --env MASTER_PORT=PORT"),
        _port(environ),
        local_size,
        environ.get("PALS_NODEID"),
    )


# ---- Slurm ----


def _slurm_step(environ: Mapping[str, str]) -> str | None:
    """The step that an srun made for this process, if one did."""
    step = environ.get("SLURM_STEP_ID") or environ.get("SLURM_STEPID")
    if step is None or "SLURM_PROCID" not in environ or (step.isdigit() and int(step) > _LAST_STEP):
        return None
    return step


def _slurm_hint(environ: Mapping[str, str]) -> str | None:
    tasks = environ.get("SLURM_NTASKS", "1")
    if tasks == "1":
        return None
    return (
        f"this Slurm job has {tasks} tasks, but srun did not start this process, so it runs alone: start it with "
        f"srun, or give --ranks {tasks} to use this node only"
    )


def _srun(environ: Mapping[str, str], step: str) -> Place:
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    _require(environ, "srun", ("SLURM_PROCID", size, "SLURM_LOCALID"))
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST")
    if not nodes and "MASTER_ADDR" not in environ and environ[size] != "1":
        raise ValueError(
            "srun set neither SLURM_STEP_NODELIST nor SLURM_JOB_NODELIST, so it is not known where rank 0 runs: "
            "export MASTER_ADDR=<host of rank 0> and MASTER_PORT before srun"
        )
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "")
    return Place(
        "srun",
        _number(environ, "SLURM_PROCID"),
        _number(environ, size),
        _number(environ, "SLURM_LOCALID"),
        environ.get("MASTER_ADDR") or (next(hosts(nodes)) if nodes else "127.0.0.1"),
        _port(environ, f"step {step}"),
        _tasks_on(tasks, environ.get("SLURM_NODEID", "")),
        environ.get("SLURMD_NODENAME") or environ.get("SLURM_NODEID"),
    )


def _tasks_on(tasks: str, node: str) -> int | None:
    """Tasks on the node of that number, from a list such as ``4(x2),3``: nodes 0 and 1 have 4, node 2 has 3."""
    counts: list[int] = []
    for entry in tasks.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", entry)
        if match is None:
            return None
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else None


def hosts(nodes: str) -> Iterator[str]:
    """The hosts of a Slurm node list such as ``gpu[003-005,9],rack[1-2]n[0-1],login``, in order.

    Raises:
        ValueError: not a node list.
    """
    entries = re.findall(rf"(?:[^,\[\]]|\[{_RANGES}\])+", nodes)
    if not entries or ",".join(entries) != nodes:
        raise ValueError(f"cannot read the Slurm node list {nodes!r}: export MASTER_ADDR=<host of rank 0>")
    for entry in entries:
        # Odd pieces stood in brackets.
        pieces = re.split(rf"\[({_RANGES})\]", entry)
        choices = [_numbers(p) if i % 2 else [p] for i, p in enumerate(pieces)]
        yield from map("".join, product(*choices))


def _numbers(ranges: str) -> list[str]:
    """``003-005,9`` -> 003, 004, 005, 9: a range keeps the width of its first number."""
    numbers: list[str] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        ends = sorted((int(first), int(last or first)))
        numbers += [f"{n:0{len(first)}d}" for n in range(ends[0], ends[1] + 1)]
    return numbers


# ---- what all share ----


def _require(environ: Mapping[str, str], launcher: str, names: "tuple[str, ...] | list[str]") -> None:
    missing = [name for name in names if name not in environ]
    if missing:
        present = [name for name in names if name in environ]
        raise ValueError(
            f"the environment that {launcher} sets is incomplete: {', '.join(present)} "
            f"{'is' if len(present) == 1 else 'are'} set, {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} "
            f"not; set {', '.join(missing)}, or unset {', '.join(present)} to run alone"
        )


@overload
def _number(environ: Mapping[str, str], name: str, default: int = ...) -> int: ...
@overload
def _number(environ: Mapping[str, str], name: str, default: int | None) -> int | None: ...
def _number(environ: Mapping[str, str], name: str, default: int | None = 0) -> int | None:
    """A whole number; what must be there has been checked by :func:`_require`."""
    text = environ.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} must be a whole number, got {text!r}") from None


def _master(environ: Mapping[str, str], launcher: Launcher, size: int, local_size: int | None, how: str) -> str:
    """The host of rank 0. MPI's launchers do not tell, but on one node it is this one."""
    address = environ.get("MASTER_ADDR")
    if address is not None:
        return address
    if size == 1 or local_size == size:
        return "127.0.0.1"
    nodes = environ.get("SLURM_JOB_NODELIST")
    guess = f" (in this Slurm job probably {next(hosts(nodes))})" if nodes else ""
    raise ValueError(
        f"{launcher} runs {size} ranks on several nodes and does not tell where rank 0 is: export "
        f"MASTER_ADDR=<host of rank 0>{guess} and a free MASTER_PORT to all ranks, with {how}"
    )


def _port(environ: Mapping[str, str], step: str = "") -> int:
    """The port asked for, or one that two jobs on one machine are unlikely to share.

    Hydra sets nothing that is common to the ranks of one job and to no other. There the folder it was started in
    stands for the job: two at a time from one folder need MASTER_PORT.
    """
    if "MASTER_PORT" in environ:
        return _number(environ, "MASTER_PORT")
    job = next((f"{name}={environ[name]}" for name in _JOB_NAMES if environ.get(name)), None)
    if job is None:
        job = f"{environ.get('USER', '')} in {environ.get('PWD', '')}"
    digest = hashlib.sha256(f"{job} {step}".encode()).digest()
    return _PORTS[int.from_bytes(digest[:4]) % len(_PORTS)]
