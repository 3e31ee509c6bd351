"""Recipe: all parameters of one simulated sample, kept with it, and enough to make it again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from exafield.microscopy.cell_scan import scan_depths
from exafield.microscopy.crystal import Crystal
from exafield.microscopy.detector import AngularDetector
from exafield.microscopy.multislice import Multislice
from exafield.microscopy.potential import Slices, projected_slices
from exafield.microscopy.scattering import Parametrisation
from exafield.microscopy.views import View

#: Types that patterns are kept in.
Precision = Literal["fp16", "fp32"]
DTYPES: Mapping[str, type[np.floating[Any]]] = {"fp16": np.float16, "fp32": np.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One specimen and how it is looked at: a view's patterns behind several thicknesses, from one simulation.

    Args:
        energy: of the beam [eV].
        convergence_angle: semi-angle [rad]; the aperture's edge is soft.
        thicknesses: of the specimen, rising [A]; each is rounded to whole slices.
        b_factor: Debye-Waller factor of every atom [A^2].
        slice_thickness: wanted [A].
        sampling: largest pixel of the potential [A].
        box: the cell is repeated to about this edge [A].
        detector_pixels: along a side.
        detector_reach: half the detector's width, in convergence angles.
        parametrisation: of the scattering factors.
        defocus, cs: aberrations of the probe [A].
        precision: of the patterns that are kept.
    """

    energy: float
    convergence_angle: float
    thicknesses: tuple[float, ...]
    b_factor: float
    slice_thickness: float
    sampling: float
    box: float
    detector_pixels: int
    detector_reach: float
    parametrisation: Parametrisation
    defocus: float = 0.0
    cs: float = 0.0
    precision: Precision = "fp16"

    def slices(self, view: View) -> Slices:
        """The specimen, as thick as the thickest."""
        return projected_slices(
            view,
            sampling=self.sampling,
            slice_thickness=self.slice_thickness,
            thickness=self.thicknesses[-1],
            b_factor=self.b_factor,
            parametrisation=self.parametrisation,
            box=self.box,
        )

    def microscope(self, slices: Slices) -> Multislice:
        """That looks at it."""
        return Multislice(
            energy=self.energy,
            sampling=slices.sampling,
            slice_thickness=slices.thickness,
            convergence_angle=self.convergence_angle,
            defocus=self.defocus,
            cs=self.cs,
            aperture="soft",
        )

    def detector(self) -> AngularDetector:
        """That records."""
        return AngularDetector(self.detector_pixels, self.detector_reach * self.convergence_angle)

    def depths(self, slices: Slices) -> list[int]:
        """The thicknesses in slices of the specimen; two that round to one number are one."""
        return sorted({max(1, round(t / slices.thickness)) for t in self.thicknesses})


def simulate(task: tuple[View, Recipe]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One view's arrays and attributes; a plain function of its argument, for any engine."""
    try:
        return _simulated(*task)
    except Exception as error:
        error.add_note(f"This was view {task[0].name!r}.")
        raise


def _simulated(view: View, recipe: Recipe) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    torch.set_num_threads(1)
    slices = recipe.slices(view)
    depths = recipe.depths(slices)
    scans = scan_depths(recipe.microscope(slices), slices, depths, recipe.detector())
    potential = torch.stack([replace(slices, order=slices.order[:depth]).total for depth in depths])
    arrays = {
        "patterns": torch.stack([scan.patterns for scan in scans]).numpy().astype(DTYPES[recipe.precision]),
        "potential": potential.numpy().astype(np.float32),
    }
    attributes = {
        "name": view.name,
        **described(view),
        "recipe": asdict(recipe),
        "edges_angstrom": list(slices.cell),
        "thickness_angstrom": [slices.thickness * depth for depth in depths],
        "intensity_within_band_limit": min(scan.kept for scan in scans),
        "intensity_on_detector": min(scan.detected for scan in scans),
        "units": {"patterns": "share of incident intensity", "potential": "V A"},
    }
    return arrays, attributes


def described(view: View) -> dict[str, Any]:
    """A view in what JSON can hold."""
    crystal = view.crystal
    return {
        "crystal": crystal.name,
        "material": crystal.material,
        "prototype": crystal.prototype,
        "space_group": crystal.space_group,
        "reference": crystal.reference,
        "zone": view.zone,
        "cell_angstrom": list(view.cell),
        "numbers": view.numbers.tolist(),
        "positions_angstrom": view.positions.tolist(),
    }


def remade(attributes: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A sample simulated again from nothing but the attributes that were kept with it."""
    cell = np.array(attributes["cell_angstrom"], dtype=float)
    numbers, positions = np.array(attributes["numbers"]), np.array(attributes["positions_angstrom"], dtype=float)
    crystal = Crystal(
        attributes["crystal"],
        attributes["prototype"],
        attributes["space_group"],
        np.diag(cell),
        numbers,
        positions / cell,
        attributes["reference"],
    )
    view = View(crystal, attributes["zone"], (cell[0], cell[1], cell[2]), numbers, positions)
    recipe = dict(attributes["recipe"])
    recipe["thicknesses"] = tuple(recipe["thicknesses"])
    return simulate((view, Recipe(**recipe)))
