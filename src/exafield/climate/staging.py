"""Staging: files reach node-local storage, each read from the shared file system once (Kurth et al., arXiv 1810.01993).

Every rank draws its own sample of the files. A file is read by one rank, its owner, and travels from there in a message
to each place that wants it. A place is a folder on a node: ranks that share it get one copy. Files go in rounds: in
each, every owner serves its next file, whatever came first from its reader processes. All ranks know of each round what
was read and what failed, so that they end together.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from exafield.climate.compact import Compact
from exafield.climate.conversion import Conversion, Copy, Reading
from exafield.climate.exchange import Exchange, StagingError, Transfer, transfers
from exafield.climate.ledger import Ledger
from exafield.climate.readers import Readers
from exafield.climate.reading import find_files
from exafield.climate.snapshot import SnapshotError
from exafield.suggestion import counted
from exafield.world import World

__all__ = ["Compact", "Copy", "Staging", "StagingError", "Transfer", "draw", "stage", "transfers"]

# What a rank may take in a round beside reading [s], our choice: to start its readers, and to write what it receives.
_SLACK = 300.0


def draw(files: int, per_rank: int | None, rank: int, size: int, seed: int) -> list[int]:
    """The numbers of the files that a rank wants: a sample of its own, each file once at most.

    Args:
        files: how many there are.
        per_rank: how many it wants; None, or more than there are: all.
        rank, size: of the world.
        seed: of all draws.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank must lie in 0..{size - 1}, got {rank}")
    if per_rank is None or per_rank >= files:
        return list(range(files))
    random = np.random.default_rng(np.random.SeedSequence((seed, rank)))
    chosen: list[int] = random.choice(files, per_rank, replace=False, shuffle=False).tolist()
    return chosen


@dataclass(frozen=True, slots=True)
class Staging:
    """What was staged, over all ranks but for `files`.

    Args:
        files: of this rank, in the order drawn.
        listed: files there are.
        wanted: files that at least one rank drew.
        copies: of files, over all places: so often the shared file system would be read if each read for itself.
        kept: copies that were there, whole, from an earlier staging of the same files.
        reads: files read from the shared file system, repeated attempts included.
        read_bytes: sizes of the files read.
        moved_bytes: sent between ranks.
        stored_bytes: sizes of the files stored.
        seconds: wall time of the slowest rank.
        skipped: files that could not be read, with the reason.
    """

    files: tuple[Path, ...]
    listed: int
    wanted: int
    copies: int
    kept: int
    reads: int
    read_bytes: int
    moved_bytes: int
    stored_bytes: int
    seconds: float
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def reads_per_file(self) -> float:
        """1.0 unless attempts were repeated, or copies were there."""
        return self.reads / max(self.wanted, 1)

    @property
    def copies_per_file(self) -> float:
        """Reads per file without staging."""
        return self.copies / max(self.wanted, 1)

    def lines(self) -> list[str]:
        """The report."""
        mib = 2.0**20
        copies = counted(self.copies, "copy", "copies") + (f", {self.kept} there before," if self.kept else "")
        said = [
            f"staged {self.wanted} of {counted(self.listed, 'file')} into {copies} in {self.seconds:.1f} s",
            f"reads per file {self.reads_per_file:.2f}, instead of {self.copies_per_file:.2f} without staging",
            (
                f"{self.read_bytes / mib:.1f} MiB read, {self.moved_bytes / mib:.1f} moved between ranks, "
                f"{self.stored_bytes / mib:.1f} stored"
            ),
        ]
        if self.skipped:
            said.append(f"{counted(len(self.skipped), 'file')} left out, the first: {self.skipped[0][1]}")
        return said


