"""A run folder made by hand: everything a run leaves, in milliseconds."""

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from exafield import runfile
from exafield.provenance import NAME, Provenance
from exafield.report import Report
from exafield.run import Run, laptop
from exafield.trace import Trace

SESSION: dict[str, Any] = {
    "started": "2026-01-02T03:04:05+0000",
    "ended": None,
    "outcome": None,
    "command": "exafield train microscopy --ranks 2 --steps 60",
    "exafield": "0.1.0",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
    "system": "Linux 6.1 x86_64",
    "host": "node17",
    "processor": "A Processor",
    "cores": 2,
    "threads": 1,
    "gpu": None,
    "launcher": "exafield",
    "ranks": 2,
    "nodes": 1,
}
PEAK = {"all_ranks": 100e9, "dtype": "float32"}


def make_run(
    folder: Path,
    *,
    ranks: int = 2,
    run: Run | None = None,
    outcome: str | None = "complete",
    player: str = "network",
    metric: str = "relative_l2",
    samples: float = 64.0,
    session: dict[str, Any] | None = None,
) -> Path:
    """Fills `folder` with a run of 60 steps; `session` changes what is recorded of it."""
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(runfile.write(run or laptop(), "0.1.0"))
    recorded = Provenance(folder / NAME, SESSION | {"ranks": ranks} | (session or {}))
    report = Report(metrics=folder / "metrics.jsonl", stream=io.StringIO())
    for step in range(5, 65, 5):
        values = {"loss": 4.0 / step**1.5, "samples/s": samples + step % 3, "data wait": 0.01}
        report.train(step, values | {"FLOP/s": 20e9, "published FLOP/s": 25e9})
        if step % 20 == 0:
            report.evaluate(step, {metric: 5.0 / step, "r2": 1.0 - 3.0 / step})
    report.close()
    parts = [_trace(rank, player) for rank in range(ranks)]
    Trace.merge(parts).save(folder / "trace.json")
    if outcome is not None:
        recorded.end(outcome, steps=60, elapsed=30.0, peak=PEAK)
    if outcome == "complete":
        Image.new("RGB", (40, 20), "navy").save(folder / "microscopy.png")
        (folder / "result.json").write_text(json.dumps(_result(ranks, metric)))
    return folder


def _result(ranks: int, metric: str) -> dict[str, object]:
    score = {"windows": 8, metric: 0.5}
    return {
        "format": "exafield-result",
        "version": 1,
        "steps": 60,
        "elapsed": 30.0,
        "ranks": ranks,
        "batch": {"size": 8, "accumulate": 1, "ranks": ranks},
        "evaluation": {metric: 0.25},
        "report": {"network": score, "ridge": score, "kept": [0.9, 0.8], "ridge_name": "all pixels"},
        "gate": [{"reached": True, "line": "R2 is 0.95"}, {"reached": False, "line": "recall is 0.5"}],
    }


def _trace(rank: int, player: str) -> Trace:
    """Of each step a tenth is spent waiting in finish(): 40 % forward, 48 % backward, 2 % optimiser."""
    trace = Trace(rank, clock=lambda: 0.0)
    for number in range(12):
        at = 0.1 * number
        trace.add("trainer", "forward", at, at + 0.04, player=player)
        trace.add("trainer", "backward", at + 0.04, at + 0.088, player=player)
        trace.add(f"reduce {player}", "group 0", at + 0.06, at + 0.08, bytes=400)
        trace.add(f"reduce {player}", "group 1", at + 0.07, at + 0.098, bytes=800)
        trace.add("trainer", "finish", at + 0.088, at + 0.098, player=player)
        trace.add("trainer", "optimiser", at + 0.098, at + 0.1, player=player)
        trace.add("trainer", "step", at, at + 0.1, number=number)
    trace.add(f"reducer {player}", "control is Static", 0.6, 0.6, why="it gains 5 %")
    return trace
