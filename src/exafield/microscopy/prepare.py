"""What a scan file holds and what its user says, brought together and checked: all that a reconstruction needs.

Nothing is guessed quietly. What is estimated from the data is said; what contradicts it is warned of; what is missing
is named with the option that gives it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from exafield.microscopy.calibration import Calibration, Recorded, ScanError
from exafield.microscopy.electron import complete_step
from exafield.microscopy.scanfile import ScanFile
from exafield.microscopy.survey import Disc, Survey, find_disc, hint, survey

# Tolerances, all our choice: of the disc's centre [radii] and radius, of the electrons that patterns hold, of a
# wandering disc [radii], of values below zero.
_CENTRE, _RADIUS, _ELECTRONS, _WANDER, _NEGATIVE = 0.05, 0.1, (0.7, 1.05), 0.15, 1e-3
# Two statements on the disc's radius that differ by more than this factor cannot be used; our choice.
_APART = 2.0
#: What is needed, by the option that gives it.
NEEDED: Mapping[str, str] = {
    "energy": "--energy [eV]",
    "convergence_angle": "--convergence-angle [rad]",
    "scan_step": "--scan-step [A]",
    "thickness": "--thickness [A], roughly",
    "dose": "--dose [electrons per pattern]",
}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan about which all is known.

    Args:
        scan: the file.
        calibration: complete: energy, convergence_angle, scan_step, detector_step, centre, dose and gain at least.
        survey: what the first look found.
        disc: of the data; None if none was found and everything was given.
        notes: what was found and taken.
        warnings: what is doubtful.
    """

    scan: ScanFile
    calibration: Calibration
    survey: Survey
    disc: Disc | None
    notes: list[str]
    warnings: list[str]

    @cached_property
    def recorded(self) -> Recorded:
        """The calibration, where all of it is known.

        Raises:
            ScanError: it is not.
        """
        return Recorded.of(self.calibration)


def prepare(scan: ScanFile, given: Calibration, needed: Mapping[str, str] = NEEDED) -> Prepared:
    """Completes what is known of a scan by what its patterns show.

    Args:
        scan: the file.
        given: what the user says; it goes before what the file says.
        needed: quantities that must be known in the end, and how each is given.
    Raises:
        ScanError: something that is needed is neither given, nor in the file, nor in the data; names all of it.
    """
    calibration, warnings = given.over(scan.told)
    notes = list(scan.said)
    found = survey(scan)
    disc = find_disc(found.mean)
    if disc is None:
        _no_disc(scan, found, calibration)
        warnings.append("no bright-field disc is seen in the mean pattern: centre and angles are taken as given")
    calibration = _disc(calibration, disc, notes, warnings)
    calibration = _dose(calibration, found, notes, warnings)
    missing = [
        f"{name.replace('_', ' ')} ({flag})" for name, flag in needed.items() if getattr(calibration, name) is None
    ]
    if missing:
        raise ScanError(f"{scan.path} does not state, and neither was given: {', '.join(missing)}")
    _recording(scan, calibration, found, disc, notes, warnings)
    return Prepared(scan, calibration, found, disc, notes, warnings)


def _no_disc(scan: ScanFile, found: Survey, calibration: Calibration) -> None:
    """Refuses a scan without a disc, unless everything that the disc tells was given."""
    if find_disc(found.image) is not None and float(np.ptp(found.image)) > 0.8 * float(found.image.max()):
        raise ScanError(
            f"{scan.path}: what are taken for scan axes show a bright disc, and what are taken for detector axes show "
            f"none: the axes are in another order; try --axes {scan.swapped()}"
        )
    if calibration.centre is None or calibration.detector_step is None or calibration.convergence_angle is None:
        raise ScanError(
            f"{scan.path}: no bright-field disc is seen in the mean pattern: are the axes in another order (--axes), "
            "is the disc cut by the detector's edge, or is it no convergent beam? If it is right give --centre "
            "[pixels], --detector-step and --convergence-angle [rad]"
        )


def _disc(calibration: Calibration, disc: Disc | None, notes: list[str], warnings: list[str]) -> Calibration:
    """Centre and angles, by the disc where they are not known; where they are, compared with it."""
    if disc is None:
        return calibration
    notes.append(
        f"bright-field disc: centre ({disc.centre[0]:.2f}, {disc.centre[1]:.2f}), radius {disc.radius:.2f} pixels"
    )
    if calibration.centre is None:
        calibration = replace(calibration, centre=disc.centre)
    else:
        off = math.dist(calibration.centre, disc.centre)
        if off > max(1.0, _CENTRE * disc.radius):
            warnings.append(
                f"the centre given, ({calibration.centre[0]:g}, {calibration.centre[1]:g}), is {off:.1f} pixels from "
                f"that of the bright-field disc, ({disc.centre[0]:.1f}, {disc.centre[1]:.1f}): leave out --centre to "
                "take the disc's"
            )
    angle, step = calibration.convergence_angle, calibration.detector_step
    if angle is not None and step is None:
        step = (angle / disc.radius, angle / disc.radius)
        notes.append(f"detector step {1e3 * step[0]:.4g} mrad, from the disc's radius and the convergence angle")
        return replace(calibration, detector_step=step)
    if step is not None:
        seen = disc.radius * math.sqrt(step[0] * step[1])
        if angle is None:
            notes.append(f"convergence angle {1e3 * seen:.4g} mrad, from the disc's radius and the detector step")
            return replace(calibration, convergence_angle=seen)
        if abs(seen / angle - 1) > _RADIUS:
            said = (
                f"the bright-field disc has a radius of {disc.radius:.1f} pixels, which are {1e3 * seen:.3g} mrad by "
                f"the detector step, and the convergence angle is said to be {1e3 * angle:.3g} mrad: one of the two is "
                "wrong"
            )
            if not 1 / _APART < seen / angle < _APART:
                raise ScanError(f"{said} (leave out the detector step to have it from the disc)")
            warnings.append(f"{said}; what was said is taken (leave out the detector step to have it from the disc)")
    return calibration


