"""What lies along straight lines through a field: what tells channels from clouds, as samples of a few numbers."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from exafield.subsurface.mesh import Mesh

# Directions over half a turn, and steps of a cell width along a line (our choice).
DIRECTIONS, STEPS = 8, 16
# A point farther than this from the next centre, in cell widths, is outside the mesh (our choice).
_REACH = 0.8


def nearest(mesh: Mesh, offsets: Float[np.ndarray, "offset 2"]) -> Int[np.ndarray, "cell offset"]:
    """The cell nearest to each cell's centre plus each offset [cell widths]; -1 outside the mesh."""
    cell = math.sqrt(float(np.median(mesh.areas)))
    points = mesh.centres[:, None] + cell * offsets
    distance, found = cKDTree(mesh.centres).query(points.reshape(-1, 2))
    # Where cells are large, their centres are farther apart.
    reach = _REACH * np.sqrt(np.maximum(mesh.areas[found], cell**2))
    return np.where(distance <= reach, found, -1).reshape(points.shape[:2])


class Lines:
    """Lines of cells from every cell in several directions.

    Args:
        mesh: of the fields.
    """

    def __init__(self, mesh: Mesh) -> None:
        angles = math.pi * np.arange(DIRECTIONS) / DIRECTIONS
        way = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        offsets = way[:, None] * np.arange(STEPS + 1)[:, None]
        found = nearest(mesh, offsets.reshape(-1, 2)).reshape(mesh.cells, DIRECTIONS, STEPS + 1)
        self._cells = torch.from_numpy(found).permute(1, 0, 2)
        # How far a line runs before it leaves the mesh.
        self._reach = (self._cells >= 0).long().cumprod(2).sum(2) - 1

    def sample(
        self, fields: Float[Tensor, "batch cell"], direction: int, steps: int, count: int, seed: int
    ) -> Float[Tensor, "line feature"]:
        """Of lines from cells drawn at random: values at both ends and in the middle, the least, and the mean.

        The least value along a line is high only where one body holds it all: that is the linear path function (Lu and
        Torquato, Phys. Rev. A 45 (1992) 922), of which neither mean nor covariance know.

        Args:
            fields: values.
            direction: its number.
            steps: length of the lines [cell widths]; less where the mesh has none so long.
            count: of lines, at most; the same for all fields.
            seed: of the cells they start from.
        """
        reach = self._reach[direction]
        steps = min(steps, int(reach.max()))
        usable = torch.nonzero(reach >= steps)[:, 0]
        chosen = usable[torch.randperm(len(usable), generator=torch.Generator().manual_seed(seed))[:count]]
        cells = self._cells[direction, chosen, : steps + 1].to(fields.device)
        along = fields[:, cells]
        parts = [along[..., 0], along[..., -1], along[..., steps // 2], along.amin(-1), along.mean(-1)]
        return torch.stack(parts, dim=-1).flatten(0, 1)
