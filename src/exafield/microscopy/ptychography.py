"""Single-side-band ptychography: the potential of a thin specimen from the interference of overlapping discs.

For a weak phase object, exp(i sigma V) ~ 1 + i sigma V, the Fourier transform of the patterns over the probe position
is linear in the potential,

    G(k, q) = i sigma V(q) W(k, q),    W(k, q) = A*(k) A(k - q) - A(k) A*(k + q),

with the probe-forming aperture A, aberrations included: without them W is +1 and -1 in the two regions where the disc
overlaps one of the discs moved by +-q alone, and 0 where it overlaps both. V(q) follows by least squares over the
detector, which adds up both side bands. Rodenburg, McCallum and Nellist, Ultramicroscopy 48, 304 (1993); Pennycook et
al., Ultramicroscopy 151, 160 (2015).

A scan with steps above lambda / (4 alpha) folds several frequencies q onto one. Here they are all unknowns of the same
least-squares problem, as the detector tells them apart: the result reaches 2 alpha / lambda whatever the step, as long
as there are more detector pixels in the disc than frequencies folded. (This extension is ours.)
"""

import math

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from exafield.microscopy.electron import interaction, wavelength
from exafield.microscopy.phase import middles

# Points along a detector's side, and along a pixel's, at which the disc overlaps are looked at, at least; our choice.
_POINTS, _SUBPIXELS = 64, 2
# Numbers per batch of frequencies x points, to bound memory.
_BATCH = {"cpu": 2**22, "cuda": 2**26}


def single_side_band(
    scan: Float[Tensor, "*batch x y kx ky"],
    *,
    step: tuple[float, float],
    energy: float,
    convergence_angle: float,
    half_angle: float,
    periodic: bool = False,
    defocus: float = 0.0,
    cs: float = 0.0,
    strength: float = 1e-2,
    refine: int = 1,
    blur: float = 0.0,
) -> Float[Tensor, "*batch fx fy"]:
    """Projected potential, less its mean [V A].

    Memory: about 32 bytes for each scan position (four times that where not periodic) and detector pixel of the disc.
    Large detectors are better binned first, to some ten pixels across the disc.

    Args:
        scan: intensities in any unit, the beam in the middle; what misses the detector is neglected.
        step: between scan positions [A].
        energy: of the beam [eV].
        convergence_angle: radius of the bright-field disc [rad].
        half_angle: at the edge of the square detector [rad].
        periodic: whether the scan's edges join; otherwise it is continued by its mirror image, patterns mirrored too.
        defocus, cs: of the probe [A], conventions of multislice.py; they are corrected for.
        strength: of the regularisation: frequencies whose overlap regions weigh less than this share of the largest
            weight are damped. More of it for fewer electrons.
        refine: pixels per scan step; they sit in the middle of their part of the step, as the probe in that of its own.
            Frequencies that this grid cannot hold are left out.
        blur: Gaussian standard deviation of the result [A].

    Raises:
        ValueError: the detector does not hold the disc, or the scan is too coarse for the detector's pixels.
    """
    if scan.shape[-1] != scan.shape[-2]:
        raise ValueError(f"the detector must be square, but patterns are {scan.shape[-2]} x {scan.shape[-1]} pixels")
    if convergence_angle > half_angle:
        raise ValueError(
            f"the bright-field disc of {1e3 * convergence_angle:.3g} mrad does not fit on the detector of "
            f"{1e3 * half_angle:.3g} mrad: check both angles"
        )
    if refine < 1:
        raise ValueError(f"refine must be at least 1 pixel per scan step, got {refine}")
    wide = scan if periodic else _mirrored(scan)
    batch, (nx, ny, pixels, _) = wide.shape[:-4], wide.shape[-4:]
    optics = _Optics(pixels, energy, convergence_angle, half_angle, defocus, cs, wide.device)
    share = wide.reshape(-1, nx * ny, pixels**2)
    share = (share / share.sum(-1).mean(-1)[:, None, None].clamp(min=1e-30))[..., optics.bins].to(torch.float64)
    series = torch.fft.fft2(share.unflatten(1, (nx, ny)), dim=(1, 2)).flatten(1, 2) / (nx * ny)
    series[:, 0] -= optics.vacuum

    # Frequencies of the scan, and for each the ones beyond its reach that fold onto it.
    folds = [math.ceil(optics.reach * d - 0.5 + 1e-9) for d in step]
    if (2 * folds[0] + 1) * (2 * folds[1] + 1) > len(optics.bins):
        raise ValueError(
            f"scan steps of {step[0]:.3g} x {step[1]:.3g} A fold {(2 * folds[0] + 1) * (2 * folds[1] + 1)} frequencies "
            f"onto one, more than the {len(optics.bins)} detector pixels of the disc can tell apart: use a finer scan"
        )
    index_x, index_y, half = _frequencies((nx, ny), (folds[0], folds[1]), wide.device)
    fine_x, fine_y = nx * refine, ny * refine
    fine = torch.zeros(len(share), fine_x * fine_y, dtype=torch.complex128, device=wide.device)
    size = _BATCH.get(wide.device.type, _BATCH["cpu"]) // (optics.points * index_x.shape[1])
    floor = strength * optics.largest()
    for rows in half.split(max(1, size)):
        ix, iy = index_x[rows], index_y[rows]
        qx, qy = ix / (nx * step[0]), iy / (ny * step[1])
        near = torch.hypot(qx, qy) < optics.reach
        weights = torch.zeros(*near.shape, len(optics.bins), dtype=torch.complex128, device=wide.device)
        weights[near] = optics.overlap(qx[near], qy[near])
        normal = weights.conj() @ weights.mT
        normal.diagonal(dim1=1, dim2=2).add_(floor)
        right = torch.einsum("nab,snb->sna", weights.conj(), series[:, rows]) / (1j * interaction(energy))
        found = torch.linalg.solve(normal, right[..., None])[..., 0]
        found = found * torch.exp(-2 * (math.pi * blur) ** 2 * (qx**2 + qy**2))
        held = near & (ix.abs() * 2 < fine_x) & (iy.abs() * 2 < fine_y) & ((ix != 0) | (iy != 0))
        ix, iy, found = ix[held], iy[held], found[:, held]
        fine[:, ix % fine_x * fine_y + iy % fine_y] = found
        fine[:, -ix % fine_x * fine_y + -iy % fine_y] = found.conj()
    fine = fine.unflatten(1, (fine_x, fine_y)) * (fine_x * fine_y)
    field = middles(fine, refine)[:, : scan.shape[-4] * refine, : scan.shape[-3] * refine]
    return field.reshape(*batch, *field.shape[1:]).to(scan.dtype)


