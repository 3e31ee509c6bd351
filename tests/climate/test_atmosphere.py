"""The synthetic atmosphere: physics of its parts, its statistics against real CAM5 output, and its reproducibility."""

import csv
import io
import zipfile
from collections import defaultdict

import numpy as np
import pytest

from exafield.climate.atmosphere import Atmosphere
from exafield.climate.atmosphere.climatology import saturation
from exafield.climate.atmosphere.events import Cyclone, cyclones
from exafield.climate.atmosphere.harmonics import Basis, Noise, legendre
from exafield.climate.atmosphere.vortex import add_cyclone, holland
from exafield.climate.fields import CHANNELS, CYCLONE, RIVER
from exafield.climate.grid import Grid
from exafield.datasets import DatasetError, find

SMALL = Grid.whole(96, 144)
NAMES = list(CHANNELS)


def test_legendre_functions_are_orthonormal() -> None:
    nodes, weights = np.polynomial.legendre.leggauss(48)
    table = legendre(20, np.rad2deg(np.arcsin(nodes))).astype(np.float64)
    for m in (0, 1, 7, 20):
        product = np.einsum("lp,kp,p->lk", table[m], table[m], weights)[m:, m:] * 2 * np.pi
        assert np.allclose(product, np.eye(21 - m), atol=1e-5)


def test_noise_has_the_variance_and_the_spectrum_it_names() -> None:
    noise = Noise((1,), 30, peak=6, slope=-4, memory=2)
    fields = [Basis(SMALL, 30).field(noise.coefficients(day)) for day in np.arange(0, 600, 6.0)]
    weights = np.cos(np.deg2rad(SMALL.latitude))[:, None] * np.ones(SMALL.shape)
    assert np.average(np.mean(np.square(fields), axis=0), weights=weights) == pytest.approx(1, abs=0.15)
    power = np.mean([np.abs(noise.coefficients(day)) ** 2 for day in np.arange(0, 600, 6.0)], axis=0)
    # Order 0 has half the freedom of the others; all orders above it have the same power.
    by_degree = [power[1 : n + 1, n].mean() for n in range(1, 31)]
    assert by_degree[23] / by_degree[11] == pytest.approx(2.0**-4, rel=0.35)
    assert by_degree[2] / by_degree[4] == pytest.approx(1, rel=0.5)


def test_noise_forgets_itself_after_its_memory_and_not_before() -> None:
    noise, basis = Noise((2,), 20, peak=6, memory=3, drift=0.0), Basis(SMALL, 20)
    start = basis.field(noise.coefficients(10.0))
    alike = [np.corrcoef(start.ravel(), basis.field(noise.coefficients(10.0 + d)).ravel())[0, 1] for d in (0.125, 20)]
    assert alike[0] > 0.97
    assert abs(alike[1]) < 0.5


def test_saturated_air_holds_what_tables_say() -> None:
    # 20 C at 1013.25 hPa: 14.7 g of vapour to 1 kg of dry air (Smithsonian Meteorological Tables).
    assert saturation(np.array(293.15), 101325.0) == pytest.approx(0.0147 / 1.0147, rel=0.01)


def test_holland_wind_is_greatest_at_its_radius_and_balanced_by_pressure() -> None:
    far = np.linspace(5e3, 600e3, 4000)
    speed, depth, fall = holland(far, 40.0, 50e3, 20.0)
    assert far[np.argmax(speed)] == pytest.approx(50e3, rel=0.03)
    # Gradient wind: v^2 / r + f v = dp/dr / density; pressure is lowest in the centre.
    coriolis = 2 * 7.292115e-5 * np.sin(np.deg2rad(20))
    slope = np.gradient(-fall, far)
    assert np.allclose(slope[5:-5], 1.15 * (speed**2 / far + coriolis * speed)[5:-5], rtol=0.02, atol=1e-5)
    assert fall[0] == pytest.approx(depth, rel=0.01)


@pytest.mark.parametrize("latitude", [18.0, -18.0])
def test_a_cyclone_turns_the_right_way_also_over_the_seam(latitude: float) -> None:
    grid = Grid.whole(360, 576)
    fields = {name: np.zeros(grid.shape, dtype=np.float32) for name in NAMES}
    mask = np.zeros(grid.shape, dtype=bool)
    add_cyclone(fields, mask, grid, Cyclone(latitude, 0.0, 45.0, 60e3, (0.0, 0.0), int(np.sign(latitude))))
    row = int(np.abs(grid.latitude - latitude).argmin())
    east, west = fields["V850"][row, 3], fields["V850"][row, -3]
    assert np.sign(east) == np.sign(latitude)  # counterclockwise in the north
    assert np.sign(west) == -np.sign(latitude)
    assert fields["PSL"].min() == fields["PSL"][row - 1 : row + 2, [0, 1, -1]].min()
    assert fields["T500"].max() > 2
    assert mask[row, [0, -1]].all()
    rolled = np.roll(mask, 20, axis=1)
    assert np.ptp(np.flatnonzero(rolled.any(axis=0))) < 20


