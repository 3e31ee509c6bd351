"""Who gets gradients right: this package's reduction and torch DDP, case by case, against means taken by hand.

    python benchmarks/exactness.py [--json FILE]

Two gloo processes train a small model for a few steps. For each case and method: the worst relative error of any
gradient in any step against the float64 mean of the ranks' local gradients, or what was raised.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from exafield import Reducer, World
from exafield.reduce import Bitvector, Static

STEPS = 3
METHODS = ("exafield static", "exafield bitvector", "DDP", "DDP find_unused", "DDP static_graph")


class Heads(nn.Module):
    """A body with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.left, self.right = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor, heads: str = "lr") -> Tensor:
        y = self.body(x)
        return torch.stack([(self.left if h == "l" else self.right)(y) for h in heads]).sum(0)


def data(rank: int, step: int) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(97 * step + rank))


def plain(model: nn.Module, rank: int, step: int) -> None:
    model(data(rank, step)).square().mean().backward()


def critic(model: nn.Module, rank: int, step: int, penalty_only: bool = False) -> None:
    real, fake = data(rank, step), data(rank, step + 50)
    mid = (0.5 * (real + fake)).requires_grad_()
    (slope,) = torch.autograd.grad(model(mid).sum(), mid, create_graph=True)
    loss = 10 * (slope.norm(dim=1) - 1).square().mean()
    if not penalty_only:
        loss = loss + model(fake).mean() - model(real).mean()
    loss.backward()


def penalty_only(model: nn.Module, rank: int, step: int) -> None:
    critic(model, rank, step, penalty_only=True)


def heads(model: nn.Module, rank: int, step: int) -> None:
    model(data(rank, step), "lr"[(rank + step) % 2]).square().mean().backward()


def unused(model: nn.Module, rank: int, step: int) -> None:
    model(data(rank, step), "l").square().mean().backward()


def twice(model: nn.Module, rank: int, step: int) -> None:
    plain(model, rank, step)
    plain(model, rank, step + 50)


def uneven(model: nn.Module, rank: int, step: int) -> None:
    plain(model, rank, step)
    if rank == step % 2:
        plain(model, rank, step + 50)


def forwards(model: nn.Module, rank: int, step: int) -> None:
    (model(data(rank, step)).square().mean() * model(data(rank, step + 50)).square().mean()).backward()


CASES: dict[str, Callable[[nn.Module, int, int], None]] = {
    "plain regression": plain,
    "WGAN-GP critic (create_graph)": critic,
    "gradient penalty only": penalty_only,
    "different heads on different ranks": heads,
    "a head never used": unused,
    "two backwards": twice,
    "two backwards on one rank only": uneven,
    "two forwards, one backward": forwards,
}


def verdict(case: str, method: str) -> str:
    """On one of two ranks: trains a few steps and says how wrong the worst gradient was."""
    warnings.simplefilter("ignore")
    rank = int(os.environ["RANK"])
    act = CASES[case]
    torch.manual_seed(0)
    model = Heads()
    alone = Heads()
    alone.load_state_dict(model.state_dict())
    with World.from_env(timeout=20) as world:
        wrapped: nn.Module = model
        finish: Callable[[], None] | None = None
        if method.startswith("exafield"):
            control = Bitvector() if "bitvector" in method else Static()
            finish = Reducer(control=control).attach(model, world).finish
        else:
            dist.init_process_group("gloo", init_method=f"file://{os.environ['MEETING']}", rank=rank, world_size=2)
            wrapped = nn.parallel.DistributedDataParallel(
                model, find_unused_parameters="unused" in method, static_graph="static" in method
            )
        worst, raised = 0.0, ""
        for step in range(STEPS):
            alone.zero_grad()
            model.zero_grad()
            act(alone, rank, step)
            said = ""
            try:
                act(wrapped, rank, step)
                if finish is not None:
                    finish()
            except RuntimeError as error:
                said = str(error).splitlines()[0][:48]
            heard = [text for text in world.all_gather_objects(said) if text]
            if heard:
                raised = f"raises in step {step} ({heard[0]}...)"
                break
            for ours, own in zip(model.parameters(), alone.parameters(), strict=True):
                mean = torch.zeros(ours.shape, dtype=torch.float64) if own.grad is None else own.grad.double()
                world.all_reduce(mean)
                mean /= 2
                got = torch.zeros_like(mean) if ours.grad is None else ours.grad.double()
                error = ((got - mean).norm() / mean.norm().clamp(min=1e-8)).reshape(1)
                world.all_reduce(error, "max")
                worst = max(worst, float(error))
        if dist.is_initialized():
            dist.destroy_process_group()
    shown = f"{'exact' if worst <= 1e-6 else 'WRONG, silently'} ({worst:.0e})"
    if raised:
        return raised if "step 0" in raised else f"{shown}, then {raised}"
    return shown


def pair(case: str, method: str) -> str:
    """Runs both ranks and returns rank 0's verdict."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        ranks: list[Any] = []
        for rank in range(2):
            env = os.environ | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "EXAFIELD_SPAWNED": "1",
                "MEETING": f"{folder}/store",
                "OMP_NUM_THREADS": "1",
            }
            env.setdefault("GLOO_SOCKET_IFNAME", "lo")
            command = [sys.executable, __file__, "--rank", case, method]
            ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        try:
            texts = [process.communicate(timeout=60) for process in ranks]
        except subprocess.TimeoutExpired:
            return "hangs"
        finally:
            for process in ranks:
                if process.poll() is None:
                    process.kill()
                    process.wait()
    found = [line[8:] for line in texts[0][0].splitlines() if line.startswith("VERDICT ")]
    return found[0] if found else f"ends with exit code {ranks[0].returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the table there")
    parser.add_argument("--rank", nargs=2, metavar=("CASE", "METHOD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        print("VERDICT", verdict(*arguments.rank), flush=True)
        return
    table: dict[str, dict[str, str]] = {}
    for case in CASES:
        print(case, flush=True)
        table[case] = {}
        for method in METHODS:
            table[case][method] = pair(case, method)
            print(f"    {method:20s} {table[case][method]}", flush=True)
    if arguments.json:
        about = {"benchmark": "exactness", "format": 1, "torch": torch.__version__, "steps": STEPS, "ranks": 2}
        arguments.json.write_text(json.dumps({**about, "cases": table}, indent=1))


if __name__ == "__main__":
    main()
