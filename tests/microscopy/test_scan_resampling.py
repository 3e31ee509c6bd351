"""A scan on the grid of a network, and windows put together again."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from exafield.microscopy.calibration import ScanError
from exafield.microscopy.readers import open_scan
from exafield.microscopy.resampling import Resampled, bins, check_reach, positions
from exafield.microscopy.tiling import blend, starts

RANDOM = np.random.default_rng(0)


def disc(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    """A disc with some structure, lit to a part at its rim."""
    x, y = (np.indices((shape[0] * 8, shape[1] * 8)) - 3.5) / 8
    lit = np.hypot(x - centre[0], y - centre[1]) < radius
    fine = lit * (1 + 0.5 * np.cos(0.3 * (x - centre[0])) + 0.3 * (y - centre[1]) / radius)
    return np.asarray(fine.reshape(shape[0], 8, shape[1], 8).mean((1, 3)))


def test_bins_share_pixels_out_by_area() -> None:
    found = bins((50, 40), centre=(24.3, 19.6), step=(0.7, 0.9), half_angle=12.0, count=16)
    each = np.asarray(found.weights.sum(1)).reshape(50, 40)
    x, y = (np.arange(n) - c for n, c in ((50, 24.3), (40, 19.6)))
    inside = (np.abs(x * 0.7) < 11.6)[:, None] & (np.abs(y * 0.9) < 11.5)
    assert np.allclose(each[inside], 1)  # no electron lost or counted twice
    outside = (np.abs(x * 0.7) > 12.4)[:, None] | (np.abs(y * 0.9) > 12.5)
    assert np.allclose(each[outside], 0)
    flat = np.asarray(np.ones(2000) @ found.weights)
    assert np.allclose(flat, (24 / 16) ** 2 / (0.7 * 0.9))
    assert found.covered == 1
    part = bins((50, 20), centre=(24.3, 9.5), step=(0.7, 0.9), half_angle=12.0, count=16)
    assert part.covered == pytest.approx(12 / 16)


def test_a_turned_detector_gives_what_an_aligned_one_does() -> None:
    shape, centre = (64, 64), (31.5, 31.5)
    aligned = disc(shape, centre, 20.0)
    how = {"centre": centre, "step": (1.0, 1.0), "half_angle": 32.0, "count": 16}
    wanted = aligned.ravel() @ bins(shape, **how).weights  # type: ignore[arg-type]
    # kx and ky turned by a right angle, x towards y, are what is said to be turned back by it.
    for turned, rotation, transpose in (
        (np.rot90(aligned, 1), -90.0, False),
        (np.rot90(aligned, 2), 180.0, False),
        (aligned.T, 0.0, True),
        (np.rot90(aligned, 1).T, -90.0, True),
    ):
        found = turned.ravel() @ bins(shape, **how, rotation=rotation, transpose=transpose).weights  # type: ignore[arg-type]
        assert np.abs(found - wanted).max() < 1e-9 * wanted.max(), (rotation, transpose)
    slanted = ndimage.rotate(aligned, 30, reshape=False, order=3)
    errors = [
        np.abs(slanted.ravel() @ bins(shape, **how, rotation=angle).weights - wanted).mean()  # type: ignore[arg-type]
        for angle in (30.0, -30.0)
    ]
    assert min(errors) < 0.02 * wanted.max()
    assert max(errors) > 0.04 * wanted.max()


def test_dead_pixels_are_made_up_for() -> None:
    image = disc((64, 64), (31.5, 31.5), 20.0)
    how = {"centre": (31.5, 31.5), "step": (1.0, 1.0), "half_angle": 32.0, "count": 16}
    wanted = image.ravel() @ bins((64, 64), **how).weights  # type: ignore[arg-type]
    dead = RANDOM.uniform(size=(64, 64)) < 0.05
    dead[24:28, 24:28] = True  # a bin as a whole
    spoilt = np.where(dead, 1e6, image)
    found = bins((64, 64), **how, dead=dead)  # type: ignore[arg-type]
    assert found.blind == 1
    error = spoilt.ravel() @ found.weights - wanted
    assert np.abs(error).max() < 0.35 * wanted.max()
    assert np.sqrt((error**2).mean()) < 0.03 * wanted.max()


def test_positions_are_exact_where_the_scan_is_complete() -> None:
    limit = 2.0  # highest frequency [1/A]: complete from steps of 0.25 A on

    def signal(x: np.ndarray) -> np.ndarray:
        return np.asarray(1 + np.cos(2 * np.pi * 0.9 * limit * x) + 0.5 * np.sin(2 * np.pi * 0.3 * limit * x))

    for step, error in ((0.1, 0.02), (0.17, 0.05), (0.25, 1e-5)):
        along = positions(161, step, 0.5, 1 / (2 * limit))
        found = along.weights @ signal(np.arange(161) * step)
        at = np.arange(along.weights.shape[0]) * 0.5
        assert at[-1] <= 160 * step < at[-1] + 0.5
        inner = (at > 2) & (at < 160 * step - 2)
        assert np.abs(found - signal(at))[inner].max() < error * 1.5, step
    assert (positions(30, 0.5, 0.5, 0.25).weights.toarray() == np.eye(30)).all()
    third = positions(30, 1 / 6, 0.5, 0.1)
    assert np.allclose(third.weights.toarray(), np.eye(30)[::3], atol=1e-6)  # what was recorded is taken as it is


def test_electrons_gathered_from_neighbours() -> None:
    along = positions(400, 0.05, 0.5, 0.25)
    noise = RANDOM.normal(size=(400, 2000))
    gained = 1 / (along.weights @ noise).var(1).mean()
    assert along.gathered == pytest.approx(gained, rel=0.05)
    assert along.gathered > 4
    assert positions(40, 0.5, 0.5, 0.25).gathered == 1


def test_values_missing_in_single_patterns(tmp_path: Path) -> None:
    image = disc((32, 32), (15.5, 15.5), 10.0).astype(np.float32)
    data = np.tile(image, (6, 20, 1, 1))
    data[2, 3, ::3, ::2] = np.nan
    data[4, 5] = np.nan
    np.save(tmp_path / "scan.npy", data)
    detector = bins((32, 32), centre=(15.5, 15.5), step=(1.0, 1.0), half_angle=16.0, count=8)
    along = (positions(6, 0.5, 0.5, 0.25), positions(20, 0.5, 0.5, 0.25))
    with open_scan(tmp_path / "scan.npy") as scan:
        resampled = Resampled(scan, detector, along, 1.0)
        found = resampled.band(0, 6) ** 2
        assert resampled.lost == 1
        with pytest.raises(ScanError, match=r"too small: on the step of the network it has 6 x 20 positions"):
            check_reach(scan, along, 16)
    usual = found[0, 0]
    assert np.allclose(found[4, 5], usual)  # from the position beside it
    assert np.abs(found[2, 3] - usual).max() < 0.1 * usual.max()
    found[2, 3] = usual
    assert np.allclose(found, usual, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "tile", "overlap"), [((45, 70), (16, 16), 6), ((16, 40), (16, 16), 1), ((20, 20), (20, 20), 3)]
)
def test_windows_put_together_are_the_whole(shape: tuple[int, int], tile: tuple[int, int], overlap: int) -> None:
    """A network that knows the potential, but for a constant of each window."""
    refine = 4
    truth = RANDOM.normal(size=(shape[0] * refine, shape[1] * refine)).cumsum(0).cumsum(1)
    scan = truth.reshape(shape[0], refine, shape[1], refine).transpose(0, 2, 1, 3)
    asked: list[int] = []

    def band(low: int, high: int) -> np.ndarray:
        asked.append(low)
        return scan[low:high]

    def predict(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen = windows.transpose(0, 1, 3, 2, 4).reshape(len(windows), tile[0] * refine, tile[1] * refine)
        return seen + RANDOM.normal(size=(len(seen), 1, 1)) * truth.std(), np.full(seen.shape, 2.0)

    found = blend(shape, band, predict, tile=tile, overlap=overlap, refine=refine)
    assert np.abs(found.potential - (truth - truth.mean())).max() < 1e-5 * np.ptp(truth)
    assert np.allclose(found.deviation, 2.0)
    assert asked == sorted(asked)
    assert (found.disagreement is None) == (found.windows == 1)
    assert found.disagreement is None or found.disagreement < 1e-4 * truth.std()


def test_disagreement_is_what_windows_differ_by() -> None:
    scan = np.zeros((60, 60, 1, 1))

    def predict(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        noise = RANDOM.normal(size=windows.shape[:3]) * 3 + 7 * RANDOM.normal(size=(len(windows), 1, 1))
        return noise, np.ones(noise.shape)

    found = blend((60, 60), lambda low, high: scan[low:high], predict, tile=(20, 20), overlap=8, refine=1)
    assert found.disagreement == pytest.approx(3 * np.sqrt(2), rel=0.1)  # of two independent ones


def test_starts_cover_an_axis() -> None:
    for count in range(16, 90):
        found = starts(count, 16, 5)
        assert found[0] == 0
        assert found[-1] == count - 16
        assert all(0 < b - a <= 11 for a, b in pairwise(found))
    for size, overlap, said in (
        (16, 16, "overlap must be at least 1 and below"),
        (16, 0, "at least 1"),
        (99, 3, "larger"),
    ):
        with pytest.raises(ValueError, match=said):
            starts(40, size, overlap)
