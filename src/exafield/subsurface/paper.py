"""Physics-informed GANs as in arXiv:1811.02033: two generators, a third made by the equation, a critic for each group.

The law of ln T and head is learned by comparing snapshots of sensors; the equation enters because its residual, made of
the generated fields, is one more reading that critics see. Sizes, rates and scaling are our choice, since the papers'
are not all known; heads that are solved for exactly are what :mod:`exafield.subsurface.problem` has.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from exafield.optim import Adam, Constant, Optimiser, Schedule
from exafield.problem import Player
from exafield.subsurface.coordinate import Coordinate
from exafield.subsurface.critic import PENALTY, Critic, critic_loss
from exafield.subsurface.paper_fields import Cells, Fields
from exafield.subsurface.paper_groups import Group, GroupSource
from exafield.subsurface.random_fields import MeshSpectrum
from exafield.subsurface.separable import Modes, Separable
from exafield.subsurface.site import Site
from exafield.subsurface.snapshots import Snapshots
from exafield.subsurface.transform import Robust
from exafield.subsurface.verdict import Figures
from exafield.world import World

# Share of snapshots held back without a test group; fields drawn to judge the law, and at a time (our choice).
_HELD_BACK, _DRAWN, _CHUNK = 0.1, 1000, 50
# As published: arXiv:2006.05791 and, as far as is known, arXiv:1811.02033.
_RATE, _BETAS, _CRITIC_MOVES = 1e-4, (0.0, 0.9), 5

# Of the mesh, in that style; our choice, as in the prototypes that were measured.
_MODES = 256

Style = Literal["coordinate", "separable", "modes"]
#: Location and spread of the readings of each quantity.
Scales = Mapping[str, tuple[float, float]]

_SAID = {
    "y_mean": "mean of ln T at held-back sensors, rel. L2",
    "y_std": "standard deviation of ln T there, rel. L2",
    "u_mean": "mean head there, rel. L2",
    "u_std": "standard deviation of heads there, rel. L2",
    "f_rms": "residual of the equation, rms [m on a site]",
    "head_apart": "heads generated, off those solved for their ln T, rms [m]",
}


class PaperProblem:
    """Learns the law of ln T and head from snapshots, with the flow equation as a third generator.

    Args:
        make: generators, from the scales of readings, so that they begin at the right order of magnitude.
        groups: of sensors, by name; a critic each.
        test: what the law is judged by; None: a tenth of each group's snapshots, held back.
        tails: whether critics see heads and residuals through asinh, which tames heavy tails.
        penalty: weight of the critics' gradient penalty.
        critic_moves: of the critics in a step.
        optimiser, schedule: of the generators.
        critic_optimiser: of the critics, whose rate is constant.
        seed: of what is held back and of fields drawn to judge the law.
    """

    name = "subsurface-paper"

    def __init__(
        self,
        make: Callable[[Scales], Fields],
        groups: Mapping[str, Group],
        *,
        test: Group | None = None,
        tails: bool = False,
        penalty: float = PENALTY,
        critic_moves: int = _CRITIC_MOVES,
        optimiser: Optimiser | None = None,
        schedule: Schedule | None = None,
        critic_optimiser: Optimiser | None = None,
        seed: int = 0,
    ) -> None:
        if not groups:
            raise ValueError(f"{self.name}: there is no group of sensors")
        self._seed, self._make, self._penalty, self._critic_moves = seed, make, penalty, critic_moves
        self.groups, self.test = dict(groups), [test] if test is not None else []
        if test is None:
            rng = np.random.default_rng(np.random.SeedSequence((seed, 0)))
            for name, group in groups.items():
                self.groups[name], held_back = _split(group, rng)
                self.test.append(held_back)
        self.source = GroupSource(self.groups)
        self._optimiser = optimiser or Adam(_RATE, _BETAS)
        self._critic_optimiser = critic_optimiser or Adam(_RATE, _BETAS)
        self._schedule = schedule or Constant()
        self.fields: Fields | None = None
        self.critics: dict[str, Critic] = {}
        self._scalers: dict[str, Robust] = {}
        for key in sorted({key for group in self.groups.values() for key in group.places}):
            values = np.concatenate([group.readings[key].ravel() for group in groups.values() if key in group.places])
            # One scale for all sensors of a quantity: some are constant, as boundary values.
            self._scalers[key] = Robust(values[:, None], tails=tails and key != "y")

    @property
    def scales(self) -> Scales:
        """Location and spread of the readings of each quantity that has any."""
        return {k: (float(v.get_buffer("median")), float(v.get_buffer("spread"))) for k, v in self._scalers.items()}

    # ---- training ----

    def players(self, world: World) -> Sequence[Player]:
        """A critic for each group, and then the generators together."""
        if self.fields is None:
            self.fields = self._make(self.scales)
            self.critics = {n: Critic(sum(map(len, group.places.values()))) for n, group in self.groups.items()}
        for scaler in self._scalers.values():
            scaler.to(world.device)
        places = {name: _moved(group.places, world.device) for name, group in self.groups.items()}

        def real(name: str, batch: Mapping[str, Tensor]) -> Tensor:
            return self._seen({key: batch[f"{name}.{key}"] for key in places[name]})

        def fake(count: int, chosen: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
            noise = torch.randn(count, self._fields.noise, device=world.device)
            # Derivatives of half precision are worth little, so fields and residuals are made in fp32.
            with torch.autocast(world.device.type, enabled=False):
                return {name: self._seen(read) for name, read in self._read(noise, chosen).items()}

        def of_critic(name: str, batch: Mapping[str, Tensor]) -> Tensor:
            truth = real(name, batch)
            with torch.no_grad():
                made = fake(len(truth), {name: places[name]})[name]
            return critic_loss(self.critics[name], truth, made, self._penalty)

        def of_generators(batch: Mapping[str, Tensor]) -> Tensor:
            made = fake(len(next(iter(batch.values()))), places)
            scores = [self.critics[name](readings).float().mean() for name, readings in made.items()]
            return -torch.stack(scores).sum()

        critics = [
            Player(
                f"critic-{name}",
                critic,
                partial(of_critic, name),
                optimiser=self._critic_optimiser,
                moves=self._critic_moves,
            )
            for name, critic in self.critics.items()
        ]
        return [*critics, Player("generators", self._fields, of_generators, self._optimiser, self._schedule)]

    @property
    def _fields(self) -> Fields:
        assert self.fields is not None, "players() makes the generators"
        return self.fields

    def _seen(self, readings: Mapping[str, Tensor]) -> Tensor:
        """What a critic sees of a group: quantities on common scales, side by side."""
        return torch.cat([self._scalers[key](readings[key].float()) for key in sorted(readings)], dim=1)

    def _read(self, noise: Tensor, places: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Readings of several groups of the same fields, each quantity in one go."""
        keys = sorted({key for part in places.values() for key in part})
        whole = {key: torch.cat([part[key] for part in places.values() if key in part]) for key in keys}
        found = self._fields.read(noise, whole)
        result: dict[str, dict[str, Tensor]] = {name: {} for name in places}
        for key, values in found.items():
            owners = [name for name, part in places.items() if key in part]
            parts = values.split([len(places[name][key]) for name in owners], dim=1)
            for name, part in zip(owners, parts, strict=True):
                result[name][key] = part
        return result

    # ---- what has been learnt ----

    def evaluate(self, world: World) -> dict[str, float]:
        """Relative L2 error of mean and standard deviation of each quantity, over all its held-back sensors.

        Where the truth is zero throughout, as a residual, `<quantity>_rms` in its place; and what the fields say of
        themselves, see `paper_fields`.
        """
        learned = self._moments(world)
        found: dict[str, float] = {}
        for key, (mean, deviation) in learned.items():
            truth = _true_moments(self.test, key)
            if not truth.any():
                found[f"{key}_rms"] = float(np.sqrt(np.mean(mean**2 + deviation**2)))
                continue
            for name, made, true in (("mean", mean, truth[0]), ("std", deviation, truth[1])):
                if true.any():
                    found[f"{key}_{name}"] = float(np.linalg.norm(made - true) / np.linalg.norm(true))
        return found | self._fields.checks(self._noise(0, world.device))

    def report(self, world: World) -> Figures | None:
        """What was learnt, in words. Collective; rank 0 gets it."""
        found = self.evaluate(world)
        return Figures(found, _SAID) if world.rank == 0 else None

    @torch.no_grad()
    def _moments(self, world: World) -> dict[str, np.ndarray]:
        """Mean and standard deviation (2, sensor) of each quantity at the test's sensors, by all ranks together."""
        places = {str(number): _moved(group.places, world.device) for number, group in enumerate(self.test)}
        rank, size = (0, 1) if world.kind == "fake" else (world.rank, world.size)
        # Sums about what is expected: squares of heads would swallow their spread.
        sums: dict[str, Tensor] = {
            key: torch.zeros(2, sum(len(p[key]) for p in places.values() if key in p), dtype=torch.float64)
            for key in sorted({key for part in places.values() for key in part})
        }
        middle = {key: self.scales.get(key, (0.0, 1.0))[0] for key in sums}
        for number in range(rank, _DRAWN // _CHUNK, size):
            read = self._read(self._noise(number, world.device), places)
            for key, total in sums.items():
                parts = [part[key] for part in read.values() if key in part]
                apart = torch.cat(parts, dim=1).double().cpu() - middle[key]
                total += torch.stack([apart.sum(0), apart.square().sum(0)])
        for total in sums.values():
            if size > 1:
                world.all_reduce(total)
            total /= _DRAWN
        return {
            key: torch.stack([total[0] + middle[key], (total[1] - total[0] ** 2).clamp(min=0).sqrt()]).numpy()
            for key, total in sums.items()
        }

    def _noise(self, number: int, device: torch.device) -> Tensor:
        """The same for a number."""
        words = np.random.SeedSequence((self._seed, 1, number)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0] >> 1))
        return torch.randn(_CHUNK, self._fields.noise, generator=generator).to(device)

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draws mean and standard deviation of each quantity, as held back and as learned, over the test's sensors."""
        from exafield.subsurface.paper_plots import draw

        learned = self._moments(World.single(next(self._fields.parameters()).device))
        points = {
            key: torch.cat([self._fields.positions(g.places[key]) for g in self.test if key in g.places]).cpu().numpy()
            for key in learned
        }
        draw(path, points, {key: _true_moments(self.test, key) for key in learned}, learned)


