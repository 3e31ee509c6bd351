"""The command `apply`: what a training has learnt, used on data that it never saw."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from exafield.checkpoint import CheckpointError, Checkpoints
from exafield.climate.flags import Reading, as_flags
from exafield.climate.snapshot import SnapshotError
from exafield.engine import map_engine
from exafield.question import Climate
from exafield.runfile import load
from exafield.setting import RunError
from exafield.store import RunFolder
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
    engine: str = "processes"
    engine_address: str | None = None
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True)
class TrainedSegmenter:
    """Gives the network of a climate run, on any worker that sees its folder.

    Args:
        folder: of the run, absolute.
        step: of the checkpoint.
    """

    folder: str
    step: int

    def __call__(self) -> "Segmenter":
        """The network.

        Raises:
            CheckpointError: the checkpoint is gone or not whole.
        """
        from exafield.climate.assembly import segmenter

        folder = RunFolder(self.folder)
        question = load(folder.config).problem
        assert isinstance(question, Climate)
        with World.single("cpu") as world:
            loaded = Checkpoints(folder.checkpoints, world).read(self.step, ["network"])
        return segmenter(question, loaded.shared["network"]["model"])

    @property
    def digest(self) -> str:
        """Of the checkpoint: what tells two trainings from each other."""
        with World.single("cpu") as world:
            path = Checkpoints(RunFolder(self.folder).checkpoints, world).path(self.step)
        return hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()


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
    trained = TrainedSegmenter(str(arguments.run.absolute()), newest(arguments.run, Climate.name, arguments.step))
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
    except SnapshotError as error:
        raise SnapshotError(as_flags(str(error))) from error
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise RunError(as_flags(str(error))) from error
    print("\n".join(summary.lines()))
    return 0


def newest(folder: Path, problem: str, step: int | None) -> int:
    """The step of the checkpoint that is used.

    Raises:
        RunError: the folder holds no run about this problem.
        CheckpointError: it has no checkpoint, or not that of the step.
    """
    run = load(RunFolder(folder).config)
    if run.problem.name != problem:
        raise RunError(f"{folder} is a run about {run.problem.name}, not {problem}")
    with World.single("cpu") as world:
        checkpoints = Checkpoints(RunFolder(folder).checkpoints, world)
        steps = checkpoints.steps()
        if not steps:
            raise CheckpointError(f"{folder} has no checkpoint yet: train it first, or give it --checkpoint-every")
        if step is None:
            loaded = checkpoints.load(["network"])  # a damaged one is set aside, and the one before taken
            assert loaded is not None
            return loaded.step
    if step not in steps:
        raise CheckpointError(f"{folder} has no checkpoint of step {step}, but of {', '.join(map(str, steps))}")
    return step
