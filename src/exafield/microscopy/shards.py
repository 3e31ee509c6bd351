"""Shards: data sets in the layout of Laanait et al. (arXiv:1909.11150), one file for each sample.

A sample is `cbed` (probe, kx, ky), full patterns of a square of scan positions, and `2d_potential` (1, x, y), the
potential of the whole array that they were simulated in. In "paper" that is 1,024 x 512 x 512 numbers, half a gigabyte
in 16 bits; in "compact" 64 x 256 x 256. Files are HDF5 in the EMD layout (version 0.2, emdatasets.com) or Zarr. Each is
written by the worker that simulates it, in parts, so that neither it nor anybody else holds a whole sample; it gets its
name when it is complete, so that an interrupted generation goes on where it stopped.

In 16 bits patterns are kept times their number of pixels, or 2^15 if that is less: as shares of the beam most of the
dark field would lie below what such numbers resolve (6e-8). `about` tells that factor, `pattern_factor`, and units do.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from exafield.engine import MapEngine
from exafield.engine.local import ProcessEngine
from exafield.microscopy.generate import Generation, samples
from exafield.microscopy.potential import Slices, projected_slices
from exafield.microscopy.recipe import DTYPES, Recipe, described
from exafield.microscopy.views import View
from exafield.requirement import require
from exafield.store import StoreError, atomic_write, locked, whole

FORMAT = 2
_PROBES = 64  # patterns that are in memory together
# Largest factor on a pattern whose sum is 1, so that not even all of the beam in one pixel overflows 16 bits (65,504).
_LARGEST = 2.0**15


@dataclass(frozen=True, slots=True)
class Layout:
    """Size of a sample.

    Args:
        probes: scan positions along a side; they cover about the middle half of the array.
        pixels: of the array and of a pattern, along a side.
        box: edge of the array [A]: the power of two of cells that comes next to it.
    """

    probes: int
    pixels: int
    box: float


#: Edges: 50 A as published; for the smaller one half of it, which keeps the pixel (our choice).
LAYOUTS: Mapping[str, Layout] = {"paper": Layout(32, 512, 50.0), "compact": Layout(8, 256, 25.0)}


def generate(
    folder: str | Path,
    generation: Generation,
    layout: Literal["paper", "compact"] | Layout = "compact",
    suffix: Literal[".h5", ".zarr"] = ".h5",
    engine: MapEngine | None = None,
) -> int:
    """Simulates every sample whose file is not in the folder yet; returns how many it made.

    Args:
        folder: made if missing; workers must see it.
        generation: what is simulated; of its grid only the slices' thickness is used. The first of the thicknesses
            is taken, since a sample has one.
        layout: size of a sample.
        suffix: of the files.
        engine: that simulates.
    Raises:
        StoreError: the folder holds samples that were made otherwise, or cannot be written.
        CrystalError: a crystal cannot be used.
    """
    folder = Path(folder)
    size = LAYOUTS[layout] if isinstance(layout, str) else layout
    made_with = {"format": FORMAT, "layout": asdict(size), **generation.attributes()}
    made_with = json.loads(json.dumps(made_with))
    with locked(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            head = folder / "made_with.json"
            if head.exists():
                have = _made_with(head)
                if have != made_with:
                    changed = [k for k in sorted({*have, *made_with}) if have.get(k) != made_with.get(k)]
                    raise StoreError(
                        f"{folder} was made with other parameters ({', '.join(changed)}): choose another folder"
                    )
            else:
                atomic_write(head, json.dumps(made_with).encode())
        except OSError as error:
            raise StoreError(f"{folder}: cannot be written: {error.strerror}") from error
        tasks = (
            (view, generation.recipe(view, variant), size, str(path))
            for key, view, variant in samples(generation)
            if not (path := folder / f"{key}{suffix}").exists()
        )
        return sum(1 for _ in (engine or ProcessEngine()).map(write, tasks))


def _made_with(head: Path) -> dict[str, Any]:
    try:
        have = json.loads(head.read_text())
    except ValueError as error:
        raise StoreError(f"{head} is damaged ({error}): choose another folder") from error
    if not isinstance(have, dict):
        raise StoreError(f"{head} is not of this package: choose another folder")
    return have


def specimen(view: View, recipe: Recipe, layout: Layout) -> Slices:
    """The crystal in an array of exactly so many pixels: a power of two of cells along each side."""
    repeats = [2 ** max(0, round(float(np.log2(layout.box / edge)))) for edge in view.cell[:2]]
    if max(repeats) > layout.pixels // 8:
        raise ValueError(f"{view.name}: {max(repeats)} cells in {layout.pixels} pixels leave less than 8 for each")
    made = projected_slices(
        view,
        sampling=(view.cell[0] * repeats[0] / layout.pixels, view.cell[1] * repeats[1] / layout.pixels),
        slice_thickness=recipe.slice_thickness,
        thickness=recipe.thicknesses[0],
        b_factor=recipe.b_factor,
        parametrisation=recipe.parametrisation,
    )
    return replace(made, repeats=(repeats[0], repeats[1]))


def write(task: tuple[View, Recipe, Layout, str]) -> str:
    """Simulates one sample and writes its file; a plain function of its argument, for any engine."""
    view, recipe, layout, name = task
    torch.set_num_threads(1)
    path = Path(name)
    slices = specimen(view, recipe, layout)
    microscope = recipe.microscope(slices)
    array = slices.array()
    # A little less than half of the array in all, so that positions do not fall on the same places of each cell.
    step = [edge / 2 / (layout.probes + 0.618) for edge in slices.box]
    x, y = (
        edge / 4 + s * torch.arange(layout.probes, dtype=torch.float64)
        for edge, s in zip(slices.box, step, strict=True)
    )
    positions = torch.cartesian_prod(x, y)
    scanner, *_ = microscope.scanner(array, positions)
    dtype = np.dtype(DTYPES[recipe.precision])
    factor = min(float(array[0].numel()), _LARGEST) if dtype == np.float16 else 1.0

    def parts() -> Iterator[np.ndarray]:
        for part in positions.split(_PROBES):
            out = torch.zeros(1, len(part), *array.shape[1:], dtype=torch.float32)
            scanner.fill(out, part)
            yield (factor * out[0].numpy()).astype(dtype)

    about = {
        "format": FORMAT,
        "name": view.name,
        **described(view),
        "recipe": asdict(recipe),
        "layout": asdict(layout),
        "thickness_angstrom": slices.thickness * len(slices.order),
        "sampling_angstrom": list(slices.sampling),
        "scan_step_angstrom": step,
        "pattern_factor": factor,
        "path": str(scanner.path),
    }
    potential = slices.total.repeat(slices.repeats).float()[None]
    axes = [
        ("probe", 1.0, "1"),
        *((k, 1e3 * microscope.wavelength / edge, "mrad") for k, edge in zip(("kx", "ky"), slices.box, strict=True)),
    ]
    save = _zarr if path.suffix == ".zarr" else _hdf5
    with whole(path) as temporary:
        save(temporary, (len(positions), *array.shape[1:]), dtype, parts(), potential, axes, slices.sampling, about)
    return path.name


_Axes = list[tuple[str, float, str]]


def _hdf5(
    path: Path,
    shape: tuple[int, ...],
    dtype: "np.dtype[Any]",
    parts: Iterator[np.ndarray],
    potential: Tensor,
    axes: _Axes,
    sampling: tuple[float, float],
    about: Mapping[str, Any],
) -> None:
    with require("h5py", extra="microscopy").File(path, "w") as file:
        file.attrs.update({"version_major": 0, "version_minor": 2, "about": json.dumps(about)})
        pixels = [("slice", 1.0, "1"), ("x", sampling[0], "A"), ("y", sampling[1], "A")]
        for name, units, size, kind, along in (
            ("cbed", f"share of the beam / {about['pattern_factor']:g}", shape, dtype, axes),
            ("2d_potential", "V A", potential.shape, np.dtype(np.float32), pixels),
        ):
            group = file.create_group(f"data/{name}")
            group.attrs["emd_group_type"] = 1
            chunks = (1, *size[1:])
            group.create_dataset("data", tuple(size), kind, chunks=chunks).attrs["units"] = units
            for number, (axis, step, unit) in enumerate(along, start=1):
                values = np.arange(size[number - 1]) * step
                group.create_dataset(f"dim{number}", data=values).attrs.update({"name": axis, "units": unit})
        low = 0
        for part in parts:
            file["data/cbed/data"][low : low + len(part)] = part
            low += len(part)
        file["data/2d_potential/data"][...] = potential.numpy()


def _zarr(
    path: Path,
    shape: tuple[int, ...],
    dtype: "np.dtype[Any]",
    parts: Iterator[np.ndarray],
    potential: Tensor,
    axes: _Axes,
    sampling: tuple[float, float],
    about: Mapping[str, Any],
) -> None:
    root = require("zarr", extra="microscopy").open_group(str(path), mode="w", zarr_format=3)
    root.attrs["about"] = json.dumps(about)
    data = root.create_array("cbed", shape=shape, dtype=dtype.str, chunks=(min(_PROBES, shape[0]), *shape[1:]))
    data.attrs["axes"] = [list(axis) for axis in axes]
    data.attrs["units"] = f"share of the beam / {about['pattern_factor']:g}"
    low = 0
    for part in parts:
        data[low : low + len(part)] = part
        low += len(part)
    root.create_array("2d_potential", data=potential.numpy()).attrs["sampling_angstrom"] = list(sampling)
