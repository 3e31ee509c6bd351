"""A scan of a perfect crystal as a microscope would save it, with the potential behind it: to try things on.

HDF5 files are EMD 1.0 (https://emdatasets.com/format), as py4DSTEM writes them: an array with its axes, and metadata
with py4DSTEM's names of calibrations. Rows of the scan are simulated and written one at a time.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from exafield.microscopy.calibration import ScanError
from exafield.microscopy.crystal import Crystal, embedded, from_cif
from exafield.microscopy.electron import complete_step, largest_pixel, wavelength
from exafield.microscopy.readers import TRUTH
from exafield.microscopy.recipe import Recipe, simulate
from exafield.microscopy.room import warn_of_mean_loss
from exafield.microscopy.views import View
from exafield.microscopy.window import interpolation
from exafield.microscopy.zones import along
from exafield.requirement import require
from exafield.store import StoreError, whole
from exafield.suggestion import unknown

ENDINGS = (".h5", ".hdf5", ".emd", ".zarr")
# Pixel of the potential that is kept, and how far it reaches beyond the outermost probes [A].
_PIXEL, _MARGIN = 0.125, 2.0
# Convergence angles [rad]: from nearly parallel to twice that of any corrected microscope. Thicknesses [A]: from a
# layer of atoms to a micrometre, through which hardly an electron passes unscattered. Our choice.
_ANGLES, _THICK = (1e-3, 0.1), (1.0, 1e4)
# Edge of the simulated array in units of lambda / alpha, about the width of the probe, and at least [A]: our choice,
# the latter that of training.
_WIDTHS, _BOX = 8.0, 14.0
# Numbers that the patterns of one cell may have: 1 GiB. Our choice.
_LARGEST = 2**28


@dataclass(frozen=True, kw_only=True)
class Recording:
    """How a scan is recorded.

    Args:
        energy: of the beam [eV].
        convergence_angle: semi-angle [rad].
        thickness: of the specimen [A]; rounded to whole slices of about 2 A.
        dose: electrons per pattern; None for noiseless patterns, as shares of the incident beam.
        size: positions along x and y.
        step: between them [A].
        detector_pixels: along a side.
        detector_angle: half the detector's width [rad]; None: 1.6 convergence angles.
        b_factor: Debye-Waller factor of every atom [A^2].
        seed: of the counts.
    """

    energy: float = 200e3
    convergence_angle: float = 0.025
    thickness: float = 40.0
    dose: float | None = 1000.0
    size: tuple[int, int] = (48, 48)
    step: float = 0.5
    detector_pixels: int = 64
    detector_angle: float | None = None
    b_factor: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.size) < 2 or self.detector_pixels < 8 or self.seed < 0:
            raise ScanError("--size must be 2 or more, --detector-pixels 8 or more, --seed 0 or more")
        for name in ("energy", "convergence_angle", "thickness", "dose", "step", "detector_angle"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ScanError(f"--{name.replace('_', '-')} must be above 0 and finite, got {value}")
        low, high = _ANGLES
        if not low <= self.convergence_angle <= high or self.half_angle > 2 * high:
            raise ScanError(
                f"--convergence-angle must be from {low:g} to {high:g} rad, and --detector-angle up to {2 * high:g}: "
                "25 mrad is 0.025"
            )
        if not _THICK[0] <= self.thickness <= _THICK[1]:
            raise ScanError(
                f"--thickness is in A, from {_THICK[0]:g} to {_THICK[1]:g}: 4 nm are 40, got {self.thickness:g}"
            )
        if not 0 <= self.b_factor < float("inf"):
            raise ScanError(f"--b-factor must be 0 A^2 or more, and finite, got {self.b_factor}")
        if not 1e4 <= self.energy <= 3e6:
            raise ScanError(f"--energy is in eV, from 1e4 to 3e6: 200 keV is 200000, got {self.energy:g}")
        if self.dose is not None and self.dose > 1e9:
            raise ScanError(f"--dose {self.dose:g}: more than 1e9 electrons per pattern are as good as None")

    @property
    def half_angle(self) -> float:
        """Half the detector's width [rad]."""
        return self.detector_angle or 1.6 * self.convergence_angle

    def recipe(self) -> Recipe:
        """What one cell is simulated with."""
        return Recipe(
            energy=self.energy,
            convergence_angle=self.convergence_angle,
            thicknesses=(self.thickness,),
            b_factor=self.b_factor,
            slice_thickness=min(2.0, self.thickness),
            sampling=min(_PIXEL, largest_pixel(self.energy, max(self.half_angle, self.convergence_angle))),
            box=max(_BOX, _WIDTHS * wavelength(self.energy) / self.convergence_angle),
            detector_pixels=self.detector_pixels,
            detector_reach=self.half_angle / self.convergence_angle,
            parametrisation="kirkland",
            precision="fp32",
        )


