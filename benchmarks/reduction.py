"""What reduction costs: this package's against torch DDP, on the same models, in turns.

    python benchmarks/reduction.py [--quick] [--blocks N] [--turns N] [--workload NAME] [--json FILE]

Two gloo processes of one thread each train copies of one model, one copy per method. The methods take turns step by
step, in an order that rotates; so many turns make a block, and a method's time in it is the median of its steps. So
what else the machine does meets all methods alike. DDP's setting (bucket size, gradients as bucket views) is chosen by
its median on the odd blocks; ratios to it are taken on the even ones, block by block. Reported: the median ratio of
wall time (the slower rank's) and of CPU time (both ranks', all threads), its spread, and the upper end of a 95 %
bootstrap interval of that median. Below 1 this package is faster.
"""

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from exafield import Reducer, World
from exafield.microscopy.model import scan_as_space
from exafield.reduce import AutoTuned, Bitvector, Central, Flat, Static, Tree

RANKS = 2
WARM_UP = 45  # steps: AutoTuned has decided by then


# ---- workloads ----


class Unit(nn.Module):
    """A layer of a densely connected network (Huang et al., arXiv:1608.06993): four tensors."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1)


class Dense(nn.Module):
    """Blocks of 10, 20 and 39 units, halved in between: 284 tensors."""

    def __init__(self, growth: int = 12) -> None:
        super().__init__()
        channels, layers = 48, list[nn.Module]()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        for block, units in enumerate((10, 20, 39)):
            for _ in range(units):
                layers.append(Unit(channels, growth))
                channels += growth
            if block < 2:
                layers += [nn.Conv2d(channels, channels // 3, 1), nn.AvgPool2d(2)]
                channels //= 3
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.first(x)).mean((2, 3)))


class Mixture(nn.Module):
    """Twelve branches, of which each rank computes eight, in an order of its own in every step."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(width, width), nn.GELU()))) for _ in range(12)
        )

    def forward(self, x: Tensor, chosen: list[int]) -> Tensor:
        for number in chosen:
            x = x + self.branches[number](x)
        return x


Step = Callable[[nn.Module, int, int], Tensor]


def fc_densenet() -> tuple[nn.Module, Step]:
    x = torch.randn(2, 16, 16, 16, 16)
    return scan_as_space(growth=32), lambda model, rank, step: model(x).square().mean()


def dense284() -> tuple[nn.Module, Step]:
    x = torch.randn(2, 3, 32, 32)
    return Dense(), lambda model, rank, step: model(x).square().mean()


def mixture() -> tuple[nn.Module, Step]:
    x = torch.randn(256, 192)

    def loss(model: nn.Module, rank: int, step: int) -> Tensor:
        order = torch.randperm(12, generator=torch.Generator().manual_seed(2 * step + rank))
        return model(x, order[:8].tolist()).square().mean()

    return Mixture(), loss


WORKLOADS: dict[str, Callable[[], tuple[nn.Module, Step]]] = {
    "FC-DenseNet": fc_densenet,
    "284 tensors": dense284,
    "mixture": mixture,
}

