"""What masks over years share: files that stay open, a folder that one run has for itself, and the grid of training."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

for _package in ("xarray", "h5netcdf", "h5py", "cftime"):
    pytest.importorskip(_package)

from climate_applied import Small  # noqa: E402
from climate_made import dataset, days, made  # noqa: E402
from exafield.climate import masking, reading  # noqa: E402
from exafield.climate.apply import apply, mask_files  # noqa: E402
from exafield.climate.fields import FOUR  # noqa: E402
from exafield.climate.grid import Grid  # noqa: E402
from exafield.climate.layouts import Reader, open_reader  # noqa: E402
from exafield.climate.reading import Snapshots, open_snapshots  # noqa: E402
from exafield.climate.segmenter import Segmenter, spacing  # noqa: E402
from exafield.climate.snapshot import Snapshot, whole_globe  # noqa: E402
from exafield.climate.summary import Summary  # noqa: E402
from exafield.climate.writing import MaskWriter  # noqa: E402
from exafield.engine import MapEngine  # noqa: E402
from exafield.engine.local import SerialEngine  # noqa: E402
from exafield.engine.threads import ThreadEngine  # noqa: E402
from exafield.store import StoreError  # noqa: E402

AXES = whole_globe(12, 18)


def year(path: Path, first: int, count: int, seed: int = 0) -> None:
    times = days(first + count)[first:]
    snapshots = [made(FOUR, AXES, seed + first + k, time) for k, time in enumerate(times)]
    dataset(snapshots).to_netcdf(path, engine="h5netcdf")


def cold(snapshot: Snapshot) -> np.ndarray:
    return (snapshot["PSL"] < np.median(snapshot["PSL"])).astype(np.uint8)


def refuse(snapshot: Snapshot) -> np.ndarray:
    raise ValueError("too small for me")


def masked(folder: Path, make: Callable[[Snapshot], np.ndarray], engine: MapEngine, **made_with: str) -> Summary:
    return mask_files(
        folder / "in", folder / "m.nc", make, FOUR, "it needs them", title="a test", engine=engine, made_with=made_with
    )


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Two files of five times each."""
    (tmp_path / "in").mkdir()
    year(tmp_path / "in" / "a.nc", 0, 5)
    year(tmp_path / "in" / "b.nc", 5, 5)
    return tmp_path


@dataclass
class Opened:
    """Counts files that are opened to be read from."""

    times: int = 0
    now: int = 0
    most: int = 0

    def __call__(self, path: Path | str, names: dict[str, str]) -> Reader:
        reader = open_reader(path, names)
        close = reader.close
        self.times, self.now = self.times + 1, self.now + 1
        self.most = max(self.most, self.now)

        def closed() -> None:
            self.now -= 1
            close()

        reader.close = closed  # type: ignore[method-assign]
        return reader


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    counted = Opened()
    monkeypatch.setattr(reading, "open_reader", counted)
    return counted


# ---- files that stay open ----


@pytest.mark.parametrize(("engine", "workers"), [(SerialEngine(), 1), (ThreadEngine(2), 2)], ids=["serial", "threads"])
def test_a_file_is_opened_once_by_each_worker(given: Path, opened: Opened, engine: MapEngine, workers: int) -> None:
    assert masked(given, cold, engine).made == 10
    # The headers of two files, then each file by each worker at most, then the masks: not ten snapshots one by one.
    assert opened.times <= 2 + 2 * workers + 1
    assert opened.most <= workers
    assert opened.now == 0, "a file was left open"
    with open_snapshots(given / "m.nc", channels=()) as masks, open_snapshots(given / "in", channels=FOUR) as fields:
        for mask, snapshot in zip(masks, fields, strict=True):
            np.testing.assert_array_equal(mask.labels, cold(snapshot))


def test_nothing_is_left_open_where_a_maker_fails(given: Path, opened: Opened) -> None:
    with pytest.raises(ValueError, match="too small for me"):
        masked(given, refuse, SerialEngine())
    assert opened.now == 0


def first_of(path: Path) -> Snapshots:
    with open_snapshots(path, channels=FOUR) as found:
        return found[:1]


def test_another_run_opens_a_file_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    labels = []
    for number in (0, 1):
        year(tmp_path / "new.nc", 0, 2, seed=10 * number)
        os.replace(tmp_path / "new.nc", path)
        labels.append(masking.mask(cold, f"run {number}", first_of(path)).labels)
        again = masking.mask(cold, f"run {number}", first_of(path)).labels
        np.testing.assert_array_equal(labels[-1], again)
    masking.close()
    assert not np.array_equal(*labels)
    np.testing.assert_array_equal(labels[1], cold(made(FOUR, AXES, 10)))


def test_a_file_that_cannot_be_read_is_not_kept(tmp_path: Path, opened: Opened) -> None:
    year(tmp_path / "a.nc", 0, 2)
    one = first_of(tmp_path / "a.nc")
    (tmp_path / "a.nc").write_bytes(b"cut")
    assert "a.nc (3 bytes) is neither" in str(masking.mask(cold, "run", one).unread)
    assert opened.now == 0


