"""What a site must be for its heads to exist, and what its messages say where it is not."""

import warnings
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from exafield.subsurface.mesh import Mesh

#: Above this many degrees between faces and centres, on average, a warning says what two-point fluxes lose; our choice.
SLANTED = 1.0
#: Natural logarithms of transmissivity beyond this cannot be meant, and their products leave what a float holds.
LARGEST_LOG = 300.0


class SiteError(ValueError):
    """A site, or values on one, that no head can be solved for; says where and what to do."""


class SlantedMeshWarning(UserWarning):
    """Two-point fluxes do not converge on this mesh."""


def check_mesh(mesh: Mesh) -> None:
    """Warns where two-point fluxes are inconsistent."""
    if mesh.nonorthogonality > SLANTED:
        warnings.warn(
            f"faces of this mesh are {mesh.nonorthogonality:.1f} degrees off the way between centres on average: heads "
            "keep an error however fine it is (at the Hanford Site, 4.3 degrees off, 0.05 m where given heads span 17)",
            SlantedMeshWarning,
            stacklevel=4,
        )


def check_pairs(
    what: str, numbers: Int[np.ndarray, "..."], values: Float[np.ndarray, "..."], count: int, of: str
) -> None:
    """One finite value for each number, numbers in range and given once.

    Raises:
        SiteError: it is not so.
    """
    if numbers.ndim != 1 or numbers.shape != values.shape:
        raise SiteError(f"{what}: {numbers.size} {of} and {values.size} values, which must be lists of the same length")
    outside = np.flatnonzero((numbers < 0) | (numbers >= count))
    if outside.size:
        raise SiteError(f"{what}: there is no {of} {numbers[outside[0]]}, they are numbered 0..{count - 1}")
    broken = np.flatnonzero(~np.isfinite(values))
    if broken.size:
        raise SiteError(f"{what}: the value at {of} {numbers[broken[0]]} is {values[broken[0]]}, which is not finite")
    unique, times = np.unique(numbers, return_counts=True)
    if (times > 1).any():
        raise SiteError(f"{what}: {of} {unique[times > 1][0]} is given twice; leave one of them out")


def check_boundaries(fixed: Int[np.ndarray, "fixed"], inflow: Int[np.ndarray, "inflow"]) -> None:
    """A face has a head or an inflow.

    Raises:
        SiteError: some has both.
    """
    both = np.intersect1d(fixed, inflow)
    if both.size:
        raise SiteError(f"boundary face {both[0]} has both a fixed head and an inflow: leave one of them out")


def check_anchored(mesh: Mesh, anchors: Int[np.ndarray, "anchor"]) -> None:
    """Each connected part of the mesh has a cell with a head that is given.

    Raises:
        SiteError: nothing fixes heads, there or anywhere.
    """
    if not anchors.size:
        raise SiteError(
            "no head is fixed anywhere, so heads are known only up to a constant: fix it at a boundary face or a cell"
        )
    loose = ~np.isin(mesh.parts, mesh.parts[anchors])
    if loose.any():
        cells = np.flatnonzero(loose)
        raise SiteError(
            f"cell {cells[0]} and {cells.size - 1} more are connected to no fixed head (the mesh has "
            f"{mesh.parts.max() + 1} parts): merge the vertices of neighbours, fix a head there, or leave the part out"
        )


def check_field(name: str, values: Float[np.ndarray, "..."], cells: int) -> None:
    """One finite value for each cell.

    Raises:
        SiteError: it is not so.
    """
    if values.shape != (cells,):
        raise SiteError(f"{name} must have one value for each of the {cells} cells, got shape {values.shape}")
    broken = np.flatnonzero(~np.isfinite(values))
    if broken.size:
        raise SiteError(f"{name} is {values[broken[0]]} in cell {broken[0]} ({broken.size} such in all)")


def check_log_transmissivity(values: Float[np.ndarray, "batch cell"], start: int = 0) -> None:
    """Logarithms of transmissivity are finite and in a range in which conductances can be computed.

    Args:
        values: natural logarithm of m2/d.
        start: number of the first realisation.

    Raises:
        SiteError: some is not; names the realisation and the cell.
    """
    # NaN fails the comparison too.
    broken = np.argwhere(~(np.abs(values) <= LARGEST_LOG))
    if broken.size:
        row, cell = (int(x) for x in broken[0])
        raise SiteError(
            f"log-transmissivity of realisation {start + row} is {values[row, cell]} in cell {cell}"
            f" ({len(broken)} such values in all): it must be finite and within +-{LARGEST_LOG:g} "
            "(natural logarithm of m2/d)"
        )


