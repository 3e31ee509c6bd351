"""The basins by which storms are counted.

Those of IBTrACS (Knapp et al. 2010, doi:10.1175/2009BAMS2755.1): the North Indian ends at 30 and 100 degrees east, the
western Pacific at the date line, the South Indian at 135 degrees east, the South Pacific and South Atlantic at
70 degrees west. There the eastern Pacific and the North Atlantic meet at the land between; here that border is a line
along the divide of the Americas. The South Atlantic ends at Cape Agulhas, 20 degrees east. Together they tile the
globe, land included, so that every river and every cell belongs to one.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exafield.climate.grid import Grid

#: Codes of IBTrACS, in the order of the numbers that `basin` gives.
BASINS = ("NA", "EP", "WP", "NI", "SI", "SP", "SA")
NAMES = (
    "North Atlantic", "eastern Pacific", "western Pacific", "North Indian", "South Indian", "South Pacific",
    "South Atlantic",
)  # fmt: skip
#: Both, to be written below a table.
LEGEND = "basins: " + ", ".join(f"{code} {name}" for code, name in zip(BASINS, NAMES, strict=True))
_NA, _EP, _WP, _NI, _SI, _SP, _SA = range(7)

# The divide of the Americas, read off an atlas to half a degree: degrees north and east.
_DIVIDE_NORTH = (0.0, 5.0, 7.5, 9.0, 10.0, 12.0, 14.0, 15.0, 16.5, 18.0, 20.0, 25.0, 30.0)
_DIVIDE_EAST = (-78.0, -77.0, -77.0, -80.0, -84.0, -86.0, -87.5, -91.0, -94.5, -99.0, -102.0, -105.0, -108.0)


def basin(latitude: ArrayLike, longitude: ArrayLike) -> NDArray[np.int8]:
    """Number of the basin of each place, an index into `BASINS`; places are broadcast."""
    north, east = np.broadcast_arrays(np.asarray(latitude, np.float64), np.asarray(longitude, np.float64) % 360.0)
    divide = np.interp(north, _DIVIDE_NORTH, _DIVIDE_EAST) + 360.0
    northern = np.select(
        [(east >= 30) & (east < 100), (east >= 100) & (east < 180), (east >= 180) & (east < divide)],
        [_NI, _WP, _EP],
        _NA,
    )
    southern = np.select([(east >= 20) & (east < 135), (east >= 135) & (east < 290)], [_SI, _SP], _SA)
    return np.where(north >= 0, northern, southern).astype(np.int8)


def over(grid: Grid) -> NDArray[np.int8]:
    """Number of the basin of each cell, [latitude, longitude]."""
    return basin(grid.latitude[:, None], grid.longitude[None, :])
