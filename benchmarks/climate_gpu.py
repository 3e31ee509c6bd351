"""How much of a GPU's measured matrix peak the climate networks reach: as published, 768 x 1152, bf16, one GPU.

    python benchmarks/climate_gpu.py [--batch 4] [--rounds 8] [--seconds 210] [--json FILE] [--quick]

First, small networks on the device against the CPU, both in double precision: it ends with an error if they differ.
Then training steps (forward, weighted cross-entropy, backward, LARC) under bf16 autocast with channels last: eager and
compiled, each with plain torch and with this package's reduction on one rank, in turns within each round. Last, the
Trainer with the compiled network on random samples from memory, read ahead. The peak is that of large matrix products
in bf16, measured here. FLOPs are counted as executed by an eager step. Without a GPU it says so and ends; `--quick`
does everything with tiny networks on whatever device there is, to see that it works, and its rates say nothing.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exafield import Field, Player, Reducer, Trainer, World
from exafield.climate.loss import CrossEntropy
from exafield.climate.model import DeepLabV3Plus, Tiramisu
from exafield.flops import Operations
from exafield.loader import Loader
from exafield.optim import LARC
from exafield.report import Report
from exafield.source import Sampler

CHANNELS, CLASSES, STEPS, WARM = 16, 3, 3, 5
NETWORKS: dict[str, Callable[..., nn.Module]] = {"Tiramisu": Tiramisu, "DeepLabv3+": DeepLabV3Plus}
SMALL = {"Tiramisu": {"width": 0.25, "dropout": 0.0}, "DeepLabv3+": {"width": 0.25}}
QUICK = {"Tiramisu": {"width": 0.25, "layers": (1, 1)}, "DeepLabv3+": {"width": 0.125, "depth": 26}}
# Norm of the difference over the norm, GPU against CPU in double precision.
TOLERANCE = 1e-10
LOSS = CrossEntropy()


def seconds(act: Callable[[], object], times: int) -> float:
    """Per call, with the device idle before and after."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(times):
        act()
    wait()
    return (time.perf_counter() - began) / times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median, largest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def told(values: Sequence[float], form: str) -> str:
    """The same to print."""
    s = spread(values)
    return f"{s['median']:{form}} [{s['min']:{form}} .. {s['max']:{form}}]"


def apply(model: nn.Module, fields: Tensor) -> Tensor:
    """Compiled once, it serves all models of a class: weights are arguments."""
    logits: Tensor = model(fields)
    return logits


# ---- is it right? ----


