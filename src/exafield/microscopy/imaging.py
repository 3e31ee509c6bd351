"""Virtual detectors: the images that a scanning microscope shows, cut from the patterns of a scan.

Patterns are (x, y, kx, ky), the beam in the middle of a square detector of half width `half_angle` [rad], in any unit
of intensity; images are shares of the intensity recorded, or angles [rad]. Pixels that a detector's edge divides count
in part.
"""

import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

# Points along a side of a pixel that tell how much of it lies within a ring; our choice.
_SUBPIXELS = 8


def angles(pixels: int, half_angle: float) -> Float[Tensor, "k"]:
    """Scattering angle at the middle of each pixel along one side [rad]."""
    middles: Tensor = ((torch.arange(pixels, dtype=torch.float64) + 0.5) / pixels * 2 - 1) * half_angle
    return middles


def ring(pixels: int, half_angle: float, inner: float, outer: float) -> Float[Tensor, "k l"]:
    """Share of each pixel whose scattering angle is in [inner, outer) [rad]."""
    if not 0 <= inner < outer:
        raise ValueError(f"a ring needs 0 <= inner < outer [rad], got {inner} and {outer}")
    fine = angles(pixels * _SUBPIXELS, half_angle)
    angle = torch.hypot(fine[:, None], fine[None])
    inside = ((angle >= inner) & (angle < outer)).float()
    share: Tensor = inside.unflatten(1, (pixels, _SUBPIXELS)).unflatten(0, (pixels, _SUBPIXELS)).mean((1, 3))
    return share


def annular(
    scan: Float[Tensor, "*batch x y kx ky"], half_angle: float, inner: float, outer: float = math.inf
) -> Float[Tensor, "*batch x y"]:
    """Share of the recorded electrons that an annular detector collects.

    Args:
        scan: intensities.
        half_angle: at the edge of the detector [rad].
        inner, outer: of the ring [rad]; by default it ends with the detector, corners included.
    """
    _check(scan, half_angle)
    weights = ring(scan.shape[-1], half_angle, inner, outer).to(scan)
    return torch.einsum("...kl,kl->...", scan, weights) / _incident(scan)[..., None, None]


def bright_field(
    scan: Float[Tensor, "*batch x y kx ky"], half_angle: float, convergence_angle: float
) -> Float[Tensor, "*batch x y"]:
    """The inner half (of the radius) of the bright-field disc."""
    return annular(scan, half_angle, 0.0, convergence_angle / 2)


def annular_bright_field(
    scan: Float[Tensor, "*batch x y kx ky"], half_angle: float, convergence_angle: float
) -> Float[Tensor, "*batch x y"]:
    """The outer half (of the radius) of the bright-field disc; shows light columns. Okunishi et al. (2009)."""
    return annular(scan, half_angle, convergence_angle / 2, convergence_angle)


def annular_dark_field(
    scan: Float[Tensor, "*batch x y kx ky"], half_angle: float, convergence_angle: float
) -> Float[Tensor, "*batch x y"]:
    """All that lies outside of the bright-field disc, by a tenth of its radius at least; shows heavy columns."""
    return annular(scan, half_angle, 1.1 * convergence_angle)


def centre_of_mass(scan: Float[Tensor, "*batch x y kx ky"], half_angle: float) -> Float[Tensor, "*batch two x y"]:
    """Mean scattering angle along x and along y [rad]: in thin specimens proportional to the field that deflects."""
    _check(scan, half_angle)
    along_x, along_y = (angles(n, half_angle).to(scan) for n in scan.shape[-2:])
    total = scan.sum((-2, -1)).clamp(min=1e-30)
    x = torch.einsum("...kl,k->...", scan, along_x) / total
    y = torch.einsum("...kl,l->...", scan, along_y) / total
    return torch.stack([x, y], dim=-3)


def differential_phase_contrast(
    scan: Float[Tensor, "*batch x y kx ky"], half_angle: float, convergence_angle: float
) -> Float[Tensor, "*batch two x y"]:
    """Difference of opposite halves of the bright-field disc over their sum, along x and along y.

    What a segmented detector gives. Dekkers and de Lang, Optik 41, 452 (1974).
    """
    _check(scan, half_angle)
    disc = scan * ring(scan.shape[-1], half_angle, 0.0, convergence_angle).to(scan)
    sign_x, sign_y = (angles(n, half_angle).sign().to(scan) for n in scan.shape[-2:])
    total = disc.sum((-2, -1)).clamp(min=1e-30)
    x = torch.einsum("...kl,k->...", disc, sign_x) / total
    y = torch.einsum("...kl,l->...", disc, sign_y) / total
    return torch.stack([x, y], dim=-3)


