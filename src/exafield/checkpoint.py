"""Checkpoints: the whole state of a run, written so that no accident costs the one before.

A checkpoint is a folder `step-00000100` of safetensors files (one for each player, one for each rank) and a
`manifest.json` that names them with sizes and SHA-256 sums. It is written under another name, flushed to the disk
and renamed when complete. Nothing read is ever unpickled: trees of tensors and plain values are stored as
tensors and JSON. All ranks take part in writing and reading, on a file system they share, and all of them
either succeed or raise the same error.
"""

import errno
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exafield.state import Tree, pack, unpack
from exafield.world import World

FORMAT = "exafield-checkpoint"
VERSION = 1
_MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or does not fit; raised on all ranks alike."""


class _DamageError(Exception):
    """A checkpoint that is not whole."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint as read by one rank.

    Args:
        step: the training step after which it was written.
        ranks: how many wrote it.
        about: the plain values saved for all ranks.
        shared: the trees asked for, by name.
        mine: this rank's own tree; rank 0's, if it was written by another number of ranks.
    """

    step: int
    ranks: int
    about: dict[str, Any]
    shared: dict[str, Tree]
    mine: Tree


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: shared by all ranks; made when first needed.
        world: all its ranks take part in every call.
        keep: how many checkpoints are kept, the newest.
    """

    def __init__(self, folder: str | os.PathLike[str], world: World, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep must be 1 or more checkpoints, got {keep}")
        self.folder, self.world, self.keep = Path(folder), world, keep

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, ascending, whole or not."""
        if not self.folder.is_dir():
            return []
        names = (path.name.removeprefix("step-") for path in self.folder.glob("step-*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of `step`."""
        return self.folder / f"step-{step:08d}"

    # ---- writing ----

    def save(
        self,
        step: int,
        owned: Mapping[str, Tree],
        mine: Tree,
        about: Mapping[str, Any],
        refusal: str | None = None,
    ) -> Path:
        """Writes a checkpoint. Collective.

        Args:
            step: number of the checkpoint.
            owned: trees that this rank writes for all, by name; no two ranks own the same name.
            mine: this rank's own tree.
            about: plain values (JSON), rank 0's.
            refusal: why this rank's state must not be saved, if so.
        Raises:
            CheckpointError: on all ranks; the checkpoints before are as they were.
        """
        final = self.path(step)
        partial = self.folder / f".{final.name}.partial"
        trees = {f"{name}.safetensors": tree for name, tree in owned.items()}
        trees[_rank_file(self.world.rank)] = mine
        files: dict[str, list[object]] = {}

        def begin() -> None:
            if self.world.rank == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._tidy()
                partial.mkdir()

        def write() -> None:
            if refusal is not None:
                raise CheckpointError(refusal)
            for name, tree in trees.items():
                try:
                    data = pack(tree)
                except TypeError as error:
                    raise CheckpointError(f"{name}: {error}") from error
                _write(partial / name, data)
                files[name] = [len(data), hashlib.sha256(data).hexdigest()]

        def commit(everyone: list[dict[str, list[object]]]) -> None:
            if self.world.rank != 0:
                return
            listed = {name: entry for one in everyone for name, entry in sorted(one.items())}
            unseen = [name for name in listed if not (partial / name).is_file()]
            if unseen:
                raise CheckpointError(f"rank 0 does not see {unseen}: put {self.folder} where all ranks share it")
            _write(partial / _MANIFEST, _manifest(step, self.world.size, listed, about))
            _sync_folder(partial)
            if final.exists():
                os.rename(final, self.folder / f".{final.name}.replaced")
            os.rename(partial, final)
            _sync_folder(self.folder)

        try:
            self._together(begin, step)
            self._together(write, step)
            everyone = self.world.all_gather_objects(files)
            self._together(lambda: commit(everyone), step)
        except CheckpointError:
            if self.world.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        if self.world.rank == 0:
            self._prune(step)
        return final

    def _together(self, act: Callable[[], None], step: int) -> None:
        """Acts on every rank; if one fails, all raise what it says."""
        said: str | None = None
        try:
            act()
        except OSError as error:
            before = [s for s in self.steps() if s != step]
            still = f"; the checkpoint of step {before[-1]} is untouched" if before else ""
            said = f"{error.filename or self.folder}: {error.strerror or error}: {_advice(error)}{still}"
        except Exception as error:
            said = str(error) or repr(error)
        agree(self.world, said, f"checkpoint {self.path(step)} could not be written")

    def _tidy(self) -> None:
        """Clears away what a kill while writing left behind; a checkpoint it left half replaced comes back."""
        for path in self.folder.glob(".step-*"):
            final = path.with_name(path.name.removeprefix(".").removesuffix(".replaced"))
            if path.suffix == ".replaced" and not final.exists():
                os.rename(path, final)
            else:
                shutil.rmtree(path)

    def _prune(self, step: int) -> None:
        """Removes the oldest checkpoints beyond `keep`; never one newer than `step`."""
        older = [s for s in self.steps() if s < step]
        unwanted = [self.path(s) for s in older[: max(0, len(older) - (self.keep - 1))]]
        for path in [*unwanted, *self.folder.glob(".step-*")]:
            shutil.rmtree(path, ignore_errors=True)

    # ---- reading ----

    def load(self, wanted: Sequence[str], expected: Mapping[str, Any] | None = None) -> Loaded | None:
        """Reads the newest checkpoint that is whole. Collective.

        A damaged one is set aside (renamed) with a warning, and the one before is taken.

        Args:
            wanted: names of the shared trees this rank needs.
            expected: plain values that those saved for all ranks must equal.
        Returns:
            None if there is no checkpoint at all.
        Raises:
            CheckpointError: on all ranks, if none is whole, or if the newest whole one does not hold what is expected
                or was written by a newer exafield.
        """
        if self.world.rank == 0:
            with suppress(OSError):  # a folder that may only be read is read as it is
                self._tidy()
        steps: list[int] = self.world.broadcast_object(self.steps()[::-1])
        for step in steps:
            loaded, damage, refusal = None, None, None
            try:
                loaded = self._read(step, wanted, expected or {})
            except (_DamageError, OSError) as error:
                damage = str(error)
            except CheckpointError as error:
                refusal = str(error)
            damages = [text for text in self.world.all_gather_objects(damage) if text]
            agree(self.world, refusal if not damages else None, f"checkpoint {self.path(step)} cannot be used")
            if not damages:
                return loaded
            if self.world.rank == 0:
                warnings.warn(
                    f"checkpoint {self.path(step)} is damaged ({damages[0]}): taking the one before", stacklevel=2
                )
                self._set_aside(step)
        if steps:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is whole: start anew in another folder, or restore one from a backup"
            )
        return None

    def read(self, step: int, wanted: Sequence[str]) -> Loaded:
        """Reads the checkpoint of a step, on this rank alone.

        Args:
            wanted: names of the shared trees.
        Raises:
            CheckpointError: it is not there any more, or not whole.
        """
        try:
            return self._read(step, wanted, {})
        except (_DamageError, OSError) as error:
            raise CheckpointError(f"checkpoint {self.path(step)} cannot be read: {error}") from error

    def _set_aside(self, step: int) -> None:
        path = self.path(step)
        try:
            os.rename(path, path.with_name(f"damaged-{path.name}-{time.time_ns()}"))
        except OSError as error:
            warnings.warn(f"{path} could not be renamed: {error}", stacklevel=2)

    def _read(self, step: int, wanted: Sequence[str], expected: Mapping[str, Any]) -> Loaded:
        folder = self.path(step)
        manifest = _read_manifest(folder / _MANIFEST)
        files = manifest["files"]
        for name, (size, _) in files.items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                raise _DamageError(f"{name} is missing or cut short")
        for name, value in expected.items():
            if manifest["about"].get(name) != value:
                raise CheckpointError(
                    f"its {name} are {manifest['about'].get(name)} and this run's {value}: resume with the "
                    "configuration it was written with, or start anew in another folder"
                )

        def tree(name: str) -> Tree:
            data = (folder / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != files[name][1]:
                raise _DamageError(f"the checksum of {name} is wrong")
            try:
                return unpack(data)
            except Exception as error:  # whatever it is, it is no state
                raise _DamageError(f"{name} does not hold a state: {error}") from error

        shared = {name: tree(f"{name}.safetensors") for name in wanted}
        mine = self.world.rank if manifest["ranks"] == self.world.size else 0
        return Loaded(step, manifest["ranks"], manifest["about"], shared, tree(_rank_file(mine)))


def _rank_file(rank: int) -> str:
    return f"rank.{rank:05d}.safetensors"  # no player's name holds a dot


def agree(world: World, said: str | None, what: str) -> None:
    """Raises one CheckpointError on all ranks, `what`: ..., if any has something to say. Collective."""
    texts = world.all_gather_objects(said)
    ranks: dict[str, list[int]] = {}
    for rank, text in enumerate(texts):
        if text:
            ranks.setdefault(text, []).append(rank)
    if ranks:
        where = "; ".join(f"{text} (rank {', '.join(map(str, r))})" for text, r in ranks.items())
        raise CheckpointError(f"{what}: {where}")


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space there or choose a run folder elsewhere"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose a run folder you may write to"
    return "check the file system or choose a run folder elsewhere"


# ---- files ----


def _write(path: Path, data: bytes) -> None:
    """Writes a new file and waits until the disk has it."""
    with _named(path), path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """A failing write does not know its file's name."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest(step: int, ranks: int, files: Mapping[str, object], about: Mapping[str, Any]) -> bytes:
    body = {"format": FORMAT, "version": VERSION, "step": step, "ranks": ranks, "files": files, "about": dict(about)}
    return json.dumps(body | {"sha256": _body_sum(body)}, indent=1).encode()


def _body_sum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        claimed = manifest.pop("sha256")
        known, version = manifest["format"] == FORMAT, int(manifest["version"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamageError(f"{path.name} cannot be read: {error!r}") from error
    if known and version > VERSION:
        raise CheckpointError(f"it has format {version}, and this exafield reads up to {VERSION}: update exafield")
    if not known or claimed != _body_sum(manifest):
        raise _DamageError(f"the checksum of {path.name} is wrong")
    return manifest
