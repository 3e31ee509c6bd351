"""Microscopy in full: what the preset "full" reaches on unseen crystals, and what becomes of it elsewhere.

    python benchmarks/microscopy_full.py [--run FOLDER | --ranks 2 --seconds 1320] [--pictures FOLDER] [--json FILE]

1. Trains `exafield train microscopy --preset full`, unless `--run` names a training, and prints its scores by dose and
   thickness, by element, and how well the deviations it expects are calibrated.
2. Shift tests: the same network on test crystals that are recorded as no training scan was (see microscopy/shifts.py).
3. Classical peers on the same scans of test crystals, at 20, 40 and 80 A: integrated centre of mass, single-side-band
   ptychography (their regularisation chosen on validation crystals) and ridge regression (fitted to training crystals
   recorded under exactly these conditions, which the network was not).
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exafield.apply import run as trained
from exafield.engine.local import ProcessEngine
from exafield.microscopy import assembly, ridge
from exafield.microscopy.analysis import Score, best_threshold, score
from exafield.microscopy.classical import INTEGRATED, SIDE_BAND, classical
from exafield.microscopy.conditions import conditions
from exafield.microscopy.generate import Generation, samples
from exafield.microscopy.heldback import HeldBack, predict
from exafield.microscopy.model import Reconstructor
from exafield.microscopy.plots import conditions as draw_conditions
from exafield.microscopy.recipe import Recipe, simulate
from exafield.microscopy.scans import Scan, part_of, scans_of
from exafield.microscopy.shifts import SHIFTS, Shift, ShiftedSource
from exafield.microscopy.views import View
from exafield.microscopy.window import Window, WindowSource
from exafield.question import Microscopy
from exafield.world import World

# Of the regularisation of classical methods, tried on validation crystals.
FACTORS = (0.01, 0.1, 1.0, 10.0, 100.0)
DOSE = 3000.0


def train(ranks: int, seconds: float, more: Sequence[str]) -> Path:
    """Trains the preset; returns the folder of the run."""
    folder = Path("runs") / f"microscopy-full-{time.strftime('%Y%m%d-%H%M%S')}"
    command = [sys.executable, "-m", "exafield", "train", "microscopy", "--preset", "full", "--ranks", str(ranks)]
    subprocess.run([*command, "--seconds", str(seconds), "--folder", str(folder), *more], check=True)
    return folder


def line(name: str, s: Score | dict[str, Any]) -> str:
    """A row of a table."""
    values = s if isinstance(s, dict) else asdict(s)
    return (
        f"{name:44s} {values['windows']:5d}  {values['relative_l2']:6.3f}  {values['r2']:6.3f}  "
        f"{values['recall']:6.3f}  {values['precision']:6.3f}  {values['rms']:.3f} A"
    )


HEAD = f"{'':44s} wind.  rel.L2      R2  recall   prec.  position"


def print_verdict(report: dict[str, Any]) -> None:
    """Prints the verdict of a run by dose and thickness."""
    print(f"\n{report['materials']} test materials\n{HEAD}")
    print(line("all", report["network"]))
    for part, name in (("seen", "structure type seen in training"), ("unseen", "structure type never seen")):
        if report[part]:
            print(line(name, report[part]))
    for dose, row in report["by_both"].items():
        for thickness, s in row.items():
            print(line(f"{dose}, {thickness}", s))
    print(line(f"ridge, {report['ridge_name']}", report["ridge"]))
    for name, group in report["by_element"].items():
        print(
            f"columns of {name:12s} {group['columns']:6d}: recall {group['recall']:.3f}, position {group['rms']:.3f} A"
        )
    c = report["calibration"]
    print("an interval meant to hold ... of the pixels holds ...: ", end="")
    print(", ".join(f"{n:.0%}: {v:.1%}" for n, v in zip(c["nominal"], c["coverage"], strict=True)))
    print(f"error over expected deviation {c['z_rms']:.2f} (rms); rank correlation over windows {c['ranking']:.2f}")


def chosen(views: list[tuple[View, Recipe]], count: int) -> list[tuple[View, Recipe]]:
    """One view of each crystal, spread evenly."""
    first = list({view.crystal.material: (view, recipe) for view, recipe in reversed(views)}.values())
    return [first[i] for i in np.unique(np.linspace(0, len(first) - 1, count).astype(int))]


def shifted(
    model: Reconstructor, views: list[tuple[View, Recipe]], window: Window, threshold: float, few: int
) -> dict[str, dict[str, Any]]:
    """Scores under each shift, and how much worse the error is than without on the same windows."""
    found: dict[str, dict[str, Any]] = {}
    print(f"\nshift tests, {window.dose:,.0f} electrons\n{HEAD}")
    base: dict[int, float] = {}
    for shift in SHIFTS:
        some = views[:: max(1, len(views) // few)] if shift.phonons else views
        s = _score(model, some, shift, window, threshold)
        if len(some) not in base:
            base[len(some)] = _score(model, some, SHIFTS[0], window, threshold).relative_l2
        found[shift.name] = {**asdict(s), "times": s.relative_l2 / base[len(some)]}
        print(line(shift.name, s) + f"   {found[shift.name]['times']:.2f} x", flush=True)
    return found


def _score(
    model: Reconstructor, views: list[tuple[View, Recipe]], shift: Shift, window: Window, threshold: float
) -> Score:
    windows = HeldBack(ShiftedSource(views, shift, window, scale=float(model.scale)))
    with World.single("cpu") as world:
        p = predict(model, windows, world)
    return score(p.prediction, p.truth, window.pixel, threshold)


def recorded(tasks: list[tuple[View, Recipe]]) -> list[Scan]:
    """Simulated on all cores."""
    found = dict(ProcessEngine().map(simulate, tasks))
    return [scan for _, sample in sorted(found.items()) for scan in scans_of(*sample)]


def peers(model: Reconstructor, wanted: Generation, window: Window, few: int) -> dict[str, Any]:
    """Standardised R2 and columns of network, ridge and classical methods, at three thicknesses."""
    parts: dict[str, list[View]] = {"train": [], "validation": [], "test": []}
    for _, view, variant in samples(wanted):
        if variant == 0:
            parts[part_of(view.crystal.material)].append(view)
    result: dict[str, Any] = {}
    for thickness in (20.0, 40.0, 80.0):
        g = replace(wanted, energy=200e3, energy_to=None, convergence_angle=0.025, convergence_angle_to=None)
        g = replace(g, thickness=thickness, thickness_to=None, thicknesses=1, b_factor=0.6, b_factor_to=None)
        windows = {}
        for part, views in parts.items():
            some = views[:: max(1, len(views) // (3 * few if part == "train" else few))]
            scans = recorded([(view, g.recipe(view, 0)) for view in some])
            windows[part] = HeldBack(WindowSource(scans, window, scale=float(model.scale), augment=False), 2)
        batches = {part: list(some.batches()) for part, some in windows.items()}
        fitted, _ = ridge.fit(batches["train"].__iter__, batches["validation"].__iter__, 1 / 1.6)
        with World.single("cpu") as world:
            by_network = predict(model, windows["test"], world)
        methods: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            f"ridge, {fitted.name}": partial(_in_volts, fitted, windows["test"].source.scale)
        }
        told = conditions(200e3, 0.025, thickness, window.dose)
        for name in (INTEGRATED, SIDE_BAND):
            tried = {factor: partial(_classical, name, told, factor) for factor in FACTORS}
            likeness = {factor: _likeness(act, batches["validation"]) for factor, act in tried.items()}
            best = max(likeness, key=lambda factor, found=likeness: found[factor])  # type: ignore[misc]
            methods[f"{name}, factor {best:g}"] = tried[best]
        print(f"\n{thickness:.0f} A, 200 keV, 25 mrad, {window.dose:,.0f} electrons\n{HEAD}")
        # Thresholds of columns: of each method the one that suits validation crystals.
        with World.single("cpu") as world:
            validated = predict(model, windows["validation"], world)
        pixel, known, truth = window.pixel, list(validated.truth), list(by_network.truth)
        made = {"network": (list(validated.prediction), list(by_network.prediction))}
        for name, act in methods.items():
            made[name] = (_all(act, batches["validation"]), _all(act, batches["test"]))
        rows = {
            name: score(test, truth, pixel, best_threshold(some, known, pixel)) for name, (some, test) in made.items()
        }
        for name, s in rows.items():
            print(line(name, s), flush=True)
        result[f"{thickness:.0f} A"] = {name: asdict(s) for name, s in rows.items()}
    return result


def _likeness(act: Callable[[torch.Tensor], torch.Tensor], batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Mean correlation of what a method makes of scans with their potentials."""
    made = [(p, t) for scan, truth in batches for p, t in zip(act(scan).numpy(), truth.numpy(), strict=True)]
    return float(np.mean([np.corrcoef(p.ravel(), t.ravel())[0, 1] for p, t in made]))


