"""The law of ln T in a few numbers: what training finds, a run keeps, and an inversion begins with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from exafield.subsurface.average import PREFIX
from exafield.subsurface.posterior import LinearPrior
from exafield.subsurface.random_fields import MeshSpectrum, SpectralField
from exafield.subsurface.site import Site

# Up to so many cells fields have all modes of the mesh; above, so many: what is finer is then left out. Our choice: the
# dense decomposition of 4,000 cells takes ten seconds, and solving then costs more than the modes.
_ALL, _SOME = 4000, 2000


def spectrum(site: Site) -> MeshSpectrum:
    """The modes in which laws of this site are told: all of a small mesh, the smoothest of a large one."""
    return MeshSpectrum.of(site.mesh, None if site.cells <= _ALL else _SOME)


@dataclass(frozen=True)
class Law:
    """A Gaussian law with a Matern spectrum, or with several scales superposed; the same everywhere.

    Args:
        mean: of ln T, T in m2/d.
        variance: of each scale.
        length: of correlation of each scale [m].
        smoothness: nu of each scale.
    """

    mean: float
    variance: tuple[float, ...]
    length: tuple[float, ...]
    smoothness: tuple[float, ...]

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "Law":
        """The law that the state of a trained generator holds, in its average.

        Raises:
            ValueError: it is the state of another kind of generator.
        """
        names = ("mean", "log_variance", "log_length", "log_smoothness")
        missing = [PREFIX + name for name in names if PREFIX + name not in state]
        if missing:
            raise ValueError(
                f"law: the state holds no {missing[0]}: only that of a generator by a spectral filter tells a law in a "
                "few numbers"
            )
        mean, variance, length, smoothness = (state[PREFIX + name].detach().double().cpu() for name in names)
        return cls(float(mean), *(tuple(values.exp().tolist()) for values in (variance, length, smoothness)))

    def field(self, site: Site, dtype: torch.dtype = torch.float64) -> SpectralField:
        """A generator of its fields."""
        return SpectralField(spectrum(site).to(dtype=dtype), self.length, self.variance, self.smoothness, self.mean)

    @torch.no_grad()
    def prior(self, site: Site) -> LinearPrior:
        """What :func:`exafield.subsurface.posterior.infer` begins with."""
        field = self.field(site)
        return LinearPrior(field.mean.detach().expand(site.cells).clone(), field.matrix())

    def lines(self) -> list[str]:
        """In words."""
        told = [f"ln T: mean {self.mean:.3f}, standard deviation {math.sqrt(sum(self.variance)):.3f}"]
        for number, (variance, length, nu) in enumerate(
            zip(self.variance, self.length, self.smoothness, strict=True), start=1
        ):
            scale = f"scale {number}: " if len(self.length) > 1 else ""
            told.append(f"{scale}variance {variance:.3f}, correlation length {length:,.0f} m, smoothness {nu:.2f}")
        return told
