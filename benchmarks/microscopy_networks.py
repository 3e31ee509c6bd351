"""Networks for the inverse problem of microscopy: the same batches, equal FLOPs, unseen crystals.

    python benchmarks/microscopy_networks.py [--device cuda] [--seconds 150] [--crystals FOLDER] [--json FILE] [--quick]

Three kinds of network (src/exafield/microscopy/networks.py): a dense one over scan positions; a learnt basis with
attention across the scan; and the published layout, in which the detector is the image and scan positions are channels,
with each kind of skip connection. Their sizes are chosen such that a training sample costs all of them the same number
of floating-point operations within 3 %. All are trained side by side, each on every batch, for `--seconds` in all, and
scored on windows of crystals that were never seen, at four doses. Data is that of `exafield train microscopy --preset
full`: energies, angles, thicknesses and B factors drawn for each view; it is simulated at the beginning, in memory.
"""

import argparse
import json
import math
import mmap
import multiprocessing
import os
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exafield.engine.local import ProcessEngine
from exafield.flops import Operations
from exafield.microscopy.analysis import Assessed, assess, best_threshold, together
from exafield.microscopy.assembly import MakeNetwork, generation
from exafield.microscopy.generate import samples
from exafield.microscopy.heldback import HeldBack, doses, named, predict
from exafield.microscopy.loss import MSE, surprise
from exafield.microscopy.model import Reconstructor, weights
from exafield.microscopy.recipe import simulate
from exafield.microscopy.scans import Scan, scans_of, split
from exafield.microscopy.window import Window, WindowSource
from exafield.run import full
from exafield.world import World

# Network and learning rate.
NETWORKS: dict[str, tuple[str, float]] = {
    "dense over scan positions": ("dense:growth=24,first=64", 2e-3),
    "attention across the scan": ("attentive:channels=68,depth=3", 1e-3),
    "published, plain": ("published:growth=22,first=56,skips=plain", 2e-3),
    "published, pixels to places": ("published:growth=18,first=56,skips=pixels", 2e-3),
    "published, probes to places": ("published:growth=17,first=52,skips=probes", 2e-3),
}


def simulated(**changed: Any) -> list[Scan]:
    """All scans of the preset's data, or of other ones where something else is given."""
    data = replace(full().problem.data, **{name: value for name, value in changed.items() if value is not None})
    wanted = generation(data)
    tasks = ((view, wanted.recipe(view, variant)) for _, view, variant in samples(wanted))
    found = dict(ProcessEngine().map(simulate, tasks))
    return [scan for _, sample in sorted(found.items()) for scan in scans_of(*sample)]


def operations(model: Reconstructor, source: WindowSource) -> int:
    """Of a training step on one sample."""
    batch = source.batch([0], 0)
    with Operations() as counted:
        step_loss(model, batch).backward()
    model.zero_grad(set_to_none=True)
    return counted.exact


