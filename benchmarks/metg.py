"""METG(50 %) of engines on this machine: stencil_1d, compute_bound, one column a core and four.

python benchmarks/metg.py [--engines A,B,C] [--widths 2,8] [--budget S] [--rounds N] [--steps N] [--json FILE] [--out D]

Engines take turns, `--rounds` times, so that what else the machine does is spread over all of them; each round measures
the peak of its cores anew. Each size of task is run several times, and METG follows from the mean of its times, as
Task Bench has it, from their median, and from their least: on a machine with other work the mean counts that, too.
Printed are the median of the rounds with the least and the largest for each of the three, and the efficiency of the
longest tasks. 1,000 steps; fewer where they do not fit into the budget, which the table then says.

`--floors` also times what a row costs without any task: an empty parallel loop of numba, and of OpenMP in C where gcc
is at hand.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exafield.engine import EngineError, engine
from exafield.run import RunError
from exafield.taskbench.flags import GraphFlags
from exafield.taskbench.metg import Sweep
from exafield.taskbench.metg_files import to_json
from exafield.taskbench.run import cores, machine, peak
from exafield.taskbench.sweep import sweep

BASE = GraphFlags(steps=1000, type="stencil_1d", kernel="compute_bound")
DEFAULT = "serial,threads,shared,prange,mpi,mpi-bulk,mpi-compiled"
KINDS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean, "median": statistics.median, "least": min
}  # fmt: skip


def measured(name: str, width: int, budget: float, steps: int | None) -> Sweep:
    """One sweep of one engine, against the best peak of its cores just before and after it."""
    graph = replace(BASE, width=width, steps=steps or BASE.steps)
    count = 1 if name == "serial" else cores()
    made = engine(name) if name == "serial" else engine(name, workers=count)
    before = peak([graph], count)
    found = sweep(made, [graph], name=name, peak=before, cores=count, budget=budget, reduce=steps is None)
    return replace(found, peak=max(before, peak([graph], count)))


def seconds(found: Sweep, kind: str) -> float | None:
    """METG(50 %) [s] by one way to take the times of a size together."""
    samples = tuple(replace(sample, elapsed=(KINDS[kind](sample.elapsed),)) for sample in found.samples)
    return replace(found, samples=samples).metg(resamples=0).seconds


def row(found: Sweep) -> dict[str, Any]:
    """What is kept of a sweep."""
    return {
        "engine": found.engine, "width": found.graphs[0].width, "steps": found.graphs[0].steps, "peak": found.peak,
        "metg": {kind: seconds(found, kind) for kind in KINDS},
        "best_efficiency": max(found.efficiencies()),
    }  # fmt: skip


def spread(values: Sequence[float | None]) -> str:
    """Median, least and largest in microseconds."""
    there = sorted(value * 1e6 for value in values if value is not None)
    if not there:
        return "never reached"
    return f"{statistics.median(there):.3g} ({there[0]:.3g} to {there[-1]:.3g})"


def floors(rows: int = 1000, repeats: int = 40) -> dict[str, float]:
    """Least time of a row whose loop over the cores has nothing to do [s]."""
    import numba
    import numpy as np

    count = cores()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))

    @numba.njit(parallel=True)
    def bare(cells: Any, rows: int, count: int) -> None:
        for _ in range(rows):
            for i in numba.prange(count):
                cells[i * 64] += 1

    cells = np.zeros(64 * count, dtype=np.int64)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        bare(cells, rows, count)
        times.append((time.perf_counter() - began) / rows)
    found = {"numba prange": min(times)}
    compiler = shutil.which("gcc")
    if compiler:
        program = f"""#include <omp.h>
#include <stdio.h>
int main() {{ static long x[{64 * count}]; double best = 1e9;
  for (int r = 0; r < {repeats}; r++) {{ double t = omp_get_wtime();
    for (int k = 0; k < {rows}; k++) {{
#pragma omp parallel for num_threads({count})
      for (int i = 0; i < {count}; i++) x[i * 64]++; }}
    t = (omp_get_wtime() - t) / {rows}; if (t < best) best = t; }}
  printf("%g\\n", best); }}"""
        with tempfile.TemporaryDirectory() as folder:
            source, binary = Path(folder, "loop.c"), Path(folder, "loop")
            source.write_text(program)
            built = subprocess.run([compiler, "-O3", "-fopenmp", str(source), "-o", str(binary)], check=False)
            if built.returncode == 0:
                found["OpenMP in C"] = float(subprocess.run([str(binary)], check=True, capture_output=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=DEFAULT)
    parser.add_argument("--widths", default="2,8")
    parser.add_argument("--budget", type=float, default=10.0, help="time for one sweep [s]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="rows of the graph, no fewer [1,000, fewer if they do not fit]")
    parser.add_argument("--floors", action="store_true", help="also time loops that do nothing")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--out", type=Path, help="keep the sweeps of each width as metg-WIDTH.json in this folder")
    arguments = parser.parse_args()
    names = arguments.engines.split(",")
    widths = [int(width) for width in arguments.widths.split(",")]
    sweeps: list[Sweep] = []
    failed: list[str] = []
    for number in range(arguments.rounds):
        for width in widths:
            for name in names:
                try:
                    sweeps.append(measured(name, width, arguments.budget, arguments.steps))
                except (EngineError, RunError, ImportError) as error:
                    failed.append(f"{name}, width {width}, round {number + 1}: {error}")
    rows = [row(found) for found in sweeps]
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}; METG(50 %) [us] of {arguments.rounds} rounds:")
    print(f"{'engine':14s} width steps  {'by the mean':>28s} {'by the median':>28s} {'by the least':>28s}  efficiency")
    for name in names:
        for width in widths:
            own = [r for r in rows if r["engine"] == name and r["width"] == width]
            if own:
                texts = " ".join(f"{spread([r['metg'][kind] for r in own]):>28s}" for kind in KINDS)
                best = statistics.median(r["best_efficiency"] for r in own)
                print(f"{name:14s} {width:5d} {own[0]['steps']:5d}  {texts}  {best:9.0%}")
    for text in failed:
        print(text)
    empty = floors() if arguments.floors else {}
    for name, value in empty.items():
        print(f"an empty parallel loop, {name}: {value * 1e6:.2f} us; METG(50 %) of one loop a row is twice that")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": rows, "floors": empty}, indent=1))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for width in widths:
            # The last round's, so that each engine has one curve in a picture of `exafield taskbench compare`.
            last = {found.engine: found for found in sweeps if found.graphs[0].width == width}
            (arguments.out / f"metg-{width}.json").write_text(to_json(list(last.values())) + "\n")


if __name__ == "__main__":
    main()
