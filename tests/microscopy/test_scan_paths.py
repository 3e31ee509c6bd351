"""All ways to compute a scan give the same patterns, and a scan says which one it took."""

import logging
from collections.abc import Callable

import numpy as np
import pytest
import scipy.fft
import torch
from naive import naive_waves
from torch import Tensor

from exafield.microscopy.crystal import embedded
from exafield.microscopy.multislice import REPEAT, Multislice
from exafield.microscopy.paths import Scanner
from exafield.microscopy.periodic import distinct_positions
from exafield.microscopy.potential import projected_slices
from exafield.microscopy.symmetry import operations
from exafield.microscopy.views import view

SYMMETRIES: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    # Images of x under x -> n - 1 - x, about the middle between two pixels, and a diagonal: all eight of 4mm.
    "4mm": (lambda v: v.flip(1), lambda v: v.transpose(1, 2)),
    "mm2": (lambda v: v.flip(1), lambda v: v.flip(2)),
    "2": (lambda v: v.flip((1, 2)),),
    "4": (lambda v: v.rot90(1, (1, 2)),),
    "m": (lambda v: v.flip(2).roll(3, 2),),
    "glide": (lambda v: v.flip(1).roll(v.shape[2] // 2, 2),),
    "1": (),
}
ORDER = {"4mm": 8, "mm2": 4, "2": 2, "4": 4, "m": 2, "glide": 2, "1": 1}


def symmetric(name: str, tile: tuple[int, int], count: int = 2) -> Tensor:
    """Slices of noise with a symmetry: the mean with each image, again and again until nothing changes."""
    slices = 150 * torch.rand(count, *tile, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for _ in range(200):
        for image in SYMMETRIES[name]:
            slices = (slices + image(slices)) / 2
    return slices


def lens(sampling: tuple[float, float], **choices: object) -> Multislice:
    given = {"energy": 200e3, "slice_thickness": 2.0, "convergence_angle": 0.02, "dtype": torch.complex128}
    return Multislice(sampling=sampling, **(given | choices))  # type: ignore[arg-type]


def everywhere(count: int, edge: float = 9.0) -> Tensor:
    return edge * torch.rand(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def expected(microscope: Multislice, slices: Tensor, positions: Tensor) -> Tensor:
    waves = naive_waves(microscope, slices.cpu().numpy(), positions.cpu().numpy())
    return torch.from_numpy(np.fft.fftshift(np.abs(waves) ** 2, axes=(1, 2)))


def relative(found: Tensor, truth: Tensor) -> float:
    return float((found.cpu() - truth).norm() / truth.norm())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    ("shape", "sampling", "band_limit", "aperture"),
    [
        ((48, 40), (0.2, 0.26), 2 / 3, "hard"),
        ((45, 54), (0.21, 0.19), 2 / 3, "soft"),
        ((45, 54), (0.21, 0.19), None, "soft"),
        ((128, 30), (0.1, 0.31), 0.9, "hard"),  # rows that would clash in a cache are set apart
    ],
)
def test_plain_path_is_textbook_multislice(
    shape: tuple[int, int], sampling: tuple[float, float], band_limit: float | None, aperture: str, device: str
) -> None:
    slices = 300 * torch.rand(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    microscope = lens(sampling, band_limit=band_limit, aperture=aperture, defocus=20.0, cs=1e4, device=device)
    positions = everywhere(3)
    truth = torch.from_numpy(naive_waves(microscope, slices.numpy(), positions.numpy()))
    assert relative(microscope.waves(slices.to(device), positions), truth) < 1e-12
    found = microscope.scan(slices.to(device), positions)
    assert relative(found, torch.fft.fftshift(truth.abs().square(), dim=(1, 2))) < 1e-12
    assert microscope.path(slices.to(device), positions).kind == "plain"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", list(SYMMETRIES))
@pytest.mark.parametrize(("tile", "repeats"), [((16, 16), (3, 3)), ((15, 15), (4, 4)), ((12, 20), (4, 3))])
def test_every_path_gives_the_same(name: str, tile: tuple[int, int], repeats: tuple[int, int], device: str) -> None:
    if name in ("4mm", "4") and tile[0] != tile[1]:
        pytest.skip("needs a square tile")
    if name == "glide" and tile[1] % 2:
        pytest.skip("needs half a tile in whole pixels")
    microscope = lens((3.6 / tile[0], 3.6 / tile[1]), aperture="soft", defocus=15.0, device=device)
    part = symmetric(name, tile).to(device)
    order = [0, 1, 1, 0]
    slices = part[order].repeat(1, *repeats)
    positions = everywhere(5)
    truth = expected(microscope, slices, positions)
    tolerance = REPEAT[microscope.dtype]
    for path in ("direct", "matrix"):
        scanner = Scanner(microscope, part, order, repeats, 5, [4], tolerance, path)
        out = torch.zeros(1, 5, *truth.shape[1:], dtype=torch.float64, device=device)
        sums = scanner.fill(out, positions)
        assert relative(out[0], truth) < 1e-12
        assert relative(sums[0], truth.sum((1, 2))) < 1e-12
        assert scanner.path.kind == path
        assert scanner.path.operations == (ORDER[name] if path == "matrix" else 1)
    assert relative(microscope.scan(slices, positions), truth) < 1e-12


def test_symmetry_spares_beams_and_is_dropped_when_one_slice_breaks_it() -> None:
    crystal = next(c for c in embedded() if c.name == "SrTiO3")
    slices = projected_slices(view(crystal, "001"), sampling=0.2, thickness=8.0)
    microscope = lens(slices.sampling, slice_thickness=slices.thickness)
    positions = everywhere(60)
    path = microscope.path(slices.array(), positions)
    assert (path.kind, path.operations, path.tile, path.distinct) == ("matrix", 8, slices.potential.shape[1:], 60)
    assert path.beams / 8 < path.waves < path.beams / 5
    dented = slices.potential.clone()
    dented[1, 2, 0] += 1.0  # a mirror is left
    assert len(operations(dented, slices.sampling, slices.repeats, 1e-13)) == 2
    array = dented[list(slices.order)].repeat(1, *slices.repeats)
    assert microscope.path(array, positions).operations == 2
    assert relative(microscope.scan(array, positions[:3]), expected(microscope, array, positions[:3])) < 1e-12
    # Of a grid that is stretched, turns by 90 degrees are no symmetry.
    assert len(operations(slices.potential, (0.2, 0.21), slices.repeats, 1e-13)) == 4


def test_a_scan_says_which_path_it_took(caplog: pytest.LogCaptureFixture) -> None:
    part = symmetric("1", (16, 16))
    slices = part.repeat(1, 3, 3)
    microscope = lens((0.225, 0.225))
    cases = {"probe by probe": (slices, 2), "scattering matrix": (slices, 40), "plain multislice": (slices.clone(), 2)}
    cases["plain multislice"][0][0, 3, 4] += 1
    with caplog.at_level(logging.INFO):
        for text, (array, count) in cases.items():
            caplog.clear()
            found = microscope.scan(array, everywhere(count))
            assert text in caplog.text
            assert relative(found[:2], expected(microscope, array, everywhere(count)[:2])) < 1e-12
            assert str(microscope.path(array, everywhere(count))) in caplog.text


def test_equal_positions_are_found_in_order() -> None:
    edges = (3.0, 2.0)
    positions = torch.tensor([[1.0, 0.5], [0.0, 0.0], [4.0, -1.5], [3.0, 2.0], [0.3, 0.1], [-3e-13, 0.0]])
    first, inverse = distinct_positions(positions.double(), edges)
    assert first.tolist() == [0, 1, 4]
    assert inverse.tolist() == [0, 1, 0, 1, 2, 1]


@pytest.mark.parametrize("kind", ["plain", "direct", "matrix"])
def test_thickness_series_is_one_run(kind: str) -> None:
    slices = symmetric("4mm", (16, 16), 3)[[0, 1, 2, 1, 0, 2]].repeat(1, 3, 3)
    if kind == "plain":
        slices[0, 2, 3] += 1
    microscope = lens((0.225, 0.225))
    positions = everywhere(1 if kind == "direct" else 24)
    depths = [0, 1, 4, 6]
    series = microscope.thickness_series(slices, positions, depths)
    assert microscope.scanner(slices, positions, depths)[0].path.kind == kind
    for depth, found in zip(depths, series, strict=True):
        assert relative(found, expected(microscope, slices[:depth], positions)) < 1e-12
    with pytest.raises(ValueError, match=r"depths must ascend within 0\.\.6"):
        microscope.thickness_series(slices, positions, [3, 7])
    with pytest.raises(ValueError, match="depths"):
        microscope.thickness_series(slices, positions, [3, 3])


def test_mean_over_configurations() -> None:
    first, second = symmetric("1", (16, 16)).repeat(1, 3, 3).unsqueeze(1)
    microscope = lens((0.225, 0.225))
    positions = everywhere(2)
    found = microscope.mean_scan((one for one in (first, second, second)), positions)
    truth = (expected(microscope, first, positions) + 2 * expected(microscope, second, positions)) / 3
    assert relative(found, truth) < 1e-12
    with pytest.raises(ValueError, match="no configuration"):
        microscope.mean_scan([], positions)


class Counting:
    """A backend of scipy.fft, as FFTW has one."""

    __ua_domain__ = "numpy.scipy.fft"
    calls = 0

    @classmethod
    def __ua_function__(cls, method: Callable[..., object], args: tuple, kwargs: dict) -> object:
        if method.__name__ not in ("fft", "ifft"):
            return NotImplemented
        cls.calls += 1
        function = getattr(np.fft, method.__name__)
        return function(*args, **{k: v for k, v in kwargs.items() if k in ("n", "axis", "norm")})


def test_scipy_and_its_backends_do_the_transforms() -> None:
    slices = symmetric("1", (48, 48))
    positions = everywhere(2)
    microscope = lens((0.225, 0.225), fourier="scipy")
    truth = expected(microscope, slices, positions)
    assert relative(microscope.scan(slices, positions), truth) < 1e-12
    assert Counting.calls == 0
    with scipy.fft.set_backend(Counting):
        assert relative(microscope.scan(slices, positions), truth) < 1e-12
    assert Counting.calls == 4 * len(slices)  # forth and back along x and y, for both probes together
    with pytest.raises(ValueError, match="CPU"):
        lens((0.225, 0.225), fourier="scipy", device="cuda")
