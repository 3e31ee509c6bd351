"""What must be known of a scan beside its numbers: energy, angles, steps, thickness and dose.

Files state it in many ways and often in part; users state the rest. Inside, there is one unit for each quantity.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from exafield.microscopy.electron import wavelength

# Of units, as written in files: what one of them is in A, in rad, or in 1/A.
_LENGTHS = {"a": 1.0, "å": 1.0, "\u212b": 1.0, "angstrom": 1.0, "angstroms": 1.0, "nm": 10.0, "pm": 0.01, "m": 1e10}
_ANGLES = {"rad": 1.0, "mrad": 1e-3}
_FREQUENCIES = {
    **dict.fromkeys(("a^-1", "å^-1", "1/a", "1/å", "1/angstrom", "angstrom^-1"), 1.0),
    **dict.fromkeys(("nm^-1", "1/nm"), 0.1),
}
# Beyond this part, what a file states and what the user gives are not the same; our choice.
_SAME = 0.02


class ScanError(ValueError):
    """A scan that cannot be used; says which file, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is known of a scan; None is not known.

    Args:
        energy: of the beam [eV].
        convergence_angle: semi-angle of the probe [rad].
        scan_step: between probes along x and y [A].
        detector_step: angle of a pixel along kx and ky [rad].
        detector_frequency: the same as a frequency [1/A], as some files state it; an angle once the energy is known.
        thickness: of the specimen [A].
        dose: incident electrons per pattern.
        gain: counts of the file per electron.
        centre: of the bright-field disc (kx, ky) [pixels].
        rotation: angle by which detector vectors are turned, x towards y, to be along the scan's axes [degrees].
        transpose: whether kx and ky are swapped before that.
    """

    energy: float | None = None
    convergence_angle: float | None = None
    scan_step: tuple[float, float] | None = None
    detector_step: tuple[float, float] | None = None
    detector_frequency: tuple[float, float] | None = None
    thickness: float | None = None
    dose: float | None = None
    gain: float | None = None
    centre: tuple[float, float] | None = None
    rotation: float | None = None
    transpose: bool | None = None

    def __post_init__(self) -> None:
        for name in ("energy", "convergence_angle", "thickness", "dose", "gain"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ScanError(f"{name} must be above 0 and finite, got {value}")
        for name in ("scan_step", "detector_step", "detector_frequency"):
            for value in getattr(self, name) or ():
                if not (math.isfinite(value) and value > 0):
                    raise ScanError(f"{name} must be above 0 and finite, got {value}")
        for name in ("centre", "rotation"):
            value = getattr(self, name)
            if value is not None and not all(map(math.isfinite, value if isinstance(value, tuple) else (value,))):
                raise ScanError(f"{name} must be finite, got {_text(value)}")
        if self.energy is not None and not 1e3 <= self.energy <= 5e6:
            raise ScanError(f"energy is in eV: {self.energy:g} is no energy of a microscope; 200 keV is 200000")
        if self.convergence_angle is not None and self.convergence_angle > 0.2:
            raise ScanError(
                f"convergence_angle is in rad: {self.convergence_angle:g} is no small angle; 25 mrad is 0.025"
            )
        if self.detector_step is not None and max(self.detector_step) > 0.1:
            raise ScanError(f"detector_step is in rad: {max(self.detector_step):g} is too much; 1 mrad is 0.001")

    def over(self, told: "Calibration") -> tuple["Calibration", list[str]]:
        """This, and where it says nothing what a file told; with a line for each contradiction between the two."""
        said = []
        whole, stated = told, told.resolved()
        for field in fields(self):
            name, mine = field.name, getattr(self, field.name)
            if mine is None:
                continue
            theirs = getattr(stated, name)
            if theirs is not None and not _alike(mine, theirs):
                said.append(
                    f"{name} is {_text(theirs)} in the file, and {_text(mine)} was given: what was given is taken"
                )
            whole = replace(whole, **{name: mine})
        if self.detector_step is not None:
            whole = replace(whole, detector_frequency=None)
        return whole.resolved(), said

    def resolved(self) -> "Calibration":
        """With the detector's step as an angle, if the energy is known."""
        if self.detector_step is not None or self.detector_frequency is None or self.energy is None:
            return self
        step = tuple(frequency * wavelength(self.energy) for frequency in self.detector_frequency)
        return replace(self, detector_step=(step[0], step[1]), detector_frequency=None)


