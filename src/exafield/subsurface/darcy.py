"""Steady heads of a confined aquifer: div(T grad h) + q = 0, with q positive into the aquifer.

Cell-centred finite volumes with two-point fluxes, exact derivatives by the adjoint. Whatever the precision outside, the
solve is float64. Each realisation needs one factorisation, which the way back uses again.
"""

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from exafield.subsurface.checks import SiteError
from exafield.subsurface.network import Network
from exafield.subsurface.site import Site

_networks: WeakKeyDictionary[Site, Network] = WeakKeyDictionary()


def network(site: Site) -> Network:
    """The site's conductances and the order of its cells; made once."""
    found = _networks.get(site)
    if found is None:
        found = _networks[site] = Network(site)
    return found


def solve(
    site: Site,
    log_transmissivity: Float[Tensor, "*batch cell"] | Float[np.ndarray, "*batch cell"],
    source: Float[Tensor, "*rows cell"] | Float[np.ndarray, "*rows cell"] | None = None,
) -> Float[Tensor, "*batch cell"]:
    """Heads [m] for given transmissivities, differentiable once by both arguments.

    Args:
        site: mesh and boundary conditions.
        log_transmissivity: natural logarithm of m2/d, batch x cell or cell.
        source: inflow into each cell [m3/d] beside that of the site, positive into the aquifer; batch x cell or cell.

    Returns:
        Heads in the precision of `log_transmissivity`, at least float32, on its device.

    Raises:
        SiteError: shapes do not fit, a value is not finite, or a system cannot be solved; names realisation and cell.
    """
    values = _tensor(log_transmissivity)
    _check_shape("log-transmissivity", values, site)
    rows = values.reshape(-1, site.cells)
    more = None
    if source is not None:
        more = _tensor(source)
        _check_shape("source", more, site)
        more = more.reshape(-1, site.cells)
        if len(more) not in (1, len(rows)):
            raise SiteError(f"there are {len(more)} rows of source for {len(rows)} realisations")
        if not bool(torch.isfinite(more).all()):
            row, cell = (int(x) for x in (~torch.isfinite(more)).nonzero()[0])
            raise SiteError(f"source of realisation {row} is {float(more[row, cell])} in cell {cell}")
        more = more.to(torch.float64)
    head: Tensor = _Solve.apply(rows.to(torch.float64), more, network(site))
    precision = values.dtype if values.dtype in (torch.float32, torch.float64) else torch.float32
    return head.to(precision).reshape(values.shape)


def sensitivities(
    site: Site,
    log_transmissivity: Float[Tensor, "cell"] | Float[np.ndarray, "cell"],
    cells: Int[Tensor, "out"] | Int[np.ndarray, "out"],
) -> tuple[Float[Tensor, "cell"], Float[Tensor, "out cell"]]:
    """Heads [m] of one realisation, and the derivatives of those in some cells by every log-transmissivity.

    One factorisation and one adjoint solve for each of the cells: far cheaper than as many ways back through `solve`.

    Raises:
        SiteError: as `solve`, or there is no such cell.
    """
    values = _tensor(log_transmissivity)
    _check_shape("log-transmissivity", values, site)
    wanted = np.asarray(torch.as_tensor(cells).cpu(), dtype=np.int64)
    outside = np.flatnonzero((wanted < 0) | (wanted >= site.cells))
    if outside.size:
        raise SiteError(f"there is no cell {wanted[outside[0]]}, they are numbered 0..{site.cells - 1}")
    net = network(site)
    solved = net.solve(_array(values.reshape(1, -1).to(torch.float64)), None)
    head = net.heads(solved)[0].copy()
    found = net.sensitivities(solved, 0, wanted)
    return torch.from_numpy(head).to(values.device), torch.from_numpy(found).to(values.device)


def fluxes(
    site: Site, log_transmissivity: Float[Tensor, "*batch cell"], head: Float[Tensor, "*batch cell"]
) -> Float[Tensor, "*batch face"]:
    """Flow through the inner faces [m3/d], positive from the first neighbour to the second; differentiable."""
    first, second = torch.tensor(site.mesh.neighbours.T, device=head.device)
    one, two = (
        log_transmissivity[..., cell] + _like(np.log(shape), head)
        for cell, shape in zip((first, second), site.mesh.shapes.T, strict=True)
    )
    # ln t = ln p + ln q - ln(p + q): no overflow at any transmissivity.
    conductance = torch.exp(one + two - torch.logaddexp(one, two))
    return conductance * (head[..., first] - head[..., second])


