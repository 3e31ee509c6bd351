"""Stores: whole or not at all, resumable, and clear about what is wrong."""

import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exafield import store
from exafield.field import Field
from exafield.store import RunFolder, SampleStore, StoreError, atomic_write, locked, whole

ABOUT = {"energy": 200e3, "crystals": "embedded"}
SUFFIXES = [".zarr", ".h5"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_samples_come_back_as_they_went_in(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4)}
    with SampleStore(path, ABOUT, write=True) as out:
        out.write("one", arrays, {"name": "Si [001]", "edges": [1.0, 2.0]})
        out.write("two", {"a": np.zeros((5, 1), dtype=np.float32)}, {})
    with SampleStore(path, ABOUT) as back:
        assert back.keys() == {"one", "two"}
        read, about = back.read("one")
        assert about == {"name": "Si [001]", "edges": [1.0, 2.0]}
        assert {k: v.dtype for k, v in read.items()} == {"a": np.float32, "b": np.float64}
        np.testing.assert_array_equal(read["a"], arrays["a"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_half_written_sample_does_not_count_and_is_written_again(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"data{suffix}"
    with SampleStore(path, ABOUT, write=True) as out:
        out.write("whole", {"a": np.ones(3)}, {})
        monkeypatch.setattr(store.json, "dumps", _interrupted(json.dumps, "half"))
        with pytest.raises(KeyboardInterrupt):
            out.write("half", {"a": np.ones(3)}, {"name": "half"})
        monkeypatch.undo()
    with SampleStore(path, ABOUT, write=True) as again:
        assert again.keys() == {"whole"}
        again.write("half", {"a": np.full(3, 2.0)}, {})
        assert again.keys() == {"whole", "half"}
        assert again.read("half")[0]["a"].tolist() == [2.0] * 3


def _interrupted(real: Any, trigger: str) -> Any:
    """Ends the process, so to speak, between a sample's arrays and its attributes."""

    def dumps(value: Any, **kwargs: Any) -> str:
        if isinstance(value, dict) and value.get("name") == trigger:
            raise KeyboardInterrupt
        text: str = real(value, **kwargs)
        return text

    return dumps


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_parameters_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    SampleStore(path, ABOUT, write=True).close()
    with pytest.raises(StoreError, match=r"energy: 200000.0 there, 300000.0 wanted"):
        SampleStore(path, {**ABOUT, "energy": 300e3}, write=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_named_with_file_sample_and_index(tmp_path: Path, suffix: str, value: float) -> None:
    path = tmp_path / f"data{suffix}"
    bad = np.zeros((2, 3))
    bad[1, 2] = value
    with SampleStore(path, ABOUT, write=True) as out:
        out.write("si", {"patterns": bad}, {})
        with pytest.raises(StoreError, match=rf"data{suffix}: sample 'si', array 'patterns'.*\(1, 2\)"):
            out.read("si")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_and_missing_stores_say_what_to_do(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(StoreError, match="missing, damaged or no store"):
        SampleStore(tmp_path / f"none{suffix}", ABOUT)
    path = tmp_path / f"data{suffix}"
    with SampleStore(path, ABOUT, write=True) as out:
        out.write("si", {"a": np.random.default_rng(0).normal(size=(64, 64))}, {})
    if suffix == ".h5":
        path.write_bytes(path.read_bytes()[:700])
        with pytest.raises(StoreError, match="damaged"):
            SampleStore(path, ABOUT)
    else:
        chunk = next(p for p in (path / "si" / "a").rglob("*") if p.is_file() and "c" in p.parts)
        chunk.write_bytes(chunk.read_bytes()[:100])
        with SampleStore(path, ABOUT) as back, pytest.raises(StoreError, match="'si' is missing or damaged"):
            back.read("si")


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"must end in \.zarr"):
        SampleStore(tmp_path / "data.npz", ABOUT, write=True)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.yaml"
    atomic_write(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .*run.yaml: No space left on device; free some space"):
        atomic_write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"


LIMITED = """
import resource, signal, sys
import numpy as np
from exafield.store import SampleStore, StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
noise = np.random.default_rng(0).normal
with SampleStore(sys.argv[1], {}, write=True) as out:
    out.write("small", {"a": noise(size=100)}, {})
    out.write("other", {"a": noise(size=100)}, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        out.write("large", {"a": noise(size=100_000)}, {})
    except StoreError as error:
        print(error)
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_sample_that_does_not_fit_leaves_the_others(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    call = [sys.executable, "-c", LIMITED, str(path)]
    said = subprocess.run(call, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "cannot write sample 'large'" in said
    assert "free some space and run again" in said
    with SampleStore(path, {}, write=True) as again:
        assert again.keys() == {"small", "other"}
        assert again.read("small")[0]["a"].shape == (100,)
        again.write("large", {"a": np.ones(100_000)}, {})
        assert again.read("large")[0]["a"].sum() == 100_000


ENDLESS = """
import itertools, sys
import numpy as np
from exafield.store import SampleStore
with SampleStore(sys.argv[1], {}, write=True) as out:
    for number in itertools.count():
        out.write(f"{number}", {"a": np.full(20_000, number)}, {})
        print(number, flush=True)
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_killed_writer_loses_no_complete_sample(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    with subprocess.Popen([sys.executable, "-c", ENDLESS, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        while int(writer.stdout.readline()) < 5:
            pass
        writer.kill()
        said = [int(line) for line in writer.stdout.read().split()]
    last = max(said, default=5)
    with SampleStore(path, {}, write=True) as again:
        assert {str(n) for n in range(last + 1)} <= again.keys()
        for number in range(last + 1):
            assert (again.read(str(number))[0]["a"] == number).all()
        again.write("new", {"a": np.ones(2)}, {})


def test_run_folders_never_share_a_name(tmp_path: Path) -> None:
    folders = [RunFolder.new("microscopy", tmp_path) for _ in range(3)]
    assert len({f.path for f in folders}) == 3
    assert all(f.checkpoints.is_dir() for f in folders)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot make the run folder"):
        RunFolder(tmp_path / "file")


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    import fcntl

    with locked(tmp_path / "data.zarr"), open(tmp_path / "data.zarr.lock") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "data.zarr"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_lock_that_goes_keeps_out_those_who_come_and_those_who_wait(tmp_path: Path) -> None:
    counter, inside = tmp_path / "counter", []
    counter.write_text("0")

    def count(_: int) -> None:
        for _ in range(40):
            with locked(counter):
                inside.append(1)
                assert len(inside) == 1
                number = int(counter.read_text())
                counter.write_text(str(number + 1))
                inside.pop()

    with ThreadPoolExecutor(8) as pool:  # each opens the lock anew, as processes do
        list(pool.map(count, range(8)))
    assert counter.read_text() == "320"
    assert list(tmp_path.iterdir()) == [counter]


def test_a_lock_that_seems_to_be_there_is_known_by_its_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system, which remembers a name that another machine has removed."""
    lock = tmp_path / "a.lock"
    lock.write_bytes(b"let go")
    looked: list[int] = []

    def remembered(one: os.stat_result, other: os.stat_result) -> bool:
        if not looked:
            lock.unlink()
        looked.append(one.st_size)
        return True

    monkeypatch.setattr(os.path, "samestat", remembered)
    with locked(tmp_path / "a"):
        assert looked == [6, 0]


def test_fields_normalise_and_restore() -> None:
    field = Field("temperature", ("x",), "K", offset=273.0, scale=10.0)
    values = torch.tensor([263.0, 273.0, 303.0])
    assert field.normalise(values).tolist() == [-1.0, 0.0, 3.0]
    torch.testing.assert_close(field.restore(field.normalise(values)), values)
    with pytest.raises(ValueError, match="scale must be above 0"):
        Field("t", ("x",), "K", scale=0.0)
    with pytest.raises(ValueError, match="dims must differ"):
        Field("t", ("x", "x"), "K")


@pytest.mark.parametrize("name", ["a.csv", "a.zarr"])
def test_what_goes_wrong_leaves_the_old_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / name

    def write(text: str) -> None:
        with whole(path, "try later") as part:
            if path.suffix == ".zarr":
                part.mkdir()
                (part / "inside").write_text(text)
            else:
                part.write_text(text)
            if text == "bad":
                raise OSError(errno.ENOSPC, "No space left on device")

    def read() -> str:
        return (path / "inside" if path.suffix == ".zarr" else path).read_text()

    for text in ("old", "new"):
        write(text)
        assert read() == text
    with pytest.raises(StoreError, match=rf"cannot write .*{name}: No space left on device; try later"):
        write("bad")
    assert read() == "new"
    kill = whole(path)
    kill.__enter__().write_text("half")
    assert not kill.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert read() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.csv", "a[1].zarr", "a"])
def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    script = f"""
import os, signal
from exafield.store import whole
with whole({str(path)!r}) as part:
    {"part.mkdir()" if path.suffix == ".zarr" else "part.touch()"}
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    before = left.name.removesuffix(path.suffix).rstrip("0123456789")
    # Of a writer that runs, of another machine, of another target, and none of anybody's.
    others = [f"{before}{os.getppid()}{path.suffix}", f".{path.stem}-00000000-1{path.suffix}"]
    others += [left.name.replace("a", "b", 1), f"{left.name}.more", f"{before}x{path.suffix}"]
    for other in others:
        (tmp_path / other).touch()
    with whole(path) as part:
        part.touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, *others])


def test_a_file_takes_no_folders_place_and_nothing_none(tmp_path: Path) -> None:
    """A user's folder may have the name by mistake."""
    folder = tmp_path / "pictures.png"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="Is a directory"), whole(folder) as part:
        part.write_text("picture")
    with pytest.raises(StoreError, match="No such file"), whole(folder):
        pass
    assert (folder / "mine.txt").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [folder]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a.json", b"new")
    assert not list(tmp_path.iterdir())
