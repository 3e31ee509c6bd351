"""Classical reconstructions of thin and thick crystals: integrated centre of mass, single side band, ridge regression.

    python benchmarks/classical.py [--quick] [--crystals FOLDER] [--json FILE] [--pictures FOLDER]

Crystals are simulated at 200 keV and 25 mrad behind several thicknesses. Windows of 16 x 16 patterns, 0.5 A apart, are
recorded at several doses, and each method reconstructs the potential (Gaussian of 0.2 A) at 0.125 A. Every method gets
its regularisation on validation crystals, for each thickness and dose apart; ridge regression (the best of four) is
trained on training crystals at that thickness and dose. What is printed is the R2 of the standardised potential over
windows of test crystals: the mean, and in brackets the range that holds the middle 80 % of the windows.

With --pictures two pictures of the documentation are drawn: what virtual detectors show, and examples of this table.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exafield.microscopy import ridge
from exafield.microscopy.analysis import standardised_r2
from exafield.microscopy.classical import INTEGRATED, SIDE_BAND, classical
from exafield.microscopy.crystal import embedded
from exafield.microscopy.generate import Generation, crystals
from exafield.microscopy.imaging import plot
from exafield.microscopy.recipe import Recipe, simulate
from exafield.microscopy.scans import Part, Scan, part_of, scans_of
from exafield.microscopy.views import View, view, views
from exafield.microscopy.window import Window, WindowSource

ENERGY, ANGLE, REACH = 200e3, 0.025, 1.6
THICKNESSES = (5.0, 10.0, 20.0, 40.0, 80.0)
DOSES: tuple[float | None, ...] = (1000.0, 30000.0, None)
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
NAMES = (INTEGRATED, SIDE_BAND, "ridge regression")
Scans = dict[Part, list[list[Scan]]]


def recipe(thicknesses: Sequence[float], one: View) -> Recipe:
    """How a view is simulated."""
    generation = Generation(energy=ENERGY, convergence_angle=ANGLE, detector_reach=REACH, precision="fp32")
    return replace(generation.recipe(one, 0), thicknesses=tuple(thicknesses))


def simulated(folder: str, thicknesses: Sequence[float], most: dict[Part, int]) -> Scans:
    """Scans of each part's views, at every thickness."""
    found: Scans = {"train": [], "validation": [], "test": []}
    seen = [one for crystal in crystals(folder) for one in views(crystal)]
    # Not in the order of the table: similar crystals stand beside each other there.
    for index in np.random.default_rng(0).permutation(len(seen)):
        one = seen[index]
        part = part_of(one.crystal.material)
        if len(found[part]) < most[part]:
            found[part].append(scans_of(*simulate((one, recipe(thicknesses, one)))))
    return found


def source(scans: list[list[Scan]], depth: int, dose: float | None, per_scan: int, augment: bool) -> WindowSource:
    return WindowSource(
        [of[min(depth, len(of) - 1)] for of in scans], Window(dose=dose), per_scan=per_scan, seed=1, augment=augment
    )


def batches(of: WindowSource, size: int = 16) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    def those() -> Iterator[tuple[Tensor, Tensor]]:
        for low in range(0, len(of), size):
            batch = of.batch(range(low, min(low + size, len(of))), 0)
            yield batch["scan"], batch["potential"]

    return those


def quality(found: Tensor, truth: Tensor) -> list[float]:
    return [standardised_r2(f.double().numpy(), t.double().numpy()) for f, t in zip(found, truth, strict=True)]


def compare(scans: Scans, depth: int, dose: float | None) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """R2 of each method over the test windows, and what was chosen on validation windows."""
    train = batches(source(scans["train"], depth, dose, 4, augment=True))
    valid = source(scans["validation"], depth, dose, 2, augment=False)
    test = source(scans["test"], depth, dose, 2, augment=False)
    known, unknown = (of.batch(range(len(of)), 0) for of in (valid, test))
    # Whole slices differ a little from the wanted thickness; methods are told the latter, so that one batch is enough.
    for batch in (known, unknown):
        batch["conditions"] = batch["conditions"].median(0).values.expand(len(batch["scan"]), 4)
    scores, chosen = {}, {}
    tried = {factor: classical(known["scan"], known["conditions"], factor=factor) for factor in FACTORS}
    for name in (INTEGRATED, SIDE_BAND):
        best = max(FACTORS, key=lambda f: float(np.mean(quality(tried[f][name], known["potential"]))))
        found = classical(unknown["scan"], unknown["conditions"], factor=best)[name]
        scores[name], chosen[name] = quality(found, unknown["potential"]), best
    # Radius of the bright-field disc in halves of the detector.
    model, _ = ridge.fit(train, batches(valid), disc=1 / REACH)
    scores["ridge regression"], chosen["ridge regression"] = (
        quality(model(unknown["scan"]), unknown["potential"]),
        model.name,
    )
    return scores, chosen


