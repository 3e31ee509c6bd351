"""`apply microscopy`: the potential behind a scan that no training saw."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import tyro

from exafield.apply.run import about, digest, newest, states
from exafield.checkpoint import CheckpointError
from exafield.microscopy.flags import Known, ScanAt
from exafield.microscopy.reconstruct import OVERLAP
from exafield.question import Microscopy
from exafield.setting import RunError

if TYPE_CHECKING:
    from exafield.microscopy.calibration import Recorded

# The player whose module is used.
_NETWORK = ("network",)
# Where the run has no verdict: a column rises above this share of the range. Our choice; verdicts choose 0.05 to 0.30.
_THRESHOLD = 0.15


@dataclass(frozen=True)
class ApplyMicroscopy:
    """Says what projected potential is behind a scan, how sure that is, and where atom columns are.

    Writes potential and its deviation to OUT, and beside it, under the same name, atom columns (-columns.csv) and a
    picture (.png). A scan may be larger than memory.

    Args:
        run: folder of a training.
        at: the scan.
        out: the result: .h5 or .zarr.
        known: of the scan.
        step: of the checkpoint. None: the newest.
        tile: scan positions along a side that the network sees at a time; 0: the whole scan. None: as in training.
        overlap: scan positions that neighbouring tiles share at least.
        quick: see each tile once, not in its eight turns and mirrors, and of finer steps than the network's only what
            is that far apart: eight times as fast at least, and less sure.
        threshold: of columns, as a share of the range of the potential. None: as the verdict of the run chose.
        truth: also say how far it is from the potential that a simulated file holds.
        device: where the network computes.
    """

    run: tyro.conf.Positional[Path]
    at: Annotated[ScanAt, tyro.conf.arg(name="")]
    out: Path
    known: Annotated[Known, tyro.conf.arg(name="")] = field(default_factory=Known)
    step: int | None = None
    tile: int | None = None
    overlap: int = OVERLAP
    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    threshold: float | None = None
    truth: tyro.conf.FlagCreatePairsOff[bool] = False
    device: Literal["cpu", "cuda"] = "cpu"


def see(arguments: ApplyMicroscopy) -> int:
    """Carries out the command.

    Raises:
        RunError: something in the arguments is wrong.
        CheckpointError: there is no checkpoint, it is not whole, or of an older network.
        ScanError: the scan cannot be used.
        StoreError: the result cannot be written.
    """
    question = about(arguments.run, Microscopy)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: torch sees no GPU here: leave it out to compute on the processor")
    if arguments.threshold is not None and not 0 < arguments.threshold < 1:
        raise RunError(f"--threshold {arguments.threshold}: it is a share of the range, between 0 and 1")
    if arguments.tile is not None and arguments.tile < 0:
        raise RunError(f"--tile {arguments.tile}: it must be 0 for the whole scan, or positions along a side")
    from exafield.microscopy import assembly, results
    from exafield.microscopy.applied import compare, draw
    from exafield.microscopy.columns import find_columns
    from exafield.microscopy.command import said
    from exafield.microscopy.prepare import prepare
    from exafield.microscopy.reconstruct import reconstruct

    results.check_target(arguments.out, arguments.at.scan)
    step = newest(arguments.run, _NETWORK, arguments.step)
    try:
        model = assembly.reconstructor(question, states(arguments.run, _NETWORK, step)[_NETWORK[0]])
    except ValueError as error:
        if isinstance(error, RunError):
            raise
        raise CheckpointError(
            f"the checkpoint of step {step} in {arguments.run} does not fit: {error}; was it made by an older exafield "
            "or run.yaml changed since? Train again"
        ) from error
    sight = assembly.sight()
    with arguments.at.open() as scan:
        if arguments.truth and scan.truth is None:
            raise RunError(f"--truth: {arguments.at.scan} holds no known potential")
        prepared = prepare(scan, arguments.known.calibration(scan))
        print("\n".join(said([_recorded(prepared.recorded), *prepared.notes], [])), flush=True)
        found = reconstruct(
            prepared,
            model,
            sight,
            tile=arguments.tile,
            overlap=arguments.overlap,
            quick=arguments.quick,
            device=arguments.device,
        )
        threshold = arguments.threshold or _verdict(arguments.run, found.electrons)
        columns = find_columns(found.potential, found.deviation, found.x, found.y, threshold)
        comparison = compare(found, scan.truth, sight, threshold) if arguments.truth and scan.truth else None
        title = f"{arguments.at.scan.name}, by the network of {arguments.run.name}"
        picture = draw(prepared, found, columns, comparison, title)
    told = {
        "run": arguments.run.name,
        "checkpoint": digest(arguments.run, step),
        "step": str(step),
        "scan": arguments.at.scan.name,
        "column_threshold": f"{threshold:g}",
    }
    written = results.write(arguments.out, found, columns, picture, told)
    lines = said(found.notes[len(prepared.notes) :], found.warnings)
    mean = float(found.deviation.mean())
    size = f"{found.x[-1] - found.x[0]:.1f} x {found.y[-1] - found.y[0]:.1f} A"
    lines.append(
        f"potential {size}, standard deviation {found.potential.std():.4g} V A, expected error {mean:.3g} V A; "
        f"{len(columns.places)} columns"
    )
    if comparison is not None:
        lines.append(comparison.line())
    lines.append("written  " + ", ".join(map(str, written)))
    print("\n".join(lines))
    return 0


def _recorded(c: "Recorded") -> str:
    """How a scan was recorded, as it is taken."""
    steps = " x ".join(f"{step:.4g}" for step in dict.fromkeys(c.scan_step))
    turned = f", detector turned by {c.rotation:.4g} degrees" if c.rotation else ""
    swapped = ", kx and ky swapped" if c.transpose else ""
    return (
        f"{1e-3 * c.energy:.4g} keV, {1e3 * c.convergence_angle:.4g} mrad, scan step {steps} A, {c.thickness:.4g} A "
        f"thick, {c.dose:.4g} electrons per pattern{turned}{swapped}"
    )


def _verdict(folder: Path, electrons: float) -> float:
    """The threshold of columns that the run's verdict chose at the dose nearest to this one."""
    try:
        chosen = json.loads((folder / "result.json").read_text("utf-8"))["report"]["thresholds"]
        doses = {}
        for name, value in chosen.items():
            number = name.split()[0].replace(",", "")
            doses[float(number) if number.isdigit() else math.inf] = float(value)
        at = math.log10(electrons)
        return doses[min(doses, key=lambda dose: abs(math.log10(min(dose, 1e6)) - at))]
    except (OSError, KeyError, ValueError, AttributeError, TypeError):
        return _THRESHOLD
