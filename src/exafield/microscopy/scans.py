"""Scans: what a store of simulated views holds, and the parts it is split into."""

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from exafield.microscopy.conditions import conditions
from exafield.microscopy.generate import CrystalWarning, Generation, keys
from exafield.microscopy.potential import layers
from exafield.store import SampleStore

Part = Literal["train", "validation", "test"]
#: What must not sit on two sides of the split.
Split = Literal["material", "space_group"]


@dataclass(frozen=True, eq=False)
class Scan:
    """One simulated view behind one thickness: everything a scan of this specimen can show.

    Args:
        patterns: (px, py, kx, ky) over a grid of probe positions over one cell, as shares of the incident intensity.
        potential: (x, y) projected potential of the specimen over one cell [V A].
        edges: of the cell [A].
        energy, convergence_angle, thickness, b_factor: of beam [eV], [rad] and specimen [A], [A^2].
        numbers, places, times: atomic number and position (x, y) [A] of the atoms of a cell, and how many times each is
            there along the beam.
        name, crystal, material, prototype, space_group: of what it shows; `material` is composition and space group.
        kept: share of the incident intensity inside the band limit behind the specimen.
    """

    patterns: Float[np.ndarray, "px py kx ky"]
    potential: Float[np.ndarray, "x y"]
    edges: tuple[float, float]
    energy: float
    convergence_angle: float
    thickness: float
    b_factor: float
    numbers: Int[np.ndarray, "atom"]
    places: Float[np.ndarray, "atom 2"]
    times: Int[np.ndarray, "atom"]
    name: str
    crystal: str
    material: str
    prototype: str
    space_group: int
    kept: float = 1.0

    def conditions(self, dose: float | None) -> Float[Tensor, "4"]:
        """What a network is told of it, see conditions.py."""
        return conditions(self.energy, self.convergence_angle, self.thickness, dose)


def scans_of(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> list[Scan]:
    """The scans of one sample, one for each thickness.

    Args:
        arrays, about: what :func:`exafield.microscopy.recipe.simulate` gives, or a store of it.
    """
    edges, recipe = about["edges_angstrom"], about["recipe"]
    return [
        Scan(
            patterns,
            potential,
            (edges[0], edges[1]),
            recipe["energy"],
            recipe["convergence_angle"],
            thickness,
            recipe["b_factor"],
            np.array(about["numbers"]),
            np.array(about["positions_angstrom"])[:, :2],
            _times(about, thickness),
            about["name"],
            about["crystal"],
            about["material"],
            about["prototype"],
            about["space_group"],
            about["intensity_within_band_limit"],
        )
        for patterns, potential, thickness in zip(
            arrays["patterns"], arrays["potential"], about["thickness_angstrom"], strict=True
        )
    ]


def _times(about: Mapping[str, Any], thickness: float) -> Int[np.ndarray, "atom"]:
    """How many of a specimen's slices hold each atom."""
    edge = about["cell_angstrom"][2]
    heights = np.array(about["positions_angstrom"])[:, 2]
    count, layer = layers(heights, edge, about["recipe"]["slice_thickness"])
    depth = round(thickness * count / edge)
    times: np.ndarray = np.bincount(np.arange(depth) % count, minlength=count)[layer]
    return times


def load(path: str | Path, generation: Generation) -> list[Scan]:
    """All scans that a store holds of a generation's crystals, in order of their keys.

    Raises:
        StoreError: see :class:`SampleStore`.
    """
    with SampleStore(path, generation.attributes()) as store:
        wanted = sorted(store.keys() & set(keys(generation)))
        return [scan for key in wanted for scan in scans_of(*store.read(key))]


def part_of(name: str) -> Part:
    """Which part of the data a material or space group belongs to: 70 % train, 12 % validation, 18 % test, by hash."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32
    return "test" if share < 0.18 else "validation" if share < 0.30 else "train"


def split(scans: Iterable[Scan], by: Split = "material") -> dict[Part, list[Scan]]:
    """The scans by part. All views of a material, and all crystals of its composition and space group, are on one side;
    by space group, all crystals of one space group are.

    Where hashes leave a part empty, as they may of few materials, these are dealt out in the order of their hashes. Of
    less than three all are in every part, which is warned of: the verdict is then on what was learnt from.
    """
    parts: dict[Part, list[Scan]] = {"train": [], "validation": [], "test": []}
    named: dict[str, list[Scan]] = {}
    for scan in scans:
        named.setdefault(scan.material if by == "material" else f"space group {scan.space_group}", []).append(scan)
    for name, some in named.items():
        parts[part_of(name)].extend(some)
    if all(parts.values()) or not named:
        return parts
    order = sorted(named, key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(order) < 3:
        warnings.warn(
            f"there is only {' and '.join(order)} to learn from and to judge by: what is said of the network is said "
            "of crystals that it was trained on",
            CrystalWarning,
            stacklevel=2,
        )
        return {part: [scan for name in order for scan in named[name]] for part in parts}
    test, validation = (max(1, round(share * len(order))) for share in (0.18, 0.12))
    dealt: dict[Part, list[str]] = {
        "train": order[test + validation :], "validation": order[test : test + validation], "test": order[:test],
    }  # fmt: skip
    return {part: [scan for name in names for scan in named[name]] for part, names in dealt.items()}


def seen_prototypes(train: Sequence[Scan]) -> set[str]:
    """The structure types that occur in training."""
    return {scan.prototype for scan in train}