def _frequencies(
    shape: tuple[int, int], folds: tuple[int, int], device: torch.device
) -> tuple[Int[Tensor, "row fold"], Int[Tensor, "row fold"], Int[Tensor, "half"]]:
    """Indices along x and y of the frequencies that fold onto each one of the scan, which is among them.

    Intensities are real, so a frequency and its negative say the same: the third result has one of each pair.
    """
    nx, ny = shape
    hx, hy = ((torch.arange(n, device=device) + n // 2) % n - n // 2 for n in shape)
    mx, my = (torch.arange(-f, f + 1, device=device) for f in folds)
    every = (nx, ny, len(mx), len(my))
    x = (hx[:, None, None, None] + nx * mx[:, None]).expand(every).reshape(nx * ny, -1)
    y = (hy[:, None, None] + ny * my).expand(every).reshape(nx * ny, -1)
    own = torch.arange(nx * ny, device=device)
    negative = (-(own // ny) % nx) * ny + -(own % ny) % ny
    return x, y, own[own <= negative]


class _Optics:
    """The aperture, and its overlaps with itself on those pixels of the detector that the disc reaches."""

    def __init__(
        self,
        pixels: int,
        energy: float,
        convergence_angle: float,
        half_angle: float,
        defocus: float,
        cs: float,
        device: torch.device,
    ) -> None:
        self._length = wavelength(energy)
        self._radius = convergence_angle / self._length
        self._defocus, self._cs = defocus, cs
        finer = max(_SUBPIXELS, math.ceil(_POINTS / pixels))
        side = torch.arange(pixels * finer, device=device)
        k = ((side + 0.5) / len(side) * 2 - 1).double() * (half_angle / self._length)
        self._spacing = float(k[1] - k[0])
        kx, ky = (g.flatten() for g in torch.meshgrid(k, k, indexing="ij"))
        bins = (side[:, None] // finer * pixels + side // finer).flatten()
        inside = self.pupil(kx, ky) != 0
        if not inside.any():
            raise ValueError(
                f"the bright-field disc of {1e3 * convergence_angle:.3g} mrad lies within one of {pixels} x {pixels} "
                f"pixels over {2e3 * half_angle:.3g} mrad: use a longer camera length or more pixels"
            )
        self._kx, self._ky = kx[inside], ky[inside]
        self._here = self.pupil(self._kx, self._ky)
        #: The pixels (flattened) that the disc reaches, and the share of the beam in each without a specimen.
        self.bins, self._bin = bins[inside].unique(return_inverse=True)
        beam = self._here.abs()
        self._whole = float(beam.sum())
        self.vacuum = beam.new_zeros(len(self.bins)).index_add_(0, self._bin, beam) / self._whole

    @property
    def reach(self) -> float:
        """Highest frequency that leaves a trace [1/A]."""
        return 2 * self._radius

    @property
    def points(self) -> int:
        """At which overlaps are evaluated."""
        return len(self._kx)

    def largest(self) -> float:
        """Largest sum of |W|^2 over the detector along one axis; the unit of the regularisation."""
        q = torch.linspace(0, self.reach, 33, dtype=torch.float64, device=self._kx.device)
        return float(self.overlap(q, torch.zeros_like(q)).abs().square().sum(-1).max())

    def pupil(self, kx: Float[Tensor, "*shape"], ky: Float[Tensor, "*shape"]) -> Complex[Tensor, "*shape"]:
        """A(k): 1 inside the disc, with the phase of the aberrations.

        A point counts by the share of its surroundings inside the disc, so that the number of points matters little.
        """
        square = kx**2 + ky**2
        chi = math.pi * self._length * square * (0.5 * self._cs * self._length**2 * square - self._defocus)
        return torch.polar(((self._radius - square.sqrt()) / self._spacing + 0.5).clamp(0, 1), -chi)

    def overlap(self, qx: Float[Tensor, "q"], qy: Float[Tensor, "q"]) -> Complex[Tensor, "q bin"]:
        """W(k, q) summed over the points of each pixel, in units of the whole disc."""
        dx, dy = qx[:, None], qy[:, None]
        one = self._here.conj() * self.pupil(self._kx - dx, self._ky - dy)
        other = self._here * self.pupil(self._kx + dx, self._ky + dy).conj()
        binned = one.new_zeros(len(qx), len(self.bins))
        return binned.index_add_(1, self._bin, one - other) / self._whole


def _mirrored(scan: Float[Tensor, "*batch x y kx ky"]) -> Float[Tensor, "*batch mx my kx ky"]:
    """Continued by its mirror image along x and y, patterns mirrored as well."""
    for dim in (-4, -3):
        scan = torch.cat([scan, scan.flip(dim, dim + 2)], dim)
    return scan
