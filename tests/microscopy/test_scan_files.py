"""Scans in files of every kind that is read, and what is said of those that cannot be."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")

from exafield.microscopy import scanfile  # noqa: E402
from exafield.microscopy.calibration import Calibration, ScanError  # noqa: E402
from exafield.microscopy.readers import open_scan  # noqa: E402
from exafield.microscopy.resampling import Resampled, bins, positions  # noqa: E402
from merlin_files import write_mib  # noqa: E402

SHAPE = (4, 5, 6, 7)
DATA = np.random.default_rng(0).integers(0, 60, SHAPE).astype(np.uint16)


def whole(path: Path, **how: object) -> np.ndarray:
    with open_scan(path, **how) as scan:  # type: ignore[arg-type]
        assert scan.shape == tuple(scan.read(slice(0, scan.shape[0]), slice(0, scan.shape[1])).shape)
        return scan.read(slice(0, scan.shape[0]), slice(0, scan.shape[1]))


def py4dstem(path: Path) -> Path:
    """A file laid out as py4DSTEM and emdfile write it (EMD 1.0)."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"emd_group_type": "file", "version_major": 1, "version_minor": 0})
        root = file.create_group("datacube_root")
        told = root.create_group("metadatabundle/calibration")
        values = {"R_pixel_size": 0.04, "R_pixel_units": "nm", "Q_pixel_size": 0.05, "Q_pixel_units": "A^-1"}
        for name, value in {**values, "QR_flip": True, "QR_rotation": 0.375, "qx0": np.ones((4, 5))}.items():
            told.create_dataset(name, data=value)
        cube = root.create_group("datacube")
        cube.create_dataset("data", data=DATA, chunks=(2, 2, 6, 7), compression="gzip")
        for number, (name, step, unit) in enumerate((("Rx", 1, "pixels"), ("Ry", 1, "pixels"), ("Qx", 1, "pixels"))):
            cube.create_dataset(f"dim{number}", data=[0, step]).attrs.update({"name": name, "units": unit})
    return path


def test_a_file_of_py4dstem_and_its_calibrations(tmp_path: Path) -> None:
    path = py4dstem(tmp_path / "cube.h5")
    assert np.array_equal(whole(path), DATA)
    with open_scan(path) as scan:
        told, said = Calibration(energy=200e3).over(scan.told)
    assert told.scan_step == pytest.approx((0.4, 0.4))
    assert told.detector_step == pytest.approx((0.05 * 0.02508, 0.05 * 0.02508), rel=1e-3)  # by the wavelength
    assert told.rotation == pytest.approx(21.486, abs=1e-3)
    assert told.transpose is True
    assert not said
    with open_scan(path) as scan:
        assert scan.told.detector_step is None  # no angle without an energy
        _, said = Calibration(energy=200e3, scan_step=(0.5, 0.5)).over(scan.told)
    assert said == ["scan_step is 0.4 x 0.4 in the file, and 0.5 x 0.5 was given: what was given is taken"]
    with h5py.File(path, "a") as file:
        file["datacube_root/metadatabundle/calibration/accelerating_voltage"] = 300.0
    with open_scan(path) as scan:
        told, said = Calibration(energy=200e3).over(scan.told)
        assert scan.told.resolved().detector_step == pytest.approx((0.05 * 0.01969, 0.05 * 0.01969), rel=1e-3)
    # A frequency becomes an angle by the energy that counts.
    assert told.detector_step == pytest.approx((0.05 * 0.02508, 0.05 * 0.02508), rel=1e-3)
    assert said == ["energy is 300000 in the file, and 200000 was given: what was given is taken"]
    with h5py.File(path, "a") as file:
        file.attrs["semiangle_cutoff"] = 1000.0
    with open_scan(path) as scan:
        assert scan.told.convergence_angle is None
        assert "is left out: convergence_angle is in rad: 1 is no small angle" in scan.said[-1]


