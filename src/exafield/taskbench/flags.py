"""Flags: the command line that all implementations of Task Bench share, and our own options beside it.

Task Bench's flags have one dash, and are those of arXiv:1908.05790, `core`. Ours have two. Unlike there, a flag that
does not exist is an error: a mistyped one would run another graph than was meant.
"""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from textwrap import fill

from exafield.run import RunError
from exafield.suggestion import unknown
from exafield.taskbench import patterns
from exafield.taskbench.beyond import GivenGraph, from_file
from exafield.taskbench.dependencies import AnyPattern, PatternError
from exafield.taskbench.kernels import KINDS, Kernel, KernelError
from exafield.taskbench.patterns import pattern


class FlagError(RunError):
    """A flag is wrong. The message is a whole line, as Task Bench prints it."""


@dataclass(frozen=True, slots=True)
class GraphFlags:
    """One graph as it was asked for.

    Args:
        steps: rows.
        width: columns.
        type: of the dependencies.
        radix: dependencies of a task, for types that have a number of them.
        period: of the dependence sets; None: what the type has by default.
        fraction: of dependencies that are there, for random types.
        kernel: what a task does.
        iterations: of the kernel.
        output: of a task [bytes].
        scratch: of a column [bytes].
        samples: that the scratch memory is cut into.
        imbalance: 0 to 2, for load_imbalance.
        fields: buffers that an implementation may rotate through; 0: as many as rows. Engines choose for themselves.
        file: that holds the graph, whose rows and columns `steps` and `width` then are; None: it is of the type.
    """

    steps: int = 4
    width: int = 4
    type: str = "trivial"
    radix: int = 3
    period: int | None = None
    fraction: float = 0.25
    kernel: str = "empty"
    iterations: int = 0
    output: int = 16
    scratch: int = 0
    samples: int = 16
    imbalance: float = 0.0
    fields: int = 0
    file: str | None = None

    def pattern(self, index: int = 0) -> AnyPattern:
        """The dependencies, as graph number `index` of a run.

        Raises:
            FlagError: there is no such graph; says why.
        """
        if self.file is not None:
            return given(self.file, index)
        try:
            return _pattern(
                self.type, width=self.width, steps=self.steps, radix=self.radix, period=self.period,
                fraction=self.fraction, graph_index=index,
            )  # fmt: skip
        except PatternError as error:
            raise FlagError(_line(error)) from error

    def body(self, index: int = 0) -> Kernel:
        """What the tasks do, in graph number `index` of a run.

        Raises:
            FlagError: there is no such kernel; says why.
        """
        loads, width = b"", 0
        if self.kernel == "load_given" and self.file is not None:
            made = given(self.file, index)
            if made.loads is not None:
                loads, width = made.loads.tobytes(), made.width
        try:
            return Kernel(
                self.kernel, iterations=self.iterations, samples=self.samples, imbalance=self.imbalance,
                output_bytes=self.output, scratch_bytes=self.scratch, graph_index=index, loads=loads,
                loads_width=width,
            )  # fmt: skip
        except KernelError as error:
            raise FlagError(_line(error)) from error


# Those of one run, so that a sweep does not make them anew for each size of task; how many is our choice.
_pattern = lru_cache(maxsize=8)(pattern)


def given(path: str, index: int = 0) -> GivenGraph:
    """The graph in a file; see :func:`exafield.taskbench.beyond.from_file`.

    Raises:
        FlagError: there is none; says in which line, and why.
    """
    try:
        state = os.stat(path)
        return _read(path, index, (state.st_mtime_ns, state.st_size, state.st_ino))
    except OSError as error:
        raise FlagError(f"error: {GRAPH} {path} cannot be read: {error.strerror}") from error
    except PatternError as error:
        raise FlagError(_line(error)) from error


@lru_cache(maxsize=8)
def _read(path: str, index: int, state: tuple[int, ...]) -> GivenGraph:
    return replace(from_file(path, index), type=Path(path).name)


@dataclass(frozen=True, slots=True)
class Flags:
    """What Task Bench's flags say.

    Args:
        graphs: that are run together.
        nodes: for the estimate of what is transferred; 0: none.
        verbose: 1 prints the dependencies, 2 the reverse ones as well.
        validate: check after the run that all of it was done.
        help: print what flags there are, and do nothing.
        given: for each graph the flags that occurred.
    """

    graphs: tuple[GraphFlags, ...] = (GraphFlags(),)
    nodes: int = 0
    verbose: int = 0
    validate: bool = True
    help: bool = False
    given: tuple[frozenset[str], ...] = (frozenset(),)

    def patterns(self) -> list[AnyPattern]:
        """Of all graphs; see :meth:`GraphFlags.pattern`."""
        return [graph.pattern(index) for index, graph in enumerate(self.graphs)]

    def kernels(self) -> list[Kernel]:
        """Of all graphs; see :meth:`GraphFlags.body`."""
        return [graph.body(index) for index, graph in enumerate(self.graphs)]


