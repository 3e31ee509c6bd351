"""Every style gives back, from the state of a checkpoint, the law that its players have learnt."""

import numpy as np
import pytest
import torch

from exafield.setting import RunError
from exafield.subsurface.average import Averaged
from exafield.subsurface.generated import box
from exafield.subsurface.laws import Law
from exafield.subsurface.snapshots import Snapshots, simulated
from exafield.subsurface.styles import Facies, Hierarchical, Lesson, Paper, Spectral, Style
from exafield.world import World


@pytest.fixture(scope="module")
def lesson() -> Lesson:
    site = box(12, 9, wells=20)
    fields = simulated(site, Law(7.8, (2.6,), (2500.0,), (2.5,)).field(site), 60)
    seen = fields.rows(slice(0, 40)).at(y_cells=np.arange(0, 108, 4), u_cells=site.well_cells)
    return Lesson(site, seen, fields.rows(slice(40, 60)), fields.rows(slice(0, 40)), None, None, 0, 8)


@pytest.mark.filterwarnings("ignore::exafield.subsurface.snapshots.SnapshotWarning")
@pytest.mark.parametrize("style", [Spectral(scales=2), Hierarchical(subdomains=2, overlap=2), Facies(), Paper(noise=3)])
def test_what_was_learnt_comes_back_from_the_state(style: Style, lesson: Lesson) -> None:
    with World.single("cpu") as world:
        modules = {player.name: player.module for player in style.problem(lesson).players(world)}
    generators = {name: modules[name] for name in style.generators}
    with torch.no_grad():
        for module in generators.values():
            for value in module.parameters():
                value.mul_(1.02)
            if isinstance(module, Averaged):
                module.update(0)
    states = {name: module.state_dict() for name, module in generators.items()}
    prior = style.prior(states, lesson.site, lambda: lesson)
    noise = torch.randn(2, prior.noise, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fields = prior(noise)
    assert fields.shape == (2, lesson.site.cells)
    assert bool(torch.isfinite(fields).all())
    # Another state is another law.
    with World.single("cpu") as world:
        untouched = {p.name: p.module.state_dict() for p in style.problem(lesson).players(world)}
    other = style.prior({name: untouched[name] for name in style.generators}, lesson.site, lambda: lesson)(noise)
    assert float((fields - other).abs().max()) > 1e-3


@pytest.mark.filterwarnings("ignore::exafield.subsurface.snapshots.SnapshotWarning")
def test_a_hierarchy_comes_back_exactly(lesson: Lesson) -> None:
    style = Hierarchical(subdomains=2, overlap=2)
    problem = style.problem(lesson)
    with World.single("cpu") as world:
        modules = {player.name: player.module for player in problem.players(world)}
    prior = style.prior({n: modules[n].state_dict() for n in style.generators}, lesson.site, lambda: lesson)
    noise = torch.randn(3, prior.noise, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(prior(noise).float(), problem.hierarchy(noise.float()), atol=1e-4, rtol=1e-4)


def test_facies_need_full_fields(lesson: Lesson) -> None:
    sensors = Snapshots.of(y_cells=np.arange(27), y=lesson.train.y)
    with pytest.raises(RunError, match="learns from full fields"):
        Facies().problem(Lesson(lesson.site, sensors, None, None, None, None, 0))
