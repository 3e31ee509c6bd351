"""`apply climate`: masks of storms in files of snapshots."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import tyro

from exafield.apply import run
from exafield.checkpoint import CheckpointError
from exafield.climate.advice import as_flags
from exafield.climate.flags import Reading
from exafield.engine import map_engine
from exafield.question import Climate
from exafield.setting import RunError

if TYPE_CHECKING:
    from exafield.climate.segmenter import Segmenter

#: The player whose module is used.
NETWORK = ("network",)


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
        return cls(str(folder.absolute()), step, run.digest(folder, step), device)

    def __call__(self) -> "Segmenter":
        """The network.

        Raises:
            CheckpointError: the checkpoint is gone or not whole, or the settings beside it are not its own.
        """
        from exafield.climate.assembly import segmenter

        folder = Path(self.folder)
        question, states = run.about(folder, Climate), run.states(folder, NETWORK, self.step)
        try:
            return segmenter(question, *states.values()).to(self.device)
        except ValueError as error:
            raise CheckpointError(
                f"the checkpoint of step {self.step} in {folder} does not fit its run.yaml: {error}; was run.yaml "
                "changed after the training?"
            ) from error


def mark(arguments: ApplyClimate) -> int:
    """Carries out the command.

    Raises:
        RunError: something in the arguments is wrong.
        SnapshotError, CheckpointError, StoreError, EngineError: files, checkpoint, masks or engine fail.
    """
    run.about(arguments.run, Climate)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise RunError(
            "--device cuda: torch sees no GPU here: leave it out to compute on the processor, or ask exafield doctor "
            "whether this torch is made for GPUs"
        )
    trained = TrainedSegmenter.of(arguments.run, run.newest(arguments.run, NETWORK, arguments.step), arguments.device)
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
