"""Augmentation: physics that survives it, seeds that decide it alone, grids that do not allow it."""

import numpy as np
import pytest
import torch

from exafield.climate.augment import Augmentation, check_augmentation, mirrored
from exafield.climate.fields import CHANNELS, FOUR
from exafield.climate.grid import EARTH_RADIUS, Grid

NAMES = tuple(CHANNELS)


def sample() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(16, 6, 8, generator=g), torch.randint(3, (6, 8), generator=g)


def vorticity(u: np.ndarray, v: np.ndarray, grid: Grid) -> np.ndarray:
    """Of a wind on the sphere [1/s]."""
    north, east = np.deg2rad(grid.latitude), np.deg2rad(grid.longitude)
    cosine = np.cos(north)[:, None]
    dv = (np.roll(v, -1, 1) - np.roll(v, 1, 1)) / (2 * (east[1] - east[0]))
    return (dv - np.gradient(u * cosine, north, axis=0)) / (EARTH_RADIUS * cosine)


def divergence(u: np.ndarray, v: np.ndarray, grid: Grid) -> np.ndarray:
    """Of a wind on the sphere [1/s]."""
    north, east = np.deg2rad(grid.latitude), np.deg2rad(grid.longitude)
    cosine = np.cos(north)[:, None]
    du = (np.roll(u, -1, 1) - np.roll(u, 1, 1)) / (2 * (east[1] - east[0]))
    return (du + np.gradient(v * cosine, north, axis=0)) / (EARTH_RADIUS * cosine)


def test_mirroring_turns_vorticity_over_and_leaves_divergence() -> None:
    grid = Grid.whole(24, 36)
    rng = np.random.default_rng(0)
    fields = rng.standard_normal((16, 24, 36))
    u, v = NAMES.index("U850"), NAMES.index("V850")
    other = mirrored(torch.from_numpy(fields)).numpy()
    np.testing.assert_allclose(
        vorticity(other[u], other[v], grid), -vorticity(fields[u], fields[v], grid)[::-1], atol=1e-12
    )
    np.testing.assert_allclose(
        divergence(other[u], other[v], grid), divergence(fields[u], fields[v], grid)[::-1], atol=1e-12
    )
    # Cyclonic stays cyclonic: the Coriolis parameter of where it now is has the other sign, too.
    spin = vorticity(fields[u], fields[v], grid) * grid.coriolis[:, None]
    np.testing.assert_allclose(vorticity(other[u], other[v], grid) * grid.coriolis[:, None], spin[::-1], atol=1e-12)


def test_mirroring_changes_the_sign_of_northward_winds_alone() -> None:
    fields, _ = sample()
    other = mirrored(fields)
    for number, name in enumerate(NAMES):
        sign = -1 if name in ("V850", "VBOT") else 1
        torch.testing.assert_close(other[number], sign * fields[number].flip(-2))
    torch.testing.assert_close(mirrored(other), fields)
    four = mirrored(fields[:4].expand(2, 4, 6, 8), FOUR)
    torch.testing.assert_close(four[:, 2], -fields[2].flip(-2).expand(2, 6, 8))


def test_mirroring_normalised_fields() -> None:
    fields, _ = sample()
    offset, scale = torch.linspace(-3, 3, 16), torch.linspace(1, 5, 16)
    normal = (fields - offset[:, None, None]) / scale[:, None, None]
    expected = (mirrored(fields) - offset[:, None, None]) / scale[:, None, None]
    torch.testing.assert_close(mirrored(normal, zero=-offset / scale), expected)


def test_labels_go_along_and_nothing_is_touched() -> None:
    fields, labels = sample()
    before = fields.clone(), labels.clone()
    seen = set()
    for number in range(40):
        augmentation = Augmentation()
        shift, mirror = augmentation.draw(8, seed=1, epoch=2, sample=number)
        other, other_labels = augmentation(fields, labels, seed=1, epoch=2, sample=number)
        expected = mirrored(fields) if mirror else fields
        torch.testing.assert_close(other, expected.roll(shift, -1))
        torch.testing.assert_close(other_labels, (labels.flip(-2) if mirror else labels).roll(shift, -1))
        seen.add((shift, mirror))
    assert {s for s, _ in seen} == set(range(8))
    assert {m for _, m in seen} == {False, True}
    torch.testing.assert_close((fields, labels), before)


def test_seeds_decide_alone() -> None:
    draw = Augmentation().draw
    first = [draw(1152, seed=0, epoch=0, sample=i) for i in range(10)]
    torch.manual_seed(5)
    np.random.default_rng(3).random()
    assert [draw(1152, seed=0, epoch=0, sample=i) for i in range(10)] == first
    for change in ({"seed": 1}, {"epoch": 1}, {"rank": 1}):
        assert [draw(1152, **({"seed": 0, "epoch": 0} | change), sample=i) for i in range(10)] != first
    assert all(shift % 32 == 0 for shift, _ in (Augmentation(multiple=32).draw(1152, seed=0, epoch=0, sample=i)
                                                for i in range(10)))  # fmt: skip


def test_what_is_off_does_not_change_the_rest() -> None:
    for number in range(10):
        shift, mirror = Augmentation().draw(100, seed=0, epoch=0, sample=number)
        assert Augmentation(roll=False).draw(100, seed=0, epoch=0, sample=number) == (0, mirror)
        assert Augmentation(mirror=False).draw(100, seed=0, epoch=0, sample=number) == (shift, False)


def test_refusals() -> None:
    check_augmentation(Augmentation(), Grid.whole(6, 8))
    cam5 = Grid(np.linspace(-90, 90, 768), np.arange(1152) * 0.3125)
    check_augmentation(Augmentation(), cam5)
    north = Grid(np.linspace(0, 60, 7), np.linspace(-90, 0, 10))
    with pytest.raises(ValueError, match="set roll=False"):
        check_augmentation(Augmentation(), north)
    with pytest.raises(ValueError, match="set mirror=False"):
        check_augmentation(Augmentation(roll=False), north)
    check_augmentation(Augmentation(roll=False, mirror=False), north)
    with pytest.raises(ValueError, match="16 channels were given with 4 names"):
        mirrored(sample()[0], FOUR)
    with pytest.raises(ValueError, match="multiple"):
        Augmentation(multiple=0)
