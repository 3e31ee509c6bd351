"""Generation: crystals -> views -> diffraction patterns of one cell and projected potential -> store."""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from exafield.engine import MapEngine
from exafield.engine.local import ProcessEngine
from exafield.microscopy.cell_scan import scan_cell
from exafield.microscopy.crystal import Crystal, CrystalError, embedded, from_cif
from exafield.microscopy.detector import AngularDetector
from exafield.microscopy.multislice import Multislice
from exafield.microscopy.potential import projected_slices
from exafield.microscopy.scattering import Parametrisation
from exafield.microscopy.views import View, views
from exafield.store import SampleStore, cache_folder, locked

# Raised whenever the same parameters give other numbers than before: data simulated earlier is then made again.
_PHYSICS = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Generation:
    """What is simulated. The defaults are those of the demo; all our choice unless said.

    Args:
        energy: of the beam [eV].
        convergence_angle: semi-angle [rad]; the aperture's edge is soft.
        thickness: of the specimen [A].
        slice_thickness: [A].
        sampling: pixel of the potential [A].
        b_factor: Debye-Waller factor of every atom [A^2]; about that of metals at room temperature.
        box: the cell is repeated to about this edge [A].
        detector_pixels: along a side.
        detector_angle: half the detector's width [rad].
        parametrisation: of the scattering factors.
        largest_edge: of a cell across the beam [A].
        crystals: "embedded" for the built-in table, or a folder of CIF files.
    """

    energy: float = 200e3
    convergence_angle: float = 0.025
    thickness: float = 40.0
    slice_thickness: float = 2.0
    sampling: float = 0.125
    b_factor: float = 0.6
    box: float = 14.0
    detector_pixels: int = 16
    detector_angle: float = 0.040
    parametrisation: Parametrisation = "kirkland"
    largest_edge: float = 9.0
    crystals: str = "embedded"

    def __post_init__(self) -> None:
        names = ("energy", "convergence_angle", "thickness", "slice_thickness", "sampling", "box", "detector_angle")
        for name in (*names, "largest_edge"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"generation: {name} must be above 0 and finite, got {value}")
        if not 0 <= self.b_factor < float("inf"):
            raise ValueError(f"generation: b_factor must be 0 A^2 or more, got {self.b_factor}")
        if self.detector_pixels < 2:
            raise ValueError(f"generation: detector_pixels must be 2 or more, got {self.detector_pixels}")
        if self.thickness < self.slice_thickness:
            raise ValueError(
                f"generation: thickness, {self.thickness} A, must be at least one slice of {self.slice_thickness} A"
            )

    def attributes(self) -> dict[str, Any]:
        """What a store made with these parameters says of itself."""
        return {"physics": _PHYSICS, **asdict(self)}

    def digest(self) -> str:
        """A short name for this set of parameters."""
        return hashlib.sha256(json.dumps(self.attributes(), sort_keys=True).encode()).hexdigest()[:12]


Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Scan:
    """One simulated view: everything a scan of this crystal can show.

    Args:
        patterns: (px, py, kx, ky) over a grid of probe positions over one cell, as shares of the incident intensity.
        potential: (x, y) projected potential of the specimen over one cell [V A].
        edges: of the cell [A].
        name, crystal, material, prototype: of what it shows; `material` is composition and space group.
        kept: share of the incident intensity inside the band limit behind the specimen.
    """

    patterns: np.ndarray
    potential: np.ndarray
    edges: tuple[float, float]
    name: str
    crystal: str
    material: str
    prototype: str
    kept: float = 1.0


def crystals(source: str) -> list[Crystal]:
    """The crystals of the built-in table or of a folder of CIF files.

    Raises:
        CrystalError: the folder holds no CIF file, or one cannot be read; names it.
    """
    if source == "embedded":
        return list(embedded())
    paths = sorted(Path(source).glob("*.cif"))
    if not paths:
        raise CrystalError(f"{source}: no such folder, or no .cif file in it")
    return [from_cif(path) for path in paths]


