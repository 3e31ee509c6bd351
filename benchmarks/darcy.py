"""What a differentiable solve costs: heads and adjoint of a batch, against scipy's sparse LU in the same run.

    python benchmarks/darcy.py [--batch 64] [--rounds 15] [--json FILE] [--quick]

The mesh is the Hanford Site's if the data set is there, else a generated box of about as many cells; fields are drawn
afresh for each round, the same for all ways. In each round every way solves the batch and goes back once, in turns, so
that what else the machine does falls on all alike. Times are CPU time of this process on one thread, in milliseconds
per sample: of solving alone, and of solving, weighting all heads and going back to log-transmissivity. The anchor is
written with scipy alone, as one would: a matrix from triplets and `splu`, whose factors serve the adjoint too. Ways
must agree in heads and derivatives, or the run fails.
"""

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.linalg import splu
from torch import Tensor

from exafield.datasets import DatasetError
from exafield.subsurface import darcy
from exafield.subsurface.checks import SlantedMeshWarning
from exafield.subsurface.factor import Banded, Sparse
from exafield.subsurface.generated import box, random_log_transmissivity
from exafield.subsurface.network import Network
from exafield.subsurface.site import Site

ANCHOR = "scipy splu"
LAW = {"mean": 7.88, "variance": 2.63, "length": 1900.0}  # fitted to the Hanford Site's sensors
Way = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


def the_site() -> Site:
    """The Hanford Site, or a box."""
    try:
        return Site.load("hanford")
    except DatasetError:
        return box(48, 31)


def ours(site: Site, method: Any) -> Way:
    """`darcy.solve` with one way to factor."""
    net = Network(site, method(site.cells, site.mesh.neighbours))

    def run(y: Tensor, weights: Tensor, back: bool) -> tuple[Tensor, Tensor | None]:
        darcy._networks[site] = net
        y = y.clone().requires_grad_(back)
        head = darcy.solve(site, y)
        if not back:
            return head, None
        (head * weights).sum().backward()
        return head.detach(), y.grad

    return run


def anchor(site: Site) -> Way:
    """Triplets and splu, realisation by realisation."""
    mesh, cells = site.mesh, site.cells
    a, b = mesh.neighbours.T
    outer, shape = mesh.boundary_cells[site.fixed_faces], mesh.boundary_shapes[site.fixed_faces]
    given = np.array(site.source)
    np.add.at(given, mesh.boundary_cells[site.inflow_faces], site.inflows)
    rows, columns = np.concatenate([a, b, a, b, outer]), np.concatenate([a, b, b, a, outer])

    def run(y: Tensor, weights: Tensor, back: bool) -> tuple[Tensor, Tensor | None]:
        heads, gradients = [], []
        for field, weight in zip(y.numpy(), weights.numpy(), strict=True):
            t = np.exp(field)
            one, two = t[a] * mesh.shapes[:, 0], t[b] * mesh.shapes[:, 1]
            between, edge = one * two / (one + two), t[outer] * shape
            values = np.concatenate([between, between, -between, -between, edge])
            right = given.copy()
            np.add.at(right, outer, edge * site.fixed_heads)
            factors = splu(coo_array((values, (rows, columns)), shape=(cells, cells)).tocsc())
            head = factors.solve(right)
            heads.append(head)
            if back:
                adjoint = factors.solve(weight, trans="T")
                flow = -(adjoint[a] - adjoint[b]) * (head[a] - head[b]) * between
                gradient = np.bincount(a, flow * two / (one + two), cells)
                gradient += np.bincount(b, flow * one / (one + two), cells)
                gradient += np.bincount(outer, adjoint[outer] * edge * (site.fixed_heads - head[outer]), cells)
                gradients.append(gradient)
        return torch.from_numpy(np.stack(heads)), torch.from_numpy(np.stack(gradients)) if back else None

    return run


def spread(values: list[float]) -> dict[str, float]:
    """Least, median and largest."""
    return {"least": min(values), "median": statistics.median(values), "largest": max(values)}


def main() -> None:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="3 rounds of 8 samples")
    given = parser.parse_args()
    batch, rounds = (8, 3) if given.quick else (given.batch, given.rounds)
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":  # it is read when the library is loaded, so begin anew
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        os.execv(sys.executable, sys.orig_argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", SlantedMeshWarning)
    site = the_site()
    ways: dict[str, Way] = {
        ANCHOR: anchor(site),
        "banded, LAPACK": ours(site, Banded),
        "sparse LU, symmetric": ours(site, Sparse),
    }
    if find_spec("numba") is not None:
        from exafield.subsurface.compiled import Compiled

        ways["banded, compiled"] = ours(site, Compiled)
    times: dict[str, dict[str, list[float]]] = {name: {"solve": [], "solve and back": []} for name in ways}
    apart = {"head": 0.0, "derivative": 0.0}
    for number in range(rounds + 1):
        fields = [
            random_log_transmissivity(
                site.mesh.centres, mean=7.88, variance=2.63, length=1900.0, seed=number * batch + k
            )
            for k in range(batch)
        ]
        y = torch.from_numpy(np.stack(fields))
        weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(number))
        truth: tuple[Tensor, Tensor] | None = None
        for name, way in ways.items():
            for what, back in (("solve", False), ("solve and back", True)):
                begun = time.process_time()
                head, gradient = way(y, weights, back)
                if number:  # the first round warms up: orders, caches, compilation
                    times[name][what].append((time.process_time() - begun) / batch * 1e3)
                if gradient is None:
                    continue
                if truth is None:
                    truth = head, gradient
                apart["head"] = max(apart["head"], float((head - truth[0]).abs().max()))
                off = (gradient - truth[1]).abs().max() / truth[1].abs().max()
                apart["derivative"] = max(apart["derivative"], float(off))
    if apart["head"] > 1e-6 or apart["derivative"] > 1e-8:
        raise SystemExit(f"ways disagree: {apart}")
    result = {
        "site": site.name, "cells": site.cells, "batch": batch, "rounds": rounds, "disagreement": apart,
        "ways": {
            name: {what: spread(values) for what, values in both.items()}
            | {"times as fast as the anchor": spread([
                slow / fast for slow, fast in zip(times[ANCHOR]["solve and back"], both["solve and back"], strict=True)
            ])}
            for name, both in times.items()
        },
    }  # fmt: skip
    print(
        f"{site.name}, {site.cells} cells, batch {batch}, {rounds} rounds; CPU ms per sample, median (least..largest)"
    )
    for name, both in result["ways"].items():
        parts = [f"{both[k]['median']:7.3f} ({both[k]['least']:.3f}..{both[k]['largest']:.3f})" for k in times[name]]
        ratio = both["times as fast as the anchor"]["median"]
        print(f"{name:22} solve {parts[0]}   solve and back {parts[1]}   {ratio:5.1f} x")
    print(f"ways agree to {apart['head']:.1e} m in heads and {apart['derivative']:.1e} (relative) in derivatives")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
