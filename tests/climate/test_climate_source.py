"""Batches of snapshots: right, the same whoever reads them, and nothing left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

for _package in ("xarray", "h5py", "cftime"):
    pytest.importorskip(_package)

from climate_made import made  # noqa: E402
from climate_staged import Fragile, stamp  # noqa: E402
from exafield.climate.augment import Augmentation  # noqa: E402
from exafield.climate.compact import CompactSnapshots, write_compact  # noqa: E402
from exafield.climate.fields import CHANNELS, FOUR  # noqa: E402
from exafield.climate.normalisation import Statistics  # noqa: E402
from exafield.climate.published import write_snapshot  # noqa: E402
from exafield.climate.readers import Readers  # noqa: E402
from exafield.climate.reading import Snapshots, open_snapshots  # noqa: E402
from exafield.climate.snapshot import Axes, SnapshotError  # noqa: E402
from exafield.climate.source import ClimateSource  # noqa: E402
from exafield.loader import Loader  # noqa: E402
from exafield.source import Located, Sampler, Source, SourceError  # noqa: E402

COUNT = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("snapshots")
    for seed in range(COUNT):
        write_snapshot(path / f"data-{seed}.h5", made(seed=seed), "deepcam" if seed % 2 else "gordon-bell")
    return path


@pytest.fixture
def snapshots(folder: Path) -> Snapshots:
    return open_snapshots(folder)


@pytest.fixture(scope="module")
def statistics(folder: Path) -> Statistics:
    return Statistics.gather(open_snapshots(folder))


def alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def gone(pids: list[int]) -> bool:
    def there(pid: int) -> bool:
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    deadline = time.monotonic() + 30
    while any(map(there, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(there, pids))


def test_a_batch_is_what_the_files_hold(snapshots: Snapshots, statistics: Statistics) -> None:
    with ClimateSource(snapshots, statistics) as source:
        assert isinstance(source, Source)
        assert isinstance(source, Located)
        assert len(source) == COUNT
        assert source.locate(3).startswith(f"{snapshots.locate(3)}")
        batch = source.batch([3, 0, 3], epoch=7)
    assert {name: (t.shape, t.dtype) for name, t in batch.items()} == {
        "fields": ((3, 16, 12, 18), torch.float32),
        "labels": ((3, 12, 18), torch.uint8),
    }
    for place, seed in enumerate((3, 0, 3)):
        np.testing.assert_array_equal(batch["fields"][place].numpy(), statistics.standardised(made(seed=seed).values))
        np.testing.assert_array_equal(batch["labels"][place].numpy(), made(seed=seed).labels)


def test_nothing_depends_on_who_reads(snapshots: Snapshots, statistics: Statistics) -> None:
    augmentation = Augmentation()
    order = [4, 1, 0, 3, 1, 2]
    with (
        ClimateSource(snapshots, statistics, augmentation=augmentation, seed=2) as here,
        ClimateSource(snapshots, statistics, augmentation=augmentation, seed=2, workers=3) as there,
    ):
        first = here.batch(order, epoch=1)
        assert alike(first, there.batch(order, epoch=1))
        assert len(there.processes) == 1
        assert there.parallel == 3
        with ThreadPoolExecutor(3) as pool:
            assert all(alike(first, other) for other in pool.map(lambda _: there.batch(order, epoch=1), range(6)))
        # Neither on the company a sample has in its batch.
        assert torch.equal(here.batch([0], epoch=1)["fields"][0], first["fields"][2])
        assert not alike(first, there.batch(order, epoch=2))
        pids = there.processes
        assert len(pids) == 3
        # What idles and is lost is replaced.
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert gone(pids)
        assert alike(first, there.batch(order, epoch=1))
        # So is what is lost with a task in its hands that it has not begun.
        pids += there.processes
        last = there.processes[-1]
        os.kill(last, signal.SIGSTOP)
        timer = threading.Timer(0.3, os.kill, (last, signal.SIGKILL))
        timer.start()
        assert alike(first, there.batch(order, epoch=1))
        timer.join()
        assert gone([last])
        pids += there.processes
    assert gone(pids)
    assert not [name for name in os.listdir("/dev/shm") if f"-{os.getpid()}-" in name]


@pytest.mark.parametrize("scaling", ["standard", "range"])
def test_mirrored_winds_blow_the_other_way(folder: Path, statistics: Statistics, scaling: str) -> None:
    channels = ("V850", "TMQ")
    some = open_snapshots(folder, channels=channels)
    chosen = statistics.select(channels)
    augmentation = Augmentation(roll=False)
    source = ClimateSource(some, statistics, scaling=scaling, augmentation=augmentation)  # type: ignore[arg-type]
    epoch = next(e for e in range(50) if augmentation.draw(18, seed=0, epoch=e, sample=1)[1])
    batch = source.batch([1], epoch)
    shift, width = (
        (chosen.mean, chosen.deviation) if scaling == "standard" else (chosen.minimum, chosen.maximum - chosen.minimum)
    )
    restored = batch["fields"][0].double().numpy() * width[:, None, None] + shift[:, None, None]
    there = made(seed=1)
    np.testing.assert_allclose(restored[0], -there["V850"][::-1], atol=1e-4)
    np.testing.assert_allclose(restored[1], there["TMQ"][::-1], rtol=1e-5)
    np.testing.assert_array_equal(batch["labels"][0].numpy(), there.labels[::-1])


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_cached_is_not_read_again(tmp_path: Path, statistics: Statistics, workers: int) -> None:
    for seed in range(3):
        write_snapshot(tmp_path / f"data-{seed}.h5", made(seed=seed), "gordon-bell")
    size = 3 * 12 * 18 * (2 * 16 + 1)
    tight = ClimateSource(open_snapshots(tmp_path), statistics, cache=size - 1)
    assert not tight.cached
    exact = tight.batch([0, 2], 0)
    with ClimateSource(open_snapshots(tmp_path), statistics, cache=size, workers=workers) as source:
        assert source.cached
        first = source.batch([0, 2], 0)
        for file in tmp_path.iterdir():
            file.unlink()
        assert alike(first, source.batch([0, 2], 1))
        with pytest.raises(SnapshotError, match=r"data-1\.h5"):
            source.batch([1], 0)
    assert not alike(first, exact)  # fp16 from the first reading on
    torch.testing.assert_close(first["fields"], exact["fields"], rtol=1e-3, atol=1e-3)
    tight.close()
    with pytest.raises(SnapshotError, match=r"data-0\.h5"):
        tight.batch([0], 0)


def test_a_loader_takes_it_on_any_number_of_workers(snapshots: Snapshots, statistics: Statistics) -> None:
    def read(workers: int) -> list[dict[str, torch.Tensor]]:
        source = ClimateSource(
            snapshots, statistics, augmentation=Augmentation(), dtype=torch.bfloat16, workers=workers
        )
        with source, Loader(source, Sampler(len(source), 2)) as loader:
            return [loader.next() for _ in range(4)]

    here, there = read(0), read(2)
    assert all(map(alike, here, there))
    assert here[0]["fields"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("how", "says"), [("dies", "was killed by signal 9"), ("hangs", "could not be read within 2 s")]
)
def test_a_worker_that_is_lost_names_the_file(
    snapshots: Snapshots, statistics: Statistics, how: str, says: str
) -> None:
    with ClimateSource(Fragile(snapshots, 2, how), statistics, workers=2, timeout=2) as source:
        with pytest.raises(SnapshotError, match=rf"data-2\.h5, .*{says}") as caught:
            source.batch([2, 0, 1, 3], epoch=0)
        assert caught.value.__traceback__  # keeps what was under way alive
        # The others can be read, and nothing of the failed batch turns up in the next.
        plain = ClimateSource(snapshots, statistics)
        assert alike(source.batch([3, 4, 1], 0), plain.batch([3, 4, 1], 0))
        if how == "dies":
            with (
                Loader(source, Sampler(len(source), COUNT)) as loader,
                pytest.raises(SourceError, match=r"sample 2 \(.*data-2\.h5"),
            ):
                loader.next()


def test_memory_stays_until_its_answer_is_done_with() -> None:
    with Readers(stamp, 1, memory=64) as readers:
        for answer in readers.run([(f"task {n}", n) for n in range(3)]):
            time.sleep(0.1)  # the reader would have filled it anew
            assert set(answer.memory.tolist()) == {answer.number}
    for count, timeout in ((0, 1.0), (1, 0.0)):
        with pytest.raises(ValueError, match="count must be 1 or more"):
            Readers(stamp, count, timeout=timeout)


def test_errors_of_workers_are_those_of_the_reader(tmp_path: Path, statistics: Statistics) -> None:
    for seed in range(2):
        write_snapshot(tmp_path / f"data-{seed}.h5", made(seed=seed), "gordon-bell")
    snapshots = open_snapshots(tmp_path)
    path = tmp_path / "data-1.h5"
    path.write_bytes(path.read_bytes()[:5000])
    said = []
    for workers in (0, 1):
        with (
            ClimateSource(snapshots, statistics, workers=workers) as source,
            pytest.raises(SnapshotError, match=r"data-1\.h5") as caught,
        ):
            source.batch([0, 1], 0)
        said.append(str(caught.value))
    assert said[0] in said[1]


# Without a source, which imports torch: readers are what could stay behind.
SCRIPT = """
import sys, time
from exafield.climate.decoding import Decoder
from exafield.climate.normalisation import Statistics
from exafield.climate.reading import open_snapshots
from exafield.climate.readers import Readers

