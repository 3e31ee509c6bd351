"""Conformance: whether an engine runs every task once, with the right inputs, and hands out the right outputs."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from exafield.engine import EngineError, GraphEngine, Session, Work
from exafield.taskbench.dependencies import PatternError
from exafield.taskbench.journal import journals, read
from exafield.taskbench.kernels import Kernel
from exafield.taskbench.patterns import pattern

TYPES = (
    "trivial", "no_comm", "stencil_1d", "stencil_1d_periodic", "dom", "tree", "fft", "all_to_all", "nearest", "spread",
    "random_nearest",
)  # fmt: skip
WIDTHS = (1, 2, 3, 7, 8)
OUTPUTS = (16, 1000, 65536)
SCRATCH = (0, 4096)


@dataclass(frozen=True)
class Case:
    """What is run together: one or two graphs.

    Args:
        type: of the first graph; the second is of the next type in the list.
        output: bytes.
        scratch: bytes.
    """

    type: str
    width: int
    graphs: int
    output: int
    scratch: int
    steps: int = 6

    def works(self) -> list[Work]:
        """The graphs, and what their tasks do.

        Raises:
            PatternError: a combination that is refused.
        """
        works = []
        for index in range(self.graphs):
            kind = TYPES[(TYPES.index(self.type) + index) % len(TYPES)]
            made = pattern(kind, width=self.width, steps=self.steps + index, radix=3, graph_index=index)
            kernel = Kernel("compute_bound" if index else "empty", iterations=4 * index, output_bytes=self.output,
                            scratch_bytes=self.scratch, graph_index=index)  # fmt: skip
            works.append(Work(made.graph(), kernel))
        return works


def every_case() -> list[Case]:
    """The full product."""
    return [Case(*values) for values in itertools.product(TYPES, WIDTHS, (1, 2), OUTPUTS, SCRATCH)]


def covering() -> list[Case]:
    """A selection in which any two values of different parameters occur together at least once.

    Greedy (AETG, Cohen et al. 1997): of all cases, take the one that covers most pairs not covered yet.
    """
    cases = every_case()
    pairs = {case: _pairs(case) for case in cases}
    open_pairs = set().union(*pairs.values())
    chosen: list[Case] = []
    while open_pairs:
        best = max(cases, key=lambda case: len(pairs[case] & open_pairs))
        chosen.append(best)
        open_pairs -= pairs[best]
    return chosen


def _pairs(case: Case) -> set[tuple[int, object, int, object]]:
    values = (case.type, case.width, case.graphs, case.output, case.scratch)
    return {(i, values[i], j, values[j]) for i, j in itertools.combinations(range(5), 2)}


def fault(session: Session, case: Case, passes: int = 2) -> str | None:
    """What is wrong with how a session runs a case; None: nothing.

    Raises:
        PatternError: the case is refused.
    """
    with journals(case.works()) as (works, paths):
        try:
            outcome = session.run(works, passes)
        except EngineError as error:
            return str(error)
        if len(outcome.elapsed) != passes or min(outcome.elapsed) <= 0:
            return f"{passes} passes, but times {outcome.elapsed}"
        for index, (work, path) in enumerate(zip(works, paths, strict=True)):
            graph = work.graph
            if wrong := read(path, graph).fault(graph, passes):
                return f"graph {index}: {wrong}"
            last = graph.steps - 1
            pairs = outcome.outputs[index][:, : work.body.output_bytes // 16 * 16].copy().view(np.int64)
            pairs = pairs.reshape(len(graph.columns(last)), -1, 2)
            right = np.array([[last, column] for column in graph.columns(last)])
            if not np.array_equal(pairs, np.broadcast_to(right[:, None], pairs.shape)):
                return f"graph {index}: the outputs of the last row are wrong"
    return None


def check(engine: GraphEngine, cases: Sequence[Case]) -> Iterator[tuple[Case, str | None]]:
    """Runs cases one after the other on one session; yields what is wrong with each.

    Cases that the benchmark refuses are left out.
    """
    with engine.open() as session:
        for case in cases:
            try:
                wrong = fault(session, case)
            except PatternError:
                continue
            yield case, wrong
            if wrong is not None:
                return
