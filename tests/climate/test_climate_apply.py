"""Masks over years of files: the same on every engine, and a stopped run is gone on with."""

import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for _package in ("xarray", "h5netcdf", "h5py", "zarr", "cftime"):
    pytest.importorskip(_package)
import h5py  # noqa: E402
import xarray as xr  # noqa: E402

import climate_applied  # noqa: E402
from climate_applied import REACH, Small  # noqa: E402
from climate_made import dataset, days, made  # noqa: E402
from exafield.climate.apply import apply, mask_files  # noqa: E402
from exafield.climate.fields import CHANNELS, FOUR, RIVER  # noqa: E402
from exafield.climate.heuristics import label, rivers  # noqa: E402
from exafield.climate.labelling import label_files  # noqa: E402
from exafield.climate.masks import How  # noqa: E402
from exafield.climate.reading import open_snapshots  # noqa: E402
from exafield.climate.snapshot import Axes, Snapshot, SnapshotError, whole_globe  # noqa: E402
from exafield.climate.summary import Summary  # noqa: E402
from exafield.engine import EngineError, MapEngine  # noqa: E402
from exafield.engine.local import ProcessEngine, SerialEngine  # noqa: E402
from exafield.engine.threads import ThreadEngine  # noqa: E402
from exafield.store import StoreError  # noqa: E402

SERIAL, SMALL = SerialEngine(), Small()
# North to south, from -180, and the first column again.
TURNED = Axes(np.linspace(88, -88, 12), np.linspace(-180, 180, 19))


def year(folder: Path, channels: tuple[str, ...] = FOUR, axes: Axes | None = None, count: int = 5) -> list[Snapshot]:
    """Five snapshots in three files, whose names are not in the order of time; returned in that order."""
    folder.mkdir(exist_ok=True)
    snapshots = [made(channels, axes, seed, when) for seed, when in enumerate(days(count))]
    for name, part in (("c.nc", slice(0, 2)), ("a.nc", slice(2, 4)), ("b.nc", slice(4, 5))):
        if snapshots[part]:
            data = dataset(snapshots[part]).assign_attrs(title="a model", history="run")
            data.to_netcdf(folder / name, engine="h5netcdf")
    return snapshots


def stored(path: Path) -> list[np.ndarray]:
    with open_snapshots(path, channels=()) as found:
        return [one.labels for one in found if one.labels is not None]


def expected(load: Small, snapshots: list[Snapshot]) -> list[np.ndarray]:
    segmenter = load().eval()
    return [segmenter.classify(one.values) for one in snapshots]


@pytest.mark.parametrize(("suffix", "tile"), [(".nc", (9, 10)), (".zarr", None)])
def test_every_engine_makes_the_same_masks(tmp_path: Path, suffix: str, tile: tuple[int, int] | None) -> None:
    snapshots = year(tmp_path / "in", axes=TURNED)
    truth = expected(Small(), snapshots)
    assert {0, 1, 2} == set(np.unique(truth))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    engines: dict[str, MapEngine] = {"serial": SERIAL, "threads": ThreadEngine(2)}
    if tile:
        engines["processes"] = ProcessEngine(2)
    try:
        for name, engine in engines.items():
            out, said = tmp_path / "out" / f"{name}{suffix}", list[str]()
            summary = apply(
                tmp_path / "in", out, Small(), engine=engine, tile=tile, overlap=REACH, made_with={"network": "small"},
                say=said.append,
            )  # fmt: skip
            assert (summary.snapshots, summary.masks, summary.made, summary.skipped) == (5, 5, 5, ())
            assert summary.lines()[0].startswith(f"{out}: 5 masks, 5 made now in ")
            assert len(summary.lines()) == 1
            assert said[0].startswith("5 snapshots, 12 x 19, 88 to -88 N")
            for got, want in zip(stored(out), truth, strict=True):
                np.testing.assert_array_equal(got, want)
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    more: dict[str, Any] = {"consolidated": False, "engine": "zarr"} if suffix == ".zarr" else {"engine": "h5netcdf"}
    with xr.open_dataset(out, **more) as data:
        assert data["LABELS"].dims == ("time", "lat", "lon")
        assert data["time"].values.tolist() == np.array(days(5), "datetime64[ns]").tolist()
        np.testing.assert_array_equal(data["lat"].values, TURNED.latitude)
        assert data.attrs["history"].endswith("\nrun")
        assert data.attrs["source_title"] == "a model"
        assert data.attrs["skipped_files"] == "0"
        assert data.attrs["skipped_snapshots"] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"{name}{suffix}" for name in engines)
    again = apply(tmp_path / "in", out, Small(), engine=SERIAL, tile=tile, overlap=REACH,
                  made_with={"network": "small"})  # fmt: skip
    assert (again.made, again.masks) == (0, 5)
    assert "5 there before" in again.lines()[0]


