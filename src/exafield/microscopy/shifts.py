"""Shifts: the crystals that a network is tested with, recorded as no training scan was.

What changes is said in :data:`SHIFTS`. Windows, noise and doses stay the same, so that errors can be compared with
those of the first, which changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from exafield.microscopy.phonons import configurations
from exafield.microscopy.potential import projected_slices
from exafield.microscopy.recipe import Recipe, simulate
from exafield.microscopy.scans import Scan, scans_of
from exafield.microscopy.views import View
from exafield.microscopy.window import Window, WindowSource, interpolation


@dataclass(frozen=True, slots=True)
class Shift:
    """One way in which scans differ from those of training.

    Args:
        name: in words.
        change: of the recipe.
        jitter: standard deviation of probe positions about those that are assumed, along each axis [A].
        phonons: configurations of displaced atoms that patterns are averaged over; 0 for a smeared potential at rest.
    """

    name: str
    change: Mapping[str, Any] = field(default_factory=dict)
    jitter: float = 0.0
    phonons: int = 0


#: Our choice: what a well-aligned, corrected microscope may be off by, and the physics that training leaves out.
SHIFTS = (
    Shift("as in training"),
    Shift("Lobato's potentials", {"parametrisation": "lobato"}),
    Shift("B factor 1.5 A^2", {"b_factor": 1.5}),
    Shift("defocus 20 A", {"defocus": 20.0}),
    Shift("spherical aberration 5 um", {"cs": 5e4}),
    Shift("probes 0.1 A off", jitter=0.1),
    Shift("frozen phonons", phonons=8),
)


class ShiftedSource(WindowSource):
    """Windows of scans that differ in one way from those of training, with exact counts and not augmented.

    Args:
        samples: view and recipe of each, as in training.
        shift: what is different.
        window, scale, seed: see :class:`WindowSource`.
    """

    def __init__(
        self, samples: Sequence[tuple[View, Recipe]], shift: Shift, window: Window, *, scale: float, seed: int = 0
    ) -> None:
        self.shift = shift
        self._made: list[tuple[View, Recipe]] = []
        scans: list[Scan] = []
        for view, recipe in samples:
            changed = replace(recipe, **shift.change)
            of_sample = scans_of(*simulate((view, changed)))
            scans += of_sample
            self._made += [(view, changed)] * len(of_sample)
        super().__init__(scans, window, seed=seed, scale=scale, augment=False)

    def cut(
        self, number: int, origin: tuple[float, float]
    ) -> tuple[Float[Tensor, "x y kx ky"], Float[Tensor, "fx fy"]]:
        """See :meth:`WindowSource.cut`."""
        patterns, potential = super().cut(number, origin)
        # Of the same window the same positions and displacements, whatever the dose.
        seed = np.random.SeedSequence((self.seed, number, int(1e6 * origin[0]), int(1e6 * origin[1])))
        if self.shift.jitter:
            patterns = self._beside(number, origin, np.random.default_rng(seed))
        if self.shift.phonons:
            patterns = self._displaced(number, origin, int(seed.generate_state(1)[0]))
        return patterns, potential

    def _places(self, origin: tuple[float, float]) -> Float[np.ndarray, "probe 2"]:
        w = self.window
        x, y = (origin[d] + (np.arange(w.probes) + 0.5) * w.step for d in (0, 1))
        return np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 2)

    def _beside(
        self, number: int, origin: tuple[float, float], random: np.random.Generator
    ) -> Float[Tensor, "x y kx ky"]:
        """Patterns at positions that are off."""
        places = self._places(origin)
        places += self.shift.jitter * random.standard_normal(places.shape)
        cell, edges = self._patterns[number].float(), self.scans[number].edges
        px, py = (interpolation(cell.shape[d], edges[d], places[:, d]) for d in (0, 1))
        count = self.window.probes
        patterns: Tensor = torch.einsum("pi,pj,ijkl->pkl", px, py, cell).clamp_(min=0).unflatten(0, (count, count))
        return patterns

    def _displaced(self, number: int, origin: tuple[float, float], seed: int) -> Float[Tensor, "x y kx ky"]:
        """Patterns of a crystal whose atoms stand where heat has moved them."""
        (view, recipe), thickness = self._made[number], self.scans[number].thickness
        total: Tensor | None = None
        wanted = {"thickness": thickness, "box": recipe.box, "b_factor": recipe.b_factor}
        for moved in configurations(view, **wanted, count=self.shift.phonons, seed=seed):
            slices = projected_slices(
                moved,
                sampling=recipe.sampling,
                slice_thickness=recipe.slice_thickness,
                thickness=thickness,
                b_factor=0.0,
                parametrisation=recipe.parametrisation,
                box=recipe.box,
            )
            microscope = recipe.microscope(slices)
            patterns = microscope.scan(slices.array(), torch.from_numpy(self._places(origin)))
            one = recipe.detector().bin(patterns, slices.sampling, microscope.wavelength)
            total = one if total is None else total + one
        assert total is not None, "there is at least one configuration"
        count = self.window.probes
        mean: Tensor = (total / self.shift.phonons).float().unflatten(0, (count, count))
        return mean
