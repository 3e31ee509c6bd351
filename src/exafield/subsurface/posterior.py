"""What wells say of a whole site: the posterior of ln T and heads by a Gaussian approximation in latent space.

The prior is linear in independent normal numbers z, y = mean + modes z (Karhunen-Loeve, or any linear generator), heads
follow from y by the flow equation. Data are few and z are many, so all is done in the space of the data. The maximum of
the posterior is found by Gauss-Newton steps (Oliver, Reynolds and Liu, Inverse Theory for Petroleum Reservoir
Characterization and History Matching, Cambridge 2008, ch. 8), samples come from the linearisation there, each with
data and prior perturbed (randomised maximum likelihood, ibid. ch. 10), and are corrected by solving for their heads.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from exafield.subsurface import darcy
from exafield.subsurface.kriging import Readings
from exafield.subsurface.site import Site

# Steps to the maximum at most, halvings of a step, and the gain of the objective below which it is found; our choice.
_STEPS, _HALVINGS, _GAIN = 30, 12, 1e-3


class PosteriorError(RuntimeError):
    """The maximum of a posterior was not found; says why."""


@dataclass(frozen=True)
class LinearPrior:
    """Fields that are linear in independent normal numbers.

    Args:
        mean: of ln T.
        modes: (cell, term).
    """

    mean: Float[Tensor, "cell"]
    modes: Float[Tensor, "row term"]

    def __post_init__(self) -> None:
        if self.modes.ndim != 2 or self.mean.shape != self.modes.shape[:1]:
            raise ValueError(
                f"prior: mean must be (cell) and modes (cell, term), got {tuple(self.mean.shape)} and "
                f"{tuple(self.modes.shape)}"
            )

    def __call__(self, z: Float[Tensor, "*batch term"]) -> Float[Tensor, "*batch cell"]:
        """Fields."""
        return self.mean + z @ self.modes.T


@dataclass(frozen=True)
class Posterior:
    """What is known with the data.

    Args:
        best: ln T at the maximum of the posterior.
        log_transmissivity, head: of samples [sample, cell], ln(m2/d) and m.
        misfit: root of the mean squared difference of samples' values from the readings, in units of their errors; of
            heads, or of ln T where there are no heads. 1 is right.
        steps: to the maximum.
    """

    best: Float[np.ndarray, "cell"]
    log_transmissivity: Float[np.ndarray, "sample cell"]
    head: Float[np.ndarray, "sample cell"]
    misfit: float
    steps: int

    def interval(self, level: float = 0.90) -> tuple[Float[np.ndarray, "cell"], Float[np.ndarray, "cell"]]:
        """Ends of each cell's central interval of ln T."""
        low, high = np.quantile(self.log_transmissivity, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        return low, high


def infer(
    site: Site,
    prior: LinearPrior,
    log_transmissivity: Readings | None = None,
    head: Readings | None = None,
    *,
    samples: int = 200,
    corrections: int = 2,
    seed: int = 0,
) -> Posterior:
    """The posterior given readings.

    Args:
        site: mesh and boundary conditions.
        prior: of ln T.
        log_transmissivity, head: readings in cells, with errors above 0; one of them, or both.
        samples: of the posterior.
        corrections: times each sample's heads are solved for, and the sample mended by what they differ from those
            of the linearisation; 0 leaves samples as they are, whose heads then miss the data.
        seed: of the samples.
    Raises:
        PosteriorError: the maximum is not found.
        ValueError: there are no readings, an error is not above 0, or numbers are out of range.
        SiteError: the flow equation cannot be solved.
    """
    if samples < 2 or corrections < 0:
        raise ValueError(
            f"posterior: samples must be 2 or more and corrections 0 or more, got {samples}, {corrections}"
        )
    data = _Data(site, prior, log_transmissivity, head)
    best, jacobian, predicted, steps = _maximum(data)
    factor = torch.linalg.cholesky(jacobian @ jacobian.T + torch.eye(len(data.values), dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    terms = prior.modes.shape[1]
    drawn = torch.randn(samples, terms, generator=generator, dtype=torch.float64)
    wanted = data.values + torch.randn(samples, len(data.values), generator=generator, dtype=torch.float64)

    def mended(z: Tensor, at: Tensor) -> Tensor:
        # The least distance from the drawn z and data, where predictions change from `at` by the jacobian.
        off = wanted - at - (drawn - z) @ jacobian.T
        return drawn + torch.cholesky_solve(off.T, factor).T @ jacobian

    z = mended(best.expand(samples, -1), predicted.expand(samples, -1))
    for _ in range(corrections):
        z = mended(z, data.predict(z))
    fields = prior(z)
    heads = darcy.solve(site, fields)
    off = (data.of(fields, heads) - data.values)[:, data.judged]
    return Posterior(prior(best).numpy(), fields.numpy(), heads.numpy(), float(off.square().mean().sqrt()), steps)


class _Data:
    """Readings in units of their errors, and what predicts them."""

    def __init__(self, site: Site, prior: LinearPrior, y: Readings | None, u: Readings | None) -> None:
        if y is None and u is None:
            raise ValueError("posterior: there are no readings: give log_transmissivity, head or both")
        self.site, self.prior = site, prior
        none = torch.zeros(0)
        self._at_y, self._at_u = (torch.tensor(r.cells) if r is not None else none.long() for r in (y, u))
        values = [torch.tensor(r.values, dtype=torch.float64) for r in (y, u) if r is not None]
        errors = [torch.tensor(r.errors, dtype=torch.float64) for r in (y, u) if r is not None]
        self._errors = torch.cat(errors)
        if not bool((self._errors > 0).all()):
            raise ValueError("posterior: errors of readings must be above 0: nothing is known exactly")
        self.values = torch.cat(values) / self._errors
        count = len(self._at_y)
        self.judged = slice(count, None) if u is not None else slice(0, count)

    def of(self, fields: Tensor, heads: Tensor) -> Tensor:
        """What is read of fields and heads, [batch, datum]."""
        return torch.cat([fields[..., self._at_y], heads[..., self._at_u]], -1) / self._errors

    def predict(self, z: Tensor) -> Tensor:
        """What is read, [batch, datum]."""
        fields = self.prior(z)
        return self.of(fields, darcy.solve(self.site, fields))

    def linearised(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What is read [datum], and its derivatives by z [datum, term]."""
        modes, y = self.prior.modes, self.prior(z)
        heads, by_y = darcy.sensitivities(self.site, y, self._at_u)
        jacobian = torch.cat([modes[self._at_y], by_y @ modes]) / self._errors[:, None]
        return self.of(y, heads), jacobian


def _maximum(data: _Data) -> tuple[Tensor, Tensor, Tensor, int]:
    """z at the maximum, the jacobian and the predictions there, and how many steps it took."""
    z = torch.zeros(data.prior.modes.shape[1], dtype=torch.float64)
    predicted, jacobian = data.linearised(z)
    worth = _objective(z, predicted, data)
    for step in range(_STEPS):
        count = len(data.values)
        matrix = jacobian @ jacobian.T + torch.eye(count, dtype=torch.float64)
        off = data.values - predicted + jacobian @ z
        target = jacobian.T @ torch.linalg.solve(matrix, off)
        share = 1.0
        for _ in range(_HALVINGS):
            trial = z + share * (target - z)
            reached = _objective(trial, data.predict(trial[None])[0], data)
            if reached < worth:
                break
            share /= 2
        else:
            return z, jacobian, predicted, step  # no way down is left
        gain, z, worth = worth - reached, trial, reached
        predicted, jacobian = data.linearised(z)
        if gain < _GAIN * max(1.0, worth):
            return z, jacobian, predicted, step + 1
    raise PosteriorError(
        f"the maximum of the posterior is not found in {_STEPS} steps (objective {worth:.3g} for {len(data.values)} "
        "readings): are errors too small, or readings of another site?"
    )


def _objective(z: Tensor, predicted: Tensor, data: _Data) -> float:
    value = float(z.square().sum() + (predicted - data.values).square().sum())
    return value if math.isfinite(value) else math.inf
