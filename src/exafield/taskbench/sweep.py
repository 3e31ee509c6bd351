"""A sweep: sizes of task from long to short on one engine, of which METG follows.

Which sizes there are follows from what the system needs for tasks that do nothing, and from what the peak promises; the
longest become longer while that makes them more efficient. Time that is left goes to repeats, where they tell most.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from exafield.engine import GraphEngine, Session, TaskGraph, Work
from exafield.run import RunError
from exafield.taskbench.flags import GraphFlags
from exafield.taskbench.memory import check_memory, estimate
from exafield.taskbench.metg import Sample, Sweep, duration
from exafield.taskbench.run import amount, machine, timed, version, works_of

# All our choice. How much longer than a bare task the longest ones are at first: enough for 95 % efficiency if nothing
# but the number of tasks costs.
_LONGEST = 64
# Efficiency from which tasks need not become longer, and the factor by which twice the length must raise it.
_EFFICIENT, _GAIN = 0.95, 1.01
# Efficiency below which tasks need not become smaller.
_LEAST = 0.03
# Times a size is run at least, if there is time, and at most.
_REPEATS, _ENOUGH = 3, 30
# Half the 95 % interval of the mean elapsed time, over it, that is narrow enough.
_NARROW = 0.02
# Passes at a time after the first visit to a size.
_BATCH = 4
# Rows of the run from which it is told how long longer ones take, and the fewest that rows are reduced to.
_PROBE = 10
# Times that such a short run is made: the shortest counts.
_PROBES = 3
# Bare runs that fit into the budget of a sweep worth its name: one of tasks 8 times as long as bare ones takes an
# eighth of it, with its warm-up, and there is time for 16 times.
_ROOM = 128
# Share of the budget that the first run may take.
_FIRST = 1 / 16
# Bare runs that must fit at least: of four sizes, each once for warm-up and once with the clock.
_FEWEST = 8


class BudgetError(RunError):
    """What was asked for takes longer than it may."""


def sweep(
    engine: GraphEngine,
    graphs: Sequence[GraphFlags],
    *,
    name: str,
    peak: float,
    cores: int,
    budget: float = 60.0,
    largest: int | None = None,
    reduce: bool = False,
    say: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
) -> Sweep:
    """Runs tasks from long to short on an engine.

    First a few rows tell how long a run takes. Then each size is run once, after that those again whose mean is known
    worst, until all are known well enough or the time is up.

    Args:
        graphs: that are run together; their iterations are chosen here.
        name: of the engine.
        peak: see :func:`exafield.taskbench.run.peak`, on `cores` cores.
        budget: time for this, the start of the system not included [s]. A run that has begun is completed, so it can
            take somewhat longer.
        largest: iterations of the longest tasks. None: so many that they take 64 times as long as bare tasks, and more
            while that makes them more efficient.
        reduce: run fewer steps if the budget is too small for so many.
        say: is told how it goes.
        clock: that budgets go by [s].
    Raises:
        BudgetError: the steps do not fit into the budget, and are not to be reduced.
        RunError: it does not fit into memory, or the kernel does nothing.
        EngineError: the system failed.
    """
    unit = amount(_sized(graphs, 1 << 20))[1]
    with engine.open() as session:
        end = clock() + budget
        bare = _bare(session, graphs, name, budget / 8)
        if reduce:
            graphs, bare = _reduced(graphs, bare, name, budget, say)
        elif _FEWEST * bare > budget:
            raise BudgetError(
                f"{name}: a run of {graphs[0].steps} steps takes about {duration(bare)} without any work in its tasks, "
                f"too long for a budget of {budget:g} s: give --budget {math.ceil(_ROOM * bare)}, or fewer -steps"
            )
        start = largest or _longest(graphs, bare, peak, budget)
        samples: list[Sample] = []
        costs: list[float] = []

        def visit(iterations: int, place: int) -> tuple[float, float]:
            """Efficiency of a size, and the time of finding it out [s]."""
            began = clock()
            sample = _measure(session, _sized(graphs, iterations), name, 1)
            took = clock() - began
            samples.insert(place, sample)
            # Beside the passes themselves, a run has to be prepared.
            costs.insert(place, took + (_BATCH - 1) * sample.mean)
            efficiency = sample.amount / sample.mean / peak
            say(f"{name}: {iterations} iterations, {duration(sample.mean * cores / sample.tasks)}, {efficiency:.1%}")
            return efficiency, took

        efficiency, took = visit(start, 0)
        # Half of the time remains for shorter tasks, which take less than these.
        while largest is None and efficiency < _EFFICIENT and 2 * took <= (end - clock()) / 2:
            before = efficiency
            efficiency, took = visit(2 * samples[0].iterations, 0)
            if efficiency < _GAIN * before:
                break
        while samples[-1].iterations > 1:
            shortest = samples[-1]
            # The next one takes no less than this, with its warm-up: half of what is above bare tasks.
            following = bare + max(bare, shortest.mean)
            if shortest.amount / shortest.mean / peak < _LEAST or clock() + following > end:
                break
            visit(shortest.iterations // 2, len(samples))
        graphs = _sized(graphs, samples[0].iterations)
        _repeat(session, graphs, name, samples, costs, end, clock)
        workers = session.workers
    return Sweep(
        name, version(name), workers, cores, unit, peak, tuple(graphs), machine(), tuple(samples)
    )  # fmt: skip


def _sized(graphs: Sequence[GraphFlags], iterations: int) -> list[GraphFlags]:
    return [replace(graph, iterations=iterations) for graph in graphs]


def _works(graphs: Sequence[GraphFlags]) -> list[Work]:
    patterns = [graph.pattern(index) for index, graph in enumerate(graphs)]
    return works_of(patterns, [graph.body(index) for index, graph in enumerate(graphs)])


def _measure(session: Session, graphs: Sequence[GraphFlags], name: str, repeats: int) -> Sample:
    works = _works(graphs)
    check_memory(estimate(works, name))
    elapsed = timed(session, works, repeats)
    return Sample(graphs[0].iterations, sum(len(work.graph) for work in works), amount(graphs)[0], elapsed)


def _bare(session: Session, graphs: Sequence[GraphFlags], name: str, most: float) -> float:
    """About how long a run takes whose tasks do nothing [s].

    Args:
        most: that may be spent on finding out, if a few rows do not take longer already [s].
    """
    works = _works(_sized(graphs, 1))
    check_memory(estimate(works, name))
    rows = _PROBE
    while True:
        short = [Work(_first(work.graph, rows), work.body) for work in works]
        # Whoever else uses the machine can only make it longer.
        elapsed = min(timed(session, short, _PROBES))
        # Whether rows or tasks cost, whichever there are relatively more of.
        more = max(work.graph.steps for work in works) / max(work.graph.steps for work in short)
        more = max(more, sum(len(work.graph) for work in works) / sum(len(work.graph) for work in short))
        if more <= 1 or 4 * (_PROBES + 1) * elapsed > most:
            return elapsed * more
        rows *= 4


def _first(graph: TaskGraph, steps: int) -> TaskGraph:
    """The first rows of a graph."""
    return TaskGraph(graph.width, graph.offsets[:steps], graph.widths[:steps], graph.chosen[:steps], graph.relations)


def _reduced(
    graphs: Sequence[GraphFlags], bare: float, name: str, budget: float, say: Callable[[str], None]
) -> tuple[Sequence[GraphFlags], float]:
    """Graphs of as many of their steps as the budget suffices for, and how long their bare tasks take [s]."""
    share = budget / (_ROOM * bare)
    if share >= 1:
        return graphs, bare
    fewer = [replace(graph, steps=min(graph.steps, max(_PROBE, int(graph.steps * share)))) for graph in graphs]
    if fewer != list(graphs):
        say(f"{name}: {fewer[0].steps} steps in place of {graphs[0].steps}, which would take more than {budget:g} s")
    return fewer, bare * fewer[0].steps / graphs[0].steps


def _longest(graphs: Sequence[GraphFlags], bare: float, peak: float, budget: float) -> int:
    """Iterations of the longest tasks at first."""
    longer = min(float(_LONGEST), _FIRST * budget / bare)
    each = amount(_sized(graphs, 1 << 20))[0] / (1 << 20)
    return 1 << max(0, round(math.log2(max(1.0, longer * bare * peak / each))))


def _repeat(
    session: Session,
    graphs: Sequence[GraphFlags],
    name: str,
    samples: list[Sample],
    costs: Sequence[float],
    end: float,
    clock: Callable[[], float],
) -> None:
    """Adds repeats to samples while there is time, where they are needed most.

    Args:
        costs: how long that takes for each sample [s].
        end: of the time there is.
    """
    while True:
        left = end - clock()
        wanted = [
            (len(sample.elapsed) >= _REPEATS, -sample.uncertainty, index)
            for index, sample in enumerate(samples)
            if len(sample.elapsed) < _REPEATS or (sample.uncertainty > _NARROW and len(sample.elapsed) < _ENOUGH)
            if costs[index] <= left
        ]
        if not wanted:
            return
        index = min(wanted)[2]
        sample = samples[index]
        more = _measure(session, _sized(graphs, sample.iterations), name, _BATCH)
        samples[index] = replace(sample, elapsed=sample.elapsed + more.elapsed)
