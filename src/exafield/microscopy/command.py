"""The command `exafield microscopy`: parsing, printing and files. What is computed is elsewhere."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields

from exafield.microscopy.flags import Describe, Detectors, Simulate
from exafield.setting import RunError
from exafield.subcommand import Command, carry_out, check_folder, check_picture, parsed

_UNITS = {
    "energy": " eV",
    "convergence_angle": " rad",
    "scan_step": " A",
    "detector_step": " rad",
    "detector_frequency": " / A",
    "thickness": " A",
    "dose": " electrons per pattern",
    "gain": " counts per electron",
    "centre": " pixels",
    "rotation": " degrees",
}

_HELP = """\
usage: exafield microscopy COMMAND [OPTIONS]

  simulate CRYSTAL    a scan of a perfect crystal as a file, with the potential behind it, to try things on
  describe SCAN       what the reader finds: axes, calibration, bright-field disc, electrons, and what is doubtful
  detectors SCAN      a picture of what virtual detectors see: bright and dark field, centre of mass, phase contrast

SCAN is HDF5 or EMD (also of py4DSTEM), Zarr, MIB, NumPy or raw. exafield microscopy COMMAND --help says more.
A network is made by exafield train microscopy; exafield apply microscopy says what potential is behind a scan.
"""


def main(argv: Sequence[str]) -> int:
    """Runs a command, given without `exafield microscopy`; returns the exit code.

    Raises:
        ScanError, CrystalError: something about a scan or a crystal is wrong.
        StoreError: something cannot be written.
        ImportError: a package is not installed.
    """
    commands: Mapping[str, Command] = {
        "simulate": _simulate,
        "describe": _describe,
        "detectors": _detectors,
    }
    return carry_out("microscopy", _HELP, commands, argv)


def _simulate(argv: list[str]) -> int:
    arguments = parsed(Simulate, "microscopy simulate", "of what?", argv)
    check_folder(arguments.out)
    from exafield.microscopy.simulated import named_crystal, record, zone_indices

    how, crystal, zone = arguments.recording, named_crystal(arguments.crystal), zone_indices(arguments.zone)
    if not (0 < arguments.max_edge < math.inf and 0 <= arguments.max_strain < 0.2):
        raise RunError("--max-edge must be above 0 A, --max-strain from 0 to below 0.2: 1 % is 0.01")
    view = record(arguments.out, crystal, zone, how, max_edge=arguments.max_edge, max_strain=arguments.max_strain)
    if view.strain:
        print(f"note     the cell was strained by {view.strain:.2%} to be orthogonal")
    area = how.step**2
    dose = "no noise" if how.dose is None else f"{how.dose:g} electrons per pattern ({how.dose / area:g} per A^2)"
    print(f"{arguments.out}: {view.name}, {how.size[0]} x {how.size[1]} positions {how.step:g} A apart, {dose}")
    return 0


def _describe(argv: list[str]) -> int:
    arguments = parsed(Describe, "microscopy describe", "of what?", argv)
    from exafield.microscopy.prepare import prepare

    with arguments.at.open() as scan:
        nx, ny, kx, ky = scan.shape
        print(f"scan     {nx} x {ny} positions of {kx} x {ky} pixels, {scan.dtype}")
        prepared = prepare(scan, arguments.known.calibration(scan), needed={})
        for entry in fields(prepared.calibration):
            value = getattr(prepared.calibration, entry.name)
            if value is not None:
                text = ", ".join(f"{v:.5g}" for v in value) if isinstance(value, tuple) else _number(value)
                print(f"         {entry.name.replace('_', ' ')}: {text}{_UNITS.get(entry.name, '')}")
        print("\n".join(said(prepared.notes, prepared.warnings)))
    return 0


def _number(value: float | bool) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:.6g}"


def said(notes: Sequence[str], warnings: Sequence[str]) -> list[str]:
    """Notes and warnings as lines."""
    return [*(f"note     {text}" for text in notes), *(f"warning  {text}" for text in warnings)]


def _detectors(argv: list[str]) -> int:
    arguments = parsed(Detectors, "microscopy detectors", "of what?", argv)
    check_picture(arguments.out)
    check_folder(arguments.out)
    from exafield.microscopy.prepare import NEEDED, prepare
    from exafield.microscopy.virtual import draw

    needed = {name: NEEDED[name] for name in ("convergence_angle", "scan_step")}
    with arguments.at.open() as scan:
        prepared = prepare(scan, arguments.known.calibration(scan), needed)
        notes = draw(arguments.out, prepared)
    print("\n".join([*said([*prepared.notes, *notes], prepared.warnings), str(arguments.out)]))
    return 0
