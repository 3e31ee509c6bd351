"""What the sensors of a group see of fields, and what can be compared there."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from exafield.subsurface.site import Site
from exafield.subsurface.sliced import Sliced, nearest_pairs
from exafield.subsurface.snapshots import Snapshots
from exafield.subsurface.transform import Robust


class View(nn.Module):
    """A group's sensors: what they see of fields, on a common scale, and the distance of laws there.

    Args:
        site: of the fields.
        part: snapshots of the group.
        alike: full fields of a law much like theirs, see :class:`exafield.subsurface.sliced.Sliced`.
    """

    def __init__(self, site: Site, part: Snapshots, alike: Snapshots | None = None) -> None:
        super().__init__()
        self.y, self.u = (Robust(part.y, tails=False), Robust(part.u, tails=True))
        for name, cells in (("y_cells", part.y_cells), ("u_cells", part.u_cells)):
            self.register_buffer(name, torch.tensor(cells), persistent=False)
        readings = self._joined(torch.tensor(part.y).float(), torch.tensor(part.u).float())
        drawn = None if alike is None else self.see(torch.tensor(alike.y).float(), torch.tensor(alike.u).float())
        self.sliced = Sliced(readings, neighbours(site, part), drawn)

    def see(self, y: Float[Tensor, "batch cell"], u: Float[Tensor, "batch cell"] | None) -> Tensor:
        """Of fields."""
        at_y, at_u = self.get_buffer("y_cells"), self.get_buffer("u_cells")
        return self._joined(y[:, at_y], u[:, at_u] if u is not None else y[:, at_u])

    def read(self, name: str, batch: Mapping[str, Tensor]) -> Tensor:
        """Of a batch; ln T first."""
        prefix = f"{name}." if name else ""
        found = [batch.get(prefix + key) for key in ("y", "u")]
        count = len(next(values for values in found if values is not None))
        none = self.get_buffer("y_cells").new_zeros(count, 0).float()
        return self._joined(*(none if values is None else values for values in found))

    def _joined(self, y: Tensor, u: Tensor) -> Tensor:
        return torch.cat([self.y(y), self.u(u)], dim=1)


def neighbours(site: Site, part: Snapshots) -> np.ndarray:
    """Pairs of sensors of ln T: cells with a face in common where all are read, else the nearest."""
    if len(part.y_cells) < site.cells:
        return nearest_pairs(site.mesh.centres[part.y_cells])
    position = np.argsort(part.y_cells)
    return np.asarray(position[site.mesh.neighbours])
