"""Masks over years, as CF NetCDF or Zarr: whole or not at all, and gone on with after a stop."""

import contextlib
import fcntl
import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield import provenance
from exafield.climate.checks import labels_of
from exafield.climate.fields import CLASSES
from exafield.climate.layouts import time_text
from exafield.climate.snapshot import Axes, Time
from exafield.climate.targets import add_axes, encode_times, open_target
from exafield.requirement import require
from exafield.store import StoreError, atomic_write, whole
from exafield.suggestion import counted

CONVENTIONS = "CF-1.10"
_MADE_WITH = "exafield_made_with"


def origin(
    session: Mapping[str, Any] | None = None, source: Mapping[str, str] | None = None, **more: str
) -> dict[str, str]:
    """Global attributes that tell where a file comes from.

    Args:
        session: what :func:`exafield.provenance.session` told; default: this process.
        source: attributes of the data that were read; their history is continued.
        more: further attributes, such as title.
    """
    told = dict(session) if session else provenance.origin()
    line = f"{told['started']}: {told['command']} (exafield {told['exafield']})"
    before = dict(source or {})
    kept = {f"source_{name}": before[name] for name in ("title", "institution", "source") if before.get(name)}
    history = "\n".join(filter(None, (line, before.get("history"))))
    return {"Conventions": CONVENTIONS, **kept, "history": history, "provenance": json.dumps(told), **more}


