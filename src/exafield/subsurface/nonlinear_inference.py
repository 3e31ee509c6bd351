"""What wells say of a field of two populations: posterior samples of ln T and heads.

Readings of ln T tell facies and texture at the wells: these are drawn first, by Gibbs sampling of the shape there and
kriging (Freulon and de Fouquet, Conditioning a Gaussian model with inequalities, Geostatistics Troia '92 (1993) 201).
Heads then move shape and textures between the wells, which are Gaussian: each sample by itself, by the least change
that fits its own perturbed heads (randomised maximum likelihood: Oliver, Reynolds and Liu, Inverse Theory for Petroleum
Reservoir Characterization and History Matching, Cambridge 2008, ch. 10). The step between the facies is wide at first,
so that boundaries feel heads from afar, and in the end that of the law, where textures take up the rest. Samples are
thus of two populations, as those about one maximum are not. They are approximate: exact were heads linear in shape and
textures.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import special
from torch import Tensor

from exafield.progress import Say, silent
from exafield.subsurface import darcy
from exafield.subsurface.facies_generator import STEP, FaciesGenerator
from exafield.subsurface.kriging import Readings
from exafield.subsurface.posterior import Posterior
from exafield.subsurface.site import Site

# Sweeps over the wells, of shapes that start on their side of the level (our choice).
_SWEEPS = 100
# At a well the shape is so far from the level that the step there is over, and known up to a little noise (our choice).
_MARGIN, _NUGGET = 5 * STEP, 0.01
# The error of a texture's value where the other facies is: it says nothing.
_UNKNOWN = 1e3
# Share of the variance left between wells in the modes that heads move (our choice).
_SHARE = 0.99
# Widths of the step between facies in the course of the way to the heads, in standard deviations of the shape; then
# iterations in which textures alone move, since the narrow step tells nothing any more of where boundaries should be.
_WIDTHS, _TEXTURES, _HALVINGS = (0.4, 0.4, 0.3, 0.2, 0.13, 0.08, 0.04), 3, 4


def infer_facies(
    site: Site,
    prior: FaciesGenerator,
    log_transmissivity: Readings | None = None,
    head: Readings | None = None,
    *,
    samples: int = 100,
    seed: int = 0,
    say: Say = silent,
) -> Posterior:
    """The posterior given readings.

    Args:
        site: mesh and boundary conditions.
        prior: learned law, in float64.
        log_transmissivity, head: readings in cells, with errors above 0; one of them, or both.
        samples: of the posterior; with heads each takes some ten factorisations, each with an adjoint for each head.
        seed: of the samples.
        say: is told how far it is.

    Returns:
        Samples; `best` is their mean.
    Raises:
        ValueError: there are no readings, an error is not above 0, or `samples` is below 2.
        SiteError: the flow equation cannot be solved.
    """
    if samples < 2:
        raise ValueError(f"posterior: samples must be 2 or more, got {samples}")
    known = [readings for readings in (log_transmissivity, head) if readings is not None]
    if not known:
        raise ValueError("posterior: there are no readings: give log_transmissivity, head or both")
    if not all((readings.errors > 0).all() for readings in known):
        raise ValueError("posterior: errors of readings must be above 0: nothing is known exactly")
    with torch.no_grad():
        say("facies: shapes given what is read of ln T")
        latent = given_logs(prior, log_transmissivity, samples, seed)
        fields = torch.empty(samples, site.cells, dtype=torch.float64)
        for member in range(samples):
            say(f"facies: sample {member + 1} of {samples}")
            fields[member] = _fitted(site, prior, latent, head, member, seed)
        heads = darcy.solve(site, fields)
    judged, read = (fields, log_transmissivity) if head is None else (heads, head)
    assert read is not None
    off = (judged.numpy()[:, read.cells] - read.values) / read.errors
    steps = 0 if head is None else len(_WIDTHS) + _TEXTURES
    return Posterior(fields.mean(0).numpy(), fields.numpy(), heads.numpy(), float(np.sqrt((off**2).mean())), steps)


@dataclass(frozen=True)
class Conditioned:
    """Shape and both textures, given readings of ln T: start + modes @ normal numbers.

    Args:
        start: of each member, part and cell.
        modes: of each part, (cell, its normal numbers).
    """

    start: Float[Tensor, "member part cell"]
    modes: list[Tensor]

    @property
    def noise(self) -> int:
        """How many normal numbers."""
        return sum(modes.shape[1] for modes in self.modes)

    def parts(self, member: int, z: Float[Tensor, "noise"]) -> Float[Tensor, "part cell"]:
        """Of one member."""
        pieces = z.split([modes.shape[1] for modes in self.modes])
        return self.start[member] + torch.stack([m @ piece for m, piece in zip(self.modes, pieces, strict=True)])


def given_logs(prior: FaciesGenerator, known: Readings | None, members: int, seed: int) -> Conditioned:
    """Shape and textures given readings of ln T alone."""
    none = np.zeros(0)
    known = known or Readings(none.astype(np.int64), none, none)
    values, errors = torch.from_numpy(known.values), torch.from_numpy(known.errors)
    shape, inside, outside = prior.matrices()
    cells = torch.from_numpy(known.cells)
    means = prior.inside.mean, prior.outside.mean
    log = [
        -0.5 * ((values - mean).square() / spread + spread.log())
        for mean, spread in (
            (field.mean, field.log_variance.exp().sum() + errors.square()) for field in (prior.inside, prior.outside)
        )
    ]
    rng = np.random.default_rng((seed, 0))
    covariance = (shape[cells] @ shape[cells].T).numpy()
    at = shapes_at_wells(covariance, float(prior.level), torch.sigmoid(log[0] - log[1]).numpy(), members, rng)
    found = torch.from_numpy(at)
    within = found > prior.level
    nugget = torch.full_like(errors, _NUGGET)
    starts, modes = [], []
    for matrix, value, error, usual in (
        (shape, found, nugget.expand(members, -1), nugget),
        *(
            (matrix, (values - mean).expand(members, -1), *_where(own, errors))
            for matrix, mean, own in zip((inside, outside), means, (within, ~within), strict=True)
        ),
    ):
        start, mode = _between(matrix, cells, value, error, usual)
        starts.append(start)
        modes.append(mode)
    return Conditioned(torch.stack(starts, dim=1), modes)


def _where(own: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """A texture's errors in each member, and those of most members."""
    unknown = torch.full_like(errors, _UNKNOWN)
    return torch.where(own, errors, unknown), torch.where(own.double().mean(0) > 0.5, errors, unknown)