OURS: dict[str, Callable[[], Reducer]] = {
    "default": Reducer,
    "tuned": lambda: Reducer(grouping=AutoTuned()),
    "static": lambda: Reducer(control=Static()),
    "bitvector": lambda: Reducer(control=Bitvector()),
    "central": lambda: Reducer(control=Central()),
    "tree": lambda: Reducer(control=Tree()),
    # As between nodes, where no memory is shared.
    "default, gloo": lambda: Reducer(collective=Flat(shared=False)),
    "bitvector, gloo": lambda: Reducer(control=Bitvector(), collective=Flat(shared=False)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "DDP 25 MB": {},
    "DDP 4 MB": {"bucket_cap_mb": 4},
    "DDP 1 MB": {"bucket_cap_mb": 1},
    "DDP 25 MB views": {"gradient_as_bucket_view": True},
    "DDP 4 MB views": {"bucket_cap_mb": 4, "gradient_as_bucket_view": True},
}


# ---- one rank ----


def prepared(workload: str, method: str, world: World) -> tuple[Callable[[int], None], Any]:
    """A step of a method on a model of its own, and its reduction if it is ours."""
    torch.manual_seed(0)
    model, loss = WORKLOADS[workload]()
    optimiser = torch.optim.SGD(model.parameters(), 1e-4, fused=True)
    finish: Callable[[], object] = lambda: None  # noqa: E731
    forward, reduction = model, None
    if method in SETTINGS:
        unused = {"find_unused_parameters": True} if workload == "mixture" else {}
        forward = nn.parallel.DistributedDataParallel(model, **SETTINGS[method], **unused)
    elif method in OURS:
        reduction = OURS[method]().attach(model, world, name=method)
        finish = reduction.finish
    elif method == "no communication":
        reduction = Reducer().attach(model, World.single())
        finish = reduction.finish

    def step(number: int) -> None:
        optimiser.zero_grad()
        loss(forward, world.rank, number).backward()
        finish()
        optimiser.step()

    return step, reduction


def measured(workload: str, blocks: int, turns: int) -> dict[str, Any]:
    """On every rank: the times of each method in each block [s per step], and what was decided."""
    with World.from_env(timeout=120) as world:
        place = f"file://{os.environ['MEETING']}"
        dist.init_process_group("gloo", init_method=place, rank=world.rank, world_size=world.size)
        methods = ["alone", "no communication", *OURS, *SETTINGS]
        made = {method: prepared(workload, method, world) for method in methods}
        for method, (step, _) in made.items():
            for number in range(WARM_UP if method in ("default", "default, gloo", "tuned") else 4):
                step(number)
        wall = torch.zeros(blocks, turns, len(methods), dtype=torch.float64)
        cpu = torch.zeros_like(wall)
        for number in range(blocks * turns):
            row = divmod(number, turns)
            order = [*range(number % len(methods), len(methods)), *range(number % len(methods))]
            for column in order if number % 2 else order[::-1]:
                step = made[methods[column]][0]
                world.barrier()
                began, used = time.perf_counter(), time.process_time()
                step(number)
                cpu[*row, column] = time.process_time() - used
                wall[*row, column] = time.perf_counter() - began
        world.all_reduce(wall, "max")
        world.all_reduce(cpu)
        wall, cpu = wall.quantile(0.5, 1), cpu.quantile(0.5, 1)
        model = WORKLOADS[workload]()[0]
        result = {
            "tensors": sum(1 for _ in model.parameters()),
            "MB": sum(p.numel() * 4 for p in model.parameters()) / 1e6,
            "methods": methods,
            "wall": wall.tolist(),
            "cpu": (cpu / world.size).tolist(),
            "decided": {m: r.decisions for m, (_, r) in made.items() if r is not None and r.decisions},
            "groups": {m: r.stats.groups for m, (_, r) in made.items() if r is not None},
        }
        dist.destroy_process_group()
        return result


# ---- both ranks, and what they say ----


def together(workload: str, blocks: int, turns: int) -> dict[str, Any]:
    """Runs the ranks and returns rank 0's result."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        for rank in range(RANKS):
            env = {"GLOO_SOCKET_IFNAME": "lo"} | os.environ
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "OMP_NUM_THREADS": "1"}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "MEETING": f"{folder}/meeting"}
            command = [sys.executable, __file__, "--rank", workload, str(blocks), str(turns)]
            out = subprocess.DEVNULL if rank else subprocess.PIPE
            ranks.append(subprocess.Popen(command, env=env, stdout=out, text=True))
        try:
            text = ranks[0].communicate(timeout=3600)[0]
        finally:
            for process in ranks:
                process.kill()
                process.wait()
    return dict(json.loads(next(line[7:] for line in text.splitlines() if line.startswith("RESULT "))))


def bound(ratios: np.ndarray[Any, Any]) -> float:
    """Upper end of the 95 % bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(ratios, (4000, len(ratios)))
    return float(np.quantile(np.median(draws, 1), 0.975))


def compared(result: dict[str, Any]) -> dict[str, Any]:
    """Ratios to the DDP setting that was best on the odd blocks, taken on the even ones."""
    methods, table = result["methods"], {}
    for kind in ("wall", "cpu"):
        times = np.array(result[kind])
        odd = {m: float(np.median(times[1::2, methods.index(m)])) for m in SETTINGS}
        best = min(odd, key=odd.__getitem__)
        even = times[::2]
        rows = {}
        for method in methods:
            ratios = even[:, methods.index(method)] / even[:, methods.index(best)]
            rows[method] = {
                "ms": float(np.median(even[:, methods.index(method)]) * 1e3),
                "median": float(np.median(ratios)),
                "min": float(ratios.min()),
                "max": float(ratios.max()),
                "upper": bound(ratios),
            }
        table[kind] = {"against": best, "methods": rows}
    times = np.array(result["cpu"])
    extra = times[:, methods.index("no communication")] - times[:, methods.index("alone")]
    table["us per tensor"] = float(np.median(extra) * 1e6 / result["tensors"])
    return table


def show(workload: str, result: dict[str, Any], table: dict[str, Any]) -> None:
    print(f"\n{workload}: {result['tensors']} tensors, {result['MB']:.1f} MB; ours groups them into {result['groups']}")
    for kind in ("wall", "cpu"):
        print(f"  {kind} time against {table[kind]['against']} (chosen on the odd blocks)")
        for method, row in table[kind]["methods"].items():
            print(
                f"    {method:18s} {row['ms']:8.2f} ms   ratio {row['median']:.3f}  "
                f"[{row['min']:.3f} .. {row['max']:.3f}]  95 % bound {row['upper']:.3f}"
            )
    print(f"  hooks, packing and unpacking: {table['us per tensor']:.2f} us of CPU per tensor and step")
    for decisions in result["decided"].values():
        for text in decisions:
            print(f"  decided: {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--quick", action="store_true", help="few blocks: to see that it works")
    parser.add_argument("--blocks", type=int, default=40, help="ratios are taken on every other one")
    parser.add_argument("--turns", type=int, default=5, help="of all methods in a block")
    parser.add_argument("--workload", choices=list(WORKLOADS), help="this one only")
    parser.add_argument("--rank", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        torch.set_num_threads(1)
        workload, blocks, turns = arguments.rank
        result = measured(workload, int(blocks), int(turns))
        print("RESULT " + json.dumps(result), flush=True)
        return
    blocks, turns = (4, 3) if arguments.quick else (arguments.blocks, arguments.turns)
    found = {}
    for workload in [arguments.workload] if arguments.workload else WORKLOADS:
        result = together(workload, blocks, turns)
        table = compared(result)
        show(workload, result, table)
        found[workload] = {**table, "raw": result}
    if arguments.json:
        about = {"benchmark": "reduction", "format": 1, "torch": torch.__version__, "machine": platform.processor()}
        about |= {"ranks": RANKS, "blocks": blocks, "turns": turns, "cores": os.cpu_count()}
        arguments.json.write_text(json.dumps({**about, "workloads": found}, indent=1))


if __name__ == "__main__":
    main()