@pytest.mark.parametrize(("how", "engine"), [(signal.SIGKILL, "serial"), (signal.SIGINT, "threads")])
def test_a_stopped_run_is_gone_on_with(tmp_path: Path, how: signal.Signals, engine: str) -> None:
    snapshots = year(tmp_path / "in")
    out = tmp_path / "out" / "masks.nc"
    command = [sys.executable, climate_applied.__file__, str(tmp_path / "in"), str(out), engine]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            while not list((tmp_path / "out").glob(".masks.nc.parts/*.mask")):
                assert process.poll() is None
                time.sleep(0.02)
        finally:
            process.send_signal(how)
        assert process.stdout is not None
        said = process.stdout.read()  # ends when the last worker has ended
    assert process.returncode == -signal.SIGKILL if how == signal.SIGKILL else process.returncode != 0
    assert ("the same again goes on from here" in said) == (how == signal.SIGINT)
    assert not out.exists()
    with pytest.raises(StoreError, match=r"was made otherwise \(tile\)"):
        apply(tmp_path / "in", out, Small(), engine=SERIAL, tile=(9, 9), overlap=1, made_with={"network": "small"})
    lines: list[str] = []
    summary = apply(
        tmp_path / "in", out, Small(), engine=SERIAL, made_with={"network": "small"}, say=lines.append
    )  # another engine
    assert 1 <= 5 - summary.made == int(lines[0].split("; ")[1].split()[0])
    assert summary.masks == 5
    for got, want in zip(stored(out), expected(Small(), snapshots), strict=True):
        np.testing.assert_array_equal(got, want)
    assert [path.name for path in out.parent.iterdir()] == ["masks.nc"]


