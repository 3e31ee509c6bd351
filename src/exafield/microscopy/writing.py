"""A simulated scan of any size, written to a file part by part: HDF5 (EMD's axes) or Zarr, as `open_scan` reads it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from exafield.microscopy.detector import AngularDetector
from exafield.microscopy.multislice import Multislice
from exafield.microscopy.paths import ScanPath
from exafield.microscopy.room import warn_of_loss
from exafield.requirement import require
from exafield.store import StoreError, whole

_FORMAT = 1
# Bytes of patterns that are in memory together, our choice.
_PART = 2**28


@dataclass(frozen=True)
class Raster:
    """Probe positions on a grid.

    Args:
        size: positions along x and y.
        step: between them [A].
        start: the first one [A].
    """

    size: tuple[int, int]
    step: tuple[float, float]
    start: tuple[float, float] = (0.0, 0.0)

    def positions(self) -> Float[Tensor, "probe 2"]:
        """All of them [A], y changing fastest."""
        x, y = (
            start + step * torch.arange(size, dtype=torch.float64)
            for start, step, size in zip(self.start, self.step, self.size, strict=True)
        )
        return torch.cartesian_prod(x, y)


def scan_to_file(
    path: str | Path,
    multislice: Multislice,
    slices: Float[Tensor, "slice x y"],
    raster: Raster,
    detector: AngularDetector | None = None,
    part: int = _PART,
) -> ScanPath:
    """Writes the patterns of `Multislice.scan` over a raster; the file is there when it is complete.

    Args:
        path: ends in .h5, .hdf5, .emd or .zarr; a new one.
        multislice: the microscope.
        slices: projected potentials in the order the beam meets them [V A].
        raster: where the probe goes.
        detector: bins the patterns; without one they are written on the array's reciprocal grid.
        part: bytes of patterns that are in memory together.

    Returns:
        how the patterns were computed.

    Raises:
        StoreError: the file is there already, or cannot be written.
        ValueError: see `Multislice.scan`.
    """
    path = Path(path)
    if path.suffix not in (".h5", ".hdf5", ".emd", ".zarr"):
        raise StoreError(f"{path}: choose a name that ends in .h5, .hdf5, .emd or .zarr")
    if path.exists():
        raise StoreError(f"{path}: this is there already: choose another name, or remove it")
    if min(raster.size) < 1 or part < 1:
        raise ValueError(f"size and part must be at least 1, got {raster.size} and {part}")
    run = _Run(multislice, slices, raster, detector, part)
    with whole(path) as temporary:
        (_zarr if path.suffix == ".zarr" else _hdf5)(temporary, run)
    warn_of_loss(run.sums[None])
    return run.scanner.path


class _Run:
    """The scan, as parts of rows."""

    def __init__(
        self,
        multislice: Multislice,
        slices: Float[Tensor, "slice x y"],
        raster: Raster,
        detector: AngularDetector | None,
        part: int,
    ) -> None:
        self.raster, self._multislice, self._detector = raster, multislice, detector
        self._array = (slices.shape[1], slices.shape[2])
        self._positions = raster.positions()
        self.scanner, first, self._inverse = multislice.scanner(slices, self._positions)
        self._real = multislice.dtype.to_real()
        self.thickness = len(slices) * multislice.slice_thickness
        self.sums = torch.zeros(len(self._positions), dtype=torch.float64)
        one = self._array[0] * self._array[1] * self._real.itemsize
        self._several = max(1, part // one)
        self.width = min(raster.size[1], self._several)
        #: Patterns of all distinct positions, where those fit into a part: then each is made once.
        self._few = self._made(first) if len(first) <= self._several else None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """x, y, kx, ky."""
        side = self._array if self._detector is None else (self._detector.pixels, self._detector.pixels)
        return (*self.raster.size, *side)

    def axes(self) -> list[tuple[str, float, str]]:
        """Name, step and unit of each axis."""
        pixels = [1 / (n * d) for n, d in zip(self._array, self._multislice.sampling, strict=True)]
        steps = [1e3 * self._multislice.wavelength * pixel for pixel in pixels]
        if self._detector is not None:
            steps = [1e3 * self._detector.pixel] * 2
        scan = [(name, step, "A") for name, step in zip(("Rx", "Ry"), self.raster.step, strict=True)]
        return [*scan, ("Qx", steps[0], "mrad"), ("Qy", steps[1], "mrad")]

    def facts(self) -> dict[str, Any]:
        """What else a reader should know; the names are those of `calibration.from_facts`."""
        lens = self._multislice
        return {
            "format": _FORMAT,
            "accelerating_voltage": lens.energy,
            "probe_convergence_semiangle_mrad": 1e3 * lens.convergence_angle,
            "thickness_angstrom": self.thickness,
            "defocus_angstrom": lens.defocus,
            "cs_angstrom": lens.cs,
            "c5_angstrom": lens.c5,
            "astigmatism_angstrom": lens.astigmatism,
            "astigmatism_angle_rad": lens.astigmatism_angle,
            "path": str(self.scanner.path),
        }

    def parts(self) -> Iterator[tuple[int, slice, Any]]:
        """Row, columns, and their patterns."""
        many = self.raster.size[1]
        for row in range(self.raster.size[0]):
            for low in range(0, many, self.width):
                columns = slice(low, min(low + self.width, many))
                here = torch.arange(row * many + columns.start, row * many + columns.stop)
                groups = self._inverse[here]
                if self._few is not None:
                    patterns, sums = self._few[0][groups.to(self._few[0].device)], self._few[1][groups]
                else:
                    different, inverse = groups.unique(return_inverse=True)
                    first = torch.stack([here[(groups == group).nonzero()[0, 0]] for group in different])
                    patterns, sums = self._made(first)
                    if len(different) < len(here):
                        patterns, sums = patterns[inverse.to(patterns.device)], sums[inverse]
                self.sums[here] = sums
                yield row, columns, patterns.cpu().numpy()

    def _made(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Patterns at some positions, and the share of the electrons in each."""
        lens = self._multislice
        out = torch.zeros(1, len(which), *self._array, dtype=self._real, device=lens.device)
        sums = self.scanner.fill(out, self._positions[which])[0].cpu().double()
        return (out[0] if self._detector is None else self._detector.bin(out[0], lens.sampling, lens.wavelength)), sums


def _hdf5(path: Path, run: _Run) -> None:
    with require("h5py", extra="microscopy").File(path, "w") as file:
        group = file.create_group("datacube")
        group.attrs.update({"emd_group_type": 1, **run.facts()})
        data = group.create_dataset("data", run.shape, "f4", chunks=(1, 1, *run.shape[2:]))
        data.attrs["units"] = "share of the beam"
        for number, (name, step, unit) in enumerate(run.axes()):
            group.create_dataset(f"dim{number}", data=[0.0, step]).attrs.update({"name": name, "units": unit})
        for row, columns, patterns in run.parts():
            data[row, columns] = patterns


def _zarr(path: Path, run: _Run) -> None:
    root = require("zarr", extra="microscopy").open_group(str(path), mode="w", zarr_format=3)
    root.attrs.update(run.facts())
    data = root.create_array(
        "data",
        shape=run.shape,
        dtype="float32",
        chunks=(1, min(8, run.width), *run.shape[2:]),
        dimension_names=["x", "y", "kx", "ky"],
    )
    data.attrs["axes"] = [{"name": name, "step": step, "units": unit} for name, step, unit in run.axes()]
    for row, columns, patterns in run.parts():
        data[row, columns] = patterns
