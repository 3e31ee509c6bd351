"""The embedded crystals against tabulated densities and distances, and views against what they must keep."""

from pathlib import Path

import numpy as np
import pytest

from exafield.microscopy.crystal import Crystal, CrystalError, embedded
from exafield.microscopy.scattering import symbols
from exafield.microscopy.views import View, view, views

CRYSTALS = {crystal.name: crystal for crystal in embedded()}

# Mass densities [g/cm^3] of the handbooks (CRC Handbook of Chemistry and Physics; mineral tables).
DENSITIES = {
    "Al": 2.70, "Cu": 8.96, "Ag": 10.5, "Au": 19.3, "Ni": 8.90, "Pt": 21.5, "Pb": 11.3, "Ca": 1.54, "Sr": 2.64,
    "Fe": 7.87, "W": 19.3, "Mo": 10.2, "Nb": 8.57, "Na": 0.97, "Ba": 3.62, "Mg": 1.74, "Ti": 4.51, "Zr": 6.52,
    "Zn": 7.13, "Gd": 7.90, "C diamond": 3.513, "Si": 2.33, "Ge": 5.32, "Sn alpha": 5.77, "Sn beta": 7.29,
    "In": 7.31, "As": 5.75, "Sb": 6.68, "Bi": 9.79, "Se": 4.81, "Te": 6.24, "C graphite": 2.26, "Ga": 5.91,
    "P black": 2.69, "U alpha": 19.1, "Np alpha": 20.2, "NaCl": 2.17, "KCl": 1.99, "KBr": 2.74, "LiF": 2.64,
    "MgO": 3.60, "CaO": 3.34, "NiO": 6.72, "MnO": 5.37, "PbS": 7.60, "PbTe": 8.16, "TiC": 4.93,
    "AgCl": 5.56, "CsCl": 3.99, "CsBr": 4.43, "TlCl": 7.00, "ZnS sphalerite": 4.04, "GaAs": 5.318, "GaP": 4.138,
    "InP": 4.81, "InSb": 5.775, "ZnSe": 5.27, "CdTe": 5.85, "SiC 3C": 3.21, "CuCl": 4.14, "ZnO": 5.61,
    "GaN": 6.1, "AlN": 3.26, "CdSe": 5.81, "BeO": 3.01, "AgI": 5.68, "NiAs": 7.78, "SnO": 6.45, "PbO litharge": 9.35,
    "WC": 15.6, "CuO tenorite": 6.5, "CaF2": 3.18, "BaF2": 4.89, "CeO2": 7.22, "UO2": 10.97, "Mg2Si": 1.99,
    "FeS2 pyrite": 5.02, "PtAs2": 10.8, "Cu2O": 6.0, "Ag2O": 7.2, "TiO2 rutile": 4.23, "SnO2": 6.95, "MgF2": 3.15,
    "RuO2": 7.05, "MnF2": 3.98, "TiO2 anatase": 3.88, "CdI2": 5.64, "PbI2": 6.16, "TiS2": 3.22, "MoS2": 5.06,
    "SiO2 quartz": 2.648, "MoSi2": 6.26, "FeS2 marcasite": 4.89, "MgB2": 2.57, "TiB2": 4.52, "ZrO2 baddeleyite": 5.82,
    "LaB6": 4.72, "Fe3C cementite": 7.69, "Al2O3 corundum": 3.99, "Fe2O3 hematite": 5.26, "SrTiO3": 5.12,
    "KMgF3": 3.15, "CaTiO3": 4.0, "CaCO3 calcite": 2.71, "CuFeS2": 4.19, "MgAl2O4 spinel": 3.58,
    "Fe3O4 magnetite": 5.2, "Al2SiO5 kyanite": 3.66, "PbTiO3": 7.95, "BN hexagonal": 2.27,
}  # fmt: skip

# Shortest distances [A] between two kinds of atoms, as textbooks give them (bond lengths and sums of radii).
BONDS = {
    "C diamond": 1.545, "Si": 2.352, "C graphite": 1.421, "Cu": 2.556, "Fe": 2.482, "Se": 2.37, "Te": 2.84,
    "P black": 2.224, "NaCl": 2.820, "CsCl": 3.57, "ZnS sphalerite": 2.34, "ZnO": 1.975, "CaF2": 2.366,
    "FeS2 pyrite": 2.16, "TiO2 rutile": 1.95, "TiO2 anatase": 1.934, "SiO2 quartz": 1.605, "Al2O3 corundum": 1.855,
    "CaCO3 calcite": 1.284, "SrTiO3": 1.9525, "MoS2": 2.41,
    "BN hexagonal": 1.446, "LaB6": 1.66, "CuFeS2": 2.26, "MgAl2O4 spinel": 1.92,
    "Al2SiO5 kyanite": 1.62, "Cu2O": 1.849, "ReO3": 1.875, "MgB2": 1.78, "CuO tenorite": 1.95,
}  # fmt: skip


