"""What wells say of a whole site: the posterior of ln T and heads by a Gaussian approximation in latent space.

The maximum of the posterior is found by Gauss-Newton steps; samples come from the linearisation there, each with data
and prior perturbed (randomised maximum likelihood: Oliver, Reynolds and Liu, Inverse Theory for Petroleum Reservoir
Characterization and History Matching, Cambridge 2008, ch. 10), and are corrected by solving for their heads.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from exafield.progress import Say, silent
from exafield.subsurface import darcy
from exafield.subsurface.kriging import Readings
from exafield.subsurface.latent import Generator, Latent, LinearPrior, Point, PosteriorError, gauss_newton
from exafield.subsurface.site import Site

__all__ = [
    "Interval",
    "LinearPrior",
    "Posterior",
    "PosteriorError",
    "corrected",
    "infer",
    "maximum",
    "perturbed",
    "posterior_of",
    "quantiles",
]


@dataclass(frozen=True)
class Interval:
    """A quantity of interest and what is known of it.

    Args:
        samples: one value of each sample.
        mean: of them.
        low, high: ends of the central interval.
    """

    samples: Float[np.ndarray, "sample"]
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Posterior:
    """What is known with the data.

    Args:
        best: ln T at the maximum of the posterior, or the mean of samples where a method looks for no maximum.
        log_transmissivity, head: of samples [sample, cell], ln(m2/d) and m.
        misfit: root of the mean squared difference of samples' values from the readings, in units of their errors; of
            heads, or of ln T where there are no heads. 1 is right.
        steps: to the maximum; of the ensemble; or paths of each chain.
        note: what to know before use, such as whether chains have converged.
        deaf: whether heads were not asked, so that samples need not honour them.
    """

    best: Float[np.ndarray, "cell"]
    log_transmissivity: Float[np.ndarray, "sample cell"]
    head: Float[np.ndarray, "sample cell"]
    misfit: float
    steps: int
    note: str = ""
    deaf: bool = False

    def interval(self, level: float = 0.90) -> tuple[Float[np.ndarray, "cell"], Float[np.ndarray, "cell"]]:
        """Ends of each cell's central interval of ln T, corrected for the number of samples."""
        return quantiles(self.log_transmissivity, level)

    def flux(
        self, site: Site, faces: Int[np.ndarray, "face"] | Bool[np.ndarray, "boundary"], level: float = 0.90
    ) -> Interval:
        """Flow into the aquifer through boundary faces, summed [m3/d]; below zero if water leaves there.

        Through all faces with a given head it is known before: what enters elsewhere. A reach of a river is not.

        Args:
            site: that of the samples.
            faces: numbers of boundary faces, or which of all.
            level: of the interval.
        Raises:
            ValueError: there are no such faces.
        """
        count = len(site.mesh.boundary_cells)
        chosen = np.flatnonzero(faces) if faces.dtype == bool else faces
        if (
            not len(chosen)
            or chosen.min() < 0
            or chosen.max() >= count
            or (faces.dtype == bool and len(faces) != count)
        ):
            raise ValueError(
                f"flux: give numbers from 0 to {count - 1} of boundary faces, or {count} truths of which one or more "
                f"are true; got {len(faces)} {faces.dtype} values"
            )
        fluxes = darcy.boundary_fluxes(site, torch.from_numpy(self.log_transmissivity), torch.from_numpy(self.head))
        values = fluxes[:, torch.tensor(chosen)].sum(-1).numpy()
        low, high = quantiles(values, level)
        return Interval(values, float(values.mean()), float(low), float(high))


def quantiles(samples: Float[np.ndarray, "sample *shape"], level: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the central interval.

    A new value of the same law lies below the k-th of n samples with chance k / (n + 1) (Weibull's plotting positions):
    intervals hold what they say whatever n, where quantiles that interpolate to the outermost samples are too narrow.
    """
    low, high = np.quantile(samples, [0.5 - level / 2, 0.5 + level / 2], axis=0, method="weibull")
    return np.asarray(low), np.asarray(high)


def infer(
    site: Site,
    prior: Generator,
    log_transmissivity: Readings | None = None,
    head: Readings | None = None,
    *,
    samples: int = 200,
    corrections: int = 2,
    seed: int = 0,
    say: Say = silent,
) -> Posterior:
    """The posterior given readings.

    Args:
        site: mesh and boundary conditions.
        prior: generator of ln T, linear or not.
        log_transmissivity, head: readings in cells, with errors above 0; one of them, or both.
        samples: of the posterior.
        corrections: times each sample's heads are solved for, and the sample mended by what they differ from those
            of the linearisation; 0 leaves samples as they are, whose heads then miss the data.
        seed: of the samples.
        say: is told how far it is.
    Raises:
        PosteriorError: the maximum is not found.
        ValueError: there are no readings, one cannot be used, or numbers are out of range.
        SiteError: the flow equation cannot be solved.
    """
    if samples < 2 or corrections < 0:
        raise ValueError(
            f"posterior: samples must be 2 or more and corrections 0 or more, got {samples}, {corrections}"
        )
    latent = Latent(site, prior, log_transmissivity, head)
    best = maximum(latent, say)
    drawn, wanted = perturbed(latent, samples, torch.Generator().manual_seed(seed))
    return posterior_of(latent, corrected(latent, best, drawn, wanted, corrections), best)


def maximum(latent: Latent, say: Say = silent) -> Point:
    """Of the posterior; `say` is told how far the way to it is."""
    return gauss_newton(latent, latent.linearised(torch.zeros(latent.noise, dtype=torch.float64)), say=say)


def perturbed(latent: Latent, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """z of the prior [sample, noise], and data with errors drawn anew [sample, datum]."""
    drawn = torch.randn(samples, latent.noise, generator=generator, dtype=torch.float64)
    noise = torch.randn(samples, len(latent.values), generator=generator, dtype=torch.float64)
    return drawn, latent.values + noise


def corrected(latent: Latent, best: Point, drawn: Tensor, wanted: Tensor, corrections: int) -> Tensor:
    """z of least distance from `drawn` and `wanted`, where predictions change as they do at the maximum."""
    matrix = best.jacobian @ best.jacobian.T
    matrix.diagonal().add_(1.0)
    factor = torch.linalg.cholesky(matrix)

    def mended(z: Tensor, at: Tensor) -> Tensor:
        off = wanted - at - (drawn - z) @ best.jacobian.T
        return drawn + torch.cholesky_solve(off.T, factor).T @ best.jacobian

    z = mended(best.z.expand(len(drawn), -1), best.predicted.expand(len(drawn), -1))
    for _ in range(corrections):
        z = mended(z, latent.predict(z))
    return z


def posterior_of(latent: Latent, z: Tensor, best: Point | None, steps: int | None = None, note: str = "") -> Posterior:
    """Samples of noise as a posterior."""
    fields = latent.fields(z)
    heads = darcy.solve(latent.site, fields)
    middle = fields.mean(0) if best is None else latent.fields(best.z[None])[0]
    taken = steps if steps is not None else best.steps if best is not None else 0
    misfit = latent.misfit(latent.of(fields, heads))
    return Posterior(middle.numpy(), fields.numpy(), heads.numpy(), misfit, taken, note)
