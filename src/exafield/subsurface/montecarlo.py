"""Monte Carlo: fields weighted by how well they fit what is read, and those that know of readings of ln T alone.

Self-normalised importance sampling. The law of a posterior needs no approximation here, but weights soon rest on a few
fields: beyond some tens of accurate heads no number of draws suffices, and the result says so.
"""

import warnings
from dataclasses import replace

import torch

from exafield.progress import Say, silent
from exafield.subsurface.kriging import Readings
from exafield.subsurface.latent import Generator, Latent, LinearPrior
from exafield.subsurface.posterior import Posterior, maximum, perturbed, posterior_of
from exafield.subsurface.rml import optima
from exafield.subsurface.site import Site

# Draws of which samples are taken, and effective ones under which weights say nothing (our choice).
_DRAWS, _FEW = 2000, 20.0


class WeightWarning(UserWarning):
    """The weights of Monte Carlo rest on a few draws."""


def without_heads(
    site: Site, prior: Generator, log_transmissivity: Readings | None, samples: int, seed: int, say: Say = silent
) -> torch.Tensor:
    """Noise given readings of ln T alone [sample, noise]: kriging, where the prior is linear; nearly, elsewhere."""
    random = torch.Generator().manual_seed(seed)
    if log_transmissivity is None or not len(log_transmissivity):
        return torch.randn(samples, prior.noise, generator=random, dtype=torch.float64)
    latent = Latent(site, prior, log_transmissivity, None)
    return optima(latent, maximum(latent, say), *perturbed(latent, samples, random), say)


def krige(
    site: Site,
    prior: Generator,
    log_transmissivity: Readings | None = None,
    head: Readings | None = None,
    *,
    samples: int = 200,
    seed: int = 0,
    say: Say = silent,
) -> Posterior:
    """The posterior of ln T by its own readings alone; heads follow, and their readings are only compared with."""
    if log_transmissivity is None or not len(log_transmissivity):
        raise ValueError("kriging: there are no readings of ln T, and heads tell it nothing: choose another method")
    z = without_heads(site, prior, log_transmissivity, samples, seed, say)
    return replace(posterior_of(Latent(site, prior, log_transmissivity, head), z, None), deaf=head is not None)


def weigh(
    site: Site,
    prior: Generator,
    log_transmissivity: Readings | None = None,
    head: Readings | None = None,
    *,
    samples: int = 200,
    seed: int = 0,
    say: Say = silent,
) -> Posterior:
    """The posterior by weighted draws, taken anew by their weights.

    Exact for many draws. Those of a linear prior keep to the readings of ln T beforehand, so that heads alone weigh;
    those of another generator know of none.

    Warns:
        WeightWarning: weights rest on a few draws.
    """
    latent = Latent(site, prior, log_transmissivity, head)
    kept = isinstance(prior, LinearPrior)
    count = max(_DRAWS, samples)
    z = without_heads(site, prior, log_transmissivity if kept else None, count, seed, say)
    say(f"montecarlo: heads of {count} fields")
    weighing = slice(len(latent.at_y) if kept else 0, None)
    off = (latent.predict(z) - latent.values)[:, weighing]
    weights = torch.softmax(-off.square().sum(1) / 2, 0)
    effective = float(1 / weights.square().sum())
    note = f"{effective:.1f} effective of {count} draws"
    if effective < _FEW:
        note += ": readings are too many or too accurate for Monte Carlo, this is no posterior"
        warnings.warn(f"montecarlo: {note}", WeightWarning, stacklevel=2)
    # Systematic resampling: each draw is taken as often as its weight says, but for less than one.
    random = torch.Generator().manual_seed(seed)
    start = torch.rand((), generator=random, dtype=torch.float64)
    at = (torch.arange(samples, dtype=torch.float64) + start) / samples
    chosen = torch.searchsorted(weights.cumsum(0), at).clamp(max=count - 1)
    # In any order: neighbours would be copies.
    return posterior_of(latent, z[chosen[torch.randperm(samples, generator=random)]], None, note=note)
