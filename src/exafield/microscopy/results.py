"""A reconstruction as files: potential and deviation (HDF5 or Zarr), atom columns (CSV), a picture.

All are there when all are complete; a run that fails leaves none of them, and what was there before as it was.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from exafield import provenance
from exafield.microscopy.columns import Columns
from exafield.microscopy.reconstruct import Reconstruction
from exafield.requirement import require
from exafield.store import StoreError, whole

ENDINGS = (".h5", ".hdf5", ".zarr")
_FORMAT, _VERSION = "exafield-potential", 1
_ABOUT = {
    "potential": ("projected electrostatic potential, integrated along the beam, up to a constant", "V angstrom"),
    "deviation": ("standard deviation of the potential, as the network expects it", "V angstrom"),
}


def beside(path: Path) -> tuple[Path, Path]:
    """Table of columns and picture that go with a result."""
    stem = path.with_suffix("")
    return stem.with_name(f"{stem.name}-columns.csv"), stem.with_name(f"{stem.name}.png")


def check_target(path: Path, scan: Path) -> None:
    """Refuses a name under which no result can be written: before anything is computed.

    Raises:
        StoreError: says why.
        ImportError: h5py or zarr is not installed.
    """
    if path.suffix not in ENDINGS:
        raise StoreError(f"--out {path}: choose a name that ends in {', '.join(ENDINGS)}")
    require("zarr" if path.suffix == ".zarr" else "h5py", extra="microscopy")
    if not path.absolute().parent.is_dir():
        raise StoreError(f"--out {path}: there is no folder {path.parent}")
    if not os.access(path.absolute().parent, os.W_OK):
        raise StoreError(f"--out {path}: nothing can be written in {path.absolute().parent}")
    if path.exists():
        others = [path] if path.resolve() == scan.resolve() or not _ours(path) else []
    else:
        others = [other for other in beside(path) if other.exists()]
    if others:
        raise StoreError(
            f"--out {path}: {others[0]} is there, and no result of ours: choose another name, or remove it"
        )


def _ours(path: Path) -> bool:
    """Whether what lies there was written by :func:`write`."""
    try:
        if path.suffix == ".zarr":
            told = json.loads((path / "zarr.json").read_text("utf-8"))["attributes"].get("format")
        else:
            with require("h5py", extra="microscopy").File(path, "r") as file:
                told = file.attrs.get("format")
    except (OSError, ValueError, KeyError, AttributeError):
        return False
    return bool(told == _FORMAT)


def write(
    path: Path,
    found: Reconstruction,
    columns: Columns,
    picture: bytes,
    attributes: Mapping[str, str],
) -> list[Path]:
    """Writes everything; returns what was written.

    Args:
        path: ends in .h5, .hdf5 or .zarr.
        found: the result.
        columns: of it.
        picture: as PNG.
        attributes: of the file, such as which run the network is from.
    Raises:
        StoreError: it cannot be written.
    """
    table, image = beside(path)
    told = provenance.origin()
    about: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        "Conventions": "CF-1.10",
        "title": "projected potential reconstructed from a 4D-STEM scan",
        "history": f"{told['started']}: {told['command']} (exafield {told['exafield']})",
        "provenance": json.dumps(told),
        "calibration": json.dumps(asdict(found.calibration)),
        "electrons_per_pattern": found.electrons,
        "tiles": found.tiles,
        "notes": "\n".join(found.notes),
        "warnings": "\n".join(found.warnings),
        **attributes,
    }
    if found.disagreement is not None:
        about["disagreement_of_tiles"] = found.disagreement
    with whole(path) as part:
        (_zarr if path.suffix == ".zarr" else _hdf5)(part, found, about)
        # The result gets its name last, when all is there.
        with whole(table) as rows, whole(image) as drawn:
            columns.write(rows)
            drawn.write_bytes(picture)
    return [path, table, image]


def _fields(found: Reconstruction) -> dict[str, np.ndarray]:
    return {"potential": found.potential, "deviation": found.deviation}


def _axes(found: Reconstruction) -> dict[str, tuple[np.ndarray, dict[str, str]]]:
    return {
        name: (values, {"long_name": f"{name} from the first probe", "units": "angstrom", "axis": name.upper()})
        for name, values in (("x", found.x), ("y", found.y))
    }


def _hdf5(path: Path, found: Reconstruction, about: Mapping[str, Any]) -> None:
    with require("h5py", extra="microscopy").File(path, "w") as file:
        file.attrs.update(about)
        for name, (values, told) in _axes(found).items():
            file.create_dataset(name, data=values).attrs.update(told)
            file[name].make_scale(name)
        for name, values in _fields(found).items():
            array = file.create_dataset(name, data=values)
            array.attrs.update({"long_name": _ABOUT[name][0], "units": _ABOUT[name][1]})
            for number, axis in enumerate("xy"):
                array.dims[number].attach_scale(file[axis])


def _zarr(path: Path, found: Reconstruction, about: Mapping[str, Any]) -> None:
    group = require("zarr", extra="microscopy").open_group(str(path), mode="w", zarr_format=3)
    for name, (values, told) in _axes(found).items():
        group.create_array(name, data=values, dimension_names=[name]).attrs.update(told)
    for name, values in _fields(found).items():
        array = group.create_array(name, data=values, dimension_names=["x", "y"])
        array.attrs.update({"long_name": _ABOUT[name][0], "units": _ABOUT[name][1]})
    group.attrs.update(dict(about))
