"""What `exafield apply microscopy` makes of scans of crystals that a network never saw.

    python benchmarks/microscopy_apply.py [runs/NAME] [--crystals 6] [--json FILE] [--quick]

The run is the newest under runs/ about microscopy that has a checkpoint, if none is named.

Each scan is simulated as a microscope would save it (64 x 64 pixels, counted electrons) and read back with nothing but
its file. Printed, as least, median and most over the crystals:

- how far tiles put together are from the whole scan seen at once, in standard deviations of the potential;
- relative L2, R2 and position error of windows seen once, and in eight turns and mirrors;
- the same of a scan with half the step and a quarter of the electrons per pattern, read as one scan, and as four;
- how far the bright-field disc that is found is from the one that is there.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from exafield.apply.run import about, newest, states
from exafield.microscopy import assembly, embedded
from exafield.microscopy.applied import compare
from exafield.microscopy.calibration import Calibration
from exafield.microscopy.crystal import Crystal
from exafield.microscopy.model import Reconstructor
from exafield.microscopy.prepare import prepare
from exafield.microscopy.readers import open_scan
from exafield.microscopy.reconstruct import Reconstruction, reconstruct
from exafield.microscopy.scans import part_of
from exafield.microscopy.simulated import Recording, record
from exafield.microscopy.views import views
from exafield.question import Microscopy

THRESHOLD = 0.15


def unseen(count: int) -> list[Crystal]:
    """Crystals of the built-in table that no training learns from, spread over it; one per structure type."""
    found = {c.prototype: c for c in embedded() if part_of(c.material) == "test" and views(c)}
    chosen = list(found.values())
    return [chosen[i] for i in np.linspace(0, len(chosen) - 1, min(count, len(chosen))).astype(int)]


def judge(
    crystal: Crystal, model: Reconstructor, thickness: float, dose: float, positions: int, folder: Path
) -> dict[str, float]:
    """All figures of one crystal."""
    sight = assembly.sight()
    figures: dict[str, float] = {}
    for name, step, electrons, size in (
        ("step 0.5 A", sight.step, dose, positions),
        ("step 0.25 A", sight.step / 2, dose / 4, 2 * positions - 1),
    ):
        path = folder / f"{step}.h5"
        path.unlink(missing_ok=True)
        how = Recording(size=(size, size), step=step, dose=electrons, thickness=thickness)
        record(path, crystal, (0, 0, 1), how)
        with open_scan(path) as scan:
            prepared = prepare(scan, Calibration())
            assert scan.truth is not None
            assert prepared.disc is not None
            truth = scan.truth
            once = reconstruct(prepared, model, sight, quick=True)
            best = reconstruct(prepared, model, sight)
            for kind, found in (("quick", once), ("default", best)):
                score = compare(found, truth, sight, THRESHOLD).score
                figures[f"{name}, {kind}: relative L2"] = score.relative_l2
                figures[f"{name}, {kind}: R2"] = score.r2
                figures[f"{name}, {kind}: position [A]"] = score.rms
            if step == sight.step:
                whole = reconstruct(prepared, model, sight, tile=0, quick=True)
                figures["tiles against one pass [standard deviations]"] = difference(once, whole)
                error = np.subtract(prepared.disc.centre, (how.detector_pixels - 1) / 2)
                figures["disc: centre [pixels]"] = float(np.hypot(*error))
                figures["disc: radius [%]"] = 100 * abs(prepared.disc.radius / (how.detector_pixels / 3.2) - 1)
                figures["warnings"] = len(prepared.warnings)
    return figures


def difference(one: Reconstruction, other: Reconstruction) -> float:
    """Root mean square difference, in standard deviations of the second."""
    return float((one.potential - other.potential).std() / other.potential.std())


def last() -> Path | None:
    """The newest run about microscopy that has a checkpoint."""
    found = {path.parents[1] for path in Path("runs").glob("microscopy*/checkpoints/step-*")}
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--crystals", type=int, default=6)
    parser.add_argument("--thickness", type=float, default=40.0)
    parser.add_argument("--dose", type=float, default=1000.0, help="electrons per pattern at 0.5 A")
    parser.add_argument("--positions", type=int, default=40)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="two crystals, small scans")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.crystals, arguments.positions = 2, 24
    torch.set_num_threads(1)
    if arguments.run is None:
        arguments.run = last()
        if arguments.run is None:
            print("There is no run about microscopy with a checkpoint under runs/: exafield train microscopy")
            return
    question = about(arguments.run, Microscopy)
    step = newest(arguments.run, ("network",))
    model = assembly.reconstructor(question, states(arguments.run, ("network",), step)["network"])
    found: dict[str, list[float]] = defaultdict(list)
    crystals = unseen(arguments.crystals)
    with tempfile.TemporaryDirectory() as folder:
        for crystal in crystals:
            figures = judge(
                crystal, model, arguments.thickness, arguments.dose, arguments.positions, Path(folder)
            )  # fmt: skip
            print(f"{crystal.name}: " + ", ".join(f"{k} {v:.3g}" for k, v in figures.items() if "L2" in k), flush=True)
            for name, value in figures.items():
                found[name].append(value)
    print(f"\n{len(crystals)} crystals, {arguments.thickness:g} A, least / median / most")
    for name, values in found.items():
        print(f"{name:50s} {min(values):7.3f} / {np.median(values):7.3f} / {max(values):7.3f}")
    if arguments.json:
        told = {"run": arguments.run.name, "crystals": [c.name for c in crystals], "thickness": arguments.thickness}
        arguments.json.write_text(json.dumps({**told, "dose": arguments.dose, "figures": found}, indent=1))


if __name__ == "__main__":
    main()
