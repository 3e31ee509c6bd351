"""Readers of scans, by what the file is called: HDF5 and EMD, Zarr, MIB, NumPy, and raw numbers.

Nothing read executes code: HDF5 without objects, Zarr of format 3, or 2 without codecs of objects, NumPy without
pickle.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from exafield.microscopy.calibration import Axis, ScanError
from exafield.microscopy.merlin import Merlin
from exafield.microscopy.scanfile import Opened, ScanFile, Truth
from exafield.requirement import require

HDF5 = (".h5", ".hdf5", ".emd", ".hdf", ".nxs")
#: Where a scan that this package simulates keeps the potential behind it.
TRUTH = "truth"


def open_scan(
    path: str | Path,
    *,
    dataset: str | None = None,
    axes: Sequence[str] | None = None,
    scan_shape: tuple[int, int] | None = None,
    detector_shape: tuple[int, int] | None = None,
    dtype: str | None = None,
    offset: int = 0,
    gap: int = 0,
) -> ScanFile:
    """Opens a scan; nothing of its patterns is read yet.

    Args:
        path: .h5, .hdf5 or .emd; .zarr; .mib; .npy; or another name for raw numbers.
        dataset: path within an HDF5 or Zarr file, where it holds more than one array of four axes.
        axes: names of the file's axes in its order.
        scan_shape: positions along the scan axes, in the file's order, where the file only counts patterns.
        detector_shape: pixels along the detector axes, of raw numbers.
        dtype: of raw numbers, such as uint16 or >u2.
        offset: bytes before the first pattern of raw numbers.
        gap: bytes between two patterns of raw numbers.
    Raises:
        ScanError: it is not there, damaged, cut off, or holds no scan; says what to do.
        ImportError: h5py or zarr is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise ScanError(f"there is no file {path}")
    raw = (detector_shape, dtype, offset or None, gap or None) != (None,) * 4
    suffix = path.suffix.lower()
    if raw:
        opened = _raw(path, scan_shape, detector_shape, dtype, offset, gap)
    elif suffix in HDF5:
        opened = _hdf5(path, dataset)
    elif suffix == ".zarr" or path.is_dir():
        opened = _zarr(path, dataset)
    elif suffix == ".mib":
        merlin = Merlin(path)
        opened = Opened(merlin, scan_shape=_beside(path))
    elif suffix == ".npy":
        try:
            opened = Opened(np.lib.format.open_memmap(path, mode="r"))
        except (OSError, ValueError, TypeError, OverflowError, TokenError) as error:  # whatever the header may be
            raise ScanError(f"{path} is no array of NumPy, or cut off ({error})") from error
    else:
        raise ScanError(
            f"{path}: what kind of file is it? Known are {', '.join(HDF5)}, .zarr, .mib and .npy; of raw numbers give "
            "--shape, --detector-shape and --dtype"
        )
    try:
        return ScanFile(path, opened, axes, scan_shape)
    except BaseException:
        if opened.owner is not None:
            opened.owner.close()
        raise


# ---- HDF5 ----


def _hdf5(path: Path, dataset: str | None) -> Opened:
    h5py = require("h5py", extra="microscopy")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ScanError(f"{path} is no HDF5 file, or damaged ({error})") from error
    try:
        found = {name: item for name, item in _walk(file) if hasattr(item, "dtype")}
        # An array that links show under several names, as in NeXus, is still one.
        once = {item: name for name, item in reversed(found.items())}
        names = reversed(once.values()) if dataset is None else found
        name = _choose(path, dataset, {name: tuple(found[name].shape) for name in names})
        stack = found[name]
        folder, _, leaf = name.rpartition("/")
        axes: list[Axis | None] = []
        start = 0 if f"{folder}/dim0".lstrip("/") in found else 1
        for number in range(len(stack.shape)):
            dim = found.get(f"{folder}/dim{number + start}".lstrip("/"))
            axes.append(_axis(dim) if dim is not None and leaf != f"dim{number + start}" else None)
        facts: dict[str, Any] = {}
        for key, item in [("", file), *_walk(file)]:
            facts |= {str(k): _scalar(v) for k, v in item.attrs.items()}
            if hasattr(item, "dtype") and item.shape == () and item.dtype.kind != "V":
                facts[key.rpartition("/")[2]] = _scalar(item[()])
        return Opened(stack, axes, facts, _truth(found), file)
    except BaseException as error:
        file.close()
        # What HDF5 finds damaged on its way; its kind depends on what is.
        if isinstance(error, OSError | RuntimeError | KeyError | ValueError | TypeError) and not isinstance(
            error, ScanError
        ):
            raise ScanError(f"{path} is a damaged HDF5 file ({error}): copy it again") from error
        raise


