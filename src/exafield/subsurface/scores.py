"""How good fields, their uncertainty and a learned law are: errors, calibration, distances of laws, correlation."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer
from scipy import linalg, special, stats
from torch import Tensor

# Level of intervals that are scored.
LEVEL = 0.90


def rmse(guess: Float[np.ndarray, "..."], truth: Float[np.ndarray, "..."]) -> float:
    """Root of the mean squared difference."""
    return float(np.sqrt(np.mean((guess - truth) ** 2)))


def relative_l2(guess: Float[np.ndarray, "..."], truth: Float[np.ndarray, "..."]) -> float:
    """|guess - truth| / |truth|."""
    return float(linalg.norm(np.ravel(guess - truth)) / linalg.norm(np.ravel(truth)))


def crps_gaussian(
    mean: Float[np.ndarray, "*shape"], std: Float[np.ndarray, "*shape"], truth: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """Continuous ranked probability score of Gaussian forecasts, lower is better; |error| where std is 0.

    Gneiting, Raftery, Westveld and Goldman, Mon. Weather Rev. 133 (2005) 1098, eq. 5.
    """
    error = np.abs(truth - mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = error / std
        score = std * (z * (2 * special.ndtr(z) - 1) + 2 * np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)) - std / (
            math.sqrt(math.pi)
        )
    return np.asarray(np.where(std > 0, score, error))


def crps_ensemble(
    members: Float[np.ndarray, "member *shape"], truth: Float[np.ndarray, "*shape"], fair: bool = False
) -> Float[np.ndarray, "*shape"]:
    """Continuous ranked probability score of ensembles, lower is better: E|X - y| - E|X - X'| / 2.

    Gneiting and Raftery, J. Am. Stat. Assoc. 102 (2007) 359, eq. 21. Small ensembles score worse than the law they
    were drawn from; the fair score (Ferro, Q. J. R. Meteorol. Soc. 140 (2014) 1917) takes that off.

    Args:
        members: of the ensemble.
        truth: that came.
        fair: whether members stand for an infinite ensemble; needs two or more.
    """
    count = len(members)
    if count < 1 + fair:
        raise ValueError(f"crps: an ensemble needs {1 + fair} members or more, got {count}")
    ordered = np.sort(members, axis=0)
    # The mean of |X - X'| over pairs by order statistics, without making the pairs.
    weights = (2 * np.arange(1, count + 1) - count - 1).reshape(-1, *[1] * truth.ndim)
    pairs = 2 * (weights * ordered).sum(0) / (count * (count - 1) if fair else count**2)
    return np.asarray(np.abs(members - truth).mean(0) - pairs / 2)


def coverage(
    members: Float[np.ndarray, "member *shape"], truth: Float[np.ndarray, "*shape"], level: float = LEVEL
) -> float:
    """Share of values within the central interval of the ensemble; `level` if it is calibrated.

    Quantiles of few members are too narrow; here they lie at k / (n + 1), Weibull's plotting positions, which are not.
    """
    low, high = np.quantile(members, [0.5 - level / 2, 0.5 + level / 2], axis=0, method="weibull")
    return float(((low <= truth) & (truth <= high)).mean())


def coverage_gaussian(
    mean: Float[np.ndarray, "*shape"],
    std: Float[np.ndarray, "*shape"],
    truth: Float[np.ndarray, "*shape"],
    level: float = LEVEL,
) -> float:
    """Share of values within the central interval of Gaussian forecasts."""
    return float((np.abs(truth - mean) <= float(special.ndtri(0.5 + level / 2)) * std).mean())


@dataclass(frozen=True)
class RankHistogram:
    """Where truth ranks among the members: flat if calibrated, a bowl if the spread is too small.

    Hamill, Mon. Weather Rev. 129 (2001) 550.

    Args:
        counts: of each bin, low ranks first.
        expected: of a flat histogram: with few bins some hold more ranks than others.
    """

    counts: Integer[np.ndarray, "bin"]
    expected: Float[np.ndarray, "bin"]

    @property
    def p_value(self) -> float:
        """Chance of counts as uneven as these if calibrated and independent; neighbouring cells are not independent."""
        return float(stats.chisquare(self.counts, self.expected).pvalue)

    @property
    def excess(self) -> float:
        """Of the outermost two bins over their share when flat: above 0 if the spread is too small."""
        return float((self.counts[0] + self.counts[-1]) / (self.expected[0] + self.expected[-1]) - 1)


def rank_histogram(
    members: Float[np.ndarray, "member *shape"],
    truth: Float[np.ndarray, "*shape"],
    bins: int = 10,
    rng: np.random.Generator | None = None,
) -> RankHistogram:
    """Counts the ranks of truth among members; ties are broken by chance.

    Args:
        members: of the ensemble.
        truth: that came.
        bins: of the histogram; at most one more than there are members.
        rng: for ties.
    """
    ranks = len(members) + 1
    if not 2 <= bins <= ranks:
        raise ValueError(f"rank histogram: bins must be 2 to {ranks}, one more than there are members, got {bins}")
    rng = rng or np.random.default_rng(0)
    below, ties = (members < truth).sum(0), (members == truth).sum(0)
    rank = below + rng.integers(0, ties + 1)
    sizes = np.bincount(np.arange(ranks) * bins // ranks, minlength=bins)
    counts = np.bincount(np.ravel(rank) * bins // ranks, minlength=bins)
    return RankHistogram(counts, counts.sum() * sizes / ranks)


def misfit(
    predictions: Float[np.ndarray, "*member datum"],
    data: Float[np.ndarray, "datum"],
    errors: Float[np.ndarray, "datum"],
) -> float:
    """Root mean squared misfit in units of the data's errors: about 1 for posterior samples, far above if they miss."""
    return float(np.sqrt(np.mean(((predictions - data) / errors) ** 2)))


