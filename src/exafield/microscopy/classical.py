"""What is done without learning: the classical reconstructions, on the same scans as the network.

Both assume a thin specimen. Their regularisation follows from the electrons counted: noise over signal, frequency by
frequency (Wiener's filter).
"""

import math

from jaxtyping import Float
from torch import Tensor

from exafield.microscopy.electron import wavelength
from exafield.microscopy.imaging import centre_of_mass
from exafield.microscopy.phase import integrated_centre_of_mass
from exafield.microscopy.ptychography import single_side_band

#: Names of the reconstructions.
INTEGRATED, SIDE_BAND = "integrated centre of mass", "single-side-band ptychography"
# Standard deviation of the phase that the regularisation reckons with [rad], about that of 10 A of crystal at 200 keV:
# thicker ones are no weak phase objects, and are not found better with less of it.
_PHASE = 0.12
# The reconstructions' errors beyond noise, in their own units of strength. These two and the shares of the noise below
# are near the best of benchmarks/classical.py, chosen on its validation crystals, at every dose and thickness there.
_FLOOR = {INTEGRATED: 1e-4, SIDE_BAND: 5e-3}


def classical(
    scan: Float[Tensor, "batch x y kx ky"],
    conditions: Float[Tensor, "batch 4"],
    *,
    step: float = 0.5,
    refine: int = 4,
    blur: float = 0.2,
    reach: float = 1.6,
    factor: float = 1.0,
) -> dict[str, Float[Tensor, "batch fx fy"]]:
    """Projected potentials, less their means [V A], by name of the method.

    Args:
        scan: square roots of counts over the electrons per pattern, as a network gets them; windows with free edges.
        conditions: of each scan, see conditions.py.
        step: between scan positions [A].
        refine: pixels per scan step.
        blur: Gaussian standard deviation of the potential wanted [A].
        reach: half the detector's width in convergence angles.
        factor: multiplies the regularisation.
    """
    found = {
        name: scan.new_zeros(len(scan), *(n * refine for n in scan.shape[1:3])) for name in (INTEGRATED, SIDE_BAND)
    }
    for told in conditions[:, [0, 1, 3]].unique(dim=0):
        same = (conditions[:, [0, 1, 3]] == told).all(1)
        energy, angle, electrons = (float(value) for value in told)
        patterns = scan[same].square()
        # Noise per signal: resolved areas in a scan step, per electron and variance of the phase.
        noise = math.pi * (step * angle / wavelength(energy)) ** 2 / (_PHASE**2 * 10**electrons)
        found[INTEGRATED][same] = integrated_centre_of_mass(
            centre_of_mass(patterns, reach * angle),
            step=(step, step),
            energy=energy,
            convergence_angle=angle,
            strength=factor * (0.3 * noise + _FLOOR[INTEGRATED]),
            refine=refine,
            blur=blur,
        )
        found[SIDE_BAND][same] = single_side_band(
            patterns,
            step=(step, step),
            energy=energy,
            convergence_angle=angle,
            half_angle=reach * angle,
            strength=factor * (4 * noise + _FLOOR[SIDE_BAND]),
            refine=refine,
            blur=blur,
        )
    return found
