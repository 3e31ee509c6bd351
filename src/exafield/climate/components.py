"""Connected regions on a grid of latitude and longitude that may close upon itself.

Neighbours across the pole are not joined: no cyclone or river of the heuristics reaches it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from exafield.climate.grid import Grid, distance

Numbers = NDArray[np.int32]

# Sweeps after the first that look for the ends of a region; two are enough for most. Our choice.
_SWEEPS = 6
# Part by which two distances along other ways round must differ to count as different: our choice.
_ALIKE = 1e-9


def label(mask: NDArray[np.bool_], grid: Grid, *, corners: bool = True, wrap: bool = True) -> tuple[Numbers, int]:
    """Numbers of the regions, 0 where there is none, and how many there are.

    Args:
        mask: [latitude, longitude].
        grid: of the mask.
        corners: cells that touch at a corner are neighbours too.
        wrap: regions go on over the seam of a grid that is periodic in longitude.
    """
    numbers, count = ndimage.label(mask, np.ones((3, 3)) if corners else None)
    numbers = numbers.astype(np.int32)
    if not (wrap and grid.periodic and count):
        return numbers, int(count)
    east, west = numbers[:, -1], numbers[:, 0]
    pairs = [(east, west)]
    if corners:
        pairs += [(east[1:], west[:-1]), (east[:-1], west[1:])]
    a = np.concatenate([one for one, _ in pairs])
    b = np.concatenate([other for _, other in pairs])
    joined = (a > 0) & (b > 0)
    graph = sparse.coo_matrix((np.ones(joined.sum(), np.int8), (a[joined], b[joined])), (count + 1, count + 1))
    # Number 0 touches nothing, so that it stays a region of its own, and the first one.
    total, region = sparse.csgraph.connected_components(graph, directed=False)
    return region.astype(np.int32)[numbers], int(total) - 1


@dataclass(frozen=True)
class Regions:
    """What the regions 1 to n are like; arrays [n].

    Args:
        cells: how many.
        area: on the sphere [m2].
        latitude, longitude: of the centroid on the sphere [degrees]; longitude within the turn of the grid.
        south, north: bounds of the cells [degrees].
        west, east: bounds of the narrowest range of longitudes [degrees]; east lies above west, and above the end of
            the grid where the region crosses the seam.
    """

    cells: NDArray[np.int64]
    area: NDArray[np.float64]
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    south: NDArray[np.float64]
    north: NDArray[np.float64]
    west: NDArray[np.float64]
    east: NDArray[np.float64]


def between(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """Along a great circle from one point to another [m]."""
    return float(distance([latitude], [longitude], [other_latitude], [other_longitude])[0])


def into_turn(longitude: NDArray[np.float64] | float, grid: Grid) -> NDArray[np.float64]:
    """Longitudes moved by whole turns to where the grid has its own."""
    start = grid.edges[1][0]
    return np.asarray((np.asarray(longitude, np.float64) - start) % 360.0 + start)


def measure(numbers: Numbers, count: int, grid: Grid) -> Regions:
    """Measures the regions of `label`. A region without cells is an error of the caller."""
    row, column = np.nonzero(numbers)
    region = numbers[row, column].astype(np.int64) - 1
    area = grid.areas[row, column]

    def total(weight: NDArray[np.float64]) -> NDArray[np.float64]:
        sums: NDArray[np.float64] = np.bincount(region, weight, count).astype(np.float64)
        return sums

    phi, lam = np.deg2rad(grid.latitude)[row], np.deg2rad(grid.longitude)[column]
    x, y = total(area * np.cos(phi) * np.cos(lam)), total(area * np.cos(phi) * np.sin(lam))
    z = total(area * np.sin(phi))
    first, last = np.full(count, grid.shape[0]), np.full(count, -1)
    np.minimum.at(first, region, row)
    np.maximum.at(last, region, row)
    west, east = _range(region, column, count, grid)
    return Regions(
        cells=np.bincount(region, minlength=count).astype(np.int64),
        area=total(area),
        latitude=np.rad2deg(np.arctan2(z, np.hypot(x, y))),
        longitude=into_turn(np.rad2deg(np.arctan2(y, x)), grid),
        south=grid.edges[0][first],
        north=grid.edges[0][last + 1],
        west=west,
        east=east,
    )


def _range(
    region: NDArray[np.int64], column: NDArray[np.int64], count: int, grid: Grid
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The narrowest range of longitudes of each region: all but the widest gap between columns that it has."""
    width = grid.shape[1]
    owner, columns = np.divmod(np.unique(region * width + column), width)
    start = np.searchsorted(owner, np.arange(count))
    end = np.append(start[1:], owner.size) - 1
    gap = np.zeros(owner.size, np.int64)  # free columns to the west of each
    gap[1:] = columns[1:] - columns[:-1] - 1
    # On a grid that does not close upon itself the widest gap is that outside the grid.
    gap[start] = columns[start] + width - columns[end] - 1 if grid.periodic else width
    widest = np.zeros(count, np.int64)
    np.maximum.at(widest, owner, gap)
    at = np.nonzero(gap == widest[owner])[0]
    # Of several gaps as wide, the first.
    chosen = at[np.searchsorted(owner[at], np.arange(count))]
    before = np.where(chosen == start, end, chosen - 1)
    edges = grid.edges[1]
    west = edges[columns[chosen]]
    east = edges[columns[before] + 1]
    return west, np.where(east > west, east, east + 360.0)


