"""Fitting few named numbers of a machine to published points, and how sure predictions are afterwards.

Every number of a machine that a prediction rests on enters as a :class:`Parameter`: what is believed of it beforehand,
and by which factor it may be off. The fit is the maximum of the posterior, in logarithms; intervals follow from the
curvature there (Laplace's approximation), carried to predictions to first order. A number that the points say nothing
of keeps its prior width, so what is merely assumed widens the interval as well as what is fitted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

# Step of the finite differences in the logarithm of a parameter: models are simulations, whose events change order in
# small jumps, so that a step far below this one would measure those. Our choice.
_STEP = 0.05
# Standard deviations of the prior within which a parameter is looked for. Our choice.
_BOUND = 4.0
# Half width of an interval of 95 % in standard deviations of a normal law.
_HALF_WIDTH = 1.96


@dataclass(frozen=True, slots=True)
class Parameter:
    """A positive number that is not known for sure.

    Args:
        name: where it stands, as `jitter.step` of a machine.
        value: what is believed beforehand (median).
        factor: one standard deviation, as a factor: 2 says that it is within half and twice the value with a
            probability of 68 %.
        free: whether it is there to be fitted, and not because it is uncertain; only for reports.
        reference: where value and factor come from.
    """

    name: str
    value: float
    factor: float
    free: bool = False
    reference: str = "our choice"

    def __post_init__(self) -> None:
        if not (self.value > 0 and np.isfinite(self.value)):
            raise ValueError(f"{self.name} must be above 0, got {self.value}")
        if not (self.factor > 1 and np.isfinite(self.factor)):
            raise ValueError(f"{self.name}: the factor of uncertainty must be above 1, got {self.factor}")


@dataclass(frozen=True, slots=True)
class Point:
    """A published value, such as an efficiency.

    Args:
        name: of the case, which the model knows.
        value: as the model gives it.
        sigma: standard deviation, of its rounding at least.
    """

    name: str
    value: float
    sigma: float

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"{self.name}: sigma must be above 0, got {self.sigma}")


Model = Callable[[Mapping[str, float], Sequence[str]], Sequence[float]]
"""Efficiency, or whatever is predicted, of each of some cases, with these values of all parameters."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of a case.

    Args:
        value: as the model gives it.
        low, high: ends of the interval of 95 %.
        sensitivity: by parameter: change of the value if it grows by one standard deviation of its posterior.
    """

    value: float
    low: float
    high: float
    sensitivity: Mapping[str, float]


@dataclass(frozen=True)
class Fitted:
    """Parameters after they have met the points.

    Args:
        parameters: what was believed beforehand.
        values: by name.
        covariance: of the logarithms, in the order of the parameters.
        predictions: of every case that was asked for.
        inflation: factor on standard deviations because the points scatter about the model more than their sigmas say;
            1 if they do not, or if there are too few to tell.
    """

    parameters: tuple[Parameter, ...]
    values: Mapping[str, float]
    covariance: NDArray[np.float64]
    predictions: Mapping[str, Prediction]
    inflation: float

    def factor(self, name: str) -> float:
        """One standard deviation of a parameter afterwards, as a factor."""
        index = [p.name for p in self.parameters].index(name)
        return float(np.exp(np.sqrt(self.covariance[index, index])))


def fit(model: Model, parameters: Sequence[Parameter], points: Sequence[Point], cases: Sequence[str]) -> Fitted:
    """Fits the parameters to points, and predicts cases.

    Args:
        model: must give the same for the same values: its random numbers are fixed.
        parameters: all that are uncertain.
        points: what is fitted to; none: predictions from what is believed beforehand.
        cases: that are predicted.

    Raises:
        ValueError: two parameters or two points have the same name, or there is no parameter.
    """
    parameters = tuple(parameters)
    names = [parameter.name for parameter in parameters]
    known = [point.name for point in points]
    for what, given in (("parameters", names), ("points", known)):
        if len(set(given)) < len(given) or (not given and given is names):
            raise ValueError(f"{what} need names of their own, got {given}")
    centre = np.log([parameter.value for parameter in parameters])
    width = np.log([parameter.factor for parameter in parameters])
    target = np.array([point.value for point in points])
    sigma = np.array([point.sigma for point in points])

    def at(unit: NDArray[np.float64], wanted: Sequence[str]) -> NDArray[np.float64]:
        """The model, its parameters in standard deviations of their priors."""
        values = dict(zip(names, np.exp(centre + width * unit).tolist(), strict=True))
        return np.array(model(values, wanted), dtype=float) if wanted else np.zeros(0)

    steps = _STEP / width

    def slopes(unit: NDArray[np.float64], wanted: Sequence[str]) -> NDArray[np.float64]:
        here = at(unit, wanted)
        moves = np.diag(steps)
        return np.stack([(at(unit + move, wanted) - here) / move.sum() for move in moves], axis=1)

    unit = np.zeros(len(names))
    if points:
        found = least_squares(
            lambda u: np.concatenate(((at(u, known) - target) / sigma, u)),
            unit,
            jac=lambda u: np.concatenate((slopes(u, known) / sigma[:, None], np.eye(len(names)))),
            bounds=(-_BOUND, _BOUND),
            xtol=1e-3,
            ftol=1e-4,
            max_nfev=30,
        )
        unit = found.x
    wanted = list(dict.fromkeys((*known, *cases)))
    jacobian, now = slopes(unit, wanted), at(unit, wanted)
    misfit, weighted = (now[: len(known)] - target) / sigma, jacobian[: len(known)] / sigma[:, None]
    spare = len(points) - sum(parameter.free for parameter in parameters)
    inflation = float(max(1.0, np.sqrt((misfit**2).sum() / spare))) if spare > 0 else 1.0
    # In standard deviations of the priors, whose own information is the unit matrix.
    covariance = np.linalg.inv(np.eye(len(names)) + weighted.T @ weighted / inflation**2)
    spread = np.sqrt(np.diag(covariance))
    predictions = {}
    for name in dict.fromkeys(cases):
        index = wanted.index(name)
        half = _HALF_WIDTH * float(np.sqrt(jacobian[index] @ covariance @ jacobian[index]))
        sensitivity = dict(zip(names, (jacobian[index] * spread).tolist(), strict=True))
        predictions[name] = Prediction(
            float(now[index]), float(now[index]) - half, float(now[index]) + half, sensitivity
        )
    values = dict(zip(names, np.exp(centre + width * unit).tolist(), strict=True))
    return Fitted(parameters, values, covariance * np.outer(width, width), predictions, inflation)
