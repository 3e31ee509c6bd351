"""Predicted against measured: step times of this machine, and of two and four nodes on a slow network.

    sudo python benchmarks/scaling.py [--json FILE] [--picture FILE] [--quick] [--places 2 4 2x2 4x2]

Places are 2 and 4 ranks of this machine, and the network of benchmarks/nodes.py: 2 and 4 "nodes" of two ranks, 200
Mbit/s each way. In each, the ranks calibrate the machine as `exafield scale calibrate` does. One rank then trains alone
for the trace from which the step is taken, and all ranks train with several reducers, in turns. What is predicted for a
reducer knows the machine file and the step, and nothing of the measured runs. Without root, or without the commands
`ip` and `tc` (iproute2), the places with nodes are left out, and the result says so.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import nodes
from exafield import Reducer, World
from exafield.field import Field
from exafield.launch import bind_to_parent, spawn
from exafield.machine import Machine
from exafield.optim import SGD
from exafield.problem import Player
from exafield.reduce import Bitvector, Central, Flat, Grouped, Hierarchical, Single, Static
from exafield.scaling import Step, simulate
from exafield.scaling.calibrate import calibrate, computing
from exafield.trace import Trace
from exafield.trainer import Trainer

# Convolutions as our networks have, with something to send: six layers, 6.1 MB.
WIDTH, EDGE, DEPTH, BATCH, SAMPLES = 168, 8, 6, 4, 512
GROUPS = 6
# A trace of a busy machine is used all the same: its error is then part of the result.
NOISE = 10.0
WITHIN = 0.10

ALL: Mapping[str, Reducer] = {
    "static": Reducer(Static(), Grouped(GROUPS), Flat()),
    "single": Reducer(Static(), Single(), Flat()),
    "bitvector": Reducer(Bitvector(), Grouped(GROUPS), Flat()),
    "central": Reducer(Central(), Grouped(GROUPS), Flat()),
    "static, lag 1": Reducer(Static(), Grouped(GROUPS), Flat(shared=False), lag=1),
}
# On one node all of these come to the same as Flat.
NODES: Mapping[str, Reducer] = {
    "hierarchical": Reducer(Static(), Grouped(GROUPS), Hierarchical()),
    "hierarchical, bf16": Reducer(Static(), Grouped(GROUPS), Hierarchical(1, "bf16")),
}
# Without shared memory; on several nodes that is "static".
ONE_NODE: Mapping[str, Reducer] = {"library": Reducer(Static(), Grouped(GROUPS), Flat(shared=False))}


class Numbers:
    """Samples that cost nothing to have."""

    fields: Mapping[str, Field]

    def __init__(self) -> None:
        self.fields = {"x": Field("x", ("width", "y", "x"), "1")}
        self._x = torch.randn(SAMPLES, WIDTH, EDGE, EDGE, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return SAMPLES

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        return {"x": self._x[list(indices)]}


class Imitation:
    """A network and nothing to learn."""

    name = "imitation"

    def __init__(self) -> None:
        self.source = Numbers()

    def players(self, world: World) -> Sequence[Player]:
        layers: list[nn.Module] = []
        for _ in range(DEPTH):
            layers += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()]
        network = nn.Sequential(*layers)
        return [Player("network", network, lambda batch: network(batch["x"]).square().mean(), SGD(1e-4))]

    def evaluate(self, world: World) -> dict[str, float]:
        return {}

    def picture(self, path: str | os.PathLike[str]) -> None:
        return


# ---- on the ranks ----


def trainer(world: World, reducer: Reducer, trace: Trace | None = None) -> Trainer:
    made = Trainer(Imitation(), world, reducer, batch_size=BATCH, trace=trace)
    made.meter.begin()
    return made


def timed(one: Trainer, world: World, steps: int) -> float:
    """Seconds per step of the slowest rank."""
    world.barrier()
    began = time.perf_counter()
    for _ in range(steps):
        one.step()
    took = torch.tensor([(time.perf_counter() - began) / steps])
    world.all_reduce(took, "max")
    return float(took)


def compared(world: World, blocks: int, steps: int) -> dict[str, Any]:
    """Machine, step, and for each reducer what was measured and what is predicted. Collective; whole on rank 0."""
    machine = calibrate(world)
    reducers = {**ALL, **(NODES if len(world.nodes) > 1 else ONE_NODE)}
    trainers = {name: trainer(world, reducer) for name, reducer in reducers.items()}
    trace = Trace(0)
    alone = trainer(World.single(), ALL["static"], trace) if world.rank == 0 else None
    lone = trainer(World.single(), ALL["bitvector"]) if world.rank == 0 else None
    measured: dict[str, list[float]] = {name: [] for name in ("alone", *trainers)}
    for block in range(-1, blocks):  # the first one is for warming up
        if alone is not None and lone is not None:
            single = World.single()
            for _ in range(max(steps, 8)):
                alone.step()
            took = timed(lone, single, max(steps, 8))
            if block >= 0:
                measured["alone"].append(took)
        names = list(trainers)
        for name in names if block % 2 else reversed(names):
            timed(trainers[name], world, 1)
            took = timed(trainers[name], world, steps)
            if block >= 0:
                measured[name].append(took)
    machine = averaged(machine, computing(world)[1].crowding)
    if world.rank:
        return {}
    step = Step.from_trace(trace, noise=NOISE)
    steady = machine.with_(
        {f"jitter.{name}": 0 for name in ("rank", "step", "tail")}
    )  # ranks that share a machine have
    rows = [row("alone", measured, simulate(step, ALL["bitvector"], steady, 1).seconds)]
    for name, reducer in reducers.items():
        outcome = simulate(step, reducer, machine, world.size)
        rows.append(row(name, measured, outcome.seconds) | {"breakdown": outcome.breakdown})
    about = {"seconds": step.seconds, "spread": step.spread, "crowding": dict(machine.host.crowding)}
    figures = {key: figure.value for key, figure in machine.figures.items()}
    return {"step": about, "machine": figures, "rows": rows}


def averaged(machine: Machine, after: Mapping[int, float]) -> Machine:
    """With what ranks lose to each other as it was before the runs and after them: others use this machine as well."""
    before = machine.host.crowding
    return machine.with_({f"host.crowding.{ranks}": (before[ranks] + after[ranks]) / 2 for ranks in before})


def row(name: str, measured: Mapping[str, Sequence[float]], predicted: float) -> dict[str, Any]:
    middle = statistics.median(measured[name])
    ends = {"least": min(measured[name]), "most": max(measured[name])}
    return {"reducer": name, "measured": middle, **ends, "predicted": predicted, "error": predicted / middle - 1.0}


def rank(arguments: Sequence[str]) -> None:
    blocks, steps, *out = arguments
    if out:
        bind_to_parent()
    with World.from_env("cpu", timeout=120) as world:
        result = compared(world, int(blocks), int(steps))
        if world.rank == 0:
            if out:
                Path(out[0]).write_text(json.dumps(result))
            else:
                print(json.dumps(result), flush=True)


# ---- on the machine ----


def measured(place: str, blocks: int, steps: int) -> dict[str, Any]:
    """What comes of a place: "4" is ranks of this machine, "2x2" nodes of so many ranks."""
    count, _, each = place.partition("x")
    if each:
        with nodes.Cluster(int(count), int(each), __file__) as cluster:
            found: dict[str, Any] = cluster.run(str(blocks), str(steps))
            return found
    with TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)
        spawn(["--rank", str(blocks), str(steps), str(out)], int(count), module="scaling")
        return dict(json.loads(out.read_text()))


def said(place: str) -> str:
    count, _, each = place.partition("x")
    return f"{count} nodes of {each}" if each else f"{count} ranks"


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Predicted against measured step times."""
    from matplotlib.figure import Figure

    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # Okabe and Ito 2008
    markers = "os^DvPX*h"
    figure = Figure(figsize=(6.4, 5.6), dpi=140, layout="constrained")
    axes = figure.subplots()
    places = list(dict.fromkeys(row["where"] for row in rows))
    names = list(dict.fromkeys(row["reducer"] for row in rows))
    times = [1e3 * row[key] for row in rows for key in ("measured", "predicted")]
    ends = [min(times) / 1.3, max(times) * 1.3]
    axes.plot(ends, ends, color="0.5", linewidth=0.9)
    axes.fill_between(ends, [0.9 * e for e in ends], [1.1 * e for e in ends], color="0.5", alpha=0.2, linewidth=0)
    for row in rows:
        colour, marker = colours[places.index(row["where"])], markers[names.index(row["reducer"])]
        x, y = 1e3 * row["measured"], 1e3 * row["predicted"]
        axes.plot([1e3 * row["least"], 1e3 * row["most"]], [y, y], color=colour, linewidth=0.8, alpha=0.6)
        axes.plot(x, y, color=colour, marker=marker, markersize=6, alpha=0.85, linestyle="none")
    for place, colour in zip(places, colours, strict=False):
        axes.plot([], [], color=colour, linewidth=4, label=place)
    for name, marker in zip(names, markers, strict=False):
        axes.plot([], [], color="0.3", marker=marker, linestyle="none", label=name)
    middle = statistics.median(abs(row["error"]) for row in rows)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    ticks = [t for power in (1, 10, 100, 1000) for t in (power, 2 * power, 5 * power) if ends[0] <= t <= ends[1]]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [f"{t:,}" for t in ticks])
        axis.set_ticks([], minor=True)
    axes.set_title(f"median error {100 * middle:.0f} %; grey: within 10 %; lines: least to greatest", fontsize=9)
    axes.set_xlabel("measured [ms per step]")
    axes.set_ylabel("predicted [ms per step]")
    axes.legend(fontsize=7, loc="upper left")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--picture", type=Path, help="draw them there")
    parser.add_argument("--quick", action="store_true", help="a few steps only, and no network of four nodes")
    parser.add_argument("--places", nargs="+", default=["2", "4", "2x2", "4x2"], help="ranks, or nodes x ranks")
    parser.add_argument("--rank", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        rank(arguments.rank)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ended from outside, it cleans up as well
    result: dict[str, Any] = {"benchmark": "scaling", "format": 1, "torch": torch.__version__, "left_out": {}}
    rows: list[dict[str, Any]] = []
    places = arguments.places[: -1 if arguments.quick and len(arguments.places) > 3 else None]
    for place in places:
        missing = "root" if os.geteuid() else next((c for c in ("ip", "tc") if shutil.which(c) is None), None)
        if "x" in place and missing:
            result["left_out"][place] = f"needs {missing}"
            print(f"{said(place)}: left out, needs {missing}")
            continue
        began = time.perf_counter()
        try:
            # Steps on the network are some ten times as long.
            found = measured(place, *((2, 3) if arguments.quick else (3, 4) if "x" in place else (8, 8)))
        except RuntimeError as error:  # the other places are measured all the same
            result["left_out"][place] = str(error)
            print(f"{said(place)}: left out, {error}")
            continue
        result[place] = found
        print(
            f"{said(place)}: a step alone takes {1e3 * found['step']['seconds']:.1f} ms, varying by "
            f"{100 * found['step']['spread']:.0f} %; crowding {found['step']['crowding']}; took "
            f"{time.perf_counter() - began:.0f} s",
            flush=True,
        )
        for one in found["rows"]:
            alone = one["reducer"] == "alone"
            rows.append({"where": "1 rank" if alone else said(place), **one})
            good = "" if abs(one["error"]) <= WITHIN else "  missed"
            print(
                f"    {one['reducer']:20s} measured {1e3 * one['measured']:7.1f} ms ({1e3 * one['least']:.1f} to "
                f"{1e3 * one['most']:.1f}), predicted {1e3 * one['predicted']:7.1f} ms: {100 * one['error']:+5.1f} %"
                f"{good}",
                flush=True,
            )
    result["rows"] = rows
    if rows:
        errors = sorted(abs(one["error"]) for one in rows)
        result["error"] = {"median": statistics.median(errors), "greatest": errors[-1]}
        inside = sum(error <= WITHIN for error in errors)
        print(
            f"median error {100 * statistics.median(errors):.1f} % (at most {100 * WITHIN:.0f} % wanted), greatest "
            f"{100 * errors[-1]:.0f} %; {inside} of {len(errors)} within {100 * WITHIN:.0f} %"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))
    if arguments.picture and rows:
        draw(arguments.picture, rows)


if __name__ == "__main__":
    main()
