"""The inverse problem of 4D-STEM: which projected potential is behind these diffraction patterns?"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from exafield.microscopy.analysis import TRUE_THRESHOLD, relative_l2, score
from exafield.microscopy.generate import Generation, default_path, generate
from exafield.microscopy.heldback import HeldBack, Predicted, doses, named, predict
from exafield.microscopy.loss import MSE, Huber, surprise
from exafield.microscopy.model import Reconstructor
from exafield.microscopy.networks import Dense, Network
from exafield.microscopy.plots import Example, reconstructions
from exafield.microscopy.scans import Scan, Split, load, seen_prototypes, split
from exafield.microscopy.verdict import Judged, Report, judge
from exafield.microscopy.window import Window, WindowSource
from exafield.optim import AdamW, Constant, Optimiser, Schedule
from exafield.problem import Player
from exafield.world import World

# Weight of the loss of expected deviations. They share no weights with the potential, and Adam does not mind scale: it
# only keeps their gradients from weighing much in the norm that is clipped (our choice).
_DOUBT = 0.05
# Windows of each validation scan when there is one condition only.
_WINDOWS = 2


class MicroscopyProblem:
    """Reconstructs projected potentials of crystals from their diffraction patterns.

    Data is simulated when first needed and kept (see :func:`exafield.microscopy.generate.default_path`).

    Args:
        generation: what is simulated.
        window: what one sample is.
        path: of the store; default: in the user's cache, by the parameters.
        network: makes a network for so many detector pixels and scan positions along a side.
        loss: on potentials.
        optimiser, schedule: of the network.
        per_scan: windows of each scan per epoch.
        split_by: what must not sit on two sides of the split into training, validation and test.
        seed: of windows and noise.
    """

    name = "microscopy"

    def __init__(
        self,
        generation: Generation | None = None,
        window: Window | None = None,
        *,
        path: str | Path | None = None,
        network: Callable[..., Network] = Dense,
        loss: MSE | Huber | None = None,
        optimiser: Optimiser | None = None,
        schedule: Schedule | None = None,
        per_scan: int = 8,
        split_by: Split = "material",
        seed: int = 0,
    ) -> None:
        self.generation, self.window = generation or Generation(), window or Window()
        self.path = Path(path) if path is not None else default_path(self.generation)
        self._network = network
        self._loss = loss or MSE()
        self._optimiser = optimiser or AdamW(learning_rate=2e-3)
        self._schedule = schedule or Constant(warmup=30)
        self._per_scan, self._split_by, self._seed = per_scan, split_by, seed
        self._step = 0
        self.model: Reconstructor | None = None
        self._examples: list[Example] = []

    # ---- data ----

    @cached_property
    def parts(self) -> Mapping[Any, list[Scan]]:
        """Simulated scans for training, validation and test; generated if they do not exist."""
        generate(self.path, self.generation)
        parts = split(load(self.path, self.generation), self._split_by)
        for name, scans in parts.items():
            if not scans:
                raise ValueError(f"no crystal falls into the {name} part of {self.path}: generate from more crystals")
        return parts

    @cached_property
    def source(self) -> WindowSource:
        """Random windows of the training scans."""
        return WindowSource(self.parts["train"], self.window, per_scan=self._per_scan, seed=self._seed)

    def held_back(self, part: str, per_scan: int = 1) -> HeldBack:
        """Windows that training does not see."""
        scans, scale = self.parts[part], self.source.scale
        return HeldBack(WindowSource(scans, self.window, seed=self._seed, scale=scale, augment=False), per_scan)

    # ---- training ----

    def players(self, world: World) -> Sequence[Player]:
        """One player: the network."""
        source = self.source
        if self.model is None:
            network = self._network(pixels=source.pixels, probes=self.window.probes)
            self.model = Reconstructor(network, source.pixels, self.window.refine)
            # Spread over all scans: neighbours are of one crystal.
            chosen = np.linspace(0, len(source.scans) - 1, min(64, len(source.scans))).astype(int).tolist()
            some = self.held_back("train").batch(chosen)
            self.model.fit_statistics(some["scan"], source.spread(), source.scale)
        model = self.model

        def loss(batch: Mapping[str, Tensor]) -> Tensor:
            potential, doubt = (part.float() for part in model(batch["scan"], batch["conditions"]))
            truth = batch["potential"]
            return self._loss(potential, truth, self._step) + _DOUBT * surprise(potential, doubt, truth)

        def begin(step: int) -> None:
            self._step = step

        return [
            Player("network", model, loss, optimiser=self._optimiser, schedule=self._schedule, begin=begin),
        ]

    def evaluate(self, world: World) -> dict[str, float]:
        """Relative L2, standardised R2 and atom columns found, on one window of each validation scan."""
        assert self.model is not None, "players() makes the model"
        found = predict(self.model, self.held_back("validation"), world)
        s = score(found.prediction, found.truth, self.window.pixel, TRUE_THRESHOLD)
        return {"relative_l2": s.relative_l2, "r2": s.r2, "recall": s.recall, "precision": s.precision}

    # ---- the verdict ----

    def report(self, world: World) -> Report | None:
        """Scores the network on crystals it never saw. Collective; rank 0 gets the report, the others None."""
        assert self.model is not None, "players() makes the model"
        wanted = doses(self.window)
        per_scan = _WINDOWS if len(wanted) == 1 else 1
        validation, test = (
            {dose: predict(self.model, self.held_back(part, per_scan).at(dose), world) for dose in wanted}
            for part in ("validation", "test")
        )
        if world.rank != 0:
            return None
        g = self.generation
        report, judged = judge(
            self.held_back("train", per_scan),
            validation,
            test,
            seen_prototypes(self.parts["train"]),
            np.linspace(g.thickness, g.thickness_to or g.thickness, g.thicknesses + 1).tolist(),
            1 / g.detector_reach,
            [scan.kept for scans in self.parts.values() for scan in scans],
        )
        self._examples = _examples(judged)
        return report

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draws four test crystals: pattern, truth, ridge, network, expected deviation. Needs :meth:`report` before.

        Raises:
            RuntimeError: there is no report yet.
        """
        if not self._examples:
            raise RuntimeError("nothing to draw yet: call report(world) first")
        reconstructions(
            Path(path),
            self._examples,
            pixel=self.window.pixel,
            reach=self.generation.detector_reach,
            caption="crystals never seen in training, good and bad; error = relative L2 of the potential",
        )


