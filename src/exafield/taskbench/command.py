"""The command `exafield taskbench`: parsing, printing and files. What is measured is elsewhere."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from exafield.engine import engine, mpi_job
from exafield.engine.catalogue import SYSTEMS, System
from exafield.engine.signals import terminable
from exafield.run import RunError
from exafield.suggestion import unknown
from exafield.taskbench.experiments import EXPERIMENTS, swept
from exafield.taskbench.flags import GRAPH, GRAPH_HELP, FlagError, count, number, parse, separate
from exafield.taskbench.series import JSON, Kept, measure, write

FAILED, USAGE = 1, 2
# Runs of one size on a machine that does nothing else differ by less than this factor; our choice.
_APART = 2.0

_HELP = """\
usage: exafield taskbench COMMAND [OPTIONS]

  run       runs one graph, or several together, on an engine, and prints what Task Bench prints
  metg      finds the shortest tasks that engines run efficiently on this machine
  compare   draws METG files side by side, with what was published for other systems
  engines   which engines there are, and what they can do
  check     whether an engine runs every task once and with the right inputs

exafield taskbench COMMAND --help says more. The benchmark is that of arXiv:1908.05790.
"""

_ENGINE_HELP = """\
  --engine NAME    {which}; exafield taskbench engines lists them
  --workers N      of the engine [as many as it likes, mostly one a core]
  --address A      of a cluster that is up already, for engines that can be elsewhere
"""

_RUN_HELP = f"""\
usage: exafield taskbench run --engine NAME [OPTIONS] [FLAGS]

{_ENGINE_HELP.format(which="what runs the graph [serial]")}\
  --passes N       runs in a row [2]: the last one is reported; --json holds them all
  --json FILE      results as JSON; one more pass, not timed, tells which process and thread ran which task

{GRAPH_HELP}"""

_METG_HELP = f"""\
usage: exafield taskbench metg --engine NAME[,NAME...] [OPTIONS] [FLAGS]

Runs shorter and shorter tasks, and tells at which granularity (wall time x cores / tasks) efficiency falls to a
threshold. Efficiency is the rate over the peak of this machine, which is measured with the same kernel first.

{_ENGINE_HELP.format(which="what is measured, one or several [serial]")}\
  --cores N        that count in granularity and in the peak [--workers, or all that this process may use; for serial
                   one]
  --threshold X    efficiency that is asked for [0.5]
  --budget S       time for each engine, or for each point of an experiment [60]. Where 1000 steps do not fit into it,
                   fewer are run, and the result says so; with -steps a budget that is too small is refused
  --out FOLDER     metg.json, metg.csv, METG at 5 to 95 % as metg_thresholds.csv, and pictures [metg]
  --experiment E   radix: METG against 0 to 9 dependencies (nearest)
                   communication: how 16 to 65536 bytes a dependency are hidden (spread, radix 5, 4 graphs)
                   imbalance: how tasks that are 0 to 2 times as long are evened out (nearest, radix 5, 4 graphs)

Default flags here: -steps 1000, -type stencil_1d, -kernel compute_bound, -width: as many columns as --workers
or cores, in experiments at least 16. -iter is that of the longest tasks [64 times as long as a bare task].

{GRAPH_HELP}"""

_COMPARE_HELP = """\
usage: exafield taskbench compare FILE... [OPTIONS]

  FILE             metg.json of exafield taskbench metg
  --threshold X    efficiency that is asked for [0.5]
  --out FOLDER     where compare.png and efficiency.png are written [.]
"""

_ENGINES_HELP = """\
usage: exafield taskbench engines

Lists the engines: the version of the system that is installed; whether it runs native kernels (run, metg) and Python
functions (exafield generate); whether graphs given together run together or in turn; on how many machines it can run;
the system's licence; what --address takes, where there is that option.
"""

_CHECK_HELP = f"""\
usage: exafield taskbench check --engine NAME[,NAME...] [OPTIONS]

Runs graphs of all types, widths and sizes in which every task notes that it ran and checks its inputs.

{_ENGINE_HELP.format(which="what is checked, one or several [serial]")}\
  --all            all combinations; else a selection in which any two values occur together