def test_older_emd_with_vectors_and_units_that_give_the_order(tmp_path: Path) -> None:
    path = tmp_path / "old.emd"
    with h5py.File(path, "w") as file:
        group = file.create_group("data/scan")
        group.attrs["emd_group_type"] = 1
        group.create_dataset("data", data=DATA.transpose(2, 3, 0, 1))
        for number, (size, step, unit) in enumerate(((6, 1e-3, "rad"), (7, 1e-3, "rad"), (4, 0.5, "Å"), (5, 0.5, "Å"))):
            group.create_dataset(f"dim{number + 1}", data=np.arange(size) * step).attrs.update({"units": unit})
    assert np.array_equal(whole(path), DATA)
    with open_scan(path) as scan:
        assert scan.told.scan_step == pytest.approx((0.5, 0.5))
        assert scan.told.detector_step == pytest.approx((1e-3, 1e-3))
        assert scan.said == ["by the units of its axes the file holds kx, ky, x, y: they are taken in this order"]


def test_the_array_is_found_or_named(tmp_path: Path) -> None:
    path = tmp_path / "two.h5"
    with h5py.File(path, "w") as file:
        file["a/first"], file["a/second"], file["image"] = DATA, DATA + 1, DATA[0, 0]
        file["gone"] = h5py.SoftLink("/nowhere")
    assert np.array_equal(whole(path, dataset="/a/second"), DATA + 1)
    for dataset, said in (
        (None, r"more than one array of 4 axes: choose with --dataset: a/first \(4 x 5 x 6 x 7\), a/second"),
        ("b", r"no array 'b'; it has a/first"),
        ("image", r"has the shape 6 x 7; a scan has four axes"),
    ):
        with pytest.raises(ScanError, match=said):
            open_scan(path, dataset=dataset)


def test_what_else_hdf5_may_hold(tmp_path: Path) -> None:
    """Circles of links, several names of one array, types with names and arrays of nothing are no obstacles."""
    path = tmp_path / "odd.h5"
    with h5py.File(path, "w") as file:
        file["entry/detector/data"] = DATA
        file["entry/again"] = file["entry"]
        file["entry/data"] = h5py.SoftLink("/entry/detector/data")
        file["type"], file["nothing"] = np.dtype("f4"), h5py.Empty("f4")
    assert np.array_equal(whole(path), DATA)
    assert np.array_equal(whole(path, dataset="/entry/detector/data"), DATA)


