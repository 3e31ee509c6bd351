"""The inverse problem of 4D-STEM: which projected potential is behind these diffraction patterns?"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exafield.microscopy import ridge
from exafield.microscopy.analysis import TRUE_THRESHOLD, Score, best_threshold, relative_l2, score
from exafield.microscopy.generate import Generation, Scan, default_path, generate, load, seen_prototypes, split
from exafield.microscopy.loss import MSE, Huber
from exafield.microscopy.model import Reconstructor, scan_as_space
from exafield.microscopy.plots import Example, reconstructions
from exafield.microscopy.window import Window, WindowSource
from exafield.optim import AdamW, Constant, Optimiser, Schedule
from exafield.problem import Player
from exafield.world import World

# Epochs from which held-back windows are drawn, far from any that training reaches: their noise is never seen twice.
_HELD_BACK = 1_000_000
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Report:
    """How well a network does on crystals it never saw, beside the best ridge regression on the same windows.

    Args:
        network, ridge: on all test windows.
        seen, unseen: the network where the structure type occurs in training, and where it does not.
        mean_image: relative L2 of predicting nothing but the mean; 1 by definition of the target.
        ridge_name: which of the ridge regressions was best on validation data.
        ridges: relative L2 of each on validation data.
        thresholds: of the columns of network and ridge, chosen on validation data.
        kept: mean and least share of the intensity that simulated patterns kept within the band limit.
    """

    network: Score
    ridge: Score
    seen: Score | None
    unseen: Score | None
    mean_image: float
    ridge_name: str
    ridges: Mapping[str, float]
    thresholds: tuple[float, float]
    kept: tuple[float, float]

    def lines(self) -> list[str]:
        """A table to print."""
        rows = [
            ("network", self.network),
            ("  structure type seen in training", self.seen),
            ("  structure type never seen", self.unseen),
            (f"ridge, {self.ridge_name}", self.ridge),
        ]
        table = [f"{'':36s} windows  rel. L2     R2  recall  precision  position"]
        table += [
            f"{name:36s} {s.windows:7d}  {s.relative_l2:7.3f}  {s.r2:5.3f}  {s.recall:6.3f}  "
            f"{s.precision:9.3f}  {s.rms:.3f} A"
            for name, s in rows
            if s is not None
        ]
        return [
            *table,
            f"{'mean image':36s} {self.network.windows:7d}  {self.mean_image:7.3f}  0.000",
            f"{'intensity within the band limit':36s} mean {self.kept[0]:.4f}, least {self.kept[1]:.4f}",
        ]

    def values(self) -> dict[str, Any]:
        """All numbers."""
        return asdict(self)

    def gate(self) -> list[tuple[bool, str]]:
        """What a good run reaches, and whether this one did."""
        n, share = self.network, self.network.relative_l2 / self.ridge.relative_l2
        return [
            (share <= 0.75, f"relative L2 is {share:.2f} x that of the best ridge (at most 0.75)"),
            (n.r2 >= 0.95, f"standardised R2 is {n.r2:.3f} (at least 0.95)"),
            (n.recall >= 0.9, f"recall of atom columns is {n.recall:.3f} (at least 0.9)"),
            (n.precision >= 0.9, f"precision of atom columns is {n.precision:.3f} (at least 0.9)"),
        ]


class MicroscopyProblem:
    """Reconstructs projected potentials of crystals from their diffraction patterns.

    Data is simulated when first needed and kept (see :func:`exafield.microscopy.generate.default_path`).

    Args:
        generation: what is simulated.
        window: what one sample is.
        path: of the store; default: in the user's cache, by the parameters.
        loss: on potentials.
        optimiser, schedule: of the network.
        growth: of the dense network.
        per_scan: windows of each view per epoch.
        seed: of windows and noise.
    """

    name = "microscopy"

    def __init__(
        self,
        generation: Generation | None = None,
        window: Window | None = None,
        *,
        path: str | Path | None = None,
        loss: MSE | Huber | None = None,
        optimiser: Optimiser | None = None,
        schedule: Schedule | None = None,
        growth: int = 16,
        per_scan: int = 8,
        seed: int = 0,
    ) -> None:
        self.generation, self.window = generation or Generation(), window or Window()
        self.path = Path(path) if path is not None else default_path(self.generation)
        self._loss = loss or MSE()
        self._optimiser = optimiser or AdamW(learning_rate=2e-3)
        self._schedule = schedule or Constant(warmup=30)
        self._growth, self._per_scan, self._seed = growth, per_scan, seed
        self._step = 0
        self.model: Reconstructor | None = None
        self._examples: list[Example] = []
        self._scale = 1.0

    # ---- data ----

    @cached_property
    def parts(self) -> Mapping[Any, list[Scan]]:
        """Simulated views for training, validation and test, split by material; generated if they do not exist."""
        generate(self.path, self.generation)
        parts = split(load(self.path, self.generation))
        for name, scans in parts.items():
            if not scans:
                raise ValueError(f"no crystal falls into the {name} part of {self.path}: generate from more crystals")
        return parts

    @cached_property
    def source(self) -> WindowSource:
        """Random windows of the training views."""
        return WindowSource(self.parts["train"], self.window, per_scan=self._per_scan, seed=self._seed)

    def _held_back(self, part: str) -> WindowSource:
        scans = self.parts[part]
        return WindowSource(scans, self.window, seed=self._seed, scale=self.source.scale, augment=False)

    # ---- training ----

    def players(self, world: World) -> Sequence[Player]:
        """One player: the network."""
        source = self.source
        if self.model is None:
            self.model = Reconstructor(scan_as_space(source.pixels, self.window.refine, self._growth), source.pixels)
            count = min(64, len(source))
            self.model.fit_statistics(source.batch(range(count), _HELD_BACK)["scan"])
        model = self.model

        def loss(batch: Mapping[str, Tensor]) -> Tensor:
            return self._loss(model(batch["scan"]).float(), batch["potential"], self._step)

        def begin(step: int) -> None:
            self._step = step

        return [
            Player("network", model, loss, optimiser=self._optimiser, schedule=self._schedule, begin=begin),
        ]

    def evaluate(self, world: World) -> dict[str, float]:
        """Relative L2, standardised R2 and atom columns found, on one window of each validation view."""
        predictions, truths = self._predict(world, self._held_back("validation"), epochs=1)
        s = score(predictions, truths, self.window.pixel, TRUE_THRESHOLD)
        return {"relative_l2": s.relative_l2, "r2": s.r2, "recall": s.recall, "precision": s.precision}

    @torch.no_grad()
    def _predict(self, world: World, source: WindowSource, epochs: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Network and truth [V A] for windows of every scan of a source, computed by all ranks together."""
        assert self.model is not None, "players() makes the model"
        model = self.model
        training = model.training
        model.eval()
        device = next(model.parameters()).device
        pixels = self.window.pixels
        count = len(source) * epochs
        both = torch.zeros(count, 2, pixels, pixels)
        mine = range(world.rank, count, world.size)
        for start in range(0, len(mine), _BATCH):
            chosen = mine[start : start + _BATCH]
            samples = [source.sample(i % len(source), _HELD_BACK + i // len(source)) for i in chosen]
            prediction = model(torch.stack([s[0] for s in samples]).to(device)).float().cpu()
            for i, p, (_, truth) in zip(chosen, prediction, samples, strict=True):
                both[i, 0], both[i, 1] = p, truth
        world.all_reduce(both)
        if world.kind == "fake":
            both /= world.size
        model.train(training)
        both *= source.scale
        return list(both[:, 0].numpy()), list(both[:, 1].numpy())

    # ---- the verdict ----

    def report(self, world: World, windows: int = 2) -> Report | None:
        """Scores the network on crystals it never saw. Collective; rank 0 gets the report, the others None.

        Args:
            windows: of each test view.
        """
        validation, test = self._held_back("validation"), self._held_back("test")
        seen_by_network = self._predict(world, validation, windows)
        prediction, truth = self._predict(world, test, windows)
        if world.rank != 0:
            return None
        train_batches, validation_batches, test_batches = (
            list(_batches(s, windows)) for s in (self.source, validation, test)
        )
        disc = self.generation.convergence_angle / self.generation.detector_angle
        baseline, ridges = ridge.fit(lambda: iter(train_batches), lambda: iter(validation_batches), disc)
        pixel = self.window.pixel
        scale = self.source.scale
        ridge_seen = [p * scale for scan, _ in validation_batches for p in baseline(scan).numpy()]
        scans = [scan for scan, _ in test_batches]
        by_ridge = [p * scale for scan in scans for p in baseline(scan).numpy()]
        thresholds = (
            best_threshold(*seen_by_network, pixel),
            best_threshold(ridge_seen, seen_by_network[1], pixel),
        )
        types = seen_prototypes(self.parts["train"])
        known = np.array([s.prototype in types for s in test.scans] * windows)

        def part(mask: np.ndarray) -> Score | None:
            chosen = np.flatnonzero(mask)
            if not len(chosen):
                return None
            return score([prediction[i] for i in chosen], [truth[i] for i in chosen], pixel, thresholds[0])

        kept = [s.kept for scans_of_part in self.parts.values() for s in scans_of_part]
        self._choose_examples(test, torch.cat(scans), truth, by_ridge, prediction, known)
        return Report(
            score(prediction, truth, pixel, thresholds[0]),
            score(by_ridge, truth, pixel, thresholds[1]),
            part(known),
            part(~known),
            float(np.mean([relative_l2(np.zeros_like(t), t) for t in truth])),
            baseline.name,
            ridges,
            thresholds,
            (float(np.mean(kept)), min(kept)),
        )

    def _choose_examples(
        self,
        test: WindowSource,
        scans: Tensor,
        truth: Sequence[np.ndarray],
        by_ridge: Sequence[np.ndarray],
        by_network: Sequence[np.ndarray],
        known: np.ndarray,
    ) -> None:
        """Windows of four crystals, not the prettiest ones: a good and a bad one whose structure type was seen in
        training, and a good and a bad one whose type was not; the first and last fifth by error are left out."""
        errors = np.array([relative_l2(p, t) for p, t in zip(by_network, truth, strict=True)])
        first: dict[str, int] = {}
        for i in range(len(test)):
            first.setdefault(test.scans[i].crystal, i)
        chosen = []
        for kind in (True, False):
            ranked = sorted((i for i in first.values() if known[i] == kind), key=lambda i: errors[i])
            chosen += [ranked[round(share * (len(ranked) - 1))] for share in (0.2, 0.8) if ranked]
        dose = self.window.dose or 1.0
        middle = self.window.probes // 2
        self._examples = [
            Example(
                test.scans[i].name,
                "type seen in training" if known[i] else "type never seen",
                (scans[i, middle, middle] ** 2 * dose).numpy(),
                truth[i],
                by_ridge[i],
                by_network[i],
                (relative_l2(by_ridge[i], truth[i]), float(errors[i])),
            )
            for i in dict.fromkeys(chosen)
        ]

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draws four test crystals: pattern, truth, ridge, network. Needs :meth:`report` before.

        Raises:
            RuntimeError: there is no report yet.
        """
        if not self._examples:
            raise RuntimeError("nothing to draw yet: call report(world) first")
        reconstructions(
            Path(path),
            self._examples,
            pixel=self.window.pixel,
            detector_angle=self.generation.detector_angle,
            dose=self.window.dose,
            caption="crystals never seen in training, good and bad; error = relative L2 of the potential",
        )


def _batches(source: WindowSource, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Held-back windows of every scan, the same at each call."""
    count = len(source.scans) * epochs
    for start in range(0, count, _BATCH):
        samples = [
            source.sample(i % len(source.scans), _HELD_BACK + i // len(source.scans))
            for i in range(start, min(start + _BATCH, count))
        ]
        yield torch.stack([s[0] for s in samples]), torch.stack([s[1] for s in samples])
