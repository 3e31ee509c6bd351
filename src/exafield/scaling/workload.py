"""Workload: a training step as a graph of Task Bench, so that any engine can be judged on what we run ourselves."""

import os
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from exafield.engine.graph import TaskGraph
from exafield.reduce.grouping import Grouping
from exafield.scaling.rows import StepGraph
from exafield.scaling.step import Step
from exafield.taskbench.beyond import to_file


def training_step(step: Step, ranks: int, grouping: Grouping, steps: int = 1) -> StepGraph:
    """So many steps of a training, one after the other; see :class:`exafield.scaling.rows.StepGraph`.

    Args:
        step: with times.
        ranks: two columns each, one that computes and one that reduces.
        grouping: of the gradients.

    Raises:
        StepError: the step has no times.
        ValueError: there must be at least one step, and one rank.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    one = step.graph(ranks, grouping)
    graph, count = one.graph, steps
    # A step begins with a row in which everybody goes on alone, so that it can follow another one.
    repeated = TaskGraph(
        graph.width,
        np.tile(graph.offsets, count),
        np.tile(graph.widths, count),
        np.tile(graph.chosen, count),
        graph.relations,
    )
    return replace(one, graph=repeated, seconds=np.tile(one.seconds, (count, 1)))


def loads(made: StepGraph) -> NDArray[np.float64]:
    """What each task has to do, in units of what a task has to do on average, [rows, columns]."""
    return np.asarray(made.seconds / made.seconds.mean())


def write(made: StepGraph, path: str | os.PathLike[str], about: str) -> None:
    """Writes a file for `exafield taskbench run --graph`.

    Args:
        about: a remark for its beginning.
    """
    to_file(made.graph, loads(made), os.fspath(path), about)
