"""What the climate part is worth on real data: points of CAM5 with labels, and rivers of one day in MERRA-2.

    python benchmarks/climate_real.py [--json FILE] [--out FOLDER] [--steps 450] [--seed 0] [--quick]

Needs the data set `climate` (EXAFIELD_DATA, or the user's cache); ends with a line that says so where it is absent.

1. A network of single pixels learns the sixteen channels of labelled CAM5 points of earlier dates and is judged by
   later dates, with several seeds; beside it all background, the best threshold on a single channel for each class,
   and about the best that anything could reach, as people contradict each other.
2. Rivers on 2017-02-28 by the heuristics (moisture or transport; published or corrected) and by two networks that
   were trained on the synthetic atmosphere: on TMQ alone, and on TMQ with transport. The file has neither winds nor
   temperatures, so that networks with sixteen channels, such as that of the laptop preset, cannot be tried on it, nor
   rules for cyclones. Nobody labelled that day: what is told is what each method marks and how far they agree, not who
   is right.

Transport is not among the sixteen channels. In training it is TMQ times wind at 850 hPa, on the snapshot of MERRA-2
the integral that the file gives as IVT; quantiles of both are printed. Rules see the snapshot on its own grid, networks
an area-weighted average on theirs, and all masks are compared on that of the networks.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from exafield.climate import events, plots
from exafield.climate.fields import BACKGROUND, CHANNELS, CLASSES, CYCLONE, RIVER
from exafield.climate.generate import PARTS, Generation, default_path, generate
from exafield.climate.grid import Grid
from exafield.climate.heuristics import rivers
from exafield.climate.loss import FREQUENCIES, CrossEntropy, inverse_power
from exafield.climate.metrics import Tally, confusion, intersection_over_union
from exafield.climate.normalisation import Statistics
from exafield.climate.parts import Parts
from exafield.climate.pixels import Points, judge_points
from exafield.climate.problem import ClimateProblem
from exafield.climate.published import write_snapshot
from exafield.climate.reading import open_snapshots
from exafield.climate.segmenter import Segmenter
from exafield.climate.snapshot import Snapshot, on_grid
from exafield.datasets import DatasetError, find
from exafield.optim import AdamW, Cosine
from exafield.report import Report
from exafield.trainer import Trainer
from exafield.world import World

Field = NDArray[Any]
POINTS, SNAPSHOT = "climatenet_cam5_points_train.csv.zip", "merra2_iwv_ivt_20170228_00.nc"
# Regions below this are specks, not rivers [m2], our choice: 1500 km, the least length of the rules, by 200 km.
SMALLEST = 3e11
# Two regions are one river where they share this much of the smaller one; our choice.
SAME = 0.3
# What carries less is no river [kg m-1 s-1] (Rutz et al., doi:10.1175/MWR-D-13-00168.1).
WEAK = 250.0
TROPICS = 20.0  # degrees
# No list of the rivers of that day is published with the file; this is what its description names.
SEEN = "N Atlantic, N Pacific, SE Pacific off Chile, S Atlantic, S Indian, Tasman Sea"


# ---- points ----


def threshold(values: Field, truth: NDArray[np.bool_]) -> tuple[float, float, float]:
    """The best one-sided threshold: IoU, sign and place; what lies above sign * place is of the class."""
    best = (-1.0, 1.0, 0.0)
    for sign in (1.0, -1.0):
        order = np.argsort(-sign * values, kind="stable")
        hits, marked = np.cumsum(truth[order]), np.arange(1, truth.size + 1)
        iou = hits / (marked + truth.sum() - hits)
        # Only where the next value differs can a threshold lie.
        iou[:-1][np.diff(values[order]) == 0] = -1.0
        at = int(np.argmax(iou))
        if iou[at] > best[0]:
            best = float(iou[at]), sign, float(values[order[at]])
    return best


def table(guess: Field, truth: Field) -> NDArray[np.float64]:
    """IoU by class."""
    return intersection_over_union(confusion(torch.from_numpy(guess), torch.from_numpy(truth).long()).numpy())


def agreed(points: Points, chosen: NDArray[np.bool_]) -> Field:
    """The most frequent label of each point, for all who labelled it: no map of points to classes has more hits."""
    keys = np.column_stack([points.places[chosen], points.dates[chosen]])
    _, of = np.unique(keys, axis=0, return_inverse=True)
    votes = np.zeros((of.max() + 1, len(CLASSES)), np.int64)
    np.add.at(votes, (of.ravel(), points.labels[chosen]), 1)
    return np.asarray(votes.argmax(1)[of.ravel()])


def of_points(path: Path, seeds: int) -> dict[str, Any]:
    """All that is found out by points; prints it."""
    points = Points.read(path)
    reports = [judge_points(points, seed=seed) for seed in range(seeds)]
    first, network = reports[0], np.stack([report.iou for report in reports])
    early = points.dates <= first.until
    truth = points.labels[~early]
    by_threshold, rules = np.zeros(truth.size, np.int64), []
    for kind in (RIVER, CYCLONE):  # where both rules speak, the cyclone
        tried = {n: threshold(points.values[early, i], points.labels[early] == kind) for i, n in enumerate(CHANNELS)}
        name = max(tried, key=lambda one: tried[one][0])
        _, sign, place = tried[name]
        column = points.values[~early, list(CHANNELS).index(name)]
        by_threshold[sign * column >= sign * place] = kind
        rules.append(f"{CLASSES[kind]} where {name} {'>=' if sign > 0 else '<='} {place:.4g} {CHANNELS[name].unit}")
    ious = {
        "network of pixels": network.mean(0), "single thresholds": table(by_threshold, truth),
        "all background": first.majority_iou, "most frequent label": table(agreed(points, ~early), truth),
    }  # fmt: skip
    print("\n".join(first.lines()[:2]))
    print(f"{'IoU on later dates':22s} {'mean':>6s} " + " ".join(f"{name:>18s}" for name in CLASSES))
    for name, iou in ious.items():
        print(f"{name:22s} {np.nanmean(iou):6.3f} " + " ".join(f"{value:18.3f}" for value in iou))
    spread = np.column_stack([network.mean(1), network])
    pairs = (f"{f'{a:.3f} to {b:.3f}':>18s}" for a, b in zip(spread.min(0), spread.max(0), strict=True))
    print(f"  {seeds} seeds: " + " ".join(pairs))
    print("single thresholds, chosen on the earlier dates: " + "; ".join(rules))
    print("'most frequent label' knows the answers: about what disagreement of people lets anything reach\n")
    counted = {name: getattr(first, name) for name in ("trained", "tested", "until", "points", "contradictory")}
    by_method = {name: iou.tolist() for name, iou in ious.items()}
    return {**counted, "iou": by_method, "network_by_seed": network.tolist(), "thresholds": rules}


# ---- from one grid to another ----


def average(field: Field, source: Grid, target: Grid) -> Field:
    """Means over the cells of another grid of the whole globe, weighted by the areas that cells share."""

    def shared(old: Field, new: Field) -> Field:
        top, bottom = np.minimum(new[1:, None], old[None, 1:]), np.maximum(new[:-1, None], old[None, :-1])
        return np.asarray(np.maximum(top - bottom, 0.0))

    north = shared(*(np.sin(np.deg2rad(grid.edges[0])) for grid in (source, target)))
    # A cell may lie one turn further on than its like on the other grid.
    east = sum(shared(source.edges[1] + turn, target.edges[1]) for turn in (-360.0, 0.0, 360.0))
    weights = [part / part.sum(1, keepdims=True) for part in (north, np.asarray(east))]
    result: Field = weights[0] @ field @ weights[1].T
    return result


def quantiles(field: Field, area: Field) -> list[float]:
    """By area: 50, 90, 99 and 99.9 %."""
    return [rivers.percentile(np.asarray(field, np.float64), area, share) for share in (50, 90, 99, 99.9)]


# ---- networks ----


def training_data(made: Path, folder: Path) -> Grid:
    """Writes generated snapshots anew, with TMQ and transport alone; prints what the transport is like."""
    fields, grid = [], None
    for part in PARTS:
        (folder / part).mkdir()
        with open_snapshots(made / part, channels=["TMQ", "U850", "V850"]) as snapshots:
            for index, snapshot in enumerate(snapshots):
                grid = snapshot.grid
                ivt = events.vapour_transport({name: snapshot[name] for name in snapshot.channels}, grid)
                assert ivt is not None
                values = np.stack([snapshot["TMQ"], ivt.astype(np.float32)])
                both = on_grid(values, ("TMQ", "IVT"), grid, snapshot.time, snapshot.labels)
                write_snapshot(folder / part / f"{index:04d}.h5", both, "gordon-bell")
                if part == "test":
                    fields.append(values)
    assert grid is not None
    with open_snapshots(folder / "train", channels=["TMQ", "IVT"], labels=None) as snapshots:
        Statistics.gather(snapshots).save(folder / "statistics.json")
    area = np.broadcast_to(grid.areas, (len(fields), *grid.shape))
    print(f"{'by area, synthetic':22s} {'50 %':>7s} {'90 %':>7s} {'99 %':>7s} {'99.9 %':>7s}")
    for number, name in enumerate(("TMQ", "TMQ * wind at 850 hPa")):
        found = quantiles(np.stack([one[number] for one in fields]), area)
        print(f"{name:22s} " + " ".join(f"{value:7.1f}" for value in found))
    return grid


def trained(folder: Path, channels: Sequence[str], steps: int, seed: int) -> tuple[Segmenter, dict[str, Any]]:
    """A network of the laptop preset's kind with those channels, and its scores on the synthetic test part."""
    parts = Parts(folder, channels)
    problem = ClimateProblem(
        parts, channels=channels, loss=CrossEntropy(inverse_power(FREQUENCIES, 0.125)), seed=seed,
        optimiser=AdamW(learning_rate=2e-3), schedule=Cosine(steps, warmup=min(30, steps // 2)),
    )  # fmt: skip
    with World.single() as world:
        trainer = Trainer(problem, world, batch_size=1, seed=seed, clip=1.0, report=Report(show=False))
        trainer.fit(steps=steps)
        assert problem.model is not None
        problem.model.eval()
        tally = Tally()
        with parts.open("test") as test:
            for snapshot in test:
                both = problem.model.classify(snapshot.values), np.asarray(snapshot.labels)
                tally.add(*(torch.from_numpy(mask)[None] for mask in both))
        scores = tally.scores(world)
    return problem.model, {"mean_iou": scores.mean_iou, "iou": scores.iou.tolist()}


# ---- rivers ----


@dataclass(eq=False)
class River:
    """A region that one or several methods mark: as the one that marks its strongest part does."""

    event: events.Event
    cells: NDArray[np.bool_]
    vapour: float
    transport: float
    strongest: float
    shares: dict[str, float]  # of it that each method marks, for those whose region matches

    @property
    def place(self) -> str:
        """Of its centre."""
        east = (self.event.longitude + 180.0) % 360.0 - 180.0
        north = self.event.latitude
        return f"{abs(north):.0f} {'NS'[int(north < 0)]}, {abs(east):.0f} {'EW'[int(east < 0)]}"

    def values(self) -> dict[str, Any]:
        """For the file."""
        shape = {name: getattr(self.event, name) for name in ("latitude", "longitude", "basin", "length", "area")}
        mean = {"mean_iwv": self.vapour, "mean_ivt": self.transport, "greatest_ivt": self.strongest}
        return {**shape, **mean, "share_marked": self.shares}


def matched(masks: dict[str, Field], grid: Grid, vapour: Field, transport: Field) -> tuple[list[River], dict[str, int]]:
    """Rivers of all methods, those that are one put together; and how many regions of each were specks.

    Regions are taken by falling mean transport. Each opens a river of its own, unless it overlaps one that is there.
    """
    area, specks = grid.areas, {}
    found: list[tuple[float, str, events.Event, NDArray[np.bool_]]] = []
    for name, mask in masks.items():
        only = np.where(mask == RIVER, RIVER, BACKGROUND)
        large = events.find(only, grid, {"IVT": transport}, smallest=SMALLEST)
        specks[name] = len(events.find(only, grid).events) - len(large.events)
        for event in large.events:
            cells = large.numbers == event.number
            found.append((float(np.average(transport[cells], weights=area[cells])), name, event, cells))
    found.sort(key=lambda one: one[0], reverse=True)
    together: list[River] = []
    for mean, name, event, cells in found:
        size = float(area[cells].sum())
        alike = [r for r in together if area[cells & r.cells].sum() >= SAME * min(size, float(area[r.cells].sum()))]
        if not alike:
            iwv = float(np.average(vapour[cells], weights=area[cells]))
            alike = [River(event, cells, iwv, mean, float(transport[cells].max()), {})]
            together += alike
        for river in alike:
            part = float(area[cells & river.cells].sum() / area[river.cells].sum())
            river.shares[name] = river.shares.get(name, 0.0) + part
    return together, specks


def told(together: Sequence[River], names: Sequence[str]) -> None:
    """The table of rivers."""
    print(f"\n{'':44s}  share of it that is marked, in %  (-: not found)")
    head = f"{'centre':>12s} sea {'km':>5s} {'Mkm2':>5s} {'IWV':>4s} {'IVT':>4s} {'max':>5s}"
    print(head + "  " + " ".join(f"{f'({chr(97 + i)})':>5s}" for i in range(len(names))))
    for r in together:
        size = f"{r.event.length / 1e3:5.0f} {r.event.area / 1e12:5.2f}"
        marks = (f"{100 * r.shares[name]:5.0f}" if name in r.shares else f"{'-':>5s}" for name in names)
        row = f"{r.place:>12s} {r.event.basin:>3s} {size} {r.vapour:4.1f} {r.transport:4.0f} {r.strongest:5.0f}  "
        print(row + " ".join(marks))


def verdict(together: Sequence[River], names: Sequence[str], networks: Sequence[str]) -> None:
    """Where networks and rules differ, river by river."""

    def listed(chosen: Sequence[River]) -> str:
        return "; ".join(f"{r.place} (IVT {r.transport:.0f})" for r in chosen) or "none"

    by_rule = [r for r in together if any(name in r.shares for name in names if name not in networks)]
    for name in networks:
        missed = [r for r in by_rule if name not in r.shares]
        alone = [r for r in together if name in r.shares and r not in by_rule]
        print(f"{name}: misses {len(missed)} of {len(by_rule)} rivers that a rule finds:\n  {listed(missed)}")
        print(f"and finds {len(alone)} that no rule does:\n  {listed(alone)}")


def ruled(snapshot: Snapshot, grid: Grid) -> dict[str, Field]:
    """Masks of the rules, made on the snapshot's grid, and brought to another: cells that are marked by half."""
    values = {name: snapshot[name] for name in snapshot.channels}
    masks = {}
    for rule, word in (("label 0", "moisture"), ("transport 94", "transport")):
        for variant, rivers_of in (("published", rivers.published), ("corrected", rivers.corrected)):
            mask = rivers_of(values, snapshot.grid, rivers.RULES[rule])
            marked = average(mask.astype(np.float64), snapshot.grid, grid) >= 0.5
            masks[f"{variant} rule, {word}"] = np.where(marked, RIVER, BACKGROUND).astype(np.uint8)
    return masks


def marked(masks: dict[str, Field], grid: Grid, transport: Field, specks: dict[str, int]) -> dict[str, Any]:
    """What each method marks in all; prints it, and how far each two agree."""
    area, names = grid.areas, list(masks)
    low = np.broadcast_to((np.abs(grid.latitude) < TROPICS)[:, None], grid.shape)
    weak, totals = transport < WEAK, {}
    letters = [f"({chr(97 + number)})" for number in range(len(names))]
    print(f"\n{'':30s} {'% of':>5s} {'% in':>7s} {'% below':>7s} {'mean':>4s} {'':>6s} {'% as':>7s}   IoU with")
    head = f"{'rivers by':30s} {'globe':>5s} {'tropics':>7s} {f'{WEAK:.0f}':>7s} {'IVT':>4s} specks cyclone   "
    print(head + " ".join(f"{letter:>5s}" for letter in letters))
    for letter, (name, mask) in zip(letters, masks.items(), strict=True):
        own = mask == RIVER
        total = float(area[own].sum())
        shares = [total / area.sum(), *(float(area[own & part].sum()) / max(total, 1.0) for part in (low, weak))]
        mean, cyclones = float((area * transport)[own].sum()) / max(total, 1.0), float(area[mask == CYCLONE].sum())
        both = [(own & (other == RIVER), own | (other == RIVER)) for other in masks.values()]
        ious = [float(area[a].sum() / max(area[b].sum(), 1.0)) for a, b in both]
        totals[name] = {
            "share_of_globe": shares[0], "tropical": shares[1], "weak": shares[2], "mean_ivt": mean, "iou": ious,
            "specks": specks[name], "cyclones_of_globe": cyclones / area.sum(),
        }  # fmt: skip
        first = "{:5.1f} {:7.0f} {:7.0f}".format(*(100 * share for share in shares))
        row = f"{f'{letter} {name}':30s} {first} {mean:4.0f} {specks[name]:6d}"
        print(f"{row} {100 * cyclones / area.sum():7.2f}   " + " ".join(f"{value:5.2f}" for value in ious))
    print(f"in tropics: of its area, within {TROPICS:.0f} degrees of the equator; below {WEAK:.0f}: where IVT is less;")
    print(f"specks: regions below {SMALLEST / 1e12} Mkm2; as cyclone: of the globe, which nothing here can confirm")
    return totals


def of_rivers(path: Path, out: Path, generation: Generation, steps: int, seed: int) -> dict[str, Any]:
    """All that is found out by the snapshot; prints it and draws it."""
    with open_snapshots(path, channels=["TMQ", "IVT"], labels=None) as snapshots:
        snapshot = snapshots[0]
    began, made = time.monotonic(), default_path(generation)
    count = generate(made, generation)  # those of the laptop preset, if it has been run
    print(f"rivers on {snapshot.time} UTC in MERRA-2, {snapshot.grid.shape[0]} x {snapshot.grid.shape[1]} points")
    print(f"{count} synthetic snapshots made in {time.monotonic() - began:.0f} s, the others were there")
    with tempfile.TemporaryDirectory() as folder:
        grid = training_data(made, Path(folder))
        for name in snapshot.channels:
            found = quantiles(snapshot[name], snapshot.grid.areas)
            print(f"{'MERRA-2, ' + name:22s} " + " ".join(f"{value:7.1f}" for value in found))
        vapour, transport = (average(snapshot[name], snapshot.grid, grid) for name in snapshot.channels)
        masks, networks = ruled(snapshot, grid), {}
        print(f"\n{steps} steps of training each, on {grid.shape[0]} x {grid.shape[1]} points")
        print(f"{'IoU on synthetic days':22s} {'mean':>6s} " + " ".join(f"{n:>18s}" for n in CLASSES))
        for channels in (("TMQ",), ("TMQ", "IVT")):
            name = "network, " + " and ".join(channels)
            model, networks[name] = trained(Path(folder), channels, steps, seed)
            row = " ".join(f"{value:18.3f}" for value in networks[name]["iou"])
            print(f"{name:22s} {networks[name]['mean_iou']:6.3f} {row}", flush=True)
            masks[name] = model.classify(np.stack([vapour, transport][: len(channels)]).astype(np.float32))
    together, specks = matched(masks, grid, vapour, transport)
    totals = marked(masks, grid, transport, specks)
    told(together, list(masks))
    print("IWV [kg m-2] and IVT [kg m-1 s-1] are means over the region of the method that marks its strongest part;")
    print(f"sea: basin as of IBTrACS. The description of the file names, by eye: {SEEN}\n")
    verdict(together, list(masks), list(networks))
    out.mkdir(parents=True, exist_ok=True)
    picture = out / "rivers.png"
    title = f"{str(snapshot.time).replace('T', ' ')} UTC, MERRA-2: nobody labelled this day"
    plots.snapshot(picture, masks, grid, vapour, unit="IWV [kg m$^{-2}$]", title=title)
    Image.open(picture).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(picture, optimize=True)
    print(f"\n{picture} ({picture.stat().st_size / 1e3:.0f} kB)")
    return {
        "networks": networks, "methods": totals, "rivers": [river.values() for river in together],
        "steps": steps, "seed": seed, "grid": list(grid.shape),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the picture")
    parser.add_argument("--steps", type=int, default=450, help="of training, for each of the two networks")
    parser.add_argument("--seed", type=int, default=0, help="of the networks that look for rivers")
    parser.add_argument("--quick", action="store_true", help="seconds; shows that it runs, the figures are worthless")
    arguments = parser.parse_args()
    try:
        folder = find("climate")
    except DatasetError as error:
        print(f"no real data, nothing to report: {error}")
        return
    torch.set_num_threads(1)
    cpu, generation, steps, seeds = time.process_time(), Generation(), arguments.steps, 5
    if arguments.quick:
        generation, steps, seeds = Generation(48, 72, 24, 4, 6), 40, 2
    figures = {
        "benchmark": "climate_real", "format": 1, "quick": arguments.quick,
        "points": of_points(folder / POINTS, seeds),
        "rivers": of_rivers(folder / SNAPSHOT, arguments.out, generation, steps, arguments.seed),
    }  # fmt: skip
    print(f"{time.process_time() - cpu:.0f} s of CPU time")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