def break_second_time(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["PSL"][1, 3, 4] = np.nan


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("engine", [SERIAL, ThreadEngine(2)], ids=["serial", "threads"])
def test_a_snapshot_that_cannot_be_read(tmp_path: Path, engine: MapEngine) -> None:
    snapshots = year(tmp_path / "in")
    break_second_time(tmp_path / "in" / "a.nc")
    out, said = tmp_path / "masks.nc", list[str]()
    with pytest.raises(SnapshotError, match=r"a\.nc, 2000-02-27T18.*: PSL: 1 of 216 values are missing.*'skip'"):
        apply(tmp_path / "in", out, Small(), engine=engine)
    assert not out.exists()
    summary = apply(tmp_path / "in", out, Small(), engine=engine, on_error="skip", say=said.append)
    assert (summary.snapshots, summary.masks) == (5, 4)
    assert len(summary.skipped) == 1
    assert "4 of 5 snapshots left out" not in summary.lines()[1]
    assert summary.lines()[1].startswith("1 of 5 snapshots left out, the first: ")
    assert "a.nc, 2000-02-27T18" in summary.lines()[1]
    assert sum("left out" in line for line in said) == 1
    want = [mask for k, mask in enumerate(expected(Small(), snapshots)) if k != 3]
    for got, mask in zip(stored(out), want, strict=True):
        np.testing.assert_array_equal(got, mask)
    with h5py.File(out) as file:
        assert file.attrs["skipped_snapshots"] == 1
        assert "a.nc" in file.attrs["first_skipped"]
    filled = apply(tmp_path / "in", tmp_path / "filled.nc", Small(), engine=engine, how=How(fill="nearest"))
    assert (filled.masks, filled.filled) == (5, 1)
    assert "filled in" in filled.lines()[-1]


def test_a_mended_snapshot_is_read_again(tmp_path: Path) -> None:
    year(tmp_path / "in")
    whole = (tmp_path / "in" / "a.nc").read_bytes()
    break_second_time(tmp_path / "in" / "a.nc")
    out = tmp_path / "masks.nc"

    def stop(text: str) -> None:
        if "left out" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(tmp_path / "in", out, Small(), engine=SERIAL, on_error="skip", say=stop)
    (tmp_path / "in" / "a.nc").write_bytes(whole)
    summary = apply(tmp_path / "in", out, Small(), engine=SERIAL)
    assert (summary.made, summary.masks) == (2, 5)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    year(tmp_path / "in")
    cut(tmp_path / "in" / "a.nc")
    dataset([made(FOUR, whole_globe(10, 12), time=days(9)[8])]).to_netcdf(tmp_path / "in" / "d.nc", engine="h5netcdf")
    out = tmp_path / "masks.nc"
    with pytest.raises(SnapshotError, match=r"a\.nc seems damaged or incomplete"):
        apply(tmp_path / "in", out, Small(), engine=SERIAL)
    summary = apply(tmp_path / "in", out, Small(), engine=SERIAL, on_error="skip")
    assert (summary.masks, len(summary.skipped_files)) == (3, 2)
    assert "2 files left out, the first: " in summary.lines()[1]
    assert "another grid" in summary.skipped_files[1]
    with h5py.File(out) as file:
        assert file.attrs["skipped_files"] == "2"
        assert "a.nc" in file.attrs["first_skipped_file"]


def fails(
    kind: type[Exception], match: str, *inputs: str, out: str = "m.nc", load: Small = SMALL, **options: Any
) -> Callable[[Path, Path], None]:
    def check(given: Path, folder: Path) -> None:
        with pytest.raises(kind, match=match):
            apply([given / one for one in inputs], folder / out, load, engine=SERIAL, **options)
        assert not list(folder.iterdir())

    return check


@pytest.fixture(scope="module")
def given_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    year(folder / "in")
    dataset([made(FOUR, whole_globe(10, 12), time=days(9)[8])]).to_netcdf(folder / "x.nc", engine="h5netcdf")
    (folder / "t.txt").write_bytes(b"my thesis")
    return folder


@pytest.mark.parametrize(
    "check",
    [
        fails(SnapshotError, "no files are given"),
        fails(SnapshotError, r"there is no file .*none\.nc", "none.nc"),
        fails(SnapshotError, r"x\.nc is on another grid", "in/a.nc", "x.nc"),
        fails(SnapshotError, r"t\.txt \(9 bytes\) is neither NetCDF, HDF5 nor Zarr", "t.txt"),
        fails(SnapshotError, r"c\.nc, 2000-02-27T00.*, and .*c\.nc.*: both are of the same time", "in/c.nc", "in/c.nc"),
        fails(SnapshotError, r"a\.nc lacks TS, T200; the network was trained on TMQ, TS, T200; no variable is TS .* "
              r"say which it is, as in names=\{'TS': 'VARIABLE'\}$", "in", load=Small(("TMQ", "TS", "T200"))),
        fails(SnapshotError, r"a\.nc lacks TS", "in", load=Small(("TMQ", "TS")), on_error="skip"),
        fails(ValueError, r"tiles larger than 20", "in", tile=(20, 30), overlap=10),
        fails(ValueError, r"weight of the network holds values that are not finite", "in", load=Small(broken=True)),
        fails(ValueError, r"m\.grib: choose a name that ends in \.nc or \.zarr", "in", out="m.grib"),
    ],
)  # fmt: skip
def test_what_cannot_be_applied(given_files: Path, tmp_path: Path, check: Callable[[Path, Path], None]) -> None:
    check(given_files, tmp_path)


def test_the_output_is_no_input(tmp_path: Path) -> None:
    year(tmp_path)
    out = tmp_path / "masks.nc"
    assert apply(tmp_path, out, Small(), engine=SERIAL).made == 5
    assert apply(tmp_path, out, Small(), engine=SERIAL).made == 0  # the folder now holds it
    with pytest.raises(SnapshotError, match=r"masks\.nc is the only file given"):
        apply(out, out, Small(), engine=SERIAL)
    with pytest.raises(StoreError, match=r"a\.nc is there and not written by exafield"):
        apply(sorted(tmp_path.glob("[abc].nc")), tmp_path / "a.nc", Small(), engine=SERIAL)
    # Other files of the same times are another question.
    (tmp_path / "other").mkdir()
    for path in tmp_path.glob("[abc].nc"):
        path.rename(tmp_path / "other" / path.name)
    with pytest.raises(StoreError, match=r"masks\.nc was made otherwise \(files\)"):
        apply(tmp_path / "other", out, Small(), engine=SERIAL)
    with pytest.raises(StoreError, match=r"masks\.nc was made otherwise \(files, network\)"):
        apply(tmp_path / "other", out, Small(), engine=SERIAL, made_with={"network": "other"})


def test_nothing_can_be_read(tmp_path: Path) -> None:
    dataset([made(FOUR, time=when) for when in days(2)]).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with h5py.File(tmp_path / "a.nc", "r+") as file:
        file["PSL"][:, 3, 4] = np.nan
    for _ in range(2):
        with pytest.raises(SnapshotError, match=r"none of 2 snapshots can be read; the first: .*a\.nc, 2000-02-27T00"):
            apply(tmp_path / "a.nc", tmp_path / "m.nc", Small(), engine=SERIAL, on_error="skip")
    assert not (tmp_path / "m.nc").exists()


def test_longitudes_that_do_not_close_are_told(tmp_path: Path) -> None:
    axes = Axes(np.linspace(20, 60, 12), np.linspace(0, 90, 18))
    dataset([made(FOUR, axes, time=days(1)[0])]).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    for periodic in (True, False):
        said: list[str] = []
        load = Small(periodic=periodic)
        apply(tmp_path / "a.nc", tmp_path / f"{periodic}.nc", load, engine=SERIAL, say=said.append)
        assert any("not to be trusted" in line for line in said) == periodic


def refuse(snapshot: Snapshot) -> np.ndarray:
    raise ValueError("too small for me")


def stumble(snapshot: Snapshot) -> np.ndarray:
    raise RuntimeError("a bug")


def mean(snapshot: Snapshot) -> np.ndarray:
    return (snapshot.values.mean(0) > 0).astype(np.uint8)


def masked(folder: Path, name: str, make: Callable[[Snapshot], np.ndarray], engine: MapEngine = SERIAL) -> Summary:
    return mask_files(folder, folder.parent / name, make, FOUR, "it needs them", title="a test", engine=engine)


def test_a_maker_that_fails(tmp_path: Path) -> None:
    year(tmp_path / "in")
    with pytest.raises(ValueError, match=r"c\.nc, 2000-02-27T00:00:00: too small for me"):
        masked(tmp_path / "in", "m.nc", refuse)
    with pytest.raises(EngineError, match="item 0 failed: RuntimeError: a bug"):
        masked(tmp_path / "in", "m.nc", stumble)


def test_memory_holds_one_snapshot(tmp_path: Path) -> None:
    axes = whole_globe(48, 72)
    peaks = []
    for count in (1, 2, 8):  # the first time, libraries are loaded
        folder = tmp_path / str(count)
        folder.mkdir()
        dataset([made(FOUR, axes, time=when) for when in days(count)]).to_netcdf(folder / "a.nc", engine="h5netcdf")
        if count > 1:
            tracemalloc.start()
        try:
            masked(folder, f"{count}.nc", mean)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] > 4 * 4 * 48 * 72
    assert peaks[2] < peaks[1] + 2 * 4 * 4 * 48 * 72