def _all(
    act: Callable[[torch.Tensor], torch.Tensor], batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> list[np.ndarray]:
    return [made for scan, _ in batches for made in act(scan).numpy()]


def _in_volts(fitted: ridge.Ridge, scale: float, scan: torch.Tensor) -> torch.Tensor:
    return fitted(scan) * scale


def _classical(name: str, told: torch.Tensor, factor: float, scan: torch.Tensor) -> torch.Tensor:
    return classical(scan, told.expand(len(scan), -1), factor=factor)[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a training with --preset full; default: train now")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1320.0, help="of training")
    parser.add_argument("--pictures", type=Path, help="folder to draw into")
    parser.add_argument("--quick", action="store_true", help="half a minute of training, few windows")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # crystals that are left out, partial occupancies
    more = ["--crystals", "embedded", "--largest-edge", "5"] if arguments.quick else []
    folder = arguments.run or train(arguments.ranks, 30.0 if arguments.quick else arguments.seconds, more)
    result = json.loads((folder / "result.json").read_text())
    report = result["report"]
    print_verdict(report)
    question = trained.about(folder, Microscopy)
    step = trained.newest(folder, ("network",))
    model = assembly.reconstructor(question, trained.states(folder, ("network",), step)["network"])
    wanted = assembly.generation(question.data)
    test = [
        (view, wanted.recipe(view, variant))
        for _, view, variant in samples(wanted)
        if variant == 0 and part_of(view.crystal.material) == "test"
    ]
    few = 4 if arguments.quick else 30
    threshold = report["thresholds"].get(f"{DOSE:,.0f} electrons", 0.125)
    about = {"benchmark": "microscopy_full", "format": 1, "steps": result["steps"], "elapsed": result["elapsed"]}
    figures = {**about, "ranks": result["ranks"], "report": report}
    figures["shifts"] = shifted(model, chosen(test, few), Window(dose=DOSE), threshold, max(2, few // 3))
    figures["peers"] = peers(model, wanted, Window(dose=DOSE), 2 * few)
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        draw_conditions(arguments.pictures / "microscopy_conditions.png", report)
        (arguments.pictures / "microscopy_full.png").write_bytes((folder / "microscopy.png").read_bytes())
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
