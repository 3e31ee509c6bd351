"""What is learned of a site's law from sensors alone: against held-back fields, beside what their number allows.

    python benchmarks/subsurface_law.py [--site hanford|box] [--seeds 3] [--steps 400] [--batch 128] [--quick]
                                        [--critic] [--json FILE]

Snapshots of ln T at 100 cells and heads in 50 wells are all that training sees: of the Hanford Site 1,500, of the
generated box as many of a known law. The law is judged in all cells of 300 rows that were held back. So is a normal law
fitted to the ln T sensors by maximum likelihood (Matern with nu = 2.5, which is the data's own), the most that can be
hoped for, and the law that the data were drawn from: what it misses is chance. Heads have heavy tails, so their
standard deviation is mostly that; the width from 5 to 95 % is not. Seeds choose sensors, wells, noise and batches. CPU
time is of one thread, and holds everything from the snapshots to the law: the modes of the mesh, training, and the
share of the flow equation's solves, there and back. With --critic a second way has a critic play along at weight 0.02.
Prints the least, median and largest of all seeds.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exafield.datasets import DatasetError
from exafield.optim import Cosine
from exafield.report import Report as Progress
from exafield.subsurface import darcy
from exafield.subsurface.checks import SlantedMeshWarning
from exafield.subsurface.generated import box
from exafield.subsurface.laws import Law
from exafield.subsurface.likelihood import fit
from exafield.subsurface.problem import FlowProblem
from exafield.subsurface.site import Site
from exafield.subsurface.snapshots import Snapshots, hanford_snapshots, simulated
from exafield.trainer import Trainer
from exafield.world import World

TRUE = Law(7.88, (2.63,), (1900.0,), (2.5,))  # the law of the Hanford ensembles, rounded, and of the box's
LOGS, HEADS = 100, 50
# Snapshots the likelihood is fitted to: all would take minutes.
FITTED = 100
PLAIN, LIKELIEST, CRITIC, OWN = "sliced-Wasserstein", "maximum likelihood", "with a critic", "the data's own law"


def data(name: str, quick: bool) -> tuple[Site, Snapshots, Snapshots]:
    """The site, and full fields for training and test."""
    if name == "hanford":
        return Site.load("hanford"), hanford_snapshots("train"), hanford_snapshots("test")
    site = box(16, 12, wells=30) if quick else box(48, 31)
    field = TRUE.field(site)
    return site, simulated(site, field, 400 if quick else 1500, seed=1), simulated(site, field, 300, seed=2)


class Clock:
    """CPU time spent in solves, there and back."""

    def __init__(self, site: Site) -> None:
        self.spent = 0.0
        net = darcy.network(site)
        for name in ("solve", "back"):
            setattr(net, name, self._timed(getattr(net, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            begun = time.process_time()
            try:
                return call(*args)
            finally:
                self.spent += time.process_time() - begun

        return timed


def learn(
    site: Site, seen: Snapshots, test: Snapshots, clock: Clock, *, critic: float, steps: int, batch: int, seed: int
) -> dict[str, Any]:
    """One training, and what came of it."""
    begun, clock.spent = time.process_time(), 0.0
    problem = FlowProblem(site, seen, test=test, critic_weight=critic, schedule=Cosine(steps=steps), seed=seed)
    trainer = Trainer(problem, World.single(), batch_size=batch, seed=seed, report=Progress(show=False), log_every=100)
    for _ in range(steps):
        trainer.step()
    cpu, solve = time.process_time() - begun, clock.spent
    trainer.metrics()
    with trainer.seats.evaluating():
        report = problem.report(trainer.world)
    trainer.close()
    assert report is not None
    assert report.law is not None
    return {
        **report.errors,
        "cpu_s": cpu,
        "solve_share": solve / cpu,
        "law": _told(report.law),
        "floors": dict(report.floors),
        "passed": all(passed for passed, _ in report.gate()),
    }


def judged(law: Law, site: Site, seen: Snapshots, test: Snapshots, seed: int) -> dict[str, Any]:
    """A law that is given, by fields drawn with the noise that a learned one is judged by."""
    problem = FlowProblem(site, seen, test=test, generator=law.field(site, torch.float32), seed=seed)
    problem.players(World.single())
    report = problem.report(World.single())
    assert report is not None
    return {**report.errors, "law": _told(law)}


def likeliest(site: Site, seen: Snapshots, test: Snapshots, seed: int) -> dict[str, Any]:
    """The fitted law, judged alike."""
    begun = time.process_time()
    rows = np.random.default_rng(seed).choice(len(seen), min(FITTED, len(seen)), replace=False)
    found = fit(site.mesh.centres[seen.y_cells], seen.y[rows], nugget=1e-6, intervals=False)
    cpu = time.process_time() - begun
    law = Law(found.mean, (found.variance,), (found.length,), (found.smoothness,))
    return {**judged(law, site, seen, test, seed), "cpu_s": cpu}


def _told(law: Law) -> dict[str, float]:
    return {"mean": law.mean, "variance": law.variance[0], "length": law.length[0], "smoothness": law.smoothness[0]}


def spread(values: list[float]) -> dict[str, float]:
    """Least, median and largest."""
    return {"least": min(values), "median": statistics.median(values), "largest": max(values)}


def main() -> None:
    """Runs all seeds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", choices=("hanford", "box"), default="hanford")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--critic", action="store_true", help="train with a critic too, for twice the time each")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="the box, one seed, 100 steps of 32")
    given = parser.parse_args()
    name, seeds, steps, batch = given.site, given.seeds, given.steps, given.batch
    if given.quick:
        name, seeds, steps, batch = "box", 1, 100, 32
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", SlantedMeshWarning)
    try:
        site, train, test = data(name, given.quick)
    except DatasetError as error:
        print(f"skipped: {error}\nwithout data: --site box")
        return
    clock = Clock(site)
    runs: dict[str, list[dict[str, Any]]] = {
        way: [] for way in (PLAIN, *([CRITIC] if given.critic else []), LIKELIEST, OWN)
    }
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        sets = site.sensors.get(str(LOGS))
        count = min(LOGS, site.cells // 3)
        logs = rng.choice(site.cells, count, replace=False) if sets is None else sets[seed % len(sets)]
        wells = rng.choice(site.well_cells, min(HEADS, len(site.well_cells)), replace=False)
        seen = train.at(y_cells=logs, u_cells=wells)
        for way, done in runs.items():
            if way == LIKELIEST:
                found = likeliest(site, seen, test, seed)
            elif way == OWN:
                found = judged(TRUE, site, seen, test, seed)
            else:
                weight = 0.02 if way == CRITIC else 0.0
                found = learn(site, seen, test, clock, critic=weight, steps=steps, batch=batch, seed=seed)
            done.append(found)
            told = ", ".join(f"{key} {value:.4g}" for key, value in found.items() if isinstance(value, float))
            print(f"seed {seed}, {way}: {told}; {found['law']}", flush=True)
    table = {
        way: {key: spread([run[key] for run in of]) for key, value in of[0].items() if isinstance(value, float)}
        for way, of in runs.items()
    }
    floors = runs[PLAIN][0]["floors"]
    sensors = f"{len(train)} snapshots at {len(logs)} + {len(wells)} sensors"
    print(f"\n{site.name}, {site.cells} cells, {sensors}; {steps} steps of {batch}")
    for way, row in table.items():
        print(f"\n{way:24s} {'least':>9s} {'median':>9s} {'largest':>9s}  sampling floor")
        for key, of in row.items():
            floor = f"{floors[key]:15.4f}" if key in floors else ""
            print(f"  {key:22s} {of['least']:9.4f} {of['median']:9.4f} {of['largest']:9.4f} {floor}")
    if given.json:
        about = {"site": site.name, "cells": site.cells, "snapshots": len(train), "steps": steps, "batch": batch}
        given.json.write_text(json.dumps(about | {"floors": floors, "summary": table, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
