"""Where things are kept: run folders, files written whole or not at all, and stores of samples."""

import atexit
import contextlib
import functools
import json
import os
import platform
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exafield.requirement import require

_FORMAT = 1
# Room for what HDF5 itself writes beside a sample's arrays [bytes], our choice; it takes some kilobytes.
_OVERHEAD = 1 << 16
# What is written into a lock that has been removed.
_LET_GO = b"let go"

#: Folder of run folders that are given no other place.
ROOT = "runs"


class StoreError(RuntimeError):
    """Something cannot be read or written; says which path and what to do."""


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: str | Path, data: bytes) -> None:
    """Writes a file so that at any moment either the old or the new one is there, whole.

    Raises:
        StoreError: it could not be written; the old one is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; free some space or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole(path: str | Path, advice: str = "free some space or choose another folder") -> Iterator[Path]:
    """A name beside `path` to write a file or a Zarr folder under; when that went well it becomes `path`.

    What lay there before is replaced, or stays if something goes wrong: a file at one stroke, a folder not. What a
    writer of this machine that was killed has left of the same `path` is removed.

    Raises:
        StoreError: it could not be written; says that, and `advice`.
    """
    path = Path(path)
    partial = path.with_name(_partial(path, os.getpid()))
    _sweep(path)
    try:
        remove(partial)
        yield partial
        if partial.is_dir():
            os.sync()  # a folder of thousands of files
            if path.is_dir():
                shutil.rmtree(path)
        else:  # which takes no folder's place
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and not (type(error) is RuntimeError and "errno" in str(error)):
            raise  # the second is HDF5, which cannot close a file on a full disk
        # HDF5 goes on to tell of its buffers in brackets.
        why = (getattr(error, "strerror", None) or str(error)).partition(" (")[0]
        raise StoreError(f"cannot write {path}: {why}; {advice}") from error
    finally:
        remove(partial)


def _partial(path: Path, process: object) -> str:
    """Name under which a process of this machine writes; another machine may have one of the same number."""
    machine = zlib.crc32(platform.node().encode())
    return f".{path.stem}-{machine:08x}-{process}{path.suffix}"


def _sweep(path: Path) -> None:
    """Removes what writers of a path have left that no longer run."""
    after = path.suffix
    before = _partial(path, "").removesuffix(after)
    for name in _hidden(path.parent.absolute()):
        number = name.removeprefix(before).removesuffix(after)
        if name == f"{before}{number}{after}" and number.isdecimal() and not _runs(int(number)):
            with contextlib.suppress(OSError):
                remove(path.with_name(name))


@functools.cache
def _hidden(folder: Path) -> tuple[str, ...]:
    # Looked up once by each process: a data set is a folder of 100,000 files, each of which is written in this way.
    try:
        return tuple(name for name in os.listdir(folder) if name.startswith("."))
    except OSError:
        return ()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # somebody else's; no number of a process
        return True
    return True


class RunFolder:
    """A folder of one run: run.yaml, metrics.jsonl, trace.json, checkpoints/, pictures.

    Args:
        path: made if missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the run folder {self.path}: {error.strerror}") from error

    @classmethod
    def new(cls, problem: str, root: str | Path = ROOT) -> "RunFolder":
        """A fresh folder root/PROBLEM-DATE-TIME."""
        base = Path(root) / f"{problem}-{time.strftime('%Y%m%d-%H%M%S')}"
        path, number = base, 1
        while True:
            try:
                path.mkdir(parents=True)
            except FileExistsError:  # another run began in the same second
                number += 1
                path = base.with_name(f"{base.name}-{number}")
            except OSError as error:
                raise StoreError(f"cannot make the run folder {path}: {error.strerror}") from error
            else:
                return cls(path)

    def tidy(self) -> None:
        """Removes what a kill left half-written; only while nobody writes."""
        for path in self.path.glob(".*"):
            if path.is_file() and path.suffix[1:].isdecimal():  # what atomic_write writes to
                path.unlink(missing_ok=True)

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "run.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def trace(self) -> Path:
        """Chrome trace events of all ranks."""
        return self.path / "trace.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    def picture(self, name: str) -> Path:
        """Where a picture goes."""
        return self.path / f"{name}.png"


