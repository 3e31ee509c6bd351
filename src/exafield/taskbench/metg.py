"""METG: the minimum effective task granularity, the shortest tasks that a system still runs efficiently.

Definition and rule are those of arXiv:1908.05790, section 4, and of the scripts published with it: granularity is wall
time x cores / tasks, efficiency is the rate over the peak rate, and METG(50 %) is the granularity at which efficiency
falls to one half, between the two sizes of task around it. Unlike there, the peak is measured where the run is, sizes
are chosen by what the system needs, each is repeated until its mean is known well enough, and intervals are given.
"""

import csv
import io
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from exafield.engine import GraphEngine, Session
from exafield.run import RunError
from exafield.taskbench.flags import GraphFlags
from exafield.taskbench.run import amount, check_memory, estimate, machine, timed, version, works_of

FORMAT = {"format": "exafield-metg", "version": 1}
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
        """METG at a threshold, with an interval by the bootstrap (repeats of each size are resampled).

        Args:
            resamples: 0: no interval. Nor is there one if the sizes that decide were run only once.
            seed: of the resampling.
        """
        granularities, efficiencies = self.granularities(), self.efficiencies()
        seconds = rule(granularities, efficiencies, threshold)
        best = max(efficiencies, default=0.0)
        deciding = _deciding(granularities, efficiencies, threshold)
        if seconds is None or deciding is None:
            return Metg(threshold, None, False, best)
        # With nothing below the threshold there is only a bound.
        bound = min(efficiencies) >= threshold
        # What was run once tells nothing of its spread.
        if not resamples or min(len(sample.elapsed) for sample in self.samples[deciding : deciding + 2]) < 2:
            return Metg(threshold, seconds, bound, best)
        generator = np.random.default_rng(seed)
        means = np.stack([_means(sample, resamples, generator) for sample in self.samples], axis=1)
        tasks = np.array([sample.tasks for sample in self.samples])
        amounts = np.array([float(sample.amount) for sample in self.samples])
        found = [
            rule(g.tolist(), e.tolist(), threshold)
            for g, e in zip(means * self.cores / tasks, amounts / means / self.peak, strict=True)
        ]
        values = [math.inf if value is None else value for value in found]
        # One of the values, never a mean of two: some may be infinite.
        low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
        return Metg(threshold, seconds, bound, best, (float(low), float(high)))


def _means(sample: Sample, resamples: int, generator: np.random.Generator) -> Any:
    times = np.array(sample.elapsed)
    return times[generator.integers(times.size, size=(resamples, times.size))].mean(axis=1)


def rule(granularities: Sequence[float], efficiencies: Sequence[float], threshold: float) -> float | None:
    """METG [s] of sizes from long tasks to short ones; None if the threshold is never reached.

    Of the sizes that are efficient enough the one with the smallest granularity counts. If the next shorter tasks have
    a smaller one still, granularity is interpolated linearly in efficiency between the two.
    """
    i = _deciding(granularities, efficiencies, threshold)
    if i is None:
        return None
    if i + 1 == len(granularities) or granularities[i + 1] >= granularities[i]:
        return granularities[i]
    share = (efficiencies[i] - threshold) / (efficiencies[i] - efficiencies[i + 1])
    return granularities[i] + share * (granularities[i + 1] - granularities[i])


def _deciding(granularities: Sequence[float], efficiencies: Sequence[float], threshold: float) -> int | None:
    """Of the sizes that are efficient enough the one with the smallest granularity."""
    enough = [i for i, efficiency in enumerate(efficiencies) if efficiency >= threshold]
    return min(enough, key=lambda i: granularities[i]) if enough else None


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
    say: Callable[[str], None] = lambda text: None,
) -> Sweep:
    """Runs tasks from long to short on an engine.

    First each size once, then those again whose mean is known worst, until all are known well enough or the time is up.

    Args:
        graphs: that are run together; their iterations are chosen here.
        name: of the engine.
        peak: see :func:`exafield.taskbench.run.peak`, on `cores` cores.
        budget: time for this [s]; the first visits may take longer.
        largest: iterations of the longest tasks. None: so many that they take 64 times as long as bare tasks.
        say: is told how it goes.
    Raises:
        RunError: it does not fit into memory, or the kernel does nothing.
        EngineError: the system failed.
    """
    end = time.monotonic() + budget
    unit = amount(_sized(graphs, 1 << 20))[1]
    with engine.open() as session:
        iterations = largest or _longest(session, graphs, name, peak, budget)
        graphs = _sized(graphs, iterations)
        samples: list[Sample] = []
        costs: list[float] = []
        while iterations >= 1:
            began = time.monotonic()
            sample = _measure(session, _sized(graphs, iterations), name, 1)
            samples.append(sample)
            # Beside the passes themselves, a run has to be prepared.
            costs.append(time.monotonic() - began + (_BATCH - 1) * sample.mean)
            efficiency = sample.amount / sample.mean / peak
            say(f"{name}: {iterations} iterations, {duration(sample.mean * cores / sample.tasks)}, {efficiency:.1%}")
            if efficiency < _LEAST or time.monotonic() > end:
                break
            iterations //= 2
        _repeat(session, graphs, name, samples, costs, end)
        workers = session.workers
    return Sweep(
        name, version(name), workers, cores, unit, peak, tuple(graphs), machine(), tuple(samples)
    )  # fmt: skip


