"""Randomised maximum likelihood: every sample is the optimum of a problem of its own.

Oliver, He and Reynolds, ECMOR V (1996); Oliver, Reynolds and Liu, Inverse Theory for Petroleum Reservoir
Characterization and History Matching, Cambridge 2008, ch. 10. Prior and data are perturbed by their own laws, and the
most likely noise is found by Gauss-Newton steps with derivatives of each sample's own (adjoint). Exact where all is
linear; elsewhere the samples honour the data, but their law is the posterior only nearly.
"""

import torch
from torch import Tensor

from exafield.progress import Say, silent
from exafield.subsurface.kriging import Readings
from exafield.subsurface.latent import Generator, Latent, LinearPrior, Point, PosteriorError, gauss_newton
from exafield.subsurface.posterior import Posterior, corrected, maximum, perturbed, posterior_of
from exafield.subsurface.site import Site


def infer(
    site: Site,
    prior: Generator,
    log_transmissivity: Readings | None = None,
    head: Readings | None = None,
    *,
    samples: int = 200,
    seed: int = 0,
    say: Say = silent,
) -> Posterior:
    """The posterior by optima of perturbed problems; arguments as :func:`exafield.subsurface.posterior.infer`.

    Raises:
        PosteriorError: an optimum is not found; names the sample.
        ValueError: there are no readings, or one cannot be used.
        SiteError: the flow equation cannot be solved.
    """
    if samples < 2:
        raise ValueError(f"rml: samples must be 2 or more, got {samples}")
    latent = Latent(site, prior, log_transmissivity, head)
    best = maximum(latent, say)
    drawn, wanted = perturbed(latent, samples, torch.Generator().manual_seed(seed))
    return posterior_of(latent, optima(latent, best, drawn, wanted, say), best)


def optima(latent: Latent, best: Point, drawn: Tensor, wanted: Tensor, say: Say = silent) -> Tensor:
    """z of least distance from each `drawn` noise and `wanted` data [sample, noise]; `say` is told how far it is."""
    # From where the derivatives at the maximum of the posterior lead, one or two steps are left.
    z = corrected(latent, best, drawn, wanted, 2)
    if not len(latent.at_u) and isinstance(latent.prior, LinearPrior):
        return z  # all is linear: these are the optima
    for number, start in enumerate(z):
        say(f"optimum of sample {number + 1} of {len(z)}")
        try:
            here = latent.linearised(start)
            z[number] = gauss_newton(latent, here, drawn[number], wanted[number]).z
        except (PosteriorError, ValueError) as error:
            raise PosteriorError(f"rml: sample {number} of {len(z)}: {error}") from error
    return z
