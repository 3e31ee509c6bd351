"""Ensemble smoother with multiple data assimilation, the practitioners' way to condition fields on heads.

Emerick and Reynolds, Computers & Geosciences 55 (2013) 3.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from exafield.progress import Say, silent

Forward = Callable[[Tensor], Tensor]
"""Parameters (member, parameter) to predicted data (member, datum)."""

# Spread left, as a share of that at the start, below which an ensemble has collapsed (our choice).
_COLLAPSED = 1e-3


class EnsembleError(ValueError):
    """A forward run or an update failed; names the member and the step."""


class EnsembleWarning(UserWarning):
    """The ensemble has lost its spread, or cannot reach the data."""


@dataclass(frozen=True)
class Ensemble:
    """What is left after all steps.

    Args:
        members: parameters given the data.
        predictions: of the forward function for them.
        misfits: of all predictions, before each step and after the last, as multiples of the data's errors (rms).
    """

    members: Float[Tensor, "member parameter"]
    predictions: Float[Tensor, "member datum"]
    misfits: tuple[float, ...]


def esmda(
    start: Float[Tensor, "member parameter"],
    forward: Forward,
    data: Float[Tensor, "datum"],
    errors: Float[Tensor, "datum"],
    *,
    steps: int | Sequence[float] = 4,
    localisation: Float[Tensor, "parameter datum"] | Literal["correlation"] | None = None,
    limits: tuple[Tensor, Tensor] | None = None,
    generator: torch.Generator | None = None,
    say: Say = silent,
) -> Ensemble:
    """Conditions an ensemble on data in several steps, each with the data's errors made larger.

    Where part of the data are values of the parameters themselves, start from kriged samples
    (:meth:`exafield.subsurface.kriging.Kriged.sample`) and give only the others here: from unconditional samples the
    ensemble must find all of it in the span of its members, and collapses.

    Args:
        start: samples of the prior.
        forward: of all members at once.
        data: measured.
        errors: their standard deviations, independent of each other.
        steps: how many with equal weights, or the factors that enlarge the errors' variance, whose inverses sum to 1.
        localisation: factors on the gain, such as :func:`gaspari_cohn` of distances; "correlation" for those of
            :func:`correlation_taper`, found anew in each step; None: none.
        limits: parameters are kept between these, since an update beyond all sense makes the next forward run fail.
        generator: of the data's perturbations.
        say: is told how far it is.
    Raises:
        EnsembleError: a prediction is not finite.
    Warns:
        EnsembleWarning: the ensemble has collapsed.
    """
    factors = [float(steps)] * steps if isinstance(steps, int) else [float(step) for step in steps]
    _check(start, data, errors, factors)
    members, misfits = start, []
    for step, factor in enumerate([*factors, math.nan]):
        say(f"esmda: step {min(step + 1, len(factors))} of {len(factors)}, {len(members)} members")
        predictions = forward(members)
        _check_predictions(predictions, len(start), len(data), step)
        misfits.append(float(((predictions - data) / errors).square().mean().sqrt()))
        if step < len(factors):
            noise = torch.randn(predictions.shape, generator=generator, dtype=start.dtype, device=start.device)
            members = _updated(members, predictions, data, errors * math.sqrt(factor), noise, localisation)
            if limits is not None:
                members = members.clamp(*limits)
    left = float(members.std(0).mean() / start.std(0).mean())
    if left < _COLLAPSED:
        warnings.warn(
            f"ES-MDA: the ensemble has collapsed to {left:.1e} of its spread: give more members, or localisation",
            EnsembleWarning,
            stacklevel=2,
        )
    return Ensemble(members, predictions, tuple(misfits))


def _updated(
    members: Tensor,
    predictions: Tensor,
    data: Tensor,
    errors: Tensor,
    noise: Tensor,
    localisation: Tensor | Literal["correlation"] | None,
) -> Tensor:
    """One step with errors already enlarged. All in units of the errors, which makes the matrix well scaled."""
    count = len(members) - 1
    anomaly = (predictions - predictions.mean(0)) / errors
    matrix = anomaly.T @ anomaly / count
    matrix.diagonal().add_(1.0)
    innovation = (data - predictions) / errors + noise
    solved = torch.cholesky_solve(innovation.T, torch.linalg.cholesky(matrix))
    centred = members - members.mean(0)
    if localisation is None:
        return members + solved.T @ (anomaly.T @ centred / count)
    taper = correlation_taper(members, predictions) if localisation == "correlation" else localisation
    gain = taper * (centred.T @ anomaly / count)
    return members + solved.T @ gain.T


def _check(start: Tensor, data: Tensor, errors: Tensor, factors: Sequence[float]) -> None:
    if len(start) < 2:
        raise EnsembleError(f"ES-MDA: an ensemble needs 2 members or more, got {len(start)}")
    for name, values in (("a reading", data), ("an error", errors)):
        bad = torch.nonzero(~torch.isfinite(values) | ((values <= 0) if name == "an error" else False)).flatten()
        if len(bad):
            raise EnsembleError(
                f"ES-MDA: datum {int(bad[0])} has {name} of {float(values[bad[0]])} ({len(bad)} such): "
                "readings must be finite, errors above 0; leave such data out"
            )
    if not factors or min(factors) < 1 or abs(sum(1 / factor for factor in factors) - 1) > 1e-6:
        raise EnsembleError(
            f"ES-MDA: factors must be 1 or more and their inverses sum to 1, got {list(factors)}: "
            "say steps=4 for equal ones"
        )


def _check_predictions(predictions: Tensor, members: int, data: int, step: int) -> None:
    if predictions.shape != (members, data):
        raise EnsembleError(
            f"ES-MDA: the forward function must return {members} members x {data} data, got {tuple(predictions.shape)}"
        )
    bad = torch.nonzero(~torch.isfinite(predictions))
    if len(bad):
        raise EnsembleError(
            f"ES-MDA: before step {step + 1} the prediction of member {int(bad[0, 0])} for datum {int(bad[0, 1])} is "
            f"not finite ({len(bad[:, 0].unique())} such members): give limits to the parameters"
        )


def gaspari_cohn(distance: Float[Tensor, "*shape"], radius: float) -> Float[Tensor, "*shape"]:
    """A taper that is 1 at distance 0 and 0 beyond twice the radius.

    Gaspari and Cohn, Q. J. R. Meteorol. Soc. 125 (1999) 723, eq. 4.10. Heads act over longer distances than fields are
    correlated: a taper that cuts them off makes ES-MDA fail.
    """
    if not radius > 0:
        raise ValueError(f"taper: radius must be above 0 [m], got {radius}")
    z = (distance / radius).abs()
    near = 1 - 5 / 3 * z**2 + 5 / 8 * z**3 + z**4 / 2 - z**5 / 4
    # Where it is not used, a distance of 0 would divide.
    w = z.clamp(min=1.0)
    far = 4 - 5 * w + 5 / 3 * w**2 + 5 / 8 * w**3 - w**4 / 2 + w**5 / 12 - 2 / (3 * w)
    return torch.where(z < 1, near, torch.where(z < 2, far, torch.zeros_like(z)))


def correlation_taper(
    members: Float[Tensor, "member parameter"], predictions: Float[Tensor, "member datum"]
) -> Float[Tensor, "parameter datum"]:
    """1 where a parameter and a datum are correlated beyond chance, towards 0 where they are not.

    After Luo and Bhakta, J. Pet. Sci. Eng. 184 (2020) 106559: a sample correlation of what is independent has a
    standard deviation of 1/sqrt(members), and the largest of n is about sqrt(2 ln n) of those. Their smooth taper:
    that of Gaspari and Cohn of (1 - |correlation|) / (1 - threshold), with radius 1.
    """
    count, cells = members.shape
    a, b = ((x - x.mean(0)) / x.std(0).clamp(min=1e-300) for x in (members, predictions))
    correlation = (a.T @ b / (count - 1)).abs().clamp(max=1.0)
    threshold = min(math.sqrt(2 * math.log(max(cells, 2)) / count), 0.99)
    return gaspari_cohn((1 - correlation) / (1 - threshold), 1.0)
