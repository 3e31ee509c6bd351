"""Trace files: the traces of all ranks in one, also of a run that ended badly."""

import os
import warnings
from contextlib import suppress
from pathlib import Path

from exafield.trace import Trace
from exafield.world import World


class TraceError(ValueError):
    """There is no trace where one was looked for, or it cannot be read; says what to do."""


def _part(target: Path, rank: int) -> Path:
    return target.with_name(f"{target.stem}.rank{rank}.json")


def _parts(target: Path) -> list[Path]:
    """The parts that lie beside a trace, by rank."""
    found = {
        int(path.stem.rpartition(".rank")[2]): path
        for path in target.parent.glob(f"{target.stem}.rank*.json")
        if path.stem.rpartition(".rank")[2].isdigit()
    }
    return [found[rank] for rank in sorted(found)]


def save_part(trace: Trace, world: World, path: str | os.PathLike[str]) -> None:
    """Writes this rank's part of a trace, for :func:`load_trace` to join. For a run that ends with an error: raises
    none of its own, and waits for nobody.
    """
    with suppress(Exception):
        if trace.enabled:
            trace.save(_part(Path(path), world.rank))


def remove_parts(path: str | os.PathLike[str]) -> None:
    """Removes what an earlier run that ended badly left beside a trace."""
    for part in _parts(Path(path)):
        with suppress(OSError):
            part.unlink()


def save_trace(trace: Trace, world: World, path: str | os.PathLike[str]) -> None:
    """Writes one trace file of all ranks. Collective; the folder is shared by all ranks.

    Each rank writes its own part beside it, and rank 0 joins them; a part that rank 0 cannot see is left out
    with a warning.
    """
    target = Path(path)
    error = None
    try:
        if world.size > 1:
            trace.save(_part(target, world.rank))
        else:
            Trace.merge([trace]).save(target)
    except OSError as caught:
        error = str(caught)
    if world.size == 1:
        if error:
            warnings.warn(f"{target}: the trace is not written ({error})", stacklevel=2)
        return
    said = world.all_gather_objects(error)
    if world.rank == 0:
        present = [rank for rank in range(world.size) if said[rank] is None and _part(target, rank).exists()]
        try:
            Trace.merge([Trace.load(_part(target, rank)) for rank in present]).save(target)
        except OSError as caught:
            said[0] = str(caught)
        remove_parts(target)
        missing = sorted(set(range(world.size)) - set(present))
        if (missing and world.kind == "real") or said[0]:
            why = next((text for text in said if text), "the run folder is not shared by all ranks")
            warnings.warn(f"{target}: the trace lacks ranks {missing} ({why})", stacklevel=2)
    world.barrier()


def load_trace(path: str | os.PathLike[str]) -> Trace:
    """The trace of a run, all ranks on one clock.

    Parts left by a run that ended badly are joined, and written as one file where that is possible.

    Args:
        path: of a run folder, or of a trace file.
    Raises:
        TraceError: there is none, or it cannot be read.
    """
    target = Path(path)
    if target.is_dir():
        target = target / "trace.json"
    elif not target.exists():
        raise TraceError(f"{target}: there is no such run folder or trace file")
    parts = _parts(target) if target.name == "trace.json" else []
    if not parts:
        if not target.exists():
            raise TraceError(
                f"{target.parent} holds no trace: it is written when training ends, and only by a trainer that has "
                "a folder and a trace that is enabled"
            )
        return Trace.merge([_loaded(target)])
    trace = Trace.merge([_loaded(part) for part in parts])
    with suppress(OSError):
        trace.save(target)
        remove_parts(target)
    return trace


def _loaded(path: Path) -> Trace:
    try:
        return Trace.load(path)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise TraceError(f"{error}; remove it if it is damaged: nothing else needs it") from error
