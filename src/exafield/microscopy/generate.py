"""Generation: crystals -> views -> diffraction patterns of one cell and projected potential -> store."""

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exafield.engine import MapEngine
from exafield.engine.local import ProcessEngine
from exafield.microscopy import views
from exafield.microscopy.crystal import Crystal, CrystalError, embedded, from_cif
from exafield.microscopy.electron import largest_pixel, wavelength
from exafield.microscopy.recipe import DTYPES, Precision, Recipe, simulate
from exafield.microscopy.scattering import Parametrisation
from exafield.microscopy.views import View
from exafield.store import SampleStore, cache_folder, locked

# Raised whenever the same parameters give other numbers than before: data simulated earlier is then made again.
# 2: several thicknesses a sample, and the detector's width goes with the convergence angle.
_PHYSICS = 2

# Crystals that are left out of which each is warned of: our choice.
_TOLD = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Generation:
    """What is simulated. The defaults are those of the demo; all our choice unless said.

    Each view is simulated `variants` times, with energy, convergence angle and B factor drawn for each, and each of
    these behind `thicknesses` thicknesses, one drawn from each of as many equal parts of their range. Where the upper
    end of a range is None, all are alike.

    Args:
        energy, energy_to: of the beam [eV]; drawn evenly in its logarithm.
        convergence_angle, convergence_angle_to: semi-angle [rad]; the aperture's edge is soft.
        thickness, thickness_to: of the specimen [A].
        b_factor, b_factor_to: Debye-Waller factor of every atom [A^2]; 0.6 is about that of metals at room temperature.
        variants: simulations of each view.
        thicknesses: of each simulation.
        slice_thickness: [A].
        sampling: pixel of the potential [A].
        box: the cell is repeated to about this edge [A].
        detector_pixels: along a side.
        detector_reach: half the detector's width, in convergence angles: any energy and angle has the same pixels.
        parametrisation: of the scattering factors.
        largest_edge: of a cell across the beam [A].
        crystals: "embedded" for the built-in table, a folder of CIF files, CIF files, or several of these with commas.
        precision: that patterns are kept in: fp16 rounds to a two-thousandth, and below a share of 6e-5 of the beam to
            6e-8, far below any counting noise.
        seed: of what is drawn. A sample depends on it, its view and its number alone, not on other crystals.
    """

    energy: float = 200e3
    energy_to: float | None = None
    convergence_angle: float = 0.025
    convergence_angle_to: float | None = None
    thickness: float = 40.0
    thickness_to: float | None = None
    b_factor: float = 0.6
    b_factor_to: float | None = None
    variants: int = 1
    thicknesses: int = 1
    slice_thickness: float = 2.0
    sampling: float = 0.125
    box: float = 14.0
    detector_pixels: int = 16
    detector_reach: float = 1.6
    parametrisation: Parametrisation = "kirkland"
    largest_edge: float = 9.0
    crystals: str = "embedded"
    precision: Precision = "fp16"
    seed: int = 0

    def __post_init__(self) -> None:
        names = ("energy", "convergence_angle", "thickness", "slice_thickness", "sampling", "box", "detector_reach")
        for name in (*names, "largest_edge"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"generation: {name} must be above 0 and finite, got {value}")
        if not 0 <= self.b_factor < float("inf"):
            raise ValueError(f"generation: b_factor must be 0 A^2 or more, got {self.b_factor}")
        for name in ("energy", "convergence_angle", "thickness", "b_factor"):
            low, high = self._range(name)
            if not low <= high < float("inf"):
                raise ValueError(f"generation: {name}_to must be finite and at least {name}, {low}, got {high}")
        for name, least in (("detector_pixels", 2), ("variants", 1), ("thicknesses", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"generation: {name} must be {least} or more, got {getattr(self, name)}")
        widest = self.detector_reach * self._range("convergence_angle")[1]
        if widest > 0.5:
            raise ValueError(
                f"generation: the detector would reach to {widest:g} rad: convergence_angle is in rad, 25 mrad is 0.025"
            )
        if self.thickness < self.slice_thickness:
            raise ValueError(
                f"generation: thickness, {self.thickness} A, must be at least one slice of {self.slice_thickness} A"
            )
        # The array is a whole number of cells, and may be smaller by half a cell than asked for.
        needed = wavelength(self.energy) / self.convergence_angle
        if needed > 0.5 * self.box:
            raise ValueError(
                f"generation: convergence_angle, {self.convergence_angle:g} rad, is too small for {self.energy:g} eV: "
                f"the probe is as wide as the array of box = {self.box:g} A; at least "
                f"{2 * wavelength(self.energy) / self.box:.2g} rad are needed, or a larger box"
            )
        if self.precision not in DTYPES:
            raise ValueError(f"generation: precision must be one of {', '.join(DTYPES)}, got {self.precision!r}")

    def _range(self, name: str) -> tuple[float, float]:
        low, high = getattr(self, name), getattr(self, f"{name}_to")
        return low, low if high is None else high

    def recipe(self, view: View, variant: int) -> Recipe:
        """How one sample is made."""
        random = np.random.default_rng(np.random.SeedSequence((self.seed, int(_content(view), 16), variant)))
        (e0, e1), (a0, a1), (t0, t1), (b0, b1) = (
            self._range(name) for name in ("energy", "convergence_angle", "thickness", "b_factor")
        )
        energy, angle, b_factor = random.uniform(np.log(e0), np.log(e1)), random.uniform(a0, a1), random.uniform(b0, b1)
        parts = np.linspace(t0, t1, self.thicknesses + 1)
        drawn = random.uniform(parts[:-1], parts[1:])
        drawn_energy = float(np.exp(energy)) if e1 > e0 else e0
        return Recipe(
            energy=drawn_energy,
            convergence_angle=float(angle),
            thicknesses=tuple(map(float, drawn)),
            b_factor=float(b_factor),
            slice_thickness=self.slice_thickness,
            sampling=min(self.sampling, largest_pixel(drawn_energy, self.detector_reach * float(angle))),
            box=self.box,
            detector_pixels=self.detector_pixels,
            detector_reach=self.detector_reach,
            parametrisation=self.parametrisation,
            precision=self.precision,
        )

    def attributes(self) -> dict[str, Any]:
        """What a store made with these parameters says of itself."""
        return {"physics": _PHYSICS, **asdict(self)}

    def digest(self) -> str:
        """A short name for this set of parameters."""
        return hashlib.sha256(json.dumps(self.attributes(), sort_keys=True).encode()).hexdigest()[:12]


class CrystalWarning(UserWarning):
    """A crystal that is left out; says which, and why."""


def crystals(source: str) -> Iterator[Crystal]:
    """The crystals that a text means, one at a time: those that cannot be used are warned of and left out.

    Args:
        source: "embedded" for the built-in table, a folder of CIF files, a CIF file, or several of these with commas.
    Raises:
        CrystalError: a folder holds no CIF file, or no file can be used; says why.
    """
    refused = []
    usable = False
    for part in [source] if source and Path(source).is_dir() else source.split(","):
        if not part:
            raise CrystalError(f"crystals: an empty name in {source!r}")
        if part == "embedded":
            yield from embedded()
            usable = True
            continue
        path = Path(part)
        paths = [path] if path.suffix.lower() == ".cif" and not path.is_dir() else sorted(path.glob("*.cif"))
        if not paths:
            raise CrystalError(f"{part}: no such folder, or no .cif file in it")
        for cif in paths:
            try:
                crystal = from_cif(cif)
            except CrystalError as error:
                refused.append(str(error))
                warnings.warn(f"left out: {error}", CrystalWarning, stacklevel=2)
            else:
                usable = True
                yield crystal
    if not usable:
        raise CrystalError("no crystal can be used: " + "; ".join(refused))


def samples(generation: Generation) -> Iterator[tuple[str, View, int]]:
    """Key, view and variant of all samples there are to be, one at a time."""
    for crystal in crystals(generation.crystals):
        seen = views.views(crystal, generation.largest_edge)
        if not seen and crystal not in embedded():  # of those it is known, and it would hide what is said of others
            warnings.warn(f"left out: {_unseen(crystal, generation)}", CrystalWarning, stacklevel=2)
        for view in seen:
            for variant in range(generation.variants):
                yield _key(view, variant), view, variant


def _unseen(crystal: Crystal, generation: Generation) -> str:
    """Why a crystal has no view."""
    try:
        edges = views.view(crystal, "001").cell
    except CrystalError as error:
        return str(error)
    size = " x ".join(f"{edge:.1f}" for edge in edges)
    return (
        f"{crystal.name}: its orthogonal cell of {size} A has no axis with edges up to {generation.largest_edge:g} A "
        "across the beam: raise largest_edge"
    )


def keys(generation: Generation) -> list[str]:
    """Of all samples there are to be, each once. Of crystals that are left out the first few are warned of.

    Raises:
        CrystalError: there is none, or no crystal can be used.
    """
    with _few_words():
        found = list(dict.fromkeys(key for key, *_ in samples(generation)))
    if not found:
        raise CrystalError(
            f"no crystal of {generation.crystals} has an orthogonal or hexagonal cell with edges up to "
            f"{generation.largest_edge} A"
        )
    return found


@contextmanager
def _few_words() -> Iterator[None]:
    """Warnings inside are passed on, but those of many crystals are made few."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            told = [warning.message for warning in caught]
    left_out = [message for message in told if isinstance(message, CrystalWarning)]
    for message in told:
        if message not in left_out[_TOLD:]:
            warnings.warn(message, stacklevel=4)
    if len(left_out) > _TOLD:
        warnings.warn(f"left out: {len(left_out) - _TOLD} more crystals for such reasons", CrystalWarning, stacklevel=4)


def _tasks(generation: Generation, wanted: Sequence[str]) -> Iterator[tuple[View, Recipe]]:
    """What makes the samples, in the order of their keys."""
    order = iter(wanted)
    following = next(order, None)
    for key, view, variant in samples(generation):
        if key == following:  # a structure given twice is made once
            yield view, generation.recipe(view, variant)
            following = next(order, None)


def generate(path: str | Path, generation: Generation, engine: MapEngine | None = None) -> tuple[int, float]:
    """Simulates every sample that the store at `path` does not hold yet.

    Interrupted, it goes on where it stopped when called again; two processes do not disturb each other.

    Returns:
        the number of samples simulated now, and the smallest share of intensity any kept within the band limit.
    Raises:
        StoreError: the store was made with other parameters, is damaged, or cannot be written.
        CrystalError: a crystal cannot be used.
    """
    wanted = keys(generation)
    engine = engine or ProcessEngine()
    made, least = 0, 1.0
    with locked(path), SampleStore(path, generation.attributes(), write=True) as store:
        complete = store.keys()
        done = {index for index, key in enumerate(wanted) if key in complete}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to say of crystals was said
            tasks = list(_tasks(generation, wanted))
        for index, (arrays, attributes) in engine.map(simulate, tasks, done=done):
            store.write(wanted[index], arrays, attributes)
            made += 1
            kept, detected = attributes["intensity_within_band_limit"], attributes["intensity_on_detector"]
            _log.info("%s: %.4f of the intensity kept, %.4f detected", attributes["name"], kept, detected)
            least = min(least, kept)
    return made, least


def _content(view: View) -> str:
    """A short name for the atoms of a view: a structure that was edited since is another one."""
    content = hashlib.sha256(view.numbers.astype("<i8").tobytes())
    lengths = np.round([*view.cell, *view.positions.ravel()], 5) + 0.0  # no negative zeros
    content.update(lengths.astype("<f8").tobytes())
    return content.hexdigest()[:8]


def _key(view: View, variant: int) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", view.crystal.name)
    return f"{name}.{view.crystal.space_group}.{view.zone}.{_content(view)}.{variant}"


def default_path(generation: Generation) -> Path:
    """Where a generated set is kept if nobody says otherwise."""
    return cache_folder() / f"microscopy-{generation.digest()}.zarr"
