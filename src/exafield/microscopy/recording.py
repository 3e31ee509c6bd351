"""From ideal patterns to recorded ones: source size, detector blur, noise and dead pixels, and the repair of these.

Patterns are (..., x, y, kx, ky), shares of the incident electrons unless said. Everything random takes a generator.
"""

import math
import warnings

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def source_blur(
    patterns: Float[Tensor, "*batch x y kx ky"], width: float, step: tuple[float, float], *, periodic: bool = False
) -> Float[Tensor, "*batch x y kx ky"]:
    """Patterns of an extended, incoherent source: each a Gaussian mean over the probe positions around it.

    Args:
        patterns: of a scan whose steps are well below the width, or of a periodic one at complete sampling.
        width: standard deviation of the source's image on the specimen [A]; its full width at half maximum is 2.355 of
            these.
        step: between scan positions [A].
        periodic: whether the scan's edges join; otherwise positions outside of it are left out of the mean.
    """
    _length("width", width)
    x, y = (_smoothing(n, width / d, periodic).to(patterns) for n, d in zip(patterns.shape[-4:-2], step, strict=True))
    return torch.einsum("ax,by,...xykl->...abkl", x, y, patterns)


def _smoothing(count: int, width: float, periodic: bool) -> Float[Tensor, "n n"]:
    """Row i: weights of all positions in the mean at i; width in steps."""
    if width == 0:
        return torch.eye(count, dtype=torch.float64)
    index = torch.arange(count, dtype=torch.float64)
    distance = index[:, None] - index
    if periodic:
        q = torch.fft.fftfreq(count, dtype=torch.float64)
        kernel: Tensor = torch.fft.ifft(torch.exp(-2 * (math.pi * width * q) ** 2)).real
        return kernel[(distance % count).long()]
    weights = torch.exp(-(distance**2) / (2 * width**2))
    return weights / weights.sum(1, keepdim=True)


def detector_blur(patterns: Float[Tensor, "*batch kx ky"], width: float) -> Float[Tensor, "*batch kx ky"]:
    """Patterns after the detector's point spread, a Gaussian; what leaves over the edge is lost.

    Args:
        width: standard deviation [pixels]; of electrons that land anywhere in a pixel.
    """
    _length("width", width)
    if width == 0:
        return patterns.clone()
    x, y = (_spread(n, width).to(patterns) for n in patterns.shape[-2:])
    return torch.einsum("ak,bl,...kl->...ab", x, y, patterns)


def _spread(count: int, width: float) -> Float[Tensor, "n n"]:
    index = torch.arange(count, dtype=torch.float64)
    distance = (index[:, None] - index) / (width * math.sqrt(2))
    half = 0.5 / (width * math.sqrt(2))
    weights: Tensor = (torch.erf(distance + half) - torch.erf(distance - half)) / 2
    return weights


def electrons_per_pattern(dose: float, step: tuple[float, float]) -> float:
    """Electrons in each pattern at a dose [electrons / A^2], for a scan with this step [A]."""
    if not (math.isfinite(dose) and dose > 0):
        raise ValueError(f"dose must be above 0 electrons / A^2, got {dose}")
    return dose * step[0] * step[1]


