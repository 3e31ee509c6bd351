"""Scaling: what the simulation says of runs that others have published, beside two null models.

    python benchmarks/literature.py [--quick] [--only cori,ends,nsdi,metg] [--json FILE] [--out FOLDER]

Four comparisons, each with what is fitted to what:

cori    samples/s of a climate network on Cori KNL, 1 to 1,024 ranks: fitted to 64 ranks and fewer, the rest predicted.
ends    the largest runs on Summit and Piz Daint: the jitter of a machine is fitted to one network, the others are
        predicted; then the jitter of each machine is taken from the other machines (leave one machine out).
nsdi    bitvector and grouping against the coordinator on 6,000 ranks of Summit: nothing is fitted.
metg    METG(50 %) of MPI point to point on 1 to 256 nodes of Cori Haswell: fitted to few nodes, the rest predicted;
        it takes a quarter of an hour.

Null models: the efficiency at the largest scale that is known, for all scales; and a straight line in log2 of the
number of ranks. Intervals are 95 %, from the uncertainty of every parameter that a prediction rests on, fitted or
assumed; a parameter's sensitivity is by how many points efficiency changes if it grows by one standard deviation. --out
takes two pictures, literature.png and metg_model.png.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from exafield.machine import Machine
from exafield.reduce import Bitvector, Central, Flat, Fused, GraphAware, Grouped, Hierarchical, Reducer, Tree
from exafield.scaling import Step, nulls, published, simulate
from exafield.scaling.fit import Fitted, Parameter, Point, fit
from exafield.taskbench import published as metg_published
from exafield.taskbench.modelled import metg

STEPS = 12  # of a simulated run
LAYERS = Path(__file__).parents[1] / "src" / "exafield" / "scaling" / "layers"


# ---- cases and their model ----

# What the publications say, or their code, of how gradients were reduced; what they do not say is our choice.
TREE = Reducer(control=Tree(radix=4, cycle=2e-3), grouping=Fused(mb=64), collective=Hierarchical(leaders=4))
BITVECTOR = Reducer(control=Bitvector(cycle=2e-3), grouping=GraphAware(), collective=Flat())
CENTRAL = Reducer(control=Central(cycle=5e-3), grouping=Fused(mb=64), collective=Flat())


@dataclass(frozen=True)
class Case:
    """A run.

    Args:
        network: its layer table.
        machine: its preset.
        rate: FLOP/s of a rank alone.
        samples: a rank and step.
        wire: precision of the gradients.
    """

    network: str
    machine: str
    ranks: int
    precision: str
    rate: float
    reducer: Reducer
    samples: int = 1
    wire: str = "fp32"


def end_point(name: str, reducer: Reducer, samples: int = 1, wire: str = "fp32") -> Case:
    point = published.END_POINTS[name]
    return Case(point.network, point.machine, point.ranks, point.precision, point.rate, reducer, samples, wire)


ENDS = {
    # Batches of the run scripts: 1 a GPU in FP32, 2 in FP16.
    "DeepLabv3+ FP32": end_point("DeepLabv3+ FP32", TREE),
    "DeepLabv3+ FP16": end_point("DeepLabv3+ FP16", replace(TREE, lag=1), 2),
    "STEMDL": end_point("STEMDL", BITVECTOR, wire="fp16"),
    # Batch 8 is what 16 GB hold of the activations of this network, whose sizes are our choice.
    "GAN": end_point("GAN", BITVECTOR, 8, wire="fp16"),
    "Tiramisu": end_point("Tiramisu", replace(TREE, collective=Flat())),
}


@cache
def layers(network: str) -> Step:
    return Step.load(LAYERS / f"{network}.json")


@cache
def preset(name: str) -> Machine:
    return Machine.load(name)


def cori(ranks: int) -> Case:
    """The climate network on Cori KNL: a rank alone takes as long as it is published to take."""
    operations = layers("deeplab").flops
    return Case("deeplab", "cori-knl", ranks, "fp32", operations * published.CORI_KNL[1], CENTRAL)


CASES = ENDS | {f"Cori {ranks}": cori(ranks) for ranks in published.CORI_KNL}


@cache
def seconds(case: Case, changes: tuple[tuple[str, float], ...]) -> float:
    """Mean time of a step [s], with other numbers of the machine."""
    machine = preset(case.machine)
    peak = machine.device.flops[case.precision]
    machine = machine.with_({"jitter.tail": PAUSES if "jitter.pause" in dict(changes) else 0.0})
    machine = machine.with_(dict(changes) | {f"device.efficiency.{case.precision}": min(1.0, case.rate / peak)})
    step = layers(case.network).batch(case.samples).on(machine.device, case.precision, wire=case.wire)
    return simulate(step, case.reducer, machine, case.ranks, steps=STEPS).seconds


def efficiency(case: Case, changes: tuple[tuple[str, float], ...]) -> float:
    """Of one rank's step, which has its own jitter, in that of all."""
    return seconds(replace(case, ranks=1), changes) / seconds(case, changes)


