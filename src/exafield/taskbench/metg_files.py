"""Files of METG measurements: JSON that is read again, and CSV for whatever else reads it."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exafield.run import RunError
from exafield.taskbench.flags import GraphFlags
from exafield.taskbench.metg import Metg, Sample, Sweep

FORMAT = {"format": "exafield-metg", "version": 1}


def to_json(sweeps: Sequence[Sweep]) -> str:
    """Sweeps as text that :func:`from_json` reads, with what follows from them: METG at all thresholds."""
    entries = [{**asdict(sweep), "metg": [_metg(metg) for metg in sweep.metgs()]} for sweep in sweeps]
    return json.dumps({**FORMAT, "sweeps": entries}, indent=1)


def _metg(metg: Metg) -> dict[str, Any]:
    """As JSON has it, which knows no infinity: an upper end that is null means that some resamples never reach it."""
    ends = None if metg.interval is None else [end if math.isfinite(end) else None for end in metg.interval]
    return {**asdict(metg), "interval": ends}


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
    entry = {name: value for name, value in entry.items() if name != "metg"}
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


_GRAPH = ("engine", "graphs", "type", "steps", "width", "radix", "kernel", "output_bytes", "imbalance", "cores")
COLUMNS = (
    *_GRAPH, "iterations", "repeats", "mean_elapsed_s", "relative_uncertainty", "granularity_s", "rate", "unit",
    "efficiency",
)  # fmt: skip
THRESHOLD_COLUMNS = (*_GRAPH, "threshold", "metg_s", "low_s", "high_s", "bound", "best_efficiency")


def to_csv(sweeps: Sequence[Sweep]) -> str:
    """One line for each size of each sweep."""

    def rows(s: Sweep) -> Iterator[tuple[Any, ...]]:
        for sample, g, rate, e in zip(s.samples, s.granularities(), s.rates(), s.efficiencies(), strict=True):
            repeats = len(sample.elapsed)
            uncertainty = (
                sample.uncertainty if math.isfinite(sample.uncertainty) else ""
            )  # of one repeat it is not known
            yield sample.iterations, repeats, sample.mean, uncertainty, g, rate, s.unit, e

    return _table(COLUMNS, [(sweep, row) for sweep in sweeps for row in rows(sweep)])


def thresholds_to_csv(sweeps: Sequence[Sweep]) -> str:
    """One line for METG at each threshold of each sweep; empty where it is not reached, or has no interval."""

    def row(metg: Metg) -> tuple[Any, ...]:
        return metg.threshold, metg.seconds, *(metg.interval or (None, None)), int(metg.bound), metg.best

    return _table(THRESHOLD_COLUMNS, [(sweep, row(metg)) for sweep in sweeps for metg in sweep.metgs()])


def _table(columns: Sequence[str], rows: Sequence[tuple[Sweep, tuple[Any, ...]]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for s, row in rows:
        graph = s.graphs[0]
        writer.writerow([s.engine, len(s.graphs), graph.type, graph.steps, graph.width, graph.radix, graph.kernel,
                         graph.output, graph.imbalance, s.cores, *row])  # fmt: skip
    return text.getvalue()
