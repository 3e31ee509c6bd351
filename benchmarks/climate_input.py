"""How fast snapshots become batches: threads against processes, HDF5 against Zarr and compact files.

    python benchmarks/climate_input.py [--workers 2] [--batch 8] [--rounds 7] [--json FILE] [--quick]

In each round every case reads the same batches once, in turns, so that what else the machine does falls on all alike.
The ratio is that of its rate to the rate of one thread reading HDF5 in the same round; the least, the median and the
largest of all rounds are told. Every case ends with scaled fields and labels as tensors. Files are generated and were
written just before: they come from memory, not from a disk, so this measures decoding and locks. CPU time over wall
time says how many cores were at work. Values in Zarr are not compressed, as they are not in the HDF5 files.
"""

import argparse
import contextlib
import json
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray

from exafield.climate.compact import Compact, CompactSnapshots
from exafield.climate.decoding import SnapshotSequence
from exafield.climate.fields import CHANNELS
from exafield.climate.generate import Generation, generate
from exafield.climate.normalisation import Statistics
from exafield.climate.reading import Snapshots, open_snapshots
from exafield.climate.source import ClimateSource

ANCHOR = "HDF5, one thread"


class Case:
    """A way to read: several sources, each in a thread of its own, or one that as many threads use as it has
    processes; a part of each batch for every thread."""

    def __init__(self, snapshots: SnapshotSequence, of: Statistics, threads: int = 1, processes: int = 0) -> None:
        # Each thread has files of its own: only the lock of the library is shared.
        copies = [pickle.loads(pickle.dumps(snapshots)) for _ in range(threads)]
        self.sources = [ClimateSource(copy, of, workers=processes) for copy in copies] * max(1, processes)
        self.pool = ThreadPoolExecutor(len(self.sources))

    def read(self, indices: Sequence[int]) -> None:
        """One batch."""
        parts = [indices[n :: len(self.sources)] for n in range(len(self.sources))]
        done = list(self.pool.map(lambda source, part: source.batch(part, 0), self.sources, parts))
        if len(done) > 1:
            torch.cat([batch["fields"] for batch in done])
            torch.cat([batch["labels"] for batch in done])

    def cpu(self) -> float:
        """CPU time so far, of this process and its workers [s]."""
        total = time.process_time()
        for pid in self.sources[0].processes:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    def close(self) -> None:
        """Ends workers and threads."""
        self.pool.shutdown()
        for source in self.sources:
            source.close()


def write_zarr(path: Path, snapshots: Snapshots) -> None:
    """All snapshots in one store, one chunk for each channel and time."""
    grid = snapshots.axes.grid
    sizes = ("time", "lat", "lon")
    for index in range(len(snapshots)):
        one = snapshots[index]
        assert one.labels is not None
        data = xarray.Dataset(
            {
                **{name: (sizes, one[name][None], {"units": CHANNELS[name].unit}) for name in one.channels},
                "LABELS": (sizes, one.labels[None]),
            },
            {
                "time": [np.datetime64(one.time, "s")],
                "lat": ("lat", grid.latitude, {"units": "degrees_north"}),
                "lon": ("lon", grid.longitude, {"units": "degrees_east"}),
            },
        )
        if index:
            data.to_zarr(path, append_dim="time", consolidated=False)
        else:
            shape = (1, *grid.shape)
            fixed = {name: {"chunks": shape, "compressors": None} for name in (*one.channels, "LABELS")}
            times = {"time": {"units": "seconds since 1970-01-01", "chunks": (4096,)}}
            data.to_zarr(path, encoding={**fixed, **times}, consolidated=False, zarr_format=3)


@contextlib.contextmanager
def cases(folder: Path, workers: int) -> Iterator[dict[str, Case]]:
    """All of them, open."""
    hdf5 = open_snapshots(folder / "train")
    of = Statistics.load(folder / "statistics.json")
    write_zarr(folder / "all.zarr", hdf5)
    zarr = open_snapshots(folder / "all.zarr")
    compact = folder / "compact"
    compact.mkdir()
    convert = Compact()
    for path in sorted((folder / "train").glob("*.h5")):
        convert(str(path), str(compact / convert.name(str(path))))
    small = CompactSnapshots(sorted(compact.glob("*.npz")))
    made = {
        ANCHOR: Case(hdf5, of),
        f"HDF5, {workers} threads": Case(hdf5, of, threads=workers),
        f"HDF5, {workers} processes": Case(hdf5, of, processes=workers),
        "Zarr, one thread": Case(zarr, of),
        f"Zarr, {workers} threads": Case(zarr, of, threads=workers),
        f"Zarr, {workers} processes": Case(zarr, of, processes=workers),
        "compact, one thread": Case(small, of),
        f"compact, {workers} threads": Case(small, of, threads=workers),
    }
    try:
        yield made
    finally:
        for case in made.values():
            case.close()


def measure(made: dict[str, Case], samples: int, batch: int, rounds: int) -> dict[str, Any]:
    """Rates, ratios and cores of each case."""
    order = np.random.default_rng(0).permutation(samples)
    batches = [order[at : at + batch].tolist() for at in range(0, samples, batch)]
    rates: dict[str, list[float]] = {name: [] for name in made}
    cores: dict[str, list[float]] = {name: [] for name in made}
    costs: dict[str, list[float]] = {name: [] for name in made}
    for case in made.values():  # processes start, files come into memory
        for indices in batches:
            case.read(indices)
    for _ in range(rounds):
        for name, case in made.items():
            began, cpu = time.perf_counter(), case.cpu()
            for indices in batches:
                case.read(indices)
            took, used = time.perf_counter() - began, case.cpu() - cpu
            rates[name].append(samples / took)
            cores[name].append(used / took)
            costs[name].append(used / samples)
    found = {}
    for name in made:
        ratios = [rate / anchor for rate, anchor in zip(rates[name], rates[ANCHOR], strict=True)]
        found[name] = {
            "samples_per_second": statistics.median(rates[name]),
            "ratio": {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)},
            "cpu_seconds_per_sample": statistics.median(costs[name]),
            "cores": statistics.median(cores[name]),
        }
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--columns", type=int, default=288)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="small and short: shows that it works, measures nothing")
    given = parser.parse_args()
    if given.quick:
        given.rows, given.columns, given.samples, given.batch, given.rounds = 32, 48, 4, 2, 2
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        generate(folder, Generation(given.rows, given.columns, given.samples, 1, 1))
        with cases(Path(folder), given.workers) as made:
            found = measure(made, given.samples, given.batch, given.rounds)
    size = 16 * 4 * given.rows * given.columns / 2**20
    print(
        f"snapshots of {given.rows} x {given.columns} ({size:.1f} MiB), batches of {given.batch}, rounds {given.rounds}"
    )
    print(f"{'':24}samples/s  ratio min / median / max   CPU ms/sample  cores")
    for name, one in found.items():
        low, middle, high = (one["ratio"][which] for which in ("min", "median", "max"))
        print(
            f"{name:24}{one['samples_per_second']:9.1f}  {low:8.2f} / {middle:6.2f} / {high:5.2f}"
            f"{1e3 * one['cpu_seconds_per_sample']:14.2f}{one['cores']:9.2f}"
        )
    if given.json:
        about = {name: getattr(given, name) for name in ("workers", "batch", "samples", "rows", "columns", "rounds")}
        given.json.write_text(json.dumps({"benchmark": "climate_input", **about, "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
