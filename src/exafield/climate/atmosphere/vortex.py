"""What storms do to the fields round them."""

import numpy as np
from numpy.typing import NDArray

from exafield.climate.atmosphere.events import Cyclone, Low
from exafield.climate.grid import EARTH_ROTATION, Grid, distance

Fields = dict[str, NDArray[np.float32]]
# Shape parameter of Holland's profile, and density of air at the surface [kg/m3] (Holland 1980: 1 to 2.5, and 1.15).
_SHAPE, _DENSITY = 1.6, 1.15
# A named storm has winds of 17.5 m/s (tropical storm, WMO). The mask reaches to where the wind falls below
# that at which shops close, and no further than this [m]; both our choice.
NAMED, GALE, FURTHEST = 17.5, 11.0, 500e3
# Angle by which wind near the ground blows into the storm.
_INFLOW = np.deg2rad(20)


def holland(
    far: NDArray[np.float64], wind: float, radius: float, latitude: float
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    """Gradient wind [m/s] at distances from the centre; by how much pressure is low in the centre, and there [Pa].

    Holland (1980), eqs. 4 and 5: pressure rises outwards as exp(-(radius / far)^B).

    Args:
        far: distances [m].
        wind: the greatest [m/s], apart from the Earth's rotation.
        radius: of the greatest wind [m].
        latitude: of the centre [degrees].
    """
    ratio = (radius / np.maximum(far, 1.0)) ** _SHAPE
    depth = wind**2 * np.e * _DENSITY / _SHAPE
    turning = far * abs(EARTH_ROTATION * np.sin(np.deg2rad(latitude)))
    speed = np.sqrt(wind**2 * np.e * ratio * np.exp(-ratio) + turning**2) - turning
    return speed, depth, depth * (1 - np.exp(-ratio))


class Window:
    """The part of a grid near a point, with its distances and directions.

    Args:
        grid: whole.
        latitude, longitude: of the point [degrees].
        reach: [m].
    """

    def __init__(self, grid: Grid, latitude: float, longitude: float, reach: float) -> None:
        degrees = np.rad2deg(reach / 6.371e6)
        rows = np.flatnonzero(np.abs(grid.latitude - latitude) <= degrees)
        away = (grid.longitude - longitude + 180) % 360 - 180
        highest = np.abs(grid.latitude[rows]).max(initial=0.0)
        widened = degrees / max(0.05, np.cos(np.deg2rad(min(89.0, highest))))
        columns = np.flatnonzero(np.abs(away) <= widened)
        self.index = np.ix_(rows, columns)
        north = grid.latitude[rows][:, None]
        self.far = distance(latitude, longitude, north, grid.longitude[columns][None, :])
        #: To the east and to the north of the point [m], on the plane that touches there.
        self.east = away[columns][None, :] * 111.2e3 * np.cos(np.deg2rad(north))
        self.north = (north - latitude) * 111.2e3 * np.ones_like(self.east)

    @property
    def empty(self) -> bool:
        """Whether no cell is near."""
        return self.far.size == 0


def cell_size(grid: Grid) -> float:
    """Height of a cell [m]."""
    return float(np.diff(grid.latitude).mean()) * 111.2e3


def add_cyclone(fields: Fields, mask: NDArray[np.bool_], grid: Grid, storm: Cyclone) -> None:
    """Adds a tropical cyclone: Holland's wind and pressure, a warm core, moisture, rain; marks it if it has a name."""
    near = Window(grid, storm.latitude, storm.longitude, 1500e3)
    if near.empty:
        return
    # A model cannot resolve a radius below its cells.
    radius = max(storm.radius, 0.8 * cell_size(grid))
    speed, depth, fall = holland(near.far, storm.wind, radius, storm.latitude)
    fade = np.exp(-((near.far / 900e3) ** 4))
    speed, fall = speed * fade, fall * fade
    angle = np.arctan2(near.north, near.east)
    around, inwards = angle + storm.sign * np.pi / 2, angle + np.pi
    calm = np.exp(-((near.far / 400e3) ** 2))
    # The storm's own motion blows as well, half of it where the wind is greatest (asymmetry).
    drift = 0.5 * np.minimum(1.0, speed / max(storm.wind, 1.0))
    for level, share, inflow in (("850", 1.0, 0.15), ("BOT", 0.85, float(np.sin(_INFLOW)))):
        turned = np.sqrt(1 - inflow**2)
        for name, project, moving in (("U", np.cos, storm.motion[0]), ("V", np.sin, storm.motion[1])):
            blown = share * speed * (turned * project(around) + inflow * project(inwards)) + drift * moving
            field = fields[name + level]
            # Within the storm its wind takes the place of the weather's.
            field[near.index] = field[near.index] * (1 - 0.7 * calm) + blown
    core = np.exp(-((near.far / max(3 * radius, 180e3)) ** 2))
    wide = np.exp(-((near.far / 420e3) ** 2))
    strength = min(1.5, depth / 5000)
    fields["PSL"][near.index] -= fall
    fields["T200"][near.index] += 1.2 * wide * min(1, storm.wind / 25) + 4.0 * strength * core
    fields["T500"][near.index] += 0.9 * wide * min(1, storm.wind / 25) + 3.0 * strength * core
    fields["Z200"][near.index] += 25 * wide * min(1.5, storm.wind / 25)
    fields["TMQ"][near.index] += 11 * wide * min(1, storm.wind / 25) + 8 * strength * core
    fields["QREFHT"][near.index] += 0.0012 * wide * min(1, storm.wind / 25)
    fields["TREFHT"][near.index] -= 0.6 * wide
    # The eye wall, and bands that wind inwards round it.
    bands = 0.5 + 0.5 * np.cos(storm.sign * angle * 2 + np.log(np.maximum(near.far, 1e4) / 5e4) * 5)
    wall = np.exp(-(((near.far - radius) / (0.8 * radius)) ** 2))
    rain = 1.2e-6 * (storm.wind / 35) ** 2 * wall + 2.5e-7 * min(1, storm.wind / 25) * bands * np.exp(-near.far / 220e3)
    fields["PRECT"][near.index] += rain
    if storm.wind >= NAMED:
        # As far as the wind of the storm alone says, so that it does not fray with the weather.
        edge = np.linspace(radius, FURTHEST, 400)
        winds = holland(edge, storm.wind, radius, storm.latitude)[0]
        reach = edge[np.flatnonzero(winds >= GALE)[-1]] if np.any(winds >= GALE) else radius
        mask[near.index] |= near.far <= max(reach, cell_size(grid))


def add_low(fields: Fields, grid: Grid, low: Low) -> None:
    """Adds a low of middle latitudes: geostrophic wind, cold above, a comma of cloud; it is background."""
    near = Window(grid, low.latitude, low.longitude, 2.5 * low.radius * low.stretch)
    if near.empty:
        return
    x, y, far = _stretched(near, low)
    shape = np.exp(-(far**2) / 2)
    fields["PSL"][near.index] -= low.strength * shape
    coriolis = 2 * EARTH_ROTATION * np.sin(np.deg2rad(low.latitude))
    # Of the shape's slope: pressure gradient over density and Coriolis parameter.
    slope = low.strength * shape / low.radius**2 / (_DENSITY * coriolis)
    along, across = -x / low.stretch**2, -y
    east = along * np.cos(low.angle) - across * np.sin(low.angle)
    north = along * np.sin(low.angle) + across * np.cos(low.angle)
    for level, share in (("850", 0.75), ("BOT", 0.5)):
        fields["U" + level][near.index] += share * slope * north
        fields["V" + level][near.index] -= share * slope * east
    fields["T500"][near.index] -= 3.5 * shape * low.strength / 2500
    fields["T200"][near.index] += 2.0 * shape * low.strength / 2500
    fields["Z200"][near.index] -= 120 * shape * low.strength / 2500
    # The warm sector, on the side of the equator and ahead of the low.
    sign = 1 if low.latitude > 0 else -1
    ahead = np.exp(-(((near.east - 0.6 * low.radius) / low.radius) ** 2)
                   - ((near.north * sign + 0.5 * low.radius) / low.radius) ** 2)  # fmt: skip
    fields["TMQ"][near.index] += 4 * ahead * low.strength / 2500
    fields["PRECT"][near.index] += 8e-8 * ahead * low.strength / 2500


def add_blob(fields: Fields, grid: Grid, blob: Low) -> None:
    """Adds a patch of moist air with showers; it is background."""
    near = Window(grid, blob.latitude, blob.longitude, 2.5 * blob.radius * blob.stretch)
    if near.empty:
        return
    shape = np.exp(-(_stretched(near, blob)[2] ** 2) / 2)
    fields["TMQ"][near.index] += blob.strength * shape
    fields["QREFHT"][near.index] += 0.0006 * shape
    fields["PRECT"][near.index] += 1.2e-7 * shape


def _stretched(near: Window, low: Low) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Along and across the long axis [m], and the distance in units of the ellipse's own."""
    x = near.east * np.cos(low.angle) + near.north * np.sin(low.angle)
    y = -near.east * np.sin(low.angle) + near.north * np.cos(low.angle)
    return x, y, np.hypot(x / low.stretch, y) / low.radius
