"""Integrated centre of mass: the potential of a thin specimen from where its patterns' centres of mass lie.

A thin specimen multiplies the wave by exp(i sigma V). The centre of mass of the pattern at probe position x0 is then
exactly theta(x0) = lambda sigma / (2 pi) (|probe|^2 * grad V)(x0), the gradient averaged over the probe. Integrating it
by Fourier transforms gives the potential, seen through the probe's intensity; dividing by the transfer function of an
aberration-free probe takes that away up to the highest frequency that passes, 2 alpha / lambda.
Lazic, Bosch and Lazar, Ultramicroscopy 160, 265 (2016).

A scan that is not periodic is continued by its mirror image: the gradient normal to the edge changes sign there, as the
potential is continued evenly, and no ramp or step arises. That is the least-squares solution with free edges.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from exafield.microscopy.electron import interaction, wavelength


def integrated_centre_of_mass(
    mass: Float[Tensor, "*batch two x y"],
    *,
    step: tuple[float, float],
    energy: float,
    periodic: bool = False,
    convergence_angle: float | None = None,
    strength: float = 1e-2,
    refine: int = 1,
    blur: float = 0.0,
) -> Float[Tensor, "*batch fx fy"]:
    """Projected potential, less its mean [V A].

    Args:
        mass: centre of mass along x and y [rad], see `imaging.centre_of_mass`.
        step: between scan positions [A]. Above lambda / (4 alpha) the scan is too coarse to hold all that the probe
            resolves, and the finest details come out as coarser ones.
        energy: of the beam [eV].
        periodic: whether the scan's edges join, as where it covers whole unit cells.
        convergence_angle: of the probe [rad], to take the probe's width away; None leaves it in.
        strength: of the regularisation when the width is taken away: power of noise over that of the potential, at the
            frequency alpha / lambda. Where there is more noise than potential the result is damped.
        refine: pixels per scan step; they sit in the middle of their part of the step, as the probe in that of its own.
        blur: Gaussian standard deviation of the result [A].
    """
    slope = mass if periodic else _mirrored(mass)
    spectrum = torch.fft.fft2(slope.double())
    qx, qy = (torch.fft.fftfreq(n, d, dtype=torch.float64) for n, d in zip(slope.shape[-2:], step, strict=True))
    qx, qy = qx.to(slope.device)[:, None], qy.to(slope.device)[None]
    square = qx**2 + qy**2
    # grad V = 2 pi theta / (lambda sigma), and 2 pi i q V = grad V for each frequency; the mean is undetermined.
    along = qx * spectrum[..., 0, :, :] + qy * spectrum[..., 1, :, :]
    potential = along / (1j * wavelength(energy) * interaction(energy) * square)
    potential[..., 0, 0] = 0
    if convergence_angle is not None:
        passed = transfer(square.sqrt(), convergence_angle, energy)
        # Noise is white in the centre of mass, and falls as 1 / q^2 in its integral's power.
        noise = strength * (convergence_angle / wavelength(energy)) ** 2 / square.clamp(min=1e-30)
        potential = potential * passed / (passed**2 + noise)
    decay = torch.exp(-2 * (math.pi * blur) ** 2 * square)
    fine = refined(potential * decay, refine)
    return fine[..., : mass.shape[-2] * refine, : mass.shape[-1] * refine].to(mass.dtype)


def transfer(frequency: Float[Tensor, "*shape"], convergence_angle: float, energy: float) -> Float[Tensor, "*shape"]:
    """Fourier transform of an aberration-free probe's intensity: 1 at zero, 0 beyond 2 alpha / lambda."""
    s = (frequency * wavelength(energy) / (2 * convergence_angle)).clamp(max=1)
    return (torch.arccos(s) - s * (1 - s**2).sqrt()) * (2 / math.pi)


def refined(spectrum: Complex[Tensor, "*batch x y"], refine: int) -> Float[Tensor, "*batch fx fy"]:
    """The field of a spectrum on `refine` times as many pixels a side: no new frequencies, the middles of pixels kept.

    Args:
        spectrum: `torch.fft.fft2` of the field on the coarse grid.
        refine: 1 or more.
    """
    if refine < 1:
        raise ValueError(f"refine must be at least 1 pixel per scan step, got {refine}")
    for dim in (-2, -1):
        n = spectrum.shape[dim]
        half = (n + 1) // 2
        shape = list(spectrum.shape)
        shape[dim] = n * refine
        fine = spectrum.new_zeros(shape)
        fine.narrow(dim, 0, half).copy_(spectrum.narrow(dim, 0, half))
        # The highest frequency of an even grid has no sign: between the grid's points it is not known, and left out.
        gone = int(n % 2 == 0 and refine > 1)
        kept = n - half - gone
        fine.narrow(dim, n * refine - kept, kept).copy_(spectrum.narrow(dim, half + gone, kept))
        spectrum = fine * refine
    return middles(spectrum, refine)


def middles(spectrum: Complex[Tensor, "*batch fx fy"], refine: int) -> Float[Tensor, "*batch fx fy"]:
    """The field of a spectrum whose origin is a probe, at the middles of the refine x refine pixels of each probe."""
    for dim in (-2, -1):
        n = spectrum.shape[dim]
        index = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64).to(spectrum.device)
        turn = torch.polar(torch.ones_like(index), 2 * math.pi / n * index * (0.5 - 0.5 * refine))
        spectrum = (spectrum.movedim(dim, -1) * turn).movedim(-1, dim)
    field: Tensor = torch.fft.ifft2(spectrum).real
    return field


def _mirrored(mass: Float[Tensor, "*batch two x y"]) -> Float[Tensor, "*batch two mx my"]:
    """Continued by its mirror image along x and y; the component that the mirror turns round changes sign."""
    for component, dim in ((0, -2), (1, -1)):
        image = mass.flip(dim).clone()
        image[..., component, :, :] *= -1
        mass = torch.cat([mass, image], dim)
    return mass
