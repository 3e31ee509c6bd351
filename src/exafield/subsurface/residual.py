"""How far fields of ln T and head are from the flow equation: at points, and in the finite volumes of a site."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from exafield.subsurface.coordinate import Derivatives
from exafield.subsurface.site import Site


def divergence(log_transmissivity: Derivatives, head: Derivatives) -> Float[Tensor, "batch point"]:
    """div(T grad h) = T (grad ln T . grad h + Laplacian h) at points.

    Args:
        log_transmissivity: with its gradient; T is never differentiated itself.
        head: with gradient and Laplacian.
    """
    if head.laplacian is None:
        raise ValueError("divergence: the head's Laplacian is needed too, take Coordinate.laplacian")
    drift = (log_transmissivity.gradient * head.gradient).sum(-1)
    return log_transmissivity.value.exp() * (drift + head.laplacian)


class FiniteVolumes(nn.Module):
    """The balance of every cell by two-point fluxes, over the sum of its conductances: in metres of head.

    Zero for heads of :func:`exafield.subsurface.darcy.solve`, with the site's own boundary conditions. It says how
    far a head is from what its neighbours ask for, not how far it is from the solution: small residuals add up.

    Args:
        site: mesh and boundary conditions.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        mesh = site.mesh
        outer = mesh.boundary_cells[site.fixed_faces]
        assert site.source is not None
        given, leak = site.source.copy(), np.zeros(site.cells)
        np.add.at(given, mesh.boundary_cells[site.inflow_faces], site.inflows)
        np.add.at(leak, site.leak_cells, site.leak_conductances)
        # Heads as differences from one of the order of the given ones: digits are not lost to altitude.
        self.datum = float(np.concatenate([site.fixed_heads, site.fixed_cell_heads, site.leak_heads]).mean())
        np.add.at(given, site.leak_cells, site.leak_conductances * (site.leak_heads - self.datum))
        for name, index in (
            ("first", mesh.neighbours[:, 0]),
            ("second", mesh.neighbours[:, 1]),
            ("outer", outer),
            ("kept", site.fixed_cells),
        ):
            self.register_buffer(name, torch.tensor(index), persistent=False)
        # In float64, and cast to what comes: single precision spoils differences of heads.
        self._constants = {
            "log_first": np.log(mesh.shapes[:, :1]),
            "log_second": np.log(mesh.shapes[:, 1:]),
            "outer_shape": mesh.boundary_shapes[site.fixed_faces, None],
            "outer_head": site.fixed_heads[:, None] - self.datum,
            "given": given[:, None],
            "leak": leak[:, None],
            "kept_head": site.fixed_cell_heads[:, None] - self.datum,
        }
        self._cast: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}

    def _like(self, values: Tensor) -> dict[str, Tensor]:
        key = values.dtype, values.device
        if key not in self._cast:
            self._cast[key] = {
                name: torch.tensor(value, dtype=values.dtype, device=values.device)
                for name, value in self._constants.items()
            }
        return self._cast[key]

    def forward(
        self, log_transmissivity: Float[Tensor, "batch cell"], head: Float[Tensor, "batch cell"]
    ) -> Float[Tensor, "batch cell"]:
        """Residuals [m]: what has to be added to a cell's head for its balance, all others as they are."""
        constant = self._like(head)
        first, second, outer, kept = (self.get_buffer(name) for name in ("first", "second", "outer", "kept"))
        # The realisation is the last axis inside: gathering and adding then moves whole rows.
        log, drop = log_transmissivity.T.contiguous(), (head.T - self.datum).contiguous()
        one, two = log[first] + constant["log_first"], log[second] + constant["log_second"]
        # ln t = ln p + ln q - ln(p + q): no overflow between the harmonic mean's factors.
        conductance = torch.exp(one + two - torch.logaddexp(one, two))
        flow = conductance * (drop[second] - drop[first])
        edge = log[outer].exp() * constant["outer_shape"]
        inflow = edge * (constant["outer_head"] - drop[outer])
        balance = constant["given"] - constant["leak"] * drop
        balance = balance.index_add(0, first, flow).index_add(0, second, flow, alpha=-1).index_add(0, outer, inflow)
        diagonal = constant["leak"].expand_as(drop)
        diagonal = diagonal.index_add(0, first, conductance).index_add(0, second, conductance)
        residual = balance / diagonal.index_add(0, outer, edge)
        if len(kept):
            residual = residual.index_copy(0, kept, constant["kept_head"] - drop[kept])
        return residual.T