def test_a_snapshot_depends_on_its_seed_and_time_alone() -> None:
    time = np.datetime64("2003-09-10T06:00")
    first, second = Atmosphere(SMALL, 4), Atmosphere(SMALL, 4)
    second.snapshot(np.datetime64("1999-01-01"))
    for a, b in zip(first.snapshot(time), second.snapshot(time), strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(first.snapshot(time)[0], Atmosphere(SMALL, 5).snapshot(time)[0])
    with pytest.raises(ValueError, match="seed"):
        Atmosphere(SMALL, -1)


def test_a_part_of_the_globe_is_what_the_globe_has_there() -> None:
    whole = Grid.whole(60, 90)
    part = Grid(whole.latitude[20:50], whole.longitude[30:70])
    time = np.datetime64("2001-08-20")
    values, labels = Atmosphere(whole, 1).snapshot(time)
    own, marked = Atmosphere(part, 1).snapshot(time)
    inside = (slice(1, -1), slice(1, -1))  # slopes at the border of the part are one-sided
    near = np.isclose(own[:, *inside], values[:, 20:50, 30:70][:, *inside], rtol=1e-4, atol=2e-3)
    assert near.mean() > 0.99
    assert (marked == labels[20:50, 30:70]).mean() > 0.99


def test_storms_move_and_last() -> None:
    day = float((np.datetime64("2001-09-10") - np.datetime64("1970-01-01")).astype(int))
    now, later = cyclones(7, day, 253.0), cyclones(7, day + 0.25, 253.25)
    assert now
    for storm in now:
        near = [s for s in later if abs(s.latitude - storm.latitude) < 3 and abs(s.longitude - storm.longitude) < 4]
        assert near or storm.wind < 12


@pytest.fixture(scope="module")
def year() -> list[tuple[str, np.ndarray, np.ndarray]]:
    sky = Atmosphere(SMALL, 11)
    days = [(m, d) for m in range(1, 13) for d in (4, 19)]
    dates = [f"{2000 + k % 8}-{m:02d}-{d:02d}" for k, (m, d) in enumerate(days)]
    return [(date, *sky.snapshot(np.datetime64(date))) for date in dates]


def test_values_are_plausible_and_classes_as_rare_as_published(year: list[tuple[str, np.ndarray, np.ndarray]]) -> None:
    values = np.stack([v for _, v, _ in year])
    for channel, own in zip(CHANNELS.values(), values.transpose(1, 0, 2, 3), strict=True):
        assert channel.typical[0] <= own.min() <= own.max() <= channel.typical[1], channel.name
    shares = [np.mean([(labels == k).mean() for _, _, labels in year]) for k in (0, CYCLONE, RIVER)]
    # Kurth et al.: 98.2, below 0.1 and 1.7 %.
    assert 0.975 < shares[0] < 0.99
    assert 1e-4 < shares[1] < 1e-3
    assert 0.010 < shares[2] < 0.025


def _real() -> dict[str, np.ndarray]:
    try:
        folder = find("climate")
    except DatasetError as error:
        pytest.skip(str(error))
    with zipfile.ZipFile(folder / "climatenet_cam5_points_train.csv.zip") as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open(archive.namelist()[0]))))
    return {key: np.array([float(row[key]) for row in rows]) for key in ("lat", "Label", *NAMES)}


def test_statistics_are_those_of_real_model_output_within_tolerances(
    year: list[tuple[str, np.ndarray, np.ndarray]],
) -> None:
    real = _real()
    sky = Atmosphere(SMALL, 11)
    sea = sky._land[0] < 0.3
    east = (SMALL.longitude > 229) & (SMALL.longitude < 354.5)
    # The points lie in two bands of latitudes, over sea; ours are all of the sea there.
    bands = {"north": (12.0, 24.5, real["lat"] > 0), "south": (-31.5, -20.0, real["lat"] < 0)}
    ours: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    for _, values, labels in year:
        for name, (low, high, _) in bands.items():
            inside = sea & ((SMALL.latitude > low) & (SMALL.latitude < high))[:, None]
            for k in (0, CYCLONE, RIVER):
                # Storms are too few for one stretch of sea: they come from all of the band.
                where = inside & (labels == k) & (east[None, :] if k == 0 else True)
                ours[name, k].append(values[:, where])
    pooled = {key: np.concatenate(parts, axis=1) for key, parts in ours.items()}
    for name, (_, _, chosen) in bands.items():
        for index, channel in enumerate(NAMES):
            theirs, own = real[channel][chosen & (real["Label"] == 0)], pooled[name, 0][index]
            assert abs(own.mean() - theirs.mean()) < 0.7 * theirs.std(), (name, channel)
            if channel != "PRECT":  # whose standard deviation hangs on a few points
                assert 0.4 < own.std() / theirs.std() < 2.0, (name, channel)
            low, high = np.percentile(theirs, [1, 99])
            inside = ((own > low - 0.5 * (high - low)) & (own < high + 0.5 * (high - low))).mean()
            assert inside > 0.97, (name, channel)
    for name, k, channels in (
        ("north", CYCLONE, ("TMQ", "QREFHT", "PSL", "T200", "T500", "PRECT", "Z1000", "Z200")),
        ("south", RIVER, ("TMQ", "U850", "UBOT", "PSL", "PRECT")),
    ):
        chosen = bands[name][2]
        for channel in channels:
            index = NAMES.index(channel)
            storms, rest = (real[channel][chosen & (real["Label"] == c)].mean() for c in (k, 0))
            theirs = storms - rest
            own = pooled[name, k][index].mean() - pooled[name, 0][index].mean()
            assert 0.2 < own / theirs < 4, (name, channel, own, theirs)