def test_table_holds_enough_crystals_of_every_system() -> None:
    crystals = embedded()
    assert len(crystals) >= 75
    assert len(CRYSTALS) == len(crystals)  # no name twice
    assert {c.system for c in crystals} == {
        "triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic",
    }  # fmt: skip
    assert len({c.prototype for c in crystals}) >= 45
    assert len({c.material for c in crystals}) == len(crystals)
    assert all(len(c.reference) > 10 for c in crystals)


@pytest.mark.parametrize("name", list(DENSITIES))
def test_density_is_the_tabulated_one(name: str) -> None:
    assert CRYSTALS[name].density == pytest.approx(DENSITIES[name], rel=0.03)


@pytest.mark.parametrize("name", list(BONDS))
def test_shortest_bond_is_the_known_one(name: str) -> None:
    assert CRYSTALS[name].nearest()[0] == pytest.approx(BONDS[name], rel=0.006)


@pytest.mark.parametrize("crystal", embedded(), ids=lambda c: c.name)
def test_composition_and_distances(crystal: Crystal) -> None:
    """The cell holds whole formula units, and atoms are neither closer nor further than in any solid."""
    formula = crystal.name.split()[0]
    wanted: dict[str, int] = {}
    rest = formula
    while rest:
        symbol = rest[:2] if rest[:2] in symbols() and len(rest[:2]) == 2 else rest[:1]
        rest = rest[len(symbol) :]
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        rest = rest[len(digits) :]
        wanted[symbol] = wanted.get(symbol, 0) + int(digits or 1)
    found = {symbol: crystal.symbols.count(symbol) for symbol in set(crystal.symbols)}
    units = {found.get(symbol, 0) / count for symbol, count in wanted.items()}
    assert len(units) == 1, f"{found} is no multiple of {wanted}"
    assert units.pop() in (1, 2, 3, 4, 6, 8, 12, 16)
    assert set(found) == set(wanted)
    assert 1.2 < crystal.nearest()[0] < 4.5
    assert 5 < abs(np.linalg.det(crystal.cell)) / len(crystal.numbers) < 65
    assert ((crystal.positions >= 0) & (crystal.positions < 1)).all()


def test_at_least_sixty_crystals_can_be_viewed_within_nine_angstrom() -> None:
    seen = {crystal.name: views(crystal) for crystal in embedded()}
    usable = {name: found for name, found in seen.items() if found}
    assert len(usable) >= 100
    assert sum(map(len, usable.values())) >= 250
    for found in usable.values():
        for one in found:
            assert max(one.cell[:2]) <= 9.0
            assert one.cell[2] < 45.0


def test_inequivalent_views_by_crystal_system() -> None:
    def zones(name: str) -> list[str]:
        return [v.zone for v in views(CRYSTALS[name], max_edge=20.0)]

    assert zones("Cu") == ["001", "110"]
    assert zones("FeS2 pyrite") == ["001", "110"]  # cubic without a fourfold axis
    assert zones("TiO2 rutile") == ["001", "100", "110"]
    assert zones("CuFeS2") == ["001", "100", "110"]
    assert zones("U alpha") == ["001", "100", "010"]
    assert zones("ZnO") == ["001", "100", "010"]
    assert zones("CuO tenorite") == []


def test_equivalence_is_found_in_the_atoms_not_in_the_label() -> None:
    rutile = CRYSTALS["TiO2 rutile"]
    unlabelled = Crystal("rutile", "", 1, rutile.cell, rutile.numbers, rutile.positions + 0.123, "same, in P1")
    assert [v.zone for v in views(unlabelled)] == ["001", "100", "110"]
    moved = rutile.positions.copy()
    moved[0, 0] += 0.03
    distorted = Crystal("rutile", "", 136, rutile.cell, rutile.numbers, moved, "one atom moved")
    assert [v.zone for v in views(distorted)] == ["001", "100", "010"]


