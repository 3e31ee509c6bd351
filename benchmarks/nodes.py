"""Reduction between nodes: bytes sent, and step times beside torch DDP, on a slow network made for the purpose.

    sudo python benchmarks/nodes.py [--nodes 2 4] [--ranks 2] [--json FILE] [--quick]

Two, then four "nodes" are network namespaces joined by a bridge, 200 Mbit/s each way (tbf), with two gloo ranks each.
They are made and removed here; nothing outside them is touched, and no address is given outside them. Without root or
the commands `ip` and `tc` (iproute2) the benchmark says so and ends.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from exafield import Reducer, World
from exafield.engine.signals import deferred
from exafield.message import Phase, Topology
from exafield.reduce import Flat, Grouped, Hierarchical, Static
from exafield.reduce.collective import Collective

RATE = 200e6  # of each node's link, each way [bit/s]
INTERFACE = "veth0"
PORT = 29500  # inside a namespace of our own, where nobody else listens
MIB = 2**20
WIDTH, DEPTH, BATCH = 512, 6, 32
GROUPS = 6

COLLECTIVES: dict[str, Collective] = {
    "Flat": Flat(),
    "Flat bf16": Flat("bf16"),
    "Hierarchical": Hierarchical(),
    "Hierarchical leaders=2": Hierarchical(2),
    "Hierarchical bf16": Hierarchical(1, "bf16"),
}
OURS: dict[str, Reducer] = {
    name: Reducer(control=Static(), grouping=Grouped(GROUPS), collective=collective, lag=lag)
    for name, collective, lag in [
        ("Flat", Flat(), 0),
        ("Hierarchical", Hierarchical(), 0),
        ("Hierarchical bf16", Hierarchical(1, "bf16"), 0),
        ("Hierarchical lag 1", Hierarchical(), 1),
        ("Hierarchical bf16 lag 1", Hierarchical(1, "bf16"), 1),
    ]
}
# Bucket sizes [MB]: torch's default, and one that overlaps more.
DDP: dict[str, tuple[float, bool]] = {
    "DDP": (25, False),
    "DDP 1 MB": (1, False),
    "DDP bf16": (25, True),
    "DDP bf16 1 MB": (1, True),
}
# What is promised: ours, DDP's precision, and how much faster.
TARGETS = [
    ("Hierarchical", False, 1.2),
    ("Hierarchical bf16", True, 1.2),
    ("Hierarchical bf16 lag 1", False, 2.5),
    ("Hierarchical bf16 lag 1", True, 1.3),
]


class Unavailable(RuntimeError):  # noqa: N818  (a state of this machine)
    """This machine cannot make namespaces."""


def shell(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


class Cluster:
    """Nodes joined by a bridge, as network namespaces. A context manager: leaving it removes everything."""

    def __init__(self, nodes: int, ranks: int, script: str = __file__) -> None:
        self.ranks, self.script = ranks, script  # per node, and what they run
        prefix = f"exafield-{os.getpid()}"
        self.nodes = [f"{prefix}-node{number}" for number in range(nodes)]
        self.switch = f"{prefix}-switch"

    def __enter__(self) -> "Cluster":
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def _make(self) -> None:
        for name in (self.switch, *self.nodes):
            shell("ip", "netns", "add", name)
        shell("ip", "-n", self.switch, "link", "add", "bridge", "type", "bridge")
        shell("ip", "-n", self.switch, "link", "set", "bridge", "up")
        for number, node in enumerate(self.nodes):
            port = f"port{number}"
            peer = ("peer", "name", port, "netns", self.switch)
            shell("ip", "link", "add", INTERFACE, "netns", node, "type", "veth", *peer)
            shell("ip", "-n", self.switch, "link", "set", port, "master", "bridge", "up")
            shell("ip", "-n", node, "address", "add", f"{self.address(number)}/24", "dev", INTERFACE)
            shell("ip", "-n", node, "link", "set", INTERFACE, "up")
            shell("ip", "-n", node, "link", "set", "lo", "up")
            # What a node sends, and what it is sent.
            for namespace, device in ((node, INTERFACE), (self.switch, port)):
                shaped = ("root", "tbf", "rate", f"{RATE:.0f}bit", "burst", "128kb", "latency", "50ms")
                shell("tc", "-n", namespace, "qdisc", "add", "dev", device, *shaped)

    def _remove(self) -> None:
        for name in (*self.nodes, self.switch):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    @staticmethod
    def address(number: int) -> str:
        return f"10.77.0.{number + 1}"

    def run(self, *arguments: str) -> Any:
        """Runs the script on every rank of every node; returns what rank 0 reports."""
        size = len(self.nodes) * self.ranks
        ranks: list[subprocess.Popen[str]] = []
        try:
            for rank in range(size):
                node = self.nodes[rank // self.ranks]
                env = os.environ | {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank % self.ranks),
                    "WORLD_SIZE": str(size),
                    "MASTER_ADDR": self.address(0),
                    "MASTER_PORT": str(PORT),
                    "EXAFIELD_SPAWNED": "1",
                    "EXAFIELD_NODE": node,
                    "GLOO_SOCKET_IFNAME": INTERFACE,
                    "OMP_NUM_THREADS": "1",
                }
                command = ["ip", "netns", "exec", node, sys.executable, self.script, "--rank", *arguments]
                with deferred():  # ended between the two, it would leave a rank that nobody knows of
                    ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
            outputs = [process.communicate()[0] for process in ranks]
        finally:
            for process in ranks:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        if any(process.returncode for process in ranks):
            raise RuntimeError(f"ranks ended with exit codes {[process.returncode for process in ranks]}")
        return json.loads(outputs[0].splitlines()[-1])


# ---- on the ranks ----


def sent() -> int:
    """Bytes that have left this node."""
    return int(Path(f"/sys/class/net/{INTERFACE}/statistics/tx_bytes").read_text())


def leaving(phases: tuple[Phase, ...], topology: Topology, node: int) -> float:
    """Bytes that should leave a node."""
    here = set(topology.nodes[node])
    return sum(p.repeat * m.nbytes for p in phases for m in p.messages if m.src in here and m.dst not in here)


def measured_bytes(world: World, nbytes: int, repeats: int) -> dict[str, dict[str, float]]:
    """For each collective: the bytes each node sent for one buffer, over what its schedule says; and the time."""
    table = {}
    for name, collective in COLLECTIVES.items():
        links = collective.connect(world, world.device)
        buffer = torch.zeros(nbytes // 4)
        links.run(buffer, buffer.numel()).wait()
        times = []
        world.barrier()
        before = sent()
        for _ in range(repeats):
            world.barrier()
            begun = time.perf_counter()
            links.run(buffer, buffer.numel()).wait()
            times.append(time.perf_counter() - begun)
        world.barrier()
        mine = (sent() - before) / repeats
        theory = leaving(collective.schedule(world.topology, nbytes), world.topology, world.node)
        shares = [float(x) for x in world.all_gather_objects(mine / theory)]
        table[name] = {
            "theory_MiB": theory / MIB,
            "least": min(shares),
            "most": max(shares),
            "seconds": max(world.all_gather_objects(statistics.median(times))),
        }
        links.close()
    return table


def network() -> nn.Module:
    """Much to send and little to compute: the same on all ranks."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers)


