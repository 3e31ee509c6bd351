"""Own crystal, own data, own model, own scan: from a CIF file to the potential behind a 4D-STEM scan.

    python examples/own_crystal.py examples/SrTiO3.cif                   trains for two minutes, tries a simulated scan
    python examples/own_crystal.py my.cif my-scan.h5 --thickness 150     your own crystal and scan

What your scan's file does not state (energy, convergence_angle, scan_step) is given to Calibration below.
"""

import argparse
from pathlib import Path

from exafield import Trainer, World
from exafield.microscopy import Generation, MicroscopyProblem, Window
from exafield.microscopy.applied import compare, draw
from exafield.microscopy.calibration import Calibration
from exafield.microscopy.columns import find_columns
from exafield.microscopy.prepare import prepare
from exafield.microscopy.readers import open_scan
from exafield.microscopy.reconstruct import Sight, reconstruct
from exafield.microscopy.results import write
from exafield.microscopy.simulated import Recording, named_crystal, record


def main(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.folder
    folder.mkdir(exist_ok=True)

    # Own data: the crystal along its main axes, from thin to a little thicker than the specimen, at any dose.
    generation = Generation(
        crystals=str(arguments.cif),
        thickness=min(20.0, arguments.thickness),
        thickness_to=1.2 * arguments.thickness,
        thicknesses=arguments.thicknesses,
    )
    window = Window(dose=300.0, dose_to=10_000.0)

    # Own model. Add "embedded," before the CIF file above for one that knows other crystals as well.
    problem = MicroscopyProblem(generation, window, path=folder / "data.zarr", per_scan=8)
    with World.from_env() as world:
        trainer = Trainer(problem, world, batch_size=8)
        trainer.fit(seconds=arguments.seconds) if arguments.steps is None else trainer.fit(arguments.steps)
    assert problem.model is not None

    # Own scan: a simulated one if there is none yet, noise included, whose file states all of it.
    stated = Calibration(thickness=arguments.thickness)
    if arguments.scan is None:
        stated = Calibration()
        arguments.scan = folder / "scan.h5"
        arguments.scan.unlink(missing_ok=True)
        how = Recording(size=(arguments.size, arguments.size), thickness=arguments.thickness, dose=2000.0)
        record(arguments.scan, named_crystal(str(arguments.cif)), (0, 0, 1), how)
    sight = Sight.of(window, generation)
    with open_scan(arguments.scan) as scan:
        prepared = prepare(scan, stated)
        found = reconstruct(prepared, problem.model, sight)
        columns = find_columns(found.potential, found.deviation, found.x, found.y, threshold=0.15)
        known = None if scan.truth is None else compare(found, scan.truth, sight, threshold=0.15)
        picture = draw(prepared, found, columns, known, title=f"{arguments.scan.name}, by a network of its own")
    print("\n".join([*found.notes, *(f"WARNING: {text}" for text in found.warnings), known.line() if known else ""]))
    print(*write(folder / "potential.h5", found, columns, picture, {"crystal": arguments.cif.name}), sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cif", type=Path)
    parser.add_argument("scan", type=Path, nargs="?")
    parser.add_argument("--thickness", type=float, default=40.0, help="of the specimen [A]")
    parser.add_argument("--thicknesses", type=int, default=6, help="simulated between thin and thick")
    parser.add_argument("--seconds", type=float, default=120.0, help="of training")
    parser.add_argument("--steps", type=int, help="of training, instead")
    parser.add_argument("--size", type=int, default=40, help="positions along a side of the simulated scan")
    parser.add_argument("--folder", type=Path, default=Path("own-crystal"))
    main(parser.parse_args())
