"""The demo, several times over with other seeds: how good the reconstruction is, and how long it takes.

    python benchmarks/microscopy.py [--runs 3] [--ranks 2] [--seconds 110] [--json FILE]

Each run trains a network on simulated scans of crystals and scores it on crystals it never saw, beside the best of
four ridge regressions on the same windows (its regularisation chosen on validation data). Data is simulated in the
first run if it is not there yet; `--fresh` simulates it anew in each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def run(seed: int, ranks: int, seconds: float, fresh: bool) -> dict[str, Any]:
    """One run's figures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        env = os.environ | ({"EXAFIELD_CACHE": f"{folder}/cache"} if fresh else {})
        command = [sys.executable, "-m", "exafield", "train", "microscopy", "--ranks", str(ranks)]
        command += ["--seed", str(seed), "--seconds", str(seconds), "--folder", str(out)]
        began = time.monotonic()
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        took = time.monotonic() - began
        if done.returncode:
            sys.exit(f"seed {seed}: {' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        result = json.loads((out / "result.json").read_text())
    report = result["report"]
    figures = {f"network {name}": value for name, value in report["network"].items() if name != "windows"}
    figures |= {f"ridge {name}": value for name, value in report["ridge"].items() if name != "windows"}
    for part in ("seen", "unseen"):
        if report[part] is not None:
            figures[f"network relative_l2, type {part}"] = report[part]["relative_l2"]
            figures[f"network recall, type {part}"] = report[part]["recall"]
    figures["ratio of relative_l2"] = figures["network relative_l2"] / figures["ridge relative_l2"]
    return {"seed": seed, "steps": result["steps"], "whole run [s]": took, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=110.0, help="of training")
    parser.add_argument("--fresh", action="store_true", help="simulate the data anew in each run")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.runs):
        rows.append(run(seed, arguments.ranks, arguments.seconds, arguments.fresh))
        print(f"seed {seed}: {rows[-1]}", flush=True)
    print(f"{'':36s} {'min':>8s} {'median':>8s} {'max':>8s}")
    summary = {}
    for name in rows[0]:
        if name != "seed":
            values = [row[name] for row in rows]
            summary[name] = {"min": min(values), "median": statistics.median(values), "max": max(values)}
            print(f"{name:36s} " + " ".join(f"{v:8.3f}" for v in summary[name].values()))
    if arguments.json:
        about = {"benchmark": "microscopy", "format": 1, "ranks": arguments.ranks, "seconds": arguments.seconds}
        arguments.json.write_text(json.dumps({**about, "runs": rows, "summary": summary}, indent=1))


if __name__ == "__main__":
    main()
