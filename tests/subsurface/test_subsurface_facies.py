"""Facies and channels: the statistics they promise, and that no Gaussian has theirs."""

import math

import numpy as np
import pytest
from scipy import stats

from exafield.engine.local import SerialEngine
from exafield.engine.threads import ThreadEngine
from exafield.subsurface.covariance import Matern
from exafield.subsurface.nongaussian import Channels, Facies, TruncatedGaussian, connectivity, realisations
from subsurface_grid import grid

MESH = grid(30, 24, step=100.0)
SAND, SILT = Facies(9.0, Matern(0.3, 200.0)), Facies(5.0, Matern(0.5, 300.0))
FACIES = TruncatedGaussian(0.3, Matern(1.0, 300.0), SAND, SILT)
CHANNELS = Channels(
    0.3, width=320.0, wavelength=1500.0, swing=0.7, damping=0.2, azimuth=0.5, turn=0.1, inside=SAND, outside=SILT
)


def made(family: TruncatedGaussian | Channels, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return realisations(family, MESH.centres, MESH.areas, count, seed=seed, engine=SerialEngine())


@pytest.fixture(scope="module")
def facies() -> tuple[np.ndarray, np.ndarray]:
    return made(FACIES, 1500)


@pytest.fixture(scope="module")
def channels() -> tuple[np.ndarray, np.ndarray]:
    return made(CHANNELS, 400)


def test_truncated_gaussian_has_its_moments(facies: tuple[np.ndarray, np.ndarray]) -> None:
    fields, inside = facies
    # Fields of some 30 independent bodies each: standard errors of 0.0025, 0.01 and 1 %.
    assert inside.mean() == pytest.approx(0.3, abs=0.01)
    assert fields.mean() == pytest.approx(FACIES.mean, abs=0.04)
    assert ((fields - FACIES.mean) ** 2).mean() == pytest.approx(FACIES.variance, rel=0.03)
    # Populations keep their own laws.
    for kind, number in ((SAND, 1), (SILT, 0)):
        values = fields[inside == number]
        assert values.mean() == pytest.approx(kind.mean, abs=0.03)
        assert values.var() == pytest.approx(kind.texture.variance, rel=0.06)
    # The same in every cell: at worst four standard errors among 720.
    assert np.abs(inside.mean(0) - 0.3).max() < 4.5 * math.sqrt(0.21 / 1500)


@pytest.mark.parametrize("cells", [1, 3, 8])
def test_truncated_gaussian_has_its_covariance(facies: tuple[np.ndarray, np.ndarray], cells: int) -> None:
    fields, inside = (x.reshape(-1, 30, 24) for x in facies)
    a, b = slice(None, -cells), slice(cells, None)
    assert (inside[:, a] * inside[:, b]).mean() == pytest.approx(FACIES.both_inside(100.0 * cells), abs=0.012)
    centred = fields - FACIES.mean
    found = (centred[:, a] * centred[:, b]).mean()
    assert found == pytest.approx(FACIES.covariance(100.0 * cells), abs=0.03 * FACIES.variance)


def test_truncated_gaussian_in_closed_form() -> None:
    # Of a median threshold the orthant has a closed form: 1/4 + arcsin(rho) / 2 pi (Sheppard 1899).
    half = TruncatedGaussian(0.5, Matern(3.0, 300.0, 0.5))
    rho = math.exp(-0.7)
    assert half.both_inside(210.0) == pytest.approx(0.25 + math.asin(rho) / (2 * math.pi), abs=1e-6)
    assert half.covariance(0.0) == pytest.approx(half.variance)
    assert half.both_inside(1e6) == pytest.approx(0.25, abs=1e-6)
    with pytest.raises(ValueError, match="isotropic shape"):
        TruncatedGaussian(0.5, Matern(1.0, 1.0, anisotropy=0.5)).both_inside(1.0)


def test_channels_have_their_share_everywhere(channels: tuple[np.ndarray, np.ndarray]) -> None:
    _, inside = channels
    share = inside.mean(1)
    # Whole channels come and go: the share has a standard deviation of 0.13, its mean one of 0.007. Bends that overlap
    # take a little.
    assert share.mean() == pytest.approx(0.3, abs=0.03)
    assert share.std() > 0.08
    # No place is preferred: neither an edge, nor the way in or out. Thirds have a standard error of 0.01.
    blocks = inside.reshape(-1, 3, 10, 3, 8).mean((0, 2, 4))
    assert np.abs(blocks - share.mean()).max() < 0.05


def test_centre_lines_swing_as_asked() -> None:
    rng = np.random.default_rng(0)
    family = Channels(width=100.0, wavelength=1000.0, swing=0.8, damping=0.1)
    line = family.line(600_000.0, rng)
    steps = np.diff(line, axis=0)
    length = np.hypot(*steps.T)
    # Steps are equal, and far shorter than the width.
    np.testing.assert_allclose(length, 25.0)
    direction = np.arctan2(steps[:, 1], steps[:, 0])
    assert direction.std() == pytest.approx(0.8, rel=0.1)
    assert length.sum() / 600_000 == pytest.approx(family.sinuosity, rel=0.05)
    # The spectrum of the direction peaks at the wavelength.
    count = len(direction) // 40
    power = np.abs(np.fft.rfft(direction[: 40 * count].reshape(40, count))) ** 2
    at = np.fft.rfftfreq(count, 25.0)[1:]
    assert 1 / at[power.mean(0)[1:].argmax()] == pytest.approx(1000.0, rel=0.15)


def test_channels_are_connected_and_no_gaussian(
    facies: tuple[np.ndarray, np.ndarray], channels: tuple[np.ndarray, np.ndarray]
) -> None:
    fields, inside = channels
    # Two populations: the middle between them is rarer than in a Gaussian of the same mean and variance.
    middle = np.mean(np.abs(fields - 7.0) < 0.5)
    gaussian = np.diff(stats.norm(fields.mean(), fields.std()).cdf([6.5, 7.5]))[0]
    assert middle < 0.2 * gaussian
    # Channels cross the domain; facies of the same share are islands.
    joined = connectivity(inside, MESH.neighbours)
    islands = connectivity(facies[1][:400], MESH.neighbours)
    assert joined > islands + 0.15
    # They are long along the valley: correlated farther that way than across.
    where = (inside - inside.mean()).reshape(-1, 30, 24)
    along, across = (where[:, :-6] * where[:, 6:]).mean(), (where[:, :, :-6] * where[:, :, 6:]).mean()
    assert along > across + 0.01


def test_connectivity_of_drawn_bodies() -> None:
    mesh = grid(3, 3)
    # Two bodies, of three cells and of one.
    drawn = np.array([[1, 1, 1, 0, 0, 0, 0, 1, 0]], dtype=np.int8)
    assert connectivity(drawn, mesh.neighbours) == pytest.approx((9 + 1) / 16)
    assert connectivity(np.ones((2, 9), dtype=np.int8), mesh.neighbours) == 1
    assert math.isnan(connectivity(np.zeros((1, 9), dtype=np.int8), mesh.neighbours))


@pytest.mark.parametrize("family", [FACIES, CHANNELS])
def test_fields_do_not_depend_on_the_engine(family: TruncatedGaussian | Channels) -> None:
    fields, inside = made(family, 4, seed=3)
    others = realisations(family, MESH.centres, MESH.areas, 3, seed=3, first=1, engine=ThreadEngine(2))
    np.testing.assert_array_equal(fields[1:], others[0])
    np.testing.assert_array_equal(inside[1:], others[1])
    assert not np.array_equal(fields[0], fields[1])
    assert not np.array_equal(fields, made(family, 4, seed=4)[0])


def test_bad_families_are_refused() -> None:
    for change, message in (
        ({"proportion": 1.0}, "proportion must be above 0 and below 1"),
        ({"width": 0.0}, "width must be above 0"),
        ({"wavelength": math.inf}, "wavelength must be above 0"),
        ({"swing": 2.0}, "swing must be 0 to 1.2"),
        ({"damping": 1.0}, "damping"),
        ({"turn": -1.0}, "turn"),
    ):
        with pytest.raises(ValueError, match=message):
            Channels(**change)
    with pytest.raises(ValueError, match="proportion"):
        TruncatedGaussian(0.0)
    with pytest.raises(Exception, match="less than a cell"):
        made(Channels(width=50.0), 1)
    with pytest.raises(ValueError, match="count must be 1"):
        made(FACIES, 0)