def stepper(model: nn.Module, x: Tensor, finish: Callable[[], bool]) -> Callable[[], None]:
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        model(x).square().mean().backward()
        if finish():
            optimiser.step()

    return step


def rounded(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """torch's own bf16 hook, which DDP takes by its own name with NCCL only; gloo can sum bf16 as well."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

    return bf16_compress_hook(dist.group.WORLD, bucket)


def measured_steps(world: World, blocks: int, steps: int) -> dict[str, list[float]]:
    """For each method the seconds per step of each block; the slowest rank's count."""
    address = f"tcp://{os.environ['MASTER_ADDR']}:{PORT + 1}"
    dist.init_process_group("gloo", init_method=address, rank=world.rank, world_size=world.size)
    x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(world.rank))
    act: dict[str, Callable[[], None]] = {}
    end: dict[str, Callable[[], object]] = {}
    for name, reducer in OURS.items():
        model = network()
        reduction = reducer.attach(model, world, name=name)
        act[name], end[name] = stepper(model, x, reduction.finish), reduction.lagged
    for name, (cap, bf16) in DDP.items():
        wrapped = nn.parallel.DistributedDataParallel(network(), bucket_cap_mb=cap)
        if bf16:
            wrapped.register_comm_hook(None, rounded)
        act[name], end[name] = stepper(wrapped, x, lambda: True), lambda: None
    model = network()
    act["compute"], end["compute"] = stepper(model, x, lambda: True), lambda: None
    times: dict[str, list[float]] = {name: [] for name in act}
    order = list(act)
    for block in range(-1, blocks):  # the first block is for warming up
        for name in order if block % 2 else reversed(order):
            world.barrier()
            act[name]()
            begun = time.perf_counter()
            for _ in range(steps):
                act[name]()
            took = torch.tensor([(time.perf_counter() - begun) / steps])
            end[name]()
            world.all_reduce(took, "max")
            if block >= 0:
                times[name].append(float(took))
    dist.destroy_process_group()
    return times