def named_crystal(name: str) -> Crystal:
    """A crystal of the built-in table by name, or of a CIF file.

    Raises:
        ScanError: there is neither.
        CrystalError: the file cannot be used.
    """
    if name.lower().endswith(".cif") or Path(name).is_file():
        return from_cif(name)
    known = {crystal.name: crystal for crystal in embedded()}
    if name not in known:
        raise ScanError(f"{unknown('crystal', name, known)}; or give a .cif file")
    return known[name]


def zone_indices(text: str) -> tuple[int, int, int]:
    """Three whole numbers, as in 110, 1-12 or 1,-1,12.

    Raises:
        ScanError: it is written otherwise.
    """
    parts = text.replace(",", " ").split()
    if len(parts) == 1:
        parts = re.findall(r"-?\d", parts[0]) if re.fullmatch(r"(-?\d){3}", parts[0]) else []
    try:
        u, v, w = (int(part) for part in parts)
        if (u, v, w) == (0, 0, 0):
            raise ValueError
    except ValueError as error:
        raise ScanError(
            f"--zone {text}: it must be three whole numbers, not all 0, such as 110, 1-12 or 1,-1,12"
        ) from error
    return u, v, w


def record(
    path: Path,
    crystal: Crystal,
    zone: tuple[int, int, int],
    recording: Recording,
    *,
    max_edge: float = 30.0,
    max_strain: float = 0.01,
) -> View:
    """Simulates a scan and writes it: it is there when it is complete.

    Args:
        max_edge, max_strain: of the orthogonal cell, see :func:`exafield.microscopy.zones.along`.

    Returns:
        what was looked at.
    Raises:
        ScanError: the cell is too large.
        CrystalError: the crystal cannot be seen along that axis.
        StoreError: the file is there already, or cannot be written.
    """
    if path.suffix not in ENDINGS:
        raise StoreError(f"--out {path}: choose a name that ends in {', '.join(ENDINGS)}")
    if path.exists():
        raise StoreError(f"--out {path}: this is there already: choose another name, or remove it")
    view = along(crystal, zone, max_edge=max_edge, max_strain=max_strain)
    finest = complete_step(recording.energy, recording.convergence_angle)
    if view.cell[0] * view.cell[1] / finest**2 * recording.detector_pixels**2 > _LARGEST:
        raise ScanError(
            f"{view.name} repeats after {view.cell[0]:.1f} x {view.cell[1]:.1f} A, which is too large with "
            f"{recording.detector_pixels} detector pixels along a side: take fewer (--detector-pixels), or another zone"
        )
    arrays, about = simulate((view, recording.recipe()))
    warn_of_mean_loss(view.name, about["intensity_within_band_limit"])
    patterns = torch.from_numpy(arrays["patterns"][0])
    edges = (about["edges_angstrom"][0], about["edges_angstrom"][1])
    thickness = float(about["thickness_angstrom"][0])
    with whole(path) as part:
        (_zarr if path.suffix == ".zarr" else _emd)(
            part,
            recording,
            _rows(patterns, edges, recording),
            _facts(recording, view, thickness),
            *_truth(arrays, edges, recording),
        )
    return view


def _rows(
    patterns: Float[Tensor, "px py kx ky"], edges: tuple[float, float], recording: Recording
) -> Iterator[np.ndarray]:
    """Rows (y, kx, ky) of the scan: counts, or shares without noise."""
    wx, wy = (
        interpolation(n, edge, np.arange(size) * recording.step)
        for n, edge, size in zip(patterns.shape, edges, recording.size, strict=False)
    )
    flat = patterns.flatten(1)
    for number, row in enumerate(wx):
        line = (wy @ (row @ flat).reshape(patterns.shape[1], -1)).clamp(min=0)
        shares = line.reshape(-1, *patterns.shape[2:]).numpy()
        if recording.dose is None:
            yield shares
        else:
            random = np.random.default_rng(np.random.SeedSequence((recording.seed, number)))
            yield random.poisson(shares.astype(np.float64) * recording.dose).astype(_dtype(recording))


def _dtype(recording: Recording) -> type[np.generic]:
    if recording.dose is None:
        return np.float32
    return np.uint16 if recording.dose < 6e4 else np.uint32  # a pixel never holds more than all electrons


