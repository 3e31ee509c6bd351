"""Fields between wells when the law is Gaussian: readings in cells, kriging mean and covariance, conditional samples.

Matheron, Economic Geology 58 (1963) 1246; Chiles and Delfiner, Geostatistics (2012), chapters 3 and 7.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Integer
from scipy import linalg, special
from scipy.spatial import cKDTree

from exafield.subsurface.covariance import Covariance

# Two readings of one cell contradict each other beyond this many standard deviations of their difference (our choice).
CONTRADICTION = 4.0
# A well farther from the nearest centre than this share of the root of that cell's area is outside (our choice): the
# corner of a square is 0.71 from its centre, and cells may be stretched.
_REACH = 1.0
# Share of the variance added to readings without error, so that close sensors under a smooth law can be solved for.
_JITTER = 1e-10


class WellError(ValueError):
    """Readings that cannot be used as they are; names the wells."""


@dataclass(frozen=True)
class Readings:
    """Values known at cells, each cell once.

    Args:
        cells: indices.
        values: of ln T, or head [m].
        errors: standard deviation of each value's error, 0 for none.
        names: of the wells in each cell; none if they have no names.
    """

    cells: Integer[np.ndarray, "sensor"]
    values: Float[np.ndarray, "sensor"]
    errors: Float[np.ndarray, "sensor"]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.cells)

    def called(self, number: int) -> str:
        """What to call one of them in a message."""
        cell = f"cell {self.cells[number]}"
        return f"{self.names[number]} ({cell})" if self.names else cell


def cells_of(
    points: Float[np.ndarray, "well 2"],
    centres: Float[np.ndarray, "cell 2"],
    areas: Float[np.ndarray, "cell"],
) -> Integer[np.ndarray, "well"]:
    """The cell whose centre is nearest to each well, -1 for wells outside; for meshes known by centres alone.

    Near an edge of a distorted cell this can be the neighbour: a mesh that knows its corners locates better.
    """
    known = np.isfinite(points).all(1)
    distance, nearest = cKDTree(centres).query(np.where(known[:, None], points, 0.0))
    return np.where(known & (distance <= _REACH * np.sqrt(areas[nearest])), nearest, -1)


def readings(
    cells: Integer[np.ndarray, "well"],
    values: Float[np.ndarray, "value"],
    errors: Float[np.ndarray, "error"] | float,
    names: Sequence[str] | None = None,
) -> Readings:
    """Checks wells and joins those that share a cell, weighted by their accuracy.

    Args:
        cells: of each well; -1 is outside the mesh.
        values: read there.
        errors: standard deviations, of each or of all.
        names: of the wells, for messages.
    Raises:
        WellError: a well is outside, a value is NaN, an error negative, or two wells of a cell contradict each other.
    """
    errors = np.full(values.shape, errors) if np.ndim(errors) == 0 else np.asarray(errors)
    named = names is not None
    names = [f"well {index}" for index in range(len(values))] if names is None else list(names)
    if not len(cells) == len(values) == len(errors) == len(names):
        raise WellError(
            f"wells: there must be as many cells, values, errors and names, got {len(cells)}, {len(values)}, "
            f"{len(errors)} and {len(names)}"
        )
    if not len(values):
        raise WellError("there is no well: give one or more")
    _refuse(cells < 0, names, "outside the mesh: check their coordinates and unit, or leave them out")
    _refuse(~np.isfinite(values), names, "without a finite value (NaN): leave them out")
    _refuse(~((errors >= 0) & np.isfinite(errors)), names, "with an error that is no standard deviation of 0 or more")
    order = np.argsort(cells, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(cells[order])) + 1)
    where, value, error = zip(*(_joined(group, cells, values, errors, names) for group in groups), strict=True)
    told = tuple(", ".join(dict.fromkeys(names[i] for i in group)) for group in groups) if named else ()
    return Readings(np.array(where), np.array(value), np.array(error), told)


def _refuse(bad: np.ndarray, names: Sequence[str], why: str) -> None:
    index = np.flatnonzero(bad)
    if len(index):
        shown = ", ".join(names[i] for i in index[:5]) + (" ..." if len(index) > 5 else "")
        raise WellError(f"{len(index)} of {len(names)} wells ({shown}) are {why}")


def _joined(
    group: np.ndarray, cells: np.ndarray, values: np.ndarray, errors: np.ndarray, names: Sequence[str]
) -> tuple[int, float, float]:
    cell = int(cells[group[0]])
    low, high = group[np.argmin(values[group])], group[np.argmax(values[group])]
    gap, sigma = float(values[high] - values[low]), math.hypot(errors[low], errors[high])
    # Numbers that are the same but for rounding contradict nothing.
    if gap > CONTRADICTION * sigma + 1e-9 * abs(float(values[high])):
        raise WellError(
            f"{names[low]} and {names[high]} are both in cell {cell} but contradict each other: they read "
            f"{values[low]:.6g} and {values[high]:.6g}, {gap:.3g} apart, with errors of {errors[low]:.3g} and "
            f"{errors[high]:.3g}: leave one out, or give errors that hold what varies within a cell"
        )
    if (errors[group] == 0).any():
        return cell, float(values[group][errors[group] == 0].mean()), 0.0
    weights = errors[group] ** -2.0
    return cell, float(weights @ values[group] / weights.sum()), float(weights.sum() ** -0.5)


@dataclass(frozen=True)
class Kriged:
    """A Gaussian field given readings. Its covariance between cells, large on large meshes, is made when asked for.

    Args:
        law, centres: covariance without readings, and cells [m].
        mean: of each cell.
        field_mean: that was given, or was found.
        gain: (cell, sensor) change of the mean for a change of each reading.
        known: readings that were used.
        told: (sensor, cell) root of the covariance that the readings take away.
        untold: root of the covariance that comes from what they leave open of the mean; zero in simple kriging.
    """

    law: Covariance
    centres: Float[np.ndarray, "cell 2"]
    mean: Float[np.ndarray, "cell"]
    field_mean: float
    gain: Float[np.ndarray, "cell sensor"]
    known: Readings
    told: Float[np.ndarray, "sensor cell"]
    untold: Float[np.ndarray, "cell"]

    @cached_property
    def covariance(self) -> Float[np.ndarray, "cell cell"]:
        """Between cells."""
        prior = self.law(self.centres, self.centres)
        return np.asarray(prior - self.told.T @ self.told + np.outer(self.untold, self.untold))

    @cached_property
    def std(self) -> Float[np.ndarray, "cell"]:
        """Of each cell."""
        variance = self.law.variance - (self.told**2).sum(0) + self.untold**2
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)))

    def interval(self, level: float = 0.90) -> tuple[Float[np.ndarray, "cell"], Float[np.ndarray, "cell"]]:
        """Lower and upper ends of each cell's central interval."""
        reach = float(special.ndtri(0.5 + level / 2)) * self.std
        return self.mean - reach, self.mean + reach

    def sample(self, count: int, rng: np.random.Generator) -> Float[np.ndarray, "count cell"]:
        """Fields that keep to the readings, from the covariance itself."""
        return np.asarray(self.mean + rng.standard_normal((count, len(self.mean))) @ self._root.T)

    @cached_property
    def _root(self) -> np.ndarray:
        # Conditioning leaves directions with no variance, which a Cholesky factor would trip over.
        values, vectors = linalg.eigh(self.covariance, driver="evd")
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))

    def conditioned(
        self, fields: Float[np.ndarray, "count cell"], rng: np.random.Generator
    ) -> Float[np.ndarray, "count cell"]:
        """Makes fields of the unconditional law keep to the readings, whatever made them.

        Conditioning by kriging: Journel, Economic Geology 69 (1974) 673. With ordinary kriging the fields' own mean
        does not matter.
        """
        known = self.known
        noise = rng.standard_normal((len(fields), len(known))) * known.errors
        return np.asarray(fields + (known.values - fields[:, known.cells] - noise) @ self.gain.T)


