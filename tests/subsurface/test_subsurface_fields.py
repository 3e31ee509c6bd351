"""Covariances in closed form, and fields whose law is the one asked for."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special

from exafield.subsurface.covariance import Covariance, Matern, Superposed, distances, matern, matern_slope
from exafield.subsurface.mesh import Mesh
from exafield.subsurface.random_fields import CellMesh, MeshSpectrum, SpectralField, karhunen_loeve, matern_transfer
from subsurface_grid import Grid, grid

R = np.linspace(0, 8, 81)


def noise(fields: int, modes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(fields, modes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5])
def test_closed_forms_are_the_general_one(nu: float) -> None:
    np.testing.assert_allclose(matern(R, nu), matern(R, nu + 1e-9), atol=1e-7)


@pytest.mark.parametrize("nu", [0.5, 0.8, 1.5, 2.5, 4.0, math.inf])
def test_slope_is_the_derivative(nu: float) -> None:
    step = 1e-5
    difference = (matern(R * math.exp(-step), nu) - matern(R * math.exp(step), nu)) / (2 * step)
    np.testing.assert_allclose(matern_slope(R, nu), difference, atol=1e-7)


@pytest.mark.parametrize("nu", [0.8, 1.5, 2.5, 4.0])
def test_matern_is_the_transform_of_its_spectrum(nu: float) -> None:
    # In the plane the correlation is the Hankel transform of the density, proportional to (2 nu + k^2)^-(nu + 1).
    for r in (0.3, 1.0, 2.5):
        density = 2 * nu * (2 * nu) ** nu
        value = integrate.quad(
            lambda k: density * k * special.j0(k * r) * (2 * nu + k * k) ** -(nu + 1),  # noqa: B023
            0,
            200,
            limit=2000,
        )[0]
        assert float(matern(np.array(r), nu)) == pytest.approx(value, abs=1e-4)


def test_limits_of_the_smoothness() -> None:
    assert np.abs(matern(R, 50.0) - matern(R, math.inf)).max() < 0.01
    for nu in (0.3, 3.3, 50.0):
        near = matern(np.array([0.0, 1e-300, 1e-9, 1e-6, 1e3]), nu)
        assert near[0] == 1
        assert np.isfinite(near).all()
        assert (np.diff(near) <= 0).all()


def test_anisotropy_is_along_the_axis() -> None:
    law = Matern(2.0, 100.0, 1.5, anisotropy=0.25, angle=math.pi / 3)
    assert isinstance(law, Covariance)
    axis = np.array([[math.cos(law.angle), math.sin(law.angle)]])
    across = np.array([[-math.sin(law.angle), math.cos(law.angle)]])
    here = np.zeros((1, 2))
    expected = 2 * matern(np.array(0.8), 1.5)
    assert law(here, 80 * axis)[0, 0] == pytest.approx(float(expected))
    assert law(here, 20 * across)[0, 0] == pytest.approx(float(expected))


def test_superposed_parts_add() -> None:
    far, near = Matern(1.0, 50.0), Matern(0.5, 5.0, 0.5)
    points = np.random.default_rng(0).uniform(0, 100, (6, 2))
    both = Superposed((far, near))
    assert both.variance == 1.5
    np.testing.assert_allclose(both(points, points), far(points, points) + near(points, points))
    with pytest.raises(ValueError, match="one part or more"):
        Superposed(())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0.0}, "length must be above 0"),
        ({"variance": math.nan}, "variance must be above 0"),
        ({"smoothness": 80.0}, "or infinity for the Gaussian"),
        ({"anisotropy": -1.0}, "anisotropy"),
        ({"angle": math.inf}, "angle must be finite"),
    ],
)
def test_bad_laws_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Matern(**{"variance": 1.0, "length": 1.0, **change})


def uneven() -> Grid:
    """A grid whose areas differ (as if cells were cut), which unweighted Karhunen-Loeve would get wrong."""
    mesh = grid(12, 10)
    return mesh._replace(areas=np.random.default_rng(0).uniform(0.2, 2, len(mesh.areas)))


def test_karhunen_loeve_of_all_terms_is_the_covariance() -> None:
    mesh, law = uneven(), Matern(2.5, 3.0, anisotropy=0.5, angle=0.4)
    expansion = karhunen_loeve(mesh.centres, mesh.areas, law)
    modes = expansion.modes.numpy()
    np.testing.assert_allclose(modes @ modes.T, law(mesh.centres, mesh.centres), atol=1e-12)
    assert float(expansion.eigenvalues.sum()) == pytest.approx(2.5)
    # Functions are orthogonal under areas, and a mode has the variance of its eigenvalue.
    gram = modes.T @ (modes * (mesh.areas / mesh.areas.sum())[:, None])
    np.testing.assert_allclose(gram, np.diag(expansion.eigenvalues), atol=1e-12)


def test_karhunen_loeve_keeps_the_share_asked_for() -> None:
    mesh = uneven()
    law = Matern(1.0, 4.0)
    half = karhunen_loeve(mesh.centres, mesh.areas, law, share=0.9)
    fewer = karhunen_loeve(mesh.centres, mesh.areas, law, terms=half.terms - 1)
    assert fewer.share < 0.9 <= half.share < 0.95
    fields = half.sample(noise(4000, half.terms)).numpy()
    # A relative error of sqrt(2 / 4000) = 2.2 % of each variance; over the mean of many far less than 3 %.
    weights = mesh.areas / mesh.areas.sum()
    assert fields.var(0) @ weights == pytest.approx(half.share, rel=0.03)
    for wrong, message in (
        ({"terms": 0}, "terms must be"),
        ({"share": 2.0}, "share"),
        ({"terms": 2, "share": 0.5}, "not"),
    ):
        with pytest.raises(ValueError, match=message):
            karhunen_loeve(mesh.centres, mesh.areas, law, **wrong)


def test_spectrum_is_that_of_cosines() -> None:
    mesh = grid(40, 30, step=2.0)
    spectrum = MeshSpectrum.of(mesh)
    assert isinstance(mesh, CellMesh)
    cosines = np.sort([(math.pi * i / 80) ** 2 + (math.pi * j / 60) ** 2 for i in range(12) for j in range(12)])
    # The mesh's own error is 1.5 % at the last of these; a quarter of that is left along the axes.
    np.testing.assert_allclose(spectrum.eigenvalues[1:25], cosines[1:25], rtol=0.005)
    functions = spectrum.functions.numpy()
    np.testing.assert_allclose(functions.T @ (functions * 4.0), np.eye(1200), atol=1e-10)
    few = MeshSpectrum.of(mesh, modes=40)
    np.testing.assert_allclose(few.eigenvalues, spectrum.eigenvalues[:40], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("nu", "length"), [(0.5, 4.0), (1.5, 4.0), (2.5, 4.0), (math.inf, 4.0), (2.5, 2.5)])
def test_filter_makes_matern_fields(nu: float, length: float) -> None:
    mesh = grid(32, 32)
    spectrum = MeshSpectrum.of(mesh)
    field = SpectralField(spectrum, [length], [1.0], [nu])
    # Fields are linear in the noise, so that their covariance needs no samples.
    factor = field(torch.eye(spectrum.modes, dtype=torch.float64)).detach().numpy()
    covariance = factor.T @ factor
    np.testing.assert_allclose(np.diag(covariance), 1.0, rtol=1e-12)
    truth = Matern(1.0, length, nu)(mesh.centres, mesh.centres)
    # More than two lengths from the boundary, which reflects fields.
    inner = ((mesh.centres > 2 * length) & (mesh.centres < 32 - 2 * length)).all(1)
    error = np.abs(covariance - truth)[np.ix_(inner, inner)]
    # The exponential law is rough below the size of a cell, where points and cell means differ.
    assert error.max() < (0.06 if nu == 0.5 else 0.03)


def test_variance_is_right_at_the_boundary_too() -> None:
    spectrum = MeshSpectrum.of(grid(16, 16))
    field = SpectralField(spectrum, [3.0], [2.0], mean=7.0)
    fields = field(noise(4000, spectrum.modes)).detach()
    assert float(fields.mean()) == pytest.approx(7.0, abs=0.02)
    # Six standard errors of 256 correlated cells.
    assert float(fields.var(0).max()) < 2 * (1 + 6 * math.sqrt(2 / 4000))
    assert float(fields.var(0).min()) > 2 * (1 - 6 * math.sqrt(2 / 4000))
    # Without the scaling corners have about four times the variance of the middle.
    transfer = matern_transfer(spectrum.eigenvalues, torch.tensor([3.0]), torch.tensor([2.5]))[0]
    raw = (transfer * spectrum.functions).square().sum(1)
    assert float(raw.max() / raw.min()) > 2


def test_two_scales_have_their_variances() -> None:
    mesh = grid(32, 32)
    spectrum = MeshSpectrum.of(mesh)
    field = SpectralField(spectrum, [5.0, 1.5], [1.5, 0.5], [2.5, 1.5])
    factor = field(torch.eye(spectrum.modes, dtype=torch.float64)).detach().numpy()
    truth = Superposed((Matern(1.5, 5.0), Matern(0.5, 1.5, 1.5)))(mesh.centres, mesh.centres)
    inner = ((mesh.centres > 10) & (mesh.centres < 22)).all(1)
    assert np.abs(factor.T @ factor - truth)[np.ix_(inner, inner)].max() < 0.1
    one = SpectralField(spectrum, [5.0], [2.0])(torch.eye(spectrum.modes, dtype=torch.float64)).detach().numpy()
    assert np.abs(one.T @ one - truth)[np.ix_(inner, inner)].max() > 0.3


def test_gradients_of_noise_and_law() -> None:
    spectrum = MeshSpectrum.of(grid(4, 3))
    field = SpectralField(spectrum, [2.0, 0.7], [1.0, 0.4], [2.5, 0.9], mean=1.0)
    names = [name for name, _ in field.named_parameters()]
    assert sorted(names) == ["log_length", "log_smoothness", "log_variance", "mean"]

    def of(xi: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        made = torch.func.functional_call(field, dict(zip(names, values, strict=True)), (xi,))
        assert isinstance(made, torch.Tensor)
        return made

    parameters = [value.detach().clone().requires_grad_() for value in field.parameters()]
    assert torch.autograd.gradcheck(of, (noise(2, 12).requires_grad_(), *parameters))


def test_gaussian_covariance_has_finite_gradients_and_batches_of_filters() -> None:
    spectrum = MeshSpectrum.of(grid(6, 6))
    field = SpectralField(spectrum, [2.0, 1.0], [1.0, 1.0], [math.inf, 1.5])
    field(noise(3, 36)).square().sum().backward()
    assert field.log_length.grad is not None
    assert torch.isfinite(field.log_length.grad).all()
    assert field.log_smoothness.grad is None
    filters = matern_transfer(spectrum.eigenvalues, torch.tensor([1.0, 3.0]), torch.tensor([2.5, math.inf]))
    both = spectrum.filtered(filters, noise(2, 36))
    for row in range(2):
        np.testing.assert_allclose(both[row], spectrum.filtered(filters[row], noise(2, 36))[row])


def test_fields_on_the_mesh_of_this_package() -> None:
    x, y = np.meshgrid(np.arange(9.0), np.arange(9.0), indexing="ij")
    index = np.arange(81).reshape(9, 9)
    corners = np.stack([index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]], axis=-1).reshape(-1, 4)
    mesh = Mesh.of(np.stack([x.ravel(), y.ravel()], axis=1), corners)
    np.testing.assert_allclose(MeshSpectrum.of(mesh).eigenvalues, MeshSpectrum.of(grid(8, 8)).eigenvalues, atol=1e-12)


def test_bad_meshes_and_settings_are_refused() -> None:
    mesh = grid(4, 4)
    for change, message in (
        ({"areas": np.r_[mesh.areas[:-1], 0.0]}, "cell 15 has area 0"),
        ({"distances": mesh.distances * np.r_[0, np.ones(len(mesh.distances) - 1)]}, "between cells 0 and 4 has no"),
        ({"neighbours": np.where(mesh.neighbours == 15, -1, mesh.neighbours)}, "one is cell 15"),
    ):
        with pytest.raises(ValueError, match=message):
            MeshSpectrum.of(mesh._replace(**change))
    with pytest.raises(ValueError, match="modes must be 1 to 16"):
        MeshSpectrum.of(mesh, modes=17)
    spectrum = MeshSpectrum.of(mesh)
    for arguments, message in (
        (([1.0], [1.0, 2.0]), "as many variances as lengths"),
        (([0.0], [1.0]), "every length"),
        (([1.0], [1.0], [0.0]), "smoothness must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            SpectralField(spectrum, *arguments)
    assert distances(mesh.centres, mesh.centres).max() == pytest.approx(math.hypot(3, 3))
