"""Subject: what a study is about, found by name: a run, a problem of this package, or a table of layers."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

from exafield.provenance import sessions
from exafield.question import QUESTIONS
from exafield.run import Reduction, Run, laptop
from exafield.runfile import load
from exafield.scaling.step import Step, StepError
from exafield.setting import RunError
from exafield.store import ROOT, RunFolder
from exafield.suggestion import unknown

# Steps that are trained where there is no run to look at: the first ones are slower, and are left out. Our choice.
_STEPS = 12


@dataclass(frozen=True)
class Subject:
    """A training step, and where it is from.

    Args:
        step: as it was measured, or counted.
        source: in words.
        reduction: of the run it was measured in; that of a run by default where there is none.
        ranks: that shared a node when it was measured.
        in_memory: whether nothing is read while it trains.
    """

    step: Step
    source: str
    reduction: Reduction
    ranks: int = 1
    in_memory: bool = False


def tables() -> dict[str, Path]:
    """The tables of layers that come with the package, by name."""
    folder = Path(str(resources.files("exafield.scaling"))) / "layers"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def find(name: str, say: Callable[[str], None], noise: float = 0.25) -> Subject:
    """The subject of a name: microscopy, climate, subsurface; a run folder; a table of layers, or a file of one.

    For a problem the newest run under runs/ is taken that has a trace; where there is none, a few steps are trained.

    Args:
        say: prints a line, where that is done.
        noise: see :meth:`exafield.scaling.step.Step.from_trace`.
    Raises:
        RunError: there is no such thing.
        StepError: a trace or a table cannot be used; says why.
    """
    path = Path(name)
    if name in QUESTIONS:
        run = _newest(name)
        return _rehearsed(name, say, noise) if run is None else _of_run(run, f"the newest run of {name}, {run}", noise)
    if path.is_dir():
        return _of_run(path, f"the run {path}", noise)
    known = tables()
    if name in known or path.suffix == ".json":
        step = Step.load(known.get(name, path))
        return Subject(step, f"the table of layers {name}", Reduction())
    if os.sep in name:
        raise RunError(f"{name}: there is no such run folder")
    raise RunError(unknown("problem, run folder or table of layers", name, [*QUESTIONS, *known]))


def _newest(problem: str) -> Path | None:
    """The run folder of a problem whose trace is the youngest."""
    traces = sorted(Path(ROOT).glob("*/trace.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for trace in traces:
        try:
            if load(trace.parent / "run.yaml").problem.name == problem:
                return trace.parent
        except RunError:  # of another version, or no run at all
            continue
    return None


def _of_run(folder: Path, source: str, noise: float) -> Subject:
    """A run's step, if its trace is of what was trained there."""
    step = Step.from_trace(folder, noise=noise)
    trained = _trained(folder)
    for layer in step.layers if trained else ():
        name = layer.info.name.partition(" #")[0]
        if not any(name == known or name.endswith(f".{known}") for known in trained):
            raise StepError(
                f"{folder / 'trace.json'} is of another model: its gradient {name!r} is of nothing that the checkpoint "
                "beside it holds; give the folder of the run that was traced"
            )
    try:
        last = sessions(folder / "provenance.json")[-1]
        ranks = max(1, int(last["ranks"]) // max(1, int(last["nodes"])))
    except (ValueError, KeyError, IndexError, TypeError):  # it is not there, or damaged: then nothing is known of them
        ranks = 1
    run = load(folder / "run.yaml")
    return Subject(replace(step, name=run.problem.name), source, run.reduction, ranks, run.problem.in_memory)


def _trained(folder: Path) -> set[str]:
    """Names of the tensors of all modules in the newest checkpoint, whole or not; none if there is no checkpoint.

    They stand in the head of a safetensors file: its length in 8 bytes, then JSON.
    """
    names = set[str]()
    steps = sorted((folder / "checkpoints").glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    for path in steps[-1].parent.glob("*.safetensors") if steps else ():
        try:
            with path.open("rb") as file:
                head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        except (OSError, ValueError):
            continue
        names |= {name.removeprefix("model/") for name in head if name.startswith("model/")}
    return names


def _rehearsed(problem: str, say: Callable[[str], None], noise: float) -> Subject:
    """Trains a few steps on one rank, for their trace."""
    say(f"there is no run of {problem} under {ROOT}/ with a trace: training {_STEPS} steps on this machine")
    run = laptop(problem)
    with TemporaryDirectory(prefix="exafield-") as folder:
        rehearse(run, RunFolder(Path(folder) / problem), say)
        step = replace(Step.from_trace(Path(folder) / problem, noise=noise), name=problem)
    source = f"{_STEPS} steps of {problem}, trained on one rank of this machine just now"
    return Subject(step, source, run.reduction, in_memory=run.problem.in_memory)


def rehearse(run: Run, folder: RunFolder, say: Callable[[str], None], steps: int = _STEPS) -> None:
    """Trains a few steps of a run on one rank, as `exafield train` would, and keeps only their trace.

    Args:
        run: whose settings are used; its length is not.
        folder: takes the trace.
        say: prints a line about data that is made.
    """
    from exafield import __version__, assembly, runfile
    from exafield.engine.local import ProcessEngine
    from exafield.job import generate
    from exafield.report import Report
    from exafield.store import atomic_write
    from exafield.tracefile import save_trace
    from exafield.world import World

    training = replace(run.training, steps=steps, seconds=None)
    run = replace(run, training=training)
    with World.single(assembly.device(training, 1) or "cpu") as world:
        whole = assembly.complete(run)
        atomic_write(folder.config, runfile.write(whole, __version__).encode())
        question = assembly.problem(run)
        generate(run.problem, ProcessEngine(), say)
        trainer = assembly.trainer(run, question, world, folder, Report(False, folder.metrics))
        trainer.meter.begin()
        for _ in range(steps):
            trainer.step()
        trainer.metrics()
        save_trace(trainer.trace, world, folder.trace)