def krige(
    covariance: Covariance,
    known: Readings,
    centres: Float[np.ndarray, "cell 2"],
    mean: float | None = None,
) -> Kriged:
    """The field at all cells given readings at some.

    Args:
        covariance: of the field.
        known: readings.
        centres: of cells [m].
        mean: of the field, for simple kriging; None: it is found from the readings, by ordinary kriging.
    """
    if mean is not None and not math.isfinite(mean):
        raise ValueError(f"kriging: mean must be finite, got {mean}")
    outside = np.flatnonzero((known.cells < 0) | (known.cells >= len(centres)))
    if len(outside):
        raise WellError(f"a reading is in cell {known.cells[outside[0]]}, but cells are 0 to {len(centres) - 1}")
    at = centres[known.cells]
    among = covariance(at, at)
    among.flat[:: len(at) + 1] += known.errors**2 + _JITTER * covariance.variance
    factor = linalg.cholesky(among, lower=True)
    told = linalg.solve_triangular(factor, covariance(centres, at).T, lower=True)
    gain = linalg.solve_triangular(factor, told, lower=True, trans="T").T
    if mean is not None:
        return Kriged(
            covariance, centres, mean + gain @ (known.values - mean), mean, gain, known, told, np.zeros(len(centres))
        )
    one = linalg.cho_solve((factor, True), np.ones(len(at)))
    weights = one / one.sum()
    # What of the mean is left in each cell, where readings do not reach.
    rest = 1 - gain.sum(1)
    gain = gain + np.outer(rest, weights)
    found = float(weights @ known.values)
    untold = rest / math.sqrt(one.sum())
    return Kriged(covariance, centres, gain @ known.values, found, gain, known, told, untold)
