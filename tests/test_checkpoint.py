"""Checkpoints: whole or not there, the one before never lost, nothing ever unpickled, all ranks of one mind."""

import errno
import json
import os
import pickle
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import exafield.checkpoint
from exafield.checkpoint import CheckpointError, Checkpoints
from exafield.world import World
from ranks import run_ranks


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", World.single(), keep=3)


def save(checkpoints: Checkpoints, step: int) -> Path:
    net = {"weight": torch.full((4, 5), float(step)), "steps": step}
    return checkpoints.save(step, {"net": net}, {"position": step}, {"elapsed": 0.5})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back(checkpoints: Checkpoints) -> None:
    assert checkpoints.load(["net"]) is None
    path = save(checkpoints, 7)
    assert names(checkpoints.folder) == ["step-00000007"]
    assert names(path) == ["manifest.json", "net.safetensors", "rank.00000.safetensors"]
    loaded = checkpoints.load(["net"], {"elapsed": 0.5})
    assert loaded is not None
    assert (loaded.step, loaded.about, loaded.mine) == (7, {"elapsed": 0.5}, {"position": 7})
    assert torch.equal(loaded.shared["net"]["weight"], torch.full((4, 5), 7.0))
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"], manifest["ranks"]) == ("exafield-checkpoint", 1, 1)
    # Weights can be opened by anything that reads safetensors.
    assert set(safetensors.torch.load_file(path / "net.safetensors")) == {"weight"}


def test_the_newest_are_kept(checkpoints: Checkpoints) -> None:
    for step in (10, 20, 30, 40, 50):
        save(checkpoints, step)
    assert checkpoints.steps() == [30, 40, 50]
    # A run that starts anew in a used folder keeps its own, and does not take the others away.
    save(checkpoints, 5)
    assert checkpoints.steps() == [5, 30, 40, 50]