def _truth(
    arrays: dict[str, np.ndarray], edges: tuple[float, float], recording: Recording
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Potential, x and y of the scanned field and some more."""
    axes = [
        (np.arange(-round(_MARGIN / _PIXEL), round(((size - 1) * recording.step + _MARGIN) / _PIXEL)) + 0.5) * _PIXEL
        for size in recording.size
    ]
    cell = torch.from_numpy(arrays["potential"][0])
    fx, fy = (interpolation(n, e, at) for n, e, at in zip(cell.shape, edges, axes, strict=True))
    return (fx @ cell @ fy.T).numpy(), axes[0], axes[1]


def _facts(recording: Recording, view: View, thickness: float) -> dict[str, dict[str, Any]]:
    """Metadata by group."""
    pixel = 2e3 * recording.half_angle / recording.detector_pixels
    return {
        "calibration": {
            "R_pixel_size": recording.step,
            "R_pixel_units": "A",
            "Q_pixel_size": pixel,
            "Q_pixel_units": "mrad",
            "QR_rotation_degrees": 0.0,
            "QR_flip": False,
            "accelerating_voltage": recording.energy,
            "probe_convergence_semiangle_mrad": 1e3 * recording.convergence_angle,
        },
        "specimen": {
            "view": view.name,
            "thickness_angstrom": thickness,
            "b_factor_angstrom2": recording.b_factor,
            "strain": view.strain,
            # Of shares of the beam, one is all electrons there are: a million stands for no noise.
            "electrons_per_pattern": recording.dose or 1e6,
            "gain": 1.0 if recording.dose else 1e-6,
        },
    }


def _axes(recording: Recording) -> list[tuple[str, float, str]]:
    pixel = 2e3 * recording.half_angle / recording.detector_pixels
    scan, detector = (recording.step, "A"), (pixel, "mrad")
    return [("Rx", *scan), ("Ry", *scan), ("Qx", *detector), ("Qy", *detector)]


def _emd(
    path: Path,
    recording: Recording,
    rows: Iterator[np.ndarray],
    facts: dict[str, dict[str, Any]],
    potential: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
) -> None:
    side = recording.detector_pixels
    with require("h5py", extra="microscopy").File(path, "w") as file:
        file.attrs.update(
            {"emd_group_type": "file", "version_major": 1, "version_minor": 0, "authoring_program": "exafield"}
        )
        root = file.create_group("scan")
        root.attrs.update({"emd_group_type": "root", "python_class": "Root"})
        bundle = root.create_group("metadatabundle")
        bundle.attrs["emd_group_type"] = "metadatabundle"
        for name, values in facts.items():
            group = bundle.create_group(name)
            group.attrs.update({"emd_group_type": "metadata", "python_class": "Metadata"})
            for key, value in values.items():
                kind = "bool" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
                group.create_dataset(key, data=value).attrs["type"] = kind
        cube = root.create_group("datacube")
        cube.attrs.update({"emd_group_type": "array", "python_class": "Array"})
        data = cube.create_dataset(
            "data", (*recording.size, side, side), _dtype(recording), chunks=(1, min(8, recording.size[1]), side, side),
            compression="gzip", compression_opts=1, shuffle=True,
        )  # fmt: skip
        data.attrs["units"] = "electrons" if recording.dose else "share of the beam"
        for number, (name, step, unit) in enumerate(_axes(recording)):
            cube.create_dataset(f"dim{number}", data=[0.0, step]).attrs.update({"name": name, "units": unit})
        for number, row in enumerate(rows):
            data[number] = row
        truth = file.create_group(TRUTH)
        for name, array, unit in (("potential", potential, "V A"), ("x", x, "A"), ("y", y, "A")):
            truth.create_dataset(name, data=array).attrs["units"] = unit


def _zarr(
    path: Path,
    recording: Recording,
    rows: Iterator[np.ndarray],
    facts: dict[str, dict[str, Any]],
    potential: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
) -> None:
    side = recording.detector_pixels
    root = require("zarr", extra="microscopy").open_group(str(path), mode="w", zarr_format=3)
    root.attrs.update(facts)
    data = root.create_array(
        "data", shape=(*recording.size, side, side), dtype=np.dtype(_dtype(recording)).str,
        chunks=(1, min(8, recording.size[1]), side, side), dimension_names=["x", "y", "kx", "ky"],
    )  # fmt: skip
    data.attrs["axes"] = [{"name": name, "step": step, "units": unit} for name, step, unit in _axes(recording)]
    for number, row in enumerate(rows):
        data[number] = row
    truth = root.create_group(TRUTH)
    for name, array, unit in (("potential", potential, "V A"), ("x", x, "A"), ("y", y, "A")):
        truth.create_array(name, data=array).attrs["units"] = unit
