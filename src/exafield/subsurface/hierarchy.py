"""Fields in two levels: a coarse one on the whole site, and a fine one in each subdomain that knows the coarse.

The fine fields are filters of one white noise that has a value in every cell of the site: subdomains that share a cell
share its value, so their fields agree where they overlap but for what lies beyond the other's edge. Blending fields
drawn apart would lose up to half the variance there, and cut the correlation across the border. (Our choice: the papers
do not say how subdomains are matched.)
"""

import math
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from exafield.subsurface.partition import Part, Partition
from exafield.subsurface.random_fields import MeshSpectrum, SpectralField

# Modes of the coarse field: few. By Weyl's law their shortest wave is sqrt(4 pi A / modes), 8.7 km at the Hanford Site
# (our choice).
COARSE_MODES = 128
# Where nu starts, of both levels (our choice).
_SMOOTHNESS = 2.5
# Numbers that the coarse noise, and a cell's coarse value, are condensed to on their way into the fine field (our
# choice: a law of two scales needs little).
_HIDDEN = 8
# By which the conditioning's output is scaled, so that it learns that much more slowly than the spectrum, whose rate is
# high for it has three numbers (our choice).
_PACE = 0.1


class FineField(nn.Module):
    """The fine field of a subdomain: a filter of white noise, its amplitude and mean following the coarse field.

    At first nothing follows: conditioning is learnt.

    Args:
        part: the subdomain with its overlap.
        coarse_noise: dimensions of the coarse field's noise.
        coarse_law: mean and standard deviation of the coarse field, which scale what the conditioning sees.
        length: of correlation [m].
        variance: of the fine field.
        modes: of the spectrum; None: as many as cells.

    Attributes:
        cells: their numbers in the whole site.
    """

    cells: Tensor
    analysis: Tensor

    def __init__(
        self,
        part: Part,
        coarse_noise: int,
        coarse_law: tuple[float, float],
        length: float,
        variance: float,
        modes: int | None = None,
    ) -> None:
        super().__init__()
        spectrum = MeshSpectrum.of(part, modes)
        self.field = SpectralField(spectrum, [length], [variance], [_SMOOTHNESS])
        self.field.mean.requires_grad_(False)  # the mean is the coarse field's
        dtype = spectrum.functions.dtype
        self.register_buffer("cells", torch.from_numpy(part.cells), persistent=False)
        # White noise of the cells becomes as many independent normal amplitudes of the modes.
        root = torch.from_numpy(part.areas).sqrt()[:, None]
        self.register_buffer("analysis", spectrum.functions * root, persistent=False)
        self.coarse_law = coarse_law
        self.noise_in = nn.Linear(coarse_noise, _HIDDEN, bias=False, dtype=dtype)
        self.value_in = nn.Linear(1, _HIDDEN, dtype=dtype)
        self.out = nn.Linear(_HIDDEN, 2, bias=False, dtype=dtype)
        nn.init.zeros_(self.out.weight)

    def forward(
        self,
        white: Float[Tensor, "batch cell"],
        coarse: Float[Tensor, "batch cell"],
        noise: Float[Tensor, "batch mode"],
    ) -> Float[Tensor, "batch cell"]:
        """Fine fields.

        Args:
            white: standard normal, of the cells.
            coarse: the coarse field there.
            noise: that made it.
        """
        plain: Tensor = (white @ self.analysis) @ self.field.matrix().T
        mean, std = self.coarse_law
        seen = self.value_in(((coarse - mean) / std)[..., None]) + self.noise_in(noise)[:, None]
        change: Tensor = torch.tanh(_PACE * self.out(torch.tanh(seen)))  # bounded: by a factor e, and by one coarse std
        found: Tensor = plain * change[..., 0].exp() + std * change[..., 1]
        return found

    def kernel(self, rows: Int[Tensor, "row"]) -> Float[Tensor, "row cell"]:
        """What a cell's field takes from the white noise of each cell, scaled to variance 1, without conditioning."""
        taken: Tensor = self.field.matrix()[rows] @ self.analysis.T
        scaled: Tensor = taken / taken.norm(dim=1, keepdim=True)
        return scaled


