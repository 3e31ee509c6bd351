"""A hierarchy of generators against one for the whole site, and the same game on 1, 2, 4 and 8 ranks.

    python benchmarks/subsurface_hierarchy.py [--site hanford|box] [--subdomains 4] [--seeds 3] [--steps 300]
        [--batch 64] [--ranks 1 2 4 8] [--rank-steps 100] [--turns 3] [--quick] [--json FILE]

Both learn from ln T at 100 cells and heads in 50 wells, in the same steps of the same batches, and are judged in all
cells of 300 rows that were held back. Seeds choose sensors, wells, noise and batches. Ratios are of the same seed.

On ranks, "roles" deals the roles of one game out, each with the whole batch; "replicas" gives every rank the whole
game with a share of the batch. Sizes take turns. Time per step is by the clock (it is what ranks are for), of the
slowest rank, without the first steps; more ranks than cores cannot be faster. Bytes are those of each link in a step,
as counted and as billed beforehand; errors are of what was learned there.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exafield.datasets import DatasetError
from exafield.optim import Cosine
from exafield.report import Report as Progress
from exafield.subsurface.checks import SlantedMeshWarning
from exafield.subsurface.hierarchical_problem import HierarchicalProblem
from exafield.subsurface.problem import FlowProblem
from exafield.subsurface.site import Site
from exafield.subsurface.snapshots import Snapshots
from exafield.trainer import Trainer
from exafield.world import World
from subsurface_law import HEADS, LOGS, data

WARM = 3
TARGET = 1.5


def sensed(site: Site, train: Snapshots, seed: int) -> Snapshots:
    """What a seed's sensors read."""
    rng, sets = np.random.default_rng(seed), site.sensors.get(str(LOGS))
    count = min(LOGS, site.cells // 3)
    logs = rng.choice(site.cells, count, replace=False) if sets is None else sets[seed % len(sets)]
    return train.at(y_cells=logs, u_cells=rng.choice(site.well_cells, min(HEADS, len(site.well_cells)), replace=False))


def learn(problem: FlowProblem, world: World, steps: int, batch: int, seed: int) -> dict[str, Any]:
    """One training: errors of the law, CPU and clock time per step."""
    trainer = Trainer(problem, world, batch_size=batch, seed=seed, report=Progress(show=False), log_every=100)
    for _ in range(WARM):
        trainer.step()
    world.barrier()
    clock, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps - WARM):
        trainer.step()
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    world.barrier()
    trainer.metrics()
    found: dict[str, Any] = {"errors": trainer.evaluate()}
    found |= {"clock_ms": 1e3 * clock / (steps - WARM), "cpu_ms": 1e3 * cpu / (steps - WARM)}
    if isinstance(problem, HierarchicalProblem):
        assert problem.relay is not None
        sent = {to: count / steps for to, count in problem.relay.links.sent.items()}
        billed = {to: count for (rank, to), count in problem.bill(world).items() if rank == world.rank}
        assert sent == billed, f"rank {world.rank} sent {sent}, and the bill says {billed}"
        found["bytes"] = [[world.rank, to, count] for to, count in sent.items()]
    trainer.close()
    return found


def work(given: dict[str, Any]) -> None:
    """One rank."""
    site, train, test = data(given["site"], given["quick"])
    with World.from_env() as world:
        batch, seed = given["batch"], given["seed"]
        rows = batch // world.size if given["way"] == "replicas" else batch
        problem = HierarchicalProblem(
            site,
            sensed(site, train, seed),
            test=test,
            subdomains=given["subdomains"],
            rows=rows,
            replicas=world.size if given["way"] == "replicas" else None,
            schedule=Cosine(steps=given["steps"]),
            seed=seed,
        )
        found = learn(problem, world, given["steps"], rows, seed)
        every = world.all_gather_objects(found)
        if world.rank == 0:
            found["clock_ms"] = max(one["clock_ms"] for one in every)
            found["cpu_ms"] = max(one["cpu_ms"] for one in every)
            found["bytes"] = [link for one in every for link in one["bytes"]]
            Path(given["out"]).write_text(json.dumps(found))


