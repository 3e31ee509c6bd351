"""A law of two populations, learned from training images: full fields of ln T."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from exafield.optim import Adam, Constant, Optimiser, Schedule
from exafield.problem import Player
from exafield.subsurface import maps, scores
from exafield.subsurface.average import Averaged
from exafield.subsurface.critic import critic_loss
from exafield.subsurface.facies_generator import FaciesGenerator, Populations
from exafield.subsurface.image_critic import ImageCritic
from exafield.subsurface.laws import spectrum
from exafield.subsurface.lines import DIRECTIONS, STEPS, Lines
from exafield.subsurface.nongaussian import connectivity
from exafield.subsurface.random_fields import MeshSpectrum
from exafield.subsurface.site import Site
from exafield.subsurface.sliced import unbiased_wasserstein
from exafield.subsurface.snapshots import Snapshots
from exafield.subsurface.verdict import Figures
from exafield.world import World

# Lines of one direction in each field, pairs of direction and length, and projections in each step; our choice.
_LINES, _LOOKS, _PROJECTIONS = 200, 6, 32
# Of the gradient penalty: Gulrajani et al. (arXiv:1704.00028).
_PENALTY = 10.0
# Fields drawn at a time and in all to judge, and shown of each kind; our choice.
_CHUNK, _DRAWN, _SHOWN = 64, 256, 3

_SAID = {
    "learned_proportion": "share of bodies, learned",
    "learned_connectivity": "two cells in bodies are of the same one, learned",
    "learned_neighbour_correlation": "correlation of neighbours, learned",
    "learned_std": "standard deviation of ln T, learned",
    "held_proportion": "share of bodies, held back",
    "held_connectivity": "two cells in bodies are of the same one, held back",
    "held_neighbour_correlation": "correlation of neighbours, held back",
    "held_std": "standard deviation of ln T, held back",
    "marginal": "single values, mean distance of quantiles",
    "floor_marginal": "the same of training images",
    "lines": "along lines, sliced-Wasserstein [standard deviations]",
    "floor_lines": "the same of training images",
}


class FaciesProblem:
    """Learns a generator of two populations by what lies along lines (sliced-Wasserstein), and by a critic of images.

    Args:
        site: of the mesh.
        images: training images, full fields of ln T.
        test: held-back ones; at least two.
        critic_weight: of the critic in the generator's loss; 0: there is none. On channels a weight of 0.02 brought
            connectivity near that of the images, but made fields too smooth and distances along lines worse.
        optimiser, schedule: of the generator.
        critic_optimiser: of the critic.
        critic_moves: of the critic for one of the generator.
        decay: of the average of the generator's parameters, which is what is judged.
        seed: of what is drawn to judge.
    """

    name = "facies"

    def __init__(
        self,
        site: Site,
        images: Float[np.ndarray, "image cell"],
        test: Float[np.ndarray, "held cell"],
        *,
        critic_weight: float = 0.0,
        optimiser: Optimiser | None = None,
        schedule: Schedule | None = None,
        critic_optimiser: Optimiser | None = None,
        critic_moves: int = 1,
        decay: float = 0.98,
        seed: int = 0,
    ) -> None:
        if len(test) < 2:
            raise ValueError(f"facies: hold back 2 images or more, got {len(test)}")
        if critic_weight < 0:
            raise ValueError(f"facies: critic_weight must be 0 or more, got {critic_weight}")
        self.site = site
        self.source, self.test = (Snapshots.of(y_cells=np.arange(site.cells), y=given) for given in (images, test))
        self.populations = Populations.of(images)
        self._critic_weight, self._critic_moves = critic_weight, critic_moves
        self._optimiser = optimiser or Adam(learning_rate=0.02)
        self._schedule = schedule or Constant()
        self._critic_optimiser = critic_optimiser or Adam(learning_rate=1e-3, betas=(0.0, 0.9))
        self._decay, self._seed = decay, seed
        self.model: Averaged | None = None
        self._offset, self._scale = float(np.mean(images)), float(np.std(images))
        self._lines = Lines(site.mesh)

    # ---- training ----

    def players(self, world: World) -> Sequence[Player]:
        """The critic, if any, and the generator."""
        if self.model is None:
            self.model = Averaged(self._made().float(), self._decay)
            self.critic = ImageCritic(self.site.mesh, self._offset, self._scale) if self._critic_weight else None
        model, critic = self.model, self.critic

        def fake(count: int) -> Tensor:
            with torch.autocast(world.device.type, enabled=False):  # quantiles and thin steps need fp32
                made: Tensor = model(torch.randn(count, self._generator.noise, device=world.device))
                return made

        def generator(batch: Mapping[str, Tensor]) -> Tensor:
            made = fake(len(batch["y"]))
            with torch.autocast(world.device.type, enabled=False):
                total = self.along_lines(batch["y"], made)
            if critic is not None:
                total = total - self._critic_weight * critic(made).float().mean()
            return total

        def judge(batch: Mapping[str, Tensor]) -> Tensor:
            assert critic is not None
            with torch.no_grad():
                made = fake(len(batch["y"]))
            return critic_loss(critic, batch["y"], made, _PENALTY)

        own = Player(
            "generator", model, generator, optimiser=self._optimiser, schedule=self._schedule, begin=model.update
        )
        if critic is None:
            return [own]
        return [Player("critic", critic, judge, optimiser=self._critic_optimiser, moves=self._critic_moves), own]

    def along_lines(self, real: Float[Tensor, "batch cell"], fake: Float[Tensor, "batch cell"]) -> Float[Tensor, ""]:
        """Distance of two sets of fields in values at the ends of lines, least and mean along them; 0 on average for
        one law. Directions, lengths and projections are drawn afresh, from torch's generator."""
        total = real.new_zeros(())
        for _ in range(_LOOKS):
            direction, steps, seed = (int(torch.randint(n, ())) for n in (DIRECTIONS, STEPS, 2**31))
            # Short lines matter as much as long ones: lengths are even in the logarithm.
            steps = max(1, round(STEPS ** (steps / (STEPS - 1))))
            one, other = (
                (self._lines.sample(fields, direction, steps, _LINES, seed) - self._offset) / self._scale
                for fields in (real, fake)
            )
            ways = torch.randn(one.shape[1], _PROJECTIONS, device=real.device, dtype=real.dtype)
            ways = torch.cat([ways / ways.norm(dim=0), torch.eye(one.shape[1]).to(ways)], dim=1)
            total = total + unbiased_wasserstein(one @ ways, other @ ways).mean() / _LOOKS
        return total

    def _made(self) -> FaciesGenerator:
        return FaciesGenerator(self.site.mesh, self.populations, self._spectrum)

    @cached_property
    def _spectrum(self) -> MeshSpectrum:
        return spectrum(self.site)

    # ---- what has been learned ----

    @property
    def _generator(self) -> FaciesGenerator:
        assert self.model is not None, "players() makes the model"
        module = self.model.module
        assert isinstance(module, FaciesGenerator)
        return module

    def learned(self) -> FaciesGenerator:
        """The generator with the averaged parameters, in float64, for inference."""
        assert self.model is not None, "players() makes the model"
        found = self._made()
        found.load_state_dict(self.model.average())
        return found.requires_grad_(False)

    @torch.no_grad()
    def drawn(self, count: int) -> Float[np.ndarray, "count cell"]:
        """Fields of the learned law."""
        model = self.learned()
        generator = torch.Generator().manual_seed(self._seed)
        parts = [
            model(torch.randn(min(_CHUNK, count - start), model.noise, generator=generator, dtype=torch.float64))
            for start in range(0, count, _CHUNK)
        ]
        return torch.cat(parts).numpy()

    def evaluate(self, world: World) -> dict[str, float]:
        """Of learned and held-back fields: proportion, connectivity, correlation of neighbours, standard deviation.

        And distances to the held-back ones, `floor_` that of as many training images: of single values [ln(m2/d)], and
        sliced-Wasserstein of what lies along lines [standard deviations]. Every rank finds the same.
        """
        test, made = self.test.y, self.drawn(_DRAWN)
        floor = self.source.y[-_DRAWN:]
        found: dict[str, float] = {}
        for name, fields in (("learned", made), ("held", test)):
            facies = (fields > self._cut).astype(np.int8)
            found[f"{name}_proportion"] = float(facies.mean())
            found[f"{name}_connectivity"] = connectivity(facies, self.site.mesh.neighbours)
            found[f"{name}_neighbour_correlation"] = scores.neighbour_correlation(fields, self.site.mesh.neighbours)
            found[f"{name}_std"] = float(fields.std())
        found["marginal"] = self._marginal(made)
        found["floor_marginal"] = self._marginal(floor)
        found["lines"], found["floor_lines"] = self._distance(made), self._distance(floor)
        return found

    def report(self, world: World) -> Figures | None:
        """What was learnt, in words; rank 0 gets it."""
        return Figures(self.evaluate(world), _SAID) if world.rank == 0 else None

    @property
    def _cut(self) -> float:
        """ln T that parts the populations: as many standard deviations from either mean."""
        (high, one), (low, other) = self.populations.inside, self.populations.outside
        return (low * one + high * other) / (one + other)

    def _marginal(self, fields: np.ndarray) -> float:
        """Of single values, mean distance of quantiles."""
        at = (np.arange(1000) + 0.5) / 1000
        return float(np.abs(np.quantile(fields, at) - np.quantile(self.test.y, at)).mean())

    def _distance(self, fields: np.ndarray) -> float:
        """Sliced-Wasserstein distance to the held-back ones along lines of all directions and some lengths."""
        one, other = torch.from_numpy(fields), torch.from_numpy(self.test.y)
        each = []
        for direction in range(DIRECTIONS):
            for steps in (1, 2, 4, 8, STEPS):
                a, b = (self._lines.sample(x, direction, steps, 100, steps) / self._scale for x in (one, other))
                each.append(
                    float(scores.sliced_wasserstein(a, b, projections=16, generator=torch.Generator().manual_seed(0)))
                )
        return float(np.mean(each))

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draws held-back fields above, and learned ones below."""
        made = self.drawn(_SHOWN)
        limits = maps.span(np.concatenate([self.test.y[:_SHOWN], made]))
        panels = [
            maps.Panel(f"{what} {number + 1}", fields[number], "ln T (T in m$^2$/d)", limits=limits)
            for what, fields in (("held back", self.test.y), ("generated", made))
            for number in range(min(_SHOWN, len(fields)))
        ]
        maps.draw(os.fspath(path), self.site, panels, columns=min(_SHOWN, len(self.test.y)))
