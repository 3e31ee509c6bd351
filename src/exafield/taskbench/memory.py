"""Memory: what a run takes, and what there is."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from exafield.engine import Work
from exafield.engine.catalogue import SYSTEMS
from exafield.engine.native import footprint
from exafield.run import RunError

# What engines keep for each task beside its output, in all their processes together [bytes]. Measured: how much more
# memory was resident at most for 10,240 tasks than for 1,024 (stencil_1d of width 64, outputs of 16 bytes, two workers;
# CPython 3.11, x86-64). The others keep nothing that grows with the number of tasks, or, as StarPU and Spark do, for so
# many tasks or in so much memory at most as is set.
BOOKKEEPING: Mapping[str, int] = {
    "threads": 590,
    "processes": 560,
    "mpi-futures": 550,
    "asyncio": 2900,
    "trio": 500,
    "dask-threads": 130,
    "dask": 690,
    "parsl-threads": 230,
    "parsl": 210,
    "celery": 190,
    "jax": 160,
    "ray": 18_000,
    "tensorflow": 46_000,
}
# For each pair of tasks [bytes], measured likewise: a `delayed` refers to all those that were made before it.
PAIRS: Mapping[str, int] = {"dask-delayed": 30}


def available_memory(root: Path = Path("/")) -> int | None:
    """Memory that this process can still have [bytes]; None if the system does not tell.

    The least of what the machine has free and what the control groups of this process leave (version 2 and 1).

    Args:
        root: of the file system, for tests.
    """
    told = (line.split() for line in _lines(root / "proc/meminfo"))
    found = [int(words[1]) * 1024 for words in told if words[0] == "MemAvailable:"]
    base = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += _left(base, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            found += _left(base / "memory", path, *names)
    return min(found, default=None)


def _left(base: Path, path: str, limit: str, usage: str, cache: str) -> list[int]:
    """What the groups from `path` upwards leave: a limit holds for all groups below it."""
    found = []
    own = PurePosixPath(path.lstrip("/"))
    # In a container the path may be that of the host: then only the root of what is mounted is there.
    for group in (own, *own.parents):
        most, used = _lines(base / group / limit), _lines(base / group / usage)
        if not most or not used or not most[0].isdigit():
            continue
        # Files that are kept in memory only because it is free do not count.
        spare = [int(line.split()[1]) for line in _lines(base / group / "memory.stat") if line.startswith(f"{cache} ")]
        found.append(max(0, int(most[0]) - int(used[0]) + sum(spare)))
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def estimate(works: Sequence[Work], engine: str | None = None) -> int:
    """Memory that a run takes at least, for outputs, scratch and bookkeeping [bytes].

    Args:
        engine: its name: some keep the outputs of all rows, and some something for each task.
    """
    rows = None if engine in SYSTEMS and SYSTEMS[engine].all_rows else 2
    tasks = sum(len(work.graph) for work in works)
    kept = BOOKKEEPING.get(engine or "", 0) * tasks + PAIRS.get(engine or "", 0) * tasks**2
    return sum(footprint(work, rows) for work in works) + kept


def check_memory(needed: int) -> None:
    """Refuses what does not fit into memory.

    Raises:
        RunError: with the estimate, and what there is.
    """
    there = available_memory()
    if there is not None and needed > there:
        raise RunError(
            f"this run needs about {readable(needed)} of memory, of which {readable(there)} are available: reduce "
            "-steps, -width, -output or -scratch"
        )


def readable(size: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