def images(
    scan: Float[Tensor, "x y kx ky"], half_angle: float, convergence_angle: float
) -> dict[str, Float[Tensor, "x y"]]:
    """All virtual detectors by name; centre of mass [rad] and differential phase contrast along x and y apart."""
    mass = centre_of_mass(scan, half_angle)
    phase = differential_phase_contrast(scan, half_angle, convergence_angle)
    return {
        "bright field": bright_field(scan, half_angle, convergence_angle),
        "annular bright field": annular_bright_field(scan, half_angle, convergence_angle),
        "annular dark field": annular_dark_field(scan, half_angle, convergence_angle),
        "centre of mass x": mass[0],
        "centre of mass y": mass[1],
        "differential phase contrast x": phase[0],
        "differential phase contrast y": phase[1],
    }


def plot(
    path: str | Path,
    scan: Float[Tensor, "x y kx ky"],
    *,
    step: tuple[float, float],
    half_angle: float,
    convergence_angle: float,
    title: str = "",
) -> None:
    """Draws the mean pattern with the detectors' edges, and what each virtual detector shows.

    Args:
        path: of the picture; its ending says the format.
        scan: intensities.
        step: between scan positions [A].
        half_angle, convergence_angle: [rad].
        title: over the picture.
    """
    from matplotlib.figure import Figure

    shown = images(scan.cpu().double(), half_angle, convergence_angle)
    figure = Figure(figsize=(11.0, 5.8), dpi=130, layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    mean = scan.cpu().double().mean((0, 1))
    mrad = 1e3 * half_angle
    axes[0].imshow(mean.T.numpy(), origin="lower", cmap="inferno", extent=(-mrad, mrad, -mrad, mrad))
    turn = torch.linspace(0, 2 * math.pi, 200)
    for radius, style in ((0.5, ":"), (1.0, "-"), (1.1, "--")):
        edge = 1e3 * radius * convergence_angle
        axes[0].plot(
            (edge * turn.cos()).numpy(), (edge * turn.sin()).numpy(), color="white", linewidth=0.8, linestyle=style
        )
    axes[0].set(title="mean pattern, detector edges", xlim=(-mrad, mrad), ylim=(-mrad, mrad))
    # The first probe is at 0, in the middle of its pixel.
    size = tuple(d * edge for d, n in zip(step, scan.shape[:2], strict=True) for edge in (-0.5, n - 0.5))
    for axis, (name, image) in zip(axes[1:], shown.items(), strict=True):
        signed = name[-2:] in (" x", " y")
        scale = 1e3 if name.startswith("centre") else 1.0
        limit = scale * float(image.abs().max()) if signed else None
        drawn = axis.imshow(
            scale * image.T.numpy(),
            origin="lower",
            extent=size,
            cmap="RdBu_r" if signed else "gray",
            vmin=-limit if limit is not None else None,
            vmax=limit,
        )
        axis.set_title(name)
        bar = figure.colorbar(drawn, ax=axis, fraction=0.046, pad=0.02)
        bar.ax.tick_params(labelsize=6)
        bar.set_label("mrad" if scale > 1 else "share of the disc" if signed else "share of the beam", fontsize=7)
    for axis in axes:
        axis.title.set_fontsize(9)
        axis.tick_params(labelsize=7)
        axis.set_xlabel("mrad" if axis is axes[0] else "Å", fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)


def _incident(scan: Float[Tensor, "*batch x y kx ky"]) -> Float[Tensor, "*batch"]:
    """Mean intensity of a pattern: one number for a scan, so that dark columns stay dark."""
    return scan.sum((-2, -1)).mean((-2, -1)).clamp(min=1e-30)


def _check(scan: Float[Tensor, "*batch x y kx ky"], half_angle: float) -> None:
    if not (math.isfinite(half_angle) and 0 < half_angle <= 0.5):
        raise ValueError(f"half_angle must be in (0, 0.5] rad, got {half_angle}; 40 mrad is 0.040")
    if scan.shape[-1] != scan.shape[-2]:
        raise ValueError(f"the detector must be square, but patterns are {scan.shape[-2]} x {scan.shape[-1]} pixels")
