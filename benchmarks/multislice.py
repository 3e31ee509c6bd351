"""Multislice beside abTEM: patterns per CPU second, memory, agreement; and on a GPU.

    python benchmarks/multislice.py [--abtem PYTHON] [--rounds 3] [--json FILE] [--quick]
    python benchmarks/multislice.py --gpu [--json FILE]

abTEM (GPL) is measured in an environment of its own, with the same slices, microscope and positions:

    python -m venv peer && peer/bin/pip install abtem==1.0.11 pyfftw
    python benchmarks/multislice.py --abtem peer/bin/python

Both sides are processes with one thread that take turns; times are CPU times, ratios are taken turn by turn. A turn of
ours is a whole scan, from slices to patterns: transmission, symmetry check, scattering matrix and all. abTEM's time is
in proportion to the probes (the largest number is compared with a quarter of it), so it does at most 32 of them (8 at
512 pixels) in a turn.

- periodic: perfect crystals, random positions; ours by the path that `Multislice.scan` takes by itself, and for SrTiO3
  also with the symmetry check off. At rest, Debye-Waller factor 0.6 A^2, 200 keV, 20 mrad, about 100 slices.
- plain: one pixel of one slice changed, so that nothing repeats: two-dimensional transforms of torch ("whole"), and
  ours with its pruned ones, by torch.fft, by scipy.fft, and by FFTW through scipy.fft where pyfftw is there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exafield.microscopy import paths
from exafield.microscopy.crystal import Crystal
from exafield.microscopy.multislice import Multislice
from exafield.microscopy.periodic import intensity
from exafield.microscopy.potential import projected_slices
from exafield.microscopy.symmetry import Operation
from exafield.microscopy.views import View, view

BOX, THICKNESS = 31.0, 200.0
AIM = 2e-4  # of the agreement


def crystal(name: str) -> View:
    """A crystal along its axis; cells of the table of crystals, written out so that nothing else is needed."""
    a, c = {"SrTiO3": (3.905, 3.905), "Si": (5.431, 5.431), "GaN": (3.189, 5.185)}[name]
    cell = np.diag([a, a, c])
    if name == "SrTiO3":
        at = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
        return view(Crystal(name, "E21", 221, cell, np.array([38, 22, 8, 8, 8]), np.array(at), "here"), "001")
    if name == "Si":
        face = np.array([(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)])
        return view(Crystal(name, "A4", 227, cell, np.full(8, 14), np.concatenate([face, face + 0.25]), "here"), "110")
    cell[1] = a * np.array([-0.5, np.sqrt(0.75), 0])
    at = [(1 / 3, 2 / 3, 0), (2 / 3, 1 / 3, 0.5), (1 / 3, 2 / 3, 0.377), (2 / 3, 1 / 3, 0.877)]
    return view(Crystal(name, "B4", 186, cell, np.array([31, 31, 7, 7]), np.array(at), "here"), "001")


def case(name: str, pixels: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Slices [V A] on about `pixels` a side, whole pixels in whole cells, and the microscope."""
    # Si has a glide plane at a quarter of its edge: with 48 pixels along it, on whole pixels.
    finer = 0.944 if name == "Si" else 1.008
    slices = projected_slices(
        crystal(name), sampling=BOX / pixels * finer, thickness=THICKNESS, box=BOX, parametrisation="lobato"
    )
    lens = {
        "energy": 200e3,
        "sampling": slices.sampling,
        "slice_thickness": slices.thickness,
        "convergence_angle": 0.02,
    }
    return slices.array().float().numpy(), lens


# ---- ours ----


