"""What ranks are: programs; what they are told to do, and what they say of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from exafield.engine import Outcome, Share
from exafield.engine.graph import Work


@runtime_checkable
class Program(Protocol):
    """What a rank does. Made once in each process with (rank, size, folder); `folder` is one that all ranks share."""

    def prepare(self, works: Sequence[Work]) -> None:
        """Makes ready what is not timed: native code, memory, who sends what to whom. All ranks have done it before
        any runs."""
        ...

    def run(self) -> float:
        """One pass, together with the other ranks; returns its wall time [s], as long as the slowest rank took."""
        ...

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """Of each graph: the outputs of the last row's tasks that this rank ran, by column."""
        ...

    def close(self) -> None:
        """Gives back what the program holds."""
        ...


@dataclass(frozen=True)
class Order:
    """Runs works so many times in a row."""

    works: tuple[Work, ...]
    passes: int


@dataclass(frozen=True)
class Report:
    """What came of an order on one rank.

    Args:
        elapsed: wall time of each pass [s].
        outputs: of each graph, those of the last row's tasks that the rank ran, by column.
        share: what it did.
    """

    elapsed: tuple[float, ...]
    outputs: list[dict[int, NDArray[np.uint8]]]
    share: Share


def gathered(works: Sequence[Work], parts: Sequence[Report]) -> Outcome:
    """The outcome on all ranks together."""
    outputs = []
    for number, work in enumerate(works):
        rows = {column: row for part in parts for column, row in part.outputs[number].items()}
        outputs.append(np.array([rows[c] for c in work.graph.columns(work.graph.steps - 1)], dtype=np.uint8))
    elapsed = tuple(max(times) for times in zip(*(part.elapsed for part in parts), strict=True))
    return Outcome(elapsed, tuple(outputs), tuple(part.share for part in parts))