def stage(
    world: World,
    paths: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    per_rank: int | None = None,
    seed: int = 0,
    convert: Conversion | None = None,
    readers: int = 2,
    timeout: float = 120.0,
    retries: int = 2,
    on_error: Literal["raise", "skip"] = "raise",
) -> Staging:
    """Brings each rank the files it drew. Collective.

    What is there from an earlier staging of the same files stays, if its checksum is still what it was.

    Args:
        world: of real ranks, or a single one.
        paths: as :func:`find_files` takes them; those of rank 0 count.
        folder: node-local, of this rank; ranks of one node may share it. Files of the same name are replaced.
        per_rank: files that this rank draws; 0 for none, None for all.
        seed: of the draws.
        convert: what is done while reading; default: nothing, :class:`Copy`.
        readers: processes of this rank that read; 8 a node in the published runs.
        timeout: for one attempt to read a file [s].
        retries: further attempts.
        on_error: whether a file that cannot be read is fatal, or left out and told in the report.
    Raises:
        StagingError: on all ranks: there are no files, one cannot be read or stored, or a rank was lost.
    """
    if world.kind == "fake":
        raise ValueError("files cannot be staged in a fake world: its ranks have no folders")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    began = time.monotonic()
    convert = convert or Copy()
    files, sizes, stamps = _listed(world, paths, convert)
    folder = Path(folder)
    places, wants = _agreed(world, files, folder, per_rank, seed, convert, on_error)
    names = [convert.name(file) for file in files]
    origins = [
        f"{file} {size} {stamp} {convert!r}" if stamp else ""
        for file, size, stamp in zip(files, sizes, stamps, strict=True)
    ]
    ledger = Ledger(folder, world.rank, names, origins)
    have = _there(world, ledger, places, wants)
    plan = transfers([set(wanted) - have[place] for wanted, place in zip(wants, places, strict=True)], places)
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=folder, ignore_cleanup_errors=True) as scratch:
        staged = Exchange(world, files, plan, names, folder, Path(scratch), ledger, on_error == "skip").run(
            Readers(Reading(convert), readers, timeout=timeout, retries=retries), timeout * (retries + 1) + _SLACK
        )
    counts = world.all_gather_objects(
        {
            "reads": sum(staged.attempts.values()),
            "read": sum(sizes[file] * n for file, n in staged.attempts.items()),
            "moved": staged.moved,
            "stored": staged.stored,
            "copies": staged.copies,
            "seconds": time.monotonic() - began,
        }
    )
    total = {key: sum(count[key] for count in counts) for key in counts[0]}
    lost = {file for file, _ in staged.skipped}
    kept = sum(map(len, have.values()))
    return Staging(
        tuple(folder / names[file] for file in wants[world.rank] if file not in lost),
        len(files),
        len({file for wanted in wants for file in wanted}),
        total["copies"] + kept,
        kept,
        total["reads"],
        total["read"],
        total["moved"],
        total["stored"],
        max(count["seconds"] for count in counts),
        tuple((files[file], reason) for file, reason in staged.skipped),
    )


def _there(
    world: World, ledger: Ledger, places: Sequence[tuple[int, str]], wants: Sequence[Sequence[int]]
) -> dict[Any, set[int]]:
    """For each place, what its ranks want and is there; they look through it together."""
    mine = [rank for rank, place in enumerate(places) if place == places[world.rank]]
    wanted = sorted({file for rank in mine for file in wants[rank]})
    found = world.all_gather_objects(ledger.whole(wanted[mine.index(world.rank) :: len(mine)]))
    have: dict[Any, set[int]] = {place: set() for place in places}
    for place, files in zip(places, found, strict=True):
        have[place].update(files)
    return have


def _listed(world: World, paths: Any, convert: Conversion) -> tuple[list[str], list[int], list[int]]:
    """Names, sizes and times of change [ns; 0: not known] of the files, as rank 0 sees them.

    That is one look at the shared file system, not one for each rank.
    """
    said: dict[str, Any] = {}
    if world.rank == 0:
        try:
            files = find_files(paths)
            taken: dict[str, str] = {}
            for file in files:
                other = taken.setdefault(convert.name(file), file)
                if other != file:
                    raise SnapshotError(f"{other} and {file} would have the same name when staged: stage them apart")
            sizes, stamps = zip(*map(_look, files), strict=True)
            said = {"files": files, "sizes": sizes, "stamps": stamps}
        except (SnapshotError, OSError) as error:
            said = {"error": str(error)}
    said = world.broadcast_object(said)
    if "error" in said:
        raise StagingError(said["error"])
    return said["files"], said["sizes"], said["stamps"]


def _look(file: str) -> tuple[int, int]:
    path = Path(file)
    if not path.exists():  # an address
        return 0, 0
    parts = [part.stat() for part in path.rglob("*") if part.is_file()] if path.is_dir() else [path.stat()]
    return sum(part.st_size for part in parts), max((part.st_mtime_ns for part in parts), default=0)


def _agreed(
    world: World,
    files: Sequence[str],
    folder: Path,
    per_rank: int | None,
    seed: int,
    convert: Conversion,
    on_error: str,
) -> tuple[list[tuple[int, str]], list[list[int]]]:
    """Place and wishes of each rank, after a check that all folders can be used and all ranks want the same."""
    error = None
    try:
        if per_rank is not None and per_rank < 0:
            raise OSError(f"per_rank must be 0 files or more, got {per_rank}")
        folder.mkdir(parents=True, exist_ok=True)
        if folder.resolve() in {Path(file).resolve().parent for file in files}:
            raise OSError(f"{folder} is where the files come from: name a node-local folder")
        if not os.access(folder, os.W_OK):
            raise OSError(f"{folder} cannot be written to")
    except OSError as caught:
        error = f"rank {world.rank}: {caught}"
    alike = [seed, repr(convert), on_error]
    said = world.all_gather_objects([error, world.node, str(folder.resolve()), per_rank, alike])
    errors = [reason for reason, *_ in said if reason]
    if errors:
        raise StagingError("; ".join(errors))
    odd = [rank for rank, (*_, their) in enumerate(said) if their != said[0][-1]]
    if odd:
        raise StagingError(
            f"seed, convert and on_error differ: {said[0][-1]} on rank 0, {said[odd[0]][-1]} on {odd[0]}"
        )
    places = [(node, where) for _, node, where, _, _ in said]
    wants = [draw(len(files), count, rank, world.size, seed) for rank, (_, _, _, count, _) in enumerate(said)]
    return places, wants
