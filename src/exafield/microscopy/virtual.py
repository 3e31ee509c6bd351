"""Virtual detectors of a scan in a file, whatever its detector: binned, centred and turned first."""

from pathlib import Path

import torch

from exafield.microscopy import imaging
from exafield.microscopy.calibration import ScanError
from exafield.microscopy.prepare import Prepared
from exafield.microscopy.resampling import Resampled, bins, positions
from exafield.store import whole

# Half the width of the binned detector in convergence angles, if the detector reaches that far. Our choice.
_REACH = 2.0
# Numbers that the binned scan may have: more positions than that are cut off around the middle. Our choice.
_LARGEST = 2**25


def draw(path: Path, prepared: Prepared) -> list[str]:
    """Draws the virtual detectors; returns what a reader should know.

    Raises:
        StoreError: the picture cannot be written.
        ScanError: the detector step is not known.
    """
    c, scan = prepared.calibration, prepared.scan
    if c.convergence_angle is None or c.scan_step is None or c.centre is None or c.detector_step is None:
        raise ScanError(f"{scan.path}: neither a bright-field disc nor --centre and --detector-step tell its angles")
    count = 32 if scan.shape[0] * scan.shape[1] * 32**2 <= _LARGEST else 16
    room = (min(at + 0.5, n - 0.5 - at) * s for at, n, s in zip(c.centre, scan.shape[2:], c.detector_step, strict=True))
    half = min(_REACH * c.convergence_angle, max(1.15 * c.convergence_angle, min(room)))
    detector = bins(
        (scan.shape[2], scan.shape[3]),
        centre=c.centre,
        step=c.detector_step,
        half_angle=half,
        count=count,
        rotation=c.rotation or 0.0,
        transpose=bool(c.transpose),
        dead=prepared.survey.dead,
    )
    # At its own step nothing is interpolated.
    along = [positions(n, s, s, s) for n, s in zip(scan.shape[:2], c.scan_step, strict=True)]
    resampled = Resampled(scan, detector, (along[0], along[1]), 1.0)
    rows = max(2, min(scan.shape[0], _LARGEST // (count**2 * scan.shape[1])))
    first = (scan.shape[0] - rows) // 2
    patterns = torch.from_numpy(resampled.band(first, first + rows)).square()
    notes = [] if rows == scan.shape[0] else [f"the {rows} rows in the middle of {scan.shape[0]} are drawn"]
    with whole(path) as part:
        imaging.plot(
            part,
            patterns,
            step=c.scan_step,
            half_angle=half,
            convergence_angle=c.convergence_angle,
            title=f"{scan.path.name}: {scan.shape[0]} x {scan.shape[1]} positions",
        )
    return notes