# Flag: the setting, the least value, the greatest, and what the message says of them.
_INTEGERS: Mapping[str, tuple[str, int, str]] = {
    "-steps": ("steps", 1, "> 0"),
    "-width": ("width", 1, "> 0"),
    "-radix": ("radix", 0, ">= 0"),
    "-period": ("period", 0, ">= 0"),
    "-iter": ("iterations", 0, ">= 0"),
    "-output": ("output", 16, ">= 16"),
    "-scratch": ("scratch", 0, ">= 0"),
    "-sample": ("samples", 0, ">= 0"),
    "-field": ("fields", 1, "> 1"),  # as it is worded there, though 1 is taken
    "-nodes": ("nodes", 1, "> 0"),
}
_FLOATS: Mapping[str, tuple[str, float]] = {"-fraction": ("fraction", 1.0), "-imbalance": ("imbalance", 2.0)}
_NAMES: Mapping[str, str] = {"-type": "type", "-kernel": "kernel"}
GRAPH = "--graph"  # ours, but of one graph like those of Task Bench
_SWITCHES = ("-and", "-v", "-vv", "-h", "-skip-graph-validation")
FLAGS = (*_INTEGERS, *_FLOATS, *_NAMES, GRAPH, *_SWITCHES)
# What a graph in a file says itself.
OF_TYPE = ("-steps", "-width", "-type", "-radix", "-period", "-fraction")
_LARGEST = 2**63 - 1

TYPES = tuple(sorted((*patterns.TYPES, *patterns.BEYOND)))
KERNELS = tuple(sorted(KINDS))


def _listed(names: Sequence[str]) -> str:
    return fill(", ".join(names), 94, initial_indent=" " * 19, subsequent_indent=" " * 19).strip()


GRAPH_HELP = f"""\
Task Bench's flags, for each graph:
  -steps INT       rows [4]
  -width INT       columns [4]
  -type NAME       dependencies [trivial]:
                   {_listed(TYPES)}
  -radix INT       dependencies of a task (nearest, spread, random types) [3]
  -period INT      number of dependence sets (spread, random types) [3]
  -fraction FLOAT  of the dependencies that are there, 0..1 (random types) [0.25]
  -kernel NAME     what a task does [empty]:
                   {_listed(KERNELS)}
  -iter INT        iterations of the kernel [0]
  -output INT      bytes of a task's output, at least 16 [16]
  -scratch INT     bytes of memory that each column keeps (memory kernels) [0]
  -sample INT      parts that this memory is cut into [16]
  -imbalance X     0..2: tasks do (1 - X/2)..(1 + X/2) times the iterations (load_imbalance kernels) [0]
  -field INT       accepted; engines choose the number of buffers themselves
  --graph FILE     a graph of any form, in place of -steps, -width, -type and what belongs to the type. A text file: a
                   line `graph STEPS WIDTH`, then for each task, row by row, a line `T P: Q Q ...`: the task in
                   row T and column P takes the outputs of columns Q of row T - 1. With `* LOAD` at the end of a line
                   and -kernel load_given the task does LOAD times as much as the average one
  -and             the flags before it were one graph, those after it are the next, from the defaults again
and for the run:
  -nodes INT       estimate what is local and what is not on this many nodes
  -v, -vv          print dependencies; reverse dependencies as well
  -skip-graph-validation  do not check afterwards that every task was run
  -h               this help
"""


def _line(error: Exception) -> str:
    text = str(error)
    return text if text.startswith("error:") else f"error: {text}"


