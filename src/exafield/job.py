"""Job: a run carried out: data made, network trained, and told how well it went."""

import dataclasses
import json
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from exafield import assembly, page, provenance
from exafield.engine import MapEngine
from exafield.engine.chunks import Chunks
from exafield.engine.local import ProcessEngine
from exafield.environment import detect
from exafield.folder import content, kept_if_trained, open_folder
from exafield.launch import stopping
from exafield.meter import METRICS
from exafield.peak import matrix_peak
from exafield.precision import DTYPES, Precision
from exafield.problem import Prepared, Problem
from exafield.provenance import Provenance
from exafield.question import Question
from exafield.report import Report
from exafield.run import Run, RunError
from exafield.store import RunFolder, atomic_write
from exafield.suggestion import counted
from exafield.taskbench.tasksize import TaskSizes
from exafield.trainer import Trainer
from exafield.world import World

_RESULT = {"format": "exafield-result", "version": 1}
# Least time between two lines on data generation [s]: our choice.
_QUIET = 5.0


@runtime_checkable
class Verdict(Protocol):
    """How well a problem was solved."""

    def lines(self) -> list[str]:
        """A table to print."""
        ...

    def values(self) -> dict[str, Any]:
        """All numbers, in what JSON can hold."""
        ...

    def gate(self) -> list[tuple[bool, str]]:
        """What a good run reaches, and whether this one did."""
        ...


@runtime_checkable
class Judged(Protocol):
    """A problem that can say how well it was solved."""

    def report(self, world: World) -> Verdict | None:
        """The verdict, on rank 0 only. Collective."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job leaves.

    Args:
        folder: of the run.
        picture: drawn by the problem, if it could.
        reached: whether every line of the problem's gate was reached; True where there is none.
        stopped: number of the signal that ended it before it was complete, or 0.
    """

    folder: Path
    picture: Path | None
    reached: bool
    stopped: int = 0


# ---- data ----