def on_site(
    site: Site,
    snapshots: Mapping[str, Snapshots],
    style: Style = "separable",
    *,
    noise: int = 20,
    test: Snapshots | None = None,
    **settings: object,
) -> PaperProblem:
    """The problem of a site, with the residual of finite volumes in all cells as readings of every group.

    Args:
        site: mesh and boundary conditions, which the residual holds.
        snapshots: readings of ln T, heads or both, by group.
        style: of both generators: perceptrons of position and noise, as published; a learned trunk, shared by all
            realisations; or the mesh's own modes, cheapest.
        noise: dimensions of the noise.
        test: full fields, say, to judge by.
        settings: of PaperProblem.
    """
    for part in snapshots.values():
        part.check(site)
    centres = torch.tensor(site.mesh.centres, dtype=torch.float32)
    spectrum = MeshSpectrum.of(site.mesh, min(_MODES, site.cells)) if style == "modes" else None

    def make(scales: Scales) -> Fields:
        def one(key: str, otherwise: tuple[float, float]) -> nn.Module:
            offset, scale = scales.get(key, otherwise)
            if spectrum is not None:
                return Modes(spectrum, noise, offset=offset, scale=scale)
            if style == "coordinate":
                return Coordinate(centres, noise, offset=offset, scale=scale)
            return Separable(centres, noise, offset=offset, scale=scale)

        heads = np.concatenate([site.fixed_heads, site.fixed_cell_heads, site.leak_heads])
        return Cells(site, one("y", (0.0, 1.0)), one("u", (float(heads.mean()), float(heads.std()) or 1.0)))

    groups = {name: _group(site, part) for name, part in snapshots.items()}
    judged = None if test is None else _group(site, test)
    return PaperProblem(make, groups, test=judged, **({"tails": True} | settings))  # type: ignore[arg-type]


