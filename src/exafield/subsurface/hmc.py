"""Exact samples of the posterior by Hamiltonian Monte Carlo in the metric of its own linearisation.

Latent space is whitened by the curvature that Gauss-Newton finds, averaged over a few places of the posterior, so that
what is left to sample is near standard normal. Paths turn about the centre exactly, as if it were, and are kicked by
what is not (Beskos, Pinski, Sanz-Serna and Stuart, Stoch. Proc. Appl. 121 (2011) 2201): the number of dimensions, most
of which no reading tells of, costs no accuracy. The length of a step is found while warming up (dual averaging, Hoffman
and Gelman, J. Mach. Learn. Res. 15 (2014) 1593), as is that of a path: where transmissivity is high heads hardly tell
of it, and the posterior is some ten times wider there than the mean curvature says.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from exafield.progress import Say, silent
from exafield.subsurface.checks import SiteError
from exafield.subsurface.diagnostics import Convergence, convergence
from exafield.subsurface.kriging import Readings
from exafield.subsurface.latent import Generator, Latent, Point, PosteriorError
from exafield.subsurface.posterior import Posterior, corrected, maximum, posterior_of
from exafield.subsurface.site import Site

# Share of paths that should be accepted: Beskos et al., Bernoulli 19 (2013) 1501, find 0.65 best for many dimensions;
# more is safer where curvature varies. Dual averaging as Hoffman and Gelman set it.
_ACCEPTANCE, _SHRINK, _DELAY, _DECAY = 0.8, 0.05, 10.0, 0.75
# Our choice: the longest path in quarter turns, and in steps while they are still too short; how much wider starts are
# than the prior; the places whose curvature is averaged; the curvature, beside 1 of the prior, from which directions
# count as told by readings.
_TURNS, _LONGEST, _SPREAD, _PLACES, _TOLD = 8.0, 200, 2.0, 8, 0.05


class ChainWarning(UserWarning):
    """Chains have not converged: what they say is no reference."""


@dataclass(frozen=True)
class Metric:
    """The whitening z = centre + L w, L = I - V c V^T, the symmetric root of the inverse of a curvature I + V s V^T.

    Args:
        centre: of w = 0.
        vectors: V (noise, told), orthonormal; few beside the noise.
        shrink: c = 1 - 1/sqrt(1 + s).
    """

    centre: Float[Tensor, "noise"]
    vectors: Float[Tensor, "noise told"]
    shrink: Float[Tensor, "told"]

    @classmethod
    def of(cls, centre: Tensor, jacobians: list[Tensor]) -> "Metric":
        """Of the mean curvature I + mean J^T J at some places."""
        rows = torch.cat(jacobians) / math.sqrt(len(jacobians))
        values, left = torch.linalg.eigh(rows @ rows.T)
        kept = values > _TOLD
        values, left = values[kept], left[:, kept]
        return cls(centre, rows.T @ left / values.sqrt(), 1 - (1 + values).rsqrt())

    def spread(self, x: Float[Tensor, "chain noise"]) -> Float[Tensor, "chain noise"]:
        """L x."""
        return x - (x @ self.vectors * self.shrink) @ self.vectors.T

    def whitened(self, z: Float[Tensor, "chain noise"]) -> Float[Tensor, "chain noise"]:
        """w of z."""
        x = z - self.centre
        return x + (x @ self.vectors * (self.shrink / (1 - self.shrink))) @ self.vectors.T


class _Chains:
    """States of all chains, moved together."""

    def __init__(self, latent: Latent, metric: Metric, z: Tensor, generator: torch.Generator) -> None:
        self._latent, self._random = latent, generator
        self.path = math.pi / 2
        self.use(metric, z)

    def use(self, metric: Metric, z: Tensor) -> None:
        """From these z on, in this metric."""
        self._metric, self.w = metric, metric.whitened(z)
        energy, self._kick = self._push(self.w)
        if energy is None:
            raise PosteriorError("hmc: heads of a chain's start cannot be solved for: is the prior's spread too wide?")
        self.energy = energy

    @property
    def z(self) -> Tensor:
        return self._metric.centre + self._metric.spread(self.w)

    def _push(self, w: Tensor) -> tuple[Tensor | None, Tensor]:
        """Energy, and the force beside that of a standard normal law."""
        try:
            energy, slope = self._latent.gradient(self._metric.centre + self._metric.spread(w))
        except SiteError:  # a path into fields that no head can be solved for: such an end is refused
            return None, torch.zeros_like(w)
        return energy, self._metric.spread(slope) - w

    def move(self, step: float) -> float:
        """One path of each chain, of half to all of the longest; the mean chance of acceptance."""
        share = 0.5 + 0.5 * float(torch.rand((), generator=self._random, dtype=torch.float64))
        w, kick = self.w, self._kick
        p = torch.randn(w.shape, generator=self._random, dtype=torch.float64)
        before = self.energy + p.square().sum(-1) / 2
        chance = torch.rand(len(w), generator=self._random, dtype=torch.float64)
        energy: Tensor | None = None
        for _ in range(min(max(1, round(self.path * share / step)), _LONGEST)):
            p = p - step / 2 * kick
            w, p = math.cos(step) * w + math.sin(step) * p, math.cos(step) * p - math.sin(step) * w
            energy, kick = self._push(w)
            if energy is None:
                return 0.0
            p = p - step / 2 * kick
        assert energy is not None
        accept = (before - energy - p.square().sum(-1) / 2).nan_to_num(nan=-math.inf).clamp(max=0.0).exp()
        taken = (chance < accept)[:, None]
        self.w, self._kick = torch.where(taken, w, self.w), torch.where(taken, kick, self._kick)
        self.energy = torch.where(taken[:, 0], energy, self.energy)
        return float(accept.mean())

    def warm(self, paths: int, step: float, say: Say) -> tuple[float, Tensor]:
        """Moves, and finds the length of a step meanwhile; also w of the second half of the paths [draw, noise]."""
        towards, total, averaged, seen = math.log(2 * step), 0.0, math.log(step), []
        for number in range(1, paths + 1):
            say(f"path {number} of {paths}, step length {step:.2g}")
            total += _ACCEPTANCE - self.move(step)
            log = min(towards - math.sqrt(number) / _SHRINK * total / (number + _DELAY), math.log(math.pi / 2))
            weight = number**-_DECAY
            averaged = weight * log + (1 - weight) * averaged
            step = math.exp(log)
            if 2 * number > paths:
                seen.append(self.w)
        return math.exp(averaged), torch.cat(seen)

    def lengthen(self, w: Tensor) -> None:
        """Makes paths a quarter turn of the widest direction: one that is s wide turns in a time of 2 pi s."""
        apart = w - w.mean(0)
        widest = math.sqrt(float(torch.linalg.eigvalsh(apart @ apart.T / len(apart))[-1]))
        self.path = math.pi / 2 * min(max(widest, 1.0), _TURNS)


@dataclass(frozen=True)
class Chains:
    """Draws of all chains.

    Args:
        noise: z [chain, draw, noise], float32.
        log_density: of the posterior, but for a constant [chain, draw].
        convergence: over ln T of all cells and the logarithm of the density.
        acceptance: mean.
        step: length.
    """

    noise: Float[np.ndarray, "chain draw noise"]
    log_density: Float[np.ndarray, "chain draw"]
    convergence: Convergence
    acceptance: float
    step: float


def sample(
    latent: Latent,
    best: Point,
    *,
    chains: int = 16,
    warm_up: int = 100,
    draws: int = 200,
    most: int = 2000,
    seed: int = 0,
    say: Say = silent,
) -> Chains:
    """Runs chains from starts spread wider than the posterior until they have converged.

    Args:
        latent: problem.
        best: maximum of the posterior.
        chains: how many, moved together.
        warm_up: paths, thrown away, that find the metric and the length of a step; thrice this many in all.
        draws: after which convergence is looked at, first and again each time as many have been added as there are.
        most: draws of each chain.
        seed: of all randomness.
        say: is told how far it is.
    Warns:
        ChainWarning: chains have not converged after `most` draws.
    """
    random = torch.Generator().manual_seed(seed)
    drawn = _SPREAD * torch.randn(chains, latent.noise, generator=random, dtype=torch.float64)
    wanted = latent.values + torch.randn(chains, len(latent.values), generator=random, dtype=torch.float64)
    z = corrected(latent, best, drawn, wanted, 2)

    def heating(turn: int) -> Say:
        return lambda text: say(f"hmc: {chains} chains, warm-up {turn + 1} of 3, {text}")

    running, step = _Chains(latent, Metric.of(best.z, [best.jacobian]), z, random), 0.05
    for turn in range(2):
        step, seen = running.warm(warm_up, step, heating(turn))
        z = running.z
        some = z[torch.linspace(0, chains - 1, min(chains, _PLACES)).long()]
        running.use(Metric.of(z.mean(0), [latent.linearised(one).jacobian for one in some]), z)
    running.lengthen(seen)
    step, _ = running.warm(warm_up, step, heating(2))
    noise = np.empty((chains, most, latent.noise), dtype=np.float32)
    density, accepted, done, goal, judged = np.empty((chains, most)), 0.0, 0, min(draws, most), ""
    while True:
        for number in range(done, goal):
            say(f"hmc: {chains} chains, draw {number + 1} of {most} at most, looked at after {goal}{judged}")
            accepted += running.move(step)
            noise[:, number], density[:, number] = running.z, -running.energy
        done = goal
        found = _judged(latent, noise[:, :done], density[:, :done])
        if found.reached or done == most:
            break
        judged = f"; after {done} R-hat {found.rhat:.3f}, effective draws {found.ess:.0f}"
        goal = min(2 * done, most)
    if not found.reached:
        warnings.warn(f"hmc: {found}: give more draws, or fewer or less accurate readings", ChainWarning, stacklevel=2)
    return Chains(noise[:, :done], density[:, :done], found, accepted / done, step)


def _judged(latent: Latent, noise: np.ndarray, density: np.ndarray) -> Convergence:
    fields = np.stack([latent.fields(torch.from_numpy(chain)).float().numpy() for chain in noise])
    return convergence(np.concatenate([fields, density[:, :, None]], 2))


def infer(
    site: Site,
    prior: Generator,
    log_transmissivity: Readings | None = None,
    head: Readings | None = None,
    *,
    samples: int = 200,
    seed: int = 0,
    chains: int = 16,
    warm_up: int = 100,
    draws: int = 200,
    most: int = 2000,
    say: Say = silent,
) -> Posterior:
    """The posterior by chains; its note says whether they have converged, and only then it is a reference.

    Args:
        site, prior, log_transmissivity, head: as :func:`exafield.subsurface.posterior.infer`.
        samples: handed back, spread evenly over all draws.
        seed, chains, warm_up, draws, most, say: as :func:`sample`.
    Raises:
        PosteriorError: the maximum is not found.
        ValueError: there are no readings, one cannot be used, or numbers are out of range.
        SiteError: the flow equation cannot be solved.
    Warns:
        ChainWarning: chains have not converged.
    """
    if not 2 <= samples <= chains * most or chains < 2 or warm_up < 4 or min(draws, most) < 4:
        raise ValueError(
            f"hmc: samples must be 2 to chains x most, chains 2 or more, warm_up, draws and most 4 or more; got "
            f"{samples}, {chains}, {warm_up}, {draws} and {most}"
        )
    latent = Latent(site, prior, log_transmissivity, head)
    best = maximum(latent, say)
    found = sample(latent, best, chains=chains, warm_up=warm_up, draws=draws, most=most, seed=seed, say=say)
    # Draws of a chain lie side by side, so that even steps meet all chains and their whole length.
    flat = found.noise.reshape(-1, latent.noise)
    chosen = np.linspace(0, len(flat) - 1, min(samples, len(flat))).round().astype(int)
    z = torch.from_numpy(flat[chosen].astype(np.float64))
    return posterior_of(latent, z, best, found.noise.shape[1], str(found.convergence))
