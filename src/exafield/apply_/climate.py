"""The command `apply`: what a training has learnt, used on data that it never saw."""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
import tyro

from exafield.checkpoint import CheckpointError, Checkpoints
from exafield.climate.flags import Reading, as_flags
from exafield.engine import map_engine
from exafield.question import Climate, Microscopy
from exafield.runfile import load
from exafield.setting import RunError
from exafield.suggestion import unknown
from exafield.world import World

if TYPE_CHECKING:
    from exafield.climate.segmenter import Segmenter

HELP = """\
usage: exafield apply PROBLEM RUN ... [OPTIONS]

  exafield apply climate RUN FILES... --out MASKS    masks of cyclones and atmospheric rivers in files of snapshots

exafield apply climate --help says more.
"""


@dataclass(frozen=True)
class ApplyClimate:
    """Marks tropical cyclones and atmospheric rivers in files of snapshots, by a network that was trained.

    Stopped, it goes on where it was when called again. MASKS is there when it is complete, never in part.

    Args:
        run: folder of a training.
        files: NetCDF, HDF5 or Zarr of any grid; folders, or patterns with * and ?.
        out: masks that are written, as CF: .nc or .zarr.
        step: of the checkpoint. None: the newest.
        tile: rows and columns that are computed at a time, where memory does not hold a whole grid. None: the grid.
        overlap: pixels that a tile reaches beyond what is kept of it.
        on_error: whether a file or snapshot that cannot be read ends the run, or is left out, named and counted.
        device: that every worker computes on; with cuda they share its GPU, so that few of them are enough.
        engine: what runs it: processes (all cores), or another that maps, see exafield taskbench engines.
        engine_address: of a cluster of that system that is up already. None: it is started here.
        reading: how fields are read.
    """

    run: tyro.conf.Positional[Path]
    files: tyro.conf.Positional[tuple[str, ...]]
    out: Path
    step: int | None = None
    tile: tuple[int, int] | None = None
    overlap: int = 64
    on_error: Literal["stop", "skip"] = "stop"
    device: Literal["cpu", "cuda"] = "cpu"
    engine: str = "processes"
    engine_address: str | None = None
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True)
class TrainedSegmenter:
    """Gives the network of a climate run, on any worker that sees its folder.

    Args:
        folder: of the run, absolute.
        step: of the checkpoint.
        digest: of the checkpoint: what tells two trainings from each other, also to workers that outlive one.
        device: where it computes.
    """

    folder: str
    step: int
    digest: str
    device: str = "cpu"

    @classmethod
    def of(cls, folder: Path, step: int, device: str = "cpu") -> "TrainedSegmenter":
        """That of a checkpoint which is there."""
        with World.single("cpu") as world:
            manifest = Checkpoints(folder / "checkpoints", world).path(step) / "manifest.json"
        return cls(str(folder.absolute()), step, hashlib.sha256(manifest.read_bytes()).hexdigest(), device)

    def __call__(self) -> "Segmenter":
        """The network.

        Raises:
            CheckpointError: the checkpoint is gone or not whole, or the settings beside it are not its own.
        """
        from exafield.climate.assembly import segmenter

        question = about(Path(self.folder), Climate)
        with World.single("cpu") as world:
            checkpoints = Checkpoints(Path(self.folder) / "checkpoints", world)
            state = checkpoints.read(self.step, ["network"]).shared["network"]["model"]
        try:
            return segmenter(question, state).to(self.device)
        except ValueError as error:
            raise CheckpointError(
                f"{checkpoints.path(self.step)} does not fit {Path(self.folder) / 'run.yaml'}: {error}; was run.yaml "
                "changed after the training?"
            ) from error


def main(argv: Sequence[str], parsed: Callable[..., Any]) -> int:
    """Carries out the command.

    Args:
        argv: its arguments.
        parsed: parses them into a class.
    Raises:
        RunError: something in the arguments is wrong.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if argv else 2
    if argv[0] != Climate.name:
        raise RunError(unknown("problem to apply", argv[0], [Climate.name]))
    return _climate(parsed(ApplyClimate, "apply climate", list(argv[1:])))


def _climate(arguments: ApplyClimate) -> int:
    about(arguments.run, Climate)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: torch sees no GPU here")
    trained = TrainedSegmenter.of(arguments.run, newest(arguments.run, arguments.step), arguments.device)
    from exafield.climate.apply import apply

    try:
        summary = apply(
            list(arguments.files),
            arguments.out,
            trained,
            engine=map_engine(arguments.engine, arguments.engine_address),
            tile=arguments.tile,
            overlap=arguments.overlap,
            how=arguments.reading.how(),
            made_with={"checkpoint": trained.digest},
            on_error=arguments.on_error,
            say=lambda text: print(text, flush=True),
        )
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise RunError(as_flags(str(error))) from error
    print("\n".join(summary.lines()))
    return 0


_Question = TypeVar("_Question", Microscopy, Climate)


def about(folder: Path, kind: type[_Question]) -> _Question:
    """The question of a run. Nothing is written into its folder: it may be another user's.

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


def newest(folder: Path, step: int | None = None) -> int:
    """The step of the checkpoint that is used: the newest that is whole, or that of the step asked for.

    Unlike a training that goes on, it sets nothing aside and tidies nothing: the run may be in progress.

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
            checkpoints.read(step, ["network"])
            return step
        for last in reversed(steps):
            try:
                checkpoints.read(last, ["network"])
            except CheckpointError as error:
                warnings.warn(f"{error}: taking the one before", stacklevel=2)
            else:
                return last
    raise CheckpointError(f"no checkpoint in {folder / 'checkpoints'} is whole: train again, or restore a backup")
