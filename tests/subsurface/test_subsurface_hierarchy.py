"""Two levels assembled to one field: no seam in variance, correlation or law; conditioning works."""

import numpy as np
import pytest
import torch
from torch import Tensor

from exafield.subsurface.generated import box
from exafield.subsurface.hierarchy import Hierarchy
from exafield.subsurface.partition import partition
from exafield.subsurface.random_fields import MeshSpectrum, SpectralField

LENGTHS, VARIANCES, MEAN = (4000.0, 1300.0), (1.2, 1.4), 7.8


@pytest.fixture(scope="module")
def made() -> Hierarchy:
    # Cells of 667 m; the overlap is 2.7 km, two fine correlation lengths.
    torch.manual_seed(0)
    return Hierarchy(partition(box(24, 18).mesh, 4, 4), MEAN, LENGTHS, VARIANCES, coarse_modes=40)


def fine_matrix(made: Hierarchy) -> Tensor:
    """Of the assembled fine field by the white noise of the cells: exact, since it is linear at the start."""
    cells = made.partition.mesh.cells
    noise = torch.cat([torch.zeros(cells, made.coarse.noise), torch.eye(cells)], dim=1).double()
    with torch.no_grad():
        fields: Tensor = made(noise) - MEAN
    return fields.T


def correlations(matrix: Tensor, pairs: np.ndarray) -> Tensor:
    scaled = matrix / matrix.norm(dim=1, keepdim=True)
    found: Tensor = (scaled[pairs[:, 0]] * scaled[pairs[:, 1]]).sum(1)
    return found


def test_variance_has_no_seam(made: Hierarchy) -> None:
    variance = fine_matrix(made).square().sum(1)
    torch.testing.assert_close(variance, torch.full_like(variance, VARIANCES[1]), rtol=1e-10, atol=0)


def test_fields_drawn_apart_would_have_a_seam(made: Hierarchy) -> None:
    # What shared noise is for: by the same weights, independent fields lose half their variance at borders.
    cells = made.partition.mesh.cells
    variance = np.zeros(cells)
    for part, weights in zip(made.partition.extended, made.partition.weights, strict=True):
        variance[part.cells] += weights**2
    assert variance.min() < 0.55
    # Shared noise leaves the correction little to do.
    plain = np.concatenate(made.partition.weights)
    ratio = made.weights.numpy()[plain > 0.1] / plain[plain > 0.1]
    assert 1 <= ratio.min() <= ratio.max() < 1.03


def test_correlation_of_neighbours_has_no_seam(made: Hierarchy) -> None:
    mesh = made.partition.mesh
    one = SpectralField(MeshSpectrum.of(mesh), LENGTHS[1:], VARIANCES[1:])
    with torch.no_grad():
        whole, found = (correlations(m, mesh.neighbours) for m in (one.matrix(), fine_matrix(made)))
    border = torch.zeros(len(mesh.neighbours), dtype=torch.bool)
    border[made.partition.borders] = True
    # Against one filter of the whole mesh, on each border face, and on average.
    assert (found - whole)[border].abs().max() < 0.02
    assert abs(float((found - whole)[border].mean())) < 0.005
    assert abs(float(found[border].mean() - found[~border].mean())) < 0.02
    assert 0.8 < float(found[border].mean()) < 0.95
    # And so far off as two lengths, across a border.
    pairs = np.stack([mesh.neighbours[made.partition.borders, 0], mesh.neighbours[made.partition.borders, 1]], axis=1)
    far = np.stack([pairs[:-4, 0], pairs[4:, 1]], axis=1)
    with torch.no_grad():
        whole, found = (correlations(m, far) for m in (one.matrix(), fine_matrix(made)))
    assert (found - whole).abs().max() < 0.04


def test_both_levels_add_up(made: Hierarchy) -> None:
    noise = torch.randn(2000, made.noise, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        fields = made(noise)
        coarse = made.coarse(noise[:, : made.coarse.noise])
    assert made.noise == 40 + made.partition.mesh.cells
    # 2,000 fields tell a variance to 3 % in one cell, far better over all.
    assert float(fields.var(0).mean()) == pytest.approx(sum(VARIANCES), rel=0.03)
    assert float(coarse.var(0).mean()) == pytest.approx(VARIANCES[0], rel=0.03)
    assert float((fields - coarse).var(0).mean()) == pytest.approx(VARIANCES[1], rel=0.03)
    assert float(fields.mean()) == pytest.approx(MEAN, abs=0.05)


def test_fine_fields_follow_the_coarse(made: Hierarchy) -> None:
    fine = made.fines()[2]
    generator = torch.Generator().manual_seed(2)
    white = torch.randn(4, len(fine.cells), dtype=torch.float64, generator=generator)
    first = torch.randn(4, made.coarse.noise, dtype=torch.float64, generator=generator)
    low, high = (torch.full_like(white, MEAN + sign * 2.0) for sign in (-1, 1))
    with torch.no_grad():
        torch.testing.assert_close(fine(white, low, first), fine(white, high, first))  # at the start it does not
        before = fine(white, low, first)
        fine.noise_in.weight.zero_()
        fine.value_in.bias.zero_()
        fine.value_in.weight.fill_(1.0)
        fine.out.weight[0] = 0.5  # louder where the coarse field is high
        quiet, loud = fine(white, low, first), fine(white, high, first)
        torch.testing.assert_close((quiet * loud).sqrt(), before.abs())
        assert (loud.abs() > 1.5 * quiet.abs()).all()
        fine.out.weight[0] = 0.0
        fine.out.weight[1] = 0.5  # lies higher there
        assert (fine(white, high, first) - fine(white, low, first)).min() > 0.5
        fine.value_in.weight.zero_()
        fine.noise_in.weight.fill_(0.1)  # follows the noise
        assert not torch.equal(fine(white, low, first), fine(white, low, -first))
        fine.out.weight.zero_()


def test_fine_modes_may_be_few() -> None:
    mesh = box(12, 8).mesh
    made = Hierarchy(partition(mesh, 2, 2), MEAN, LENGTHS, VARIANCES, coarse_modes=500, fine_modes=20)
    assert made.coarse.noise == mesh.cells // 4
    assert made(torch.randn(3, made.noise, dtype=torch.float64)).shape == (3, mesh.cells)
