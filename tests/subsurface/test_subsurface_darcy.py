"""The solver of heads: against stored heads, closed forms, its own balance, its derivatives."""

import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exafield.subsurface import darcy
from exafield.subsurface.checks import SiteError, SlantedMeshWarning
from exafield.subsurface.factor import Banded, Sparse
from exafield.subsurface.generated import box, rectangles
from exafield.subsurface.mesh import Mesh
from exafield.subsurface.network import Network
from exafield.subsurface.site import Site

WAYS: list[Any] = [Banded, Sparse]
if find_spec("numba") is not None:
    from exafield.subsurface.compiled import Compiled

    WAYS.append(Compiled)
DATA = Path(os.environ.get("EXAFIELD_DATA", "")) / "subsurface"
hanford_data = pytest.mark.skipif(
    not (DATA / "hanford_site_1x.npz").is_file(), reason="needs the data set subsurface in EXAFIELD_DATA"
)
RIVER, WELL_RADIUS, RADIUS = 20.0, 10.0, 1000.0


@pytest.fixture(scope="module")
def hanford() -> Site:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlantedMeshWarning)
        return Site.load("hanford")


def fields(site: Site, count: int, seed: int = 0, spread: float = 1.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 7.0 + spread * torch.randn(count, site.cells, dtype=torch.float64, generator=generator)


def everything(columns: int = 5, rows: int = 4) -> Site:
    """Every kind of condition at once, on quads and triangles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlantedMeshWarning)
        site = box(columns, rows, shape="mixed", wells=4)
        source = np.zeros(site.cells)
        source[3] = -200.0
        return Site(
            mesh=site.mesh,
            fixed_faces=site.fixed_faces,
            fixed_heads=site.fixed_heads,
            inflow_faces=site.inflow_faces,
            inflows=site.inflows,
            fixed_cells=np.array([7, 12]),
            fixed_cell_heads=np.array([109.0, 111.0]),
            leak_cells=np.array([5, 9]),
            leak_conductances=np.array([150.0, 900.0]),
            leak_heads=np.array([107.0, 118.0]),
            source=source,
        )


def loss(site: Site, y: torch.Tensor, seed: int = 5) -> torch.Tensor:
    weights = torch.randn(y.shape[-1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (darcy.solve(site, y) * weights).sum()


@hanford_data
def test_stored_heads_of_the_real_site(hanford: Site) -> None:
    head = darcy.solve(hanford, hanford.log_transmissivity)
    assert hanford.cells == 1475
    assert len(hanford.fixed_faces) == 176
    assert hanford.inflows.sum() == pytest.approx(10_823.46, abs=0.01)
    assert np.abs(head.numpy() - hanford.head).max() < 1e-9
    assert darcy.imbalance(hanford, torch.tensor(hanford.log_transmissivity), head) < 1e-10


@hanford_data
def test_stored_heads_of_realisations(hanford: Site) -> None:
    # The ensembles are stored in float32, so agreement is that of their transmissivities: relative to heads' scale.
    from exafield.subsurface.hanford import realisations

    y, u = realisations("test")
    head = darcy.solve(hanford, torch.tensor(y[:20], dtype=torch.float64))
    assert np.abs(head.numpy() - u[:20]).max() < 1e-4


@hanford_data
def test_distances_along_normals_give_what_modflow_gave(hanford: Site) -> None:
    """Reference run of MODFLOW 6 on this mesh with DISV: 0.29 m at most and 0.047 m rms away from the stored heads."""
    from dataclasses import replace

    along = Mesh.of(hanford.mesh.vertices, hanford.mesh.corners, perpendicular=True)
    with pytest.warns(SlantedMeshWarning):
        site = replace(hanford, mesh=replace(hanford.mesh, shapes=along.shapes))
    off = darcy.solve(site, site.log_transmissivity).numpy() - hanford.head
    assert np.abs(off).max() == pytest.approx(0.29, abs=0.005)
    assert np.sqrt((off**2).mean()) == pytest.approx(0.047, abs=0.0005)


def test_layers_in_a_row_have_a_closed_form() -> None:
    """Unit flow through a column: the head falls by flow x resistance, exactly, whatever the cells' widths."""
    x = np.cumsum([0.0, 30.0, 10.0, 70.0, 25.0, 40.0])
    mesh = Mesh.of(*rectangles(x, np.array([0.0, 50.0])))
    y = np.log([100.0, 3.0, 900.0, 20.0, 7.0])
    east, west = (np.flatnonzero(np.isclose(mesh.boundary_centres[:, 0], side)) for side in (x[-1], 0.0))
    site = Site(
        mesh=mesh, fixed_faces=east, fixed_heads=np.array([RIVER]), inflow_faces=west, inflows=np.array([500.0])
    )
    resistance = np.diff(x) / np.exp(y) / 50.0
    behind = np.cumsum(resistance[::-1])[::-1] - resistance / 2
    head = darcy.solve(site, y)
    assert np.abs(head.numpy() - (RIVER + 500.0 * behind)).max() < 1e-10
    through = darcy.boundary_fluxes(site, torch.tensor(y), head)
    assert through[east].item() == pytest.approx(-500.0, rel=1e-12)
    inner = darcy.fluxes(site, torch.tensor(y), head)
    east_going = np.sign(np.diff(mesh.centres[mesh.neighbours][:, :, 0], axis=1)[:, 0])
    assert np.allclose(inner.numpy() * east_going, 500.0, rtol=1e-11)


def disc(rings: int) -> tuple[Site, np.ndarray]:
    """A disc with a pumping well of finite radius in the middle: quads between circles in geometric progression."""
    sectors = 3 * rings
    radii = np.geomspace(WELL_RADIUS, RADIUS, rings + 1)
    angle = np.arange(sectors) * 2 * np.pi / sectors
    vertices = (radii[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)).reshape(-1, 2)
    ring, sector = (a.ravel() for a in np.meshgrid(np.arange(rings), np.arange(sectors), indexing="ij"))
    after = (sector + 1) % sectors
    corners = np.stack(
        [ring * sectors + sector, (ring + 1) * sectors + sector, (ring + 1) * sectors + after, ring * sectors + after],
        axis=-1,
    )
    mesh = Mesh.of(vertices, corners)
    far = np.linalg.norm(mesh.boundary_centres, axis=-1) > RADIUS / 2
    outer, inner = np.flatnonzero(far), np.flatnonzero(~far)
    site = Site(
        mesh=mesh,
        fixed_faces=outer,
        fixed_heads=np.full(sectors, RIVER),
        inflow_faces=inner,
        inflows=np.full(sectors, -1000.0 / sectors),
    )
    return site, np.linalg.norm(mesh.centres, axis=-1)


@pytest.mark.filterwarnings("ignore::exafield.subsurface.checks.SlantedMeshWarning")  # of faces that carry nothing
def test_a_pumped_well_in_a_disc_is_thiems_to_second_order() -> None:
    errors = []
    for rings in (8, 16, 32):
        site, radius = disc(rings)
        thiem = RIVER - 1000.0 / (2 * np.pi * 50.0) * np.log(RADIUS / radius)
        head = darcy.solve(site, np.full(site.cells, np.log(50.0))).numpy()
        errors.append(np.abs(head - thiem).max())
    assert errors[-1] < 0.07  # of a drawdown of 14.7 m: chords of 96 sectors are 0.4 % off their arcs
    assert 1.9 < np.log2(errors[1] / errors[2]) < 2.2


def manufactured(mesh: Mesh, size: float) -> float:
    """Root mean square error of heads for h = cos(pi x) sin(pi y) + x and ln T = x - y / 2, scaled to the size."""
    x, y = mesh.centres.T / size
    sx, sy = mesh.boundary_centres.T / size
    pi = np.pi

    def head(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.cos(pi * a) * np.sin(pi * b) + a

    # q = -div(T grad h) = -T (laplace h + grad ln T . grad h)
    laplace = -2 * pi**2 * np.cos(pi * x) * np.sin(pi * y)
    slope_x = -pi * np.sin(pi * x) * np.sin(pi * y) + 1
    slope_y = pi * np.cos(pi * x) * np.cos(pi * y)
    source = -np.exp(x - y / 2) * (laplace + slope_x - slope_y / 2) / size**2 * mesh.areas
    faces = np.arange(len(mesh.boundary_cells))
    site = Site(mesh=mesh, fixed_faces=faces, fixed_heads=head(sx, sy), source=source)
    error = darcy.solve(site, x - y / 2).numpy() - head(x, y)
    return float(np.sqrt(np.average(error**2, weights=mesh.areas)))


def graded(n: int) -> Mesh:
    line = np.linspace(0, 1, n + 1)
    return Mesh.of(*rectangles(900.0 * (line + 0.1 * np.sin(2 * np.pi * line)), 900.0 * line**1.3))


def equilateral(n: int) -> Mesh:
    """A rhombus of equilateral triangles, the triangles whose centroids lie right across from their edges."""
    a, b = (v.ravel() for v in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    vertices = np.stack([a + b / 2, b * np.sqrt(0.75)], axis=-1) * 900.0 / n
    first = (np.arange(n)[:, None] * (n + 1) + np.arange(n)).ravel()
    low = np.stack([first, first + 1, first + n + 1], axis=-1)
    return Mesh.of(vertices, np.concatenate([low, np.stack([first + 1, first + n + 2, first + n + 1], axis=-1)]))


@pytest.mark.parametrize("make", [graded, equilateral])
def test_second_order_on_orthogonal_meshes(make) -> None:
    assert make(8).nonorthogonality < 1e-5
    coarse, fine = manufactured(make(16), 900.0), manufactured(make(32), 900.0)
    assert 1.8 < np.log2(coarse / fine) < 2.3


def test_slanted_meshes_do_not_converge_and_are_warned_about() -> None:
    """Rectangles sheared by 30 degrees: the error stays, which is what the warning is for."""

    def sheared(n: int) -> Mesh:
        vertices, corners = rectangles(np.linspace(0, 900.0, n + 1), np.linspace(0, 900.0, n + 1))
        return Mesh.of(vertices @ np.array([[1.0, 0.0], [np.tan(np.pi / 6), 1.0]]), corners)

    with pytest.warns(SlantedMeshWarning, match="degrees off"):
        coarse = manufactured(sheared(16), 900.0)
    with pytest.warns(SlantedMeshWarning):
        fine = manufactured(sheared(32), 900.0)
    assert sheared(4).nonorthogonality == pytest.approx(30.0, abs=1e-6)
    assert fine > 0.8 * coarse > 0.01


@pytest.mark.parametrize("way", WAYS)
def test_derivatives_are_exact(way, monkeypatch: pytest.MonkeyPatch) -> None:
    """By log-transmissivity and by source, with every kind of condition, by central differences."""
    site = everything()
    monkeypatch.setitem(darcy._networks, site, Network(site, way(site.cells, site.mesh.neighbours)))
    y = fields(site, 2).requires_grad_()
    source = torch.zeros(site.cells, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: darcy.solve(site, a), (y,), eps=1e-6, atol=1e-5, rtol=1e-5)
    # Heads are linear in the source, so the step may be large.
    assert torch.autograd.gradcheck(
        lambda q: darcy.solve(site, y.detach(), q), (source,), eps=10.0, atol=1e-9, rtol=1e-6
    )
    each = torch.zeros(2, site.cells, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q: darcy.solve(site, y.detach(), q), (each,), eps=10.0, atol=1e-9, rtol=1e-6)


def test_derivatives_of_fluxes_through_a_river() -> None:
    site = box(5, 4, wells=2)
    y = fields(site, 1).requires_grad_()

    def river(a: torch.Tensor) -> torch.Tensor:
        return darcy.boundary_fluxes(site, a, darcy.solve(site, a))[..., site.fixed_faces[:2].copy()].sum(-1)

    assert torch.autograd.gradcheck(river, (y,), eps=1e-6, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 8, 67])
def test_a_batch_is_its_rows(batch: int) -> None:
    site = everything(9, 7)
    y = fields(site, batch).requires_grad_()
    loss(site, y).backward()
    for number in range(batch):
        row = y[number].detach().clone().requires_grad_()
        loss(site, row).backward()
        assert torch.allclose(row.grad, y.grad[number], rtol=1e-9, atol=1e-12)


def test_all_ways_to_factor_agree_and_balance() -> None:
    site = everything(12, 10)
    y = fields(site, 5, spread=3.0)
    heads = []
    for way in WAYS:
        net = Network(site, way(site.cells, site.mesh.neighbours))
        heads.append(torch.from_numpy(net.heads(net.solve(y.numpy(), None)).copy()))
    assert all((heads[0] - other).abs().max() < 1e-9 for other in heads[1:])
    assert darcy.imbalance(site, y, heads[0]).max() < 1e-10
    assert torch.equal(heads[0][:, [7, 12]], torch.tensor([[109.0, 111.0]] * 5, dtype=torch.float64))
    wrong = heads[0].clone()
    wrong[:, 20] += 1e-3
    assert darcy.imbalance(site, y, wrong).min() > 1e-7


def test_the_way_to_factor_follows_the_band() -> None:
    narrow, wide, widest = (
        rectangles(np.arange(columns + 1.0), np.arange(rows + 1.0)) for columns, rows in ((40, 4), (70, 70), (135, 135))
    )
    chosen = [type(Network(at_a_corner(Mesh.of(*lines))).by).__name__ for lines in (narrow, wide, widest)]
    assert chosen == [WAYS[-1].__name__ if len(WAYS) > 2 else "Banded", "Banded", "Sparse"]


def at_a_corner(mesh: Mesh) -> Site:
    return Site(mesh=mesh, fixed_faces=np.array([0]), fixed_heads=np.array([RIVER]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch", [1, 5])
def test_sensitivities_are_rows_of_the_jacobian(way, batch: int) -> None:
    site = everything()
    y = fields(site, batch)
    net = Network(site, way(site.cells, site.mesh.neighbours))
    solved = net.solve(y.numpy(), None)
    found = torch.from_numpy(net.sensitivities(solved, batch - 1, np.array([0, 7, 15])))
    whole = torch.autograd.functional.jacobian(lambda a: darcy.solve(site, a), y[-1])
    assert torch.allclose(found, whole[[0, 7, 15]], rtol=1e-10, atol=1e-13)
    assert found[1].abs().max() == 0.0  # a given head depends on nothing
    head, same = darcy.sensitivities(site, y[-1], np.array([0, 7, 15]))
    assert torch.allclose(same, found, rtol=1e-10, atol=1e-13)
    assert torch.allclose(head, darcy.solve(site, y[-1]), rtol=1e-13)
    with pytest.raises(SiteError, match="no cell 99"):
        darcy.sensitivities(site, y[-1], np.array([99]))


def test_the_factors_serve_many_ways_back() -> None:
    site = box(6, 5)
    y = fields(site, 3).requires_grad_()
    head = darcy.solve(site, y)
    first = torch.autograd.grad(head.sum(), y, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(head.sum(), y)[0])


def test_second_derivatives_are_refused_where_they_are_asked_for() -> None:
    site = box(4, 3, wells=2)
    y = fields(site, 1).requires_grad_()
    (first,) = torch.autograd.grad(darcy.solve(site, y).sum(), y, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        (first**2).sum().backward()


def test_precision_and_shape_are_those_of_the_argument() -> None:
    site = box(6, 5)
    y = fields(site, 6)
    exact = darcy.solve(site, y)
    single = darcy.solve(site, y.float().reshape(2, 3, -1))
    assert (single.dtype, single.shape) == (torch.float32, (2, 3, 30))
    assert (single.reshape(6, -1) - exact).abs().max() < 1e-3
    assert darcy.solve(site, y.bfloat16()).dtype == torch.float32
    half = y.float().requires_grad_()
    darcy.solve(site, half).sum().backward()
    assert half.grad.dtype == torch.float32


def test_inflow_is_positive_into_the_aquifer() -> None:
    site = box(6, 5)
    y = fields(site, 1)[0]
    more = torch.zeros(site.cells, dtype=torch.float64)
    more[7] = 300.0
    risen = darcy.solve(site, y, more) - darcy.solve(site, y)
    assert risen.min() > 0
    assert risen.argmax() == 7


def test_what_cannot_be_solved_is_named() -> None:
    site = box(6, 5)
    y = fields(site, 70)
    y[67, 11] = float("nan")
    with pytest.raises(SiteError, match="realisation 67 is nan in cell 11"):
        darcy.solve(site, y)
    y[67, 11] = -400.0
    with pytest.raises(SiteError, match=r"-400\.0 in cell 11"):
        darcy.solve(site, y)
    with pytest.raises(SiteError, match=r"batch x 30 cells.*\(70, 29\)"):
        darcy.solve(site, y[:, :-1])
    source = torch.zeros(3, 30, dtype=torch.float64)
    with pytest.raises(SiteError, match="3 rows of source for 2"):
        darcy.solve(site, y[:2], source)
    source[0, 4] = float("inf")
    with pytest.raises(SiteError, match="source of realisation 0 is inf in cell 4"):
        darcy.solve(site, y[:3], source)


@pytest.mark.parametrize("way", WAYS)
def test_a_contrast_that_float64_cannot_hold_names_realisation_and_cell(way, monkeypatch: pytest.MonkeyPatch) -> None:
    site = box(6, 5)
    monkeypatch.setitem(darcy._networks, site, Network(site, way(site.cells, site.mesh.neighbours)))
    y = fields(site, 3)
    # An island that conducts well behind cells that conduct nothing: cut off, as far as float64 can tell.
    y[1] = -290.0
    y[1, [7, 8]] = 290.0
    with pytest.raises(SiteError, match=r"realisation 1 cannot be solved for, near cell \d+"):
        darcy.solve(site, y)
