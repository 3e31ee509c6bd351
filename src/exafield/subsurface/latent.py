"""Readings of a site as data on the noise of a generator: what is predicted, derivatives, and the most likely noise.

A generator turns independent standard normal numbers z into ln T: a linear prior (Karhunen-Loeve, a spectral filter) or
anything differentiable, such as a trained network. Heads follow by the flow equation. Data are few and z are many, so
Gauss-Newton steps are taken in the space of the data (Oliver, Reynolds and Liu, Inverse Theory for Petroleum Reservoir
Characterization and History Matching, Cambridge 2008, ch. 8).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from exafield.progress import Say, silent
from exafield.subsurface import darcy
from exafield.subsurface.checks import SiteError
from exafield.subsurface.kriging import Readings, WellError
from exafield.subsurface.site import Site

# Steps to the maximum at most, halvings of a step, and the gain of the objective below which it is found; our choice.
_STEPS, _HALVINGS, _GAIN = 30, 12, 1e-3


class PosteriorError(RuntimeError):
    """A posterior was not found; says why."""


@runtime_checkable
class Generator(Protocol):
    """Fields of ln T [batch, cell] from noise [batch, noise], each row from its own; differentiable."""

    @property
    def noise(self) -> int:
        """How many independent standard normal numbers it takes."""
        ...

    def __call__(self, z: Tensor, /) -> Tensor:
        """ln T [ln(m2/d)]."""
        ...


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

    @property
    def noise(self) -> int:
        """How many normal numbers it takes."""
        return self.modes.shape[1]

    def __call__(self, z: Float[Tensor, "*batch term"]) -> Float[Tensor, "*batch cell"]:
        """Fields."""
        return self.mean + z @ self.modes.T


@dataclass(frozen=True)
class Point:
    """A place in latent space, and the predictions about it.

    Args:
        z: the noise.
        predicted: readings there, in units of their errors.
        jacobian: of these by z.
        steps: taken to get there.
    """

    z: Float[Tensor, "noise"]
    predicted: Float[Tensor, "datum"]
    jacobian: Float[Tensor, "datum noise"]
    steps: int = 0


class Latent:
    """Readings in units of their errors, and what predicts them.

    Args:
        site: mesh and boundary conditions.
        prior: generator of ln T.
        log_transmissivity, head: readings with errors above 0; one of them, or both.
    Raises:
        ValueError: there are no readings, or one cannot be used: says which.
    """

    def __init__(
        self, site: Site, prior: Generator, log_transmissivity: Readings | None, head: Readings | None
    ) -> None:
        given = {
            name: known
            for name, known in (("ln T", log_transmissivity), ("head", head))
            if known is not None and len(known)
        }
        if not given:
            raise ValueError("posterior: there are no readings: give log_transmissivity, head or both")
        for name, known in given.items():
            _check(name, known, site)
        self.site, self.prior = site, prior
        none = torch.zeros(0).long()
        self.at_y, self.at_u = (torch.tensor(given[name].cells) if name in given else none for name in ("ln T", "head"))
        self.errors = torch.cat([torch.tensor(known.errors, dtype=torch.float64) for known in given.values()])
        values = torch.cat([torch.tensor(known.values, dtype=torch.float64) for known in given.values()])
        self.values = values / self.errors
        count = len(self.at_y)
        self.judged = slice(count, None) if "head" in given else slice(0, count)
        self._dtype = next(_floats(prior), torch.zeros(0, dtype=torch.float64)).dtype

    @property
    def noise(self) -> int:
        """Dimensions of latent space."""
        return self.prior.noise

    def fields(self, z: Tensor) -> Tensor:
        """ln T in float64 [batch, cell]; derivatives are kept by z alone, and only if it asks for them."""
        with torch.set_grad_enabled(z.requires_grad):
            return self.prior(z.to(self._dtype)).to(torch.float64)

    def of(self, fields: Tensor, heads: Tensor) -> Tensor:
        """What is read of fields and heads, [batch, datum]."""
        return torch.cat([fields[..., self.at_y], heads[..., self.at_u]], -1) / self.errors

    def predict(self, z: Tensor) -> Tensor:
        """What is read, [batch, datum]."""
        fields = self.fields(z)
        # Without readings of heads nobody needs the flow.
        return self.of(fields, darcy.solve(self.site, fields) if len(self.at_u) else fields)

    def misfit(self, predicted: Tensor) -> float:
        """Root of the mean squared difference from readings in units of their errors: of heads, or ln T if alone."""
        return float((predicted - self.values)[..., self.judged].square().mean().sqrt())

    def objective(
        self, z: Tensor, predicted: Tensor, centre: Tensor | None = None, data: Tensor | None = None
    ) -> Tensor:
        """Twice the negative logarithm of the posterior density [batch], but for a constant.

        Args:
            z, predicted: noise and what is read of it.
            centre, data: instead of 0 and the readings.
        """
        apart = z if centre is None else z - centre
        off = predicted - (self.values if data is None else data)
        return apart.square().sum(-1) + off.square().sum(-1)

    def gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Negative logarithm of the posterior density [batch], and its gradient [batch, noise]."""
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            energy = self.objective(at, self.predict(at)) / 2
            (slope,) = torch.autograd.grad(energy.sum(), at)
        return energy.detach(), slope

    def linearised(self, z: Float[Tensor, "noise"], steps: int = 0) -> Point:
        """Predictions about one z, by one adjoint solve for each reading of a head."""
        y = self.fields(z[None])[0]
        heads, by_y = y, y.new_zeros(0, len(y))
        if len(self.at_u):
            heads, by_y = darcy.sensitivities(self.site, y, self.at_u)
        if isinstance(self.prior, LinearPrior):
            jacobian = torch.cat([self.prior.modes[self.at_y], by_y @ self.prior.modes])
        else:
            one = torch.zeros(len(self.at_y), len(y), dtype=torch.float64)
            one[torch.arange(len(self.at_y)), self.at_y] = 1.0
            jacobian = self._pulled_back(z, torch.cat([one, by_y]))
        return Point(z, self.of(y, heads), jacobian / self.errors[:, None], steps)

    def _pulled_back(self, z: Tensor, rows: Tensor) -> Tensor:
        """Each row of derivatives by ln T as one by z: a copy of z for each, since the way back takes one row each."""
        with torch.enable_grad():
            copies = z.detach().expand(len(rows), -1).clone().requires_grad_()
            (found,) = torch.autograd.grad(self.fields(copies), copies, rows)
        return found


