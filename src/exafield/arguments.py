"""What the commands take: their flags, with what is said of them by --help."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from exafield.question import Aquifer, Simulation, Weather
from exafield.run import Run, laptop
from exafield.submit import Allocation


@dataclass(frozen=True)
class Train:
    """Trains the networks of a scientific problem.

    Under torchrun, srun or mpirun each process runs this command; alone, `--ranks N` starts N of them on this machine.

    Args:
        problem: microscopy, climate or subsurface.
        preset: where settings that are not given come from. None: laptop.
        config: a run file to take them from instead.
        resume: folder of a run to go on with, from its newest checkpoint.
        ranks: processes on this machine. None: one.
        gate: end with exit code 3 if the problem's gate is missed.
        run: settings of the run.
    """

    problem: tyro.conf.Positional[str]
    preset: Literal["laptop", "full"] | None = None
    config: Path | None = None
    resume: Path | None = None
    ranks: int | None = None
    gate: tyro.conf.FlagCreatePairsOff[bool] = False
    run: Run = field(default_factory=laptop)


@dataclass(frozen=True)
class Submit:
    """Submits a training as a SLURM job that stops before its time limit, requeues itself, and goes on.

    Args:
        problem: microscopy, climate or subsurface.
        preset: where settings that are not given come from. None: laptop.
        config: a run file to take them from instead.
        resume: folder of a run to go on with, from its newest checkpoint.
        dry: print the batch script, and do nothing.
        job: what is asked for.
        run: settings of the run.
    """

    problem: tyro.conf.Positional[str]
    preset: Literal["laptop", "full"] | None = None
    config: Path | None = None
    resume: Path | None = None
    dry: tyro.conf.FlagCreatePairsOff[bool] = False
    job: Allocation = field(default_factory=Allocation)
    run: Run = field(default_factory=laptop)


@dataclass(frozen=True)
class Generate:
    """Simulates the data of a problem. Interrupted, it goes on where it stopped when called again.

    Args:
        problem: microscopy, climate or subsurface.
        preset: where settings that are not given come from.
        engine: what runs the simulations: processes (all cores), or another that maps, see exafield taskbench engines.
        engine_address: of a cluster of that system that is up already. None: it is started here.
        task_size: samples that go into one task of the engine. None: measured, so that 95 % of a task is for them.
        cif: of microscopy: files of your own crystals, instead of those that data names.
        data: what is simulated.
    """

    problem: tyro.conf.Positional[str]
    preset: Literal["laptop", "full"] = "laptop"
    engine: str = "processes"
    engine_address: str | None = None
    task_size: int | None = None
    cif: tuple[str, ...] = ()
    data: Simulation | Weather | Aquifer = field(default_factory=Simulation)


@dataclass(frozen=True)
class Data:
    """Public data sets: which there are, where they lie, and how to have them here.

    Args:
        action: list, where or get.
        name: of the data set, for where and get.
        url: address of an archive, for get.
    """

    action: tyro.conf.Positional[Literal["list", "where", "get"]]
    name: tyro.conf.Positional[str | None] = None
    url: str | None = None


@dataclass(frozen=True)
class TraceOf:
    """Sums up the trace of a run: phases, communication hidden and exposed, rounds, the slowest rank, changes.

    Args:
        run: a run folder, or a trace file.
    """

    run: tyro.conf.Positional[Path]


@dataclass(frozen=True)
class ReportOn:
    """Writes report.html of a run: what it was and what came of it, in one file that loads nothing from elsewhere.

    Every training writes it at its end. Here it is made anew, also for a run that failed or still goes on.

    Args:
        run: a run folder.
        baseline: folder of the same run on one rank, to compare the speed with.
        out: the page. None: report.html in the run folder.
    """

    run: tyro.conf.Positional[Path]
    baseline: Path | None = None
    out: Path | None = None


@dataclass(frozen=True)
class Doctor:
    """Tells versions, back ends, cores and memory, and checks a reduction of gradients over two processes.

    Under torchrun, srun or mpirun it checks the reduction over the ranks there are.
    """


@dataclass(frozen=True)
class Cite:
    """Prints the papers behind what is used.

    Args:
        bibtex: as BibTeX entries.
    """

    bibtex: tyro.conf.FlagCreatePairsOff[bool] = False