def counted(
    patterns: Float[Tensor, "*shape"], electrons: float, generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """Whole electrons, at random (Poisson), divided by the electrons per pattern: the shares as they would be counted.

    Args:
        patterns: shares of the incident electrons; negative ones (of interpolation) count as none.
        electrons: per pattern that meet the specimen.
        generator: of the noise, on the patterns' device.
    """
    if not (math.isfinite(electrons) and electrons > 0):
        raise ValueError(f"electrons per pattern must be above 0, got {electrons}")
    return torch.poisson(patterns.clamp(min=0) * electrons, generator=generator) / electrons


def uniform_noise(
    patterns: Float[Tensor, "*batch x y kx ky"], amount: float, generator: torch.Generator | None = None
) -> Float[Tensor, "*batch x y kx ky"]:
    """(1 - a) x + a u, with u uniform between 0 and the largest value of the scan.

    The noise with which Laanait et al. (arXiv 1909.11150) augmented their data; a was drawn up to 0.2 there.

    Args:
        amount: a, between 0 and 1.
    """
    if not 0 <= amount <= 1:
        raise ValueError(f"amount of uniform noise must be between 0 and 1, got {amount}")
    largest = patterns.amax((-4, -3, -2, -1), keepdim=True)
    noise = torch.rand(patterns.shape, generator=generator, dtype=patterns.dtype, device=patterns.device)
    return (1 - amount) * patterns + amount * largest * noise


def dead_pixels(pixels: int, share: float, generator: torch.Generator | None = None) -> Bool[Tensor, "kx ky"]:
    """A detector with a share of its pixels dead, at random."""
    if not 0 <= share < 1:
        raise ValueError(f"share of dead pixels must be in [0, 1), got {share}")
    count = round(share * pixels**2)
    dead = torch.zeros(pixels**2, dtype=torch.bool)
    dead[torch.randperm(pixels**2, generator=generator)[:count]] = True
    return dead.view(pixels, pixels)


def repair(scan: Float[Tensor, "x y kx ky"], dead: Bool[Tensor, "kx ky"] | None = None) -> Float[Tensor, "x y kx ky"]:
    """The scan with dead pixels and values that are no numbers replaced by the median of their neighbours.

    Neighbours are those on the detector, in the same pattern: the eight around, or where all of these are bad the 24.
    How many were replaced is warned of.

    Args:
        scan: intensities.
        dead: detector pixels to replace in every pattern; `survey` finds them in a file.

    Raises:
        ValueError: more than half of the values are bad, or some have no good neighbour.
    """
    bad = ~torch.isfinite(scan)
    missing = int(bad.sum())
    touched = int(bad.flatten(2).any(2).sum())
    gone = 0 if dead is None else int(dead.sum())
    if dead is not None:
        bad |= dead.to(scan.device)
    if not bad.any():
        return scan
    if bad.float().mean() > 0.5:
        raise ValueError(
            f"{int(bad.sum())} of {bad.numel()} values of the scan are dead or no numbers: too many to repair; check "
            "how the file was written and read"
        )
    mended = scan.clone()
    left = bad.nonzero()
    for reach in (1, 2):
        mended[tuple(left.T)] = _median_around(scan, bad, left, reach)
        left = left[~torch.isfinite(mended[tuple(left.T)])]
        if len(left) == 0:
            break
    if len(left):
        x, y, k, m = left[0].tolist()
        raise ValueError(
            f"{len(left)} values have no good neighbour within two pixels, the first at pixel ({k}, {m}) of pattern "
            f"({x}, {y}): the detector has a larger gap; crop it, or fill it before"
        )
    parts = []
    if gone:
        parts.append(f"{gone} dead detector pixels")
    if missing:
        parts.append(f"{missing} values that are no numbers, in {touched} of {scan.shape[0] * scan.shape[1]} patterns,")
    warnings.warn(f"{' and '.join(parts)} were replaced by the median of their neighbours", stacklevel=2)
    return mended


def _median_around(
    scan: Float[Tensor, "x y kx ky"], bad: Bool[Tensor, "x y kx ky"], places: Tensor, reach: int
) -> Float[Tensor, "place"]:
    steps = torch.arange(-reach, reach + 1, device=scan.device)
    k, m = (g.flatten() for g in torch.meshgrid(places[:, 2].new_tensor(0) + steps, steps, indexing="ij"))
    at_k, at_m = places[:, 2:3] + k, places[:, 3:4] + m
    outside = (at_k < 0) | (at_k >= scan.shape[2]) | (at_m < 0) | (at_m >= scan.shape[3])
    index = (places[:, :1], places[:, 1:2], at_k.clamp(0, scan.shape[2] - 1), at_m.clamp(0, scan.shape[3] - 1))
    values = scan[index].masked_fill(outside | bad[index], math.nan)
    return values.nanmedian(dim=1).values


def _length(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be zero or positive, got {value}")
