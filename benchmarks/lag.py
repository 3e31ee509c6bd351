"""Gradient lag against none on the demo problem: learning curves over the same steps, and what was reached.

python benchmarks/lag.py [--seeds 2] [--steps 500] [--optimiser TEXT] [--schedule TEXT] [--json FILE] [--picture FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run(seed: int, lag: int, steps: int, optimiser: str, schedule: str) -> dict[str, Any]:
    """One training: its losses by step, and its scores."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "exafield", "train", "microscopy", "--ranks", "2", "--folder", str(out)]
        command += ["--seed", str(seed), "--lag", str(lag), "--steps", str(steps)]
        command += ["--optimiser", optimiser, "--schedule", schedule]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        result = json.loads((out / "result.json").read_text())
    curve = [(r["step"], r["loss"]) for r in records if r.get("kind") == "train"]
    scores = result["report"]["network"]
    return {"seed": seed, "lag": lag, "curve": curve, "relative_l2": scores["relative_l2"], "r2": scores["r2"]}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for lag, colour, style in ((0, "#1f5fa8", "-"), (1, "#c8553d", "--")):
        for number, row in enumerate(row for row in rows if row["lag"] == lag):
            steps, losses = zip(*row["curve"], strict=True)
            label = None if number else ("no lag" if lag == 0 else "lag of one step")
            axes.plot(steps, losses, style, color=colour, lw=1.3, alpha=0.85, label=label)
    axes.set(yscale="log", xlabel="step", ylabel="training loss (mean squared error)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--optimiser", default="adamw:learning_rate=0.0003", help="as in exafield train")
    parser.add_argument("--schedule", default="cosine:warmup=50", help="as in exafield train")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--picture", type=Path, help="draw the curves there")
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.seeds):
        for lag in (0, 1):
            rows.append(run(seed, lag, arguments.steps, arguments.optimiser, arguments.schedule))
            row = rows[-1]
            last = statistics.mean(loss for _, loss in row["curve"][-5:])
            print(
                f"seed {seed} lag {lag}: loss {last:.4f}, relative L2 {row['relative_l2']:.3f}, R2 {row['r2']:.3f}",
                flush=True,
            )
    if arguments.picture:
        draw(rows, arguments.picture)
    if arguments.json:
        about = {"benchmark": "lag", "format": 1, "steps": arguments.steps, "ranks": 2}
        about |= {"optimiser": arguments.optimiser, "schedule": arguments.schedule}
        arguments.json.write_text(json.dumps({**about, "runs": rows}, indent=1))


if __name__ == "__main__":
    main()
