"""Conditions: what a network is told of how a scan was recorded.

Four numbers, in this order: energy of the beam [eV], convergence semi-angle [rad], thickness of the specimen [A], and
the decimal logarithm of the electrons in each pattern.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

#: In the order in which they stand in a tensor.
NAMES = ("energy", "convergence angle", "thickness", "log10 of electrons per pattern")
#: Electrons per pattern that noiseless patterns count as: with more, noise does not matter (our choice).
NOISELESS = 1e6


def conditions(
    energy: float, convergence_angle: float, thickness: float, dose: float | None = None
) -> Float[Tensor, "4"]:
    """The four numbers of one scan.

    Args:
        energy: of the beam [eV].
        convergence_angle: semi-angle [rad].
        thickness: of the specimen [A].
        dose: electrons per pattern; None for noiseless patterns.
    """
    return torch.tensor([energy, convergence_angle, thickness, log_dose(dose)], dtype=torch.float32)


def log_dose(dose: float | None) -> float:
    """Decimal logarithm of the electrons per pattern."""
    return math.log10(min(dose or NOISELESS, NOISELESS))