@dataclass(frozen=True, slots=True)
class Recorded:
    """The same where all is known, see :class:`Calibration`."""

    energy: float
    convergence_angle: float
    scan_step: tuple[float, float]
    detector_step: tuple[float, float]
    thickness: float
    dose: float
    gain: float
    centre: tuple[float, float]
    rotation: float
    transpose: bool

    @classmethod
    def of(cls, calibration: Calibration) -> "Recorded":
        """What is known, if it is all that is needed; scan and detector are aligned unless said otherwise.

        Raises:
            ScanError: something is missing.
        """
        known = {f.name: getattr(calibration, f.name) for f in fields(cls)}
        known["rotation"], known["transpose"] = known["rotation"] or 0.0, bool(known["transpose"])
        missing = [name for name, value in known.items() if value is None]
        if missing:
            raise ScanError(f"of the scan is not known: {', '.join(missing)}")
        return cls(**known)


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
    return all(math.isclose(a, b, rel_tol=_SAME, abs_tol=1e-12) for a, b in pairs)


def _text(value: Any) -> str:
    return " x ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else f"{value:g}"


@dataclass(frozen=True, slots=True)
class Axis:
    """What a file states of one axis of its array.

    Args:
        name: of the axis; may be empty.
        step: between two points.
        unit: of the step; may be empty.
    """

    name: str
    step: float
    unit: str

    @property
    def kind(self) -> str | None:
        """ "scan" or "detector", if the unit tells."""
        unit = plain(self.unit)
        if unit in _LENGTHS:
            return "scan"
        return "detector" if unit in _ANGLES or unit in _FREQUENCIES else None


def plain(unit: str) -> str:
    """A unit without what is written in more than one way."""
    text = unit.strip().strip("[]").replace(" ", "").replace("**", "^").replace("−", "-").replace("⁻¹", "^-1")
    return text.lower().replace("_", "")


def _made(found: Mapping[str, Any], said: list[str]) -> Calibration:
    """What a file states, without what cannot be, of which `said` takes a line."""
    possible = {}
    for name, value in found.items():
        try:
            Calibration(**{name: value})
        except ScanError as error:
            said.append(f"something that the file states is left out: {error}")
        else:
            possible[name] = value
    return Calibration(**possible)


def from_axes(axes: Sequence[Axis | None], said: list[str]) -> Calibration:
    """What axes (x, y, kx, ky) state; nothing of those whose unit is none that is known.

    `said` takes a line for each value that cannot be.
    """
    found: dict[str, Any] = {}
    for name, pair, table in (
        ("scan_step", axes[:2], _LENGTHS),
        ("detector_step", axes[2:], _ANGLES),
        ("detector_frequency", axes[2:], _FREQUENCIES),
    ):
        steps = [abs(a.step) * table[plain(a.unit)] for a in pair if a is not None and plain(a.unit) in table]
        if len(steps) == 2 and all(step > 0 for step in steps):
            found[name] = (steps[0], steps[1])
    return _made(found, said)


def from_facts(facts: Mapping[str, Any], said: list[str]) -> Calibration:
    """What scalars of a file state, by the names that py4DSTEM, abTEM and this package give them.

    `said` takes a line for each value that cannot be.

    A voltage or an energy below 2,000 is in kV or keV. What is called energy and no more must be in eV.
    """
    number = {name.lower(): float(value) for name, value in facts.items() if _is_number(value)}
    text = {name.lower(): str(value) for name, value in facts.items() if isinstance(value, str)}
    found: dict[str, Any] = {}
    for name, least in (("accelerating_voltage", 0), ("beam_energy", 0), ("high_tension", 0), ("energy", 1e4)):
        if number.get(name, 0) > least:
            found["energy"] = number[name] * (1e3 if number[name] < 2e3 else 1.0)
            break
    for name in ("probe_convergence_semiangle_mrad", "convergence_semiangle_mrad", "semiangle_cutoff"):
        if number.get(name, 0) > 0:
            found["convergence_angle"] = number[name] * 1e-3
            break
    for size, unit, choices in (
        ("r_pixel_size", "r_pixel_units", {"scan_step": _LENGTHS}),
        ("q_pixel_size", "q_pixel_units", {"detector_step": _ANGLES, "detector_frequency": _FREQUENCIES}),
    ):
        for name, table in choices.items():
            if number.get(size, 0) > 0 and plain(text.get(unit, "")) in table:
                step = number[size] * table[plain(text[unit])]
                found[name] = (step, step)
    for name, key in (("thickness", "thickness_angstrom"), ("dose", "electrons_per_pattern"), ("gain", "gain")):
        if number.get(key, 0) > 0:
            found[name] = number[key]
    if "qr_rotation_degrees" in number:
        found["rotation"] = number["qr_rotation_degrees"]
    elif "qr_rotation" in number:
        found["rotation"] = math.degrees(number["qr_rotation"])
    if "qr_flip" in facts or "QR_flip" in facts:
        found["transpose"] = bool(facts.get("QR_flip", facts.get("qr_flip")))
    return _made(found, said)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def both(first: Calibration, second: Calibration) -> Calibration:
    """What the first states, and where it states nothing the second."""
    return replace(
        second, **{f.name: getattr(first, f.name) for f in fields(first) if getattr(first, f.name) is not None}
    )
