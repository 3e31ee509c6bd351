"""Given: the run that a command line starts from, looked up before the full parse, whose defaults depend on it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from exafield.question import QUESTIONS, Microscopy
from exafield.run import PRESETS, Run, RunError, Training
from exafield.suggestion import unknown


def starting_run(argv: Sequence[str]) -> Run:
    """The run that flags change: from a run file, a resumed run or a preset.

    Raises:
        RunError: more than one of them is given, or it cannot be read.
    """
    from exafield.runfile import load  # late: yaml is not needed for a preset

    told = {name: flag_value(argv, f"--{name}") for name in ("preset", "config", "resume")}
    several = [f"--{name}" for name, value in told.items() if value is not None]
    if len(several) > 1:
        raise RunError(f"{' and '.join(several)} each bring all settings: give one of them")
    if told["resume"] is not None:
        run = load(Path(told["resume"]) / "run.yaml")
    elif told["config"] is not None:
        run = load(told["config"])
    else:
        preset = told["preset"] or "laptop"
        run = PRESETS[preset if preset in PRESETS else "laptop"](problem_named(argv))
    return _length(run, argv)


def problem_named(argv: Sequence[str]) -> str:
    """The problem a command line is about: the first argument that is the name of one; microscopy if none is."""
    return next((argument for argument in argv if argument in QUESTIONS), Microscopy.name)


def flag_value(argv: Sequence[str], flag: str) -> str | None:
    """The value a flag has; None if it is not there."""
    for position, argument in enumerate(argv):
        if argument == flag and position + 1 < len(argv):
            return argv[position + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def _length(run: Run, argv: Sequence[str]) -> Run:
    """A run that is as long in steps if --steps is given, and in seconds if --seconds is."""
    steps, seconds = flag_value(argv, "--steps"), flag_value(argv, "--seconds")
    if (steps is None) == (seconds is None):
        return run
    t = run.training
    length: dict[str, int | float | None] = (
        {"steps": t.steps or 1, "seconds": None} if seconds is None else {"steps": None, "seconds": t.seconds or 1.0}
    )
    training: Training = replace(t, **length)  # type: ignore[arg-type]
    return replace(run, training=training)


def check_problem(name: str, run: Run) -> None:
    """Raises RunError if there is no such problem, or the run is about another one."""
    if name not in QUESTIONS:
        raise RunError(unknown("problem", name, QUESTIONS))
    if name != run.problem.name:
        raise RunError(f"the run file is about {run.problem.name}, not {name}")
