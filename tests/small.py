"""A handful of crystals as CIF files: enough to train on, simulated in seconds."""

from pathlib import Path

from ase.cell import Cell
from ase.data import chemical_symbols

from exafield.microscopy.crystal import Crystal, embedded

# Where they fall when the data is split by material; with two or three views each at the most.
TRAIN = ("TiO2 anatase", "CeCu2Si2", "BaFe2As2", "MoS2")
VALIDATION = ("Na", "W")
TEST = ("P black", "CsCl")


def write_cifs(folder: Path, names: tuple[str, ...] = TRAIN + VALIDATION + TEST) -> Path:
    """Writes some of the built-in crystals into a folder, all atoms listed and no symmetry used."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {crystal.name: crystal for crystal in embedded()}
    for name in names:
        (folder / f"{name.replace(' ', '-')}.cif").write_text(_cif(known[name]))
    return folder


def _cif(crystal: Crystal) -> str:
    parameters = Cell(crystal.cell).cellpar()
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = [f"data_{crystal.name.replace(' ', '_')}"]
    lines += [f"_cell_{name} {value:.8f}" for name, value in zip(names, parameters, strict=True)]
    lines += ["loop_", "_atom_site_type_symbol", *(f"_atom_site_fract_{axis}" for axis in "xyz")]
    for number, position in zip(crystal.numbers, crystal.positions, strict=True):
        lines.append(" ".join([chemical_symbols[int(number)], *(f"{x:.8f}" for x in position)]))
    return "\n".join(lines) + "\n"