def rank(arguments: Sequence[str]) -> None:
    what, *numbers = arguments
    with World.from_env("cpu", timeout=120) as world:
        first, second = map(int, numbers)
        result = measured_bytes(world, first, second) if what == "bytes" else measured_steps(world, first, second)
        if world.rank == 0:
            print(json.dumps(result), flush=True)


# ---- on the machine ----


def spread(ratios: Sequence[float]) -> dict[str, float]:
    return {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}


def compare(times: dict[str, list[float]], topology: Topology) -> list[dict[str, Any]]:
    """Each promise against DDP, whose bucket size is chosen on the odd blocks and compared on the even ones.

    Beside it the ratio of the bytes that leave a node, which is all that could be gained if nothing but the links
    took time.
    """
    rows = []
    ring = leaving(Flat().schedule(topology, 1.0), topology, 0)
    for name, bf16, promised in TARGETS:
        rivals = [rival for rival, (_, its) in DDP.items() if its == bf16]
        best = min(rivals, key=lambda rival: statistics.median(times[rival][1::2]))
        ratios = [theirs / ours for theirs, ours in zip(times[best][::2], times[name][::2], strict=True)]
        ours = leaving(OURS[name].collective.schedule(topology, 1.0), topology, 0)
        row = {"ours": name, "theirs": best, "promised": promised, "faster": spread(ratios)}
        rows.append({**row, "fewer_bytes": ring / ours / (2 if bf16 else 1)})
    return rows


def measured(nodes: int, ranks: int, quick: bool) -> dict[str, Any]:
    print(f"{nodes} nodes of {ranks} ranks, {RATE / 1e6:.0f} Mbit/s each", flush=True)
    with Cluster(nodes, ranks) as cluster:
        table = cluster.run("bytes", str(4 * MIB), "2" if quick else "6")
        for name, row in table.items():
            print(
                f"    {name:24s} {row['theory_MiB']:5.2f} MiB per node in theory, sent {row['least']:.3f} to "
                f"{row['most']:.3f} times that; {1e3 * row['seconds']:4.0f} ms",
                flush=True,
            )
        # With lag, ranks take long and short steps in turn, so that a block needs several.
        times = cluster.run("steps", *(("4", "2") if quick else ("6", "8")))
        for name, blocks in times.items():
            row = spread([1e3 * t for t in blocks])
            print(f"    {name:24s} {row['median']:5.0f} ms a step ({row['min']:.0f} to {row['max']:.0f})", flush=True)
        ratios = compare(times, Topology.regular(nodes * ranks, ranks))
        for row in ratios:
            f = row["faster"]
            print(
                f"    {row['ours']}: {f['median']:.2f} times as fast as {row['theirs']} ({f['min']:.2f} to "
                f"{f['max']:.2f}), with {row['fewer_bytes']:.2f} times fewer bytes; promised {row['promised']}",
                flush=True,
            )
    return {"nodes": nodes, "ranks": ranks, "bytes": table, "seconds": times, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4], help="numbers of nodes")
    parser.add_argument("--ranks", type=int, default=2, help="of each node")
    parser.add_argument("--rank", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        rank(arguments.rank)
        return
    # Ended from outside, it cleans up as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    result: dict[str, Any] = {"benchmark": "nodes", "format": 1, "torch": torch.__version__, "rate": RATE}
    try:
        if os.geteuid() != 0:
            raise Unavailable("needs root, to make network namespaces")
        for command in ("ip", "tc"):
            if shutil.which(command) is None:
                raise Unavailable(f"needs the command {command!r}, of iproute2")
        result["worlds"] = [measured(nodes, arguments.ranks, arguments.quick) for nodes in arguments.nodes]
    except Unavailable as reason:
        print(f"nodes: skipped: {reason}")
        result["skipped"] = str(reason)
    except KeyboardInterrupt:
        sys.exit(130)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