def shapes_at_wells(
    covariance: Float[np.ndarray, "well well"],
    level: float,
    chance: Float[np.ndarray, "well"],
    members: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "member well"]:
    """Gibbs samples of a Gaussian shape whose side of the level is known at wells, or likely.

    Args:
        covariance: of the shape, of variance 1.
        level: that parts the facies.
        chance: that a well is inside by its reading, were both facies as frequent.
        members: how many, each from a chain of its own.
        rng: of the samples.
    """
    wells = len(chance)
    precision = np.linalg.inv(covariance + _NUGGET**2 * np.eye(wells))
    spread = 1 / np.sqrt(np.diag(precision))
    shape = level + np.where(rng.random((members, wells)) < chance, 0.5, -0.5)
    for _ in range(_SWEEPS):
        for well in range(wells):
            mean = shape[:, well] - (shape @ precision[:, well]) * spread[well] ** 2
            above = special.ndtr((mean - level - _MARGIN) / spread[well])
            below = special.ndtr((level - _MARGIN - mean) / spread[well])
            up, down = chance[well] * above, (1 - chance[well]) * below
            total = up + down
            # Where neither has a chance that floating point holds, the reading decides.
            side = np.where(total > 0, rng.random(members) * total < up, chance[well] >= 0.5)
            quantile = special.ndtri(np.maximum(np.where(side, above, below) * rng.random(members), 1e-300))
            shape[:, well] = mean + spread[well] * np.where(side, -quantile, quantile)
    return shape


