"""Ways to the posterior by name, all called alike."""

from typing import Protocol

import torch

from exafield.progress import Say, silent
from exafield.subsurface import darcy, hmc, montecarlo, posterior, rml
from exafield.subsurface.esmda import esmda
from exafield.subsurface.facies_generator import FaciesGenerator
from exafield.subsurface.kriging import Readings
from exafield.subsurface.latent import Generator, Latent, LinearPrior
from exafield.subsurface.nonlinear_inference import infer_facies
from exafield.subsurface.posterior import Posterior, posterior_of
from exafield.subsurface.site import Site

# Members of an ensemble at least, steps, and standard deviations within which it is kept (our choice); and the same for
# the noise of a generator, where one number in two million is beyond.
_MEMBERS, _STEPS, _WITHIN, _NOISE = 500, 4, 4.0, 5.0


class Method(Protocol):
    """Readings to a posterior; raises ValueError where they cannot be used, and names what failed."""

    def __call__(
        self,
        site: Site,
        prior: Generator,
        log_transmissivity: Readings | None = None,
        head: Readings | None = None,
        *,
        samples: int = 200,
        seed: int = 0,
        say: Say = silent,
    ) -> Posterior:
        """Readings have errors above 0; one kind of them or both. `say` is told how far it is."""
        ...


def ensemble(
    site: Site,
    prior: Generator,
    log_transmissivity: Readings | None = None,
    head: Readings | None = None,
    *,
    samples: int = 200,
    seed: int = 0,
    members: int = _MEMBERS,
    say: Say = silent,
) -> Posterior:
    """ES-MDA in four steps from fields that keep to the readings of ln T (:mod:`exafield.subsurface.esmda`).

    A linear prior's fields are updated themselves, another generator's noise.

    Args:
        site, prior, log_transmissivity, head: what is known.
        samples: members handed back.
        seed: of all randomness.
        members: of the ensemble, at least as many as samples.
        say: is told how far it is.
    """
    latent = Latent(site, prior, log_transmissivity, head)
    z = montecarlo.without_heads(site, prior, log_transmissivity, max(members, samples), seed, say)
    if not len(latent.at_u):
        return posterior_of(latent, z[:samples], None)
    errors = latent.errors[latent.judged]
    data, random = latent.values[latent.judged] * errors, torch.Generator().manual_seed(seed + 1)
    if not isinstance(prior, LinearPrior):

        def heads_of(noise: torch.Tensor) -> torch.Tensor:
            return darcy.solve(site, latent.fields(noise))[:, latent.at_u]

        limits = (torch.tensor(-_NOISE).double(), torch.tensor(_NOISE).double())
        found = esmda(z, heads_of, data, errors, steps=_STEPS, limits=limits, generator=random, say=say)
        return posterior_of(latent, found.members[:samples], None, _STEPS)
    reach = _WITHIN * prior.modes.square().sum(1).sqrt()
    found = esmda(
        prior(z),
        lambda fields: darcy.solve(site, fields)[:, latent.at_u],
        data,
        errors,
        steps=_STEPS,
        limits=(prior.mean - reach, prior.mean + reach),
        generator=random,
        say=say,
    )
    fields = found.members[:samples]
    heads = darcy.solve(site, fields)
    misfit = latent.misfit(latent.of(fields, heads))
    return Posterior(fields.mean(0).numpy(), fields.numpy(), heads.numpy(), misfit, _STEPS)


def facies(
    site: Site,
    prior: Generator,
    log_transmissivity: Readings | None = None,
    head: Readings | None = None,
    *,
    samples: int = 200,
    seed: int = 0,
    say: Say = silent,
) -> Posterior:
    """Of two kinds of rock (:mod:`exafield.subsurface.nonlinear_inference`).

    Raises:
        ValueError: the prior is another.
    """
    if not isinstance(prior, FaciesGenerator):
        raise ValueError("the method facies needs a prior of two kinds of rock, such as --generator facies learns")
    return infer_facies(site, prior, log_transmissivity, head, samples=samples, seed=seed, say=say)


#: For any prior; the first is the default.
METHODS: dict[str, Method] = {
    "laplace": posterior.infer,
    "rml": rml.infer,
    "hmc": hmc.infer,
    "kriging": montecarlo.krige,
    "esmda": ensemble,
    "montecarlo": montecarlo.weigh,
}
#: For one kind of prior only.
OWN: dict[str, Method] = {"facies": facies}
