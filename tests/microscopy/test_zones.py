"""Views along any zone axis: the crystal stays what it was, the beam runs where it was told, the bounds hold."""

import numpy as np
import pytest

from exafield.microscopy.crystal import Crystal, CrystalError, embedded
from exafield.microscopy.views import View, view
from exafield.microscopy.zones import along, primitive

CRYSTALS = {crystal.name: crystal for crystal in embedded()}


def shells(
    cell: np.ndarray, numbers: np.ndarray, fractions: np.ndarray, reach: float = 3.6
) -> list[tuple[int, np.ndarray]]:
    """Of each atom, its number and the sorted distances to all neighbours within `reach` [A]."""
    spans = np.ceil(reach * np.linalg.norm(np.linalg.inv(cell), axis=0)).astype(int) + 1
    shifts = np.stack(np.meshgrid(*(np.arange(-s, s + 1) for s in spans), indexing="ij"), -1).reshape(-1, 3)
    found = []
    for number, place in zip(numbers, fractions, strict=True):
        distances = np.linalg.norm((fractions[:, None] + shifts - place) @ cell, axis=-1).ravel()
        found.append((int(number), np.sort(distances[(distances > 1e-3) & (distances < reach)])))
    return found


def check_keeps(one: View) -> None:
    """Every atom of the view has the surroundings of an atom of the crystal, to within the strain."""
    crystal = one.crystal
    own = shells(crystal.cell, crystal.numbers, crystal.positions)
    edges = np.array(one.cell)
    assert ((one.positions >= 0) & (one.positions < edges)).all()
    for number, distances in shells(np.diag(edges), one.numbers, one.positions / edges)[:40]:
        # Straining may push a neighbour over the edge of reach: only the nearest ones are compared.
        near = 5
        assert any(
            number == n and np.allclose(distances[:near], d[:near], rtol=1.2 * one.strain + 1e-4, atol=1e-3)
            for n, d in own
        )


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        ("Cu", (1, 1, 2)),
        ("Si", (1, 1, 0)),
        ("Fe", (1, 1, 1)),
        ("ZnO", (1, 1, 0)),
        ("TiO2 rutile", (0, 1, 1)),
        ("CuO tenorite", (0, 1, 0)),
        ("Al2SiO5 kyanite", (0, 0, 1)),
    ],
)
def test_view_along_any_axis_keeps_the_crystal(name: str, axis: tuple[int, int, int]) -> None:
    one = along(CRYSTALS[name], axis)
    assert one.strain <= 0.01
    check_keeps(one)


def test_edges_of_known_cells() -> None:
    """Copper: primitive translations a / sqrt(2) and so on; a zone of views.py gives the same cell."""
    a = 3.61496
    assert along(CRYSTALS["Cu"], (1, 1, 1)).cell == pytest.approx((a / 2**0.5, a * 1.5**0.5, a * 3**0.5))
    assert along(CRYSTALS["Cu"], (-2, 0, 2)).cell == pytest.approx((a / 2**0.5, a, a / 2**0.5))
    assert along(CRYSTALS["Mg"], (0, 0, 1)).cell == pytest.approx(view(CRYSTALS["Mg"], "001").cell)
    assert along(CRYSTALS["SrTiO3"], (3, 1, 0)).cell[2] == pytest.approx(3.905 * 10**0.5)
    assert along(CRYSTALS["SrTiO3"], (3, 1, 0)).name == "SrTiO3 [310]"
    assert along(CRYSTALS["SrTiO3"], (1, -1, 0)).zone == "1-10"


