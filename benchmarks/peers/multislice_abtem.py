"""Beside multislice.py: abTEM's multislice of given slices, in its own environment.

    PYTHON benchmarks/peers/multislice_abtem.py FILE

Started by multislice.py. FILE holds the slices and the microscope. Each line on standard input asks for a scan; its CPU
time and the process's peak memory are answered. Slices stay in memory and FFTW's plans are kept.
"""

import json
import sys
import time
from importlib.util import find_spec
from typing import Any

import numpy as np


def peak() -> float:
    """Most memory that this process has had [MB]."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))


def main() -> None:
    """Answers line by line."""
    import abtem
    import dask

    # One thread, and FFTW, which is abTEM's default and its fastest.
    dask.config.set(scheduler="synchronous")
    abtem.config.set({"diagnostics.progress_bar": False, "fft": "fftw", "fftw.threads": 1, "device": "cpu"})
    with np.load(sys.argv[1]) as given:
        lens = json.loads(str(given["lens"]))
        potential = abtem.PotentialArray(
            given["slices"], slice_thickness=lens["slice_thickness"], sampling=tuple(lens["sampling"])
        )
        everywhere = given["positions"]
    probe = abtem.Probe(energy=lens["energy"], semiangle_cutoff=1e3 * lens["convergence_angle"], soft=False)
    probe.grid.match(potential)
    detector = abtem.PixelatedDetector(max_angle=None)
    print(json.dumps({"version": abtem.__version__, "base": peak()}), flush=True)
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        positions = everywhere[: asked["probes"]]
        begun = time.process_time()
        scan = abtem.CustomScan(positions)
        patterns = probe.multislice(potential, scan=scan, detectors=detector, lazy=False).array
        seconds = time.process_time() - begun
        if asked["keep"]:
            np.save(asked["keep"], patterns)
        most = peak()
        del patterns
        print(json.dumps({"seconds": seconds, "peak": most}), flush=True)


if __name__ == "__main__":
    if find_spec("abtem") is None:
        print("abTEM is not in this environment; multislice.py says how it is measured.")
    else:
        main()
