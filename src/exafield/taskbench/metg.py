"""METG: the minimum effective task granularity, the shortest tasks that a system still runs efficiently.

Definition and rule are those of arXiv:1908.05790, section 4, and of the scripts published with it: granularity is wall
time x cores / tasks, efficiency is the rate over the peak rate, and METG(50 %) is the granularity at which efficiency
falls to one half, between the two sizes of task around it. Unlike there, the peak is measured where the run is, sizes
are chosen by what the system needs, each is repeated until its mean is known well enough, and intervals are given.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.taskbench.flags import GraphFlags

RESAMPLES = 1000
# Efficiencies at which METG is listed and drawn.
THRESHOLDS = tuple(percent / 100 for percent in range(5, 100, 5))


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