class SampleStore:
    """Samples (named arrays with attributes) by key, in a zarr folder or an HDF5 file, whichever the suffix says.

    A sample is either complete or absent: what a killed process left half-written does not count and is
    written again. One writer at a time, see :meth:`locked`.

    Args:
        path: ends in .zarr, .h5 or .hdf5.
        attributes: what the whole store was made with; an existing store must have been made with the same.
    Raises:
        StoreError: the suffix is unknown, the file is damaged, or it was made differently; names what differs.
    """

    def __init__(self, path: str | Path, attributes: Mapping[str, Any], *, write: bool = False) -> None:
        self.path = Path(path)
        if self.path.suffix not in (".zarr", ".h5", ".hdf5"):
            raise StoreError(f"{self.path}: a store must end in .zarr, .h5 or .hdf5")
        wanted = {"format": _FORMAT, **json.loads(json.dumps(dict(attributes)))}
        mode = "a" if write else "r"
        self._hdf5 = self.path.suffix != ".zarr"
        try:
            if self._hdf5:
                self._root: Any = require("h5py", extra="microscopy").File(self.path, mode)
            else:
                # Format 2, which is never written here, has codecs that unpickle what they read.
                zarr = require("zarr", extra="microscopy")
                self._root = zarr.open_group(str(self.path), mode=mode, zarr_format=3)
                _end_zarr_in_peace()
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(
                f"{self.path}: cannot be opened ({error}): it is missing, damaged or no store; remove it and "
                "generate again"
            ) from error
        have = json.loads(self._root.attrs.get("made_with", "null"))
        if have is None and write:
            self._root.attrs["made_with"] = json.dumps(wanted)
        elif have != wanted:
            have = have or {}
            differing = [k for k in sorted({*have, *wanted}) if have.get(k) != wanted.get(k)]
            changes = ", ".join(f"{k}: {have.get(k)!r} there, {wanted.get(k)!r} wanted" for k in differing)
            self.close()
            raise StoreError(
                f"{self.path} was made with other parameters ({changes}): choose another path or remove it"
            )

    def close(self) -> None:
        """Closes the file."""
        if self._hdf5:
            self._root.close()

    def __enter__(self) -> "SampleStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def keys(self) -> set[str]:
        """The complete samples."""
        return {key for key in self._root if "attributes" in self._root[key].attrs}

    def write(self, key: str, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> None:
        """Adds a sample; its attributes are written last and make it complete."""
        try:
            if self._hdf5:
                self._reserve(sum(array.nbytes for array in arrays.values()) + _OVERHEAD * (1 + len(arrays)))
            if key in self._root:
                del self._root[key]
            group = self._root.create_group(key)
            for name, array in arrays.items():
                if self._hdf5:
                    group.create_dataset(name, data=array)
                else:
                    group.create_array(name, data=array, chunks=array.shape)
            group.attrs["attributes"] = json.dumps(dict(attributes))
            if self._hdf5:
                self._root.flush()
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot write sample {key!r}: {error}; free some space and run again"
            ) from error

    def _reserve(self, size: int) -> None:
        """Takes `size` bytes behind the end of an HDF5 file, or raises OSError before anything is written.

        A file that HDF5 has begun to grow and cannot is unreadable afterwards, whole samples included.
        """
        os.posix_fallocate(self._root.id.get_vfd_handle(), self._root.id.get_filesize(), size)

    def read(self, key: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A sample's arrays and attributes.

        Raises:
            StoreError: it is not there, is damaged, or holds NaN or infinity; names the file and the sample.
        """
        try:
            group = self._root[key]
            attributes = json.loads(group.attrs["attributes"])
            names = list(group.keys())
            arrays = {name: np.asarray(group[name][...]) for name in names}
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise StoreError(f"{self.path}: sample {key!r} is missing or damaged ({error}): generate again") from error
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
                raise StoreError(f"{self.path}: sample {key!r}, array {name!r} holds NaN or infinity at index {place}")
        return arrays, attributes


@functools.cache
def _end_zarr_in_peace() -> None:
    """Gives zarr's thread the time it needs to end with the process.

    Zarr waits for it for 0.2 s, and on a busy machine then prints a traceback. What it does at exit comes after this.
    """
    sync = require("zarr.core.sync", extra="microscopy")

    def end() -> None:
        loop, thread = getattr(sync, "loop", [None])[0], getattr(sync, "iothread", [None])[0]
        if loop is not None and thread is not None and thread.is_alive():
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=10)

    atexit.register(end)


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """One process at a time; the others wait. The lock ends with its process, however that ends.

    Raises:
        StoreError: nothing can be written there; or a script starts processes that run it again from its beginning:
            they would wait for ever.
    """
    import fcntl
    import multiprocessing

    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise StoreError("a script that starts processes must do so below `if __name__ == '__main__':`")

    lock = Path(path).with_name(f"{Path(path).name}.lock")
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = open(lock, "ab+")  # noqa: SIM115
        except OSError as error:
            raise StoreError(f"cannot write {lock}: {error.strerror}; choose another place") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_gone(file.fileno(), lock):
                try:
                    yield
                finally:
                    # Removed while it is held, and marked: those who wait for this very file then look for another.
                    with contextlib.suppress(OSError):
                        lock.unlink()
                        os.write(file.fileno(), _LET_GO)
                return


def _is_gone(descriptor: int, lock: Path) -> bool:
    """Whether an open lock is no longer the file of its name, and so keeps nobody out who comes later.

    On a network file system a name may still seem to be that of a file which another machine has removed: its mark
    tells, since what is in a file is read afresh once the lock is held.
    """
    try:
        mine, named = os.fstat(descriptor), os.stat(lock)
    except OSError:
        return True
    return not os.path.samestat(mine, named) or os.pread(descriptor, len(_LET_GO), 0) == _LET_GO


def cache_folder() -> Path:
    """Where data that can be made again is kept: $EXAFIELD_CACHE, or exafield in the user's cache folder."""
    given = os.environ.get("EXAFIELD_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "exafield"