def model(values: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """Efficiencies of cases. A parameter `MACHINE: KEY` is of that machine alone, `KEY` of all; `rate` is a factor."""
    found = []
    for name in names:
        case = CASES[name]
        own = {}
        for key, value in values.items():
            owner, colon, rest = key.partition(": ")
            if not colon or owner == case.machine:
                own[rest if colon else key] = value
        rate = own.pop("rate", 1.0)
        found.append(efficiency(replace(case, rate=case.rate * rate), tuple(sorted(own.items()))))
    return found


# ---- what predictions rest on ----

# What is looked for, with what is believed before anything is fitted (our choice). Times of a rank differ from step to
# step by a normal law in their logarithm, whose width is a share of the step; and every step of every rank has a pause
# of an exponential law, whose mean is a time. The first makes efficiency fall less and less for each doubling of ranks,
# the second by as much as for the doubling before. Both are the same for all networks of a machine.
FREE = (Parameter("jitter.step", 0.01, 2.5, free=True), Parameter("jitter.pause", 0.02, 4.0, free=True))
PAUSES = 1.0  # jitter.tail: in how many of the steps of a rank
# What is assumed of every machine, and by which factor it may be off (our choice): link and library numbers of the
# presets are published peaks or choices, and the share of it that a run gets is not known; `rate` are FLOP/s of a rank
# alone, which follow from a publication's rates, but operations per sample are counted differently there.
ASSUMED = {
    "between.latency": 1.5,
    "between.bandwidth": 1.5,
    "between.overhead": 1.5,
    "host.handling": 2.0,
    "jitter.rank": 2.0,
    "rate": 1.15,
}


def parameters(machines: Sequence[str], free: Sequence[Parameter] = FREE) -> list[Parameter]:
    """The jitter that machines share, and what is assumed of each of them."""
    found = list(free)
    for name in machines:
        for key, factor in ASSUMED.items():
            value = 1.0 if key == "rate" else preset(name).figures[key].value
            if value > 0:
                found.append(Parameter(f"{name}: {key}", value, factor))
    return found


def points(names: Sequence[str], sigma: float | None = None) -> list[Point]:
    """Published efficiencies of cases."""
    table = published.efficiencies(published.CORI_KNL)
    made = []
    for name in names:
        if name in ENDS:
            point = published.END_POINTS[name]
            made.append(Point(name, point.efficiency, sigma or point.rounding))
        else:
            ranks = int(name.split()[1])
            # Samples/s are stated with four digits; from run to run they differ by half a per cent at least, as the
            # points of the table do about any smooth curve.
            made.append(Point(name, table[ranks], sigma or 5e-3))
    return made


def known(names: Sequence[str]) -> dict[int, float]:
    """Published efficiencies by ranks, for null models; the mean where several are on the same ranks.

    On one rank it is 1, which is what efficiency is measured by.
    """
    found: dict[int, list[float]] = {1: [1.0]}
    for name, point in zip(names, points(names), strict=True):
        found.setdefault(CASES[name].ranks, []).append(point.value)
    return {ranks: float(np.mean(values)) for ranks, values in found.items()}


def compared(fitted: Fitted, to: Sequence[str], cases: Sequence[str]) -> list[dict[str, Any]]:
    """Rows: each case as published, as predicted, and as the null models have it."""
    constant, line = nulls.constant(known(to)), nulls.line(known(to))
    rows = []
    for name, point in zip(cases, points(cases), strict=True):
        said = fitted.predictions[name]
        ranks = CASES[name].ranks
        rows.append(
            {
                "case": name,
                "ranks": ranks,
                "published": point.value,
                "predicted": said.value,
                "low": said.low,
                "high": said.high,
                "constant": float(constant([ranks])[0]),
                "line": float(line([ranks])[0]),
                "sensitivity": {key: 100 * value for key, value in said.sensitivity.items()},
            }
        )
    return rows


def errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and largest error in points of the model and of the null models, and how many intervals hold the truth."""
    found: dict[str, dict[str, float]] = {}
    for who in ("predicted", "constant", "line"):
        off = [100 * abs(row[who] - row["published"]) for row in rows]
        found[who] = {"mean": float(np.mean(off)), "largest": max(off)}
    found["predicted"]["covered"] = sum(row["low"] <= row["published"] <= row["high"] for row in rows)
    return found


def verdict(found: Mapping[str, Mapping[str, float]]) -> str:
    """Whether the model beats the null models, by the mean error."""
    own = found["predicted"]["mean"]
    beaten = [who for who in ("constant", "line") if own < found[who]["mean"]]
    lost = [who for who in ("constant", "line") if own >= found[who]["mean"]]
    return f"beats {' and '.join(beaten) or 'no null model'}" + (
        f"; does not beat {' and '.join(lost)}" if lost else ""
    )


def show(title: str, fitted: Fitted, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Prints a comparison; what it says, for JSON."""
    print(f"\n{title}")
    free = {p.name: (fitted.values[p.name], fitted.factor(p.name)) for p in fitted.parameters if p.free}
    for name, (value, factor) in free.items():
        print(f"  fitted {name} = {value:.4g} (x/ {factor:.2f})")
    print(f"  {'case':18} {'ranks':>6} {'published':>9} {'predicted':>9} {'95 %':>15} {'constant':>8} {'line':>6}")
    for row in rows:
        interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        print(
            f"  {row['case']:18} {row['ranks']:6} {100 * row['published']:9.1f} {100 * row['predicted']:9.1f} "
            f"{interval:>15} {100 * row['constant']:8.1f} {100 * row['line']:6.1f}"
        )
    found = errors(rows)
    said = ", ".join(f"{who} {e['mean']:.2f} (largest {e['largest']:.2f})" for who, e in found.items())
    print(f"  mean error in points: {said}: the model {verdict(found)}; {found['predicted']['covered']} of {len(rows)} "
          "in their interval")  # fmt: skip
    last = rows[-1]["sensitivity"]
    largest = sorted(last, key=lambda key: -abs(last[key]))[:4]
    print(f"  {rows[-1]['case']} rests on: " + ", ".join(f"{key} {last[key]:+.2f}" for key in largest))
    return {
        "fitted": free,
        "inflation": fitted.inflation,
        "rows": list(rows),
        "errors": found,
        "verdict": verdict(found),
    }


# ---- the comparisons ----


def of_cori() -> dict[str, Any]:
    small = [f"Cori {ranks}" for ranks in published.CORI_KNL if 1 < ranks <= 64]
    large = [f"Cori {ranks}" for ranks in published.CORI_KNL if ranks > 64]
    fitted = fit(model, parameters(["cori-knl"]), points(small), [*small, *large])
    result = show("Cori KNL: fitted to 2 to 64 ranks", fitted, compared(fitted, small, large))
    result["all"] = compared(fitted, small, [*small, *large])
    fitted = fit(model, parameters(["cori-knl"], FREE[:1]), points(small), large)
    result["no pauses"] = show("Cori KNL without pauses, as in the preset", fitted, compared(fitted, small, large))
    return result


def of_ends() -> dict[str, Any]:
    summit = [name for name, case in ENDS.items() if case.machine == "summit"]
    found: dict[str, Any] = {}
    for one in summit:
        others = [name for name in summit if name != one]
        fitted = fit(model, parameters(["summit"]), points([one]), others)
        found[one] = show(f"Summit: fitted to {one}", fitted, compared(fitted, [one], others))
    one, *others = summit
    fitted = fit(model, parameters(["summit"], FREE[:1]), points([one]), others)
    found["no pauses"] = show(
        f"Summit without pauses, as in the preset: fitted to {one}", fitted, compared(fitted, [one], others)
    )
    alone = ["Tiramisu"]
    for title, free in (("piz-daint", FREE), ("piz-daint, no pauses", FREE[:1])):
        fitted = fit(model, parameters(["piz-daint"], free), points(alone), alone)
        found[title] = show(f"{title}: fitted to its only point", fitted, compared(fitted, alone, alone))
    groups = {
        "summit": summit,
        "piz-daint": ["Tiramisu"],
        "cori-knl": ["Cori 8", "Cori 64", "Cori 1024"],
    }
    for left, cases in groups.items():
        rest = [name for machine, names in groups.items() if machine != left for name in names]
        # What is shared explains no point to its last digit.
        fitted = fit(model, parameters([left]), points(rest, 0.01), cases)
        found[f"without {left}"] = show(f"{left}: from the other machines", fitted, compared(fitted, rest, cases))
    return found


CYCLE = 2e-3  # of the authors' job scripts [s]
AGREEING = {
    "coordinator": lambda tensors: Reducer(Central(cycle=CYCLE), Grouped(tensors), Flat()),
    "coordinator, grouped": lambda tensors: Reducer(Central(cycle=CYCLE), GraphAware(), Flat()),
    "bitvector": lambda tensors: Reducer(Bitvector(cycle=CYCLE), Grouped(tensors), Flat()),
    "bitvector, grouped": lambda tensors: Reducer(Bitvector(cycle=CYCLE), GraphAware(), Flat()),
}


def coordinated(network: str, changes: Mapping[str, float], ways: Sequence[str]) -> dict[str, float]:
    """Step times by how ranks agree [s], and the time of a rank alone."""
    machine, own = preset("summit"), dict(changes)
    step = replace(layers(network), read=0.0)  # the logs' rate is beyond what flash reads: samples were in memory
    logged = network == "fcdensenet128"
    rate = step.flops / published.STEMDL_LOG if logged else machine.device.rate("fp16")
    rate *= own.pop("rate", 1.0)
    machine = machine.with_(own | {"device.efficiency.fp16": rate / machine.device.flops["fp16"]})
    step = step.on(machine.device, "fp16", wire="fp16")
    ranks, tensors = published.BITVECTOR_RANKS, len(step.layers)
    return {"alone": step.seconds} | {
        way: simulate(step, AGREEING[way](tensors), machine, ranks, steps=STEPS).seconds for way in ways
    }


def of_nsdi() -> dict[str, Any]:
    """Step times with the coordinator, tensor by tensor, and with bitvector and groups; nothing is fitted."""
    gain, ranks = published.BITVECTOR_GAIN, published.BITVECTOR_RANKS
    print(f"\nbitvector and grouping against the coordinator, {ranks:,} ranks of Summit (published: {gain} x)")
    result: dict[str, Any] = {}
    for network in ("fcdensenet128", "fcdensenet", "deeplab", "tiramisu"):
        times = coordinated(network, {}, list(AGREEING))
        result[network] = times
        said = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in times.items())
        print(f"  {network:14} {times['coordinator'] / times['bitvector, grouped']:5.2f} x: {said}")

    def ratio(values: Mapping[str, float], names: Sequence[str]) -> list[float]:
        changes = {key.removeprefix("summit: "): value for key, value in values.items()}
        times = coordinated(names[0], changes, ("coordinator", "bitvector, grouped"))
        return [float(np.log(times["coordinator"] / times["bitvector, grouped"]))]

    doubtful = [p for p in parameters(["summit"]) if p.name in {f"summit: {k}" for k in GAIN_RESTS_ON}]
    said = fit(ratio, doubtful, [], ["fcdensenet128"]).predictions["fcdensenet128"]
    value, low, high = (float(np.exp(x)) for x in (said.value, said.low, said.high))
    print(
        f"  fcdensenet128: {value:.2f} x, 95 %: {low:.2f} to {high:.2f}; one standard deviation more multiplies it by"
    )
    print("  " + ", ".join(f"{np.exp(change):.2f} ({key})" for key, change in said.sensitivity.items()))
    result["gain"] = {"value": value, "low": low, "high": high, "sensitivity": dict(said.sensitivity)}
    return result