def _truth(arrays: Mapping[str, Any]) -> Truth | None:
    """The potential behind a simulated scan, if it is there with its axes."""
    names = [f"{TRUTH}/{part}" for part in ("potential", "x", "y")]
    return Truth(*(np.asarray(arrays[name][...]) for name in names)) if all(name in arrays for name in names) else None


def _walk(group: Any, before: str = "", above: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """All groups and arrays below a group, by path; what cannot be opened, or leads back up, is passed over."""
    above = (*above, group)
    for name in group:
        try:
            item = group[name]
        except (KeyError, OSError, RuntimeError):  # a link that leads nowhere
            continue
        if item in above or getattr(item, "shape", ()) is None or (hasattr(item, "dtype") != hasattr(item, "shape")):
            continue  # a circle of links, an array without numbers, a type with a name
        yield f"{before}{name}", item
        if not hasattr(item, "dtype"):
            yield from _walk(item, f"{before}{name}/", above)


def _choose(path: Path, wanted: str | None, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The array that is the scan: what is named, or the only one of four axes, or of three if there is none."""
    if wanted is not None:
        name = wanted.strip("/")
        if name in shapes:
            return name
        raise ScanError(f"{path} has no array {wanted!r}; it has {_listed(shapes) or 'none'}")
    for count in (4, 3):
        there = {name: shape for name, shape in shapes.items() if len(shape) == count and min(shape) > 1}
        if len(there) == 1:
            return next(iter(there))
        if there:
            raise ScanError(f"{path} has more than one array of {count} axes: choose with --dataset: {_listed(there)}")
    raise ScanError(f"{path} has no array of four axes (nor of three); it has {_listed(shapes) or 'no array at all'}")


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    shown = [f"{name} ({' x '.join(map(str, shape)) or 'a number'})" for name, shape in shapes.items()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _axis(dim: Any) -> Axis | None:
    """An EMD axis: a vector of coordinates, or its first two, with name and unit."""
    if dim.ndim != 1 or dim.shape[0] < 2 or dim.dtype.kind not in "iuf":
        return None
    first, second = (float(value) for value in dim[:2])
    name, unit = (str(_scalar(dim.attrs.get(key, ""))) for key in ("name", "units"))
    return Axis(name, second - first, unit)


def _scalar(value: Any) -> Any:
    """A plain number, truth value or text; anything else as None."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.generic):
        return _scalar(value.item())
    if isinstance(value, np.ndarray) and value.size == 1:
        return _scalar(value.reshape(-1)[0])
    return value if isinstance(value, bool | int | float | str) else None


# ---- Zarr ----


def _zarr(path: Path, dataset: str | None) -> Opened:
    zarr = require("zarr", extra="microscopy")
    try:
        root = zarr.open(str(path), mode="r")
        arrays = {"": root} if hasattr(root, "dtype") else {n: a for n, a in _members(root) if hasattr(a, "dtype")}
        for name, array in arrays.items():
            if not _harmless(array):
                raise ScanError(
                    f"{path}: {name or 'the array'} is coded in a way that is not read: it could execute code"
                )
    except ScanError:
        raise
    except Exception as error:  # zarr raises its own kinds, and those of its codecs
        raise ScanError(f"{path} is no Zarr store, or damaged ({error})") from error
    name = _choose(path, dataset, {key: tuple(array.shape) for key, array in arrays.items()})
    facts: dict[str, Any] = {}
    for item in [root, *(item for _, item in ([] if hasattr(root, "dtype") else _members(root)))]:
        facts |= _flat(dict(item.attrs))
    about = dict(arrays[name].attrs)
    axes = [_stated(axis) for axis in about.get("axes", [])] if isinstance(about.get("axes"), list) else []
    return Opened(arrays[name], axes, facts, _truth(arrays))


# Codecs of format 2 that only move bytes. Others of numcodecs unpickle, or are unknown here.
_CODECS = ("blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "shuffle", "delta", "crc32", "adler32")


def _harmless(array: Any) -> bool:
    """Whether decoding an array runs nothing that a file could bring."""
    codecs = [getattr(array.metadata, "compressor", None), *(getattr(array.metadata, "filters", None) or ())]
    old = array.metadata.zarr_format == 2
    return array.dtype.kind != "O" and all(getattr(c, "codec_id", None) in _CODECS for c in codecs if old and c)


def _members(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in group.members():
        yield f"{before}{name}", item
        if not hasattr(item, "dtype"):
            yield from _members(item, f"{before}{name}/")


def _flat(attributes: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in attributes.items():
        if isinstance(value, Mapping):
            found |= _flat(value)
        else:
            found[str(name)] = _scalar(value)
    return found


def _stated(axis: Any) -> Axis | None:
    try:
        return Axis(str(axis["name"]), float(axis["step"]), str(axis["units"]))
    except (KeyError, TypeError, ValueError):
        return None


# ---- MIB and raw numbers ----


def _beside(path: Path) -> tuple[int, int] | None:
    """Rows and columns of the scan from the .hdr that Merlin's software writes beside a MIB file, where it tells."""
    header = path.with_suffix(".hdr")
    if not header.is_file():
        return None
    told = {}
    for line in header.read_text("utf-8", "replace").splitlines():
        name, tab, value = line.partition("\t")
        if tab:
            told[name.rstrip(": ")] = value.strip()
    try:
        return int(told["ScanY"]), int(told["ScanX"])
    except (KeyError, ValueError):
        return None


def _raw(
    path: Path,
    scan_shape: tuple[int, int] | None,
    detector_shape: tuple[int, int] | None,
    dtype: str | None,
    offset: int,
    gap: int,
) -> Opened:
    if scan_shape is None or detector_shape is None or dtype is None:
        raise ScanError(
            f"{path}: of raw numbers give all of --shape ROWS COLUMNS, --detector-shape ROWS COLUMNS and --dtype, such "
            "as uint16, or >u2 where the higher byte comes first"
        )
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError) as error:
        raise ScanError(f"--dtype {dtype}: it must be a type of numbers such as uint8, >u2 or float32") from error
    if kind.kind not in "buif":
        raise ScanError(f"--dtype {dtype}: it must be a type of real numbers such as uint8, >u2 or float32")
    if min(*scan_shape, *detector_shape) < 1 or offset < 0 or gap < 0:
        raise ScanError("--shape and --detector-shape must be 1 or more, --offset and --gap 0 or more")
    if not path.is_file():
        raise ScanError(f"{path} is a folder, not a file of raw numbers")
    count, pattern = scan_shape[0] * scan_shape[1], detector_shape[0] * detector_shape[1] * kind.itemsize
    needed, there = offset + count * pattern + (count - 1) * gap, path.stat().st_size
    if there < needed:
        whole = max(0, (there - offset + gap) // (pattern + gap))
        raise ScanError(
            f"{path} holds {there} bytes, and {count} patterns of {detector_shape[0]} x {detector_shape[1]} {kind} "
            f"need {needed}: it ends after pattern {whole}; is it cut off, or --shape, --detector-shape or --dtype "
            "wrong?"
        )
    said = []
    if there > needed:
        said.append(
            f"{path} holds {there - needed} bytes more than --shape, --detector-shape and --dtype account for: are "
            "they right? (--offset skips a header, --gap what is between patterns)"
        )
    flat = np.memmap(path, np.uint8, "r", offset, (needed - offset,))
    columns = detector_shape[1] * kind.itemsize
    stack = np.ndarray((count, *detector_shape), kind, flat, strides=(pattern + gap, columns, kind.itemsize))
    return Opened(stack, said=said)