def _group(site: Site, part: Snapshots) -> Group:
    places = {"y": torch.tensor(part.y_cells), "u": torch.tensor(part.u_cells)}
    kept = {key: cells for key, cells in places.items() if len(cells)}
    readings = {"y": part.y, "u": part.u}
    places_of_all, zero = {"f": torch.arange(site.cells)}, {"f": np.zeros((1, site.cells))}
    return Group(kept | places_of_all, {key: readings[key] for key in kept} | zero)


def _true_moments(groups: Sequence[Group], key: str) -> np.ndarray:
    """Mean and standard deviation of readings, (2, sensor)."""
    parts = [group.readings[key] for group in groups if key in group.places]
    return np.concatenate([np.stack([part.mean(0), part.std(0)]) for part in parts], axis=1)


def _moved(places: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {key: value.to(device) for key, value in places.items()}


def _split(group: Group, rng: np.random.Generator) -> tuple[Group, Group]:
    """What is trained with, and what is held back."""
    count = max(2, round(_HELD_BACK * len(group)))
    if len(group) < 2 * count:
        raise ValueError(f"{len(group)} snapshots are too few to hold {count} of them back: give a test group")
    order = rng.permutation(len(group))
    return group.rows(np.sort(order[count:])), group.rows(np.sort(order[:count]))