def sliced_wasserstein(
    a: Float[Tensor, "one value"],
    b: Float[Tensor, "other value"],
    *,
    projections: int | Float[Tensor, "value projection"] = 128,
    power: int = 2,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Sliced-Wasserstein distance between two sets of samples; differentiable.

    Bonneel, Rabin, Peyre and Pfister, J. Math. Imaging Vis. 51 (2015) 22: the mean over random directions of the
    distance of the projections in one dimension, where sorting finds it.

    Args:
        a, b: samples, as many or not.
        projections: how many random directions, or the directions themselves as unit columns.
        power: 1 or 2; the root of the mean power is taken.
        generator: of the directions.
    """
    if not len(a) or not len(b):
        raise ValueError("sliced-Wasserstein: each set needs a sample or more")
    if power not in (1, 2):
        raise ValueError(f"sliced-Wasserstein: power must be 1 or 2, got {power}")
    if isinstance(projections, int):
        directions = torch.randn(a.shape[1], projections, generator=generator, dtype=a.dtype, device=a.device)
        directions = directions / directions.norm(dim=0)
    else:
        directions = projections
    moved = wasserstein_1d(a @ directions, b @ directions, power).mean()
    # The root has no gradient at zero, where the two sets are one.
    return moved if power == 1 else (moved + torch.finfo(a.dtype).tiny).sqrt()


def wasserstein_1d(
    a: Float[Tensor, "one column"], b: Float[Tensor, "other column"], power: int = 2
) -> Float[Tensor, "column"]:
    """Power of the Wasserstein distance of each column: the integral of |difference of quantiles|^power."""
    a, b = a.sort(dim=0).values, b.sort(dim=0).values
    if len(a) == len(b):
        return (a - b).abs().pow(power).mean(0)
    # Quantile functions are steps: between all their jumps both are constant.
    one, other = (torch.arange(1, len(x) + 1, dtype=torch.float64, device=a.device) / len(x) for x in (a, b))
    jumps = torch.cat((one, other)).sort().values
    width = jumps.diff(prepend=jumps.new_zeros(1))
    middle = jumps - width / 2
    gap = (
        a[torch.searchsorted(one, middle).clamp(max=len(a) - 1)]
        - b[torch.searchsorted(other, middle).clamp(max=len(b) - 1)]
    )
    return (width.to(a.dtype)[:, None] * gap.abs().pow(power)).sum(0)


def covariance_spectrum(
    fields: Float[np.ndarray, "sample cell"], areas: Float[np.ndarray, "cell"]
) -> Float[np.ndarray, "term"]:
    """Eigenvalues of the samples' covariance under cell areas, the largest first; they sum to the mean variance."""
    if len(fields) < 2:
        raise ValueError(f"covariance spectrum: give 2 samples or more, got {len(fields)}")
    centred = (fields - fields.mean(0)) * np.sqrt(areas / areas.sum())
    return np.asarray(linalg.svdvals(centred) ** 2 / (len(fields) - 1))


@dataclass(frozen=True)
class Correlogram:
    """Correlation by distance.

    Args:
        distance: mean of the pairs in each bin [m].
        correlation: there; NaN in a bin without pairs.
        pairs: of cells.
    """

    distance: Float[np.ndarray, "bin"]
    correlation: Float[np.ndarray, "bin"]
    pairs: Integer[np.ndarray, "bin"]

    @property
    def length(self) -> float:
        """Where the correlation first falls to 1/e [m], between bins by a straight line; NaN if it never does."""
        usable = self.pairs > 0
        r, c = np.r_[0.0, self.distance[usable]], np.r_[1.0, self.correlation[usable]]
        below = np.flatnonzero(c <= math.exp(-1))
        if not len(below):
            return math.nan
        i = int(below[0])
        return float(r[i - 1] + (c[i - 1] - math.exp(-1)) / (c[i - 1] - c[i]) * (r[i] - r[i - 1]))


def correlogram(
    fields: Float[np.ndarray, "sample cell"],
    centres: Float[np.ndarray, "cell 2"],
    edges: Float[np.ndarray, "edge"],
    cells: int = 1500,
    rng: np.random.Generator | None = None,
) -> Correlogram:
    """Pooled correlation of fields by distance.

    With several fields each cell has a mean and variance of its own; one field has those of all its cells.

    Args:
        fields: samples of a law, or one field.
        centres: of cells [m].
        edges: of the bins of distance [m], rising from 0.
        cells: at most so many, by chance, since pairs are their square.
        rng: to choose them.
    """
    if len(centres) > cells:
        chosen = (rng or np.random.default_rng(0)).choice(len(centres), cells, replace=False)
        fields, centres = fields[:, chosen], centres[chosen]
    mean, std = (fields.mean(), fields.std()) if len(fields) == 1 else (fields.mean(0), fields.std(0))
    scaled = (fields - mean) / np.maximum(std, 1e-300)
    products = (scaled.T @ scaled / len(fields))[np.triu_indices(len(centres), 1)]
    apart = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1))[np.triu_indices(len(centres), 1)]
    which = np.digitize(apart, edges) - 1
    inside = (which >= 0) & (which < len(edges) - 1)
    which, bins = which[inside], len(edges) - 1
    pairs = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        distance = np.bincount(which, apart[inside], bins) / pairs
        return Correlogram(distance, np.bincount(which, products[inside], bins) / pairs, pairs)


def neighbour_correlation(fields: Float[np.ndarray, "sample cell"], neighbours: Integer[np.ndarray, "face 2"]) -> float:
    """Correlation over samples of two neighbouring cells, mean over interior faces: how rough fields are."""
    if len(fields) < 2:
        raise ValueError(f"neighbour correlation: give 2 samples or more, got {len(fields)}")
    a, b = neighbours[(neighbours >= 0).all(1)].T
    scaled = (fields - fields.mean(0)) / np.maximum(fields.std(0), 1e-300)
    return float((scaled[:, a] * scaled[:, b]).mean())