def boundary_fluxes(
    site: Site, log_transmissivity: Float[Tensor, "*batch cell"], head: Float[Tensor, "*batch cell"]
) -> Float[Tensor, "*batch boundary"]:
    """Flow through the boundary faces [m3/d], positive into the aquifer; differentiable.

    A quantity of interest is a sum over some of them, such as those along a river: `[..., site.fixed_faces].sum(-1)`.
    """
    faces = torch.tensor(site.fixed_faces, device=head.device)
    cells = torch.tensor(site.mesh.boundary_cells[site.fixed_faces], device=head.device)
    shape = _like(site.mesh.boundary_shapes[site.fixed_faces], head)
    inward = torch.exp(log_transmissivity[..., cells]) * shape * (_like(site.fixed_heads, head) - head[..., cells])
    count = len(site.mesh.boundary_cells)
    given = torch.zeros(count, dtype=head.dtype, device=head.device)
    given[torch.tensor(site.inflow_faces, device=head.device)] = _like(site.inflows, head)
    return given.expand(*head.shape[:-1], count).index_add(-1, faces, inward)


def imbalance(
    site: Site,
    log_transmissivity: Float[Tensor, "*batch cell"],
    head: Float[Tensor, "*batch cell"],
) -> Float[Tensor, "*batch"]:
    """The largest error of a cell's water balance, as a share of all that enters the aquifer.

    Cells with a given head are left out: they take what they need.
    """
    inner, outer = fluxes(site, log_transmissivity, head), boundary_fluxes(site, log_transmissivity, head)
    first, second = torch.tensor(site.mesh.neighbours.T, device=head.device)
    edge = torch.tensor(site.mesh.boundary_cells, device=head.device)
    assert site.source is not None
    own = _like(site.source, head).expand(head.shape)
    leak = torch.tensor(site.leak_cells, device=head.device)
    leaking = _like(site.leak_conductances, head) * (_like(site.leak_heads, head) - head[..., leak])
    net = own.index_add(-1, edge, outer).index_add(-1, second, inner).index_add(-1, first, -inner)
    net = net.index_add(-1, leak, leaking)
    kept = torch.tensor(site.fixed_cells, device=head.device)
    entering = sum(x.clamp(min=0).sum(-1) for x in (own, outer, leaking, net[..., kept].neg()))
    assert isinstance(entering, Tensor)
    return net.index_fill(-1, kept, 0.0).abs().amax(-1) / entering


def _tensor(values: Tensor | Shaped[np.ndarray, "..."]) -> Tensor:
    return values if isinstance(values, Tensor) else torch.tensor(values)  # a copy: a site's arrays are read-only


def _like(values: Shaped[np.ndarray, "..."], other: Tensor) -> Tensor:
    return torch.tensor(values, dtype=other.dtype, device=other.device)


def _check_shape(name: str, values: Tensor, site: Site) -> None:
    if not values.is_floating_point() or values.ndim < 1 or values.shape[-1] != site.cells:
        raise SiteError(
            f"{name} must be floating-point numbers, batch x {site.cells} cells of site {site.name!r}; "
            f"got {values.dtype} of shape {tuple(values.shape)}"
        )


def _array(values: Tensor) -> Float[np.ndarray, "batch cell"]:
    return np.ascontiguousarray(values.detach().cpu().numpy())


class _Solve(torch.autograd.Function):
    """Heads of rows of log-transmissivity; the way back is one more solve with the same factors."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor | None, net: Network) -> Tensor:
        values, more = _array(rows), None if source is None else _array(source)
        ctx.net, ctx.solved = net, []
        ctx.single = more is not None and len(more) < len(values)
        kept = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        head = np.empty_like(values)
        for start in range(0, len(values), net.by.lanes):
            part = slice(start, start + net.by.lanes)
            solved = net.solve(values[part], more if more is None or ctx.single else more[part], start)
            head[part] = net.heads(solved)
            if kept:
                ctx.solved.append(solved)
        if kept:
            ctx.save_for_backward(rows)
        return torch.from_numpy(head).to(rows.device)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (cotangent,) = cotangents
        net: Network = ctx.net
        with torch.no_grad():
            given = _array(cotangent)
            by_log, by_source = np.empty_like(given), np.empty_like(given)
            for start, solved in zip(range(0, len(given), net.by.lanes), ctx.solved, strict=True):
                part = slice(start, start + net.by.lanes)
                by_log[part], by_source[part] = net.back(solved, given[part])
            first, second = torch.from_numpy(by_log).to(cotangent.device), None
            if ctx.needs_input_grad[1]:
                second = torch.from_numpy(by_source).to(cotangent.device)
                second = second.sum(0, keepdim=True) if ctx.single else second
        if torch.is_grad_enabled():  # someone keeps the graph of derivatives: let it say what it cannot do
            (rows,) = ctx.saved_tensors
            first = _Once.apply(first, cotangent, rows)
            second = None if second is None else _Once.apply(second, cotangent, rows)
        return first, second, None


class _Once(torch.autograd.Function):
    """Passes a first derivative on and refuses the second."""

    @staticmethod
    def forward(ctx: Any, derivative: Tensor, cotangent: Tensor, rows: Tensor) -> Tensor:
        return derivative.view_as(derivative)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError(
            "heads have first derivatives only: a gradient penalty or Hessian through darcy.solve is not possible; "
            "detach the heads there, or use darcy.sensitivities for Gauss-Newton"
        )
