"""Masks of years of files: by a trained network, or by anything else that makes a mask of a snapshot.

Workers of an engine read the snapshots, one at a time each, and return masks. This process writes each mask as it
comes, whole or not at all, and puts them into one file at the end. So a run that was stopped, however that happened,
is gone on with by the same call, and memory holds one snapshot for each worker, however many years there are.
"""

import hashlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exafield import provenance
from exafield.climate import masking, tiles
from exafield.climate.grid import Grid
from exafield.climate.masking import Made, Maker
from exafield.climate.masks import How, OnError, present
from exafield.climate.reading import Snapshots, find_files, open_snapshots
from exafield.climate.segmenter import Segmenter, spacing
from exafield.climate.snapshot import Snapshot, SnapshotError
from exafield.climate.summary import Summary
from exafield.climate.targets import encode_times
from exafield.climate.writing import MaskWriter, origin
from exafield.engine import MapEngine
from exafield.engine.local import ProcessEngine
from exafield.suggestion import counted

Paths = str | Path | Sequence[str | Path]
Say = Callable[[str], None]
Load = Callable[[], Segmenter]

# Between two lines that tell how far it is [s], our choice.
_TELL = 30.0
# Ratio of the spacings of two grids up to which a network trained on one may be trusted on the other, our choice:
# storms then have about the size in pixels that it knows.
_ALIKE = 1.5


@lru_cache(maxsize=1)
def _loaded(load: Load) -> Segmenter:
    # Once for each process, not for each snapshot.
    segmenter = load().eval()
    for name, values in segmenter.state_dict().items():
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} of the network holds values that are not finite: take an earlier checkpoint")
    return segmenter


@dataclass(frozen=True)
class Network:
    """Masks by a network.

    Args:
        load: gives it, on any worker.
        tile, overlap: see :func:`exafield.climate.tiles.classify`.
    """

    load: Load
    tile: tuple[int, int] | None = None
    overlap: int = tiles.OVERLAP

    def __call__(self, snapshot: Snapshot) -> NDArray[np.uint8]:
        """The mask [latitude, longitude]."""
        torch.set_num_threads(1)  # the engine's workers are what there are cores for
        return tiles.classify(_loaded(self.load), snapshot.values, snapshot.grid, self.tile, self.overlap)


def apply(
    paths: Paths,
    out: str | Path,
    load: Load,
    *,
    engine: MapEngine | None = None,
    tile: tuple[int, int] | None = None,
    overlap: int = tiles.OVERLAP,
    how: How | None = None,
    made_with: Mapping[str, Any] | None = None,
    on_error: OnError = "stop",
    say: Say = lambda text: None,
) -> Summary:
    """Masks of all snapshots by a trained network.

    The result does not depend on the engine. A worker computes on one torch thread: more workers use more cores.

    Args:
        paths: files, Zarr stores, folders of such, or patterns, under names that workers know; on one grid. Masks are
            put in the order of time.
        out: file that is written, .nc or .zarr. Beside it lies a hidden folder until it is complete.
        load: gives the network; hashable and picklable, such as a frozen dataclass. Every worker calls it once.
        engine: that maps; None: processes on this machine.
        tile: rows and columns at a time, if the whole grid needs too much memory; see :mod:`exafield.climate.tiles`.
        overlap: pixels that a tile reaches beyond what is kept of it.
        how: fields are read.
        made_with: what tells this network from others, in plain values; a run with another is not gone on with.
        on_error: whether what cannot be read stops all, or is left out, named and counted.
        say: is told how it goes.
    Raises:
        SnapshotError: there are no files, channels are missing, grids differ, or a snapshot cannot be read.
        StoreError: `out` is there and was made otherwise, or cannot be written.
        ValueError: an argument is not valid, or the grid does not suit the network.
        EngineError: a worker was lost, or stumbled.
    """
    tiles.check(tile, overlap)
    threads = torch.get_num_threads()
    _loaded.cache_clear()  # the same `load` may give another network than the last time
    try:
        segmenter = _loaded(load)

        def look(grid: Grid) -> None:
            if getattr(segmenter.network, "periodic", False) and not grid.periodic:
                say("the network takes longitudes to close, and these do not: its masks are not to be trusted "
                    "near the eastern and western edge")  # fmt: skip
            if warning := misfit(segmenter, grid):
                say(warning)

        return mask_files(
            paths,
            out,
            Network(load, tile, overlap),
            segmenter.channels,
            f"the network was trained on {', '.join(segmenter.channels)}",
            title="Tropical cyclones and atmospheric rivers as a trained network sees them",
            engine=engine,
            how=how,
            made_with={**(made_with or {}), "by": "network", "tile": [*tile, overlap] if tile else None},
            on_error=on_error,
            look=look,
            say=say,
        )
    finally:
        _loaded.cache_clear()
        torch.set_num_threads(threads)


