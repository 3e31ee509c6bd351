"""Tables of numbers, times and texts, as columns of CF NetCDF, Zarr or CSV: whole or not at all."""

import contextlib
import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exafield.climate.layouts import time_text
from exafield.climate.snapshot import SnapshotError
from exafield.climate.targets import encode_times, open_target
from exafield.climate.writing import origin
from exafield.requirement import require
from exafield.store import atomic_write, whole


@dataclass(frozen=True, eq=False)
class Column:
    """One quantity of a table.

    Args:
        values: [row]; numbers, times (numpy's or cftime's), or texts, of which few different ones.
        meaning: in words.
        unit: None for texts and times.
        standard_name: of CF, if there is one.
    """

    values: ArrayLike
    meaning: str
    unit: str | None = None
    standard_name: str | None = None


def write_table(
    path: str | Path,
    columns: Mapping[str, Column],
    attributes: Mapping[str, str] | None = None,
    dimension: str = "event",
) -> Path:
    """Writes a table, whole or not at all, over one that is there; .nc, .zarr or .csv.

    Texts become flags in NetCDF and Zarr: numbers, with their meanings as attributes.

    Raises:
        StoreError: it cannot be written.
        ValueError: columns differ in length, or the suffix is unknown.
    """
    path = Path(path)
    arrays = {name: np.asarray(column.values) for name, column in columns.items()}
    if len({array.shape for array in arrays.values()}) > 1 or any(array.ndim != 1 for array in arrays.values()):
        raise ValueError(f"columns differ in shape: { {name: array.shape for name, array in arrays.items()} }")
    if path.suffix == ".csv":
        atomic_write(path, _as_csv(columns, arrays).encode())
        return path
    with whole(path) as temporary, contextlib.closing(open_target(temporary, path.suffix)) as target:
        for name, column in columns.items():
            values, told = _encoded(arrays[name])
            named = {"units": column.unit, "standard_name": column.standard_name, "long_name": column.meaning}
            target.create(name, (dimension,), values, told | {k: v for k, v in named.items() if v})
        target.describe(attributes if attributes is not None else origin())
    return path


def _encoded(values: NDArray[Any]) -> tuple[NDArray[Any], dict[str, Any]]:
    """What is stored of a column, and the attributes that say how."""
    if values.dtype.kind == "M" or (values.dtype.kind == "O" and all(hasattr(x, "calendar") for x in values)):
        return encode_times(list(values))
    if values.dtype.kind in "OUS":
        texts = sorted({str(x) for x in values})
        codes = np.array([texts.index(str(x)) for x in values], dtype=np.int32)
        meanings = " ".join("_".join(text.split()) or "none" for text in texts)
        return codes, {"flag_values": np.arange(len(texts), dtype=np.int32), "flag_meanings": meanings}
    return (values.astype(np.int8) if values.dtype.kind == "b" else values), {}


def _as_csv(columns: Mapping[str, Column], arrays: Mapping[str, NDArray[Any]]) -> str:
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow([f"{name} [{column.unit}]" if column.unit else name for name, column in columns.items()])
    for row in zip(*arrays.values(), strict=True):
        out.writerow([time_text(x) if isinstance(x, np.datetime64) or hasattr(x, "calendar") else x for x in row])
    return text.getvalue()


def read_table(path: str | Path) -> dict[str, NDArray[Any]]:
    """Columns of what :func:`write_table` wrote as NetCDF or Zarr; flags are texts again, with _ for blanks.

    Raises:
        SnapshotError: it is missing or damaged.
    """
    path = Path(path)
    xarray = require("xarray", extra="climate")
    zarr = {"engine": "zarr", "consolidated": False} if path.suffix == ".zarr" else {"engine": "h5netcdf"}
    result: dict[str, NDArray[Any]] = {}
    try:
        with xarray.open_dataset(path, decode_timedelta=False, **zarr) as data:
            for name, variable in data.variables.items():
                values = np.asarray(variable.values)
                if "flag_meanings" in variable.attrs:
                    meanings = np.array(variable.attrs["flag_meanings"].split(" "))
                    values = meanings[values] if values.size else values.astype(str)
                result[str(name)] = values.astype("datetime64[s]") if values.dtype.kind == "M" else values
    except (OSError, ValueError, KeyError) as error:
        raise SnapshotError(f"{path}: the table cannot be read ({error}): write it again") from error
    return result
