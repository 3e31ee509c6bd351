"""Laws fitted to sensors: found again where they were drawn from one, in their intervals, and warned of else."""

import math
import warnings

import numpy as np
import pytest

from exafield.subsurface.covariance import Matern
from exafield.subsurface.likelihood import Fit, FitWarning, fit

LAW = Matern(2.0, 10.0, 2.5)
MEAN, NUGGET = 5.0, 0.1


def sensors(count: int, snapshots: int, seed: int, nugget: float = NUGGET, law: Matern = LAW) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 100, (count, 2))
    factor = np.linalg.cholesky(law(points, points) + (nugget + 1e-9) * np.eye(count))
    return points, MEAN + rng.standard_normal((snapshots, count)) @ factor.T


def test_many_snapshots_tell_the_law() -> None:
    points, values = sensors(60, 400, seed=0)
    found = fit(points, values)
    truth = {"mean": MEAN, "variance": LAW.variance, "length": LAW.length, "nugget": NUGGET}
    for name, value in truth.items():
        low, high = found.intervals[name]
        assert low < value < high, name
        assert low < getattr(found, name) < high
    assert found.length == pytest.approx(10.0, rel=0.03)
    assert found.variance == pytest.approx(2.0, rel=0.05)
    assert found.covariance == Matern(found.variance, found.length, 2.5)
    assert (found.sensors, found.snapshots) == (60, 400)
    assert "400 snapshot" in found.lines()[0]
    assert "given" in next(line for line in found.lines() if line.startswith("smoothness"))


def test_likelihood_is_that_of_the_normal_law() -> None:
    points, values = sensors(20, 30, seed=1)
    found = fit(points, values, intervals=False)
    covariance = found.covariance(points, points) + (found.nugget + 1e-10 * found.variance) * np.eye(20)
    residual = values - found.mean
    expected = -0.5 * (
        30 * (20 * math.log(2 * math.pi) + np.linalg.slogdet(covariance)[1])
        + np.einsum("si,ij,sj", residual, np.linalg.inv(covariance), residual)
    )
    assert found.log_likelihood == pytest.approx(expected, abs=1e-6)
    # It is a maximum: no law nearby is likelier.
    for change in ({"nugget": found.nugget * 1.3}, {"nugget": found.nugget / 1.3}, {"mean": found.mean + 0.2}):
        assert fit(points, values, intervals=False, **change).log_likelihood < found.log_likelihood


@pytest.mark.heavy
def test_intervals_hold_the_law_as_often_as_they_say() -> None:
    hits = {"length": 0, "mean": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        for seed in range(24):
            found = fit(*sensors(20, 2, seed=100 + seed), nugget=NUGGET)
            for name, value in (("length", 10.0), ("mean", MEAN)):
                low, high = found.intervals[name]
                hits[name] += low < value < high
    # 21.6 of 24 expected; 17 or fewer have a chance of 1 % if intervals are right.
    assert all(count >= 18 for count in hits.values()), hits


def test_smoothness_is_fitted_if_wanted() -> None:
    points, values = sensors(40, 300, seed=2, nugget=0.0, law=Matern(1.0, 20.0, 0.5))
    found = fit(points, values, smoothness=None, nugget=1e-6, intervals=False)
    assert found.smoothness == pytest.approx(0.5, abs=0.05)
    rough = fit(points, values, smoothness=0.5, nugget=1e-6, intervals=False).log_likelihood
    smooth = fit(points, values, smoothness=2.5, nugget=1e-6, intervals=False).log_likelihood
    assert found.log_likelihood > rough - 1e-3 > smooth + 50


def test_few_sensors_are_warned_of_with_the_interval() -> None:
    points, values = sensors(6, 1, seed=3)
    with pytest.warns(
        FitWarning, match=r"6 sensors in 1 snapshot\(s\) leave the correlation length open: .* sure only of"
    ):
        found = fit(points, values)
    low, high = found.intervals["length"]
    assert high / low > 3 if low else True


def test_white_readings_set_no_lower_bound() -> None:
    rng = np.random.default_rng(4)
    with pytest.warns(FitWarning, match="sure only of 0"):
        found = fit(rng.uniform(0, 100, (25, 2)), rng.standard_normal(25))
    assert found.intervals["length"][0] == 0
    assert found.intervals["nugget"][1] < 3


def test_bad_readings_are_refused() -> None:
    points, values = sensors(8, 2, seed=5)
    holed = values.copy()
    holed[1, 3] = math.nan
    twins = np.r_[points[:7], points[:1]]
    for arguments, settings, message in (
        ((points, holed), {}, "1 of 8 sensors have readings that are NaN .* sensor 3"),
        ((points[:2], values[0, :2]), {}, "2 sensors tell no correlation length"),
        ((points, values[:, :5]), {}, "8 sensors have places, but 5"),
        ((twins, values), {"nugget": 0.0}, "sensors 0 and 7 are at one place"),
        ((points, np.ones(8)), {}, "all readings are the same"),
        ((points * math.nan, values), {}, "no finite place"),
        ((points, values), {"nugget": -1.0}, "nugget must be 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(*arguments, **settings)
    # With an error of their own, two sensors at one place are fine.
    assert isinstance(fit(twins, values, nugget=0.1, intervals=False), Fit)