def step_loss(model: Reconstructor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What `exafield train microscopy` minimises."""
    potential, doubt = model(batch["scan"], batch["conditions"])
    return MSE()(potential, batch["potential"]) + 0.05 * surprise(potential, doubt, batch["potential"])


class Feeder:
    """Batches that forked processes cut, one for each core but one, into memory that is shared with them.

    Args:
        source: of the windows.
        batch: windows in each.
        workers: processes.
    """

    def __init__(self, source: WindowSource, batch: int, workers: int) -> None:
        first = source.batch([0], 0)
        self.shapes = {name: (batch, *tensor.shape[1:]) for name, tensor in first.items()}
        self._slots = [self._slot() for _ in range(2 * workers)]
        context = multiprocessing.get_context("fork")
        self._todo, self._ready = context.SimpleQueue(), context.SimpleQueue()
        self._drawn = 0
        self._workers = [context.Process(target=self._fill, args=(source,), daemon=True) for _ in range(workers)]
        for worker in self._workers:
            worker.start()
        for slot in range(len(self._slots)):
            self._ask(slot)

    def _slot(self) -> dict[str, np.ndarray]:
        return {
            name: np.frombuffer(mmap.mmap(-1, 4 * math.prod(shape)), dtype=np.float32).reshape(shape)
            for name, shape in self.shapes.items()
        }

    def _ask(self, slot: int) -> None:
        self._todo.put((slot, self._drawn))
        self._drawn += 1

    def _fill(self, source: WindowSource) -> None:
        torch.set_num_threads(1)
        while (task := self._todo.get()) is not None:
            slot, number = task
            random = np.random.default_rng(number)
            count = next(iter(self.shapes.values()))[0]
            for name, tensor in source.batch(random.integers(len(source), size=count).tolist(), number).items():
                self._slots[slot][name][:] = tensor.numpy()
            self._ready.put(slot)

    def next(self, device: str) -> dict[str, torch.Tensor]:
        """A batch, on the device."""
        slot = self._ready.get()
        batch = {name: torch.tensor(array, device=device) for name, array in self._slots[slot].items()}
        self._ask(slot)
        return batch

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.terminate()
            worker.join()


def train(
    models: dict[str, Reconstructor], rates: dict[str, float], feeder: Feeder, seconds: float, device: str
) -> int:
    """Side by side for so many seconds; returns the number of steps."""
    optimisers = {n: torch.optim.AdamW(m.parameters(), rates[n], fused=True) for n, m in models.items()}
    began, step = time.monotonic(), 0
    while (share := (time.monotonic() - began) / seconds) < 1:
        drawn = feeder.next(device)
        # Linear warm-up, then a cosine over the time there is.
        factor = min(1.0, (step + 1) / 30) * 0.5 * (1 + np.cos(np.pi * share))
        for name, model in models.items():
            optimiser = optimisers[name]
            optimiser.param_groups[0]["lr"] = rates[name] * factor
            optimiser.zero_grad()
            loss = step_loss(model, drawn)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            if step % 200 == 0:
                print(f"step {step:5d}  {name:28s} loss {loss.item():.4f}", flush=True)
        step += 1
    return step


def scored(task: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]) -> list[Assessed]:
    """Test windows at one dose, by the threshold that suits validation; a plain function, for worker processes."""
    chosen, chosen_truth, judged, truth, pixel = task
    few = slice(0, None, max(1, len(chosen) // 60))
    limit = best_threshold(list(chosen[few]), list(chosen_truth[few]), pixel)
    return [assess(p, t, pixel, limit) for p, t in zip(judged, truth, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=150.0, help="of training, all networks together")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--variants", type=int, help="simulations of each view; default: as the preset")
    parser.add_argument(
        "--networks",
        nargs="+",
        metavar="TEXT@RATE",
        help="others than these, of any cost, such as dense:growth=32@0.002",
    )
    parser.add_argument("--crystals", help="a folder of CIF files, or embedded; default: as the preset")
    parser.add_argument("--quick", action="store_true", help="small crystals, half a minute")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # partial occupancies in CIF files
    crystals, edge, seconds, batch = arguments.crystals, None, arguments.seconds, arguments.batch
    if arguments.quick:
        crystals, edge, seconds, batch = crystals or "embedded", 3.3, 15.0, 4
    began = time.monotonic()
    parts = split(simulated(crystals=crystals, largest_edge=edge, variants=arguments.variants))
    print(f"simulated in {time.monotonic() - began:.0f} s: " + ", ".join(f"{n} {len(s)}" for n, s in parts.items()))
    question = full().problem
    window = Window(dose=question.dose, dose_to=question.dose_to)
    source = WindowSource(parts["train"], window)
    some = HeldBack(source).batch(np.linspace(0, len(source) - 1, min(64, len(source))).astype(int).tolist())
    models: dict[str, Reconstructor] = {}
    rows: dict[str, dict[str, Any]] = {}
    networks = NETWORKS
    if arguments.networks:
        networks = {text: (text.rpartition("@")[0], float(text.rpartition("@")[2])) for text in arguments.networks}
    for name, (text, rate) in networks.items():
        torch.manual_seed(0)
        model = Reconstructor(MakeNetwork(text)(pixels=source.pixels, probes=window.probes), source.pixels)
        model.fit_statistics(some["scan"], source.spread(), source.scale)
        rows[name] = {
            "network": text,
            "learning rate": rate,
            "weights": weights(model),
            "MFLOP a sample": operations(model, source) / 1e6,
        }
        models[name] = model
    rates = {name: rate for name, (_, rate) in networks.items()}
    first = next(iter(rows.values()))["MFLOP a sample"]
    for name, row in rows.items():
        print(
            f"{name:28s} {row['weights']:8,d} weights, {row['MFLOP a sample']:.0f} MFLOP a training sample", flush=True
        )
        if networks is NETWORKS:
            assert abs(row["MFLOP a sample"] / first - 1) < 0.03, "sizes are to be chosen such that all cost the same"
    # Processes are forked before the GPU is touched: it would not survive that.
    feeder = Feeder(source, batch, max(1, (os.cpu_count() or 2) - 1))
    for model in models.values():
        model.to(arguments.device)
    try:
        steps = train(models, rates, feeder, seconds, arguments.device)
    finally:
        feeder.close()
    print(f"{steps} steps of {batch} windows each, {time.monotonic() - began:.0f} s so far", flush=True)
    validation, test = (
        HeldBack(WindowSource(parts[p], window, scale=source.scale, augment=False, device=arguments.device))
        for p in ("validation", "test")
    )
    tasks, owners = [], []
    with World.single(arguments.device) as world:
        for name, model in models.items():
            for dose in doses(window):
                chosen, judged = (predict(model, part.at(dose), world) for part in (validation, test))
                tasks.append((chosen.prediction, chosen.truth, judged.prediction, judged.truth, window.pixel))
                owners.append((name, named(dose)))
    for index, windows in ProcessEngine().map(scored, tasks):
        name, dose_name = owners[index]
        rows[name].setdefault("windows", {})[dose_name] = windows
    for name, row in rows.items():
        at = row.pop("windows")
        at = {named(dose): at[named(dose)] for dose in doses(window)}
        at["all doses"] = [w for some in at.values() for w in some]
        row["scores"] = {dose_name: asdict(together(windows)) for dose_name, windows in at.items()}
        for dose_name, s in row["scores"].items():
            print(
                f"{name:28s} {dose_name:16s} relative L2 {s['relative_l2']:.3f}, R2 {s['r2']:.3f}, recall "
                f"{s['recall']:.3f}, precision {s['precision']:.3f}, position {s['rms']:.3f} A",
                flush=True,
            )
    took = time.monotonic() - began
    print(f"{took:.0f} s in all; {len({s.material for s in parts['test']})} test materials")
    if arguments.json:
        about = {
            "benchmark": "microscopy_networks",
            "format": 1,
            "device": arguments.device,
            "torch": torch.__version__,
        }
        about |= {"steps": steps, "batch": batch, "seconds": seconds, "took": took, "quick": arguments.quick}
        about["windows"] = {name: len(scans) for name, scans in parts.items()}
        arguments.json.write_text(json.dumps({**about, "networks": rows}, indent=1))


if __name__ == "__main__":
    main()