if __name__ == "__main__":
    snapshots = open_snapshots(sys.argv[1])
    decoder = Decoder(snapshots, Statistics.gather(snapshots), "standard")
    readers = Readers(decoder, 2, memory=decoder.nbytes)
    assert not [answer.error for answer in readers.run([("first", 0), ("second", 1)]) if answer.error]
    print(*readers.processes, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_process(folder: Path, tmp_path: Path, end: signal.Signals) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        process.send_signal(end)
        process.wait(60)
    assert gone(pids)
    assert not [name for name in os.listdir("/dev/shm") if f"-{process.pid}-" in name]


def test_compact_files_give_nearly_the_same(snapshots: Snapshots, statistics: Statistics, tmp_path: Path) -> None:
    for number in range(2):
        write_compact(tmp_path / f"{number}.npz", [snapshots[number]])
    compact = CompactSnapshots([tmp_path / "0.npz", tmp_path / "1.npz"])
    with ClimateSource(compact, statistics, workers=1) as staged, ClimateSource(snapshots, statistics) as source:
        one, other = staged.batch([1, 0], 0), source.batch([1, 0], 0)
    assert torch.equal(one["labels"], other["labels"])
    torch.testing.assert_close(one["fields"], other["fields"], rtol=2e-3, atol=2e-3)


def test_what_cannot_be_is_refused(folder: Path, snapshots: Snapshots, statistics: Statistics, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no statistics of"):
        ClimateSource(snapshots, statistics.select(FOUR))
    with pytest.raises(ValueError, match="float32 or"):
        ClimateSource(snapshots, statistics, dtype=torch.float16)
    with pytest.raises(ValueError, match="0 or more"):
        ClimateSource(snapshots, statistics, workers=-1)
    with pytest.raises(SnapshotError, match=r"data-0\.h5.*has no labels"):
        ClimateSource(open_snapshots(folder, labels=None), statistics).batch([0], 0)
    regional = Axes(np.linspace(10, 40, 12), np.linspace(100, 150, 18))
    write_snapshot(tmp_path / "region.h5", made(axes=regional), "gordon-bell")
    with pytest.raises(ValueError, match="roll=False"):
        ClimateSource(open_snapshots(tmp_path / "region.h5"), statistics, augmentation=Augmentation())
    flat = Statistics.of(tuple(CHANNELS), np.ones((16, 2, 2), np.float32))
    with pytest.raises(ValueError, match="cannot be scaled"):
        ClimateSource(snapshots, flat)
