"""The run that a command applies: its question, and the checkpoint that is used. Nothing is written into its folder."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from exafield.checkpoint import CheckpointError, Checkpoints
from exafield.question import Climate, Microscopy, Subsurface
from exafield.runfile import load
from exafield.setting import RunError
from exafield.world import World

_Question = TypeVar("_Question", Microscopy, Climate, Subsurface)


def about(folder: Path, kind: type[_Question]) -> _Question:
    """The question of a run. Its folder may be another user's.

    Raises:
        RunError: there is no run, or it is about something else.
    """
    path = folder / "run.yaml"
    if not path.is_file():
        raise RunError(f"{folder} is no folder of a run: it has no run.yaml")
    question = load(path).problem
    if not isinstance(question, kind):
        raise RunError(f"{folder} is a run about {question.name}, not {kind.name}")
    return question


def newest(folder: Path, wanted: Sequence[str], step: int | None = None) -> int:
    """The step of the checkpoint that is used: the newest that is whole, or that of the step asked for.

    Unlike a training that goes on, it sets nothing aside and tidies nothing: the run may be in progress.

    Args:
        wanted: names of the players that are needed.

    Raises:
        CheckpointError: there is no such checkpoint, or none is whole.
    """
    with World.single("cpu") as world:
        checkpoints = Checkpoints(folder / "checkpoints", world)
        steps = checkpoints.steps()
        if not steps:
            raise CheckpointError(f"{folder} has no checkpoint yet: train it first, or give it --checkpoint-every")
        if step is not None:
            if step not in steps:
                raise CheckpointError(f"{folder} has no checkpoint of step {step}, but of {', '.join(map(str, steps))}")
            checkpoints.read(step, wanted)
            return step
        for last in reversed(steps):
            try:
                checkpoints.read(last, wanted)
            except CheckpointError as error:
                if last == steps[0]:
                    none = f"no checkpoint in {folder / 'checkpoints'} is whole: train again, or restore a backup"
                    raise CheckpointError(f"{error}; {none}") from error
                warnings.warn(f"{error}: taking the one before", stacklevel=2)
            else:
                return last
    raise AssertionError("the first checkpoint is whole, or has raised")


def digest(folder: Path, step: int) -> str:
    """Of a checkpoint: what tells two trainings from each other."""
    with World.single("cpu") as world:
        manifest = Checkpoints(folder / "checkpoints", world).path(step) / "manifest.json"
    return hashlib.sha256(manifest.read_bytes()).hexdigest()


def states(folder: Path, wanted: Sequence[str], step: int) -> dict[str, Mapping[str, Tensor]]:
    """Of the modules of players, by their names.

    Raises:
        CheckpointError: the checkpoint is gone or not whole.
    """
    with World.single("cpu") as world:
        shared = Checkpoints(folder / "checkpoints", world).read(step, wanted).shared
    return {name: shared[name]["model"] for name in wanted}
