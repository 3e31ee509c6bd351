"""The command `exafield scale`: parsing, printing and files. What is computed is elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from errno import EISDIR
from os import strerror
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from exafield.launch import cores, spawn
from exafield.scaling.flags import Calibrate, Graph, Machines, Scale, Show, named, reduction, several
from exafield.setting import RunError
from exafield.subcommand import check_folder, make_folder
from exafield.suggestion import counted

USAGE = 2

_HELP = """\
usage: exafield scale SUBJECT --machine M [OPTIONS]
       exafield scale calibrate|machines|show|graph

  SUBJECT      what a training of it would cost on many nodes, and where the losses come from: microscopy, climate,
               subsurface, a run folder, or a table of layers
  calibrate    measures this machine, or under srun or mpirun a cluster, and writes a machine file
  machines     lists the machines there are numbers of
  show M       prints every number of a machine, and what it rests on
  graph        writes training steps as a graph that exafield taskbench runs on any engine

exafield scale SUBJECT --help says more.
"""

_Parsed = Callable[..., Any]


def main(argv: Sequence[str], parsed: _Parsed, size: int) -> int:
    """Carries out the command, given without `exafield scale`; returns the exit code.

    Args:
        argv: its arguments.
        parsed: parses them into a class.
        size: ranks that a launcher has started.
    Raises:
        RunError, StudyError, MachineError, StepError: something cannot be, or is not there; says what to do.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0 if argv else USAGE
    name, *rest = argv
    if name == "calibrate":
        return _calibrate(parsed(Calibrate, "scale calibrate", rest), size)
    if name == "machines":
        return _machines(parsed(Machines, "scale machines", rest))
    if name == "show":
        return _show(parsed(Show, "scale show", rest))
    if name == "graph":
        return _graph(parsed(Graph, "scale graph", rest))
    return _scale(parsed(Scale, "scale", list(argv)))


def _calibrate(arguments: Calibrate, size: int) -> int:
    from exafield.machine import here

    out = here() if arguments.out is None else arguments.out
    if arguments.out is not None:
        check_folder(out)
    _writable(out, make=arguments.out is None)
    ranks = min(8, max(2, cores())) if arguments.ranks is None else arguments.ranks
    if ranks < 2:
        raise RunError(f"--ranks {ranks}: messages are measured, so at least two processes are needed")
    if size > 1:
        from exafield.scaling.calibrate import calibrated

        calibrated(out)
        return 0
    spawn(["scale", "calibrate", "--out", str(out.absolute())], ranks)
    return 0


def _writable(out: Path, *, make: bool) -> None:
    """Measuring takes half a minute: it is tried first whether a file can be written, with `make` in a new folder."""
    try:
        if make:
            out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise IsADirectoryError(EISDIR, strerror(EISDIR))
        with TemporaryFile(dir=out.absolute().parent):
            pass
    except OSError as error:
        raise RunError(f"--out {out}: cannot be written ({error.strerror})") from error


_MISSING = f"{'here':16s} not measured yet: exafield scale calibrate"


def _machines(arguments: Machines) -> int:
    from exafield.machine import Machine, MachineError, here, machines

    for name in machines():
        print(_listed(name, Machine.load(name)))
    try:
        print(_listed("here", Machine.load("here")) if here().exists() else _MISSING)
    except MachineError as error:
        print(f"{'here':16s} {error}")
    return 0


def _listed(name: str, machine: Any) -> str:
    nodes = "1 node" if machine.nodes == 1 else f"{machine.nodes:,} nodes"
    return f"{name:16s} {nodes} of {counted(machine.ranks_per_node, 'rank')}\n{'':16s} {machine.about}"


def _show(arguments: Show) -> int:
    from exafield.machine import Machine

    machine = Machine.load(arguments.machine)
    print(f"{machine.name}: {machine.about}")
    for scope, library in machine.uses.items():
        print(f"uses.{scope:40s} {library}")
    for key, figure in machine.figures.items():
        unit = "" if figure.unit == "1" else f" {figure.unit}"
        print(f"{key:45s} {f'{figure.value:.6g}{unit}':>18s}  {figure.source}: {figure.reference or '-'}")
    return 0


