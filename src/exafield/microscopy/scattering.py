"""Electron scattering factors of the elements, in two published parametrisations.

q = 2 sin(theta) / lambda is the length of the scattering vector [1/A], f_e is in [A], potentials are in volts.
The numbers are in scattering.json; NOTICE says where they come from.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy import constants
from scipy.special import k0, k1

Parametrisation = Literal["kirkland", "lobato"]

# h^2 / (2 pi m e): turns a scattering factor [A] into the Fourier transform of the potential [V A^3] (CODATA).
POTENTIAL = constants.h**2 / (2 * np.pi * constants.m_e * constants.e) * 1e20
# Bohr radius [A].
BOHR = constants.value("Bohr radius") * 1e10


@cache
def _table(name: Parametrisation) -> tuple[tuple[str, Float[np.ndarray, "row term"]], ...]:
    text = files("exafield.microscopy").joinpath("scattering.json").read_text()
    return tuple((symbol, np.array(rows)) for symbol, rows in json.loads(text)[name].items())


@cache
def symbols() -> tuple[str, ...]:
    """Chemical symbols by atomic number: hydrogen is symbols()[1], the last one is 103."""
    return ("", *(symbol for symbol, _ in _table("lobato")))


def _parameters(number: int, parametrisation: Parametrisation) -> Float[np.ndarray, "row term"]:
    if parametrisation not in get_args(Parametrisation):
        raise ValueError(f"parametrisation must be one of {get_args(Parametrisation)}, got {parametrisation!r}")
    if not 1 <= number < len(symbols()):
        raise ValueError(f"scattering factors are known for atomic numbers 1..{len(symbols()) - 1}, not {number}")
    return _table(parametrisation)[number - 1][1]


def scattering_factor(
    number: int, q: Float[np.ndarray, "*shape"], parametrisation: Parametrisation = "kirkland"
) -> Float[np.ndarray, "*shape"]:
    """Electron scattering factor of a free neutral atom in the first Born approximation, at rest mass.

    kirkland: sum a / (q^2 + b) + c exp(-d q^2), Kirkland, Advanced Computing in Electron Microscopy, 2nd ed., App. C.
    lobato: sum a (2 + b q^2) / (1 + b q^2)^2, Lobato and Van Dyck, Acta Cryst. A70, 636 (2014).

    Args:
        number: atomic number, 1..103.
        q: length of the scattering vector [1/A].
        parametrisation: "kirkland" or "lobato".

    Returns:
        f_e [A].
    """
    square = np.asarray(q, dtype=float)[..., None] ** 2
    rows = _parameters(number, parametrisation)
    if parametrisation == "kirkland":
        a, b, c, d = rows
        terms = a / (square + b) + c * np.exp(-d * square)
    else:
        a, b = rows
        terms = a * (2 + b * square) / (1 + b * square) ** 2
    return np.asarray(terms.sum(-1))


def projected_potential(
    number: int, radius: Float[np.ndarray, "*shape"], parametrisation: Parametrisation = "kirkland"
) -> Float[np.ndarray, "*shape"]:
    """Potential of an atom at rest, integrated along the beam, in closed form (modified Bessel functions, Gaussians).

    The two-dimensional Fourier transform of `scattering_factor`; it diverges logarithmically at the nucleus.

    Args:
        number: atomic number, 1..103.
        radius: distance from the nucleus in the plane [A], positive.
        parametrisation: "kirkland" or "lobato".

    Returns:
        projected potential [V A].
    """
    r = np.asarray(radius, dtype=float)[..., None]
    rows = _parameters(number, parametrisation)
    if parametrisation == "kirkland":
        a, b, c, d = rows
        terms = 2 * np.pi * a * k0(2 * np.pi * r * np.sqrt(b)) + np.pi * c / d * np.exp(-((np.pi * r) ** 2) / d)
    else:
        a, b = rows
        beta = 1 / np.sqrt(b)
        argument = 2 * np.pi * beta * r
        terms = 2 * np.pi * a * beta**2 * (k0(argument) + np.pi * beta * r * k1(argument))
    return np.asarray(POTENTIAL * terms.sum(-1))