GAIN_RESTS_ON = ("between.latency", "between.overhead", "host.handling", "rate")


# What is fitted of Cori Haswell, from values of our choice: what is fitted stands in its preset.
METG_PARAMETERS = (
    Parameter("overhead", 0.3e-6, 2, free=True),  # of a message at each end, in and between nodes
    Parameter("inside.latency", 1e-6, 2, free=True),
    Parameter("between.latency", 2e-6, 2, free=True),
    Parameter("jitter.step", 0.05, 2, free=True),
    # How often and for how long messages between nodes are held up by other traffic; nothing is known beforehand.
    Parameter("between.held", 1e-4, 10, free=True),
    Parameter("between.hold", 1e-3, 10, free=True),
)
METG_FITTED_NODES = 16
# Rows as in the published experiments. Runs as many, or more on few nodes, where messages are rarely held up: what is
# modelled is the mean over all runs there could be.
METG_STEPS, METG_REPEATS, METG_NODES = 1000, 5, 320


def of_metg(quick: bool) -> dict[str, Any]:
    """METG of MPI, in logarithms: fitted to few nodes, more of them predicted."""
    steps, most = (60, 16) if quick else (METG_STEPS, 256)
    machine = preset("cori-haswell")
    truth = {f"nearest {radix} 1": seconds for radix, seconds in metg_published.RADIX["MPI"].items() if radix > 1}
    for pattern, radix in (("stencil_1d", 3), ("nearest", 5)):
        for nodes, seconds in metg_published.MPI[pattern].items():
            if nodes <= most:
                truth.setdefault(f"{pattern} {radix} {nodes}", seconds)

    def modelled(values: Mapping[str, float], names: Sequence[str]) -> list[float]:
        changes = {key: value for key, value in values.items() if key != "overhead"}
        changes |= {"inside.overhead": values["overhead"], "between.overhead": values["overhead"]}
        made = machine.with_(changes)
        found = []
        for name in names:
            pattern, radix, nodes = name.split()
            repeats = 1 if quick else max(METG_REPEATS, METG_NODES // int(nodes))
            found.append(float(np.log(metg(made, pattern, int(nodes), radix=int(radix), steps=steps, repeats=repeats))))
        return found

    few = [name for name in truth if int(name.split()[2]) <= METG_FITTED_NODES]
    fitted = fit(
        modelled, METG_PARAMETERS, [Point(name, float(np.log(truth[name])), np.log(1.3)) for name in few], truth
    )
    print(f"\nMETG(50 %) of MPI point to point on Cori Haswell, fitted to {METG_FITTED_NODES} nodes and fewer")
    for name, value in fitted.values.items():
        print(f"  fitted {name} = {value:.3g} (x/ {fitted.factor(name):.2f})")
    print(f"  {'pattern':10} {'radix':>5} {'nodes':>5} {'published':>9} {'modelled':>8} {'95 %':>12}  ratio")
    rows = []
    for name, seconds in truth.items():
        pattern, radix, nodes = name.split()
        said = fitted.predictions[name]
        low, value, high = (float(np.exp(x)) for x in (said.low, said.value, said.high))
        row = {"pattern": pattern, "radix": int(radix), "nodes": int(nodes), "fitted": name in few,
               "published": seconds, "modelled": value, "low": low, "high": high}  # fmt: skip
        rows.append(row)
        ratio = seconds / value
        print(
            f"  {pattern:10} {radix:>5} {nodes:>5} {1e6 * seconds:9.2f} {1e6 * value:8.2f} "
            f"{f'{1e6 * low:.1f} to {1e6 * high:.1f}':>12}  {ratio:.2f}{'' if 0.5 <= ratio <= 2 else '  missed'}"
            f"{' (fitted)' if name in few else ''}"
        )
    return {"fitted": {name: [value, fitted.factor(name)] for name, value in fitted.values.items()}, "rows": rows}


# ---- pictures ----

_GREY, _BLUE, _ORANGE, _GREEN = "#8a8f94", "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito 2008


def draw(found: Mapping[str, Any], folder: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    if "cori" in found and "ends" in found:
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1, 1.2))
        rows = found["cori"]["all"]
        ranks = [row["ranks"] for row in rows]
        left.fill_between(
            ranks, [100 * r["low"] for r in rows], [100 * r["high"] for r in rows], color=_BLUE, alpha=0.15
        )
        left.plot(ranks, [100 * row["predicted"] for row in rows], color=_BLUE, label="simulated, 95 %")
        left.plot(ranks, [100 * row["line"] for row in rows], "--", color=_GREY, label="line in log2 P")
        left.plot(ranks, [100 * row["constant"] for row in rows], ":", color=_GREY, label="constant")
        left.plot(ranks, [100 * row["published"] for row in rows], "o", color="black", label="published")
        left.axvspan(2, 64, color=_GREY, alpha=0.08)
        left.set_xscale("log", base=2)
        left.set_xticks(ranks, ranks)
        left.set_xlabel("ranks (fitted in the grey part)")
        left.set_ylabel("efficiency [%]")
        left.set_title("Cori KNL", loc="left", fontsize=10)
        left.legend(fontsize=8, frameon=False)
        place = 0
        ticks = []
        for title, part in found["ends"].items():
            if "no pauses" in title or title == "piz-daint":
                continue
            for row in part["rows"]:
                if row["case"].startswith("Cori") and row["ranks"] != 1024:
                    continue
                right.plot([100 * row["low"], 100 * row["high"]], [place, place], color=_BLUE, alpha=0.4, linewidth=4)
                right.plot(100 * row["predicted"], place, "o", color=_BLUE, markersize=5)
                right.plot(100 * row["constant"], place, "|", color=_GREY, markersize=10)
                right.plot(100 * row["published"], place, "x", color="black", markersize=6)
                source = title if title.startswith("without") else f"from {title}"
                ticks.append(f"{row['case']}, {source}")
                place += 1
        right.set_yticks(range(place), ticks, fontsize=7)
        right.invert_yaxis()
        right.set_xlabel("efficiency [%]; cross: published, dot: simulated (95 %), bar: constant", fontsize=9)
        right.set_title("largest runs", loc="left", fontsize=10)
        _save(figure, folder / "literature.png")
    if "metg" in found:
        figure, axis = plt.subplots(figsize=(6.4, 4.2))
        for pattern, colour in (("stencil_1d", _BLUE), ("nearest", _ORANGE)):
            rows = [row for row in found["metg"]["rows"] if row["pattern"] == pattern and row["radix"] in (3, 5)]
            rows = [row for row in rows if (pattern, row["radix"]) != ("nearest", 3)]
            nodes = [row["nodes"] for row in rows]
            axis.plot(
                nodes, [1e6 * row["published"] for row in rows], "o-", color=colour, label=f"{pattern}, published"
            )
            modelled = np.array([1e6 * row["modelled"] for row in rows])
            axis.plot(nodes, modelled, "--", color=colour, label=f"{pattern}, modelled (shade: half to twice)")
            axis.fill_between(nodes, modelled / 2, modelled * 2, color=colour, alpha=0.12)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(nodes, nodes)
        axis.set_xlabel("nodes of Cori Haswell")
        axis.set_ylabel("METG(50 %) of MPI [µs]")
        axis.legend(fontsize=8, frameon=False)
        _save(figure, folder / "metg_model.png")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="METG up to 16 nodes, fewer rows")
    parser.add_argument("--only", default="cori,ends,nsdi,metg")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, help="folder for pictures")
    arguments = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "cori": of_cori, "ends": of_ends, "nsdi": of_nsdi, "metg": lambda: of_metg(arguments.quick)
    }  # fmt: skip
    found: dict[str, Any] = {}
    names = arguments.only.split(",")
    if not parts.keys() >= set(names):
        parser.error(f"--only {arguments.only}: choose from {', '.join(parts)}")
    for name in names:
        began = time.perf_counter()
        found[name] = parts[name]()
        print(f"  ({time.perf_counter() - began:.0f} s)")
    if arguments.json:
        arguments.json.write_text(json.dumps({"format": "exafield-literature", "version": 1, **found}, indent=1))
    if arguments.out:
        draw(found, arguments.out)


if __name__ == "__main__":
    main()
