"""Fields that no Gaussian prior describes: facies of two populations, and meandering channels. Our choice of families.

A law of channels is one of connected bodies. Mean and covariance do not hold it, nor do readings at points: whoever
learns it needs training images, which :func:`realisations` makes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Integer
from scipy import signal, special, stats
from scipy.sparse import coo_array, csgraph
from scipy.spatial import cKDTree

from exafield.engine import MapEngine
from exafield.engine.local import ProcessEngine
from exafield.subsurface.covariance import Matern, matern
from exafield.subsurface.random_fields import KarhunenLoeve, karhunen_loeve

# Points along a centre line, as shares of the width and of the wavelength: neither bends nor banks are cut off.
_STEPS_A_WIDTH, _STEPS_A_WAVELENGTH = 4.0, 24.0
# Path made before the domain, in wavelengths, so that its direction has forgotten the start.
_LEAD = 3.0


@dataclass(frozen=True, slots=True)
class Facies:
    """Log-transmissivity within one kind of rock.

    Args:
        mean: of ln T, T in m^2/d.
        texture: covariance about it.
    """

    mean: float
    texture: Matern


@runtime_checkable
class Family(Protocol):
    """A law of two facies: which cells are inside bodies, and ln T in each kind."""

    @property
    def inside(self) -> Facies:
        """Of the bodies."""
        ...

    @property
    def outside(self) -> Facies:
        """Of what lies between them."""
        ...

    def bodies(
        self, centres: Float[np.ndarray, "cell 2"], areas: Float[np.ndarray, "cell"], rng: np.random.Generator
    ) -> np.ndarray:
        """(cell,) of bool: whether a cell is inside a body."""
        ...


# Sand in silt, a factor of e^4 apart; both ours. About as far apart as two standard deviations of ln T at Hanford.
_SAND = Facies(9.5, Matern(0.4, 1500.0))
_SILT = Facies(5.5, Matern(0.6, 2500.0))


@dataclass(frozen=True, slots=True)
class TruncatedGaussian:
    """Facies where a Gaussian field exceeds a threshold. Its statistics have closed forms, for tests.

    Matheron, Beucher, de Fouquet, Galli, Guerillot and Ravenne, SPE 16753 (1987); Armstrong and others, Plurigaussian
    Simulations in Geosciences (2011).

    Args:
        proportion: of the area that is inside bodies.
        shape: covariance of the Gaussian field; its variance does not matter.
        inside, outside: the two kinds.
    """

    proportion: float = 0.3
    shape: Matern = field(default_factory=lambda: Matern(1.0, 3000.0))
    inside: Facies = _SAND
    outside: Facies = _SILT

    def __post_init__(self) -> None:
        _check_proportion(self.proportion)

    def bodies(
        self, centres: Float[np.ndarray, "cell 2"], areas: Float[np.ndarray, "cell"], rng: np.random.Generator
    ) -> np.ndarray:
        """(cell,) of bool."""
        field = _drawn(self.shape, centres, areas, rng) / math.sqrt(self.shape.variance)
        return np.asarray(field > special.ndtri(1 - self.proportion))

    @property
    def mean(self) -> float:
        """Of ln T."""
        return self.proportion * self.inside.mean + (1 - self.proportion) * self.outside.mean

    @property
    def variance(self) -> float:
        """Of ln T."""
        p = self.proportion
        within = p * self.inside.texture.variance + (1 - p) * self.outside.texture.variance
        return within + p * (1 - p) * (self.inside.mean - self.outside.mean) ** 2

    def both_inside(self, distance: float) -> float:
        """Chance that two points at a distance [m] are both inside; isotropic shapes only."""
        if self.shape.anisotropy != 1:
            raise ValueError("the chance by distance alone is that of an isotropic shape")
        correlation = float(matern(np.array(distance / self.shape.length), self.shape.smoothness))
        if correlation >= 1:
            return self.proportion
        low = float(special.ndtri(self.proportion))
        return float(stats.multivariate_normal(cov=[[1, correlation], [correlation, 1]]).cdf([low, low]))

    def covariance(self, distance: float) -> float:
        """Of ln T between two points at a distance [m]: of the facies, and of the textures where both points agree."""
        both, p = self.both_inside(distance), self.proportion
        sand, silt = (
            texture.variance * float(matern(np.array(distance / texture.length), texture.smoothness))
            for texture in (self.inside.texture, self.outside.texture)
        )
        jump = (self.inside.mean - self.outside.mean) ** 2
        return (both - p * p) * jump + both * sand + (1 - 2 * p + both) * silt


@dataclass(frozen=True, slots=True)
class Channels:
    """Meandering channels: strips about centre lines that swing like rivers.

    Centre lines are Ferguson's disturbed periodic model (Earth Surf. Process. 1 (1976) 337): the direction is a damped
    oscillation driven by noise. Their number is Poisson, and they lie anywhere across the domain with equal chance, so
    that in the mean the share of the area is `proportion`, to the extent that a line does not cross itself.

    Args:
        proportion: of the area that is inside channels, on average; it varies much from field to field.
        width: of a channel [m]; below the size of a cell channels fall to pieces.
        wavelength: of the meanders along the channel [m].
        swing: standard deviation of the direction [rad]; 0.5 is gentle, 1 swings far.
        damping: 0 for regular meanders, towards 1 for ever less regular ones.
        azimuth: of the way down the valley, anticlockwise from x [rad].
        turn: standard deviation of the azimuth from channel to channel [rad].
        inside, outside: the two kinds.
    """

    proportion: float = 0.3
    width: float = 2200.0
    wavelength: float = 14_000.0
    swing: float = 0.7
    damping: float = 0.25
    azimuth: float = -0.7
    turn: float = 0.15
    inside: Facies = _SAND
    outside: Facies = _SILT

    def __post_init__(self) -> None:
        _check_proportion(self.proportion)
        for name in ("width", "wavelength"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"channels: {name} must be above 0 and finite [m], got {getattr(self, name)}")
        if not 0 <= self.swing <= 1.2:
            raise ValueError(f"channels: swing must be 0 to 1.2 rad, beyond which lines run in loops, got {self.swing}")
        if not 0 < self.damping < 1:
            raise ValueError(f"channels: damping must be above 0 and below 1, got {self.damping}")
        if self.turn < 0 or not math.isfinite(self.azimuth):
            raise ValueError(f"channels: turn must be 0 or more, azimuth finite, got {self.turn} and {self.azimuth}")

    @property
    def sinuosity(self) -> float:
        """Length of a channel over its way down the valley: the direction is Gaussian, so E cos = exp(-swing^2 / 2)."""
        return math.exp(self.swing**2 / 2)

    def bodies(
        self, centres: Float[np.ndarray, "cell 2"], areas: Float[np.ndarray, "cell"], rng: np.random.Generator
    ) -> np.ndarray:
        """(cell,) of bool."""
        _check_width(self.width, areas)
        # A circle about the domain, so that channels of all azimuths see the same.
        middle = (centres.max(0) + centres.min(0)) / 2
        radius = float(np.hypot(*(centres - middle).T).max())
        span = 2 * radius + 2 * self.width
        # Each point is inside a channel of width w and length s per unit of way with chance s w / span.
        count = rng.poisson(-math.log1p(-self.proportion) * span / (self.width * self.sinuosity))
        inside = np.zeros(len(centres), dtype=bool)
        for _ in range(count):
            angle = self.azimuth + self.turn * rng.standard_normal()
            c, s = math.cos(angle), math.sin(angle)
            along = (centres - middle) @ np.array([[c, -s], [s, c]])
            line = self.line(2 * radius + 2 * self.width, rng) - [radius + self.width, 0.0]
            # Across, what leaves on one side comes back on the other: every place is as likely, and none is thin.
            line[:, 1] = (line[:, 1] + rng.uniform(0, span)) % span - span / 2
            inside |= cKDTree(line).query(along, distance_upper_bound=self.width / 2)[0] < math.inf
        return inside

    def line(self, way: float, rng: np.random.Generator) -> Float[np.ndarray, "point 2"]:
        """A centre line from x = 0 on, at least so far down the valley [m], with points closer than its width."""
        step = min(self.width / _STEPS_A_WIDTH, self.wavelength / _STEPS_A_WAVELENGTH)
        k, h = 2 * math.pi / self.wavelength * step, self.damping
        # The model's autoregression of second order, sampled exactly: roots exp(-h k +- i k sqrt(1 - h^2)).
        first = 2 * math.exp(-h * k) * math.cos(k * math.sqrt(1 - h * h))
        second = -math.exp(-2 * h * k)
        # Variance of such a process, for noise of variance 1 (Box and Jenkins, Time Series Analysis (1976), ch. 3).
        unit = math.sqrt((1 - second) / ((1 + second) * ((1 - second) ** 2 - first**2)))
        lead = int(_LEAD * self.wavelength / h / step)
        # Half as long again, and more if by chance the way was longer.
        points = int(1.5 * way * self.sinuosity / step) + 10
        while True:
            noise = rng.standard_normal(lead + points) * (self.swing / unit)
            direction = signal.lfilter([1.0], [1.0, -first, -second], noise)[lead:]
            line = np.cumsum(step * np.stack([np.cos(direction), np.sin(direction)], axis=1), axis=0)
            if line[-1, 0] >= way:
                return np.asarray(line[: int(np.argmax(line[:, 0] >= way)) + 1])
            points *= 2


@dataclass(frozen=True)
class Realisation:
    """One field of a family, of a seed. A plain value, for any engine.

    Args:
        family: its law.
        centres, areas: of cells [m], [m^2].
        seed: of the ensemble.
        number: of the field in it.
    """

    family: Family
    centres: Float[np.ndarray, "cell 2"]
    areas: Float[np.ndarray, "cell"]
    seed: int
    number: int


def realise(task: Realisation) -> tuple[Float[np.ndarray, "cell"], Integer[np.ndarray, "cell"]]:
    """ln T, and facies (1 inside bodies, 0 outside), of one field; a function of its argument alone, for any engine."""
    rng = np.random.default_rng((task.seed, task.number))
    inside = task.family.bodies(task.centres, task.areas, rng)
    sand, silt = (
        facies.mean + _drawn(facies.texture, task.centres, task.areas, rng)
        for facies in (task.family.inside, task.family.outside)
    )
    return np.where(inside, sand, silt), inside.astype(np.int8)


def realisations(
    family: Family,
    centres: Float[np.ndarray, "cell 2"],
    areas: Float[np.ndarray, "cell"],
    count: int,
    *,
    seed: int = 0,
    first: int = 0,
    engine: MapEngine | None = None,
) -> tuple[Float[np.ndarray, "count cell"], Integer[np.ndarray, "count cell"]]:
    """Training images: ln T and facies of many fields, the same whatever engine made them.

    Args:
        family: law.
        centres, areas: of cells [m], [m^2].
        count: how many.
        seed: of the ensemble.
        first: number of the first field, so that test fields can follow training fields.
        engine: that maps; None: processes on this machine.
    """
    if count < 1:
        raise ValueError(f"realisations: count must be 1 or more, got {count}")

    def tasks() -> Iterator[Realisation]:
        return (Realisation(family, centres, areas, seed, first + number) for number in range(count))

    made = dict((engine or ProcessEngine()).map(realise, tasks()))
    fields, facies = zip(*(made[number] for number in range(count)), strict=True)
    return np.stack(fields), np.stack(facies)


def connectivity(facies: Integer[np.ndarray, "count cell"], neighbours: Integer[np.ndarray, "face 2"]) -> float:
    """Chance that two cells inside bodies belong to the same body, pooled over fields.

    Hovadik and Larue, Pet. Geosci. 13 (2007) 195. It tells channels from facies of the same two-point covariance.

    Args:
        facies: 1 inside bodies.
        neighbours: cells of each face; -1 is outside the mesh.
    """
    a, b = neighbours[(neighbours >= 0).all(1)].T
    same = pairs = 0.0
    for one in facies:
        open_ = (one[a] == 1) & (one[b] == 1)
        graph = coo_array((np.ones(int(open_.sum())), (a[open_], b[open_])), shape=(len(one), len(one)))
        sizes = np.bincount(csgraph.connected_components(graph, directed=False)[1][one == 1])
        same += float((sizes.astype(float) ** 2).sum())
        pairs += float(sizes.sum()) ** 2
    return same / pairs if pairs else float("nan")


def _drawn(law: Matern, centres: np.ndarray, areas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    expansion = _expansion(law, centres.tobytes(), areas.tobytes())
    noise = torch.from_numpy(rng.standard_normal((1, expansion.terms)))
    return np.asarray(expansion.sample(noise)[0].numpy())


# Once for each process and law: it takes a hundred times as long as a field.
@lru_cache(maxsize=8)
def _expansion(law: Matern, centres: bytes, areas: bytes) -> KarhunenLoeve:
    return karhunen_loeve(np.frombuffer(centres).reshape(-1, 2), np.frombuffer(areas), law, share=0.999)


def _check_proportion(proportion: float) -> None:
    if not 0 < proportion < 1:
        raise ValueError(f"facies: proportion must be above 0 and below 1, got {proportion}")


def _check_width(width: float, areas: np.ndarray) -> None:
    cell = math.sqrt(float(np.median(areas)))
    if width < cell:
        raise ValueError(
            f"channels: a width of {width:.4g} m is less than a cell, about {cell:.4g} m, so that channels "
            "fall to pieces: make them wider or the mesh finer"
        )