def test_hdf5_that_is_damaged_inside(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["datacube/data"] = DATA
    data = path.read_bytes()
    assert data.count(b"TREE") > 1
    path.write_bytes(data.replace(b"TREE", b"LEAF"))
    with pytest.raises(ScanError, match=r"scan\.h5 is a damaged HDF5 file"):
        open_scan(path)


def test_numpy_files_that_hold_no_array(tmp_path: Path) -> None:
    path = tmp_path / "scan.npy"
    np.savez(tmp_path / "several.npz", DATA)
    np.save(path, DATA)
    cut = path.read_bytes().replace(b"}", b"(", 1)
    for content in (b"", b"hello", cut, (tmp_path / "several.npz").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ScanError, match="is no array of NumPy, or cut off"):
            open_scan(path)


def test_axes_in_any_order(tmp_path: Path) -> None:
    np.save(tmp_path / "kyx.npy", DATA.transpose(2, 1, 0, 3))
    assert np.array_equal(whole(tmp_path / "kyx.npy", axes=("kx", "y", "x", "ky")), DATA)
    with pytest.raises(ScanError, match=r"--axes x,y,k: it must name each of x, y, kx, ky once"):
        open_scan(tmp_path / "kyx.npy", axes=("x", "y", "k"))


def test_zarr_of_both_formats_and_what_would_execute_code(tmp_path: Path) -> None:
    for version in (2, 3):
        path = tmp_path / f"v{version}.zarr"
        group = zarr.open_group(str(path), mode="w", zarr_format=version)
        group.create_array("scan", data=DATA)
        group.attrs["calibration"] = {"accelerating_voltage": 200, "R_pixel_size": 0.5, "R_pixel_units": "A"}
        assert np.array_equal(whole(path), DATA)
        with open_scan(path) as scan:
            assert scan.told.energy == 200e3
            assert scan.told.scan_step == (0.5, 0.5)
    about = tmp_path / "v2.zarr" / "scan" / ".zarray"
    changed = json.loads(about.read_text())
    for name, value in (
        ("filters", [{"id": "pickle", "protocol": 5}]),
        ("compressor", {"id": "pickle", "protocol": 5}),
    ):
        about.write_text(json.dumps(changed | {name: value}))
        with pytest.raises(ScanError, match=r"could execute code|No Zarr data type"):
            open_scan(tmp_path / "v2.zarr")


@pytest.mark.parametrize(
    ("kind", "bits", "chips"),
    [("U08", 6, 1), ("U16", 12, 1), ("U32", 24, 1), ("U16", 12, 4)]
    + [("R64", bits, 1) for bits in (1, 6, 12, 24)]
    + [("R64", bits, 4) for bits in (1, 6, 12)],
)
def test_mib(tmp_path: Path, kind: str, bits: int, chips: int) -> None:
    top = 2 ** min(bits, {"U08": 8, "U16": 16}.get(kind, 24))
    frames = np.random.default_rng(1).integers(0, top, (6, 128, 128)).astype(np.uint32)
    frames[0, 0, 0], frames[0, -1, -1] = top - 1, 0
    path = tmp_path / "scan.mib"
    write_mib(path, frames, kind, bits=bits, chips=chips)
    assert np.array_equal(whole(path, scan_shape=(2, 3)), frames.reshape(2, 3, 128, 128))
    with open_scan(path, scan_shape=(2, 3)) as scan:
        assert np.array_equal(scan.read(slice(1, 2), slice(1, 3)), frames.reshape(2, 3, 128, 128)[1:2, 1:3])


def test_mib_that_is_not_whole_or_not_known(tmp_path: Path) -> None:
    path = tmp_path / "scan.mib"
    write_mib(path, np.zeros((4, 64, 64), np.uint16), "U16")
    with pytest.raises(ScanError, match=r"holds 4 patterns, and 2 x 3 positions \(--shape\) need 6"):
        open_scan(path, scan_shape=(2, 3))
    path.with_suffix(".hdr").write_text("HDR\t\nScanX:\t3\nScanY:\t2\nEnd\t\n")
    with pytest.raises(ScanError, match=r"2 x 3 positions \(its \.hdr file\) need 6: is the file whole"):
        open_scan(path)
    path.with_suffix(".hdr").write_text("HDR\t\nScanX:\t2\nScanY:\t2\nEnd\t\n")
    with open_scan(path) as scan:
        assert scan.shape == (2, 2, 64, 64)
        assert scan.said == []
    data = path.read_bytes()
    for content, said in (
        (data[:-100], r"is cut off: \d+ bytes are 3 patterns of 64 x 64 pixels and 8476 bytes"),
        (b"GIF89a" + data, "is no MIB file"),
        (data[: 384 + 8192] + b"X" * (384 + 8192), "pattern 2 of 2 has no header"),
        (data.replace(b"U16", b"F32"), "pixels of type F32 are not read"),
        (data.replace(b"U16", b"R64").replace(b",12,", b",11,"), "does not end with 1, 6, 12 or 24 bits, but '11'"),
        (b"", "is no MIB file"),
    ):
        path.write_bytes(content)
        with pytest.raises(ScanError, match=said):
            open_scan(path)


def test_raw_numbers(tmp_path: Path) -> None:
    path = tmp_path / "scan.bin"
    how = {"scan_shape": (4, 5), "detector_shape": (6, 7), "dtype": ">u2"}
    path.write_bytes(b"header" + b"GAP".join(pattern.astype(">u2").tobytes() for pattern in DATA.reshape(20, 6, 7)))
    assert np.array_equal(whole(path, **how, offset=6, gap=3), DATA)
    with open_scan(path, **how, offset=6) as scan:  # type: ignore[arg-type]
        assert "holds 57 bytes more than --shape" in scan.said[0]
    for changed, said in (
        ({"scan_shape": (5, 5)}, r"25 patterns of 6 x 7 >u2 need \d+: it ends after pattern 20; is it cut off"),
        ({"dtype": "nonsense"}, "--dtype nonsense: it must be a type of numbers"),
        ({"dtype": "i4,,"}, "--dtype i4,,: it must be a type of numbers"),
        ({"dtype": "2u2)"}, "it must be a type of numbers"),
        ({"dtype": "O"}, "--dtype O: it must be a type of real numbers"),
        ({"dtype": None}, "of raw numbers give all of --shape"),
        ({"gap": -1}, "0 or more"),
    ):
        with pytest.raises(ScanError, match=said):
            open_scan(path, **{**how, "offset": 6, "gap": 3, **changed})  # type: ignore[arg-type]


def test_a_folder_is_no_file_of_raw_numbers(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="is a folder, not a file of raw numbers"):
        open_scan(tmp_path, scan_shape=(4, 5), detector_shape=(6, 7), dtype="u2")


def test_a_potential_without_axes_is_none(tmp_path: Path) -> None:
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    root.create_array("patterns", data=DATA)
    root.create_array("truth/potential", data=np.ones((8, 8)))
    with open_scan(tmp_path / "a.zarr") as scan:
        assert scan.truth is None


def test_what_is_no_scan(tmp_path: Path) -> None:
    for name, content in (("no.h5", b"no"), ("no.npy", b"no"), ("no.dm4", b"no")):
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    np.save(tmp_path / "complex.npy", DATA.astype(complex))
    np.save(tmp_path / "line.npy", DATA[:1])
    np.save(tmp_path / "frames.npy", DATA.reshape(20, 6, 7))
    (tmp_path / "empty.zarr").mkdir()
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    for name, said in (
        ("nothere.h5", "there is no file"),
        ("no.h5", "is no HDF5 file, or damaged"),
        ("no.npy", "is no array of NumPy, or cut off"),
        ("no.dm4", r"what kind of file is it\? Known are \.h5"),
        ("objects.npy", "is no array of NumPy"),
        ("complex.npy", "type complex128, which is no real number"),
        ("line.npy", "has an axis with less than 2 points"),
        ("frames.npy", "holds 20 patterns and does not say how many are in a row of the scan: give --shape"),
        ("empty.zarr", "is no Zarr store"),
        ("empty.h5", "has no array of four axes .* no array at all"),
    ):
        with pytest.raises(ScanError, match=said):
            open_scan(tmp_path / name)
    path = py4dstem(tmp_path / "cut.h5")
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ScanError, match=r"cut\.h5"):
        whole(path)
    with pytest.raises(ScanError, match=r"but the file states 4 x 5 x 6 x 7: leave it out"):
        open_scan(py4dstem(tmp_path / "cube.h5"), scan_shape=(2, 10))
    with pytest.raises(ScanError, match=r"--axes a,b,c,d: it must name each of x, y, kx, ky once"):
        open_scan(py4dstem(tmp_path / "cube.h5"), axes=("a", "b", "c", "d"), scan_shape=(2, 10))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"energy": 200.0}, "energy is in eV: 200 is no energy of a microscope; 200 keV is 200000"),
        ({"convergence_angle": 25.0}, "convergence_angle is in rad: 25 is no small angle"),
        ({"detector_step": (1.0, 1.0)}, "detector_step is in rad"),
        ({"thickness": -1.0}, "thickness must be above 0"),
        ({"scan_step": (0.0, 0.5)}, "scan_step must be above 0"),
        ({"dose": float("nan")}, "dose must be above 0 and finite"),
    ],
)
def test_values_out_of_range(given: dict[str, float], said: str) -> None:
    with pytest.raises(ScanError, match=said):
        Calibration(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["x,y,kx,ky", "kx,ky,x,y"])