# Metres per day in one of each unit; the foot is the international one (0.3048 m exactly), as in MODFLOW.
_METRES = {
    "m": 1.0,
    "meters": 1.0,
    "metres": 1.0,
    "ft": 0.3048,
    "feet": 0.3048,
    "cm": 0.01,
    "mm": 0.001,
    "centimeters": 0.01,
}
_PER_DAY = {"d": 1.0, "day": 1.0, "days": 1.0, "h": 24.0, "hours": 24.0, "min": 1440.0, "minutes": 1440.0,
            "s": 86400.0, "seconds": 86400.0, "y": 1 / 365.25, "years": 1 / 365.25, "a": 1 / 365.25}  # fmt: skip


def length_unit(name: str | None) -> float:
    """Metres in a unit of length.

    Raises:
        SiteError: it is not stated or not known.
    """
    return _looked_up("length", name, _METRES)


def time_unit(name: str | None) -> float:
    """How often a unit of time fits into a day. A year has 365.25 days.

    Raises:
        SiteError: it is not stated or not known.
    """
    return _looked_up("time", name, _PER_DAY)


def _looked_up(kind: str, name: str | None, table: Mapping[str, float]) -> float:
    key = (name or "").strip().lower()
    if key not in table:
        stated, how = (
            (f"{name!r} is not known", "state") if key and key != "unknown" else ("is not stated", f"--{kind}:")
        )
        raise SiteError(f"the unit of {kind} {stated}: {how} one of {', '.join(table)}")
    return table[key]


# Cubic metres in a unit of volume, as pumps state them; the gallon is that of the US (231 cubic inches).
_VOLUMES = {"l": 1e-3, "gal": 231 * 0.0254**3}


def unit_factor(unit: str | None, length: int, time: int = -1) -> float:
    """Factor from a unit such as m/d, m2/d, m3/d, ft/d or m to metres and days.

    Args:
        unit: as files write it.
        length: power of length it must have.
        time: power of time it must have.

    Raises:
        SiteError: it is not stated, not known or one of something else.
    """
    if not unit:
        raise SiteError("a unit is not stated: state it, such as m/d, m/s or ft/d for conductivity, m2/d, m3/d, m")
    plain = unit.replace(" ", "").replace("^", "").replace("\u00b2", "2").replace("\u00b3", "3")
    above, _, below = ("gal/min" if plain.lower() == "gpm" else plain).partition("/")
    if above.lower() in _VOLUMES and below and (length, time) == (3, -1):
        return _VOLUMES[above.lower()] * time_unit(below)
    base = above.rstrip("0123456789")
    power = int(above[len(base) :] or "1")
    if (power, -1 if below else 0) != (length, time):
        wanted = "m" + (str(length) if length > 1 else "") + ("/d" if time else "")
        raise SiteError(f"unit {unit!r} is not one of what is meant here, which is in {wanted} or the like")
    return length_unit(base) ** length * (time_unit(below) if time else 1.0)


def log_transmissivity_of(
    conductivity: Float[np.ndarray, "cell"], thickness: Float[np.ndarray, "cell"] | float, unit: str
) -> Float[np.ndarray, "cell"]:
    """Natural logarithm of transmissivity [m2/d].

    Args:
        conductivity: hydraulic, in `unit`.
        thickness: saturated [m].
        unit: m/d, m/s, ft/d or the like.

    Raises:
        SiteError: conductivity or thickness is not positive, or the unit is not one of conductivity.
    """
    values = np.asarray(conductivity, dtype=np.float64) * unit_factor(unit, 1)
    depth = np.broadcast_to(np.asarray(thickness, dtype=np.float64), values.shape)
    for name, given in (("conductivity", values), ("thickness", depth)):
        check_positive(name, given)
    return np.asarray(np.log(values * depth))


def check_positive(name: str, values: Float[np.ndarray, "cell"]) -> None:
    """All values are finite and above zero.

    Raises:
        SiteError: some is not; names the first cell.
    """
    broken = np.flatnonzero(~((values > 0) & np.isfinite(values)))
    if broken.size:
        raise SiteError(
            f"{name} is {values[broken[0]]:g} in cell {broken[0]} ({broken.size} such in all): it must be above zero; "
            "leave cells without flow out of the mesh"
        )
