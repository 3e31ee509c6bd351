"""The run folder of a job: made, gone on with, and taken away again where nothing was learnt."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from exafield import __version__, assembly, runfile
from exafield.checkpoint import Checkpoints
from exafield.run import Run, RunError
from exafield.store import ROOT, RunFolder, StoreError, atomic_write
from exafield.trainer import Trainer
from exafield.world import World


def open_folder(run: Run, resume: Path | None, world: World) -> RunFolder:
    """The run's folder, the same on all ranks. Rank 0 makes it, and writes the settings into it.

    Raises:
        RunError: on all ranks: it cannot be made, or holds another run; or what is to be gone on with has learnt what
            these settings cannot use.
    """
    said: dict[str, str] = {}
    if world.rank == 0:
        try:
            whole = assembly.complete(run)
            made = _made(whole, resume)
            said["path"] = str(made.path.absolute())
            atomic_write(made.config, runfile.write(whole, __version__).encode())
        except (StoreError, RunError) as error:
            said["error"] = str(error)
    said = world.broadcast_object(said)
    if "error" in said:
        raise RunError(said["error"])
    return RunFolder(said["path"])


def _made(run: Run, resume: Path | None) -> RunFolder:
    if resume is not None:
        _check(run, resume)
        folder = RunFolder(resume)
        folder.tidy()
        (folder.path / "result.json").unlink(missing_ok=True)  # it tells of a run that is complete
        return folder
    if run.record.folder is None:
        return RunFolder.new(run.problem.name)
    folder = RunFolder(run.record.folder)
    if folder.config.exists():
        raise RunError(
            f"{folder.path} holds a run already: go on with it (--resume {folder.path}), or choose another folder"
        )
    return folder


def _check(run: Run, resume: Path) -> None:
    """Raises RunError if complete settings are not those of what was learnt in a run folder."""
    before = runfile.load(resume / "run.yaml").problem
    if before.name != run.problem.name:
        raise RunError(f"--resume {resume}: that run is about {before.name}, not {run.problem.name}")
    subject = assembly.subject(before)
    now = subject.learnt(run.problem)
    for name, then in subject.learnt(before).items():
        if now[name] != then:
            raise RunError(
                f"--resume {resume}: {name} is now {now[name]}, and what was learnt there is for {then}: leave out "
                f"--{name}, or begin a new run"
            )


def content(folder: Path | str | None) -> set[str] | None:
    """Names in a folder; None if there is none."""
    return set(os.listdir(folder)) if folder is not None and os.path.isdir(folder) else None


@contextmanager
def kept_if_trained(folder: RunFolder, before: set[str] | None, world: World) -> Iterator[list[Trainer]]:
    """Takes away what a run has put into its folder if it ends with an error before its first step.

    Args:
        folder: goes, too, if it is new.
        before: what was in it before; None if it is new.
        world: rank 0 of it does so.
    Yields:
        takes the trainer, once there is one.
    """
    trainers: list[Trainer] = []
    try:
        yield trainers
    except BaseException as error:
        steps = max((trainer.steps for trainer in trainers), default=0)
        if not steps and not world.rank:
            _take_away(folder.path, before)
        if steps and isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(_left(folder, steps, world)) from error
        raise


def _left(folder: RunFolder, steps: int, world: World) -> str:
    """What is left of a run that was interrupted."""
    kept = Checkpoints(folder.path / "checkpoints", world).steps()
    if kept:
        return f"interrupted at step {steps}; its last checkpoint is of step {kept[-1]}: --resume {folder.path}"
    return (
        f"interrupted at step {steps}, with no checkpoint to go on from: --checkpoint-every N writes some, and kill "
        "-TERM ends a training with one"
    )


def _take_away(folder: Path, before: set[str] | None) -> None:
    with suppress(OSError):  # the error that ended the run is what matters
        for path in folder.iterdir():
            if before is None or path.name not in before:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if before is None:
            folder.rmdir()
            if folder.parent.name == ROOT:
                folder.parent.rmdir()  # unless there is another run in it
