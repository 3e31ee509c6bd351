"""METG: the minimum effective task granularity, the shortest tasks that a system still runs efficiently.

Definition and rule are those of arXiv:1908.05790, section 4, and of the scripts published with it: granularity is wall
time x cores / tasks, efficiency is the rate over the peak rate, and METG(50 %) is the granularity at which efficiency
falls to one half, between the two sizes of task around it. Unlike there, the peak is measured where the run is, sizes
are chosen by what the system needs, each is repeated until its mean is known well enough, and intervals are given.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine import GraphEngine, Session, TaskGraph, Work
from exafield.run import RunError
from exafield.taskbench.flags import GraphFlags
from exafield.taskbench.memory import check_memory, estimate
from exafield.taskbench.run import amount, machine, timed, version, works_of

# All our choice. How much longer than a bare task the longest ones are: enough for 95 % efficiency.
_LONGEST = 64
# Efficiency below which tasks need not become smaller.
_LEAST = 0.03
# Times a size is run at least, if there is time, and at most.
_REPEATS, _ENOUGH = 3, 30
# Half the 95 % interval of the mean elapsed time, over it, that is narrow enough.
_NARROW = 0.02
# Passes at a time after the first visit to a size.
_BATCH = 4
RESAMPLES = 1000
# Efficiencies at which METG is listed and drawn.
THRESHOLDS = tuple(percent / 100 for percent in range(5, 100, 5))
# Rows of the run from which it is told how long longer ones take, and the fewest that rows are reduced to.
_PROBE = 10
# Times that such a short run is made: the shortest counts.
_PROBES = 3
# Bare runs that fit into the budget of a sweep worth its name: its longest tasks take 8 times as long as bare ones.
_ROOM = 64
# Bare runs that must fit at least: of four sizes, each once for warm-up and once with the clock.
_FEWEST = 8


class BudgetError(RunError):
    """What was asked for takes longer than it may."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One size of task.

    Args:
        iterations: of the kernel.
        tasks: in a run.
        amount: what the kernels of a run do [FLOP, bytes or iterations].
        elapsed: of each repeat [s].
    """

    iterations: int
    tasks: int
    amount: int
    elapsed: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean elapsed time [s]."""
        return sum(self.elapsed) / len(self.elapsed)

    @property
    def uncertainty(self) -> float:
        """Half the 95 % confidence interval of the mean over the mean, by Student's t; infinite for one repeat."""
        n = len(self.elapsed)
        if n < 2:
            return math.inf
        from scipy.special import stdtrit

        return float(stdtrit(n - 1, 0.975)) * float(np.std(self.elapsed, ddof=1)) / math.sqrt(n) / self.mean


@dataclass(frozen=True, slots=True)
class Metg:
    """The minimum effective task granularity.

    Args:
        threshold: efficiency that is asked for.
        seconds: the granularity [s]; None: this efficiency is never reached.
        bound: the smallest tasks there were are still that efficient, so it is at most this.
        best: the best efficiency there was.
        interval: 95 % of the resamples lie in it [s]; its end is infinite if some do not reach the efficiency.
    """

    threshold: float
    seconds: float | None
    bound: bool
    best: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.seconds is None:
            return f"never reaches {self.threshold:.0%}: best efficiency {self.best:.0%}"
        text = f"{'at most ' if self.bound else ''}{duration(self.seconds)}"
        if self.interval is None:
            return text
        low, high = self.interval
        return f"{text} ({duration(low)} to {duration(high) if math.isfinite(high) else 'never'})"


