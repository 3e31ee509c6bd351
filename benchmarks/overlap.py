"""How much of the communication hides behind backward, by grouping: from the same traces that `exafield trace` reads.

    python benchmarks/overlap.py [--quick] [--json FILE]

Two gloo processes train a densely connected network of 284 tensors (that of reduction.py), every grouping in turns.
A reduction is exposed while its rank is inside finish(), and hidden otherwise. Over sockets, as between nodes: through
shared memory nothing travels in the background.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from exafield import Reducer, Trace, World
from exafield.reduce import AutoTuned, Flat, Fused, GraphAware, Grouped, Single
from exafield.reduce.grouping import Grouping
from exafield.summary import summarise
from reduction import Dense

RANKS = 2
GROUPINGS: dict[str, Grouping] = {
    "single": Single(),
    "fused 4 MiB": Fused(mb=4),
    "fused 1 MiB": Fused(mb=1),
    "grouped 8": Grouped(8),
    "graph aware 4": GraphAware(4),
    "graph aware 8": GraphAware(8),
    "graph aware 16": GraphAware(16),
    "per scope": GraphAware(per="scope"),
    "auto tuned": AutoTuned(),
}


def rank(folder: Path, blocks: int, steps: int) -> None:
    """On every rank: trains, and writes one trace for each method and block."""
    torch.set_num_threads(1)
    with World.from_env(timeout=120) as world:
        x = torch.randn(2, 3, 32, 32)
        made = {}
        for name, grouping in GROUPINGS.items():
            torch.manual_seed(0)
            model, trace = Dense(), Trace(world.rank)
            reducer = Reducer(grouping=grouping, collective=Flat(shared=False))
            made[name] = (model, reducer.attach(model, world, name="net", trace=trace), trace)

        def train(name: str, count: int) -> None:
            model, reduction, trace = made[name]
            for number in range(count):
                with trace.span("trainer", "step", number=number):
                    model.zero_grad()
                    with trace.span("trainer", "forward", player="net"):
                        loss = model(x).square().mean()
                    with trace.span("trainer", "backward", player="net"):
                        loss.backward()
                    with trace.span("trainer", "finish", player="net"):
                        reduction.finish()

        for name in made:
            train(name, 60 if name.startswith("auto") else 3)
        for block in range(blocks):
            for name, (_, _, trace) in made.items():
                trace.clear()
                world.barrier()
                train(name, steps)
                trace.save(folder / f"{name}.{block}.{world.rank}.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--quick", action="store_true", help="few blocks: to see that it works")
    parser.add_argument("--rank", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        rank(Path(arguments.rank[0]), int(arguments.rank[1]), int(arguments.rank[2]))
        return
    blocks, steps = (2, 3) if arguments.quick else (5, 10)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for number in range(RANKS):
            env = {"GLOO_SOCKET_IFNAME": "lo"} | os.environ
            env |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(RANKS), "OMP_NUM_THREADS": "1"}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            command = [sys.executable, __file__, "--rank", folder, str(blocks), str(steps)]
            processes.append(subprocess.Popen(command, env=env))
        try:
            codes = [process.wait(1800) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if any(codes):
            sys.exit(f"a rank ended with an error: exit codes {codes}")
        print(f"{'':16s} {'groups':>7s} {'hidden':>23s} {'under way, ms per step':>24s}")
        for name in GROUPINGS:
            rows = []
            for block in range(blocks):
                parts = [Trace.load(Path(folder) / f"{name}.{block}.{r}.json") for r in range(RANKS)]
                rows.append(summarise(Trace.merge(parts)).communication[0])
            hidden, total = [row.hidden or 0.0 for row in rows], [row.total * 1e3 for row in rows]
            found[name] = {"groups": rows[-1].groups, "hidden": hidden, "total": [row.total for row in rows]}
            print(
                f"{name:16s} {rows[-1].groups:7.0f} {statistics.median(hidden):8.1%} "
                f"[{min(hidden):.1%} .. {max(hidden):.1%}] {statistics.median(total):8.2f} "
                f"[{min(total):.2f} .. {max(total):.2f}]"
            )
    if arguments.json:
        about = {"benchmark": "overlap", "format": 1, "ranks": RANKS, "blocks": blocks, "steps": steps}
        arguments.json.write_text(json.dumps({**about, "torch": torch.__version__, "groupings": found}, indent=1))


if __name__ == "__main__":
    main()
