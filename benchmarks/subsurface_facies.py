"""Does a law learned from training images beat a Gaussian one where the truth has two populations?

    python benchmarks/subsurface_facies.py [--fields 10] [--steps 150] [--samples 100] [--readings 100 100]
        [--laws FOLDER] [--json FILE] [--quick]

Two families, truncated Gaussian facies and meandering channels, on the Hanford Site's mesh (the box without data).
Both sides learn from the same training images: the generator by training, the Gaussian laws as the images' mean and
covariance (all Karhunen-Loeve terms) and as the stationary Matern law fitted to values of the images. Held-back fields
are then inferred from ln T at some cells (error 0.02) and heads in some wells (0.1 m), the same readings for all:

    Gauss KL, Gauss Matern   posterior.infer with either Gaussian law
    ES-MDA                   4 steps from all training images, ln T and heads as data, correlation taper
    ES-MDA kriged            4 steps from kriged fields of the Matern law, heads as data
    learned                  nonlinear_inference.infer_facies with the generator

Scores are over cells without a sensor of ln T: root mean square error of the mean, continuous ranked probability score
(fair to the number of samples; lower is better), share of cells within the 90 % interval, misfit of the samples' heads
in units of their error (1 is right), CPU seconds. `ratio` is the learned law's CRPS over the other's on the same field.
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
from safetensors.torch import load_file, save_file

from exafield.datasets import DatasetError
from exafield.report import Report
from exafield.subsurface import darcy, scores
from exafield.subsurface.esmda import EnsembleWarning, esmda
from exafield.subsurface.facies_generator import FaciesGenerator
from exafield.subsurface.facies_problem import FaciesProblem
from exafield.subsurface.generated import box
from exafield.subsurface.kriging import Readings, krige
from exafield.subsurface.likelihood import FitWarning, fit
from exafield.subsurface.nongaussian import Channels, Family, Realisation, TruncatedGaussian, realise
from exafield.subsurface.nonlinear_inference import infer_facies
from exafield.subsurface.posterior import LinearPrior, infer
from exafield.subsurface.random_fields import karhunen_loeve
from exafield.subsurface.site import Site
from exafield.trainer import Trainer
from exafield.world import World

ERROR_Y, ERROR_U, BATCH, HELD = 0.02, 0.1, 32, 300
FAMILIES: dict[str, Family] = {"facies": TruncatedGaussian(), "channels": Channels()}
Fields = tuple[np.ndarray, np.ndarray]


def learned(
    site: Site, name: str, images: np.ndarray, given: argparse.Namespace
) -> tuple[FaciesGenerator, dict[str, float]]:
    """The generator, and what its training took and reached."""
    problem = FaciesProblem(site, images[HELD:], images[:HELD], critic_weight=given.critic)
    kept = given.laws / f"{name}.safetensors" if given.laws else None
    with World.single() as world:
        trainer = Trainer(problem, world, batch_size=BATCH, report=Report(show=False))
        try:
            began = time.process_time()
            assert problem.model is not None
            if kept and kept.exists():
                problem.model.module.load_state_dict(load_file(kept))
                problem.model.update(0)  # the average is now what was read
            else:
                for _ in range(given.steps):
                    trainer.step()
            told = {"CPU s": time.process_time() - began} | problem.evaluate(world)
        finally:
            trainer.close()
    if kept and not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in problem.model.average().items()}, kept)
    if given.pictures:
        problem.picture(given.pictures / f"{name}.png")
    return problem.learned(), told


def linear(images: np.ndarray) -> LinearPrior:
    """Mean and covariance of images, as independent terms."""
    mean = images.mean(0)
    _, power, terms = np.linalg.svd((images - mean) / np.sqrt(len(images) - 1), full_matrices=False)
    return LinearPrior(torch.from_numpy(mean), torch.from_numpy(np.ascontiguousarray(terms.T * power)))


def read(values: np.ndarray, count: int, error: float, rng: np.random.Generator) -> Readings:
    """Cells drawn by chance."""
    cells = np.sort(rng.permutation(len(values))[:count])
    return Readings(cells, values[cells] + error * rng.standard_normal(count), np.full(count, error))


def judged(fields: np.ndarray, heads: np.ndarray, truth: np.ndarray, y: Readings, u: Readings) -> dict[str, float]:
    """Scores over the cells without a sensor."""
    cells = np.setdiff1d(np.arange(len(truth)), y.cells)
    return {
        "RMSE": scores.rmse(fields[:, cells].mean(0), truth[cells]),
        "CRPS": float(scores.crps_ensemble(fields[:, cells], truth[cells], fair=True).mean()),
        "cover": scores.coverage(fields[:, cells], truth[cells]),
        "misfit": scores.misfit(heads[:, u.cells], u.values, u.errors),
    }


def smoothed(
    site: Site, start: np.ndarray, y: Readings | None, u: Readings, limits: tuple[float, float], seed: int
) -> Fields:
    """ES-MDA with heads, and ln T where it is not known at the start."""
    known = [u] if y is None else [y, u]

    def forward(fields: torch.Tensor) -> torch.Tensor:
        heads = darcy.solve(site, fields)[:, torch.from_numpy(u.cells)]
        return heads if y is None else torch.cat([fields[:, torch.from_numpy(y.cells)], heads], dim=1)

    found = esmda(
        torch.from_numpy(start),
        forward,
        torch.from_numpy(np.concatenate([one.values for one in known])),
        torch.from_numpy(np.concatenate([one.errors for one in known])),
        localisation="correlation" if y is not None else None,
        limits=(torch.tensor(limits[0]), torch.tensor(limits[1])),
        generator=torch.Generator().manual_seed(seed),
    )
    return found.members.numpy(), darcy.solve(site, found.members).numpy()


def compared(site: Site, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """All methods on all fields of a family."""
    count, mesh = given.images + HELD, site.mesh
    every = np.stack(
        [realise(Realisation(FAMILIES[name], mesh.centres, mesh.areas, 1, i))[0] for i in range(count + given.fields)]
    )
    images, truths = every[:count], every[count:]
    generator, told = learned(site, name, images, given)
    print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in told.items()), flush=True)
    prior = linear(images)
    rng = np.random.default_rng(3)
    some = np.sort(rng.permutation(site.cells)[: min(150, site.cells // 2)])
    # The mean of all images is known well; it would only blur the fit of the rest.
    law = fit(mesh.centres[some], images[:20, some], mean=float(images.mean()), intervals=False)
    terms = karhunen_loeve(mesh.centres, mesh.areas, law.covariance)
    matern = LinearPrior(torch.full((site.cells,), law.mean, dtype=torch.float64), terms.modes)
    limits = float(images.min()), float(images.max())
    rows: dict[str, list[dict[str, float]]] = {}
    for number, truth in enumerate(truths):
        rng = np.random.default_rng([number, 7])
        y = read(truth, given.readings[0], ERROR_Y, rng)
        u = read(darcy.solve(site, truth).numpy(), given.readings[1], ERROR_U, rng)

        def gaussian(law: LinearPrior, y: Readings = y, u: Readings = u, seed: int = number) -> Fields:
            found = infer(site, law, y, u, samples=200, seed=seed)
            return found.log_transmissivity, found.head

        def latent(y: Readings = y, u: Readings = u, seed: int = number) -> Fields:
            found = infer_facies(site, generator, y, u, samples=given.samples, seed=seed)
            return found.log_transmissivity, found.head

        def kriged(y: Readings = y, u: Readings = u, seed: int = number) -> Fields:
            start = krige(law.covariance, y, mesh.centres, mean=law.mean).sample(500, np.random.default_rng(seed))
            return smoothed(site, start, None, u, limits, seed)

        methods: dict[str, Callable[[], Fields]] = {
            "Gauss KL": lambda: gaussian(prior),
            "Gauss Matern": lambda: gaussian(matern),
            "ES-MDA": lambda y=y, u=u, seed=number: smoothed(site, images, y, u, limits, seed),  # type: ignore[misc]
            "ES-MDA kriged": kriged,
            "learned": latent,
        }
        for method, act in methods.items():
            began = time.process_time()
            fields, heads = act()
            row = {"CPU s": time.process_time() - began} | judged(fields, heads, truth, y, u)
            rows.setdefault(method, []).append(row)
        last = {method: each[-1] for method, each in rows.items()}
        told_row = "  ".join(
            f"{method} {x['CRPS']:.3f} {x['cover']:.2f} {x['misfit']:.1f}" for method, x in last.items()
        )
        print(f"{name} {number + 1} of {given.fields}: CRPS, cover, misfit of {told_row}", flush=True)
    ratios = {
        method: [one["CRPS"] / other["CRPS"] for one, other in zip(rows["learned"], each, strict=True)]
        for method, each in rows.items()
    }
    show(name, rows, ratios)
    return {"law": told, "methods": rows, "ratios": ratios}


def show(name: str, rows: dict[str, list[dict[str, float]]], ratios: dict[str, list[float]]) -> None:
    """A table: mean, and least to most."""
    print(f"{name:14s}" + "".join(f"{key:>22s}" for key in ("RMSE", "CRPS", "cover", "misfit", "CPU s")) + "  ratio")
    for method, each in rows.items():
        line = f"{method:14s}"
        for key in ("RMSE", "CRPS", "cover", "misfit", "CPU s"):
            values = [row[key] for row in each]
            line += f"{f'{statistics.mean(values):.3f} ({min(values):.3f}..{max(values):.3f})':>22s}"
        own = ratios[method]
        line += f"  {statistics.mean(own):.3f} ({min(own):.3f}..{max(own):.3f})"
        print(line + f", lower in {sum(r < 1 for r in own)} of {len(own)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=tuple(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--fields", type=int, default=10, help="held-back fields of each family")
    parser.add_argument("--images", type=int, default=1700, help=f"training images, beside {HELD} to judge the law by")
    parser.add_argument("--steps", type=int, default=150, help="of training")
    parser.add_argument("--critic", type=float, default=0.0, help="weight of the critic")
    parser.add_argument("--samples", type=int, default=100, help="of the learned law's posterior")
    parser.add_argument("--readings", type=int, nargs=2, default=(100, 100), help="of ln T, and of heads")
    parser.add_argument("--laws", type=Path, help="folder of learned laws: used where it has them, else filled")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the learned laws")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", EnsembleWarning)  # it collapses: that is what is shown
    warnings.simplefilter("ignore", FitWarning)
    try:
        site = box() if given.quick else Site.load("hanford")
    except DatasetError as error:
        print(f"{error}; the box in its place")
        site = box()
    if given.quick:
        given.fields, given.images, given.steps, given.samples, given.readings = 1, 200, 5, 10, (30, 30)
    found = {name: compared(site, name, given) for name in given.families}
    if given.json:
        numbers = {"benchmark": "subsurface_facies", "site": site.name, "readings": given.readings, "families": found}
        given.json.write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
