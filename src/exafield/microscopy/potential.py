"""Projected electrostatic potential of atoms, from tabulated electron scattering factors.

Infinite projection: each atom's whole potential lies in the slice that holds its centre. Everything is done in
Fourier space, so atoms sit at their exact positions, not at pixels.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy import constants
from torch import Tensor

from exafield.microscopy.view import View
from exafield.requirement import require
from exafield.suggestion import unknown

Parametrisation = Literal["kirkland", "lobato"]

# h^2 / (2 pi m e) [V A^2]: potential [V A] per scattering factor [A] and area [A^2] (Kirkland 2010, eq. C.4).
VOLTS = constants.h**2 / (2 * np.pi * constants.m_e * constants.e) * 1e20


@cache
def _table() -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = json.loads(files("exafield.microscopy").joinpath("scattering.json").read_text())
    return loaded


def scattering_factor(
    number: int, q: Float[np.ndarray, "..."], parametrisation: Parametrisation = "kirkland"
) -> Float[np.ndarray, "..."]:
    """Electron scattering factor [A] of a neutral atom at spatial frequency `q` [1/A] (first Born approximation).

    kirkland: f(q) = sum_3 a/(q^2+b) + sum_3 c exp(-d q^2), E. J. Kirkland, Advanced Computing in Electron
    Microscopy, 2nd ed. (2010), appendix C; Z = 1..98. lobato: f(q) = sum_5 a (2+b q^2)/(1+b q^2)^2, I. Lobato and
    D. Van Dyck, Acta Cryst. A70, 636 (2014); Z = 1..103.

    Raises:
        ValueError: no such parametrisation, or the element is not tabulated.
    """
    if parametrisation not in ("kirkland", "lobato"):
        raise ValueError(unknown("parametrisation", str(parametrisation), ("kirkland", "lobato")))
    symbol = require("ase.data", extra="microscopy").chemical_symbols[number]
    row = _table()[parametrisation].get(symbol)
    if row is None:
        raise ValueError(f"element {symbol} (Z = {number}) is not tabulated by {parametrisation}")
    square = np.asarray(q, dtype=float)[..., None] ** 2
    coefficients = [np.array(part) for part in row]
    if parametrisation == "kirkland":
        a, b, c, d = coefficients
        return np.asarray((a / (square + b)).sum(-1) + (c * np.exp(-d * square)).sum(-1))
    a, b = coefficients
    return np.asarray((a * (2 + b * square) / (1 + b * square) ** 2).sum(-1))


@dataclass(frozen=True)
class Slices:
    """Projected potential of one lateral cell, slice by slice.

    Args:
        potential: of the distinct slices [V A].
        order: which distinct slice comes at each depth.
        cell: lateral edges [A].
        thickness: of each slice [A].
    """

    potential: Float[Tensor, "distinct x y"]
    order: tuple[int, ...]
    cell: tuple[float, float]
    thickness: float

    @property
    def sampling(self) -> tuple[float, float]:
        """Pixel size [A]."""
        return self.cell[0] / self.potential.shape[1], self.cell[1] / self.potential.shape[2]

    @property
    def projected(self) -> Float[Tensor, "x y"]:
        """The whole specimen's projected potential [V A]."""
        return torch.stack([self.potential[i] for i in self.order]).sum(0)

    def tiled(self, repeats: tuple[int, int]) -> Float[Tensor, "slice x y"]:
        """Every slice in depth order, the cell repeated laterally [V A]."""
        return torch.stack([self.potential[i] for i in self.order]).tile((1, *repeats))


def projected_slices(
    view: View,
    *,
    sampling: float = 0.125,
    slice_thickness: float = 2.0,
    thickness: float = 40.0,
    b_factor: float = 0.6,
    parametrisation: Parametrisation = "kirkland",
) -> Slices:
    """Cuts a view into slices and projects the potential of each.

    Args:
        sampling: largest pixel [A]; the grid divides the cell into a whole number of pixels.
        slice_thickness: wanted thickness [A]; the cell is cut into the nearest whole number of slices.
        thickness: of the specimen [A], to the nearest slice.
        b_factor: Debye-Waller factor B of every atom [A^2]; smears the potential by exp(-B q^2 / 4).
        parametrisation: of the scattering factors.
    Raises:
        ValueError: a length is not positive, or an element is not tabulated.
    """
    for name, value in (("sampling", sampling), ("slice_thickness", slice_thickness), ("thickness", thickness)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0 A, got {value}")
    if b_factor < 0:
        raise ValueError(f"b_factor must not be negative, got {b_factor} A^2")
    a, b, c = view.edges
    shape = (_fast_length(a / sampling), _fast_length(b / sampling))
    count = max(1, round(c / slice_thickness))
    depth = c / count
    # An atom on a boundary belongs to the slice that begins there, whatever the rounding of its coordinate.
    owner = np.floor((view.positions[:, 2] + 1e-6) % 1.0 * count).astype(int)
    distinct = [_projected(view, owner == index, shape, (a, b), b_factor, parametrisation) for index in range(count)]
    total = max(1, round(thickness / depth))
    order = tuple(i % count for i in range(total))
    return Slices(torch.from_numpy(np.stack(distinct)), order, (a, b), depth)


def _projected(
    view: View,
    chosen: np.ndarray,
    shape: tuple[int, int],
    cell: tuple[float, float],
    b_factor: float,
    parametrisation: Parametrisation,
) -> np.ndarray:
    """Projected potential of some of a view's atoms [V A]."""
    h, k = (np.fft.fftfreq(n, 1 / n) for n in shape)
    q = np.hypot(h[:, None] / cell[0], k[None] / cell[1])
    total = np.zeros(shape, dtype=complex)
    for number in np.unique(view.numbers[chosen]):
        x, y = view.positions[chosen & (view.numbers == number), :2].T
        phases = np.exp(-2j * np.pi * np.outer(h, x)) @ np.exp(-2j * np.pi * np.outer(y, k))
        total += scattering_factor(int(number), q, parametrisation) * phases
    total *= VOLTS / (cell[0] * cell[1]) * np.exp(-b_factor * q**2 / 4)
    return np.asarray(np.fft.ifft2(total).real * shape[0] * shape[1])


def _fast_length(least: float) -> int:
    """The smallest even length of at least `least` with no prime factor above 5, for which FFTs are fast."""
    length = 2 * int(np.ceil(least / 2 - 1e-9))
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 2