def simulate(task: tuple[View, Generation]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One view's arrays and attributes; a plain function of its argument, for any engine."""
    view, _ = task
    try:
        return _simulated(*task)
    except Exception as error:
        error.add_note(f"This was view {view.name!r}.")
        raise


def _simulated(view: View, g: Generation) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    torch.set_num_threads(1)
    slices = projected_slices(
        view,
        sampling=g.sampling,
        slice_thickness=g.slice_thickness,
        thickness=g.thickness,
        b_factor=g.b_factor,
        parametrisation=g.parametrisation,
        box=g.box,
    )
    microscope = Multislice(
        energy=g.energy,
        sampling=slices.sampling,
        slice_thickness=slices.thickness,
        convergence_angle=g.convergence_angle,
        aperture="soft",
    )
    scan = scan_cell(microscope, slices, AngularDetector(g.detector_pixels, g.detector_angle))
    arrays = {
        "patterns": scan.patterns.numpy().astype(np.float32),
        "potential": slices.total.numpy().astype(np.float32),
    }
    attributes = {
        "name": view.name,
        "crystal": view.crystal.name,
        "material": view.crystal.material,
        "prototype": view.crystal.prototype,
        "reference": view.crystal.reference,
        "zone": view.zone,
        "edges_angstrom": list(slices.cell),
        "thickness_angstrom": slices.thickness * len(slices.order),
        "intensity_within_band_limit": scan.kept,
        "intensity_on_detector": scan.detected,
        "units": {"patterns": "share of incident intensity", "potential": "V A"},
    }
    return arrays, attributes


def generate(path: str | Path, generation: Generation, engine: MapEngine | None = None) -> tuple[int, float]:
    """Simulates every view that the store at `path` does not hold yet.

    Interrupted, it goes on where it stopped when called again; two processes do not disturb each other.

    Returns:
        the number of views simulated now, and the smallest share of intensity any view kept within the band limit.
    Raises:
        StoreError: the store was made with other parameters, is damaged, or cannot be written.
        CrystalError: a crystal cannot be used.
    """
    wanted = _wanted(generation)
    if not wanted:
        raise CrystalError(
            f"no crystal of {generation.crystals} has an orthogonal or hexagonal cell with edges up to "
            f"{generation.largest_edge} A"
        )
    engine = engine or ProcessEngine()
    keys = list(wanted)
    made, least = 0, 1.0
    with locked(path), SampleStore(path, generation.attributes(), write=True) as store:
        complete = store.keys()
        done = {index for index, key in enumerate(keys) if key in complete}
        tasks = ((view, generation) for view in wanted.values())
        for index, (arrays, attributes) in engine.map(simulate, tasks, done=done):
            store.write(keys[index], arrays, attributes)
            made += 1
            kept, detected = attributes["intensity_within_band_limit"], attributes["intensity_on_detector"]
            _log.info("%s: %.4f of the intensity kept, %.4f detected", attributes["name"], kept, detected)
            least = min(least, kept)
    return made, least


def _wanted(generation: Generation) -> Mapping[str, View]:
    """All views of all crystals, by the key of their sample."""
    seen = (v for crystal in crystals(generation.crystals) for v in views(crystal, generation.largest_edge))
    return {_key(view): view for view in seen}


def _key(view: View) -> str:
    """Of a view's sample; a structure that was edited since is another sample."""
    content = hashlib.sha256(view.numbers.astype("<i8").tobytes())
    lengths = np.round([*view.cell, *view.positions.ravel()], 5) + 0.0  # no negative zeros
    content.update(lengths.astype("<f8").tobytes())
    name = re.sub(r"[^A-Za-z0-9]+", "-", view.crystal.name)
    return f"{name}.{view.crystal.space_group}.{view.zone}.{content.hexdigest()[:8]}"


def default_path(generation: Generation) -> Path:
    """Where a generated set is kept if nobody says otherwise."""
    return cache_folder() / f"microscopy-{generation.digest()}.zarr"


def load(path: str | Path, generation: Generation) -> list[Scan]:
    """All scans that a store holds of a generation's crystals, in order of their keys.

    Raises:
        StoreError: see :class:`SampleStore`.
    """
    scans = []
    wanted = _wanted(generation)
    with SampleStore(path, generation.attributes()) as store:
        for key in sorted(store.keys() & wanted.keys()):
            arrays, about = store.read(key)
            edges = about["edges_angstrom"]
            scans.append(
                Scan(
                    arrays["patterns"],
                    arrays["potential"],
                    (edges[0], edges[1]),
                    about["name"],
                    about["crystal"],
                    about["material"],
                    about["prototype"],
                    about["intensity_within_band_limit"],
                )
            )
    return scans


def part_of(material: str) -> Part:
    """Which part of the data a material belongs to: 70 % train, 12 % validation, 18 % test, by hash.

    All views of a material, and all crystals of the same composition and space group, are on one side.
    """
    share = int.from_bytes(hashlib.sha256(material.encode()).digest()[:4]) / 2**32
    return "test" if share < 0.18 else "validation" if share < 0.30 else "train"


def split(scans: Iterable[Scan]) -> dict[Part, list[Scan]]:
    """The scans by part."""
    parts: dict[Part, list[Scan]] = {"train": [], "validation": [], "test": []}
    for scan in scans:
        parts[part_of(scan.material)].append(scan)
    return parts


def seen_prototypes(train: Sequence[Scan]) -> set[str]:
    """The structure types that occur in training."""
    return {scan.prototype for scan in train}
