"""Reading CIF files: right ones, and every way in which one can be wrong."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from exafield.microscopy.crystal import CrystalError, embedded, from_cif
from exafield.microscopy.views import views

ROCK_SALT = """data_halite
_symmetry_space_group_name_H-M 'F m -3 m'
_symmetry_Int_Tables_number 225
_cell_length_a 5.6402(2)
_cell_length_b 5.6402
_cell_length_c 5.6402
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
"""
SITES = """loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Na1 Na 0 0 0 1
Cl1 Cl 0.5 0.5 0.5 1
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "sample.cif"
    path.write_text(text)
    return path


def test_reads_what_the_table_holds(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = from_cif(write(tmp_path, ROCK_SALT + SITES))
    table = next(c for c in embedded() if c.name == "NaCl")
    assert read.space_group == 225
    assert sorted(read.symbols) == sorted(table.symbols)
    assert np.allclose(read.cell, table.cell)
    assert read.nearest()[0] == pytest.approx(table.nearest()[0])
    assert read.name == "sample"
    assert read.prototype == "AB sg225, 8 atoms"
    assert [v.zone for v in views(read)] == ["001", "110"]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CrystalError, match=r"nothere\.cif: cannot be read: No such file"):
        from_cif(tmp_path / "nothere.cif")


@pytest.mark.parametrize("text", ["", "this is no crystal", "\x00\x01\x02 binary", "data_x\nloop_\n_a\n_b\n1 2 3\n"])
def test_what_is_no_cif_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(CrystalError, match=r"sample\.cif: (is not a CIF file|has no unit cell)"):
        from_cif(write(tmp_path, text))


def test_cif_without_cell(tmp_path: Path) -> None:
    with pytest.raises(CrystalError, match=r"sample\.cif: has no unit cell \(_cell_length_a"):
        from_cif(write(tmp_path, "data_x\n" + SITES))


def test_cif_without_sites(tmp_path: Path) -> None:
    with pytest.raises(CrystalError, match=r"sample\.cif: has no atom sites \(_atom_site_fract_x"):
        from_cif(write(tmp_path, ROCK_SALT))


def test_overlapping_atoms_are_named(tmp_path: Path) -> None:
    text = ROCK_SALT.replace("F m -3 m", "P 1").replace("225", "1") + SITES.replace("0.5 0.5 0.5", "0.05 0 0")
    with pytest.raises(CrystalError, match=r"atoms 0 \(Na\) and 1 \(Cl\) are 0\.28 A apart and overlap"):
        from_cif(write(tmp_path, text))


def test_partial_occupancy_is_warned_of_and_the_main_species_kept(tmp_path: Path) -> None:
    mixed = SITES.replace("Na1 Na 0 0 0 1\n", "Na1 Na 0 0 0 0.3\nK1 K 0 0 0 0.7\n")
    with pytest.warns(UserWarning, match=r"sample\.cif: some sites are only partly occupied"):
        read = from_cif(write(tmp_path, ROCK_SALT + mixed))
    assert sorted(set(read.symbols)) == ["Cl", "K"]
    assert len(read.numbers) == 8


def test_unknown_coordinate_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CrystalError, match=r"sample\.cif"):
        from_cif(write(tmp_path, ROCK_SALT + SITES.replace("0.5 0.5 0.5", "0.5 ? 0.5")))


def test_a_molecule_of_unknown_elements_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CrystalError, match=r"sample\.cif"):
        from_cif(write(tmp_path, ROCK_SALT + SITES.replace("Cl1 Cl", "Xx1 Xx")))