"""

_ENGINE_OPTIONS = ("--engine", "--workers", "--address")


def main(argv: Sequence[str]) -> int:
    """Runs a command, given without `exafield taskbench`; returns the exit code.

    Raises:
        RunError: something about what was asked for is wrong.
        EngineError: a task or a system failed.
        ImportError: a system is not installed.
    """
    commands: Mapping[str, tuple[Callable[[list[str]], int], str]] = {
        "run": (_run, _RUN_HELP),
        "metg": (_metg, _METG_HELP),
        "compare": (_compare, _COMPARE_HELP),
        "engines": (_engines, _ENGINES_HELP),
        "check": (_check, _CHECK_HELP),
    }
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0 if argv else USAGE
    if argv[0] not in commands:
        raise RunError(unknown("command", f"taskbench {argv[0]}", [f"taskbench {name}" for name in commands]))
    command, text = commands[argv[0]]
    rest = list(argv[1:])
    if "-h" in rest or "--help" in rest:
        print(text, end="")
        return 0
    try:
        with terminable():
            return mpi_job.drive(partial(command, rest))
    except FlagError as error:  # a line as Task Bench prints it
        print(error, file=sys.stderr, flush=True)
        return USAGE


def _made(name: str, options: Mapping[str, str], alone: bool = True) -> Any:
    """The engine of that name with the options that were given.

    Args:
        alone: what it does not take is an error; with others beside it, the number of workers is meant for those.
    """
    given: dict[str, Any] = {}
    workers = count(options, "--workers")
    if workers and (alone or SYSTEMS[name].takes("workers")):
        given["workers"] = workers
    if "--address" in options:
        given["address"] = options["--address"]
    try:
        made = engine(name, **given)
    except ValueError as error:
        raise RunError(str(error)) from error
    if not SYSTEMS[name].graphs:
        raise RunError(f"engine {name!r} cannot run task graphs")
    return made


def _names(options: Mapping[str, str]) -> list[str]:
    names = [name for name in options.get("--engine", "serial").split(",") if name]
    if not names:
        raise RunError("--engine names no engine")
    for name in names:
        if name not in SYSTEMS:
            raise RunError(unknown("engine", name, SYSTEMS))
    return list(dict.fromkeys(names))


def _run(argv: list[str]) -> int:
    from exafield.taskbench import report
    from exafield.taskbench.run import run

    rest, options = separate(argv, (*_ENGINE_OPTIONS, "--passes", "--json"), graphs=True)
    flags = parse(rest)
    patterns, kernels = flags.patterns(), flags.kernels()
    passes = count(options, "--passes", 2) or 2
    name = options.get("--engine", "serial")
    made = _made(name, options)
    if "--json" in options:
        from exafield.subcommand import check_folder

        if Path(options["--json"]).is_dir():
            raise RunError(f"--json {options['--json']}: this is a folder: name a file")
        check_folder(Path(options["--json"]), "--json")
    for line in report.before(patterns, kernels, flags.verbose):
        print(line)
    sys.stdout.flush()
    result = run(
        made, patterns, kernels, name=name, passes=passes, nodes=flags.nodes, validate=flags.validate,
        trace="--json" in options,
    )  # fmt: skip
    print("\n".join(report.after(result.totals, result.elapsed)))
    if "--json" in options:
        write(Path(options["--json"]), result.to_json(patterns, kernels) + "\n")
    return 0


def _metg(argv: list[str]) -> int:
    from exafield.subcommand import make_folder
    from exafield.taskbench.run import amount, peak
    from exafield.taskbench.run import cores as all_cores

    own = (*_ENGINE_OPTIONS, "--cores", "--threshold", "--budget", "--out", "--experiment")
    rest, options = separate(argv, own, graphs=True)
    flags = parse(rest)
    threshold, budget = _threshold(options), number(options, "--budget", 60.0)
    if not budget > 0:
        raise FlagError(f'error: Invalid flag "--budget {budget:g}" must be > 0')
    experiment = None
    if "--experiment" in options:
        if options["--experiment"] not in EXPERIMENTS:
            raise FlagError(f"error: {unknown('experiment', options['--experiment'], EXPERIMENTS)}")
        experiment = EXPERIMENTS[options["--experiment"]]
        if any(experiment.flag in given for given in flags.given):
            raise FlagError(f'error: Flag "{experiment.flag}" is what this experiment varies: leave it out')
        if experiment.flag == "-radix" and any(GRAPH in given for given in flags.given):
            raise FlagError(f'error: Flag "{GRAPH}" does not go with this experiment: the file says the radix')
    there = all_cores()
    workers = count(options, "--workers")
    cores = count(options, "--cores") or mpi_job.driving() or min(workers or there, there)
    if cores > there:
        _progress(f"{cores} cores count, but here are {there}: the peak takes the others to be elsewhere, and alike")
    names = _names(options)
    made = {name: _made(name, options, len(names) == 1) for name in names}
    # Who cannot have several workers is held against one core.
    held = {name: cores if "--cores" in options or SYSTEMS[name].takes("workers") else 1 for name in names}
    graphs = swept(flags, experiment, cores)
    cases = {"": graphs}
    if experiment is not None:
        cases = {
            f"{experiment.flag} {value}": [replace(graph, **{experiment.field: value}) for graph in graphs]
            for value in experiment.values
        }
    largest = max(graph.iterations for graph in graphs) or None
    for case in cases.values():  # before anything is measured
        amount([replace(graph, iterations=1) for graph in case])
    out = Path(options.get("--out", "metg"))
    make_folder(out)

    def rate(cores: int) -> float:
        threads = min(cores, there)  # cores of other machines count as if they were like these
        return peak(next(iter(cases.values())), threads) * cores / threads

    peaks = {n: rate(n) for n in sorted({*held.values()})}
    kept = Kept(out, len(made) * len(cases), _progress)
    # What was given is run as it was given; that steps are 1,000 otherwise is only a convention.
    reduce = not any("-steps" in given or GRAPH in given for given in flags.given)
    with kept.saved():
        missing = measure(
            made, cases, kept, peaks=peaks, cores=held, budget=budget, largest=largest, reduce=reduce, say=_progress
        )
        if not kept.sweeps:
            raise RunError("nothing could be measured: the lines above say why")
        # Others that use the machine can only make it seem slower than it is.
        peaks = {n: max(peaks[n], rate(n)) for n in sorted({held[found.engine] for found in kept.sweeps})}
    kept.sweeps = sweeps = [replace(found, peak=peaks[held[found.engine]]) for found in kept.sweeps]
    for n, best in peaks.items():
        print(f"peak of {n} core{'s' if n > 1 else ''}: {best:.4g} {sweeps[0].unit}")
    for found in sweeps:
        what = f" {experiment.flag} {getattr(found.graphs[0], experiment.field)}" if experiment else ""
        metg_at = found.metg(threshold)
        fewer = f" ({found.graphs[0].steps} steps)" if found.graphs[0].steps != graphs[0].steps else ""
        print(f"{found.engine}{what}: METG({threshold:.0%}) {metg_at}{fewer}")
        if metg_at.seconds is None and metg_at.best == found.efficiencies()[0]:
            _progress(f"{found.engine}: its longest tasks are its most efficient: longer ones need a larger --budget")
        if metg_at.best > 1.1:
            _progress(
                f"{found.engine}: efficiency up to {metg_at.best:.0%}: was the machine busy when its peak was measured?"
            )
        apart = max(max(sample.elapsed) / min(sample.elapsed) for sample in found.samples)
        if apart > _APART:
            _progress(
                f"{found.engine}: runs of one size differ by up to a factor of {apart:.1f}: what else runs on this "
                "machine? Measure again when it does nothing else"
            )
    kept.tables()
    _draw(out, sweeps, threshold, options.get("--experiment"))
    print(f"results and pictures: {out}{os.sep}")
    return FAILED if missing else 0


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _draw(out: Path, sweeps: Sequence[Any], threshold: float, name: str | None) -> None:
    from exafield.taskbench import plots, published

    if name is None:
        plots.efficiency(out / "efficiency.png", sweeps, threshold)
        plots.rate(out / "rate.png", sweeps)
        plots.compare(out / "compare.png", sweeps, threshold)
        plots.thresholds(out / "thresholds.png", sweeps)
        return
    experiment = EXPERIMENTS[name]
    if name != "radix":
        label = plots.by_output if name == "communication" else plots.by_imbalance
        plots.efficiency(out / f"{name}.png", sweeps, threshold, label)
    behind = published.RADIX if name == "radix" and threshold == 0.5 else None
    plots.against(
        out / f"metg_{name}.png", sweeps, threshold, lambda s: getattr(s.graphs[0], experiment.field), experiment.name,
        behind,
    )  # fmt: skip


def _threshold(options: Mapping[str, str]) -> float:
    threshold = number(options, "--threshold", 0.5)
    if not 0 < threshold < 1:
        raise FlagError(f'error: Invalid flag "--threshold {threshold:g}" must be > 0 and < 1')
    return threshold


def _compare(argv: list[str]) -> int:
    from exafield.subcommand import make_folder
    from exafield.taskbench import metg_files, plots

    files, options = separate(argv, ("--threshold", "--out"))
    threshold = _threshold(options)
    if not files:
        raise RunError("exafield taskbench compare FILE...: which files?")
    found = {file: metg_files.load(Path(file)) for file in files}
    sweeps = [sweep for own in found.values() for sweep in own]
    if len({sweep.engine for sweep in sweeps}) < len(sweeps) and len(found) > 1:
        sweeps = [
            replace(sweep, engine=f"{sweep.engine} ({_short(Path(file))})")
            for file, own in found.items()
            for sweep in own
        ]
    out = Path(options.get("--out", "."))
    make_folder(out)
    wide = max(15, *(len(sweep.engine) for sweep in sweeps))
    print(f"{'engine':{wide}s} graph                         METG at efficiency")
    for sweep in sweeps:
        graph = sweep.graphs[0]
        kind = f"{len(sweep.graphs)} x {graph.type}" if len(sweep.graphs) > 1 else graph.type
        what = f"{kind}, radix {graph.radix}, {graph.output} B"
        print(f"{sweep.engine:{wide}s} {what:29s} {threshold:.0%}: {sweep.metg(threshold)}")
    plots.compare(out / "compare.png", sweeps, threshold)
    plots.efficiency(out / "efficiency.png", sweeps, threshold)
    print(f"pictures: {out / 'compare.png'}, {out / 'efficiency.png'}")
    return 0


def _short(path: Path) -> str:
    """A file as labels call it: most are named alike, in folders of their own."""
    return path.resolve().parent.name if path.name == JSON else path.stem


def _engines(argv: list[str]) -> int:
    rest, _ = separate(argv, ())
    if rest:
        raise RunError(f"exafield taskbench engines takes nothing, got {rest[0]!r}")
    rows = [("engine", "version", "native", "Python", "graphs", "machines", "licence")]
    notes = [""]
    for name, system in SYSTEMS.items():
        native, python = ("yes" if kind else "no" for kind in (system.graphs, system.maps))
        graphs = "none" if not system.graphs else "together" if system.several else "in turn"
        machines = "several" if system.distributed else "one"
        rows.append((name, system.version or "none", native, python, graphs, machines, system.licence))
        address = f"--address: {system.address}" if system.address else ""
        notes.append("\n".join(f"    {note}" for note in (system.title, _missing(system), address) if note))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row, note in zip(rows, notes, strict=True):
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
        if note:
            print(note)
    return 0


def _missing(system: System) -> str:
    """How to have a system that is not installed."""
    if system.version is not None:
        return ""
    if system.extra is not None:
        return f"not installed: pip install 'exafield[{system.extra}]'"
    return f"not installed: {system.install}" if system.install else "not installed"


def _check(argv: list[str]) -> int:
    from exafield.taskbench import conformance

    rest, options = separate(argv, _ENGINE_OPTIONS, ("--all",))
    if rest:
        raise FlagError(f"error: {unknown('flag', rest[0], (*_ENGINE_OPTIONS, '--all'))}")
    cases = conformance.every_case() if "--all" in options else conformance.covering()
    failed = 0
    for name in _names(options):
        results = list(conformance.check(_made(name, options), cases))
        wrong = [(case, text) for case, text in results if text is not None]
        failed += len(wrong)
        for case, text in wrong:
            print(f"{name}: {case}: {text}", flush=True)
        if not wrong:
            print(f"{name}: {len(results)} runs, every task ran once with the right inputs", flush=True)
    return FAILED if failed else 0
