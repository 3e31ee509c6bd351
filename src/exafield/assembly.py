"""Assembly: the settings of a run made into the objects they describe."""

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from exafield.engine import MapEngine
from exafield.optim import Optimiser, Schedule
from exafield.problem import Problem
from exafield.question import Question
from exafield.reduce import Reducer
from exafield.report import Logger, Report
from exafield.run import (
    COLLECTIVE,
    CONTROL,
    GROUPING,
    OPTIMISER,
    SCHEDULE,
    TIMED_SCHEDULE,
    Record,
    Reduction,
    Run,
    RunError,
    Training,
)
from exafield.store import RunFolder
from exafield.tensorboard import TensorBoard, check_tensorboard
from exafield.trainer import Trainer
from exafield.world import World

# Steps of linear warm-up of a cosine, where the run is ten times as long; our choice.
_WARMUP = 30


@runtime_checkable
class Subject(Protocol):
    """A science's `assembly` module: makes the real objects of its question's settings.

    Attributes:
        SAMPLES: what its data consists of, in plural.
    """

    SAMPLES: str

    def complete(self, question: Any) -> Any:
        """The same settings with every choice written out."""
        ...

    def learnt(self, question: Any) -> Mapping[str, object]:
        """Settings, complete, that a checkpoint depends on, by the names of their options."""
        ...

    def problem(
        self, question: Any, *, optimiser: Optimiser, schedule: Schedule, seed: int, batch_size: int
    ) -> Problem:
        """The problem these settings describe."""
        ...

    def generate(self, data: Any, engine: MapEngine) -> Path:
        """Makes the data that is not there yet, and says where it is."""
        ...


def reducer(settings: Reduction) -> Reducer:
    """The reducer a run asks for."""
    return Reducer(
        control=CONTROL.build(settings.control),
        grouping=GROUPING.build(settings.grouping),
        collective=COLLECTIVE.build(settings.collective),
        lag=settings.lag,
    )


def optimiser(training: Training) -> Optimiser:
    """The optimiser a run asks for."""
    built: Optimiser = OPTIMISER.build(training.optimiser)
    return built


def _length(training: Training) -> dict[str, float]:
    """What a cosine takes from the run: its length, and a warm-up that fits in it unless one is given."""
    name, _ = SCHEDULE.parse(training.schedule)
    if name != "cosine":
        return {}
    if training.steps is None:
        return {"seconds": training.seconds or 0.0, "warmup": _WARMUP}
    return {"steps": training.steps, "warmup": min(_WARMUP, training.steps // 10)}


def schedule(training: Training) -> Schedule:
    """The learning-rate schedule a run asks for; a cosine ends with the run."""
    choice = SCHEDULE if training.steps is not None else TIMED_SCHEDULE
    built: Schedule = choice.build(training.schedule, **_length(training))
    return built


def complete(run: Run) -> Run:
    """The same run with every parameter of its choices written out.

    Raises:
        RunError: a parameter is out of range.
    """
    t, r = run.training, run.reduction
    timed = SCHEDULE if t.steps is not None else TIMED_SCHEDULE
    try:
        return dataclasses.replace(
            run,
            problem=subject(run.problem).complete(run.problem),
            training=dataclasses.replace(
                t, optimiser=OPTIMISER.complete(t.optimiser), schedule=timed.complete(t.schedule, **_length(t))
            ),
            reduction=Reduction(
                control=CONTROL.complete(r.control),
                grouping=GROUPING.complete(r.grouping),
                collective=COLLECTIVE.complete(r.collective),
                lag=r.lag,
            ),
        )
    except RunError:
        raise
    except (ValueError, TypeError) as error:
        raise RunError(str(error)) from error


def check_loggers(record: Record) -> None:
    """Raises RunError if a package is missing that recording needs: before anything is computed."""
    if record.tensorboard:
        try:
            check_tensorboard()
        except ImportError as error:
            raise RunError(f"record: tensorboard: {error}") from error


def loggers(record: Record, folder: Path) -> list[Logger]:
    """What takes a run's metrics beside its own files, which are in `folder`."""
    return [TensorBoard(folder / "tensorboard")] if record.tensorboard else []


def device(training: Training, local_size: int | None) -> str | None:
    """The device a run asks for; None leaves it to the world, which gives each rank the GPU of its number.

    Args:
        training: with device "auto", "cpu" or "cuda".
        local_size: ranks on this node, if it is known.
    Raises:
        RunError: GPUs are asked for, and there are not enough.
    """
    if training.device == "cpu":
        return "cpu"
    import torch

    gpus, ranks = torch.cuda.device_count(), local_size or 1
    if ranks <= gpus:
        return None
    if training.device == "cuda":
        raise RunError(
            f"training: device is cuda, but this node has {ranks} rank{'s' if ranks > 1 else ''} and torch sees {gpus} "
            "GPUs: each rank needs one of its own; start fewer, or use device cpu"
        )
    return "cpu"


def subject(question: Question) -> Subject:
    """What makes the real objects of a question's settings."""
    made: Subject = import_module(f"exafield.{question.name}.assembly")
    return made


def problem(run: Run) -> Any:
    """The problem a run is about, a :class:`exafield.problem.Problem`.

    It is not annotated as one: a check at run time would look at its source, and data would be made for that.
    """
    training = run.training
    return subject(run.problem).problem(
        run.problem,
        optimiser=optimiser(training),
        schedule=schedule(training),
        seed=training.seed,
        batch_size=training.batch_size,
    )


def trainer(run: Run, question: Any, world: World, folder: RunFolder, report: Report) -> Trainer:
    """What trains a problem, on this rank of a world, into a run folder."""
    training, record = run.training, run.record
    return Trainer(
        question,
        world,
        reducer(run.reduction),
        batch_size=training.batch_size,
        seed=training.seed,
        folder=folder,
        precision=training.precision,
        clip=training.clip,
        accumulate=training.accumulate,
        log_every=record.log_every,
        keep=record.keep,
        report=report,
    )
