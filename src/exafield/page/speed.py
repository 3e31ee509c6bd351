"""Speed: what a run made of its ranks, in figures that say how they were come by."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from exafield.page.contents import Contents, PageError
from exafield.page.quantity import number
from exafield.suggestion import counted
from exafield.summary import NORMS, Summary

# In which order, and by which names in a trace, a step's time is told.
COMPUTING = ("forward", "backward", "optimiser")
WAITING = ("finish", NORMS, "data wait")


@dataclass(frozen=True)
class Speed:
    """Medians over the records of metrics of one session: the last one in which there was training.

    Args:
        ranks: in that session; None if it is not known.
        samples: of all ranks [1/s].
        exact, published: operations of all ranks [FLOP/s], see :class:`exafield.flops.Operations`.
        peak: of all ranks [FLOP/s], see :func:`exafield.peak.matrix_peak`; None if it was not measured.
        dtype: of that measurement.
    """

    ranks: int | None
    samples: float
    exact: float
    published: float
    peak: float | None
    dtype: str

    def of_peak(self, operations: float) -> float:
        """Share of the peak; NaN if it is not known."""
        return operations / self.peak if self.peak else math.nan


def speed(contents: Contents) -> Speed | None:
    """How fast a run was; None if no metrics of training are left."""
    session, records = next(
        ((s, found) for s in reversed(contents.sessions) if (found := contents.during(s))),
        (contents.last, contents.trained()),
    )
    if not records:
        return None
    peak = session.get("peak")
    peak = peak if isinstance(peak, Mapping) else {}
    measured = number(peak.get("all_ranks"))
    ranks = number(session.get("ranks", contents.result.get("ranks")))
    return Speed(
        int(ranks) if math.isfinite(ranks) and ranks >= 1 else None,
        _typical(records, "samples/s"),
        _typical(records, "FLOP/s"),
        _typical(records, "published FLOP/s"),
        measured if measured > 0 and math.isfinite(measured) else None,
        str(peak.get("dtype", "unknown")),
    )


def _typical(records: Sequence[Mapping[str, Any]], name: str) -> float:
    values = [value for record in records if math.isfinite(value := number(record.get(name)))]
    return median(values) if values else math.nan


def parts(summary: Summary) -> Mapping[str, float]:
    """Where the time of a step goes: shares that add up to 1, by what the trainer does; empty without steps."""
    names = [name for name in (*COMPUTING, *WAITING) if name != NORMS or name in summary.phases]
    spent = {name: summary.phases.get(name, 0.0) for name in names}
    if not summary.compute:
        return {}
    whole = (spent["forward"] + spent["backward"]) / summary.compute
    shares = {name: time / whole for name, time in spent.items()}
    return shares | {"other": max(0.0, 1.0 - sum(shares.values()))}


@dataclass(frozen=True)
class Scaling:
    """A run beside the same on one rank.

    Args:
        ranks: of the run.
        here, alone: samples per rank [1/s] of the run, and of the one on one rank.
    """

    ranks: int
    here: float
    alone: float

    @property
    def efficiency(self) -> float:
        """Of weak scaling: every rank has as much to do as the one alone."""
        return self.here / self.alone


def scaling(contents: Contents, baseline: Contents) -> Scaling:
    """Compares a run with one of one rank, on the same question with as many samples per rank.

    Raises:
        PageError: the two cannot be compared; says in what they differ.
    """
    here, alone = speed(contents), speed(baseline)
    for one, found in ((contents, here), (baseline, alone)):
        if found is None or found.ranks is None or not found.samples > 0:
            raise PageError(f"{one.folder} holds no metrics that tell its ranks and samples/s: it cannot be compared")
        if one.run is None:
            raise PageError(one.unreadable.get("run.yaml", f"{one.folder} holds no run.yaml: it cannot be compared"))
    assert here is not None
    assert alone is not None
    assert here.ranks is not None
    if alone.ranks != 1:
        raise PageError(f"{baseline.folder} ran on {counted(alone.ranks or 0, 'rank')}: a baseline is a run on one")
    mine, other = _compared(contents), _compared(baseline)
    differing = [f"{name}: {mine[name]} here, {other[name]} there" for name in mine if mine[name] != other[name]]
    if differing:
        raise PageError(f"{baseline.folder} is no baseline of {contents.folder}, they differ in {'; '.join(differing)}")
    return Scaling(here.ranks, here.samples / here.ranks, alone.samples)


def _compared(contents: Contents) -> Mapping[str, object]:
    """What must be the same in a run and its baseline: what decides how much a rank has to do, and on what."""
    run, last = contents.run, contents.last
    assert run is not None
    batch = contents.result.get("batch")
    batch = batch if isinstance(batch, Mapping) else {}
    size = batch.get("size", run.training.batch_size)
    return {
        "problem": run.problem.name,
        **{name: value for name, value in asdict(run.problem).items() if name != "data"},
        **{name: value for name, value in asdict(run.problem.data).items() if name != "store"},
        "samples per rank and draw": size,
        "draws per step": batch.get("accumulate", run.training.accumulate),
        "precision": run.training.precision,
        "optimiser": run.training.optimiser.partition(":")[0],
        "processor": last.get("processor", "unknown"),
        "GPU": last.get("gpu") or "none",
        "threads per rank": last.get("threads", "unknown"),
    }
