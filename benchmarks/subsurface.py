"""How well fields between wells are known: every method of the package on the same readings and the same law.

    python benchmarks/subsurface.py [--site hanford|box] [--truth site|prior] [--sets 10] [--starts 1]
        [--members 500 2000] [--methods ...] [--reference 0] [--json FILE] [--quick]

For each set of sensors: ln T at 100 cells (error 0.02) and heads in 100 wells (0.1 m), of the site's own field or of
fields drawn from the law itself (`--truth prior`: intervals must then hold what they say). The law is that of the data
set where it is told, else fitted to the first set. Errors over cells without a sensor: root mean square, continuous
ranked probability score (lower is better), share of cells within the 90 % interval, misfit of the heads of posterior
samples in units of their error (1 is right); share of sets whose flow through the eastern half of the faces with a
given head lies in its 90 % interval; CPU time after the prior is made. Ratios to ES-MDA with the fewest members are
those of the same set. What a method draws at random is drawn anew `--starts` times, and a set's scores are the means of
these: another start of a small ensemble moves them by several per cent. Chains (`--reference`: for so many sets) take
ten CPU minutes or more each: with them, what share
of their draws the default's interval holds, how far its mean is off, and the ratio of its spread to theirs.
"""

import argparse
import json
import statistics
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exafield.datasets import DatasetError
from exafield.subsurface import darcy, scores
from exafield.subsurface.covariance import Matern
from exafield.subsurface.generated import box
from exafield.subsurface.hmc import ChainWarning
from exafield.subsurface.kriging import Readings
from exafield.subsurface.latent import LinearPrior
from exafield.subsurface.likelihood import fit
from exafield.subsurface.methods import METHODS, Method, ensemble
from exafield.subsurface.montecarlo import WeightWarning
from exafield.subsurface.posterior import Posterior, infer
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
    """A set of sensors, and the field they were read from.

    Args:
        site: mesh and boundary conditions.
        truth, head: of all cells.
        y, u: readings of ln T and heads.
        reach: boundary faces whose flow is asked for.
    """

    site: Site
    truth: np.ndarray
    head: np.ndarray
    y: Readings
    u: Readings
    reach: np.ndarray

    def judged(self, found: Posterior) -> dict[str, float]:
        """Scores of samples, over the cells without a sensor."""
        cells = np.setdiff1d(np.arange(self.site.cells), self.y.cells)
        truth, fields = self.truth[cells], found.log_transmissivity[:, cells]
        flow = darcy.boundary_fluxes(self.site, torch.from_numpy(self.truth), torch.from_numpy(self.head))
        actual, known = float(flow[torch.from_numpy(self.reach)].sum()), found.flux(self.site, self.reach)
        return {
            "RMSE": scores.rmse(fields.mean(0), truth),
            "CRPS": float(scores.crps_ensemble(fields, truth).mean()),
            "cover": scores.coverage(fields, truth),
            "misfit": scores.misfit(found.head[:, self.u.cells], self.u.values, self.u.errors),
            "flux in": float(known.low <= actual <= known.high),
        }


def compared(found: Posterior, reference: Posterior) -> dict[str, float]:
    """The default method beside chains."""
    chains, fields = reference.log_transmissivity, found.log_transmissivity
    low, high = found.interval()
    moved = (fields.mean(0) - chains.mean(0)) / chains.std(0)
    return {
        "reference in interval": float(((chains >= low) & (chains <= high)).mean()),
        "mean off, in std": float(np.sqrt(np.mean(moved**2))),
        "ratio of std": float((fields.std(0) / chains.std(0)).mean()),
    }


