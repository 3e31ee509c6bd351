"""A critic of whole fields on an unstructured mesh: convolutions over stencils of cells, at three scales."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from exafield.subsurface.lines import nearest
from exafield.subsurface.mesh import Mesh

# Spacing of the 3 x 3 stencil in each layer, in cell widths, and channels (our choice): it sees 15 cells across.
_SPACINGS, _CHANNELS = (1, 2, 4), (8, 16, 16)


class ImageCritic(nn.Module):
    """Scores fields: higher for training images than for generated ones.

    The same weights everywhere, since laws are stationary, and the mean over cells of what they find, as in PatchGAN
    (Isola et al., arXiv:1611.07004). Smooth, as the gradient penalty needs.

    Args:
        mesh: of the fields.
        offset, scale: of ln T, for inputs about 1.
    """

    def __init__(self, mesh: Mesh, offset: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        lattice = np.array([[x, y] for y in (-1, 0, 1) for x in (-1, 0, 1)], dtype=float)
        self.convolutions = nn.ModuleList()
        before = 2  # the value, and a 1 that is 0 outside the mesh
        for number, (spacing, after) in enumerate(zip(_SPACINGS, _CHANNELS, strict=True)):
            # What is outside is one more cell, of zeros.
            cells = nearest(mesh, spacing * lattice) % (mesh.cells + 1)
            self.register_buffer(f"cells_{number}", torch.from_numpy(cells), persistent=False)
            self.convolutions.append(nn.Linear(9 * before, after))
            before = after
        self.head = nn.Sequential(nn.Linear(before, 2 * before), nn.SiLU(), nn.Linear(2 * before, 1))
        self._offset, self._scale = offset, scale

    def forward(self, fields: Float[Tensor, "batch cell"]) -> Float[Tensor, "batch 1"]:
        """Scores."""
        values = (fields - self._offset) / self._scale
        x = torch.stack([values, torch.ones_like(values)], dim=2)
        for number, layer in enumerate(self.convolutions):
            padded = nn.functional.pad(x, (0, 0, 0, 1))
            x = nn.functional.silu(layer(padded[:, self.get_buffer(f"cells_{number}")].flatten(2)))
        score: Tensor = self.head(x.mean(1))
        return score