@pytest.mark.parametrize("one", [v for c in embedded() for v in views(c)], ids=lambda v: v.name)
def test_view_keeps_the_crystal(one: View) -> None:
    """Same density, composition and nearest distance; atoms inside the cell; a right-handed orthogonal cell."""
    crystal = one.crystal
    turned = Crystal("turned", "", 1, np.diag(one.cell), one.numbers, one.positions / one.cell, "")
    assert turned.density == pytest.approx(crystal.density, rel=1e-6)
    assert turned.nearest()[0] == pytest.approx(crystal.nearest()[0], abs=1e-3)
    for number in np.unique(crystal.numbers):
        share = (crystal.numbers == number).mean()
        assert (one.numbers == number).mean() == pytest.approx(share)
    assert ((one.positions >= 0) & (one.positions < np.array(one.cell))).all()


def test_view_conventions() -> None:
    """Axes as the table in views.py says, on a crystal without symmetry, by the vector between two atoms."""
    positions = np.array([[0.0, 0.0, 0.0], [0.1, 0.2, 0.35]])
    crystal = Crystal("x", "", 1, np.diag([4.0, 5.0, 6.0]), np.array([6, 8]), positions, "")
    vector = np.array([0.4, 1.0, 2.1])
    for zone, axes in (("001", (0, 1, 2)), ("100", (1, 2, 0)), ("010", (2, 0, 1))):
        one = view(crystal, zone)  # type: ignore[arg-type]
        assert np.allclose(one.positions[1] - one.positions[0], vector[list(axes)])
    square = Crystal("x", "", 1, np.diag([4.0, 4.0, 6.0]), np.array([6, 8]), positions, "")
    one = view(square, "110")
    assert one.cell == pytest.approx((6.0, 4 * 2**0.5, 4 * 2**0.5))
    a, b, c = 0.4, 0.8, 2.1
    expected = np.array([c, (a - b) / 2**0.5, (a + b) / 2**0.5])
    edges = np.array(one.cell)
    pairs = one.positions[one.numbers == 8][:, None] - one.positions[one.numbers == 6][None] - expected
    assert np.abs(pairs - np.round(pairs / edges) * edges).sum(-1).min() < 1e-9


def test_hexagonal_cell_becomes_orthogonal() -> None:
    one = view(CRYSTALS["Mg"], "001")
    a = 3.2093
    assert one.cell == pytest.approx((a, 3**0.5 * a, 5.2103))
    assert len(one.numbers) == 4


def test_centred_cells_are_divided() -> None:
    assert view(CRYSTALS["Cu"], "110").cell == pytest.approx((3.61496, 3.61496 / 2**0.5, 3.61496 / 2**0.5))
    assert len(view(CRYSTALS["Cu"], "110").numbers) == 2
    double = Crystal(
        "Cu2", "", 1, np.diag([2.0, 3.0, 9.0]), np.array([29, 29, 29]), np.array([[0, 0, k / 3] for k in range(3)]), ""
    )
    assert view(double, "001").cell == pytest.approx((2.0, 3.0, 3.0))


def cell(*, numbers: tuple[int, ...] = (6, 8), second: float = 0.5, edge: float = 4.0, group: int = 1) -> Crystal:
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, second]])[: len(numbers)]
    return Crystal("x", "", group, edge * np.eye(3), np.array(numbers, dtype=int), positions, "")


def test_bad_crystals_are_named() -> None:
    with pytest.raises(CrystalError, match=r"atoms 0 \(C\) and 1 \(O\) are 0\.40 A apart and overlap"):
        cell(second=0.1)
    with pytest.raises(CrystalError, match=r"0\.40 A apart"):  # across the boundary of the cell
        cell(second=0.9)
    with pytest.raises(CrystalError, match="no atoms"):
        cell(numbers=())
    with pytest.raises(CrystalError, match=r"1\.\.230"):
        cell(group=231)
    with pytest.raises(CrystalError, match="volume"):
        cell(edge=0.1)
    with pytest.raises(CrystalError, match="finite"):
        cell(second=float("nan"))
    with pytest.raises(CrystalError, match=r"atomic numbers must be 1\.\.103"):
        cell(numbers=(6, 104))


def test_views_of_skew_cells_say_why() -> None:
    with pytest.raises(CrystalError, match=r"CuO tenorite: the cell angles are 90\.00, 99\.54, 90\.00 degrees"):
        view(CRYSTALS["CuO tenorite"], "001")
    with pytest.raises(CrystalError, match=r"\[110\] needs a = b"):
        view(CRYSTALS["U alpha"], "110")
    with pytest.raises((CrystalError, TypeError), match="zone"):
        view(CRYSTALS["Cu"], "111")  # type: ignore[arg-type]


def test_table_is_plain_data() -> None:
    text = Path(__file__).parents[2] / "src/exafield/microscopy/crystals.txt"
    rows = [line for line in text.read_text().splitlines() if not line.startswith("#")]
    assert len(rows) == len(embedded())
    assert all(line.count("|") == 5 for line in rows)