def test_beam_runs_along_the_axis_and_the_frame_is_right_handed() -> None:
    """Heights of a crystal without symmetry are projections on [u v w], and no atom is mirrored."""
    places = np.array([[0.0, 0.0, 0.0], [0.11, 0.23, 0.37], [0.3, 0.61, 0.05], [0.72, 0.45, 0.81]])
    crystal = Crystal("x", "", 1, np.diag([5.0, 5.0, 5.0]), np.array([6, 7, 8, 9]), places, "")
    for axis in ((1, 1, 0), (1, -2, 0), (1, 1, 1)):
        one = along(crystal, axis)
        assert one.strain == 0
        unit = np.array(axis) / np.linalg.norm(axis)
        edges = np.array(one.cell)
        first = one.positions[one.numbers == 6][0]
        vectors = []
        for number, place in zip((7, 8, 9), places[1:], strict=True):
            wanted = 5 * np.linalg.norm(place)
            # Among the images, the one as far from the first atom and as high as it should be.
            shifts = np.stack(np.meshgrid(*([(-2, -1, 0, 1, 2)] * 3), indexing="ij"), -1).reshape(-1, 3) * edges
            images = (one.positions[one.numbers == number][:, None] - first + shifts).reshape(-1, 3)
            fits = np.abs(np.linalg.norm(images, axis=1) - wanted) + np.abs(images[:, 2] - 5 * place @ unit) < 1e-6
            assert fits.any()
            vectors.append(images[fits])
        volume = float(np.linalg.det(5 * places[1:]))
        angles = 25 * places[1:] @ places[1:].T
        right = [
            np.linalg.det(np.stack([p, q, r]))
            for p in vectors[0]
            for q in vectors[1]
            for r in vectors[2]
            if np.allclose(np.stack([p, q, r]) @ np.stack([p, q, r]).T, angles, atol=1e-6)
        ]
        assert right
        assert right == pytest.approx([volume] * len(right))


def test_primitive_cell_does_not_depend_on_how_the_crystal_is_written() -> None:
    for name, atoms in (("Cu", 1), ("Si", 2), ("Fe", 1), ("NaCl", 2), ("SrTiO3", 5), ("ZnO", 4), ("CaF2", 3)):
        vectors, numbers, fractions = primitive(CRYSTALS[name])
        assert len(numbers) == atoms == len(fractions)
        again = along(Crystal(name, "", 1, vectors, numbers, fractions, ""), (0, 0, 1))
        assert again.strain == 0
        check_keeps(again)


def test_a_triclinic_cell_is_strained_within_the_bound_only() -> None:
    kyanite = CRYSTALS["Al2SiO5 kyanite"]
    small = along(kyanite, (1, 1, 0), max_edge=30, max_strain=0.05)
    large = along(kyanite, (0, 0, 1), max_edge=30, max_strain=0.002)
    assert 0.04 < small.strain <= 0.05
    assert 0 < large.strain <= 0.002
    assert max(small.cell[:2]) <= 30
    volume = large.cell[0] * large.cell[1] * large.cell[2]
    expected = len(large.numbers) / len(kyanite.numbers) * abs(np.linalg.det(kyanite.cell))
    assert volume == pytest.approx(expected, rel=0.004)


def test_no_cell_within_the_bound_says_what_would_do() -> None:
    kyanite = CRYSTALS["Al2SiO5 kyanite"]
    with pytest.raises(
        CrystalError, match=r"kyanite \[110\]: the cell cannot be made orthogonal .* Allow max_strain=0\.04"
    ):
        along(kyanite, (1, 1, 0))
    with pytest.raises(CrystalError, match="raise max_edge"):
        along(kyanite, (0, 0, 1), max_edge=4.0)
    with pytest.raises(CrystalError, match="raise max_repeat"):
        along(kyanite, (7, 8, 9))
    with pytest.raises(ValueError, match="no direction"):
        along(kyanite, (0, 0, 0))
    with pytest.raises(ValueError, match="max_edge must be a positive length"):
        along(kyanite, (0, 0, 1), max_edge=-1.0)
    with pytest.raises(ValueError, match=r"max_strain must be in \[0, 0\.2\)"):
        along(kyanite, (0, 0, 1), max_strain=5.0)
