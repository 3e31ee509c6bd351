"""What a plume of moist air does to the fields: moisture, a jet along it, rain, and a slope of pressure across."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from exafield.climate.atmosphere.events import Plume
from exafield.climate.grid import EARTH_RADIUS, EARTH_ROTATION, Grid

Fields = dict[str, NDArray[np.float32]]
# A river is marked where its own moisture is above this share of its middle's, and above so much [kg/m2]; our choice.
_SHARE, _LEAST = 0.5, 4.0


def _points(latitude: NDArray[np.float64], longitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """On the unit sphere, [..., 3]."""
    north, east = np.deg2rad(latitude), np.deg2rad(longitude)
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=-1)


def add_plume(fields: Fields, mask: NDArray[np.bool_], grid: Grid, plume: Plume) -> None:
    """Adds a plume, and marks it if it is a river."""
    reach = 3.2 * plume.width
    degrees = np.rad2deg(reach / EARTH_RADIUS)
    rows = np.flatnonzero(
        (grid.latitude >= plume.latitude.min() - degrees) & (grid.latitude <= plume.latitude.max() + degrees)
    )
    if not rows.size:
        return
    axis = _points(plume.latitude, plume.longitude)
    cells = _points(*np.meshgrid(grid.latitude[rows], grid.longitude, indexing="ij"))
    far, nearest = cKDTree(axis).query(cells.reshape(-1, 3), distance_upper_bound=2 * np.sin(reach / EARTH_RADIUS / 2))
    chosen = np.flatnonzero(np.isfinite(far))
    if not chosen.size:
        return
    nearest, points = nearest[chosen], cells.reshape(-1, 3)[chosen]
    where = (rows[chosen // grid.longitude.size], chosen % grid.longitude.size)
    tangent = np.gradient(axis, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    apart = points - axis[nearest]
    # To the left of the axis as one goes polewards, without what lies along it.
    left = np.einsum("ij,ij->i", apart, np.cross(axis, tangent)[nearest]) * EARTH_RADIUS
    ahead = np.einsum("ij,ij->i", apart, tangent[nearest]) * EARTH_RADIUS
    distance = np.hypot(left, np.where(np.abs(ahead) > 2e5, ahead, 0.0))
    across = np.exp(-((distance / plume.width) ** 2) / 2)
    share = np.linspace(0, 1, len(axis))
    # It fades at both ends.
    along = (np.minimum(1, share / 0.12) * np.minimum(1, (1 - share) / 0.2))[nearest]
    profile = across * (0.25 + 0.75 * along) * np.sqrt(np.clip(along * 4, 0, 1))
    moist = plume.moisture * profile
    # What is there already is taken along rather than added to, so that rivers do not pile up in the tropics.
    fields["TMQ"][where] += moist * np.clip(1.35 - fields["TMQ"][where] / 60, 0.2, 1.0)
    jet = plume.wind * np.minimum(along, (share / 0.4)[nearest]) * np.exp(-((distance / (1.3 * plume.width)) ** 2) / 2)
    east, north = _directions(plume, tangent)
    for level, part in (("850", 1.0), ("BOT", 0.62)):
        fields["U" + level][where] += part * jet * east[nearest]
        fields["V" + level][where] += part * jet * north[nearest]
    coriolis = 2 * EARTH_ROTATION * np.sin(np.deg2rad(plume.latitude))[nearest]
    slope = 1.15 * np.abs(coriolis) * plume.wind * plume.width
    pole = left * plume.sign  # towards the pole's side, where pressure is low
    fields["PSL"][where] -= 0.9 * slope * along * np.tanh(pole / plume.width) * across
    fields["PSL"][where] -= 240 * moist / 15
    fields["T500"][where] += 0.6 * profile
    fields["TREFHT"][where] += 0.5 * profile
    fields["QREFHT"][where] += 0.0009 * profile
    fields["PRECT"][where] += 5e-8 * (plume.wind / 20) * profile**2
    if plume.river:
        mask[where] |= (profile > _SHARE) & (moist > _LEAST)


def _directions(plume: Plume, tangent: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The axis' direction: shares to the east and to the north."""
    north, east = np.deg2rad(plume.latitude), np.deg2rad(plume.longitude)
    to_east = np.stack([-np.sin(east), np.cos(east), np.zeros_like(east)], axis=-1)
    to_north = np.stack([-np.sin(north) * np.cos(east), -np.sin(north) * np.sin(east), np.cos(north)], axis=-1)
    return np.einsum("ij,ij->i", tangent, to_east), np.einsum("ij,ij->i", tangent, to_north)