def _sized(graphs: Sequence[GraphFlags], iterations: int) -> list[GraphFlags]:
    return [replace(graph, iterations=iterations) for graph in graphs]


def _measure(session: Session, graphs: Sequence[GraphFlags], name: str, repeats: int) -> Sample:
    patterns = [graph.pattern(index) for index, graph in enumerate(graphs)]
    kernels = [graph.body(index) for index, graph in enumerate(graphs)]
    works = works_of(patterns, kernels)
    check_memory(estimate(works, name))
    elapsed = timed(session, works, repeats)
    return Sample(graphs[0].iterations, sum(len(work.graph) for work in works), amount(graphs)[0], elapsed)


def _longest(session: Session, graphs: Sequence[GraphFlags], name: str, peak: float, budget: float) -> int:
    bare = _measure(session, _sized(graphs, 1), name, 1).mean
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
) -> None:
    """Adds repeats to samples while there is time, where they are needed most.

    Args:
        costs: how long that takes for each sample [s].
        end: of the time there is.
    """
    while True:
        left = end - time.monotonic()
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


# ---- files ----


def to_json(sweeps: Sequence[Sweep]) -> str:
    """Sweeps as text that :func:`from_json` reads."""
    return json.dumps({**FORMAT, "sweeps": [asdict(sweep) for sweep in sweeps]}, indent=1)


def from_json(text: str, source: str = "the text") -> list[Sweep]:
    """Sweeps that :func:`to_json` wrote.

    Args:
        source: what errors call it.
    Raises:
        RunError: it is damaged, of another kind or of a newer version.
    """
    try:
        read = json.loads(text)
        if read["format"] != FORMAT["format"]:
            raise ValueError("it does not hold METG results")
        if int(read["version"]) > 1:
            raise RunError(f"{source} has format {read['version']}, this exafield reads up to 1: update exafield")
        return [_sweep(entry) for entry in read["sweeps"]]
    except RunError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{source} cannot be read as METG results: {type(error).__name__}: {error}") from error


def _sweep(entry: dict[str, Any]) -> Sweep:
    graphs = tuple(GraphFlags(**graph) for graph in entry["graphs"])
    samples = tuple(Sample(**{**sample, "elapsed": tuple(sample["elapsed"])}) for sample in entry["samples"])
    return Sweep(**{**entry, "graphs": graphs, "samples": samples})


def load(path: Path) -> list[Sweep]:
    """Sweeps from a file.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return from_json(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from error


COLUMNS = (
    "engine", "graphs", "type", "steps", "width", "radix", "kernel", "output_bytes", "imbalance", "cores", "iterations",
    "repeats", "mean_elapsed_s", "relative_uncertainty", "granularity_s", "rate", "unit", "efficiency",
)  # fmt: skip


def to_csv(sweeps: Sequence[Sweep]) -> str:
    """One line for each size of each sweep."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for s in sweeps:
        graph = s.graphs[0]
        fixed = (s.engine, len(s.graphs), graph.type, graph.steps, graph.width, graph.radix, graph.kernel,
                 graph.output, graph.imbalance, s.cores)  # fmt: skip
        for sample, g, rate, e in zip(s.samples, s.granularities(), s.rates(), s.efficiencies(), strict=True):
            repeats = len(sample.elapsed)
            row = (sample.iterations, repeats, sample.mean, sample.uncertainty, g, rate, s.unit, e)
            writer.writerow([*fixed, *row])
    return text.getvalue()
