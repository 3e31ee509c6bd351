"""How close training of the climate networks comes to the rate of a plain convolution on the same machine.

    python benchmarks/climate.py [--threads 2] [--rounds 8] [--seconds 120] [--json FILE] [--quick]

In each round every case runs once, in turns, each beside the anchor in the same format: a 3x3 convolution of 256 to
256 channels, forward and backward. The ratio is that of two rates measured within seconds of each other; of all rounds
the least, the median and the largest are told. Rates are operations over wall time; CPU time over wall time says how
many cores a step really had (far below the number of threads: something else ran, and the round is worth little).

A step is forward, weighted cross-entropy and backward of one sample, 16 channels, and an update by SGD. Operations are
counted as executed. DeepLabv3+ as published (output stride 8, decoder of full resolution), with bilinear decoder at
output stride 16, and Tiramisu as published (dropout 0.2) and without dropout. Also prints operations of a full
sample of 768 x 1152 beside those published.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exafield.climate.loss import CrossEntropy
from exafield.climate.model import DeepLabV3Plus, Tiramisu
from exafield.climate.operations import PUBLISHED, as_published
from exafield.flops import Operations

CHANNELS = 16
FORMATS = ("fp32", "bf16")
CASES: dict[str, Callable[[], nn.Module]] = {
    "DeepLabv3+": DeepLabV3Plus,
    "DeepLabv3+, bilinear, stride 16": lambda: DeepLabV3Plus(decoder="bilinear", output_stride=16),
    "Tiramisu": Tiramisu,
    "Tiramisu, no dropout": lambda: Tiramisu(dropout=0.0),
}
# Of the anchor: as large as the features in the decoders at a quarter of the size.
ANCHOR_CHANNELS = 256


class Timed:
    """Something that can be repeated, and its operations."""

    def __init__(self, act: Callable[[], object], precision: str) -> None:
        self.act, self.precision = act, precision
        with Operations() as counted:
            self.once()
        self.operations = counted.exact
        self.once()

    def once(self) -> None:
        """One time, in its format."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            self.act()

    def rate(self, times: int) -> tuple[float, float]:
        """Operations per second [FLOP/s], and CPU time over wall time."""
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(times):
            self.once()
        took = time.perf_counter() - began
        return self.operations * times / took, (time.process_time() - cpu) / took


def step_of(model: nn.Module, rows: int, columns: int, precision: str) -> Timed:
    """A training step."""
    model.train().to(memory_format=torch.channels_last)
    fields = torch.randn(1, CHANNELS, rows, columns).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(3, (1, rows, columns))
    loss, optimiser = CrossEntropy(), torch.optim.SGD(model.parameters(), 1e-4)

    def act() -> None:
        optimiser.zero_grad()
        loss(model(fields), labels).backward()
        optimiser.step()

    return Timed(act, precision)


def anchor(rows: int, columns: int, precision: str) -> Timed:
    """The convolution everything is measured by."""
    layer = nn.Conv2d(ANCHOR_CHANNELS, ANCHOR_CHANNELS, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(1, ANCHOR_CHANNELS, rows, columns).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn_like(x)

    def act() -> None:
        layer.zero_grad()
        x.grad = None
        y = layer(x)
        y.backward(gradient.to(y.dtype))

    return Timed(act, precision)


def spread(values: list[float]) -> dict[str, float]:
    """Least, median, largest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def full_samples() -> dict[str, dict[str, float]]:
    """Operations of a full sample, counted as the publication did, and what it states [TFLOP]."""
    with torch.device("meta"):
        models: dict[str, nn.Module] = {
            "DeepLabv3+, 16 channels": DeepLabV3Plus(16),
            "Tiramisu, 16 channels": Tiramisu(16, first=64),
            "Tiramisu, 4 channels": Tiramisu(4),
        }
    found = {}
    for name, model in models.items():
        channels = 4 if "4 channels" in name else 16
        with Operations() as counted:
            model(torch.empty(1, channels, 768, 1152, device="meta")).sum().backward()
        found[name] = {
            "executed": counted.exact / 1e12,
            "as published": as_published(model, channels) / 1e12,
            "published": PUBLISHED[name] / 1e12,
        }
        print(f"{name:26s} {' '.join(f'{key} {value:.3f} TFLOP' for key, value in found[name].items())}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8, help="at most")
    parser.add_argument("--seconds", type=float, default=120.0, help="no round begins later")
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--columns", type=int, default=288)
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--quick", action="store_true", help="tiny fields and one round: to see that it works")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    began = time.monotonic()
    rows, columns, rounds = arguments.rows, arguments.columns, arguments.rounds
    if arguments.quick:
        rows, columns, rounds = 16, 32, 1
    full = full_samples()
    torch.manual_seed(0)
    anchors = {precision: anchor(max(rows // 2, 8), max(columns // 2, 8), precision) for precision in FORMATS}
    # One model serves both formats: memory is scarcer than time.
    steps = {
        (name, precision): step_of(model, rows, columns, precision)
        for name, model in ((name, make()) for name, make in CASES.items())
        for precision in FORMATS
    }
    measured: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in steps}
    for number in range(rounds):
        if number and time.monotonic() - began > arguments.seconds:
            break
        for key, step in steps.items():
            peak, peak_cpu = anchors[key[1]].rate(2)
            rate, cpu = step.rate(1)
            after, after_cpu = anchors[key[1]].rate(2)
            # The anchor before and after: a disturbance that begins or ends in between shows in both.
            both = 2 / (1 / peak + 1 / after)
            run = {"rate": rate, "anchor": both, "ratio": rate / both}
            measured[key].append(run | {"cores": cpu, "anchor cores": (peak_cpu + after_cpu) / 2})
    print(f"{'':40s} {'GFLOP':>7s} {'GFLOP/s':>8s} {'anchor':>8s}   ratio: min median  max   cores")
    results: list[dict[str, Any]] = []
    for (name, precision), runs in measured.items():
        figures = {key: spread([run[key] for run in runs]) for key in runs[0]}
        ratio, operations = figures["ratio"], steps[name, precision].operations
        print(
            f"{name + ' ' + precision:40s} {operations / 1e9:7.1f} {figures['rate']['median'] / 1e9:8.1f} "
            f"{figures['anchor']['median'] / 1e9:8.1f}         {ratio['min']:5.3f}  {ratio['median']:5.3f} "
            f"{ratio['max']:5.3f}  {figures['cores']['median']:5.2f}"
        )
        results.append(
            {"case": name, "precision": precision, "operations": operations, "rounds": runs, "summary": figures}
        )
    if arguments.json:
        about = {"benchmark": "climate", "format": 1, "rows": rows, "columns": columns, "threads": arguments.threads}
        about |= {"torch": torch.__version__, "quick": arguments.quick}
        arguments.json.write_text(json.dumps({**about, "full sample": full, "steps": results}, indent=1))


if __name__ == "__main__":
    main()
