"""How well fields between wells are known: kriging, ES-MDA, and the Gaussian approximation in latent space.

    python benchmarks/subsurface.py [--site hanford|box] [--sets 10] [--members 500 2000] [--json FILE] [--quick]

For each set of sensors: ln T at 100 cells (error 0.02) and heads in 100 wells (0.1 m) of the site's own field, all
methods on the same readings and the same law (that of the data set where it is told, else fitted to the first set).
Errors over cells without a sensor: root mean square, continuous ranked probability score (lower is better), share of
cells within the 90 % interval, misfit of the heads of posterior samples in units of their error (1 is right), CPU time
after the prior is made. Ratios to ES-MDA with the fewest members are those of the same set.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exafield.datasets import DatasetError
from exafield.subsurface import darcy, scores
from exafield.subsurface.covariance import Matern
from exafield.subsurface.esmda import esmda
from exafield.subsurface.generated import box
from exafield.subsurface.kriging import Readings, krige
from exafield.subsurface.likelihood import fit
from exafield.subsurface.posterior import LinearPrior, infer
from exafield.subsurface.random_fields import karhunen_loeve
from exafield.subsurface.site import Site

ERROR_Y, ERROR_U, SAMPLES = 0.02, 0.1, 200
#: Of the data set, as its description gives it; the mean is that of its ensemble.
HANFORD_LENGTHS = 60_000.0


def law_of(site: Site, points: np.ndarray, values: np.ndarray) -> tuple[Matern, float]:
    """Law and mean of the field."""
    if site.name == "hanford":
        from exafield.subsurface.hanford import folder

        with np.load(folder() / "hanford_ensembles_1x.npz") as archive:
            length = float(archive["gp_length"]) * HANFORD_LENGTHS
            return Matern(float(archive["gp_variance"]), length), float(archive["gp_mean"])
    found = fit(points, values, nugget=ERROR_Y**2, intervals=False)
    return found.covariance, found.mean


@dataclass(frozen=True)
class Case:
    """A set of sensors, and what all methods are given.

    Args:
        number: of the set.
        site, law, mean, prior: of the field.
        y, u: readings of ln T and heads.
        start: kriged samples.
    """

    number: int
    site: Site
    law: Matern
    mean: float
    prior: LinearPrior
    y: Readings
    u: Readings
    start: torch.Tensor

    def judged(self, fields: np.ndarray, heads: np.ndarray) -> dict[str, float]:
        """Scores of samples, over the cells without a sensor."""
        assert self.site.log_transmissivity is not None
        cells = np.setdiff1d(np.arange(self.site.cells), self.y.cells)
        truth = self.site.log_transmissivity[cells]
        low, high = np.quantile(fields[:, cells], [0.05, 0.95], axis=0)
        return {
            "RMSE": scores.rmse(fields[:, cells].mean(0), truth),
            "CRPS": float(scores.crps_ensemble(fields[:, cells], truth).mean()),
            "cover": float(((truth >= low) & (truth <= high)).mean()),
            "misfit": float(np.sqrt(np.mean(((heads[:, self.u.cells] - self.u.values) / self.u.errors) ** 2))),
        }


Fields = tuple[np.ndarray, np.ndarray]


def by_kriging(case: Case) -> Fields:
    """ln T alone."""
    fields = case.start[:SAMPLES]
    return fields.numpy(), darcy.solve(case.site, fields).numpy()


def by_esmda(members: int, case: Case) -> Fields:
    """Four steps from kriged samples, kept within four standard deviations."""
    spread = 4 * case.law.variance**0.5
    found = esmda(
        case.start[:members],
        lambda fields: darcy.solve(case.site, fields)[:, torch.from_numpy(case.u.cells)],
        torch.from_numpy(case.u.values),
        torch.from_numpy(case.u.errors),
        limits=(torch.tensor(case.mean - spread), torch.tensor(case.mean + spread)),
        generator=torch.Generator().manual_seed(case.number),
    )
    return found.members.numpy(), darcy.solve(case.site, found.members).numpy()


def by_latent(corrections: int, case: Case) -> Fields:
    """This package's."""
    found = infer(case.site, case.prior, case.y, case.u, samples=SAMPLES, corrections=corrections, seed=case.number)
    return found.log_transmissivity, found.head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", choices=("hanford", "box"), default="hanford")
    parser.add_argument("--sets", type=int, default=10)
    parser.add_argument("--members", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--quick", action="store_true", help="one small set: to see that it works")
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        site = box() if given.site == "box" or given.quick else Site.load("hanford")
    except DatasetError as error:
        print(f"{error}; the box in its place")
        site = box()
    if given.quick:
        given.sets, given.members = 1, [50]
    assert site.log_transmissivity is not None
    assert site.head is not None
    truth, head, sensors = site.log_transmissivity, site.head, 100 if not given.quick else 30
    rows: dict[str, list[dict[str, float]]] = {}
    for number in range(given.sets):
        rng = np.random.default_rng([number, 7])
        sets = next((s for s in site.sensors.values() if s.shape[1] == sensors), None)
        at_y = np.sort(sets[number] if sets is not None else rng.permutation(site.cells)[:sensors])
        at_u = np.sort(rng.permutation(site.cells)[:sensors])
        y, u = (
            Readings(at, values[at] + error * rng.standard_normal(len(at)), np.full(len(at), error))
            for at, values, error in ((at_y, truth, ERROR_Y), (at_u, head, ERROR_U))
        )
        if not number:
            law, mean = law_of(site, site.mesh.centres[at_y], y.values)
            expansion = karhunen_loeve(site.mesh.centres, site.mesh.areas, law, terms=min(1000, site.cells))
            prior = LinearPrior(torch.full((site.cells,), mean, dtype=torch.float64), expansion.modes)
        kriged = krige(law, y, site.mesh.centres, mean=mean)
        start = torch.from_numpy(kriged.sample(max(given.members), rng))

        case = Case(number, site, law, mean, prior, y, u, start)
        methods: dict[str, Callable[[Case], Fields]] = {
            "kriging": by_kriging,
            **{f"ES-MDA 4 x {members}": partial(by_esmda, members) for members in given.members},
            **{f"latent, {count} corrections": partial(by_latent, count) for count in (0, 1, 2, 3)},
        }
        for name, act in methods.items():
            began = time.process_time()
            fields, heads = act(case)
            row = {"CPU s": time.process_time() - began} | case.judged(fields, heads)
            rows.setdefault(name, []).append(row)
        print(f"set {number + 1} of {given.sets}", flush=True)
    base = f"ES-MDA 4 x {min(given.members)}"
    found: dict[str, Any] = {}
    print(f"{'':24s}{'RMSE':>20s}{'CRPS':>20s}{'cover':>20s}{'misfit':>20s}{'CPU s':>8s}  RMSE, CRPS of {base}")
    for name, each in rows.items():
        spread = {key: [row[key] for row in each] for key in each[0]}
        ratios = {
            key: [row[key] / other[key] for row, other in zip(each, rows[base], strict=True)]
            for key in ("RMSE", "CRPS")
        }
        found[name] = {"sets": each, "ratios": ratios}
        parts = (f"{statistics.mean(v):.3f} ({min(v):.3f}..{max(v):.3f})" for k, v in spread.items() if k != "CPU s")
        better = {key: sum(r < 1 for r in values) for key, values in ratios.items()}
        told = "  ".join(f"{statistics.mean(v):.3f} (lower in {better[k]} of {len(v)})" for k, v in ratios.items())
        print(f"{name:24s}" + "".join(f"{p:>20s}" for p in parts) + f"{statistics.mean(spread['CPU s']):8.2f}  {told}")
    if given.json:
        given.json.write_text(json.dumps({"benchmark": "subsurface", "site": site.name, "methods": found}, indent=1))


if __name__ == "__main__":
    main()
