"""METG(50 %) of engines on this machine: stencil_1d, 1,000 steps, compute_bound, one column a core and four.

python benchmarks/metg.py [--engines A,B,C] [--widths 2,8] [--budget S] [--rounds N] [--json FILE]

Engines take turns, `--rounds` times, so that what else the machine does is spread over all of them; each round measures
the peak of its cores anew. Printed are the least, the median and the largest METG of the rounds, and the efficiency of
the longest tasks.
"""

import argparse
import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from exafield.engine import engine
from exafield.engine.catalogue import SYSTEMS
from exafield.taskbench.flags import GraphFlags
from exafield.taskbench.metg import sweep
from exafield.taskbench.run import cores, machine, peak

BASE = GraphFlags(steps=1000, type="stencil_1d", kernel="compute_bound")
# Systems whose tasks take milliseconds: as many steps as they finish in the time there is.
SHORT = replace(BASE, steps=50)
DEFAULT = "serial,threads,shared,prange,mpi,mpi-bulk,mpi-compiled"


def measured(name: str, width: int, budget: float, steps: int | None) -> dict[str, Any]:
    """One sweep of one engine, against the peak of its cores just before and after it."""
    base = SHORT if SYSTEMS[name].slow else BASE
    graph = replace(base, width=width, steps=steps or base.steps)
    count = 1 if name == "serial" else cores()
    made = engine(name) if name == "serial" else engine(name, workers=count)
    before = peak([graph], count)
    made_sweep = sweep(made, [graph], name=name, peak=before, cores=count, budget=budget)
    found = replace(made_sweep, peak=max(before, peak([graph], count))).metg()
    best = max(replace(made_sweep, peak=max(before, made_sweep.peak)).efficiencies())
    return {"engine": name, "width": width, "steps": graph.steps, "best_efficiency": best, "metg": asdict(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=DEFAULT)
    parser.add_argument("--widths", default="2,8")
    parser.add_argument("--budget", type=float, default=10.0, help="time for one sweep [s]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="rows of the graph [1,000; 50 where tasks take milliseconds]")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    arguments = parser.parse_args()
    names = arguments.engines.split(",")
    widths = [int(width) for width in arguments.widths.split(",")]
    rows = [
        measured(name, width, arguments.budget, arguments.steps)
        for _ in range(arguments.rounds)
        for width in widths
        for name in names
    ]
    print(f"METG(50 %) [us]: least, median and largest of {arguments.rounds} rounds; efficiency of the longest tasks")
    for name in names:
        for width in widths:
            own = [row for row in rows if row["engine"] == name and row["width"] == width]
            values = sorted(row["metg"]["seconds"] * 1e6 for row in own if row["metg"]["seconds"] is not None)
            best = statistics.median(row["best_efficiency"] for row in own)
            said = "not reached"
            if values:
                said = " ".join(f"{value:9.3g}" for value in (values[0], statistics.median(values), values[-1]))
            print(f"{name:14s} width {width:3d}, {own[0]['steps']:4d} steps  {said:30s} {best:6.0%}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1, default=str))


if __name__ == "__main__":
    main()