@pytest.mark.parametrize("variant", ["corrected", "published"])
def test_labels_by_heuristics(tmp_path: Path, variant: Any) -> None:
    snapshots = year(tmp_path / "in", tuple(CHANNELS), count=3)
    said: list[str] = []
    label_files(tmp_path / "in", tmp_path / "m.nc", variant=variant, engine=ThreadEngine(2), say=said.append)
    want = [label(dict(zip(one.channels, one.values, strict=True)), one.grid, variant) for one in snapshots]
    for got, mask in zip(stored(tmp_path / "m.nc"), want, strict=True):
        np.testing.assert_array_equal(got, mask)
    assert said[0].startswith(f"rules: {variant}, label 0, default; of TMQ, U850, V850, UBOT, VBOT, PSL, T200")
    with h5py.File(tmp_path / "m.nc") as file:
        assert "PRECT" in file.attrs["exafield_made_with"]
        assert file.attrs["title"].endswith(f"by heuristics, {variant} variant")
    other = "published" if variant == "corrected" else "corrected"
    with pytest.raises(StoreError, match=r"made otherwise .*variant"):
        label_files(tmp_path / "in", tmp_path / "m.nc", variant=other, engine=SERIAL)  # type: ignore[arg-type]


def test_labels_of_fewer_channels(tmp_path: Path) -> None:
    needed = ("TMQ", "U850", "V850", "PSL", "T200", "T500", "PRECT")
    for channels, options in (
        (needed, {}),
        (("TMQ",), {"cyclones": False}),
        (("U850", "V850", "QREFHT"), {"cyclones": False, "rule": "transport 94"}),
    ):
        folder = tmp_path / "".join(channels)
        snapshots = year(folder, channels, count=1)
        said: list[str] = []
        label_files(folder, tmp_path / f"{folder.name}.nc", engine=SERIAL, say=said.append, **options)  # type: ignore[arg-type]
        fields = [(dict(zip(channels, one.values, strict=True)), one.grid) for one in snapshots]
        rule = rivers.find(options.get("rule", "label 0"))
        want = [label(*one) if not options else RIVER * rivers.corrected(*one, rule) for one in fields]
        for got, mask in zip(stored(tmp_path / f"{folder.name}.nc"), want, strict=True):
            np.testing.assert_array_equal(got, mask)
        assert said[0].endswith(f"of {', '.join(name for name in CHANNELS if name in channels)}")
    with pytest.raises(SnapshotError, match=r"lacks T200, T500, PRECT; rivers need TMQ, and cyclones U850, .*cycl"):
        label_files(year_of_four(tmp_path), tmp_path / "x.nc", engine=SERIAL)
    for wrong in ({"variant": "correct"}, {"rule": "label 2"}, {"thresholds": "strict"}):
        with pytest.raises(ValueError, match=r"label 2|strict|correct"):
            label_files(tmp_path / "TMQ", tmp_path / "x.nc", engine=SERIAL, **wrong)  # type: ignore[arg-type]


def year_of_four(folder: Path) -> Path:
    year(folder / "four")
    return folder / "four"


def test_workers_of_heuristics_need_no_torch() -> None:
    code = "import sys, exafield.climate.labelling, exafield.climate.masking; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
