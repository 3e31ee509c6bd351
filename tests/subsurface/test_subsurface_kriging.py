"""Kriging: the exact conditional law of a Gaussian, from readings that were looked at first."""

import math

import numpy as np
import pytest
import torch

from exafield.subsurface.covariance import Matern
from exafield.subsurface.kriging import Readings, WellError, cells_of, krige, readings
from exafield.subsurface.random_fields import karhunen_loeve
from exafield.subsurface.scores import coverage_gaussian
from subsurface_grid import grid

MESH = grid(14, 12, step=100.0)
LAW = Matern(2.0, 300.0, 1.5)
CELLS = np.array([3, 40, 77, 120, 160])


def known(errors: float = 0.1) -> Readings:
    return readings(CELLS, np.array([6.0, 7.5, 5.0, 8.0, 7.0]), errors)


def test_simple_kriging_is_the_conditional_normal_law() -> None:
    kriged = krige(LAW, known(), MESH.centres, mean=6.5)
    full = LAW(MESH.centres, MESH.centres)
    # The same by the information form, which shares no step with kriging.
    precision = np.linalg.inv(full + 1e-9 * np.eye(len(full)))
    precision[CELLS, CELLS] += 1 / 0.1**2
    covariance = np.linalg.inv(precision)
    shift = np.zeros(len(full))
    shift[CELLS] = (known().values - 6.5) / 0.1**2
    np.testing.assert_allclose(kriged.mean, 6.5 + covariance @ shift, atol=1e-5)
    np.testing.assert_allclose(kriged.covariance, covariance, atol=1e-5)
    low, high = kriged.interval(0.9)
    np.testing.assert_allclose(high - low, 2 * 1.6448536 * kriged.std, rtol=1e-6)


def test_ordinary_kriging_finds_the_mean() -> None:
    kriged = krige(LAW, known(), MESH.centres)
    # Its limit: a constant of very wide prior in the covariance.
    wide = 1e6

    class Wide:
        variance = LAW.variance + wide

        def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return LAW(a, b) + wide

    limit = krige(Wide(), Readings(CELLS, known().values, known().errors), MESH.centres, mean=0.0)
    np.testing.assert_allclose(kriged.mean, limit.mean, atol=1e-3)
    np.testing.assert_allclose(kriged.covariance, limit.covariance, atol=1e-2)
    # Weights of a cell sum to 1, so that adding a constant to all readings adds it everywhere.
    np.testing.assert_allclose(kriged.gain.sum(1), 1.0, atol=1e-9)
    simple = krige(LAW, known(), MESH.centres, mean=kriged.field_mean)
    np.testing.assert_allclose(kriged.mean, simple.mean, atol=1e-9)
    assert (kriged.std > simple.std - 1e-12).all()


def test_exact_readings_are_kept() -> None:
    kriged = krige(LAW, known(0.0), MESH.centres, mean=6.5)
    np.testing.assert_allclose(kriged.mean[CELLS], known().values, atol=1e-6)
    assert kriged.std[CELLS].max() < 1e-3
    assert kriged.std.max() < math.sqrt(LAW.variance) + 1e-9
    fields = kriged.sample(3, np.random.default_rng(0))
    np.testing.assert_allclose(fields[:, CELLS], np.tile(known().values, (3, 1)), atol=1e-3)


@pytest.mark.parametrize("mean", [6.5, None])
def test_samples_have_the_conditional_law(mean: float | None) -> None:
    kriged = krige(LAW, known(), MESH.centres, mean=mean)
    rng = np.random.default_rng(1)
    count = 6000
    drawn = kriged.sample(count, rng)
    expansion = karhunen_loeve(MESH.centres, MESH.areas, LAW)
    noise = torch.from_numpy(rng.standard_normal((count, expansion.terms)))
    # An ordinary kriging's fields may have any mean.
    free = expansion.sample(noise).numpy() + (6.5 if mean is not None else 40.0)
    conditioned = kriged.conditioned(free, rng)
    for fields in (drawn, conditioned):
        # Six standard errors, over 168 cells.
        assert (np.abs(fields.mean(0) - kriged.mean) < 6 * kriged.std / math.sqrt(count)).all()
        assert np.abs(np.cov(fields.T) - kriged.covariance).max() < 6 * 2.5 * math.sqrt(2 / count)
        np.testing.assert_allclose(fields.std(0), kriged.std, rtol=6 / math.sqrt(2 * count))