def lengths(numbers: Numbers, chosen: NDArray[np.int64], grid: Grid) -> NDArray[np.float64]:
    """Lengths of regions [m]: the longest of the shortest paths inside, from cell to cell along great circles.

    A path takes any of the eight neighbours, so that it is at most 8 % longer than the straight one. Its ends are
    looked for in sweeps from one end to the cell farthest from it, as long as that lengthens the path. They begin at
    the cell farthest from the middle of the region, so that it does not matter how the grid lies in memory.

    Args:
        numbers: of `label` with corners.
        chosen: numbers of the regions to measure.
        grid: of the numbers.
    """
    height, width = grid.shape
    wanted = np.zeros(int(numbers.max(initial=0)) + 1, bool)
    wanted[chosen] = True
    row, column = np.nonzero(wanted[numbers])
    if not row.size:
        return np.zeros(len(chosen))
    node = np.full((height, width), -1)
    node[row, column] = np.arange(row.size)
    parts = [_steps(node, row, column, up, side, grid) for up, side in ((0, 1), (1, -1), (1, 0), (1, 1))]
    one, other, step = (np.concatenate(part) for part in zip(*parts, strict=True))
    graph = sparse.csr_matrix((step, (one, other)), (row.size, row.size))
    region = numbers[row, column]
    away, order = _seen_from_the_middle(row, column, region, grid)

    def most(value: NDArray[np.float64]) -> NDArray[np.int64]:
        """The cell of each region in which it is largest; of several that it is alike in, the first by their order."""
        limit = np.full(int(region.max()) + 1, np.inf)
        limit[chosen] = ndimage.maximum(value, region, chosen)
        close = value >= limit[region] - _ALIKE * np.abs(limit[region])
        best = ndimage.maximum_position(np.where(close, order, -1.0), region, chosen)
        return np.array([position[0] for position in best], dtype=np.int64)

    def farthest(sources: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """One source in each region: no path leads from one to another, so that one sweep serves all."""
        reach = sparse.csgraph.dijkstra(graph, directed=False, indices=sources, min_only=True)
        reach[~np.isfinite(reach)] = -1.0
        where = most(reach)
        return where, reach[where]

    ends, found = farthest(most(away))
    for _ in range(_SWEEPS):
        ends, longer = farthest(ends)
        if not (longer > found * (1 + _ALIKE)).any():
            break
        found = np.maximum(found, longer)
    return found


def _seen_from_the_middle(
    row: NDArray[np.int64], column: NDArray[np.int64], region: NDArray[Any], grid: Grid
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far cells are from the mean direction of their region's area, in some measure; and an order of each region's
    cells, from south to north and west to east, that is the same wherever the seam of the grid is. Both positive.
    """
    north, east = np.deg2rad(grid.latitude[row]), np.deg2rad(grid.longitude[column])
    at = np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)])
    area = grid.areas[row, column]
    middle = np.stack([np.bincount(region, area * part) for part in at])
    middle = middle / np.maximum(np.linalg.norm(middle, axis=0), 1e-30)
    beside = (np.rad2deg(east - np.arctan2(middle[1], middle[0])[region]) + 180.0) % 360.0
    return 1.0 - (at * middle[:, region]).sum(0), 1e3 * row + beside


def _steps(
    node: NDArray[np.int64], row: NDArray[np.int64], column: NDArray[np.int64], up: int, side: int, grid: Grid
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The steps from cells of the graph to one of their neighbours, and how far it is."""
    height, width = grid.shape
    beside = column + side
    inside = (row + up < height) & (grid.periodic | ((beside >= 0) & (beside < width)))
    row, column, beside = row[inside], column[inside], beside[inside] % width
    other = node[row + up, beside]
    there = other >= 0
    row, column, beside = row[there], column[there], beside[there]
    latitude, longitude = grid.latitude, grid.longitude
    step = distance(latitude[row], longitude[column], latitude[row + up], longitude[beside])
    return node[row, column], other[there], step
