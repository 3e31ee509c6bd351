"""Networks of position and noise: their derivatives, and residuals of the flow equation."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from exafield.subsurface import darcy
from exafield.subsurface.coordinate import Coordinate
from exafield.subsurface.generated import box
from exafield.subsurface.paper_fields import Cells
from exafield.subsurface.random_fields import MeshSpectrum
from exafield.subsurface.residual import FiniteVolumes, divergence
from exafield.subsurface.separable import Modes, Separable
from exafield.subsurface.site import Site

Differentiable = Coordinate | Separable
NOISE = 4


def points(dimensions: int) -> Tensor:
    """Some, off the origin and in a rectangle rather than a square."""
    generator = torch.Generator().manual_seed(3)
    scale = torch.tensor([5.0, 2.0, 1.0], dtype=torch.float64)[:dimensions]
    return 7 + scale * torch.rand(6, dimensions, dtype=torch.float64, generator=generator)


def nested(y: Differentiable, u: Differentiable, noise: Tensor, at: Tensor) -> Tensor:
    """div(exp(y) grad u) by differentiating derivatives, realisation by realisation."""
    rows = []
    for one in noise:
        x = at.clone().requires_grad_()
        log, head = y.at(one[None], x)[0], u.at(one[None], x)[0]
        (slope,) = torch.autograd.grad(head.sum(), x, create_graph=True)
        flux = log.exp()[:, None] * slope
        parts = [torch.autograd.grad(flux[:, d].sum(), x, create_graph=True)[0][:, d] for d in range(at.shape[1])]
        rows.append(torch.stack(parts).sum(0))
    return torch.stack(rows)


MAKERS: dict[str, Callable[..., Differentiable]] = {
    "coordinate": lambda at, **more: Coordinate(at, NOISE, width=12, **more).double(),
    "separable": lambda at, **more: Separable(at, NOISE, width=12, **more).double(),
}


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("kind", MAKERS)
def test_residual_and_its_gradient_are_those_of_nested_differentiation(kind: str, dimensions: int) -> None:
    torch.manual_seed(1)
    at = points(dimensions)
    y, u = MAKERS[kind](at, offset=0.5, scale=0.7), MAKERS[kind](at, offset=100.0, scale=3.0)
    noise, weights = torch.randn(3, NOISE, dtype=torch.float64), torch.randn(3, len(at), dtype=torch.float64)
    found, expected = divergence(y.gradient(noise, at), u.laplacian(noise, at)), nested(y, u, noise, at)
    assert (found - expected).abs().max() < 1e-13 * expected.abs().max()
    parameters = [*y.parameters(), *u.parameters()]
    pairs = zip(
        torch.autograd.grad((found * weights).sum(), parameters, allow_unused=True),
        torch.autograd.grad((expected * weights).sum(), parameters, allow_unused=True),
        strict=True,
    )
    compared = 0
    for mine, theirs in pairs:
        assert (mine is None) == (theirs is None)  # of the last bias, which no derivative knows
        if mine is not None and theirs is not None:
            assert (mine - theirs).abs().max() < 1e-13 * max(1.0, float(theirs.abs().max()))
            compared += int(theirs.abs().max() > 1e-6)
    assert compared > len(parameters) // 2


def test_values_beside_derivatives_are_the_values() -> None:
    at = points(2)
    for make in MAKERS.values():
        field, noise = make(at, offset=2.0), torch.randn(3, NOISE, dtype=torch.float64)
        for derivatives in (field.gradient(noise, at), field.laplacian(noise, at)):
            torch.testing.assert_close(derivatives.value, field(noise), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(field.gradient(noise, at).gradient, field.laplacian(noise, at).gradient)


def test_divergence_asks_for_the_laplacian() -> None:
    at = points(2)
    field, noise = Coordinate(at, NOISE).double(), torch.zeros(1, NOISE, dtype=torch.float64)
    with pytest.raises(ValueError, match="Laplacian"):
        divergence(field.gradient(noise, at), field.gradient(noise, at))


@pytest.mark.heavy
def test_compiled_derivatives_are_the_same() -> None:
    torch.manual_seed(2)
    at, noise = points(2).float(), torch.randn(2, NOISE)
    plain, fast = Coordinate(at, NOISE, width=16), Coordinate(at, NOISE, width=16, compiled=True)
    fast.load_state_dict(plain.state_dict())
    gradients = []
    for field in (plain, fast):
        residual = divergence(field.gradient(noise, at), field.laplacian(noise, at))
        gradients.append([residual.detach(), *torch.autograd.grad(residual.square().sum(), field.network.first.weight)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_derivatives_go_on_uncompiled_where_compiling_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object, **settings: object) -> Callable[..., None]:
        def run(*arguments: object) -> None:
            raise RuntimeError("no C++ compiler\nand more")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    at = points(2).float()
    field = Coordinate(at, NOISE, compiled=True)
    noise = torch.zeros(1, NOISE)
    with pytest.warns(RuntimeWarning, match="no C\\+\\+ compiler$"):
        first = field.laplacian(noise, at)
    torch.testing.assert_close(first.value, field(noise))
    field.laplacian(noise, at)  # no second warning: warnings are errors to nobody here, but it must not fail


# ---- finite volumes ----


def sites() -> dict[str, Site]:
    plain = box(6, 5)
    some = Site(
        mesh=plain.mesh,
        fixed_faces=plain.fixed_faces,
        fixed_heads=plain.fixed_heads,
        inflow_faces=plain.inflow_faces,
        inflows=plain.inflows,
        fixed_cells=np.array([7]),
        fixed_cell_heads=np.array([111.0]),
        leak_cells=np.array([11, 18]),
        leak_conductances=np.array([300.0, 20.0]),
        leak_heads=np.array([109.0, 113.0]),
    )
    return {
        "river and inflow": plain,
        "all conditions": some.__class__(**vars(some.with_wells([[5000, 5000]], [-900]))),
    }


@pytest.mark.parametrize("name", ["river and inflow", "all conditions"])
def test_finite_volume_residual_is_zero_for_solved_heads_only(name: str) -> None:
    site = sites()[name]
    y = 7 + torch.randn(3, site.cells, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    head, volumes = darcy.solve(site, y), FiniteVolumes(site)
    assert volumes(y, head).abs().max() < 1e-11
    assert volumes(y.float(), head.float()).square().mean().sqrt() < 1e-4
    # One head moved by a metre is a metre off its balance, and its neighbours are off by less.
    moved = head.clone()
    moved[:, 3] += 1.0
    off = volumes(y, moved)
    torch.testing.assert_close(off[:, 3], -torch.ones(3, dtype=torch.float64))
    assert off[:, [2, 4]].min() > 0
    assert off[:, [2, 4]].max() < 1


def test_finite_volume_residual_differentiates() -> None:
    site = sites()["all conditions"]
    generator = torch.Generator().manual_seed(1)
    y = (7 + torch.randn(2, site.cells, dtype=torch.float64, generator=generator)).requires_grad_()
    u = (112 + torch.randn(2, site.cells, dtype=torch.float64, generator=generator)).requires_grad_()
    assert torch.autograd.gradcheck(FiniteVolumes(site), (y, u), fast_mode=True)


# ---- generators ----


def test_generators_say_what_they_cannot_do() -> None:
    site = box(4, 3)
    modes = Modes(MeshSpectrum.of(site.mesh, 5), NOISE)
    centres = torch.tensor(site.mesh.centres, dtype=torch.float32)
    with pytest.raises(ValueError, match="noise"):
        Coordinate(centres, 0)
    with pytest.raises(ValueError, match="share one noise"):
        Cells(site, modes, Coordinate(centres, NOISE + 1))


@pytest.mark.parametrize("maker", [Coordinate, Separable])
def test_generated_fields_begin_at_the_scale_asked_for(maker: Callable[..., torch.nn.Module]) -> None:
    torch.manual_seed(0)
    centres = torch.tensor(box(8, 6).mesh.centres, dtype=torch.float32)
    values = maker(centres, 10, offset=112.0, scale=5.0)(torch.randn(64, 10))
    assert 100 < values.mean() < 124
    assert 0.2 < values.std() < 20
