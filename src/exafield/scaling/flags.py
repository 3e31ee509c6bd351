"""What `exafield scale` takes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from exafield.choice import Choice
from exafield.run import COLLECTIVE, CONTROL, GROUPING, Reduction
from exafield.setting import RunError
from exafield.suggestion import unknown


@dataclass(frozen=True)
class Scale:
    """Predicts how a training scales on a machine, what it costs there, and where the losses come from.

    Args:
        subject: microscopy, climate or subsurface (its newest run under runs/; without one a few steps are trained); a
            run folder; or a table of layers, such as tiramisu.
        machine: one of exafield scale machines, a machine file, or here: what exafield scale calibrate measured.
        nodes: numbers such as 8, ranges such as 1..4600 (doubling), or several with commas between. None: all.
        weak: every rank keeps its samples per step, the default.
        strong: all ranks together keep the samples per step of the fewest nodes.
        reducer: control/grouping/collective, as training takes them; what is left out is as in the run.
        compare: more reducers, with commas between.
        lag: apply gradients one step late.
        batch: samples per rank and step, on the fewest nodes. None: as in the run.
        precision: fp32, bf16 or fp16, as far as the machine has it. None: as in the run.
        data: where samples are: in memory, on storage of each node (local), or on the file system all share. None: in
            memory for runs about microscopy and subsurface, whose sets are kept there; else local.
        noise: largest spread of computing times, over their median, with which a trace is accepted.
        samples: the target: samples seen in all. None: a million.
        steps: the target in steps instead.
        price: of an hour of one device.
        out: folder for scaling.json and pictures.
    """

    subject: tyro.conf.Positional[str]
    machine: str = "here"
    nodes: str | None = None
    weak: tyro.conf.FlagCreatePairsOff[bool] = False
    strong: tyro.conf.FlagCreatePairsOff[bool] = False
    reducer: str | None = None
    compare: str | None = None
    lag: tyro.conf.FlagCreatePairsOff[bool] = False
    batch: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    data: Literal["memory", "local", "shared"] | None = None
    noise: float = 0.25
    samples: int | None = None
    steps: int | None = None
    price: float | None = None
    out: Path = Path("scaling")


@dataclass(frozen=True)
class Calibrate:
    """Measures this machine in less than a minute, and writes it as a machine file.

    Under torchrun, srun or mpirun the ranks there are are measured, and the links between their nodes; alone, some
    processes are started here.

    Args:
        out: the file. None: the one that --machine here reads, in the user's cache.
        ranks: processes on this machine that are measured together. None: one per core, two to eight.
    """

    out: Path | None = None
    ranks: int | None = None


@dataclass(frozen=True)
class Machines:
    """Lists the machines there are numbers of."""


@dataclass(frozen=True)
class Show:
    """Prints every number of a machine, and what it rests on.

    Args:
        machine: its name, or a file.
    """

    machine: tyro.conf.Positional[str]


@dataclass(frozen=True)
class Graph:
    """Writes training steps as a graph of tasks, which exafield taskbench runs on any engine.

    Args:
        subject: as for exafield scale.
        machine: whose device decides what tasks take relative to each other, where that was not measured.
        ranks: of the training; each has two columns, one that computes and one that reduces.
        steps: of the training.
        reducer: of which the grouping counts; default: that of the run.
        noise: as for exafield scale.
        out: the file.
    """

    subject: tyro.conf.Positional[str]
    machine: str = "summit"
    ranks: int = 4
    steps: int = 1
    reducer: str | None = None
    noise: float = 0.25
    out: Path = Path("step.txt")


_PARTS: Mapping[str, Choice] = {"control": CONTROL, "grouping": GROUPING, "collective": COLLECTIVE}


def reduction(text: str, usual: Reduction) -> Reduction:
    """The reducer that a text such as `bitvector/grouped:groups=8/hierarchical` describes; the rest is as usual.

    The names of controls, groupings and collectives differ, so that each part is known by its name.

    Raises:
        RunError: a part names none of them, two are of a kind, or a parameter cannot be.
    """
    given: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split("/"))):
        name = part.partition(":")[0].strip().lower().replace("-", "_")
        kind = next((kind for kind, choice in _PARTS.items() if name in choice.options), None)
        if kind is None:
            raise RunError(f"reducer {text}: " + unknown("part", name, [n for c in _PARTS.values() for n in c.options]))
        if kind in given:
            raise RunError(f"reducer {text}: {given[kind]} and {part} are both a {kind}: give one")
        given[kind] = part
        try:
            _PARTS[kind].build(part)
        except ValueError as error:
            raise RunError(f"reducer {text}: {error}") from error
    return replace(usual, **given)  # type: ignore[arg-type]


def several(text: str) -> list[str]:
    """Reducers with commas between: one before NAME=VALUE belongs to the parameters of the reducer before it."""
    return [part.strip() for part in re.split(r",(?!\s*\w+\s*=)", text) if part.strip()]


def named(settings: Reduction) -> str:
    """A reducer as it is written, without parameters that are as usual."""
    parts = []
    for kind, choice in _PARTS.items():
        name, values = choice.parse(getattr(settings, kind))
        usual = choice.parse(choice.complete(name))[1]
        parts.append(choice.write(name, {key: value for key, value in values.items() if value != usual[key]}))
    return "/".join(parts) + (" lag 1" if settings.lag else "")