def launched(size: int, given: dict[str, Any]) -> dict[str, Any]:
    """Runs `work` on ranks of this machine."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        out = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--work", json.dumps(given | {"out": str(out)})]
        ranks = []
        try:
            for number in range(size):
                env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
                env |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(size)}
                ranks.append(subprocess.Popen(command, env=env))
            codes = [rank.wait() for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        if any(codes):
            sys.exit(f"{given['way']} on {size} ranks ended with {codes}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def spread(values: list[float]) -> dict[str, float]:
    """Least, median and largest."""
    return {"least": min(values), "median": statistics.median(values), "largest": max(values)}


def told(of: dict[str, float]) -> str:
    """A spread in one line."""
    return f"{of['median']:.4g} ({of['least']:.4g} to {of['largest']:.4g})"


def against_one(given: argparse.Namespace, name: str) -> dict[str, Any]:
    """Hierarchy and single generator, seed by seed."""
    site, train, test = data(name, given.quick)
    runs: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        seen = sensed(site, train, seed)
        settings: dict[str, Any] = {"test": test, "schedule": Cosine(steps=given.steps), "seed": seed}
        both = {
            "hierarchy": HierarchicalProblem(site, seen, subdomains=given.subdomains, rows=given.batch, **settings),
            "one": FlowProblem(site, seen, **settings),
        }
        run = {way: learn(problem, World.single(), given.steps, given.batch, seed) for way, problem in both.items()}
        runs.append(run)
        print(f"seed {seed}: " + "; ".join(f"{way} {_errors(found)}" for way, found in run.items()), flush=True)
    names = [key for key in runs[0]["one"]["errors"] if not key.startswith("floor_")]
    summary: dict[str, Any] = {}
    for key in names:
        values = {way: [run[way]["errors"][key] for run in runs] for way in ("hierarchy", "one")}
        floor = runs[0]["one"]["errors"][f"floor_{key}"]
        # An error below the sampling floor is chance: neither side is asked for less.
        ratios = [max(a, floor) / max(b, floor) for a, b in zip(values["hierarchy"], values["one"], strict=True)]
        summary[key] = {way: spread(of) for way, of in values.items()} | {"floor": floor, "ratio": spread(ratios)}
        print(f"{key:22s} hierarchy {told(summary[key]['hierarchy'])}, one {told(summary[key]['one'])}, ", end="")
        print(f"floor {floor:.4g}, ratio {told(summary[key]['ratio'])}, target at most {TARGET}", flush=True)
    cost = [run["hierarchy"]["cpu_ms"] / run["one"]["cpu_ms"] for run in runs]
    print(f"CPU time of a step, hierarchy over one: {told(spread(cost))}")
    return {"runs": runs, "summary": summary, "cpu_ratio": spread(cost)}


def _errors(found: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in found["errors"].items() if not key.startswith("floor_"))


def on_ranks(given: argparse.Namespace, name: str) -> dict[str, Any]:
    """Each way on each number of ranks, taking turns."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for turn in range(given.turns):
        for way in ("roles", "replicas"):
            for size in given.ranks:
                about = {"site": name, "quick": given.quick, "batch": given.batch, "seed": turn, "way": way}
                about |= {"subdomains": given.subdomains, "steps": given.rank_steps}
                found = launched(size, about)
                runs.setdefault(f"{way} {size}", []).append(found)
                print(f"turn {turn}, {way} on {size}: {found['clock_ms']:.0f} ms by the clock, ", end="")
                print(f"{found['cpu_ms']:.0f} ms of CPU on the busiest rank; {_errors(found)}", flush=True)
    table = {}
    for label, of in runs.items():
        first = runs[f"{label.split()[0]} {given.ranks[0]}"]
        ratios = {
            key: spread([one[key] / base[key] for one, base in zip(of, first, strict=True)])
            for key in ("clock_ms", "cpu_ms")
        }
        links = of[0]["bytes"]
        table[label] = {"ratio": ratios, "bytes": links}
        most = max((count for *_, count in links), default=0)
        print(
            f"{label:12s} clock {told(ratios['clock_ms'])}, CPU of the busiest rank {told(ratios['cpu_ms'])} of those "
            f"on {given.ranks[0]}; {len(links)} links, {sum(c for *_, c in links):,.0f} bytes a step, "
            f"{most:,.0f} at most"
        )
    return {"runs": runs, "summary": table}


def main() -> None:
    """Both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", choices=("hanford", "box"), default="hanford")
    parser.add_argument("--subdomains", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rank-steps", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="the box, one seed, one turn, few steps, 1 and 2 ranks")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", SlantedMeshWarning)
    if given.work:
        work(json.loads(given.work))
        return
    name = given.site
    if given.quick:
        name, given.seeds, given.steps, given.rank_steps, given.turns, given.ranks = "box", 1, 60, 10, 1, [1, 2]
    try:
        site = data(name, given.quick)[0]
    except DatasetError as error:
        print(f"skipped: {error}\nwithout data: --site box")
        return
    print(f"{site.name}, {site.cells} cells, {given.subdomains} subdomains, {os.cpu_count()} cores")
    found = {"one": against_one(given, name), "ranks": on_ranks(given, name)}
    if given.json:
        about = {"benchmark": "subsurface_hierarchy", "format": 1, "site": site.name, "cells": site.cells}
        about |= {"cores": os.cpu_count(), "subdomains": given.subdomains, "steps": given.steps, "batch": given.batch}
        given.json.write_text(json.dumps(about | found, indent=1))


if __name__ == "__main__":
    main()