def misfit(segmenter: Segmenter, grid: Grid) -> str | None:
    """A warning if the grid is much finer or coarser than the one that the network was trained on.

    A network knows the sizes of storms in pixels only.
    """
    known, given = segmenter.spacing.tolist(), spacing(grid)
    if min(known) <= 0:  # nobody has told it
        return None
    if all(1 / _ALIKE <= one / other <= _ALIKE for one, other in zip(given, known, strict=True)):
        return None
    here, there = (f"{north:.3g} x {east:.3g} degrees" for north, east in (given, known))
    return (
        f"warning: this grid has a spacing of {here}, and the network was trained on one of {there}: its masks are not "
        "to be trusted; interpolate the fields to the spacing it was trained on, or train a network at this one"
    )


def mask_files(
    paths: Paths,
    out: str | Path,
    make: Maker,
    channels: Sequence[str],
    needs: str,
    *,
    title: str,
    engine: MapEngine | None = None,
    how: How | None = None,
    made_with: Mapping[str, Any] | None = None,
    on_error: OnError = "stop",
    look: Callable[[Grid], None] = lambda grid: None,
    say: Say = lambda text: None,
) -> Summary:
    """Masks of all snapshots by a function; for arguments and errors see :func:`apply`.

    Args:
        make: the function.
        channels: that it is given.
        needs: says why it needs these, for the message when some are missing.
        title: of the file.
        look: is shown the grid before anything is written.
    """
    began = time.monotonic()
    out, how = Path(out), how or How()
    files = input_files(paths, out)
    with _opened(files, channels, how, on_error, needs) as snapshots:
        order, times = _in_time(snapshots), snapshots.times
        look(snapshots.axes.grid)
        lost = [str(item) for item in snapshots.skipped]
        told = {"skipped_files": str(len(lost))}
        if lost:
            told["first_skipped_file"] = provenance.without_home(lost[0])
        job = _Job(
            snapshots,
            order,
            MaskWriter(
                out,
                snapshots.axes,
                [times[index] for index in order],
                {**(made_with or {}), "channels": list(channels), **_settings(files, how)},
                origin(source=snapshots.attributes, title=title) | told,
            ),
            on_error == "skip",
            say,
        )
        with job.writer.alone():
            for reason in lost:
                say(f"left out: {reason}")
            job.run(make, engine or ProcessEngine())
    with open_snapshots(out, channels=()) as written:
        masks = len(written)
    skipped = tuple(job.unread.values())
    return Summary(out, len(order), masks, job.made, skipped, tuple(lost), job.filled, time.monotonic() - began)


