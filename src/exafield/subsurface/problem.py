"""The law of ln T and heads of a site, learned from snapshots at sensors through the flow equation."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from exafield.optim import Adam, Constant, Optimiser, Schedule
from exafield.problem import Player
from exafield.subsurface import darcy, maps
from exafield.subsurface.average import Averaged
from exafield.subsurface.critic import Critic, critic_loss
from exafield.subsurface.laws import Law, spectrum
from exafield.subsurface.likelihood import fit
from exafield.subsurface.random_fields import SpectralField
from exafield.subsurface.sensing import View, neighbours
from exafield.subsurface.site import Site
from exafield.subsurface.snapshots import FEW_SENSORS, Groups, Snapshots, simulated
from exafield.subsurface.verdict import Report, Rows, errors, floor
from exafield.world import World

# Share of the snapshots that is held back where there is no test set, and fields drawn of the law to judge it and to
# draw maps; our choice.
_HELD_BACK, _DRAWN = 0.1, 1000
# Fields at a time.
_CHUNK = 64
# Distances of samples see smoothness badly: it drifts, and with it how sure an inversion is. So its logarithm is tied
# to that of the likeliest law of some snapshots, which see it well; and so are coordinates in which readings are
# uncorrelated made of that law. Weight, number of snapshots, and fields drawn of it: our choice.
_TETHER, _SEEN, _ALIKE = 0.03, 100, 2000
# Where a spectral filter starts: lengths as shares of the root of the site's area, and smoothness; our choice.
_LENGTHS, _SMOOTHNESS = (0.2, 0.03), 1.5
# And where no ln T is read, its mean and variance: a sandy aquifer of 1,100 m2/d; our choice.
_LOGS = (7.0, 1.0)


class FlowProblem:
    """Learns what fields of ln T a site may have, from snapshots of ln T and heads at sensors.

    A generator makes ln T, heads follow from it by the flow equation, and both are compared with snapshots at their
    sensors: by sliced-Wasserstein distances, by critics (one of each group of snapshots, as in arXiv:1811.02033), or by
    both. The law of a spectral filter is Gaussian and the same everywhere: only so do sensors tell of other cells.

    Args:
        site: mesh and boundary conditions.
        snapshots: one group, or several that were not taken together, by name.
        test: what the law is judged by, such as full fields; None: a tenth of each group's snapshots, held back.
        generator: "spectral", or a module that makes ln T (batch, cell) of noise (batch, noise) and has `noise`.
        scales: superposed, of the spectral filter; 1 or 2.
        sliced_weight: of the sliced-Wasserstein distances.
        critic_weight: of the critics' score in the generator's loss; 0: no critics. Above 0.02 fields get too smooth on
            the Hanford Site: a critic sees little of how rough they are.
        critic_moves: of the critics in a step.
        optimiser, schedule: of the generator.
        critic_optimiser: of the critics, whose rate is constant.
        decay: of the generator's average, see :class:`exafield.subsurface.average.Averaged`.
        seed: of what is held back, and of fields drawn to judge the law.
    Raises:
        SiteError: snapshots are not of this site.
        ValueError: a setting is out of range.
    Warns:
        SnapshotWarning: there are few sensors or snapshots.
    """

    name = "subsurface"

    def __init__(
        self,
        site: Site,
        snapshots: Snapshots | Mapping[str, Snapshots],
        *,
        test: Snapshots | None = None,
        generator: Literal["spectral"] | nn.Module = "spectral",
        scales: int = 1,
        sliced_weight: float = 1.0,
        critic_weight: float = 0.0,
        critic_moves: int = 2,
        optimiser: Optimiser | None = None,
        schedule: Schedule | None = None,
        critic_optimiser: Optimiser | None = None,
        decay: float = 0.99,
        seed: int = 0,
    ) -> None:
        if sliced_weight < 0 or critic_weight < 0 or sliced_weight + critic_weight == 0:
            raise ValueError(
                "subsurface: sliced_weight and critic_weight must be 0 or above, and one of them above, got "
                f"{sliced_weight} and {critic_weight}"
            )
        if not 1 <= scales <= len(_LENGTHS):
            raise ValueError(f"subsurface: scales must be 1 to {len(_LENGTHS)}, got {scales}")
        if not isinstance(generator, str) and not isinstance(getattr(generator, "noise", None), int):
            raise ValueError(f"subsurface: {type(generator).__name__} does not say of how much `noise` it makes fields")
        self.site, self._seed = site, seed
        alone = isinstance(snapshots, Snapshots)
        given = {"": snapshots} if isinstance(snapshots, Snapshots) else dict(snapshots)
        for part in given.values():
            part.check(site)
            part.warn(site)
        if test is not None:
            test.check(site)
        if test is None:
            rng = np.random.default_rng(np.random.SeedSequence((seed, 0)))
            parts = {name: _split(part, rng) for name, part in given.items()}
            self.groups, self.test = {n: p[0] for n, p in parts.items()}, [p[1] for p in parts.values()]
        else:
            self.groups, self.test = given, [test]
        self.source: Snapshots | Groups = self.groups[""] if alone else Groups(self.groups)
        self._made, self._scales = generator, scales
        self._sliced_weight, self._critic_weight, self._critic_moves = sliced_weight, critic_weight, critic_moves
        self._optimiser = optimiser or Adam(learning_rate=0.05, betas=(0.9, 0.99))
        self._schedule = schedule or Constant()
        self._critic_optimiser = critic_optimiser or Adam(learning_rate=5e-4, betas=(0.0, 0.9))
        self._decay = decay
        self.model: Averaged | None = None
        self.critics: dict[str, Critic] = {}

    # ---- training ----

    def players(self, world: World) -> Sequence[Player]:
        """Critics, if any, and then the generator."""
        if self.model is None:
            self.model = Averaged(self._generator(), self._decay)
            if self._critic_weight > 0:
                sensors = {name: len(part.y_cells) + len(part.u_cells) for name, part in self.groups.items()}
                self.critics = {name: Critic(count) for name, count in sensors.items()}
        likeliest = self._likeliest()
        alike = None if likeliest is None else simulated(self.site, likeliest.field(self.site), _ALIKE, self._seed)
        views = {name: View(self.site, part, alike).to(world.device) for name, part in self.groups.items()}
        model = self.model

        def draw(count: int) -> tuple[Tensor, Tensor | None]:
            """ln T and heads; in fp32, since half of it does not hold a head to a decimetre."""
            with torch.autocast(world.device.type, enabled=False):
                y = model(torch.randn(count, self._noise, device=world.device))
                heads = any(len(part.u_cells) for part in self.groups.values())
                return y, darcy.solve(self.site, y) if heads else None

        def generator(batch: Mapping[str, Tensor]) -> Tensor:
            y, u = draw(len(next(iter(batch.values()))))
            total = y.new_zeros(())
            for name, view in views.items():
                real, fake = view.read(name, batch), view.see(y, u)
                if self._sliced_weight:
                    with torch.autocast(world.device.type, enabled=False):
                        total = total + self._sliced_weight * view.sliced(real, fake)
                if name in self.critics:
                    total = total - self._critic_weight * self.critics[name](fake).float().mean()
            if likeliest is not None and isinstance(model.module, SpectralField):
                off = model.module.log_smoothness - math.log(likeliest.smoothness[0])
                total = total + _TETHER * off.square().sum()
            return total

        def critic(name: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
            def loss(batch: Mapping[str, Tensor]) -> Tensor:
                real = views[name].read(name, batch)
                with torch.no_grad():
                    fake = views[name].see(*draw(len(real)))
                return critic_loss(self.critics[name], real, fake)

            return loss

        made = [
            Player(
                f"critic-{name}" if name else "critic",
                module,
                critic(name),
                optimiser=self._critic_optimiser,
                moves=self._critic_moves,
            )
            for name, module in self.critics.items()
        ]
        own = Player(
            "generator", model, generator, optimiser=self._optimiser, schedule=self._schedule, begin=model.update
        )
        return [*made, own]

    def _generator(self) -> nn.Module:
        if isinstance(self._made, nn.Module):
            return self._made
        values = np.concatenate([part.y.ravel() for part in self.groups.values()])
        mean, variance = (float(values.mean()), float(values.var())) if len(values) else _LOGS
        extent = float(np.sqrt(self.site.mesh.areas.sum()))
        return SpectralField(
            spectrum(self.site).to(dtype=torch.float32),
            [share * extent for share in _LENGTHS[: self._scales]],
            [max(variance, 1e-6) / self._scales] * self._scales,
            [_SMOOTHNESS],
            mean,
        )

    def _likeliest(self) -> Law | None:
        """The likeliest law; None where the generator is given, or no group has enough sensors of ln T."""
        part = max(self.groups.values(), key=lambda part: len(part.y_cells))
        if isinstance(self._made, nn.Module) or len(part.y_cells) < FEW_SENSORS:
            return None
        rows = np.random.default_rng(np.random.SeedSequence((self._seed, 2))).permutation(len(part))[:_SEEN]
        places, values = self.site.mesh.centres[part.y_cells], part.y[rows]
        try:
            found = fit(places, values, smoothness=None, nugget=1e-6 * float(values.var()), intervals=False)
        except ValueError:  # none is likeliest
            return None
        return Law(found.mean, (found.variance,), (found.length,), (found.smoothness,))

    @property
    def _noise(self) -> int:
        assert self.model is not None, "players() makes the model"
        return int(getattr(self.model.module, "noise"))  # noqa: B009  (asked for above; torch types it as a tensor)

    # ---- what has been learnt ----

    def law(self) -> Law:
        """The learned law in a few numbers, of a spectral filter.

        Raises:
            ValueError: the generator is another.
        """
        assert self.model is not None, "players() makes the model"
        return Law.of(self.model.state_dict())

    def evaluate(self, world: World) -> dict[str, float]:
        """Errors of the law on held-back snapshots by the names of :data:`exafield.subsurface.verdict.NAMES`, relative
        but for `mean_head_rms` [m] and the correlation; `floor_` is what a perfect law would have.
        """
        found = errors(self._learned(world), self._truth)
        return found | {f"floor_{name}": value for name, value in self._floor.items()}

    def report(self, world: World) -> Report | None:
        """The verdict. Collective; rank 0 gets it."""
        found = errors(self._learned(world), self._truth)
        if world.rank != 0:
            return None
        site = self.site
        given = np.concatenate([site.fixed_heads, site.fixed_cell_heads, site.leak_heads])
        law = self.law() if isinstance(self._made, str) else None
        return Report(found, self._floor, float(np.ptp(given)), law, _DRAWN, min(len(part) for part in self.test))

    @cached_property
    def _truth(self) -> list[Rows]:
        return [Rows(part.y, part.u, neighbours(self.site, part)) for part in self.test]

    @cached_property
    def _floor(self) -> dict[str, float]:
        return floor(self._truth, _DRAWN, self._seed)

    def _learned(self, world: World) -> list[Rows]:
        """Fields of the learned law where the test reads them, made by all ranks together."""
        widths = [width for part in self.test for width in (len(part.y_cells), len(part.u_cells))]
        drawn = torch.zeros(_DRAWN, sum(widths), device=world.device)
        rank, size = (0, 1) if world.kind == "fake" else (world.rank, world.size)
        for number in range(rank, -(-_DRAWN // _CHUNK), size):
            rows = slice(number * _CHUNK, min((number + 1) * _CHUNK, _DRAWN))
            y, u = self._draw(rows.stop - rows.start, number)
            read = [x[:, cells] for part in self.test for x, cells in ((y, part.y_cells), (u, part.u_cells))]
            drawn[rows] = torch.cat(read, dim=1).to(drawn)
        if size > 1:
            world.all_reduce(drawn)
        columns = iter(drawn.double().cpu().split(widths, dim=1))
        return [Rows(next(columns).numpy(), next(columns).numpy(), truth.pairs) for truth in self._truth]

    @torch.no_grad()
    def _draw(self, count: int, number: int) -> tuple[Tensor, Tensor]:
        """Fields and heads, the same for a number."""
        assert self.model is not None, "players() makes the model"
        words = np.random.SeedSequence((self._seed, 1, number)).generate_state(1, np.uint64)
        noise = torch.randn(count, self._noise, generator=torch.Generator().manual_seed(int(words[0] >> 1)))
        with _judged(self.model):
            y = self.model(noise.to(next(self.model.parameters()).device)).cpu()
        return y, darcy.solve(self.site, y)

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draws a field of ln T, its heads, and how far they spread: above held back, below as learned."""
        parts = [self._draw(_CHUNK, number) for number in range(-(-_DRAWN // _CHUNK))]
        y, u = (torch.cat(of).numpy() for of in zip(*parts, strict=True))
        rows: tuple[list[maps.Panel], list[maps.Panel]] = ([], [])
        for kind, label, drawn in (("log_transmissivity", "ln T (T in m$^2$/d)", y), ("head", "head [m]", u)):
            name = "y" if kind == "log_transmissivity" else "u"
            read = [(getattr(part, f"{name}_cells"), getattr(part, name)) for part in self.test]
            sensors = np.concatenate([getattr(part, f"{name}_cells") for part in self.groups.values()])
            if not any(len(cells) for cells, _ in read):
                continue
            for what, of, colours in (("one field", _first, kind), ("standard deviation", _spread, "spread")):
                truth, learned = np.full(self.site.cells, np.nan), of(drawn)
                for cells, values in read:
                    truth[cells] = of(values)
                both = np.concatenate([learned, truth[np.isfinite(truth)]])
                panel = maps.Panel(f"{what}, learned", learned, label, maps.COLOURS[colours], maps.span(both))
                rows[0].append(replace(panel, title=f"{what}, held back", values=truth, wells=sensors))
                rows[1].append(panel)
        title = f"The law learned on {self.site.name}"
        maps.draw(Path(path), self.site, [*rows[0], *rows[1]], columns=len(rows[0]), title=title)


def _first(rows: Float[np.ndarray, "row cell"]) -> Float[np.ndarray, "cell"]:
    return np.asarray(rows[0])


def _spread(rows: Float[np.ndarray, "row cell"]) -> Float[np.ndarray, "cell"]:
    return np.asarray(rows.std(axis=0))


def _split(part: Snapshots, rng: np.random.Generator) -> tuple[Snapshots, Snapshots]:
    """What is trained with, and what is held back."""
    count = max(2, round(_HELD_BACK * len(part)))
    if len(part) < count + 4:
        raise ValueError(f"subsurface: {len(part)} snapshots are too few to hold {count} of them back: give a test set")
    order = rng.permutation(len(part))
    return part.rows(np.sort(order[count:])), part.rows(np.sort(order[:count]))


@contextmanager
def _judged(module: nn.Module) -> Iterator[None]:
    """Inside, a module is in evaluation mode."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