class Hierarchy(nn.Module):
    """Both levels as one generator of ln T [ln(m2/d)] on the whole site.

    Args:
        partition: into subdomains.
        mean: of the field.
        lengths: of correlation at the start, coarse and fine [m].
        variances: at the start, coarse and fine.
        coarse_modes: of the coarse field; at most a quarter of the cells are taken.
        fine_modes: of each fine field; None: as many as its cells.

    Attributes:
        cells: of all fine fields, one after the other, and
        weights: by which these count.
    """

    cells: Tensor
    weights: Tensor

    def __init__(
        self,
        partition: Partition,
        mean: float,
        lengths: tuple[float, float],
        variances: tuple[float, float],
        *,
        coarse_modes: int = COARSE_MODES,
        fine_modes: int | None = None,
    ) -> None:
        super().__init__()
        self.partition = partition
        modes = max(1, min(coarse_modes, partition.mesh.cells // 4))
        spectrum = MeshSpectrum.of(partition.mesh, modes)
        self.coarse = SpectralField(spectrum, lengths[:1], variances[:1], [_SMOOTHNESS], mean)
        law = mean, math.sqrt(variances[0])
        self.fine = nn.ModuleList(
            FineField(part, modes, law, lengths[1], variances[1], fine_modes) for part in partition.extended
        )
        # Of all fine fields, one after the other.
        self.register_buffer("cells", torch.cat([fine.cells for fine in self.fines()]), persistent=False)
        self.register_buffer("weights", torch.cat(self._balanced()))

    @property
    def noise(self) -> int:
        """Dimensions: those of the coarse noise, then one of each cell."""
        return self.coarse.noise + self.partition.mesh.cells

    def fines(self) -> list[FineField]:
        """The fine generators."""
        return cast(list[FineField], list(self.fine))

    def forward(self, noise: Float[Tensor, "batch all"]) -> Float[Tensor, "batch cell"]:
        """Fields of standard normal noise."""
        first, white = noise[:, : self.coarse.noise], noise[:, self.coarse.noise :]
        coarse = self.coarse(first)
        fine = [made(white[:, made.cells], coarse[:, made.cells], first) for made in self.fines()]
        return self.assembled(coarse, torch.cat(fine, dim=1))

    def assembled(
        self, coarse: Float[Tensor, "batch cell"], fine: Float[Tensor, "batch extended"]
    ) -> Float[Tensor, "batch cell"]:
        """The whole field of its levels.

        Args:
            coarse: field.
            fine: fields of the subdomains with their overlap, one after the other.
        """
        return coarse.index_add(1, self.cells, fine * self.weights)

    @torch.no_grad()
    def _balanced(self) -> list[Float[Tensor, "_"]]:
        """The partition of unity, divided by the standard deviation of what it blends.

        Fields of neighbours are not quite the same, so their mean varies a little less than each. The correlation is
        known from the filters; that at the start is taken, for it is near 1 and its changes are of second order.
        """
        fines, cells = self.fines(), self.partition.mesh.cells
        plain = []
        for field, weights in zip(fines, self.partition.weights, strict=True):
            full = torch.zeros(cells, dtype=field.analysis.dtype)
            full[field.cells] = torch.from_numpy(weights).to(full.dtype)
            plain.append(full)
        place = torch.full((len(fines), cells), -1)
        for number, field in enumerate(fines):
            place[number, field.cells] = torch.arange(len(field.cells))
        variance = sum(full.square() for full in plain)
        assert isinstance(variance, Tensor)
        for a, one in enumerate(fines):
            for b in range(a):
                shared = torch.nonzero((place[a] >= 0) & (place[b] >= 0)).flatten()
                if len(shared):
                    ours = one.kernel(place[a, shared])[:, place[a, shared]]
                    theirs = fines[b].kernel(place[b, shared])[:, place[b, shared]]
                    variance[shared] += 2 * plain[a][shared] * plain[b][shared] * (ours * theirs).sum(1)
        return [full[field.cells] * variance[field.cells].rsqrt() for full, field in zip(plain, fines, strict=True)]
