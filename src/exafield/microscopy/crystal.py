"""Crystal: lattice, atoms and where they come from; read from CIF files or from the built-in table."""

import warnings
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from exafield.microscopy.scattering import symbols as element_symbols
from exafield.requirement import require

# Atoms closer than this overlap [A]. The shortest bonds without hydrogen are 1.1 A (N2, C-O).
_TOUCHING = 0.7
_SYSTEMS = (
    (2, "triclinic"),
    (15, "monoclinic"),
    (74, "orthorhombic"),
    (142, "tetragonal"),
    (167, "trigonal"),
    (194, "hexagonal"),
    (230, "cubic"),
)
_COMPILATIONS = {
    "W": "Wyckoff, Crystal Structures, 2nd ed. (1963-1965)",
    "V": "Villars and Calvert, Pearson's Handbook of Crystallographic Data, 2nd ed. (1991)",
}


class CrystalError(ValueError):
    """A structure that cannot be used; says which file or crystal and why."""


@dataclass(frozen=True, eq=False)
class Crystal:
    """A unit cell with its atoms.

    Args:
        name: what people call it.
        prototype: structure type: Strukturbericht symbol or name; crystals of one prototype look alike.
        space_group: number, 1..230.
        cell: lattice vectors in rows [A].
        numbers: atomic numbers.
        positions: fractional coordinates of all atoms of the cell.
        reference: where the structure comes from.
    """

    name: str
    prototype: str
    space_group: int
    cell: Float[np.ndarray, "3 3"]
    numbers: Int[np.ndarray, "atom"]
    positions: Float[np.ndarray, "atom 3"]
    reference: str

    def __post_init__(self) -> None:
        if not 1 <= self.space_group <= 230:
            raise CrystalError(f"{self.name}: space group must be 1..230, got {self.space_group}")
        if len(self.numbers) == 0:
            raise CrystalError(f"{self.name}: there are no atoms in the cell")
        if len(self.numbers) != len(self.positions):
            raise CrystalError(f"{self.name}: {len(self.numbers)} atomic numbers but {len(self.positions)} positions")
        if not ((self.numbers >= 1) & (self.numbers < len(element_symbols()))).all():
            raise CrystalError(f"{self.name}: atomic numbers must be 1..{len(element_symbols()) - 1}")
        if not (np.isfinite(self.cell).all() and np.isfinite(self.positions).all()):
            raise CrystalError(f"{self.name}: the cell or an atom position is not a finite number")
        if abs(np.linalg.det(self.cell)) < 1.0:
            raise CrystalError(f"{self.name}: the cell has a volume of {abs(np.linalg.det(self.cell)):.3g} A^3")
        self._check_distances()

    def _check_distances(self) -> None:
        distance, (i, j) = self.nearest()
        if distance < _TOUCHING:
            symbols = self.symbols
            raise CrystalError(
                f"{self.name}: atoms {i} ({symbols[i]}) and {j} ({symbols[j]}) are {distance:.2f} A apart and overlap: "
                "remove duplicates or alternative positions from the file"
            )

    def nearest(self) -> tuple[float, tuple[int, int]]:
        """The shortest distance between two atoms [A], and which they are."""
        shifts = np.array([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)])
        wrapped = self.positions % 1.0
        best, pair = np.inf, (0, 0)
        for i, position in enumerate(wrapped):
            vectors = (wrapped[i:, None] + shifts - position) @ self.cell
            lengths = np.linalg.norm(vectors, axis=-1)
            lengths[0, len(shifts) // 2] = np.inf
            j = int(lengths.min(axis=1).argmin())
            if lengths[j].min() < best:
                best, pair = float(lengths[j].min()), (i, i + j)
        return best, pair

    @property
    def symbols(self) -> list[str]:
        """Chemical symbols of the atoms."""
        return [element_symbols()[n] for n in self.numbers]

    @property
    def formula(self) -> str:
        """Composition of the cell, such as Na4Cl4."""
        unique = dict.fromkeys(self.symbols)
        return "".join(f"{s}{self.symbols.count(s)}" for s in unique)

    @property
    def system(self) -> str:
        """One of the seven crystal systems."""
        return next(name for last, name in _SYSTEMS if self.space_group <= last)

    @property
    def density(self) -> float:
        """Mass density [g/cm^3]."""
        masses = require("ase.data", extra="microscopy").atomic_masses
        # 1.66053906660 g/cm^3 is one dalton per cubic angstrom (CODATA 2018).
        return float(masses[self.numbers].sum() / abs(np.linalg.det(self.cell)) * 1.66053906660)

    @property
    def material(self) -> str:
        """What must not sit in both training and test: reduced composition and space group."""
        counts = {s: self.symbols.count(s) for s in sorted(set(self.symbols))}
        common = np.gcd.reduce(list(counts.values()))
        return "".join(f"{s}{n // common}" for s, n in counts.items()) + f" sg{self.space_group}"


def from_cif(path: str | Path) -> Crystal:
    """Reads a crystal from a CIF file.

    Its prototype is a label of composition, space group and size of the cell, such as "AB2 sg225, 12 atoms": crystals
    of one structure type share it, as far as their files are written in the same cell.

    Partial occupancies are warned of and the main species of each site is kept.

    Raises:
        CrystalError: the file is missing, is no CIF, has no cell or no sites, or atoms overlap; names the file.
    """
    path = Path(path)
    io = require("ase.io.cif", extra="microscopy")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of loops with a token too many: what matters is checked below
            blocks = list(io.parse_cif(str(path)))
    except OSError as error:
        raise CrystalError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:
        raise CrystalError(f"{path}: is not a CIF file ({str(error) or type(error).__name__})") from error
    block = next((b for b in blocks if b.get_cellpar() is not None), None)
    if block is None:
        raise CrystalError(f"{path}: has no unit cell (_cell_length_a ... _cell_angle_gamma)")
    if block.get("_atom_site_fract_x") is None and block.get("_atom_site_cartn_x") is None:
        raise CrystalError(f"{path}: has no atom sites (_atom_site_fract_x, ..._y, ..._z)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            atoms = block.get_atoms(store_tags=False, fractional_occupancies=True)
        except Exception as error:
            raise CrystalError(f"{path}: the structure cannot be built from its sites ({error})") from error
    occupancy = block.get("_atom_site_occupancy")
    if occupancy is not None and any(_number(o) < 0.999 for o in occupancy):
        warnings.warn(
            f"{path}: some sites are only partly occupied; the main species of each is taken as full", stacklevel=2
        )
    number = int(atoms.info["spacegroup"].no) if "spacegroup" in atoms.info else 1
    return _crystal(path.stem, _structure_type(atoms.numbers, number), number, atoms, f"CIF {path.name}")


def _structure_type(numbers: Int[np.ndarray, "atom"], group: int) -> str:
    counts = np.sort(np.unique(numbers, return_counts=True)[1])
    shares = counts // np.gcd.reduce(counts)
    formula = "".join(chr(ord("A") + k) + (str(n) if n > 1 else "") for k, n in enumerate(shares))
    return f"{formula} sg{group}, {len(numbers)} atoms"


def _number(value: object) -> float:
    try:
        return float(str(value).split("(")[0])
    except ValueError:
        return 1.0


def _crystal(name: str, prototype: str, number: int, atoms: Any, reference: str) -> Crystal:
    return Crystal(
        name,
        prototype,
        number,
        np.asarray(atoms.cell.array, dtype=float),
        np.asarray(atoms.numbers, dtype=int),
        np.asarray(atoms.get_scaled_positions(wrap=True), dtype=float),
        reference,
    )


@cache
def embedded() -> tuple[Crystal, ...]:
    """The built-in table: real crystals of all seven crystal systems (see crystals.txt for the references)."""
    text = files("exafield.microscopy").joinpath("crystals.txt").read_text()
    return tuple(_row(line) for line in text.splitlines() if line and not line.startswith("#"))


def _row(line: str) -> Crystal:
    name, prototype, group, lattice, sites, reference = (part.strip() for part in line.split("|"))
    number, _, setting = group.partition(":")
    symbols, basis = [], []
    for site in sites.split(";"):
        symbol, *xyz = site.split()
        symbols.append(symbol)
        basis.append([float(Fraction(value)) for value in xyz])
    spacegroup = require("ase.spacegroup", extra="microscopy")
    atoms = spacegroup.crystal(
        symbols,
        basis,
        spacegroup=int(number),
        setting=int(setting or 1),
        cellpar=_cell_parameters(int(number), [float(v) for v in lattice.split()]),
    )
    compilation, comma, entry = reference.partition(",")
    return _crystal(name, prototype, int(number), atoms, _COMPILATIONS.get(compilation, compilation) + comma + entry)


def _cell_parameters(group: int, given: list[float]) -> list[float]:
    """a, b, c, alpha, beta, gamma from the constants that the crystal system leaves free."""
    if len(given) == 6:
        return given
    if len(given) == 1:
        return [given[0]] * 3 + [90.0] * 3
    if len(given) == 3:
        return [*given, 90.0, 90.0, 90.0]
    return [given[0], given[0], given[1], 90.0, 90.0, 120.0 if 143 <= group <= 194 else 90.0]
