"""What law sensors speak for: maximum-likelihood mean, variance, length, smoothness and nugget, with intervals.

Mardia and Marshall, Biometrika 71 (1984) 135; Stein, Interpolation of Spatial Data (1999).
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import linalg, optimize, stats

from exafield.subsurface.covariance import Matern, distances, matern, matern_slope

# Level of the intervals.
LEVEL = 0.90
# An interval of the length wider than this ratio is told of (our choice).
_WIDE = 3.0
# Steps of the walk that brackets an interval's ends, in logarithms (our choice).
_STEP = 0.35
# Factors by which the length may leave the range of distances, and the variances that of the values (our choice).
_LENGTH_SLACK, _VARIANCE_SLACK = 10.0, 1e3
# Nugget as a share of the values' variance: below the least it is as good as none.
_LEAST_NUGGET = 1e-8
_SMOOTHNESS = (0.2, 20.0)


class FitWarning(UserWarning):
    """The sensors leave the law open."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The law that makes the readings likeliest.

    Args:
        mean, variance, length, smoothness, nugget: of it; length in the unit of the points, nugget as a variance.
        intervals: 90 % of what was fitted, by name: from the profile likelihood; 0 or infinity where the readings set
            no bound.
        log_likelihood: at the maximum.
        sensors, snapshots: how many.
    """

    mean: float
    variance: float
    length: float
    smoothness: float
    nugget: float
    intervals: Mapping[str, tuple[float, float]]
    log_likelihood: float
    sensors: int
    snapshots: int

    @property
    def covariance(self) -> Matern:
        """Of the field, without the nugget.

        Where that is no instrument's error but variation within cells, predictions of cells have it on top.
        """
        return Matern(self.variance, self.length, self.smoothness)

    def lines(self) -> list[str]:
        """A table to print."""
        head = f"fitted to {self.sensors} sensors in {self.snapshots} snapshot(s), with {LEVEL:.0%} intervals"
        rows = []
        for name in ("mean", "variance", "length", "smoothness", "nugget"):
            low, high = self.intervals.get(name, (math.nan, math.nan))
            told = "given" if math.isnan(low) else f"{low:.4g} to {high:.4g}"
            rows.append(f"{name:12s} {getattr(self, name):10.4g}   {told}")
        return [head, *rows]


def fit(
    points: Float[np.ndarray, "sensor 2"],
    values: Float[np.ndarray, "reading"] | Float[np.ndarray, "snapshot reading"],
    *,
    smoothness: float | None = 2.5,
    nugget: float | None = None,
    mean: float | None = None,
    intervals: bool = True,
) -> Fit:
    """Fits a stationary isotropic Matern law to sensors.

    Args:
        points: where the sensors are [m].
        values: their readings, once or in several independent snapshots.
        smoothness: nu, infinity for the Gaussian covariance; None: fitted as well, which takes many sensors.
        nugget: variance of the readings' own error; None: fitted.
        mean: of the field; None: fitted.
        intervals: whether to find them; they take most of the time, and without them nothing is warned of.
    Raises:
        ValueError: a reading is NaN, two sensors are at one place with no nugget, or there are too few.
    Warns:
        FitWarning: the readings leave the correlation length open, with its interval.
    """
    points, rows = points.astype(np.float64), np.atleast_2d(values).astype(np.float64)
    _check(points, rows, nugget)
    given = {"smoothness": smoothness, "nugget": nugget, "mean": mean}
    likelihood = _Likelihood(points, rows, smoothness is None)
    fixed = {name: value for name, value in given.items() if value is not None}
    best = likelihood.best(fixed, likelihood.starts())
    free = [name for name in ("mean", "variance", "length", "smoothness", "nugget") if name not in fixed]
    found = {name: likelihood.interval(name, fixed, best) for name in free} if intervals else {}
    result = Fit(
        best.law["mean"],
        best.law["variance"],
        best.law["length"],
        best.law["smoothness"],
        best.law["nugget"],
        found,
        -0.5 * best.deviance,
        len(points),
        len(rows),
    )
    _warn(result)
    return result


def _check(points: np.ndarray, rows: np.ndarray, nugget: float | None) -> None:
    if len(points) != rows.shape[1]:
        raise ValueError(f"fit: {len(points)} sensors have places, but {rows.shape[1]} have readings")
    bad = np.flatnonzero(~np.isfinite(rows).all(0))
    if len(bad):
        raise ValueError(
            f"fit: {len(bad)} of {len(points)} sensors have readings that are NaN or infinite, the first is sensor "
            f"{bad[0]}: leave those sensors or snapshots out"
        )
    if not np.isfinite(points).all():
        raise ValueError(f"fit: sensor {np.flatnonzero(~np.isfinite(points).all(1))[0]} has no finite place")
    if len(points) < 3:
        raise ValueError(f"fit: {len(points)} sensors tell no correlation length: give 3 or more, better 50")
    if float(np.ptp(rows)) == 0:
        raise ValueError("fit: all readings are the same number, so there is no variance to fit")
    if nugget is not None and not 0 <= nugget < math.inf:
        raise ValueError(f"fit: nugget must be 0 or more, a variance, got {nugget}")
    if nugget == 0 and (twins := _twins(points)) is not None:
        raise ValueError(
            f"fit: sensors {twins[0]} and {twins[1]} are at one place: join them, or let the nugget be fitted"
        )


def _twins(points: np.ndarray) -> tuple[int, int] | None:
    gap = distances(points, points) + np.diag(np.full(len(points), np.inf))
    where = np.unravel_index(int(gap.argmin()), gap.shape)
    return (int(where[0]), int(where[1])) if gap[where] == 0 else None


def _warn(result: Fit) -> None:
    low, high = result.intervals.get("length", (1.0, 1.0))
    if low <= 0 or high / low > _WIDE:
        upper = "no upper bound" if math.isinf(high) else f"{high:.4g}"
        warnings.warn(
            f"{result.sensors} sensors in {result.snapshots} snapshot(s) leave the correlation length open: "
            f"{result.length:.4g}, but {LEVEL:.0%} sure only of {low:.4g} to {upper}. Add sensors, some close "
            "together, or snapshots, or set the law from other knowledge; what follows is as uncertain as this",
            FitWarning,
            stacklevel=3,
        )


@dataclass(frozen=True, slots=True)
class _Best:
    """A law, and minus twice its log-likelihood."""

    law: dict[str, float]
    deviance: float


class _Likelihood:
    """Of readings under Matern laws. The mean has a closed form; the rest is searched in logarithms."""

    def __init__(self, points: np.ndarray, rows: np.ndarray, smoothness_free: bool) -> None:
        self._count, self._sensors = rows.shape
        self._lower = np.tril_indices(self._sensors, -1)
        self._pairs = distances(points, points)[self._lower]
        # All that snapshots say is in their mean and their scatter about it.
        self._mean = rows.mean(0)
        self._scatter = (rows - self._mean).T @ (rows - self._mean)
        self.smoothness_free = smoothness_free
        gaps = self._pairs[self._pairs > 0]
        self._scale = float(np.median(gaps))
        self._spread = float(rows.var())
        self._bounds = {
            "length": (float(gaps.min()) / _LENGTH_SLACK, float(gaps.max()) * _LENGTH_SLACK),
            "variance": (self._spread / _VARIANCE_SLACK, self._spread * _VARIANCE_SLACK),
            "nugget": (self._spread * _LEAST_NUGGET, self._spread * 10),
            "smoothness": _SMOOTHNESS,
        }

    def starts(self) -> list[dict[str, float]]:
        """Laws to search from: the likelihood can have several maxima."""
        base = {"variance": self._spread, "smoothness": 1.5}
        shares = ((0.05, 1e-3), (0.15, 1e-3), (0.5, 0.1))
        return [base | {"length": s * self._scale, "nugget": n * self._spread} for s, n in shares]

    def deviance(self, law: Mapping[str, float]) -> tuple[float, float, dict[str, float]]:
        """Minus twice the log-likelihood, the mean (the law's, or else the likeliest), and the slopes in logarithms."""
        nu, pairs = law["smoothness"], self._pairs / law["length"]
        correlation = self._square(matern(pairs, nu), 1.0)
        # A share of 1e-10 keeps smooth laws of close sensors definite, below any instrument's error.
        covariance = law["variance"] * correlation
        covariance.flat[:: self._sensors + 1] += law["nugget"] + 1e-10 * law["variance"]
        try:
            inverse, log_det = self._inverted(covariance)
        except linalg.LinAlgError:
            return 1e12, float("nan"), dict.fromkeys(self._bounds, 0.0)
        one = inverse.sum(1)
        mean = law.get("mean", float(one @ self._mean / one.sum()))
        residual = self._mean - mean
        scatter = self._scatter + self._count * np.outer(residual, residual)
        solved = inverse @ scatter
        deviance = self._count * (self._sensors * math.log(2 * math.pi) + log_det) + float(np.trace(solved))
        # The mean is at its best for each law, so that it adds nothing to the slopes.
        slope = self._count * inverse - solved @ inverse
        lower = slope[self._lower]
        slopes = {
            "length": 2 * law["variance"] * float(lower @ matern_slope(pairs, nu)),
            "variance": law["variance"] * float(np.vdot(slope, correlation)),
            "nugget": law["nugget"] * float(np.trace(slope)),
        }
        if self.smoothness_free:
            step = 1e-4
            difference = matern(pairs, nu * (1 + step)) - matern(pairs, nu * (1 - step))
            slopes["smoothness"] = law["variance"] * float(lower @ difference) / step
        return deviance, mean, slopes

    def _square(self, pairs: np.ndarray, diagonal: float) -> np.ndarray:
        # One triangle is worked out, since the general Matern form is slow.
        square = np.zeros((self._sensors, self._sensors))
        square[self._lower] = pairs
        square += square.T
        square.flat[:: self._sensors + 1] = diagonal
        return square

    def _inverted(self, covariance: np.ndarray) -> tuple[np.ndarray, float]:
        factor = linalg.cholesky(covariance, lower=True, check_finite=False)
        half = linalg.solve_triangular(factor, np.eye(self._sensors), lower=True, check_finite=False)
        return half.T @ half, 2 * float(np.log(np.diag(factor)).sum())

    def best(self, fixed: Mapping[str, float], starts: list[dict[str, float]]) -> _Best:
        """The likeliest law with some settings fixed."""
        names = [name for name in self._bounds if name not in fixed]
        bounds = [tuple(map(math.log, self._bounds[name])) for name in names]

        def law(logs: np.ndarray) -> dict[str, float]:
            return {**dict(zip(names, np.exp(logs).tolist(), strict=True)), **fixed}

        def value(logs: np.ndarray) -> tuple[float, np.ndarray]:
            deviance, _, slopes = self.deviance(law(logs))
            return deviance, np.array([slopes[name] for name in names])

        found = [
            optimize.minimize(
                value,
                np.clip([math.log(start[name]) for name in names], *np.transpose(bounds)),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
            )
            for start in starts
        ]
        least = min(found, key=lambda result: float(result.fun))
        best = law(least.x)
        deviance, mean, _ = self.deviance(best)
        return _Best({**best, "mean": mean}, deviance)

    def interval(self, name: str, fixed: Mapping[str, float], best: _Best) -> tuple[float, float]:
        """Where the profile deviance has risen by the quantile of chi-squared with one degree of freedom.

        Venzon and Moolgavkar, Applied Statistics 37 (1988) 87.
        """
        limit = best.deviance + float(stats.chi2.ppf(LEVEL, 1))
        if name == "mean":
            # The likelihood is Gaussian in the mean; the law's own uncertainty comes on top by the profile.
            step = math.sqrt(best.law["variance"] + best.law["nugget"]) * 0.3
            return self._end(name, fixed, best, limit, -step), self._end(name, fixed, best, limit, step)
        return self._end(name, fixed, best, limit, -_STEP), self._end(name, fixed, best, limit, _STEP)

    def _end(self, name: str, fixed: Mapping[str, float], best: _Best, limit: float, step: float) -> float:
        logarithmic = name != "mean"
        start = math.log(best.law[name]) if logarithmic else best.law[name]
        bound = math.log(self._bounds[name][step > 0]) if logarithmic else start + 100 * step
        latest = best.law
        # Searches start from the latest law, so that the same place twice could give two values, and no bracket.
        known = {start: best.deviance - limit}

        def excess(at: float) -> float:
            nonlocal latest
            if at not in known:
                found = self.best({**fixed, name: math.exp(at) if logarithmic else at}, [latest])
                latest, known[at] = found.law, found.deviance - limit
            return known[at]

        inside, outside = start, start
        while (bound - outside) * step > 0:
            inside, outside = outside, min(max(outside + step, min(bound, start)), max(bound, start))
            if excess(outside) > 0:
                at = float(optimize.brentq(excess, inside, outside, xtol=0.01 * abs(step)))
                return math.exp(at) if logarithmic else at
            step *= 1.5
        return (math.inf if step > 0 else 0.0) if logarithmic else math.copysign(math.inf, step)