@dataclass
class _Job:
    """The masks that are still to be made.

    Args:
        snapshots: of all files.
        order: of the masks: which snapshot each belongs to.
        writer: takes them.
        skip: whether what cannot be read is left out.
        say: is told how it goes.
    """

    snapshots: Snapshots
    order: list[int]
    writer: MaskWriter
    skip: bool
    say: Say
    made: int = 0
    filled: int = 0
    unread: dict[int, str] = field(default_factory=dict)

    def run(self, make: Maker, engine: MapEngine) -> None:
        """Makes all of them, and the file."""
        total = len(self.order)
        missing = set(self.writer.missing())
        before = total - len(missing)
        kept = f"; {before} done already" if before else ""
        axes = self.snapshots.axes
        again = "; the last column is the first again: it counts once, and masks have it too" if axes.repeats else ""
        self.say(f"{counted(total, 'snapshot')}, {axes}{again}{kept}")
        try:
            if missing:
                self._map(make, engine, missing)
        except BaseException:
            if done := total - len(self.writer.missing()):
                masks = counted(total, "mask")
                self.say(f"stopped with {done} of {masks} done, which are kept: the same again goes on from here")
            raise
        if len(self.unread) == total:
            snapshots = counted(total, "snapshot")
            raise SnapshotError(f"none of {snapshots} can be read; the first: {next(iter(self.unread.values()))}")
        # Noted only now: a run that is gone on with tries them again.
        for index, reason in self.unread.items():
            self.writer.skip(index, reason)
        self.writer.finish()

    def _map(self, make: Maker, engine: MapEngine, missing: set[int]) -> None:
        total, told = len(self.order), time.monotonic()
        done = set(range(total)) - missing
        run = uuid.uuid4().hex
        # A sequence of one snapshot is small to send, however many there are in all.
        singles = (self.snapshots[at : at + 1] for at in self.order)
        results = engine.map(partial(masking.mask, make, run), singles, done=done)
        try:
            for index, result in results:
                self._take(index, result)
                if time.monotonic() - told > _TELL:
                    told = time.monotonic()
                    self.say(f"{len(done) + self.made} of {counted(total, 'mask')}")
        finally:
            # At once, not when the traceback of an error is let go: workers of the engine may still be busy.
            if (close := getattr(results, "close", None)) is not None:
                close()
            masking.close(run)  # what an engine without processes of its own has left open here

    def _take(self, index: int, result: Made) -> None:
        if result.labels is not None:
            self.writer.write(index, result.labels)
            self.made += 1
            self.filled += result.filled > 0
        elif result.refused is not None:
            raise ValueError(f"{self.snapshots.locate(self.order[index])}: {result.refused}")
        elif not self.skip:
            raise SnapshotError(f"{result.unread}; on_error='skip' leaves out what cannot be read")
        else:
            self.unread[index] = str(result.unread)
            self.say(f"left out: {result.unread}")


def input_files(paths: Paths, out: Path) -> list[str]:
    """The files to read, but for the one to write: a folder may hold that from the last time.

    Raises:
        SnapshotError: there are none.
    """
    files = [one for one in find_files(paths) if "://" in one or Path(one).absolute() != out.absolute()]
    if not files:
        raise SnapshotError(f"{out} is the only file given: name files to read, and another one to write")
    return files


def _opened(files: list[str], channels: Sequence[str], how: How, on_error: OnError, needs: str) -> Snapshots:
    try:
        return open_snapshots(
            files,
            channels=channels,
            labels=None,
            names=how.names,
            units=how.units,
            fill=how.fill,
            plausible=how.plausible,
            on_error="skip" if on_error == "skip" else "raise",
        )
    except SnapshotError as error:
        # Of which file it tells; that names one channel at most, where all that are missing are of interest.
        path = next((one for one in files if str(error).startswith(f"{one}: ")), files[0])
        try:
            missing = present(path, channels, how)[1]
        except SnapshotError:
            missing = {}
        if not missing:
            raise
        hint = next(iter(missing.values())).removesuffix(", or leave the channel out")
        raise SnapshotError(f"{path} lacks {', '.join(missing)}; {needs}; {hint}") from error


def _in_time(snapshots: Snapshots) -> list[int]:
    """Their numbers in the order of time.

    Raises:
        SnapshotError: two are of the same time.
        ValueError: their calendars differ.
    """
    seconds, _ = encode_times(snapshots.times)
    order = np.argsort(seconds, kind="stable")
    twice = np.flatnonzero(np.diff(seconds[order]) == 0)
    if twice.size:
        one, other = (snapshots.locate(int(order[at])) for at in (twice[0], twice[0] + 1))
        raise SnapshotError(
            f"{one}, and {other}: both are of the same time, of which a file holds one mask: give every file once, and "
            "members of an ensemble one by one"
        )
    numbers: list[int] = order.tolist()
    return numbers


def _settings(files: Sequence[str], how: How) -> dict[str, Any]:
    """What masks depend on beside what makes them."""
    names = sorted(one if "://" in one else str(Path(one).absolute()) for one in files)
    return {
        "files": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "names": dict(how.names),
        "units": dict(how.units),
        "fill": how.fill,
    }