@dataclass(frozen=True, slots=True)
class Sweep:
    """Sizes of task from long to short, on one engine.

    Args:
        engine: its name.
        version: of the system; None: not known.
        workers: of the engine.
        cores: that the peak is of, and that granularity counts.
        unit: of rates: FLOP/s, B/s or iterations/s.
        peak: rate without any system, on these cores [unit].
        graphs: that are run together; their iterations are those of the longest tasks.
        machine: see :func:`exafield.taskbench.run.machine`.
        samples: one for each size, longest tasks first.
    """

    engine: str
    version: str | None
    workers: int
    cores: int
    unit: str
    peak: float
    graphs: tuple[GraphFlags, ...]
    machine: dict[str, Any]
    samples: tuple[Sample, ...]

    def granularities(self) -> list[float]:
        """Wall time x cores / tasks of each size [s]."""
        return [sample.mean * self.cores / sample.tasks for sample in self.samples]

    def rates(self) -> list[float]:
        """Of each size [unit]."""
        return [sample.amount / sample.mean for sample in self.samples]

    def efficiencies(self) -> list[float]:
        """Rate over peak, of each size."""
        return [rate / self.peak for rate in self.rates()]

    def metg(self, threshold: float = 0.5, resamples: int = RESAMPLES, seed: int = 0) -> Metg:
        """METG at a threshold; see :meth:`metgs`."""
        return self.metgs([threshold], resamples, seed)[0]

    def metgs(self, thresholds: Sequence[float] = THRESHOLDS, resamples: int = RESAMPLES, seed: int = 0) -> list[Metg]:
        """METG at thresholds, with intervals by the bootstrap (repeats of each size are resampled).

        Args:
            resamples: 0: no intervals. Nor is there one if the sizes that decide were run only once.
            seed: of the resampling.
        """
        granularities, efficiencies = np.array([self.granularities()]), np.array([self.efficiencies()])
        best = float(efficiencies.max(initial=0.0))
        resampled: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        metgs = []
        for threshold in thresholds:
            if best < threshold:
                metgs.append(Metg(threshold, None, False, best))
                continue
            seconds = float(_rule(granularities, efficiencies, threshold)[0])
            # With nothing below the threshold there is only a bound.
            bound = bool(efficiencies.min() >= threshold)
            deciding = int(_deciding(granularities, efficiencies, threshold)[0])
            interval = None
            # What was run once tells nothing of its spread.
            if resamples and min(len(sample.elapsed) for sample in self.samples[deciding : deciding + 2]) > 1:
                resampled = resampled or self._resampled(resamples, seed)
                # One of the values, never a mean of two: some may be infinite.
                low, high = np.quantile(_rule(*resampled, threshold), [0.025, 0.975], method="inverted_cdf")
                interval = float(low), float(high)
            metgs.append(Metg(threshold, seconds, bound, best, interval))
        return metgs

    def _resampled(self, resamples: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Granularities and efficiencies, [resamples, sizes]."""
        generator = np.random.default_rng(seed)
        means = np.stack([_means(sample, resamples, generator) for sample in self.samples], axis=1)
        tasks = np.array([sample.tasks for sample in self.samples])
        amounts = np.array([float(sample.amount) for sample in self.samples])
        return means * self.cores / tasks, amounts / means / self.peak


def _means(sample: Sample, resamples: int, generator: np.random.Generator) -> Any:
    times = np.array(sample.elapsed)
    return times[generator.integers(times.size, size=(resamples, times.size))].mean(axis=1)


def rule(granularities: Sequence[float], efficiencies: Sequence[float], threshold: float) -> float | None:
    """METG [s] of sizes from long tasks to short ones; None if the threshold is never reached.

    Of the sizes that are efficient enough the one with the smallest granularity counts. If the next shorter tasks have
    a smaller one still, granularity is interpolated linearly in efficiency between the two.
    """
    if not len(granularities):
        return None
    found = float(_rule(np.array([granularities]), np.array([efficiencies]), threshold)[0])
    return found if math.isfinite(found) else None


def _deciding(g: NDArray[np.float64], e: NDArray[np.float64], threshold: float) -> NDArray[np.intp]:
    """Of the sizes that are efficient enough the one with the smallest granularity, of each curve."""
    found: NDArray[np.intp] = np.where(e >= threshold, g, math.inf).argmin(axis=1)
    return found


def _rule(g: NDArray[np.float64], e: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """:func:`rule` for granularities and efficiencies of many curves, [curves, sizes]; infinite if never reached."""
    curve = np.arange(len(g))
    i = _deciding(g, e, threshold)
    following = np.minimum(i + 1, g.shape[1] - 1)
    own, other = g[curve, i], g[curve, following]
    # If the next shorter tasks have a smaller granularity they are not efficient enough, or they would decide.
    between = other < own
    fall = np.where(between, e[curve, i] - e[curve, following], 1.0)
    found = own + np.where(between, (e[curve, i] - threshold) / fall, 0.0) * (other - own)
    return np.where((e >= threshold).any(axis=1), found, math.inf)


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    for factor, unit in ((1e-6, "ns"), (1e-3, "µs"), (1.0, "ms")):
        if seconds < factor:
            return f"{seconds / factor * 1e3:.3g} {unit}"
    return f"{seconds:.3g} s"


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
        largest: iterations of the longest tasks. None: so many that they take 64 times as long as bare tasks.
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
        iterations = largest or _longest(graphs, bare, peak, budget)
        graphs = _sized(graphs, iterations)
        samples: list[Sample] = []
        costs: list[float] = []
        while iterations >= 1:
            began = clock()
            sample = _measure(session, _sized(graphs, iterations), name, 1)
            samples.append(sample)
            took = clock() - began
            # Beside the passes themselves, a run has to be prepared.
            costs.append(took + (_BATCH - 1) * sample.mean)
            efficiency = sample.amount / sample.mean / peak
            say(f"{name}: {iterations} iterations, {duration(sample.mean * cores / sample.tasks)}, {efficiency:.1%}")
            # The next one takes no less than this, and half of what is above bare tasks.
            following = took - max(0.0, sample.mean - bare)
            if efficiency < _LEAST or clock() + following > end:
                break
            iterations //= 2
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
    """Iterations of the longest tasks."""
    # The longest run takes as much as all shorter ones together, and each is run twice: half the budget remains.
    longer = min(float(_LONGEST), budget / 8 / bare)
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