@dataclass(slots=True)
class _Reader:
    """Goes through the arguments."""

    arguments: Sequence[str]
    at: int = 0
    graphs: list[GraphFlags] = field(default_factory=lambda: [GraphFlags()])
    given: list[frozenset[str]] = field(default_factory=lambda: [frozenset()])
    flags: Flags = field(default_factory=Flags)

    def read(self) -> Flags:
        while self.at < len(self.arguments):
            flag = self.arguments[self.at]
            if flag not in FLAGS:
                raise FlagError(f"error: {unknown('flag', flag, FLAGS)}")
            if flag in _SWITCHES:
                self._switch(flag)
            else:
                self._setting(flag)
            if flag != "-and":
                self.given[-1] |= {flag}
            self.at += 1
        for number, flags in enumerate(self.given):
            if GRAPH in flags:
                self.graphs[number] = self._from_file(self.graphs[number], flags)
        return replace(self.flags, graphs=tuple(self.graphs), given=tuple(self.given))

    def _from_file(self, graph: GraphFlags, flags: Collection[str]) -> GraphFlags:
        if more := [flag for flag in OF_TYPE if flag in flags]:
            raise FlagError(
                f'error: Flag "{more[0]}" does not go with {GRAPH}: the file says it. Leave out one of them'
            )
        made = given(str(graph.file))
        return replace(graph, type=Path(str(graph.file)).name, steps=made.steps, width=made.width)

    def _switch(self, flag: str) -> None:
        if flag == "-and":
            self.graphs.append(GraphFlags())
            self.given.append(frozenset())
        elif flag == "-h":
            self.flags = replace(self.flags, help=True)
        elif flag == "-skip-graph-validation":
            self.flags = replace(self.flags, validate=False)
        else:
            self.flags = replace(self.flags, verbose=self.flags.verbose + len(flag) - 1)

    def _setting(self, flag: str) -> None:
        self.at += 1
        if self.at == len(self.arguments):
            raise FlagError(f'error: Flag "{flag}" requires an argument')
        text = self.arguments[self.at]
        value: int | float | str
        if flag in _NAMES:
            name, value = _NAMES[flag], text
            choices = TYPES if flag == "-type" else KERNELS
            if text not in choices:
                raise FlagError(f'error: Invalid flag "{flag} {text}"\nerror: {unknown(name, text, choices)}')
        elif flag == GRAPH:
            name, value = "file", text
        elif flag in _FLOATS:
            name, value = _real(flag, text)
        else:
            name, value = _integer(flag, text)
        if name == "nodes":
            self.flags = replace(self.flags, nodes=int(value))
        else:
            self.graphs[-1] = replace(self.graphs[-1], **{name: value})  # type: ignore[arg-type]


def _integer(flag: str, text: str) -> tuple[str, int]:
    name, least, wanted = _INTEGERS[flag]
    try:
        value = int(text)
    except ValueError:
        raise FlagError(f'error: Invalid flag "{flag} {text}" must be an integer') from None
    if value < least:
        raise FlagError(f'error: Invalid flag "{flag} {value}" must be {wanted}')
    if value > _LARGEST:
        raise FlagError(f'error: Invalid flag "{flag} {value}" must be <= {_LARGEST}')
    return name, value


def _real(flag: str, text: str) -> tuple[str, float]:
    name, greatest = _FLOATS[flag]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise FlagError(f'error: Invalid flag "{flag} {text}" must be a number')
    if not 0 <= value <= greatest:
        raise FlagError(f'error: Invalid flag "{flag} {value:f}" must be >= 0 and <= {greatest:.0f}')
    return name, value


def parse(arguments: Sequence[str]) -> Flags:
    """Reads Task Bench's flags.

    Raises:
        FlagError: one is unknown, lacks its value, or has a bad one.
    """
    return _Reader(arguments).read()


def separate(
    arguments: Sequence[str], options: Collection[str], switches: Collection[str] = (), graphs: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Takes our own options out: what remains, and the options' values by name ("--json").

    Args:
        options: that have a value, given as `--name value` or `--name=value`.
        switches: that have none.
        graphs: `--graph` stays among what remains, since its place says which graph it is.
    Raises:
        FlagError: an option is unknown, given twice, or lacks its value.
    """
    rest: list[str] = []
    found: dict[str, str] = {}
    at = 0
    while at < len(arguments):
        name, equals, value = arguments[at].partition("=")
        at += 1
        if not name.startswith("--"):
            rest.append(arguments[at - 1])
            continue
        if graphs and name == GRAPH:
            rest += [name, value] if equals else [name, *arguments[at : at + 1]]
            at += not equals
            continue
        if name not in options and name not in switches:
            raise FlagError(f"error: {unknown('option', name, [*options, *switches, *[GRAPH] * graphs])}")
        if name in found:
            raise FlagError(f'error: Flag "{name}" is given twice')
        if name in switches:
            if equals:
                raise FlagError(f'error: Flag "{name}" takes no argument')
        elif not equals:
            if at == len(arguments):
                raise FlagError(f'error: Flag "{name}" requires an argument')
            value = arguments[at]
            at += 1
        found[name] = value
    return rest, found


def number(options: Mapping[str, str], name: str, default: float, least: float = 0.0) -> float:
    """The value of one of our options as a number.

    Raises:
        FlagError: it is none, or less than `least`.
    """
    text = options.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise FlagError(f'error: Invalid flag "{name} {text}" must be a number >= {least:g}')
    return value


def count(options: Mapping[str, str], name: str, default: int | None = None) -> int | None:
    """The value of one of our options as a positive whole number.

    Raises:
        FlagError: it is none.
    """
    text = options.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise FlagError(f'error: Invalid flag "{name} {text}" must be > 0')
    return int(text)