def _examples(judged: Judged) -> list[Example]:
    """Windows of four crystals, not the prettiest ones: a good and a bad one whose structure type was seen in training,
    and a good and a bad one whose type was not; the first and last fifth by error are left out. Of several doses that
    in the middle is shown."""
    wanted = list(judged.parts)
    dose = wanted[len(wanted) // 2]
    part: Predicted = judged.parts[dose]
    count = len(part.truth)
    first = wanted.index(dose) * count
    ridge, seen = judged.by_ridge[first : first + count], judged.seen[first : first + count]
    errors = np.array([relative_l2(p, t) for p, t in zip(part.prediction, part.truth, strict=True)])
    of_crystal: dict[str, int] = {}
    for i in range(count):
        of_crystal.setdefault(part.windows.scan(i).crystal, i)
    chosen = []
    for kind in (True, False):
        ranked = sorted((i for i in of_crystal.values() if seen[i] == kind), key=lambda i: errors[i])
        chosen += [ranked[round(share * (len(ranked) - 1))] for share in (0.2, 0.8) if ranked]
    middle = part.windows.source.window.probes // 2

    def example(i: int) -> Example:
        scan = part.windows.scan(i)
        pattern = part.windows.batch([i])["scan"][0, middle, middle] ** 2 * (dose or 1.0)
        return Example(
            scan.name,
            f"{scan.thickness:.0f} Å, {scan.energy / 1e3:.0f} keV\n{named(dose)}\n"
            f"type {'seen in training' if seen[i] else 'never seen'}",
            pattern.numpy(),
            scan.convergence_angle,
            part.truth[i],
            ridge[i],
            part.prediction[i],
            part.deviation[i],
            (relative_l2(ridge[i], part.truth[i]), float(errors[i])),
        )

    return [example(i) for i in dict.fromkeys(chosen)]