def gauss_newton(
    latent: Latent,
    start: Point,
    centre: Float[Tensor, "noise"] | None = None,
    data: Float[Tensor, "datum"] | None = None,
    gain: float = _GAIN,
    say: Say = silent,
) -> Point:
    """The z of least squared distance from `centre` and of its predictions from `data`, going downhill from `start`.

    Args:
        latent: problem.
        start: place to begin.
        centre, data: 0 and the readings, unless others are given; `data` in units of the errors.
        gain: relative, of the objective, below which the least is found.
        say: is told how far it is.
    Raises:
        PosteriorError: it is not found.
    """
    centre = torch.zeros_like(start.z) if centre is None else centre
    data = latent.values if data is None else data
    here, worth = start, float(latent.objective(start.z, start.predicted, centre, data))
    for step in range(1, _STEPS + 1):
        say(f"maximum: step {step}, objective {worth:.5g} for {len(data)} readings")
        matrix = here.jacobian @ here.jacobian.T
        matrix.diagonal().add_(1.0)
        off = data - here.predicted + here.jacobian @ (here.z - centre)
        solved = torch.cholesky_solve(off[:, None], torch.linalg.cholesky(matrix))[:, 0]
        if worth - float(off @ solved) < gain * max(1.0, worth):
            return here  # where the linearisation itself promises no more
        target = centre + here.jacobian.T @ solved
        share = 1.0
        for _ in range(_HALVINGS):
            trial = here.z + share * (target - here.z)
            reached = _worth(latent, trial, centre, data)
            if reached < worth:
                break
            share /= 2
        else:
            return here  # no way down is left
        gained, worth, here = worth - reached, reached, latent.linearised(trial, step)
        if gained < gain * max(1.0, worth):
            return here
    raise PosteriorError(
        f"the maximum of the posterior is not found in {_STEPS} steps (objective {worth:.3g} for {len(data)} "
        "readings): are errors too small, or readings of another site?"
    )


def _worth(latent: Latent, z: Tensor, centre: Tensor, data: Tensor) -> float:
    try:
        value = float(latent.objective(z, latent.predict(z[None])[0], centre, data))
    except SiteError:  # a step too far, where heads cannot be solved for
        return math.inf
    return value if math.isfinite(value) else math.inf


def _floats(prior: Generator) -> Iterator[Tensor]:
    """Parameters and buffers of a generator that say its precision."""
    if isinstance(prior, nn.Module):
        for values in (*prior.parameters(), *prior.buffers()):
            if values.is_floating_point():
                yield values


def _check(name: str, known: Readings, site: Site) -> None:
    bad = torch.tensor((known.cells < 0) | (known.cells >= site.cells))
    refuse = {
        f"lies outside the mesh of {site.cells} cells: check coordinates and unit of wells": bad,
        "is not finite (NaN): leave it out": ~torch.isfinite(torch.tensor(known.values)),
        "has an error that is not above 0 and finite: nothing is known exactly": ~(
            (torch.tensor(known.errors) > 0) & torch.isfinite(torch.tensor(known.errors))
        ),
    }
    for why, which in refuse.items():
        if bool(which.any()):
            at = int(which.nonzero()[0])
            raise WellError(
                f"posterior: the reading of {name} number {at} (cell {known.cells[at]}, value {known.values[at]:.6g}, "
                f"error {known.errors[at]:.3g}) {why} ({int(which.sum())} of {len(known)} such)"
            )
    cells, times = torch.tensor(known.cells).unique(return_counts=True)
    if bool((times > 1).any()):
        raise WellError(
            f"posterior: cell {int(cells[times > 1][0])} has {int(times.max())} readings of {name}: join them with "
            "kriging.readings, which weighs them and refuses those that contradict each other"
        )
