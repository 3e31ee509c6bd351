"""Rows: a training step as a task graph, for engines to run and Task Bench to measure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exafield.engine.graph import Relation, TaskGraph


@dataclass(frozen=True, eq=False)
class StepGraph:
    """One training step of all ranks.

    Rank r has two columns: 2r computes and 2r + 1 reduces. Backward is cut where groups of gradients are ready. Each
    group is then summed by the columns that reduce, in ceil(log2 ranks) rows: in row j one takes the output of that of
    the rank 2**j below, and its own. The others compute meanwhile; the optimiser's tasks take what was reduced last.

    Args:
        graph: of tasks.
        seconds: [rows, columns] of computing in each task; 0 for those that reduce and those that pass on.
        output_bytes: of a task: the mean size of a group, since a task graph knows one size only.
    """

    graph: TaskGraph
    seconds: NDArray[np.float64]
    output_bytes: int


def step_graph(
    ranks: int, forward: float, backward: float, after: float, ready: Sequence[float], sizes: Sequence[int]
) -> StepGraph:
    """See :meth:`exafield.scaling.step.Step.graph`.

    Args:
        ready: of each group [fraction of backward], ascending; the last one closes backward.
        sizes: of each group [bytes].
    """
    if ranks < 1:
        raise ValueError(f"a step needs at least 1 rank, got {ranks}")
    phases = (ranks - 1).bit_length()
    pass_on, hand_over, *exchanges = _relations(ranks, phases)
    joined = _joined(ranks)
    # Backward up to the first group, then each group's rows with the next piece of backward beside them.
    rows: list[tuple[Relation, float]] = [(pass_on, forward)]
    ends = [*ready[:-1], 1.0]
    pieces = np.diff([0.0, *ends]) * backward
    rows.append((pass_on, float(pieces[0])))
    for group in range(len(sizes)):
        beside = float(pieces[group + 1]) if group + 1 < len(sizes) else 0.0
        rows.append((hand_over, beside))
        rows += [(exchange, 0.0) for exchange in exchanges]
    rows.append((joined, after))
    relations = list(dict.fromkeys(relation for relation, _ in rows))
    seconds = np.zeros((len(rows), 2 * ranks))
    seconds[:, ::2] = np.array([[time] for _, time in rows])
    count = len(rows)
    graph = TaskGraph(
        2 * ranks,
        np.zeros(count, dtype=np.int64),
        np.full(count, 2 * ranks, dtype=np.int64),
        np.array([relations.index(relation) for relation, _ in rows]),
        tuple(relations),
    )
    return StepGraph(graph, seconds, round(sum(sizes) / len(sizes)))


def _relations(ranks: int, phases: int) -> list[Relation]:
    """Everybody goes on alone; who reduces takes what was computed; and the rows of an exchange."""
    alone = [[column] for column in range(2 * ranks)]
    handed = [[2 * rank] if column == 2 * rank else [2 * rank, 2 * rank + 1] for rank, column in _columns(ranks)]
    exchanges = [
        [
            [column] if column == 2 * rank else [column, 2 * ((rank - (1 << phase)) % ranks) + 1]
            for rank, column in _columns(ranks)
        ]
        for phase in range(phases)
    ]
    return [Relation.of(rows) for rows in (alone, handed, *exchanges)]


def _joined(ranks: int) -> Relation:
    both = [[2 * rank, 2 * rank + 1] if column == 2 * rank else [column] for rank, column in _columns(ranks)]
    return Relation.of(both)


def _columns(ranks: int) -> list[tuple[int, int]]:
    return [(column // 2, column) for column in range(2 * ranks)]
