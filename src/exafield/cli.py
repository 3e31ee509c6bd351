"""The command line: parsing, and exit codes. What is done is elsewhere, and imported when it is asked for."""

import atexit
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import tyro

from exafield import __version__
from exafield.arguments import Cite, Data, Doctor, Generate, ReportOn, Submit, TraceOf, Train
from exafield.environment import Place, detect
from exafield.given import check_problem, flag_value, problem_named, starting_run
from exafield.launch import VICTIM, RankFailed, bind_to_parent, check_ranks, spawn
from exafield.question import Question, Simulation
from exafield.run import PRESETS, RunError, Training
from exafield.setting import Advising
from exafield.submit import destination, script, submit
from exafield.suggestion import unknown
from exafield.watchdog import WorldAborted

FAILED, USAGE, MISSED, INTERRUPTED = 1, 2, 3, 130

_HELP = """\
usage: exafield COMMAND [OPTIONS]

  train PROBLEM       trains the networks of a scientific problem (microscopy, climate, subsurface)
  submit PROBLEM      the same as a SLURM job that stops in time, requeues and goes on
  generate PROBLEM    simulates the data of a problem, without training
  apply PROBLEM RUN   uses what a training has learnt
  microscopy COMMAND  scans: simulated ones to try things on, what a file holds, virtual detectors
  climate COMMAND     files of snapshots and masks: storms and their statistics, rules of thumb, pictures
  subsurface COMMAND  aquifers: what a site's files hold, maps, wells to try things on
  taskbench COMMAND   measures how fine-grained tasks may be on parallel programming systems (run, metg, engines, ...)
  scale SUBJECT       what a training would cost on a supercomputer, and where its losses would come from
  data list           public data sets; also: data where NAME, data get NAME
  trace RUN           what the trace of a run says: communication hidden and exposed, who waits for whom
  report RUN          writes report.html: curves, pictures, timeline, speed, settings, on what and whose work behind it
  doctor              what this machine has, and whether processes can reduce gradients here
  cite                the papers behind what is used

exafield COMMAND --help says more; exafield --version prints the version.
"""


_PACKAGE = os.path.join(os.path.dirname(__file__), "")


def program() -> NoReturn:
    """The whole program."""
    sys.unraisablehook, sys.excepthook = _unraisable, _uncaught
    code = main()
    if code and "h5py" in sys.modules:
        # HDF5 holds on to a file that it could not close on a full disk, and whoever lets go of it has it try again,
        # which can end in a crash. What was wrong has been said.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


# The error that ended the program, so that the files it refers to are not let go of before the end.
_last: list[BaseException] = []


# Of a file that cannot be closed h5py tells once more for each of its objects, in two ways, when the error is known.


def _unraisable(what: Any) -> None:
    if "h5py" not in str(what.object):
        sys.__unraisablehook__(what)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    code = trace.tb_frame.f_code if trace is not None else None
    if code is None or not (code.co_filename.startswith("h5py") and code.co_name.endswith("__dealloc__")):
        sys.__excepthook__(kind, error, trace)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    bind_to_parent()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    place: Place | None = None
    try:
        place = detect(os.environ)
        with _plain_warnings():
            return _end(place, _command(argv, place))
    except RankFailed as error:
        if error.code not in (USAGE, MISSED):  # the rank has said what that is about
            _say(str(error))
        return error.code if error.code > 0 else FAILED
    except BrokenPipeError:  # who read us, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except SystemExit as end:
        if end.code == 128 + signal.SIGTERM and (place is None or not place.rank):
            _say("terminated")
        raise
    except KeyboardInterrupt as error:
        if place is None or not place.rank:
            _say(str(error) or "interrupted")
        return _end(place, INTERRUPTED)
    except Exception as error:
        _last[:] = [error]
        code = _explained(error, place)
        if code is None:
            raise
        return _end(place, code)


