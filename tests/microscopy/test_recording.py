"""What recording does to patterns, and the repair of what it left out."""

import math
import warnings

import numpy as np
import pytest
import torch

from exafield.microscopy import recording
from exafield.microscopy.recording import repair
from exafield.microscopy.window import interpolation
from thin_crystals import thin


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def recorded(electrons: float = 2000.0, probes: int = 24, step: float = 0.25) -> torch.Tensor:
    """A window of strontium titanate, 2 A thick, with counting noise."""
    one = thin("SrTiO3", weak=1.0)
    places = (np.arange(probes) + 0.5) * step + 0.31
    x, y = (interpolation(one.patterns.shape[d], one.cell[d], places).double() for d in (0, 1))
    scan = torch.einsum("ab,cd,bdkl->ackl", x, y, one.patterns)
    return recording.counted(scan, electrons, generator())


def test_source_blur_of_a_periodic_scan_is_a_convolution() -> None:
    """One plane wave over the scan is damped by exp(-2 (pi w q)^2) and keeps its place."""
    x = torch.arange(20, dtype=torch.float64) * 0.2
    wave = torch.cos(2 * math.pi * 3 * x / 4.0 + 0.4)
    scan = wave[:, None, None, None].expand(20, 5, 2, 2) + 2
    blurred = recording.source_blur(scan, 0.3, (0.2, 0.7), periodic=True)
    damped = wave * math.exp(-2 * (math.pi * 0.3 * 3 / 4.0) ** 2) + 2
    assert torch.allclose(blurred, damped[:, None, None, None].expand(20, 5, 2, 2))
    assert torch.equal(recording.source_blur(scan, 0.0, (0.2, 0.7)), scan)


def test_source_blur_with_free_edges_keeps_what_is_constant() -> None:
    scan = torch.rand(1, 1, 4, 4, generator=generator()).expand(6, 7, 4, 4)
    assert torch.allclose(recording.source_blur(scan, 0.8, (0.5, 0.5)), scan)
    point = torch.zeros(9, 9, 1, 1)
    point[4, 4] = 1
    blurred = recording.source_blur(point, 0.5, (0.5, 0.5))[..., 0, 0]
    assert blurred[4, 3] / blurred[4, 4] == pytest.approx(math.exp(-0.5), rel=1e-3)


def test_detector_blur_spreads_and_loses_over_the_edge() -> None:
    pattern = torch.zeros(21, 21, dtype=torch.float64)
    pattern[10, 10] = 1
    blurred = recording.detector_blur(pattern, 1.5)
    k = torch.arange(21.0) - 10
    assert float(blurred.sum()) == pytest.approx(1.0, abs=1e-6)
    # A pixel's own width adds a twelfth to the variance.
    assert float((blurred.sum(1) * k**2).sum()) == pytest.approx(1.5**2 + 1 / 12, rel=1e-4)
    assert float(recording.detector_blur(torch.ones(21, 21), 1.5)[0].mean()) < 0.7
    assert torch.equal(recording.detector_blur(pattern, 0.0), pattern)


def test_counts_are_whole_and_have_the_variance_of_poisson() -> None:
    share = torch.full((200, 100), 0.02, dtype=torch.float64)
    counts = recording.counted(share, 500.0, generator()) * 500
    assert torch.allclose(counts, counts.round())
    assert float(counts.mean()) == pytest.approx(10.0, rel=0.02)
    assert float(counts.var()) == pytest.approx(10.0, rel=0.05)
    assert torch.equal(recording.counted(share, 500.0, generator(4)), recording.counted(share, 500.0, generator(4)))
    assert recording.counted(torch.tensor([-1e-9]), 10.0) == 0
    assert recording.electrons_per_pattern(4000.0, (0.5, 0.25)) == 500.0


def test_uniform_noise_of_the_paper() -> None:
    scan = torch.rand(4, 4, 8, 8, generator=generator()) * 3
    noisy = recording.uniform_noise(scan, 0.2, generator(1))
    noise = (noisy - 0.8 * scan) / (0.2 * scan.max())
    assert noise.min() >= 0
    assert noise.max() <= 1.0001
    assert float(noise.mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.equal(recording.uniform_noise(scan, 0.0), scan)


def test_bad_recordings_are_named() -> None:
    scan = torch.ones(2, 2, 4, 4)
    for name, call in (
        ("width", lambda: recording.source_blur(scan, -1.0, (0.5, 0.5))),
        ("width", lambda: recording.detector_blur(scan, math.nan)),
        ("electrons", lambda: recording.counted(scan, 0.0)),
        ("dose", lambda: recording.electrons_per_pattern(-3.0, (0.5, 0.5))),
        ("amount", lambda: recording.uniform_noise(scan, 1.5)),
        ("share", lambda: recording.dead_pixels(8, 1.0)),
    ):
        with pytest.raises(ValueError, match=name):
            call()


def test_dead_pixels_and_nan_are_replaced_by_neighbours_and_counted() -> None:
    scan = recorded(electrons=1e6)
    broken = scan.clone()
    dead = recording.dead_pixels(16, 0.012, generator(2))
    assert dead.sum() == 3
    broken[..., dead] = 0.0
    broken[3, 4, 5, 6] = math.nan
    broken[3, 5, 9, 9] = math.inf
    broken[3, 5, 0, 0] = -math.inf
    with pytest.warns(
        UserWarning,
        match=r"3 dead detector pixels and 3 values that are no numbers, in 2 of 576 patterns, were",
    ):
        mended = repair(broken, dead)
    neighbours = scan[3, 4, 4:7, 5:8].flatten()
    expected = neighbours[torch.arange(9) != 4].sort().values[3]
    assert mended[3, 4, 5, 6] == expected
    assert float((mended[..., dead] - scan[..., dead]).abs().sum() / scan[..., dead].sum()) < 0.5
    same = torch.isfinite(broken)
    same[..., dead] = False
    assert torch.equal(mended[same], scan[same])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert repair(scan) is scan


def test_a_block_of_nine_is_filled_from_further_off_and_a_larger_one_is_refused() -> None:
    scan = recorded()
    scan[..., 5:8, 5:8] = math.nan
    with pytest.warns(UserWarning, match="5184 values that are no numbers"):
        assert torch.isfinite(repair(scan)).all()
    scan[..., 3:9, 3:9] = math.nan
    with pytest.raises(ValueError, match=r"no good neighbour within two pixels, the first at pixel \(5, 5\)"):
        repair(scan)
    with pytest.raises(ValueError, match="too many to repair"):
        repair(torch.full((2, 2, 4, 4), math.nan))