def difference(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm, of all numbers together."""
    a, b = (torch.cat([t.detach().cpu().double().flatten() for t in ts]) for ts in (found, truth))
    return float((a - b).norm() / b.norm())


def passed(
    model: nn.Module, fields: Tensor, slope: Tensor, where: torch.device, dtype: torch.dtype, narrow: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Logits, and gradients of weights for a `slope` of the logits."""
    own, x = copy.deepcopy(model).to(where, dtype), fields.to(where, dtype)
    if dtype != torch.float64:
        own, x = own.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    with torch.autocast(where.type, torch.bfloat16, enabled=narrow):
        logits = own(x)
    logits.backward(slope.to(where, logits.dtype))
    return [logits], [p.grad for p in own.parameters() if p.grad is not None]


def agreement(device: torch.device, rows: int, columns: int) -> dict[str, dict[str, dict[str, float]]]:
    """Logits and gradients on the device against those of the CPU in double precision."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, make in NETWORKS.items():
        torch.manual_seed(1)
        model = make(CHANNELS, CLASSES, **SMALL[name]).double()
        fields = torch.randn(2, CHANNELS, rows, columns, dtype=torch.float64)
        slope = torch.randn(2, CLASSES, rows, columns, dtype=torch.float64)

        logits, gradients = passed(model, fields, slope, torch.device("cpu"), torch.float64, False)
        found[name] = {}
        for form, dtype, narrow in (
            ("fp64", torch.float64, False),
            ("fp32", torch.float32, False),
            ("bf16", torch.float32, True),
        ):
            a, b = passed(model, fields, slope, device, dtype, narrow)
            if len(b) != len(gradients):
                raise RuntimeError(f"{name}: gradients of {len(b)} tensors on {device}, of {len(gradients)} on the CPU")
            found[name][form] = {"logits": difference(a, logits), "gradients": difference(b, gradients)}
            errors = ", ".join(f"{what} {error:.1e}" for what, error in found[name][form].items())
            print(f"{name:10s} {form} on {device.type} against fp64 on the CPU, relative: {errors}", flush=True)
    return found


# ---- how fast are steps? ----


class Case:
    """Training steps of one network on one batch that lies on the device.

    Attributes:
        first, last: losses of the first and of the last step.
        times: of steps in each round [s].
        memory: largest amount that tensors took [GiB]; weights and moments of the other cases are among them.
    """

    def __init__(
        self, model: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor], batch: Mapping[str, Tensor], ours: bool
    ) -> None:
        self.model, self.forward, self.batch = model, forward, batch
        device = batch["fields"].device
        self.optimiser = LARC().build(model.parameters())
        self.reduction = Reducer().attach(model, World.single(device)) if ours else None
        self.times: list[float] = []
        self.memory = 0.0
        self.first = self.last = torch.zeros(())
        self.device = device

    def step(self) -> None:
        """One training step."""
        self.optimiser.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = LOSS(self.forward(self.model, self.batch["fields"]), self.batch["labels"])
        loss.backward()
        if self.reduction is not None:
            self.reduction.finish()
        self.optimiser.step()
        self.last = loss.detach()

    def warm(self) -> float:
        """Steps that do not count; how long the first took [s], compilation included."""
        took = seconds(self.step, 1)
        self.first = self.last
        seconds(self.step, WARM)
        return took


def most_memory(device: torch.device) -> float:
    """Largest amount that tensors took since the last call [GiB]."""
    if device.type != "cuda":
        return 0.0
    most = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return most


def steps(name: str, origin: nn.Module, compiled: Any, batch: Mapping[str, Tensor], settings: "Settings") -> Any:
    """Rates of all ways to make a step."""
    forwards = {"eager": apply, "compiled": compiled}
    ways = {(form, ours): forward for form, forward in forwards.items() for ours in (False, True)}
    cases = {(form, ours): Case(copy.deepcopy(origin), way, batch, ours) for (form, ours), way in ways.items()}
    with Operations() as counted:
        Case(copy.deepcopy(origin), apply, batch, False).step()
    operations, samples = counted.exact, len(batch["labels"])
    prepared: dict[tuple[str, bool], float] = {}
    for key, case in cases.items():
        prepared[key] = case.warm()
        print(
            f"{name:10s} {key[0]}, first step of {'exafield' if key[1] else 'torch'}: {prepared[key]:.1f} s", flush=True
        )
    most_memory(settings.device)
    for _ in range(settings.rounds):
        for case in cases.values():
            case.times.append(seconds(case.step, STEPS))
            case.memory = max(case.memory, most_memory(settings.device))
        if settings.left() < 0:
            break
    found: dict[str, Any] = {"operations": operations, "samples": samples}
    print(f"{name}: {operations / samples / 1e12:.3f} TFLOP per sample, {samples} per step; median [min .. max]")
    for (form, ours), case in cases.items():
        rates = [samples / t for t in case.times]
        shares = [operations / t / settings.peak for t in case.times]
        ratios = [a / b for a, b in zip(case.times, cases[form, False].times, strict=True)]
        found[f"{form}, {'exafield' if ours else 'torch'}"] = {
            "samples/s": spread(rates),
            "share": spread(shares),
            "seconds": case.times,
            "time against torch": spread(ratios),
            "first step [s]": prepared[form, ours],
            "memory [GiB]": case.memory,
            "losses": [float(case.first), float(case.last)],
        }
        print(
            f"  {form:8s} {'exafield' if ours else 'torch':8s} {told(rates, '.2f')} samples/s, share of the peak "
            f"{told(shares, '.3f')}, time against torch {told(ratios, '.3f')}, {case.memory:.1f} GiB, "
            f"loss {float(case.first):.4f} -> {float(case.last):.4f}",
            flush=True,
        )
        if case.reduction is not None:
            case.reduction.close()
    return found


# ---- and with data on its way? ----


class Samples:
    """Random samples from memory; it takes as long to make a batch of them as to copy it."""

    fields: Mapping[str, Field] = {
        "fields": Field("fields", ("channel", "lat", "lon"), "1"),
        "labels": Field("labels", ("lat", "lon"), "1"),
    }

    def __init__(self, rows: int, columns: int, dtype: torch.dtype, kept: int = 8) -> None:
        generator = torch.Generator().manual_seed(2)
        self.values = torch.randn(kept, CHANNELS, rows, columns, generator=generator).to(dtype)
        self.labels = torch.randint(CLASSES, (kept, rows, columns), generator=generator, dtype=torch.uint8)

    def __len__(self) -> int:
        return 64

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        """Copies."""
        at = torch.tensor(indices) % len(self.values)
        return {"fields": self.values[at], "labels": self.labels[at]}


class Masks:
    """One network that learns noise: of a problem, what a step needs."""

    name = "masks of noise"

    def __init__(self, source: Samples, model: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        self.source, self.model, self.forward = source, model, forward

    def players(self, world: World) -> Sequence[Player]:
        """The only one."""
        return [Player("network", self.model, self.loss, LARC())]

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Of a batch."""
        fields = batch["fields"].to(torch.float32, memory_format=torch.channels_last)
        result: Tensor = LOSS(self.forward(self.model, fields), batch["labels"])
        return result


def training(
    name: str, origin: nn.Module, compiled: Any, dtype: torch.dtype, alone: float, settings: "Settings"
) -> dict[str, float]:
    """The Trainer, whose step takes `alone` [s] where data lies on the device."""
    source, batch = Samples(settings.rows, settings.columns, dtype), settings.batch
    loader = Loader(source, Sampler(len(source), batch), device=settings.device, prefetch=0)
    reading = min(seconds(loader.next, 2) for _ in range(2))
    item = source.batch(range(batch), 0)["fields"]
    item = item.pin_memory() if settings.device.type == "cuda" else item
    moving = min(seconds(lambda: item.to(settings.device, non_blocking=True), 2) for _ in range(3))
    trainer = Trainer(
        Masks(source, copy.deepcopy(origin), compiled),
        World.single(settings.device),
        batch_size=batch,
        precision="bf16",
        prefetch=2,
        report=Report(show=False),
    )
    for _ in range(WARM):
        trainer.step()
    trainer.metrics()
    for _ in range(4 * STEPS):
        trainer.step()
    values = trainer.metrics()
    trainer.close()
    rate, form = values["samples/s"], str(dtype).removeprefix("torch.")
    print(
        f"{name:10s} Trainer, {form} samples: {rate:.2f} samples/s, {rate * alone / batch:.3f} of the step's; waits "
        f"for data {values['data wait']:.1%}; per batch: read and pin {reading * 1e3:.1f} ms, to the device "
        f"{moving * 1e3:.2f} ms, step {alone * 1e3:.1f} ms",
        flush=True,
    )
    share = {"share": values["FLOP/s"] / settings.peak, "against step alone": rate * alone / batch}
    return {**values, **share, "read [s]": reading, "to device [s]": moving, "step alone [s]": alone}


class Settings:
    """What is measured, on what."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.quick: bool = arguments.quick
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.rows, self.columns = (32, 64) if self.quick else (768, 1152)
        self.batch = 2 if self.quick else arguments.batch
        self.rounds = 2 if self.quick else arguments.rounds
        self.peak = 0.0
        self._end = time.monotonic() + arguments.seconds

    def left(self) -> float:
        """Time [s] until no further part should begin."""
        return self._end - time.monotonic()

    def about(self) -> dict[str, Any]:
        """What a reader of the numbers must know."""
        cuda = self.device.type == "cuda"
        return {
            "benchmark": "climate_gpu",
            "format": 1,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "precision": "bf16 autocast, fp32 without TF32, channels last, cudnn.benchmark",
            "quick": self.quick,
            "batch": self.batch,
            "rows": self.rows,
            "columns": self.columns,
        }


def multiplying(device: torch.device, edge: int) -> float:
    """Rate of large matrix products in bf16 [FLOP/s]: the best of a few, once the device runs at its full clock."""
    a, b = (torch.randn(edge, edge, dtype=torch.bfloat16, device=device) for _ in range(2))
    seconds(lambda: a @ b, 200)
    return 2 * edge**3 / min(seconds(lambda: a @ b, 20) for _ in range(5))


def copying(device: torch.device, size: int) -> float:
    """Rate of a copy on the device, read and written [B/s]."""
    a = torch.randint(255, (size,), dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * size / min(seconds(lambda: b.copy_(a), 5) for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="samples per step")
    parser.add_argument("--rounds", type=int, default=8, help="at most")
    parser.add_argument("--seconds", type=float, default=210.0, help="no network and no round begins later")
    parser.add_argument("--json", type=Path, help="write all numbers there, after each part")
    parser.add_argument("--quick", action="store_true", help="tiny: to see that it works, also without a GPU")
    arguments = parser.parse_args()
    settings = Settings(arguments)
    if settings.device.type != "cuda" and not arguments.quick:
        print("climate_gpu: torch sees no CUDA device here: nothing measured")
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found: dict[str, Any] = {"agreement": agreement(settings.device, *((32, 64) if settings.quick else (96, 144)))}
    torch.backends.cudnn.benchmark = True
    settings.peak = multiplying(settings.device, edge := 256 if settings.quick else 8192)
    found |= {"peak": settings.peak, "copy": copying(settings.device, 1 << (20 if settings.quick else 31))}
    print(f"{settings.about()['device']}: bf16 matrix products {settings.peak / 1e12:.1f} TFLOP/s", end="")
    print(f", copies {found['copy'] / 1e12:.2f} TB/s read and written", flush=True)
    for name, make in NETWORKS.items():
        if settings.left() < 0:
            print(f"{name}: no time left")
            continue
        torch.manual_seed(0)
        origin = make(CHANNELS, CLASSES, **(QUICK[name] if settings.quick else {}))
        origin = origin.train().to(settings.device, memory_format=torch.channels_last)
        compiled = torch.compile(apply)
        shape = (settings.batch, CHANNELS, settings.rows, settings.columns)
        batch = {
            "fields": torch.randn(shape, device=settings.device).contiguous(memory_format=torch.channels_last),
            "labels": torch.randint(CLASSES, (shape[0], *shape[2:]), device=settings.device, dtype=torch.uint8),
        }
        found[name] = {"steps": steps(name, origin, compiled, batch, settings)}
        save(arguments.json, settings, found)
        alone = statistics.median(found[name]["steps"]["compiled, exafield"]["seconds"])
        for dtype in (torch.float32, torch.bfloat16):
            found[name][f"trainer, {dtype}"] = training(name, origin, compiled, dtype, alone, settings)
            save(arguments.json, settings, found)
    found["peak at the end"] = multiplying(settings.device, edge)
    print(f"bf16 matrix products at the end {found['peak at the end'] / 1e12:.1f} TFLOP/s")
    save(arguments.json, settings, found)
    worst = max(max(forms["fp64"].values()) for forms in found["agreement"].values())
    if not worst <= TOLERANCE:
        raise SystemExit(f"climate_gpu: in double precision the device differs from the CPU by {worst:.1e}, relative")


def save(path: Path | None, settings: Settings, found: Mapping[str, Any]) -> None:
    """What there is so far."""
    if path is not None:
        path.write_text(json.dumps({**settings.about(), "found": found}, indent=1))


if __name__ == "__main__":
    main()
