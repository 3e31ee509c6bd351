"""Where there is land: a sketch of the continents, enough for storms to be born at sea and to die on land."""

import numpy as np
from numpy.typing import NDArray

from exafield.climate.grid import Grid, distance

# Ovals that together look like the continents, our choice:
# latitude, longitude of the middle [degrees]; half axes to the north and to the east [km]; highest ground [m].
_OVALS = (
    (48, 258, 1900, 2100, 900),  # North America
    (36, 253, 900, 700, 1500),
    (63, 250, 1000, 2200, 300),
    (22, 258, 900, 350, 1200),  # Mexico
    (-9, 302, 1800, 1600, 300),  # South America
    (-32, 295, 2000, 650, 700),
    (-18, 291, 2200, 280, 2600),  # Andes; there is little vapour above them: a light bar in pictures of TMQ
    (73, 320, 1100, 600, 2000),  # Greenland
    (16, 12, 1800, 2500, 500),  # Africa
    (-12, 24, 2200, 1200, 1000),
    (50, 20, 1300, 2200, 200),  # Europe
    (58, 95, 1700, 4000, 500),  # Asia
    (36, 90, 1000, 2100, 3200),  # Tibet
    (30, 50, 1200, 1300, 800),
    (22, 78, 1100, 700, 400),  # India
    (24, 105, 1300, 900, 900),
    (-25, 134, 1100, 1700, 300),  # Australia
    (-90, 0, 2300, 2300, 2500),  # Antarctica
)
# Over which the coast is smeared, in shares of an oval, our choice.
_COAST = 0.08


def land(grid: Grid) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Share of land, 0 to 1, and height of the ground [m], both [latitude, longitude]."""
    share = np.zeros(grid.shape)
    height = np.zeros(grid.shape)
    for oval in _OVALS:
        own, rise = _oval(grid.latitude[:, None], grid.longitude[None, :], oval)
        share = np.maximum(share, own)
        height = np.maximum(height, rise)
    return share.astype(np.float32), height.astype(np.float32)


def is_land(latitude: float, longitude: float) -> bool:
    """Whether a point lies on land."""
    return any(float(_oval(np.array(latitude), np.array(longitude), oval)[0]) > 0.5 for oval in _OVALS)


def _oval(
    latitude: NDArray[np.float64], longitude: NDArray[np.float64], oval: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    north, east, tall, wide, top = oval
    along = (latitude - north) * 111.2
    across = distance(latitude, longitude, latitude, east) / 1e3
    far = np.sqrt((along / tall) ** 2 + (across / wide) ** 2)
    share = 1 / (1 + np.exp(np.clip((far - 1) / _COAST, -50, 50)))
    return np.asarray(share), np.asarray(top * np.clip(1 - far**2, 0, None))
