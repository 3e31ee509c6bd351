"""How much of a GPU's measured matrix peak training reaches: the dense network for electron diffraction, one GPU.

    python benchmarks/gpu.py [--json FILE]

The peak is that of large matrix products in the same format, measured here. Plain torch and this package's
reduction, in turns; FLOPs are counted exactly (forward and backward as executed). Without a GPU it says so and ends.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from exafield import Reducer, World
from exafield.flops import Operations
from exafield.microscopy.model import ScanAsSpace

BLOCKS, STEPS = 12, 10
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def seconds(act: Callable[[], object], times: int) -> float:
    """Per call, with the device idle before and after."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        act()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def peak(dtype: torch.dtype, size: int = 8192) -> float:
    """FLOP/s of large matrix products: the best of a few."""
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    seconds(lambda: a @ b, 3)
    return 2 * size**3 / min(seconds(lambda: a @ b, 10) for _ in range(5))


def stepper(precision: str, ours: bool, batch: int) -> tuple[Callable[[], None], int]:
    """A training step, and its FLOPs."""
    torch.manual_seed(0)
    model = ScanAsSpace(16, 4, growth=128, first=256).cuda()
    scan = torch.randn(batch, 64, 64, 16, 16, device="cuda")
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    reduction = Reducer().attach(model, World.single("cuda")) if ours else None

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(scan).float().square().mean()
        loss.backward()
        if reduction is not None:
            reduction.finish()
        optimiser.step()

    with Operations() as counted:
        step()
    return step, counted.exact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--batch", type=int, default=16, help="scans of 64 x 64 positions per step")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu: torch sees no CUDA device here: nothing measured")
        return
    # Else convolutions would go by TF32 in fp32, and matrix products not.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found: dict[str, Any] = {}
    for precision, dtype in FORMATS.items():
        most = peak(dtype)
        made = {
            name: stepper(precision, ours, arguments.batch) for name, ours in (("torch", False), ("exafield", True))
        }
        times: dict[str, list[float]] = {name: [] for name in made}
        for step, _ in made.values():
            seconds(step, 5)
        for _ in range(BLOCKS):
            for name, (step, _) in made.items():
                times[name].append(seconds(step, STEPS))
        print(f"{precision}: measured matrix peak {most / 1e12:.1f} TFLOP/s")
        found[precision] = {"peak": most}
        for name, (_, flops) in made.items():
            rate = flops / statistics.median(times[name])
            ratios = [a / b for a, b in zip(times[name], times["torch"], strict=True)]
            found[precision][name] = {"FLOP/s": rate, "share": rate / most, "seconds": times[name], "ratios": ratios}
            print(
                f"  {name:9s} {rate / 1e12:7.1f} TFLOP/s, {rate / most:.1%} of it; time against torch "
                f"{statistics.median(ratios):.3f} [{min(ratios):.3f} .. {max(ratios):.3f}]"
            )
    if arguments.json:
        about = {"benchmark": "gpu", "format": 1, "torch": torch.__version__, "device": torch.cuda.get_device_name()}
        arguments.json.write_text(json.dumps({**about, "batch": arguments.batch, "found": found}, indent=1))


if __name__ == "__main__":
    main()