def _dose(calibration: Calibration, found: Survey, notes: list[str], warnings: list[str]) -> Calibration:
    """Electrons per pattern, and counts per electron."""
    dose, gain = calibration.dose, calibration.gain
    if not found.total > 0:
        raise ScanError(
            f"the mean pattern sums to {found.total:.4g}: is a dark level subtracted twice, or the type of the numbers "
            "wrong?"
        )
    if dose is None and (found.counts or gain is not None):
        dose, gain = found.total / (gain or 1.0), gain or 1.0
        notes.append(f"{dose:.4g} electrons per pattern, as all that is incident is taken to reach the detector")
    elif dose is not None:
        share = found.total / dose
        if gain is None and found.counts and _ELECTRONS[0] <= share <= _ELECTRONS[1]:
            gain = 1.0
        elif gain is None:
            gain = share
            notes.append(
                f"{share:.4g} counts per electron, so that the mean pattern holds the {dose:g} electrons given"
            )
        elif not _ELECTRONS[0] <= share / gain <= _ELECTRONS[1]:
            warnings.append(
                f"a pattern holds {found.total / gain:.4g} electrons in the mean, and {dose:g} are said to be incident"
                ": is the dose that of one pattern, and the gain right?"
            )
    return replace(calibration, dose=dose, gain=gain)


def _recording(
    scan: ScanFile, c: Calibration, found: Survey, disc: Disc | None, notes: list[str], warnings: list[str]
) -> None:
    """What is wrong with detector and axes."""
    count = int(found.dead.sum())
    if count:
        places = ", ".join(f"({x}, {y})" for x, y in np.argwhere(found.dead)[:6])
        more = ", ..." if count > 6 else ""
        notes.append(f"{count} dead or hot detector pixels are left out: {places}{more}")
    if found.missing:
        notes.append(f"{found.missing:.2%} of the values are no numbers (NaN) and are left out")
    if found.negative > _NEGATIVE:
        warnings.append(
            f"{found.negative:.1%} of the values are below zero: is a dark level subtracted twice, or the type of the "
            "numbers wrong? They are kept, and sums below zero count as zero"
        )
    if found.empty:
        warnings.append(f"{found.empty:.2%} of the patterns looked at are empty")
    if disc is None:
        return
    edge = min(min(at + 0.5, n - 0.5 - at) - disc.radius for at, n in zip(disc.centre, scan.shape[2:], strict=True))
    if edge < -0.02 * disc.radius:
        raise ScanError(
            f"{scan.path}: the bright-field disc (radius {disc.radius:.1f} pixels) is cut by the edge of the detector: "
            "a shorter camera length, or the whole frame, is needed"
        )
    if found.wander > _WANDER * disc.radius:
        warnings.append(
            f"the pattern wanders by {found.wander / disc.radius:.0%} of the disc's radius over the scan (descan): "
            "centre the patterns first, or take a smaller part of the scan"
        )
    said = hint(found.deflection, c.rotation or 0.0, bool(c.transpose), c.scan_step or (1.0, 1.0))
    if said is not None:
        warnings.append(said)


def check_steps(prepared: Prepared, step: float, bin_width: float) -> list[str]:
    """Warnings of a scan or a detector too coarse for a network.

    Args:
        step: of the network's scan [A].
        bin_width: of its detector [rad].
    """
    c, warnings = prepared.recorded, []
    complete = complete_step(c.energy, c.convergence_angle)
    alike = math.isclose(*c.scan_step, rel_tol=1e-3)
    for axis, own in [("x and y", c.scan_step[0])] if alike else zip("xy", c.scan_step, strict=True):
        parts = step / own
        if own > 1.01 * step:
            warnings.append(
                f"the scan step along {axis}, {own:.3g} A, is coarser than that of the network, {step:g} A: what lies "
                f"between is interpolated; record with {step:g} A or finer"
            )
        elif own > 1.01 * complete and abs(parts - round(parts)) > 0.02:
            warnings.append(
                f"the scan step along {axis}, {own:.3g} A, is neither {step:g} A divided by a whole number nor below "
                f"{complete:.2g} A = lambda / (4 alpha), from which on nothing is lost: patterns are interpolated"
            )
    if max(c.detector_step) > 1.01 * bin_width:
        warnings.append(
            f"a detector pixel, {1e3 * max(c.detector_step):.3g} mrad, is wider than a bin of the network, "
            f"{1e3 * bin_width:.3g} mrad: the detector is too coarse, or binned too much"
        )
    return warnings
