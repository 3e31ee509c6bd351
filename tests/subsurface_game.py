"""A small site and the hierarchical game on it, for tests on several ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exafield.field import Field
from exafield.reduce import Reducer
from exafield.report import Report
from exafield.subsurface.generated import box
from exafield.subsurface.hierarchical_problem import HierarchicalProblem
from exafield.subsurface.random_fields import MeshSpectrum, SpectralField
from exafield.subsurface.site import Site
from exafield.subsurface.snapshots import Snapshots, simulated
from exafield.trainer import Trainer
from exafield.world import World

ROWS = 8


class Same:
    """A source that gives the same batch whatever is asked for: all ranks then see the same snapshots."""

    def __init__(self, snapshots: Snapshots) -> None:
        self.snapshots = snapshots

    @property
    def fields(self) -> Mapping[str, Field]:
        return self.snapshots.fields

    def __len__(self) -> int:
        return len(self.snapshots)

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        return self.snapshots.batch(range(len(indices)), 0)


def snapshots(site: Site, count: int, seed: int = 0) -> Snapshots:
    """Full fields of a law with a length of 2.5 km."""
    field = SpectralField(MeshSpectrum.of(site.mesh), [2500.0], [2.0], mean=7.8)
    return simulated(site, field, count, seed)


def problem(site: Site, full: Snapshots, test: Snapshots, **settings: Any) -> HierarchicalProblem:
    """A game on every third cell's ln T and some wells."""
    read = full.at(y_cells=np.arange(0, site.cells, 3), u_cells=site.well_cells)
    settings = {"subdomains": 4, "overlap": 2, "coarse_modes": 30, "rows": ROWS, **settings}
    return HierarchicalProblem(site, read, test=test, **settings)


def small(**settings: Any) -> HierarchicalProblem:
    """On 108 cells, with few snapshots; every rank sees the same ones."""
    site = box(12, 9)
    full = snapshots(site, 40)
    made = problem(site, full, full.rows(np.arange(20)), **settings)
    made.source = Same(made.groups[""])  # type: ignore[assignment]  # a source, too
    return made


def trainer(made: HierarchicalProblem, world: World, **settings: Any) -> Trainer:
    """Of a game, without prints."""
    settings = {"batch_size": ROWS, "seed": 1, "report": Report(show=False), **settings}
    return Trainer(made, world, Reducer(), **settings)


def learnt(made: HierarchicalProblem, world: World) -> dict[str, Tensor]:
    """Averages of all generators, brought to every rank."""
    made.share(world)
    assert made.model is not None
    return {name: value.clone() for name, value in made.model.average().items()}


def parameters(module: torch.nn.Module) -> Tensor:
    """All in one."""
    return torch.cat([p.detach().flatten().double() for p in module.parameters()])