def _command(argv: list[str], place: Place) -> int:
    commands: Mapping[str, Callable[[list[str], Place], int]] = {
        "train": _train,
        "submit": _submit,
        "generate": _generate,
        "apply": _apply,
        "microscopy": _microscopy,
        "climate": _climate,
        "subsurface": _subsurface,
        "taskbench": _taskbench,
        "scale": _scale,
        "data": _data,
        "trace": _trace,
        "report": _report,
        "doctor": _doctor,
        "cite": _cite,
    }
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0 if argv else USAGE
    if argv[0] == "--version":
        print(f"exafield {__version__}")
        return 0
    if argv[0] not in commands:
        raise RunError(unknown("command", argv[0], commands))
    if argv[0] not in _WRITING:
        return commands[argv[0]](argv[1:], place)
    from exafield.engine.signals import terminable

    with terminable():
        return commands[argv[0]](argv[1:], place)


# Commands that SIGTERM ends by an exception, so that no half of a file stays.
_WRITING = ("generate", "apply", "microscopy", "climate", "subsurface", "scale")


def _end(place: Place | None, code: int) -> int:
    """Leaves a rank that failed at once: what it shares with others cannot be closed in good order any more."""
    if code and place is not None and place.size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _explained(error: Exception, place: Place | None) -> int | None:
    """Prints an error that says what to do, and gives its exit code; None for one that needs its traceback."""
    rank = 0 if place is None else place.rank
    if isinstance(error, RunError) or place is None:
        if rank:  # the same on every rank
            return VICTIM
        _say(str(error))
        return USAGE
    if isinstance(error, WorldAborted):
        _say(f"rank {rank} ends: {error}")
        return VICTIM
    # The package's own errors are written for users; others are faults, and shown in full.
    ours = type(error).__module__.partition(".")[0] == "exafield"
    if not ours and not (isinstance(error, ImportError) and "pip install" in str(error)):
        return None
    text = error.as_flags() if isinstance(error, Advising) else str(error)
    _say(f"rank {rank}: {text}" if rank else text)
    return FAILED


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Inside, warnings of this package are a line that says what is wrong; where in the code is nothing to a user."""
    usual = warnings.formatwarning

    def plain(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        plain_ours = category is UserWarning and filename.startswith(_PACKAGE)
        if plain_ours or category.__module__.partition(".")[0] == "exafield":
            return f"exafield: warning: {message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _say(text: str) -> None:
    print(f"exafield: {text}", file=sys.stderr, flush=True)


_Arguments = TypeVar("_Arguments")


def _parsed(kind: type[_Arguments], command: str, argv: list[str], default: _Arguments | None = None) -> _Arguments:
    shape = (tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands)
    if default is None:
        return tyro.cli(kind, prog=f"exafield {command}", args=argv, config=shape)
    return tyro.cli(kind, prog=f"exafield {command}", args=argv, default=default, config=shape)


# ---- commands ----


def _train(argv: list[str], place: Place) -> int:
    arguments = _parsed(Train, "train", argv, Train(problem="", run=starting_run(argv)))
    check_problem(arguments.problem, arguments.run)
    if place.launcher != "alone" and arguments.ranks not in (None, place.size):
        raise RunError(
            f"--ranks {arguments.ranks}, but {place.launcher} has started {place.size}: leave out --ranks there"
        )
    ranks = 1 if arguments.ranks is None else arguments.ranks
    try:
        check_ranks(ranks)
    except ValueError as error:
        raise RunError(str(error)) from error
    if place.launcher == "alone":
        if ranks > 1:
            spawn(["train", *argv], ranks)
            return 0
        if place.hint is not None:
            _say(place.hint)
    from exafield.job import carry_out

    outcome = carry_out(arguments.run, resume=arguments.resume)
    return MISSED if arguments.gate and not outcome.reached else 0


def _submit(argv: list[str], place: Place) -> int:
    arguments = _parsed(Submit, "submit", argv, Submit(problem="", run=starting_run(argv)))
    check_problem(arguments.problem, arguments.run)
    folder = destination(arguments.run, arguments.resume)
    if arguments.dry:
        print(script(arguments.problem, arguments.job, folder), end="")
    else:
        print(f"job {submit(arguments.run, arguments.job, folder)}, run folder {folder}")
    return 0


def _generate(argv: list[str], place: Place) -> int:
    preset = flag_value(argv, "--preset") or "laptop"
    base = PRESETS[preset if preset in PRESETS else "laptop"](problem_named(argv))
    arguments = _parsed(Generate, "generate", argv, Generate(problem="", data=base.problem.data))
    check_problem(arguments.problem, base)
    from exafield.engine import map_engine
    from exafield.job import generate

    size = arguments.task_size
    if size is not None and size < 1:
        raise RunError(f"--task-size {size}: a task needs at least one sample")
    try:
        chosen = map_engine(arguments.engine, arguments.engine_address)
    except ValueError as error:
        raise RunError(str(error)) from error
    data = arguments.data
    if arguments.cif:
        if not isinstance(data, Simulation):
            raise RunError(f"--cif: {arguments.problem} is not made from crystals: leave it out")
        data = replace(data, crystals=",".join(arguments.cif))
    question: Question = replace(base.problem, data=data)  # type: ignore[arg-type]
    print(generate(question, chosen, _say, name=arguments.engine, task_size=size))
    return 0


def _apply(argv: list[str], place: Place) -> int:
    from exafield.apply import main as carry_out

    return carry_out(argv, _parsed)


def _microscopy(argv: list[str], place: Place) -> int:
    from exafield.microscopy.command import main as carry_out

    return carry_out(argv)


def _climate(argv: list[str], place: Place) -> int:
    from exafield.climate.command import main as carry_out

    return carry_out(argv)


def _subsurface(argv: list[str], place: Place) -> int:
    from exafield.subsurface.command import main as carry_out

    return carry_out(argv)


def _taskbench(argv: list[str], place: Place) -> int:
    from exafield.taskbench.command import main as carry_out

    return carry_out(argv)


def _scale(argv: list[str], place: Place) -> int:
    from exafield.scaling.command import main as carry_out

    return carry_out(argv, _parsed, place.size)


def _data(argv: list[str], place: Place) -> int:
    arguments = _parsed(Data, "data", argv)
    from exafield import datasets

    if arguments.action == "list":
        for entry in datasets.listing():
            print(f"{entry.dataset.name:12s} {entry.path or 'not here'}\n{'':12s} {entry.dataset.content}")
        return 0
    if arguments.name is None:
        raise RunError(f"exafield data {arguments.action} NAME: which data set? exafield data list tells them")
    if arguments.action == "where":
        print(datasets.find(arguments.name))
    else:
        print(datasets.get(arguments.name, arguments.url))
    return 0


def _trace(argv: list[str], place: Place) -> int:
    arguments = _parsed(TraceOf, "trace", argv)
    from exafield.summary import summarise
    from exafield.tracefile import load_trace

    print("\n".join(summarise(load_trace(arguments.run)).lines()))
    return 0


def _report(argv: list[str], place: Place) -> int:
    arguments = _parsed(ReportOn, "report", argv)
    from exafield import page

    print(page.write(arguments.run, baseline=arguments.baseline, to=arguments.out))
    return 0


def _doctor(argv: list[str], place: Place) -> int:
    _parsed(Doctor, "doctor", argv)
    from exafield.doctor import examine, reduce_together

    if place.size > 1:
        from exafield.assembly import device
        from exafield.world import World

        with World.from_env(device(Training(steps=1), place.local_size)) as world:
            return 0 if reduce_together(world) else FAILED
    for line in examine(place):
        print(line, flush=True)
    spawn(["doctor"], 2)
    return 0


def _cite(argv: list[str], place: Place) -> int:
    arguments = _parsed(Cite, "cite", argv)
    from exafield.cite import WORKS

    print("\n\n".join(work.bibtex() if arguments.bibtex else work.plain() for work in WORKS))
    return 0