def _between(
    matrix: Float[Tensor, "cell noise"],
    cells: Int[Tensor, "well"],
    values: Float[Tensor, "member well"],
    errors: Float[Tensor, "member well"],
    usual: Float[Tensor, "well"],
) -> tuple[Float[Tensor, "member cell"], Float[Tensor, "cell mode"]]:
    """Kriging of a part of mean 0: its mean in each member, and the modes of what is left, of usual errors."""
    at = matrix[cells]
    among, across = at @ at.T, matrix @ at.T
    start = torch.linalg.solve(among + torch.diag_embed(errors.square()), values[..., None])[..., 0] @ across.T
    left = matrix @ matrix.T - across @ torch.linalg.solve(among + usual.square().diag(), across.T)
    power, functions = torch.linalg.eigh(left)
    power, functions = power.flip(0).clamp(min=0.0), functions.flip(1)
    kept = min(int(torch.searchsorted(power.cumsum(0), _SHARE * power.sum())) + 1, len(power))
    return start, functions[:, :kept] * power[:kept].sqrt()


def _fitted(
    site: Site, prior: FaciesGenerator, latent: Conditioned, known: Readings | None, member: int, seed: int
) -> Float[Tensor, "cell"]:
    """ln T of one member: a sample given readings of ln T, changed no more than its perturbed heads ask for."""
    rng = np.random.default_rng((seed, 1, member))
    drawn = torch.from_numpy(rng.standard_normal(latent.noise))
    if known is None:
        return prior.combine(latent.parts(member, drawn)[None])[0]
    errors = torch.from_numpy(known.errors)
    wanted = torch.from_numpy(known.values / known.errors + rng.standard_normal(len(known)))
    cells = torch.from_numpy(known.cells)

    def objective(z: Tensor, width: float) -> float:
        heads = darcy.solve(site, prior.combine(latent.parts(member, z)[None], width)[0])
        value = float((z - drawn).square().sum() + (heads[cells] / errors - wanted).square().sum())
        return value if math.isfinite(value) else math.inf

    z, shapes = drawn, latent.modes[0].shape[1]
    for width, moves in [*((width, True) for width in _WIDTHS), *[(STEP, False)] * _TEXTURES]:
        # What does not move is taken as it is.
        anchor = drawn if moves else torch.cat([z[:shapes], drawn[shapes:]])
        parts = latent.parts(member, z)
        heads, by_field = darcy.sensitivities(site, prior.combine(parts[None], width)[0], cells)
        slopes = _slopes(prior, parts, width)
        jacobian = torch.cat([(by_field * s) @ m for s, m in zip(slopes, latent.modes, strict=True)], dim=1)
        jacobian = jacobian / errors[:, None]
        if not moves:
            jacobian[:, :shapes] = 0.0
        off = wanted - heads[cells] / errors + jacobian @ (z - anchor)
        matrix = jacobian @ jacobian.T
        matrix.diagonal().add_(1.0)
        target = anchor + jacobian.T @ torch.cholesky_solve(off[:, None], torch.linalg.cholesky(matrix))[:, 0]
        worth = objective(z, width)
        for halving in range(_HALVINGS):
            trial = torch.lerp(z, target, 0.5**halving)
            if objective(trial, width) < worth:
                z = trial
                break
    return prior.combine(latent.parts(member, z)[None])[0]


def _slopes(prior: FaciesGenerator, parts: Float[Tensor, "part cell"], width: float) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of ln T by shape and both textures, cell by cell."""
    shape, inside, outside = parts
    share = torch.sigmoid((shape - prior.level) / width)
    jump = prior.inside.mean + inside - prior.outside.mean - outside
    return share * (1 - share) / width * jump, share, 1 - share