def detectors(path: Path) -> None:
    """Virtual detectors of strontium titanate, 20 A thick."""
    strontium = next(c for c in embedded() if c.name == "SrTiO3")
    one = view(strontium, "110")
    scan = scans_of(*simulate((one, recipe((20.0,), one))))[0]
    window = WindowSource([scan], Window(probes=80, step=0.1, refine=1, dose=None))
    patterns, _ = window.cut(0, (0.0, 0.0))
    plot(
        path,
        patterns,
        step=(0.1, 0.1),
        half_angle=REACH * ANGLE,
        convergence_angle=ANGLE,
        title="SrTiO₃ [110], 20 Å thick, 200 keV, 25 mrad, no noise",
    )


def examples(path: Path, scans: Scans, thicknesses: Sequence[float], dose: float) -> None:
    """One test crystal at several thicknesses, and what each method makes of it."""
    from matplotlib.figure import Figure

    shown = [depth for depth, thickness in enumerate(thicknesses) if thickness in (5.0, 20.0, 80.0)]
    figure = Figure(figsize=(9.2, 2.3 * len(shown) + 0.5), dpi=130, layout="constrained")
    axes = figure.subplots(len(shown), 4, squeeze=False)
    for row, depth in zip(axes, shown, strict=True):
        train = batches(source(scans["train"], depth, dose, 4, augment=True))
        valid = batches(source(scans["validation"], depth, dose, 2, augment=False))
        model, _ = ridge.fit(train, valid, disc=1 / REACH)
        batch = source(scans["test"], depth, dose, 1, augment=False).batch([0], 0)
        found = {"true potential": batch["potential"]} | classical(batch["scan"], batch["conditions"])
        found["ridge regression"] = model(batch["scan"])
        for axis, (name, field) in zip(row, found.items(), strict=True):
            image = (field[0] - field[0].mean()) / field[0].std()
            axis.imshow(image.T.numpy(), origin="lower", cmap="viridis", extent=(0, 8, 0, 8), vmin=-2, vmax=4)
            r2 = quality(field, batch["potential"])[0]
            axis.set_title(name if name.startswith("true") else f"{name}\nR² {r2:.2f}", fontsize=8)
            axis.tick_params(labelsize=6)
        row[0].set_ylabel(f"{thicknesses[depth]:g} Å thick", fontsize=8)
    name = scans["test"][0][0].name
    figure.suptitle(f"{name}, {dose:,.0f} electrons per pattern, standardised; axes in Å", fontsize=9)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few crystals, thicknesses and doses")
    parser.add_argument("--crystals", default="embedded", help="folder of CIF files; default: the built-in table")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--pictures", type=Path, help="folder to draw detectors.png and classical.png in")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    thicknesses, doses = ((5.0, 20.0), (30000.0,)) if arguments.quick else (THICKNESSES, DOSES)
    most: dict[Part, int] = {"train": 60, "validation": 16, "test": 30}
    if arguments.quick:
        most = {"train": 12, "validation": 6, "test": 6}
    began = time.process_time()
    scans = simulated(arguments.crystals, thicknesses, most)
    counts = {part: len(of) for part, of in scans.items()}
    print(f"views: {counts}; simulated in {time.process_time() - began:.0f} CPU s", flush=True)
    rows = []
    print(f"{'thickness':>10s} {'electrons':>10s} " + " ".join(f"{name:>30s}" for name in NAMES))
    for depth, thickness in enumerate(thicknesses):
        for dose in doses:
            scores, chosen = compare(scans, depth, dose)
            row: dict[str, Any] = {"thickness [A]": thickness, "electrons per pattern": dose}
            for name in NAMES:
                low, high = np.percentile(scores[name], (10, 90))
                row[name] = {
                    "mean": float(np.mean(scores[name])),
                    "10 %": float(low),
                    "90 %": float(high),
                    "chosen": chosen[name],
                }
            rows.append(row)
            cells = (f"{row[n]['mean']:.3f} ({row[n]['10 %']:.2f} to {row[n]['90 %']:.2f})" for n in NAMES)
            electrons = "no noise" if dose is None else f"{dose:.0f}"
            print(f"{thickness:8.0f} A {electrons:>10s} " + " ".join(f"{cell:>30s}" for cell in cells), flush=True)
            print(f"{'chosen':>21s} " + " ".join(f"{chosen[name]!s:>30s}" for name in NAMES), flush=True)
    if arguments.json:
        about = {"benchmark": "classical", "format": 1, "views": counts, "crystals": arguments.crystals}
        arguments.json.write_text(json.dumps({**about, "rows": rows}, indent=1))
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        detectors(arguments.pictures / "detectors.png")
        examples(arguments.pictures / "classical.png", scans, thicknesses, 30000.0)


if __name__ == "__main__":
    main()