class Announced:
    """A map engine that says how far it is.

    Args:
        engine: that does the work.
        say: prints a line.
        what: the items are, in plural.
    """

    def __init__(self, engine: MapEngine, say: Callable[[str], None], what: str) -> None:
        self._engine, self._say, self._what = engine, say, what

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`."""
        items = list(items)
        left = len(items) - len(done)
        if not left:
            return
        began = said = time.monotonic()
        self._say(f"simulating {left} {self._what}, once: they are kept")
        for number, pair in enumerate(self._engine.map(fn, items, retry=retry, done=done), start=1):
            yield pair
            now = time.monotonic()
            if now - said > _QUIET or number == left:
                said = now
                self._say(f"simulated {number} of {left} {self._what} in {now - began:.0f} s")


def generate(
    question: Question,
    engine: MapEngine,
    say: Callable[[str], None],
    *,
    name: str = "processes",
    task_size: int | None = None,
) -> Path:
    """Simulates what a run about this question needs and is not there yet; returns where it is kept.

    Args:
        engine: that simulates.
        say: prints a line.
        name: of the engine, to be printed.
        task_size: samples that one task of the engine simulates. None: as METG(95 %) says.
    Raises:
        ValueError: such a task size cannot be.
        others: see `generate` of the science's assembly.
    """
    sizes = TaskSizes(lambda text: say(f"engine {name}: {text}"), task_size)
    subject = assembly.subject(question)
    return subject.generate(question.data, Announced(Chunks(engine, sizes), say, subject.SAMPLES))


# ---- carrying it out ----


def carry_out(run: Run, *, resume: Path | None = None, say: Callable[[str], None] = print) -> Outcome:
    """Trains, evaluates, draws. Called on every rank the launcher has started.

    Args:
        run: what to do.
        resume: folder of a run to go on with, from its newest whole checkpoint.
        say: prints a line; only rank 0's is called, but for data generation.

    While it trains, SIGTERM or SIGUSR1 to any rank ends it on all ranks at the same step, with a checkpoint and no
    error. What is only written for a complete run (scores, picture, gate) is then missing.

    Raises:
        RunError: a setting makes no sense, or needs a package that is not installed; on all ranks.
        others: see :meth:`exafield.trainer.Trainer.fit`.
    """
    with World.from_env(assembly.device(run.training, detect(os.environ).local_size)) as world:
        first = world.rank == 0
        assembly.check_loggers(run.record)
        there = content(resume or run.record.folder)
        folder = open_folder(run, resume, world)
        if first:
            say(f"{run.problem.name} on {counted(world.size, 'rank')} ({world.device.type}), run folder {folder.path}")
            say(f"metrics     {METRICS}")
        with kept_if_trained(folder, there, world) as trainers, _recorded(folder, world) as session:
            with _settings_blamed():
                question = assembly.problem(run)
            generate(run.problem, ProcessEngine(), say)
            if isinstance(question, Prepared):
                question.prepare(world, say if first else _silent)
            training, record = run.training, run.record
            with _settings_blamed():
                loggers = assembly.loggers(record, folder.path) if first else ()
                report = Report(first, folder.metrics, loggers=loggers)
                trainer = assembly.trainer(run, question, world, folder, report)
            trainers.append(trainer)
            with stopping() as stop:
                if resume is not None and not trainer.resume(training.on_resize) and first:
                    say("there is no checkpoint to resume from: starting at step 0")
                values = trainer.fit(
                    training.steps,
                    training.seconds,
                    evaluate_every=record.evaluate_every,
                    checkpoint_every=record.checkpoint_every,
                    stop=stop,
                )
                if trainer.stopped:
                    by, on = signal.Signals(trainer.stopped).name, f"{run.problem.name} --resume {folder.path}"
                    if first:
                        say(f"stopped by {by} at step {trainer.steps}; go on with: exafield train {on}")
                    _report(world, folder, trainer, session, f"stopped by {by}", say)
                    return Outcome(folder.path, None, True, trainer.stopped)
                outcome = _judge(question, world, folder, trainer, values, say)
                _report(world, folder, trainer, session, "complete", say)
                return outcome


@contextmanager
def _recorded(folder: RunFolder, world: World) -> Iterator[Provenance | None]:
    """Rank 0's record of this session, in which an error that ends it is noted; None on the others."""
    if world.rank:
        yield None
        return
    begun = provenance.session(detect(os.environ).launcher, world.size, len(world.nodes), world.device)
    with Provenance(folder.path / provenance.NAME, begun) as session:
        yield session


@contextmanager
def _settings_blamed() -> Iterator[None]:
    """Where objects are made from settings, a ValueError is about these, and the same on all ranks."""
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise RunError(str(error)) from error


def _judge(
    question: Problem,
    world: World,
    folder: RunFolder,
    trainer: Trainer,
    values: dict[str, float],
    say: Callable[[str], None],
) -> Outcome:
    """Scores, picture and gate; rank 0 prints them and keeps them in the run folder."""
    verdict = question.report(world) if isinstance(question, Judged) else None
    picture, reached = None, True
    if world.rank == 0:
        picture = folder.picture(question.name)
        question.picture(picture)
        trainer.report.picture(trainer.steps, picture)
        gate: Sequence[tuple[bool, str]] = verdict.gate() if verdict is not None else ()
        for line in verdict.lines() if verdict is not None else ():
            say(line)
        for good, line in gate:
            say(f"{'reached' if good else 'missed '}  {line}")
        reached = all(good for good, _ in gate)
        result = {
            **_RESULT,
            "steps": trainer.steps,
            "elapsed": round(trainer.elapsed, 3),
            "ranks": world.size,
            "batch": dataclasses.asdict(trainer.batch),
            "evaluation": values,
            "report": verdict.values() if verdict is not None else None,
            "gate": [{"reached": good, "line": line} for good, line in gate],
        }
        atomic_write(folder.path / "result.json", json.dumps(result, indent=1).encode())
        say(f"picture     {picture}")
    return Outcome(folder.path, picture, bool(world.broadcast_object(reached)))


def _report(
    world: World,
    folder: RunFolder,
    trainer: Trainer,
    session: Provenance | None,
    outcome: str,
    say: Callable[[str], None],
) -> None:
    """Measures the peak, notes how the session ended, and writes the page of the run. Collective.

    What was learnt is safe by now, and not lost for a page: one that cannot be written is warned of.
    """
    peak = _peak(world, trainer.precision)
    if session is None:
        return
    session.end(outcome, steps=trainer.steps, elapsed=round(trainer.elapsed, 3), peak=peak)
    try:
        say(f"report      {page.write(folder.path, quick=True)}")
    except Exception as error:
        again = f"exafield report {folder.path}"
        warnings.warn(f"the report is not written ({error}), all else is; to try again: {again}", stacklevel=2)
    say(f"run folder  {folder.path}")


def _peak(world: World, precision: Precision) -> dict[str, object] | None:
    """The peak of all ranks together, which may share cores, so that all are measured at once; None if one fails."""
    world.barrier()
    try:
        mine = matrix_peak(world.device, DTYPES[precision])
    except (RuntimeError, MemoryError):  # no memory left, or this device cannot multiply this type
        mine = math.nan
    whole = torch.tensor([mine], dtype=torch.float64)
    world.all_reduce(whole)
    if not math.isfinite(float(whole)):
        return None
    return {"all_ranks": float(whole), "dtype": str(DTYPES[precision]).removeprefix("torch.")}


def _silent(text: str) -> None:
    """Says nothing."""