class MaskWriter:
    """Takes masks in any order, from any number of processes, and puts them into one file at the end.

    Until then each mask is a small file in a hidden folder beside it, written whole or not at all; so a run that was
    cut off is gone on with by making the same writer again, and the file itself is there only when complete. Memory
    holds one mask at a time. What was begun and has no mask yet does not bind: it is begun anew.

    Args:
        path: ends in .nc or .zarr.
        axes: of the source; the masks are stored in its order.
        times: of all snapshots.
        made_with: what the masks depend on, in plain values; a run with another is not gone on with.
        attributes: of the file, see :func:`origin`.
    Raises:
        StoreError: something of that name is there that was made otherwise, or nothing can be written.
        ValueError: the suffix is unknown, or calendars differ.
    """

    def __init__(
        self,
        path: str | Path,
        axes: Axes,
        times: Sequence[Time],
        made_with: Mapping[str, Any],
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self._axes, self._times = Path(path), axes, list(times)
        if self.path.suffix not in (".nc", ".nc4", ".zarr"):
            raise ValueError(f"{self.path.name}: choose a name that ends in .nc or .zarr")
        encode_times(self._times)
        self._attributes = dict(attributes if attributes is not None else origin())
        digest = hashlib.sha256("\n".join(map(time_text, self._times)).encode()).hexdigest()
        wanted = {**made_with, "grid": str(axes), "snapshots": len(self._times), "times": digest}
        self._made_with = json.dumps(wanted, sort_keys=True)
        self._parts = self.path.with_name(f".{self.path.name}.parts")
        if self.finished:
            self._same(self._told(), self.path)
            return
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror}; choose another folder") from error
        if not self._begun or self._begun == self._made_with:
            self._begin()
        elif self._empty:
            with self._lock():
                self._begin()
        else:
            self._same(self._begun, self._parts)

    @property
    def _begun(self) -> str:
        """What the masks in the hidden folder are made with; empty if that is new."""
        told = self._parts / "made_with.json"
        return told.read_text(encoding="utf-8") if told.exists() else ""

    @property
    def _empty(self) -> bool:
        return not any(self._parts.glob("*.mask"))

    def _begin(self) -> None:
        if self._begun != self._made_with:
            for path in self._parts.glob("*.skipped"):  # of what else was begun
                path.unlink(missing_ok=True)
            atomic_write(self._parts / "made_with.json", self._made_with.encode())

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        # Held by the open file, and so let go however the process ends.
        self._parts.mkdir(parents=True, exist_ok=True)
        with open(self._parts / "lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError(
                    f"{self.path} is being made by another run already: wait until it ends, or choose another name"
                ) from error
            except OSError:
                pass  # this file system has no locks: two runs at once then do the same work twice, and no harm
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other runs from making the same masks, and at the end takes away a hidden folder without any.

        For the process that has all masks made; those who write masks for it need nothing of that.

        Raises:
            StoreError: another run is making them.
        """
        if self.finished:
            yield
            return
        with self._lock():
            if self._begun:  # another run may have come in between
                self._same(self._begun, self._parts)
            self._begin()
            try:
                yield
            finally:
                if self._parts.exists() and self._empty:
                    shutil.rmtree(self._parts, ignore_errors=True)

    def _same(self, have: str, where: Path) -> None:
        if have == self._made_with:
            return
        mine: dict[str, Any] = json.loads(self._made_with)
        try:
            theirs: dict[str, Any] = dict(json.loads(have))
        except (ValueError, TypeError):
            theirs = {}
        differing = [k for k in sorted({*mine, *theirs}) if mine.get(k) != theirs.get(k)]
        raise StoreError(
            f"{where} was made otherwise ({', '.join(differing)}): choose another name, or remove it to begin anew"
        )

    def _told(self) -> str:
        try:
            if self.path.suffix == ".zarr":
                return str(require("zarr", extra="climate").open_group(str(self.path), mode="r").attrs[_MADE_WITH])
            with require("h5py", extra="climate").File(self.path, "r") as file:
                return str(file.attrs[_MADE_WITH])
        except (OSError, KeyError) as error:
            raise StoreError(f"{self.path} is there and not written by exafield: choose another name") from error

    @property
    def finished(self) -> bool:
        """Whether the file is there."""
        return self.path.exists()

    def missing(self) -> list[int]:
        """Which masks are still to be written; none once the file is there."""
        if self.finished:
            return []
        there = {int(p.stem) for p in self._parts.iterdir() if p.suffix in (".mask", ".skipped") and p.stem.isdecimal()}
        return [index for index in range(len(self._times)) if index not in there]

    def write(self, index: int, labels: NDArray[Any]) -> None:
        """Adds or replaces the mask of a snapshot.

        Args:
            index: of its time.
            labels: [latitude, longitude], in the order of the grid.
        Raises:
            SnapshotError: a label is none of the classes.
            ValueError: the shape or the index is wrong.
            StoreError: it cannot be written.
        """
        self._check(index)
        if labels.shape != self._axes.grid.shape:
            raise ValueError(f"mask {index} has shape {labels.shape}, the grid has {self._axes.grid.shape}")
        stored = self._axes.restore(labels_of(labels, self._axes))
        atomic_write(self._part(index), zlib.compress(stored.tobytes(), 1))

    def skip(self, index: int, reason: str) -> None:
        """Says that there is no mask of a snapshot; the file will tell so and leave out its time."""
        self._check(index)
        atomic_write(self._parts / f"{index:09d}.skipped", provenance.without_home(reason).encode())

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self._times):
            raise ValueError(f"mask {index}: there are {len(self._times)} snapshots")
        if self.finished:
            raise StoreError(f"{self.path} is complete: remove it to write it anew")

    def _part(self, index: int) -> Path:
        return self._parts / f"{index:09d}.mask"

    def finish(self) -> Path:
        """Puts the masks together; the hidden folder goes. Does nothing if that is done already.

        Raises:
            StoreError: masks are missing or damaged, or the file cannot be written.
        """
        if self.finished:
            shutil.rmtree(self._parts, ignore_errors=True)  # a run may have been cut off just before this
            return self.path
        if missing := self.missing():
            raise StoreError(
                f"{self.path}: {len(missing)} of {counted(len(self._times), 'mask')} missing, the first is that of "
                f"{time_text(self._times[missing[0]])}: run again to make them"
            )
        kept = [index for index in range(len(self._times)) if self._part(index).exists()]
        with whole(self.path, "free some space and run again, nothing is lost") as temporary:
            self._assemble(temporary, kept)
        shutil.rmtree(self._parts, ignore_errors=True)
        return self.path

    def _assemble(self, path: Path, kept: Sequence[int]) -> None:
        axes = self._axes
        shape = axes.latitude.size, axes.longitude.size
        seconds, told = encode_times([self._times[index] for index in kept])
        flags = {
            "long_name": "extreme weather",
            "flag_values": np.arange(len(CLASSES), dtype=np.uint8),
            "flag_meanings": " ".join(name.replace(" ", "_") for name in CLASSES),
        }
        skipped = sorted(self._parts.glob("*.skipped"))
        reasons = [path.read_text(encoding="utf-8") for path in skipped if not path.with_suffix(".mask").exists()]
        listed = {"skipped_snapshots": len(reasons)} | ({"first_skipped": reasons[0]} if reasons else {})
        with contextlib.closing(open_target(path, self.path.suffix)) as target:
            target.create("time", ("time",), seconds, {**told, "axis": "T"})
            add_axes(target, axes)
            dimensions = ("time", *axes.names)
            masks = target.create("LABELS", dimensions, ((len(kept), *shape), np.uint8), flags, chunks=(1, *shape))
            for place, index in enumerate(kept):
                masks[place] = self._stored(index, shape)
            target.describe({**self._attributes, **listed, _MADE_WITH: self._made_with})

    def _stored(self, index: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
        try:
            return np.frombuffer(zlib.decompress(self._part(index).read_bytes()), dtype=np.uint8).reshape(shape)
        except (zlib.error, ValueError) as error:
            self._part(index).unlink()
            raise StoreError(
                f"the mask of {time_text(self._times[index])} was damaged and is removed: run again to make it"
            ) from error
