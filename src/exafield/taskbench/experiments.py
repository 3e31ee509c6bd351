"""Experiments: what METG is measured against, and the graphs that are swept for it."""

from dataclasses import dataclass, replace
from typing import Any

from exafield.taskbench.flags import GRAPH, OF_TYPE, Flags, GraphFlags


@dataclass(frozen=True, slots=True)
class Experiment:
    """A setting that is varied.

    Args:
        flag: its flag.
        field: its name in :class:`GraphFlags`.
        values: that it takes.
        graph: where it is varied, unless flags say otherwise.
        graphs: how many of them run together.
        name: for axes.
    """

    flag: str
    field: str
    values: tuple[Any, ...]
    graph: GraphFlags
    graphs: int
    name: str


_BASE = GraphFlags(steps=1000, type="stencil_1d", kernel="compute_bound")
_NEAREST = replace(_BASE, type="nearest", radix=5)
EXPERIMENTS = {
    "radix": Experiment("-radix", "radix", tuple(range(10)), _NEAREST, 1, "dependencies of a task"),
    "communication": Experiment("-output", "output", (16, 256, 4096, 65536), replace(_NEAREST, type="spread"), 4,
                                "bytes of a dependency"),
    "imbalance": Experiment("-imbalance", "imbalance", (0.0, 0.5, 1.0, 1.5, 2.0),
                            replace(_NEAREST, kernel="load_imbalance"), 4,
                            "load imbalance x: tasks are 1 - x/2 to 1 + x/2 times as long"),
}  # fmt: skip


def swept(flags: Flags, experiment: Experiment | None, cores: int) -> list[GraphFlags]:
    """The graphs that are swept: what was given, else the defaults of METG or of the experiment."""
    base = _BASE if experiment is None else experiment.graph
    base = replace(base, width=cores if experiment is None else max(cores, 16))
    names = {"steps": "-steps", "width": "-width", "type": "-type", "radix": "-radix", "kernel": "-kernel"}
    made = []
    for graph, given in zip(flags.graphs, flags.given, strict=True):
        said = {*given, *OF_TYPE} if GRAPH in given else given
        defaults = {name: getattr(base, name) for name, flag in names.items() if flag not in said}
        made.append(replace(graph, **defaults))
    return made if experiment is None or len(made) > 1 else made * experiment.graphs