def test_a_step_can_be_saved_again(checkpoints: Checkpoints) -> None:
    save(checkpoints, 10)
    checkpoints.save(10, {"net": {"new": 1}}, {}, {})
    loaded = checkpoints.load(["net"])
    assert loaded is not None
    assert loaded.shared == {"net": {"new": 1}}
    assert names(checkpoints.folder) == ["step-00000010"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "truncated weights": ("net.safetensors", cut, "net.safetensors is missing or cut short"),
    "missing rank file": ("rank.00000.safetensors", Path.unlink, "rank.00000.safetensors is missing"),
    "flipped bit in weights": ("net.safetensors", flip, "checksum of net.safetensors"),
    "flipped bit in rank file": ("rank.00000.safetensors", flip, "checksum of rank.00000.safetensors"),
    "truncated manifest": ("manifest.json", cut, "manifest.json cannot be read"),
    "missing manifest": ("manifest.json", Path.unlink, "manifest.json cannot be read"),
    "empty manifest": ("manifest.json", lambda p: p.write_bytes(b"{}"), "manifest.json cannot be read"),
    "other manifest": ("manifest.json", lambda p: p.write_bytes(b"[1]"), "manifest.json cannot be read"),
    "edited manifest": (
        "manifest.json",
        lambda p: p.write_text(p.read_text().replace('"elapsed": 0.5', '"elapsed": 0.6')),
        "checksum of manifest.json",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_of_a_damaged_one_the_one_before_is_taken(checkpoints: Checkpoints, kind: str) -> None:
    name, damage, message = DAMAGES[kind]
    save(checkpoints, 10)
    damage(save(checkpoints, 20) / name)
    with pytest.warns(UserWarning, match=rf"step-00000020 is damaged \(.*{message}.*taking the one before"):
        loaded = checkpoints.load(["net"])
    assert loaded is not None
    assert loaded.step == 10
    # It is set aside, so that it is neither found again nor lost, nor in the way of a new one.
    assert names(checkpoints.folder)[0].startswith("damaged-step-00000020-")
    save(checkpoints, 20)
    loaded = checkpoints.load(["net"])
    assert loaded is not None
    assert loaded.step == 20


def test_when_none_is_whole(checkpoints: Checkpoints) -> None:
    cut(save(checkpoints, 10) / "net.safetensors")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(CheckpointError, match="start anew in another"):
        checkpoints.load(["net"])


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def test_a_pickle_executes_nothing(checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(checkpoints, 10)
    # The manifest vouches for it: size and checksum are right.
    monkeypatch.setattr("exafield.checkpoint.pack", lambda _: pickle.dumps(Bomb(str(tmp_path / "boom"))))
    save(checkpoints, 20)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="does not hold a state"):
        loaded = checkpoints.load(["net"])
    assert loaded is not None
    assert loaded.step == 10
    assert not (tmp_path / "boom").exists()


def test_a_newer_format_is_refused_not_passed_over(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    save(checkpoints, 10)
    monkeypatch.setattr("exafield.checkpoint.VERSION", 2)
    save(checkpoints, 20)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"step-00000020 cannot be used: it has format 2.*update exafield"):
        checkpoints.load(["net"])


def test_what_must_agree(checkpoints: Checkpoints) -> None:
    save(checkpoints, 10)
    with pytest.raises(CheckpointError, match=r"its elapsed are 0.5 and this run's 0.75"):
        checkpoints.load(["net"], {"elapsed": 0.75})


def test_on_another_number_of_ranks_all_read_rank_0(checkpoints: Checkpoints) -> None:
    save(checkpoints, 10)
    loaded = Checkpoints(checkpoints.folder, World.fake(2)).load(["net"])
    assert loaded is not None
    assert (loaded.ranks, loaded.mine) == (1, {"position": 10})


def test_state_that_cannot_be_saved_is_named(checkpoints: Checkpoints) -> None:
    save(checkpoints, 10)
    with pytest.raises(CheckpointError, match=r"net.safetensors: a/1 is a set, which cannot be saved"):
        checkpoints.save(20, {"net": {"a": [1, {2}]}}, {}, {})
    with pytest.raises(CheckpointError, match="no good"):
        checkpoints.save(20, {}, {}, {}, refusal="no good")
    assert names(checkpoints.folder) == ["step-00000010"]
    with pytest.raises(ValueError, match="keep must be 1"):
        Checkpoints(checkpoints.folder, World.single(), keep=0)


# ---- accidents while writing ----


class Killed(BaseException):
    """Stands for the end of the process: no clean-up code may be relied upon."""


POINTS = ["mkdir", "write 1", "write 2", "write 3", "sync 1", "rename 1", "rename 2", "sync 2", "rmtree"]


def stop_at(monkeypatch: pytest.MonkeyPatch, point: str, error: BaseException) -> None:
    """Makes the n-th call of one of the steps of writing fail, and everything after it."""
    kind, _, number = point.partition(" ")
    calls: dict[str, int] = {}
    dead = [False]

    def guarded(name: str, act: Callable[..., Any], half: bool = False) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            if dead[0] and isinstance(error, Killed):
                raise error
            if name == kind and calls[name] == int(number or 1):
                dead[0] = True
                if half:
                    args[0].write_bytes(args[1][: len(args[1]) // 2])
                raise error
            return act(*args, **kwargs)

        return call

    module = exafield.checkpoint
    monkeypatch.setattr(Path, "mkdir", guarded("mkdir", Path.mkdir))
    monkeypatch.setattr(module, "_write", guarded("write", module._write, half=True))
    monkeypatch.setattr(module, "_sync_folder", guarded("sync", module._sync_folder))
    monkeypatch.setattr(module.os, "rename", guarded("rename", os.rename))
    monkeypatch.setattr(module.shutil, "rmtree", guarded("rmtree", module.shutil.rmtree))


@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step"])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_costs_nothing(tmp_path: Path, point: str, again: bool) -> None:
    """Also with a single checkpoint kept, and when it is being replaced."""
    checkpoints = Checkpoints(tmp_path / "c", World.single(), keep=1)
    save(checkpoints, 10)
    step = 10 if again else 20
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, point, Killed())
        try:
            checkpoints.save(step, {"net": {"weight": torch.ones(3)}}, {}, {})
            killed = False
        except Killed:
            killed = True
    assert killed or point == "rename 2"  # a new step is renamed once
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing half-written is even looked at
        loaded = checkpoints.load(["net"])
    assert loaded is not None
    weight = loaded.shared["net"]["weight"]
    old = torch.equal(weight, torch.full((4, 5), 10.0))
    assert old or torch.equal(weight, torch.ones(3))
    if point.startswith(("mkdir", "write")):
        assert old
    save(checkpoints, 30)
    assert names(checkpoints.folder) == ["step-00000030"]


@pytest.mark.parametrize("point", [point for point in POINTS if point not in ("rename 2", "rmtree")])
def test_a_full_disk_at_any_point(checkpoints: Checkpoints, point: str) -> None:
    save(checkpoints, 10)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, point, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(
            CheckpointError,
            match=r"step-00000020 could not be written: .*No space left on device: free space there or choose a run "
            r"folder elsewhere; the checkpoint of step 10 is untouched \(rank 0\)",
        ):
            save(checkpoints, 20)
    if point != "sync 2":  # by then the new one is there
        assert names(checkpoints.folder) == ["step-00000010"]
    loaded = checkpoints.load(["net"])
    assert loaded is not None
    save(checkpoints, 20)
    assert checkpoints.steps() == [10, 20]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file.*(Not a directory|File exists).*choose a run folder elsewhere"):
        save(Checkpoints(tmp_path / "file" / "checkpoints", World.single()), 10)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Any:
    """A real file system of 256 KiB, where this process may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(tiny_disk: Path) -> None:
    checkpoints = Checkpoints(tiny_disk, World.single())

    def big(step: int) -> Path:
        return checkpoints.save(step, {"net": {"weight": torch.full((35_000,), float(step))}}, {}, {})

    big(10)
    with pytest.raises(CheckpointError, match=r"net\.safetensors: No space left.*free space.*step 10 is untouched"):
        big(20)
    assert names(tiny_disk) == ["step-00000010"]
    loaded = checkpoints.load(["net"])
    assert loaded is not None
    assert float(loaded.shared["net"]["weight"][-1]) == 10.0


# ---- several ranks ----


def two_ranks(world: World, folder: str) -> None:
    """What goes wrong on one rank is raised on both, and nothing hangs."""
    checkpoints = Checkpoints(folder, world)

    def put(step: int) -> None:
        owned = {"net": {"w": torch.tensor(float(step))}} if world.rank == 0 else {}
        checkpoints.save(step, owned, {"rank": world.rank}, {})

    put(10)
    write = exafield.checkpoint._write
    for bad in range(2):
        if world.rank == bad:

            def full(path: Path, data: bytes) -> None:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))

            exafield.checkpoint._write = full
        try:
            put(20)
            raise AssertionError("a full disk went unnoticed")
        except CheckpointError as error:
            print(f"REFUSED {bad} {error}")
        exafield.checkpoint._write = write
    put(20)
    if world.rank == 0:
        path = checkpoints.path(20) / "rank.00001.safetensors"
        path.write_bytes(path.read_bytes()[::-1])
    world.barrier()
    loaded = checkpoints.load(["net"])
    assert loaded is not None
    assert loaded.mine == {"rank": world.rank}
    print("TOOK", loaded.step)
    try:
        checkpoints.load(["net"], {"lucky": world.rank} if world.rank else {})
    except CheckpointError as error:
        print(f"DIFFERS {error}")


def test_all_ranks_are_of_one_mind(tmp_path: Path) -> None:
    said = run_ranks(2, two_ranks, str(tmp_path / "c"))
    texts = [[line for line in text.splitlines() if line.split()[0] in ("REFUSED", "TOOK", "DIFFERS")] for text in said]
    assert texts[0] == texts[1]
    first, second, took, differs = texts[0]
    assert "net.safetensors: No space left on device: free space" in first
    assert "(rank 0)" in first
    assert "rank.00001.safetensors: No space left on device: free space" in second
    assert "the checkpoint of step 10 is untouched (rank 1)" in second
    assert took == "TOOK 10"
    assert "(rank 1)" in differs
    assert "checksum of rank.00001.safetensors" in said[0]
    assert "damaged" not in said[1]  # one rank warns
