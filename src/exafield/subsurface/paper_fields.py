"""Generators of ln T and head, and the third that the flow equation makes of them."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from exafield.subsurface import darcy
from exafield.subsurface.coordinate import Coordinate
from exafield.subsurface.residual import FiniteVolumes, divergence
from exafield.subsurface.separable import Separable
from exafield.subsurface.site import Site


class Collocation(nn.Module):
    """Sensors anywhere; the residual is factor x div(T grad h) at points, as in arXiv:1811.02033.

    Args:
        y, u: generators of ln T and head.
        factor: of the divergence: -1 makes the residual the source, positive into the aquifer.
    """

    def __init__(self, y: Coordinate | Separable, u: Coordinate | Separable, factor: float = -1.0) -> None:
        super().__init__()
        self.y, self.u, self.factor, self.noise = y, u, factor, _noise(y, u)

    def read(self, noise: Float[Tensor, "batch noise"], places: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Readings (batch, sensor) of each quantity at its places."""
        found = {key: getattr(self, key).at(noise, places[key]) for key in ("y", "u") if key in places}
        if "f" in places:
            points = places["f"]
            found["f"] = self.factor * divergence(self.y.gradient(noise, points), self.u.laplacian(noise, points))
        return found

    def positions(self, places: Tensor) -> Tensor:
        """Of sensors (sensor, dimension)."""
        return places

    def checks(self, noise: Tensor) -> dict[str, float]:
        """What can be said of generated fields without a test: nothing, a solution is not at hand."""
        return {}


class Cells(nn.Module):
    """Sensors in the cells of a site; the residual is that of finite volumes [m], with the site's boundary conditions.

    Args:
        site: mesh and boundary conditions.
        y, u: generators of ln T and head in all cells.
    """

    def __init__(self, site: Site, y: nn.Module, u: nn.Module) -> None:
        super().__init__()
        self.site, self.y, self.u, self.noise = site, y, u, _noise(y, u)
        self.volumes = FiniteVolumes(site)

    def read(self, noise: Float[Tensor, "batch noise"], places: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Readings (batch, sensor) of each quantity in its cells."""
        whole = {key: getattr(self, key)(noise) for key in ("y", "u") if key in places or "f" in places}
        if "f" in places:
            whole["f"] = self.volumes(whole["y"], whole["u"])
        return {key: whole[key][:, cells] for key, cells in places.items()}

    def positions(self, places: Tensor) -> Tensor:
        """Of cells (sensor, 2) [m]."""
        return torch.from_numpy(np.array(self.site.mesh.centres))[places.cpu()]

    @torch.no_grad()
    def checks(self, noise: Tensor) -> dict[str, float]:
        """`head_apart`: rms difference [m] of generated heads from those solved for the generated ln T.

        A small residual does not bound it, since the errors of cells add up.
        """
        solved = darcy.solve(self.site, self.y(noise))
        return {"head_apart": float((self.u(noise) - solved).square().mean().sqrt())}


#: Both read sensors of generated fields.
Fields = Collocation | Cells


def _noise(y: object, u: object) -> int:
    noises = [getattr(generator, "noise", None) for generator in (y, u)]
    if noises[0] != noises[1] or not isinstance(noises[0], int):
        raise ValueError(
            f"generators of ln T and head share one noise, but have {noises[0]} and {noises[1]} dimensions"
        )
    return noises[0]