def case_of(site: Site, number: int, sensors: int, prior: LinearPrior | None) -> Case:
    """Sensors of a set, read from the site's field or, with a prior, from one drawn from it."""
    rng = np.random.default_rng([number, 7])
    sets = next((s for s in site.sensors.values() if s.shape[1] == sensors), None)
    at_y = np.sort(sets[number % len(sets)] if sets is not None else rng.permutation(site.cells)[:sensors])
    at_u = np.sort(rng.permutation(site.cells)[:sensors])
    assert site.log_transmissivity is not None
    assert site.head is not None
    truth, head = site.log_transmissivity.copy(), site.head.copy()
    if prior is not None:
        drawn = np.random.default_rng([number, 8]).standard_normal(prior.noise)
        truth = prior(torch.from_numpy(drawn)).numpy()
        head = darcy.solve(site, truth).numpy()
    y, u = (
        Readings(at, values[at] + error * rng.standard_normal(len(at)), np.full(len(at), error))
        for at, values, error in ((at_y, truth, ERROR_Y), (at_u, head, ERROR_U))
    )
    east = site.mesh.boundary_centres[site.fixed_faces, 0]
    return Case(site, truth, head, y, u, site.fixed_faces[east >= np.median(east)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", choices=("hanford", "box"), default="hanford")
    parser.add_argument("--truth", choices=("site", "prior"), default="site")
    parser.add_argument("--sets", type=int, default=10)
    parser.add_argument("--starts", type=int, default=1, help="of each method on each set")
    parser.add_argument("--members", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=[m for m in METHODS if m != "hmc"])
    parser.add_argument("--reference", type=int, default=0, help="sets for which chains are run too")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--quick", action="store_true", help="one small set: to see that it works")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", WeightWarning)
    warnings.simplefilter("ignore", ChainWarning)
    try:
        site = box() if given.site == "box" or given.quick else Site.load("hanford")
    except DatasetError as error:
        print(f"{error}; the box in its place")
        site = box()
    if given.quick:
        given.sets, given.members = 1, [50]
    sensors = 100 if not given.quick else 30
    methods: dict[str, Method] = {
        f"ES-MDA 4 x {members}": partial(ensemble, members=members) for members in given.members
    }
    base = next(iter(methods))
    methods |= {name: METHODS[name] for name in given.methods if name not in ("esmda", "hmc")}
    if "laplace" in methods:
        methods["laplace, not corrected"] = partial(infer, corrections=0)
    first = case_of(site, 0, sensors, None)
    law, mean = law_of(site, site.mesh.centres[first.y.cells], first.y.values)
    expansion = karhunen_loeve(site.mesh.centres, site.mesh.areas, law, terms=min(1000, site.cells))
    prior = LinearPrior(torch.full((site.cells,), mean, dtype=torch.float64), expansion.modes)
    rows: dict[str, list[dict[str, Any]]] = {}
    references: list[dict[str, Any]] = []
    for number in range(given.sets):
        case = case_of(site, number, sensors, prior if given.truth == "prior" else None)
        for name, act in methods.items():
            # All members are an ensemble's samples.
            count = act.keywords.get("members", SAMPLES) if isinstance(act, partial) else SAMPLES
            judged = []
            for start in range(given.starts):
                began = time.process_time()
                found = act(site, prior, case.y, case.u, samples=count, seed=number + 1000 * start)
                judged.append({"CPU s": time.process_time() - began} | case.judged(found))
            rows.setdefault(name, []).append({key: statistics.mean(one[key] for one in judged) for key in judged[0]})
        if number < given.reference or "hmc" in given.methods:
            began = time.process_time()
            chains = METHODS["hmc"](site, prior, case.y, case.u, samples=2000, seed=number)
            spent = time.process_time() - began
            row = compared(infer(site, prior, case.y, case.u, samples=1000, seed=number), chains)
            references.append({"set": number, "note": chains.note, "CPU s": spent} | case.judged(chains) | row)
            print(references[-1], flush=True)
        print(f"set {number + 1} of {given.sets}", flush=True)
    found_all: dict[str, Any] = {}
    columns = [key for key in rows[base][0] if key != "CPU s"]
    print(f"{'':24s}" + "".join(f"{c:>25s}" for c in columns) + f"{'CPU s':>8s}  RMSE, CRPS of {base}")
    for name, each in rows.items():
        ratios = {
            key: [row[key] / other[key] for row, other in zip(each, rows[base], strict=True)]
            for key in ("RMSE", "CRPS")
        }
        found_all[name] = {"sets": each, "ratios": ratios}
        spread = {key: [row[key] for row in each] for key in each[0]}
        parts = (f"{statistics.mean(v):.3f} ({min(v):.3f}..{max(v):.3f})" for v in (spread[c] for c in columns))
        told = "  ".join(
            f"{statistics.mean(v):.3f} (lower in {sum(r < 1 for r in v)} of {len(v)})" for v in ratios.values()
        )
        print(f"{name:24s}" + "".join(f"{p:>25s}" for p in parts) + f"{statistics.mean(spread['CPU s']):8.2f}  {told}")
    if given.json:
        report = {"benchmark": "subsurface", "site": site.name, "truth": given.truth}
        given.json.write_text(json.dumps(report | {"methods": found_all, "references": references}, indent=1))


if __name__ == "__main__":
    main()