def test_intervals_are_calibrated() -> None:
    rng = np.random.default_rng(2)
    expansion = karhunen_loeve(MESH.centres, MESH.areas, LAW)
    shares = []
    for field in 6.5 + expansion.sample(torch.from_numpy(rng.standard_normal((60, expansion.terms)))).numpy():
        cells = rng.choice(len(MESH.areas), 25, replace=False)
        read = readings(cells, field[cells] + 0.1 * rng.standard_normal(25), 0.1)
        kriged = krige(LAW, read, MESH.centres)
        others = np.setdiff1d(np.arange(len(field)), cells)
        shares.append(coverage_gaussian(kriged.mean[others], kriged.std[others], field[others]))
    # Shares of a field vary by 0.04: the mean of 60 by 0.005.
    assert np.mean(shares) == pytest.approx(0.90, abs=0.02)


def test_wells_find_their_cells() -> None:
    points = MESH.centres[[0, 50]] + [[30.0, -40.0], [-10.0, 20.0]]
    outside = np.array([[-200.0, 50.0], [math.nan, 0.0]])
    np.testing.assert_array_equal(cells_of(np.r_[points, outside], MESH.centres, MESH.areas), [0, 50, -1, -1])


def test_wells_of_one_cell_are_joined_by_accuracy() -> None:
    joined = readings(np.array([7, 2, 7]), np.array([5.0, 1.0, 5.3]), np.array([0.1, 0.5, 0.2]))
    np.testing.assert_array_equal(joined.cells, [2, 7])
    np.testing.assert_allclose(joined.values, [1.0, (5.0 * 100 + 5.3 * 25) / 125])
    np.testing.assert_allclose(joined.errors, [0.5, 125**-0.5])
    exact = readings(np.array([7, 7]), np.array([5.0, 5.1]), np.array([0.0, 0.1]))
    assert (exact.values[0], exact.errors[0]) == (5.0, 0.0)
    same = readings(np.array([7, 7]), np.array([5.0, 5.0]), 0.0)
    assert (len(same), same.values[0]) == (1, 5.0)


def test_wells_that_cannot_be_used_are_named() -> None:
    cells, values = np.array([1, 2, 1]), np.array([5.0, 6.0, 7.0])
    for arguments, message in (
        ((cells, values, 0.1, ["A", "B", "C"]), "A and C are both in cell 1 but contradict each other: .*5 and 7"),
        ((cells, values, 0.0), "well 0 and well 2 are both in cell 1"),
        ((np.array([1, -1, 3]), values, 0.1), r"1 of 3 wells \(well 1\) are outside the mesh"),
        ((np.array([1, 2, 3]), np.array([5.0, math.nan, math.inf]), 0.1), r"2 of 3 wells \(well 1, well 2\).*NaN"),
        ((np.array([1, 2, 3]), values, -0.1), "3 of 3 wells .* no standard deviation"),
        ((np.array([1, 2]), values, 0.1), "there must be as many"),
        ((np.zeros(0, dtype=int), np.zeros(0), 0.1), "there is no well"),
    ):
        with pytest.raises(WellError, match=message):
            readings(*arguments)


def test_kriging_says_what_it_cannot_do() -> None:
    with pytest.raises(WellError, match="in cell 168, but cells are 0 to 167"):
        krige(LAW, readings(np.array([168]), np.array([1.0]), 0.1), MESH.centres)
    with pytest.raises(ValueError, match="mean must be finite"):
        krige(LAW, known(), MESH.centres, mean=math.nan)


def test_very_smooth_laws_can_be_kriged() -> None:
    # A Gaussian covariance of so long a length sees all sensors at one place.
    every = readings(np.arange(168), np.full(168, 3.0), 0.0)
    kriged = krige(Matern(1.0, 1e6, math.inf), every, MESH.centres)
    np.testing.assert_allclose(kriged.mean, 3.0, atol=1e-6)