def _graph(arguments: Graph) -> int:
    for flag, value in (("--ranks", arguments.ranks), ("--steps", arguments.steps)):
        if value < 1:
            raise RunError(f"{flag} {value}: there must be at least one")
    from exafield.assembly import reducer
    from exafield.machine import Machine
    from exafield.scaling.subject import find
    from exafield.scaling.transfer import transferred
    from exafield.scaling.workload import training_step, write

    subject = find(arguments.subject, print, _noise(arguments.noise))
    step = subject.step
    if not step.measured:
        step = transferred(subject, Machine.load(arguments.machine), None, None).step
    grouping = reducer(reduction(arguments.reducer or "", subject.reduction)).grouping
    made = training_step(step, arguments.ranks, grouping, arguments.steps)
    try:
        write(made, arguments.out, f"a training step of {step.name} on {arguments.ranks} ranks, x {arguments.steps}")
    except OSError as error:
        raise RunError(f"--out {arguments.out}: cannot be written ({error.strerror})") from error
    graph = made.graph
    print(f"{arguments.out}: {len(graph)} tasks in {graph.steps} rows and {graph.width} columns")
    print(f"a group of gradients has {made.output_bytes} bytes on average: -output {made.output_bytes}, or less")
    print(f"exafield taskbench run --engine threads --graph {arguments.out} -kernel load_given -iter 1000")
    return 0


def _noise(value: float) -> float:
    if not value > 0:
        raise RunError(f"--noise {value}: must be above 0; 0.25 accepts times that vary by 25 %")
    return value


def _scale(arguments: Scale) -> int:
    if arguments.weak and arguments.strong:
        raise RunError("--weak and --strong exclude each other: give one of them")
    if arguments.samples is not None and arguments.steps is not None:
        raise RunError("--samples and --steps are both a target: give one of them")
    if arguments.batch is not None and arguments.batch < 1:
        raise RunError(f"--batch {arguments.batch}: a rank needs at least one sample per step")
    from exafield.assembly import reducer
    from exafield.machine import Machine
    from exafield.scaling.report import document, lines, write
    from exafield.scaling.study import SAMPLES, Target, parse_nodes, study
    from exafield.scaling.subject import find
    from exafield.scaling.transfer import transferred

    samples = SAMPLES if arguments.samples is None and arguments.steps is None else arguments.samples
    target = Target(samples, arguments.steps, arguments.price)
    machine = Machine.load(arguments.machine)
    nodes = parse_nodes(arguments.nodes or f"1..{machine.nodes}")
    machine.nodes_for(nodes[-1] * machine.ranks_per_node)
    subject = find(arguments.subject, print, _noise(arguments.noise))
    data = arguments.data or ("memory" if subject.in_memory else "local")
    if data == "memory":
        subject, data = replace(subject, step=replace(subject.step, read=0.0)), "local"
        print("data        in memory: nothing is read while it trains (--data local or shared: all in every epoch)")
    first = reduction(arguments.reducer or "", subject.reduction)
    first = replace(first, lag=1) if arguments.lag else first
    settings = [first, *(reduction(text, first) for text in several(arguments.compare or ""))]
    made = {named(one): one for one in settings}
    moved = transferred(subject, machine, arguments.precision, arguments.batch, data)
    print("\n".join(moved.said))
    make_folder(arguments.out)
    result = study(
        moved.step,
        machine,
        nodes,
        {name: reducer(one) for name, one in made.items()},
        strong=arguments.strong,
        data=data,
    )
    from exafield.scaling.advice import advise

    largest = result.curves[0].last
    step = moved.step.batch(-(-largest.batch // largest.ranks))
    advised = advise(step, machine, largest.ranks, reducer(first), data=data)
    print("\n".join(lines(result, target, advised)))
    for path in write(arguments.out, result, document(subject, moved, result, target, advised)):
        print(path)
    return 0