def plainest(lens: Multislice, slices: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Two-dimensional transforms, whole, as one would write them."""
    different, order = lens.prepared(slices, positions)
    shape = (slices.shape[1], slices.shape[2])
    transmission, propagator = lens.transmission(different), lens.propagator(shape)
    patterns = torch.empty(len(positions), *shape)
    for number, position in enumerate(positions):
        wave = lens.probe(shape, position[None])[0]
        for k in order:
            wave = torch.fft.fft2(torch.fft.ifft2(wave).mul_(transmission[k])).mul_(propagator)
        patterns[number] = torch.fft.fftshift(intensity(wave))
    return patterns


def scanned(way: str, given: dict[str, Any], slices: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """One way's patterns."""
    if way == "whole":
        return plainest(Multislice(**given), slices, positions)
    backend: Any = nullcontext()
    if way == "fftw":
        import pyfftw  # not ours: the user's own
        import scipy.fft

        pyfftw.interfaces.cache.enable()
        pyfftw.interfaces.cache.set_keepalive_time(600)
        backend = scipy.fft.set_backend(pyfftw.interfaces.scipy_fft)
    lens = Multislice(**given, fourier="scipy" if way in ("scipy", "fftw") else "torch")
    found = paths.symmetry.operations
    if way == "no symmetry":
        paths.symmetry.operations = lambda *_: [Operation(((1, 0), (0, 1)), (0, 0))]  # type: ignore[assignment]
    try:
        with backend:
            return lens.scan(slices, positions)
    finally:
        paths.symmetry.operations = found


def peak() -> float:
    """Most memory that this process has had [MB]."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))


def worker(file: Path) -> None:
    """Answers line by line, as peers/multislice_abtem.py does."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with np.load(file) as arrays:
        given = json.loads(str(arrays["lens"])) | {"sampling": tuple(json.loads(str(arrays["lens"]))["sampling"])}
        slices, everywhere = torch.from_numpy(arrays["slices"]), torch.from_numpy(arrays["positions"])
    print(json.dumps({"version": torch.__version__, "base": peak()}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        positions = everywhere[: asked["probes"]]
        begun = time.process_time()
        patterns = scanned(asked["way"], given, slices, positions)
        seconds = time.process_time() - begun
        if asked["keep"]:
            np.save(asked["keep"], patterns.numpy())
        most = peak()
        del patterns
        path = str(Multislice(**given).path(slices, positions)) if asked["keep"] else ""
        print(json.dumps({"seconds": seconds, "peak": most, "path": path}), flush=True)


# ---- in turns ----


class Side:
    """A process that scans when asked."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} ended, see above")
        return json.loads(line)  # type: ignore[no-any-return]

    def ask(self, probes: int, way: str = "", keep: Path | None = None) -> dict[str, Any]:
        """Has it scan."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"probes": probes, "way": way, "keep": str(keep or "")}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Ends the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.kill()
        self._process.wait()


@contextmanager
def sides(file: Path, python: Path | None) -> Iterator[tuple[Side, Side | None]]:
    """Ours and abTEM's."""
    ours = Side([sys.executable, __file__, "--worker", str(file)])
    theirs = None
    try:
        if python is not None:
            theirs = Side([str(python), str(Path(__file__).parent / "peers" / "multislice_abtem.py"), str(file)])
        yield ours, theirs
    finally:
        ours.end()
        if theirs is not None:
            theirs.end()


def spread(values: list[float]) -> dict[str, float]:
    """Least, median, largest."""
    return {"least": min(values), "median": statistics.median(values), "largest": max(values)}


def apart(folder: Path) -> float:
    """Largest relative L2 distance of a pattern from abTEM's."""
    ours, theirs = (np.load(folder / f"{name}.npy").astype(np.float64) for name in ("ours", "theirs"))
    return float(max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(ours, theirs, strict=False)))


def turns(
    pair: tuple[Side, Side | None], ways: list[str], probes: int, most: int, rounds: int, folder: Path
) -> list[dict[str, Any]]:
    """Rows of a table: CPU milliseconds per pattern of each way, and abTEM's over it."""
    ours, theirs = pair
    times: dict[str, list[float]] = {way: [] for way in [*ways, "abTEM"]}
    about = {}
    few = min(probes, most)
    if theirs is not None:  # this warms up too
        theirs.ask(few, "", folder / "theirs.npy")
    for way in ways:
        about[way] = ours.ask(few, way, folder / "ours.npy")
        if theirs is not None:
            about[way]["apart"] = apart(folder)
    for _ in range(rounds):
        for way in ways:
            times[way].append(1e3 * ours.ask(probes, way)["seconds"] / probes)
        if theirs is not None:
            times["abTEM"].append(1e3 * theirs.ask(few)["seconds"] / few)
    rows = []
    for way in ways:
        row: dict[str, Any] = {"way": way, "probes": probes, "ms per pattern": spread(times[way])}
        row["patterns per CPU second"] = 1e3 / row["ms per pattern"]["median"]
        if theirs is not None:
            ratios = [slow / fast for slow, fast in zip(times["abTEM"], times[way], strict=True)]
            row |= {"abTEM ms": spread(times["abTEM"]), "times abTEM": spread(ratios), "apart": about[way]["apart"]}
        rows.append(row)
    return rows


def shown(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints rows."""
    for row in rows:
        ms = row["ms per pattern"]
        text = f"{title:20s} {row['probes']:5d} {row['way']:12s} {ms['median']:9.3f} ms "
        text += f"({ms['least']:.3f}..{ms['largest']:.3f})"
        if "times abTEM" in row:
            ratio = row["times abTEM"]
            text += (
                f"  abTEM {row['abTEM ms']['median']:8.2f} ms: {ratio['median']:7.2f} x "
                f"({ratio['least']:.2f}..{ratio['largest']:.2f}), apart {row['apart']:.1e}"
            )
        print(text, flush=True)


def memory(file: Path, python: Path | None, probes: int) -> dict[str, Any]:
    """Peak memory of fresh processes that do one scan [MB], and what they take before it."""
    found = {}
    with sides(file, python) as pair:
        for name, side in zip(("ours", "abTEM"), pair, strict=True):
            if side is not None:
                found[name] = {"base": side.about["base"], "peak": side.ask(probes, "scan")["peak"]}
    return found


def cpu(given: argparse.Namespace) -> dict[str, Any]:
    """All tables."""
    names = ["SrTiO3"] if given.quick else ["SrTiO3", "Si", "GaN"]
    sizes = [128] if given.quick else given.pixels
    counts = [16, 64] if given.quick else [16, 64, 256, 1024]
    rounds = 1 if given.quick else given.rounds
    result: dict[str, Any] = {
        "benchmark": "multislice", "format": 1, "periodic": {}, "plain": {}, "memory": {}, "paths": {}, "linear": {},
    }  # fmt: skip
    for pixels in sizes:
        most = 4 if given.quick else 32 if pixels <= 256 else 8
        for name in names:
            slices, lens = case(name, pixels)
            title = f"{name} {slices.shape[1]} x {slices.shape[2]}"
            random = np.random.default_rng(0)
            edges = np.array(slices.shape[1:]) * lens["sampling"]
            arrays = {"lens": json.dumps(lens), "positions": random.uniform(0, edges, (max(counts), 2))}
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                np.savez(folder / "case.npz", slices=slices, **arrays)
                with sides(folder / "case.npz", given.abtem) as pair:
                    rows = []
                    for probes in counts:
                        both = name == "SrTiO3" and probes in (counts[0], counts[-1])
                        ways = ["scan", "no symmetry"] if both else ["scan"]
                        rows += turns(pair, ways, probes, most, rounds, folder)
                        shown(title, rows[-len(ways) :])
                    result["paths"][title] = pair[0].ask(16, "scan", folder / "ours.npy")["path"]
                    print(f"{title:20s} {result['paths'][title]}", flush=True)
                    if pair[1] is not None:
                        each = [pair[1].ask(n)["seconds"] / n for n in (most // 4, most)]
                        result["linear"][title] = each[0] / each[1]
                        print(
                            f"{title:20s} abTEM: a pattern of {most // 4} takes {each[0] / each[1]:.2f} x one of {most}"
                        )
                    result["periodic"][title] = rows
                result["memory"][title] = memory(folder / "case.npz", given.abtem, min(256, max(counts)))
                print(f"{title:20s} MB {result['memory'][title]}", flush=True)
                if name == "SrTiO3":
                    slices[1, 3, 5] *= 1.05
                    np.savez(folder / "case.npz", slices=slices, **arrays)
                    with sides(folder / "case.npz", given.abtem) as pair:
                        ways = ["whole", "scan", "scipy"]
                        if _has("pyfftw"):
                            ways.append("fftw")
                        rows = turns(pair, ways, most // 2, most // 2, rounds, folder)
                        shown(f"{title} plain", rows)
                        result["plain"][title] = rows
            if given.json:  # as far as it is
                given.json.write_text(json.dumps(result, indent=1))
    return result


def _has(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


# ---- on a GPU ----


def seconds(act: Callable[[], object], times: int = 1) -> float:
    """Per call, with the device idle before and after; the least of three."""
    found = []
    for _ in range(3):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(times):
            act()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - begun) / times)
    return min(found)


def gpu(quick: bool) -> dict[str, Any]:
    """Patterns per second, and the bytes that must move over those that the memory can move."""
    one = torch.empty(2**27, device="cuda")
    two = torch.empty_like(one)
    bandwidth = 2 * one.nbytes / seconds(lambda: two.copy_(one), 10)
    del one, two
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "bandwidth": bandwidth}
    print(f"{result['device']}: copies at {bandwidth / 1e12:.2f} TB/s")
    print(
        "share: bytes that four passes over each wave and slice move (transform, slice, transform, propagator), of that"
    )
    for pixels in (256,) if quick else (256, 512):
        for name in ("SrTiO3",) if quick else ("SrTiO3", "Si", "GaN"):
            slices, given = case(name, pixels)
            lens = Multislice(**given, device="cuda")
            perfect = torch.from_numpy(slices).cuda()
            broken = perfect.clone()
            broken[1, 3, 5] *= 1.05
            edges = torch.tensor([n * d for n, d in zip(slices.shape[1:], lens.sampling, strict=True)])
            for kind, there, counts in (("periodic", perfect, (64, 1024, 4096)), ("plain", broken, (64, 256))):
                for probes in counts:
                    positions = torch.rand(probes, 2, dtype=torch.float64) * edges
                    path = lens.path(there, positions)
                    lens.scan(there, positions)
                    whole = seconds(partial(lens.scan, there, positions))
                    scanner = lens.scanner(there, positions)[0]
                    waves = seconds(scanner.matrix if path.kind == "matrix" else partial(scanner.waves, positions))
                    moved = 4 * 2 * 8 * path.waves * path.tile[0] * path.tile[1] * len(slices)
                    row: dict[str, Any] = {
                        "path": str(path), "patterns per second": probes / whole, "seconds": whole,
                        "seconds of the waves": waves, "share of bandwidth": moved / waves / bandwidth,
                    }  # fmt: skip
                    result[f"{name} {slices.shape[1]} x {slices.shape[2]} {kind} {probes}"] = row
                    title = f"{name:7s} {slices.shape[1]} x {slices.shape[2]} {kind:8s} {probes:5d} probes"
                    share = 100 * float(row["share of bandwidth"])
                    times = f"waves {1e3 * waves:8.1f} of {1e3 * whole:8.1f} ms at {share:5.1f} % of the bandwidth"
                    print(f"{title}: {probes / whole:9.0f} patterns/s, {times}; {path}", flush=True)
            print(f"peak so far: {torch.cuda.max_memory_allocated() / 2**30:.1f} GB")
    return result


def main() -> None:
    """Runs what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--abtem", type=Path, metavar="PYTHON", help="of an environment that has abTEM 1.0.11")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pixels", type=int, nargs="+", default=[256, 512], help="along a side, about")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one small crystal, one round")
    parser.add_argument("--gpu", action="store_true", help="on a GPU, without abTEM")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return worker(given.worker)
    warnings.simplefilter("ignore")
    if given.gpu and not torch.cuda.is_available():
        print("There is no GPU here.")
        return None
    if given.abtem is None and not given.gpu:
        print("abTEM is not measured: see --abtem")
    if not given.gpu:
        cpu(given)
    elif given.json:
        given.json.write_text(json.dumps({"benchmark": "multislice", "format": 1, **gpu(given.quick)}, indent=1))
    else:
        gpu(given.quick)
    return None


if __name__ == "__main__":
    main()