def test_a_scan_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    """A file of 64 MiB is brought to the network's grid in a tenth of that, whichever way it lies on the disk."""
    monkeypatch.setattr(scanfile, "BLOCK", 2**19)
    path = tmp_path / "large.bin"
    with open(path, "wb") as file:
        file.truncate(2**26)
    shape = {"x": 256, "y": 64, "kx": 64, "ky": 64}
    lengths = [shape[name] for name in order.split(",")]
    axes = tuple(order.split(","))
    if order.startswith("k"):  # as raw numbers, rows of a "scan" are those of the detector
        opened = open_scan(path, scan_shape=(64, 64), detector_shape=(256, 64), dtype="uint8", axes=axes)
    else:
        opened = open_scan(path, scan_shape=(256, 64), detector_shape=(64, 64), dtype="uint8", axes=axes)
    assert np.prod(lengths) == 2**26
    with opened as scan:
        assert scan.shape == (256, 64, 64, 64)
        detector = bins((64, 64), centre=(31.5, 31.5), step=(1e-3, 1e-3), half_angle=0.032, count=16)
        along = (positions(256, 0.5, 0.5, 0.25), positions(64, 0.5, 0.5, 0.25))
        resampled = Resampled(scan, detector, along, 1.0)
        tracemalloc.start()
        for low in range(0, 256 - 16 + 1, 10):
            assert resampled.band(low, low + 16).shape == (16, 64, 16, 16)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**26 / 7