def test_a_worker_without_work_closes_its_file(tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    year(tmp_path / "a.nc", 0, 2)
    one = first_of(tmp_path / "a.nc")
    monkeypatch.setattr(masking, "_IDLE", 0.1)
    assert masking.mask(cold, "run", one).labels is not None
    deadline = time.monotonic() + 60
    while opened.now and time.monotonic() < deadline:
        time.sleep(0.01)
    assert opened.now == 0
    masking.close()
    assert not [one for one in threading.enumerate() if isinstance(one, threading.Timer)]


def test_what_is_read_otherwise_is_opened_anew(tmp_path: Path, opened: Opened) -> None:
    year(tmp_path / "a.nc", 0, 2)
    one, other = (open_snapshots(tmp_path / "a.nc", channels=channels) for channels in (FOUR, ("PSL",)))
    with one, other:
        first = one[0]
        before = opened.times
        other.take_over(one)
        np.testing.assert_array_equal(other[0]["PSL"], first["PSL"])
        assert opened.times == before + 1
        assert opened.now == 1


# ---- one run at a time, and runs that failed ----


def test_what_failed_without_a_mask_stands_in_nobodys_way(given: Path) -> None:
    with pytest.raises(ValueError, match="too small for me"):
        masked(given, refuse, SerialEngine(), by="one")
    assert [path.name for path in given.iterdir()] == ["in"]
    # One that was killed could not tidy up.
    killed = MaskWriter(given / "m.nc", AXES, days(10), {"by": "another"})
    killed.skip(3, "a.nc: damaged")
    assert masked(given, cold, SerialEngine(), by="a third").masks == 10
    assert sorted(path.name for path in given.iterdir()) == ["in", "m.nc"]


def test_masks_of_another_run_are_kept(tmp_path: Path) -> None:
    writer = MaskWriter(tmp_path / "m.nc", AXES, days(2), {"by": "one"})
    with writer.alone():
        writer.write(0, np.zeros(AXES.grid.shape, np.uint8))
    with pytest.raises(StoreError, match=r"was made otherwise \(by\)"):
        MaskWriter(tmp_path / "m.nc", AXES, days(2), {"by": "another"})
    assert MaskWriter(tmp_path / "m.nc", AXES, days(2), {"by": "one"}).missing() == [1]


ALONE = """
import sys, time, numpy as np
from exafield.climate.snapshot import whole_globe
from exafield.climate.writing import MaskWriter
times = [np.datetime64("2000-02-27T00:00:00", "s") + 21600 * k for k in range(10)]
with MaskWriter(sys.argv[1], whole_globe(12, 18), times, {"by": "one"}).alone():
    print("begun", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_told_at_once(given: Path) -> None:
    words = [sys.executable, "-c", ALONE, str(given / "m.nc")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            # Neither the same again, nor something else; `refuse` would say so if it were asked.
            said = r"m\.nc is being made by another run already: wait"
            same = MaskWriter(given / "m.nc", AXES, days(10), {"by": "one"})
            with pytest.raises(StoreError, match=said):
                same.alone().__enter__()
            with pytest.raises(StoreError, match=said):
                masked(given, refuse, SerialEngine(), by="another")
        finally:
            process.send_signal(signal.SIGKILL)
    assert masked(given, cold, SerialEngine(), by="another").masks == 10


# ---- the grid of training ----


@dataclass(frozen=True)
class Trained(Small):
    """On a grid of so many latitudes."""

    latitudes: int = 12

    def __call__(self) -> Segmenter:
        segmenter = super().__call__()
        segmenter.set_grid(Grid.whole(self.latitudes, self.latitudes * 3 // 2))
        return segmenter


@pytest.mark.parametrize(("latitudes", "warned"), [(12, False), (15, False), (24, True), (6, True)])
def test_another_spacing_than_in_training(tmp_path: Path, latitudes: int, warned: bool) -> None:
    dataset([made(FOUR, AXES, time=days(1)[0])]).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    said: list[str] = []
    apply(tmp_path / "a.nc", tmp_path / "m.nc", Trained(latitudes=latitudes), engine=SerialEngine(), say=said.append)
    found = [line for line in said if line.startswith("warning: this grid has a spacing of 16.4 x 20 degrees")]
    assert bool(found) == warned
    for line in found:
        step = 180 / latitudes
        assert f"the network was trained on one of {step:.3g} x {step * 4 / 3:.3g} degrees" in line
        assert "interpolate the fields" in line


def test_spacing_of_an_uneven_grid() -> None:
    north, east = spacing(Grid(np.array([-20.0, -10.5, 0.0, 10.0, 20.0]), np.array([0.0, 2.0, 4.0, 7.0])))
    assert north == pytest.approx(10.0)
    assert east == pytest.approx(2.0)


def test_checkpoints_hold_the_spacing() -> None:
    state = Trained(latitudes=24)().state_dict()
    other = Small()()
    assert other.spacing.tolist() == [0.0, 0.0]
    other.load_state_dict(state)
    np.testing.assert_allclose(other.spacing.tolist(), [7.5, 10.0])
