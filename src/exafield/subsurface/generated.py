"""Sites that need no data: a box with a river and a drifting supply, of quads, triangles or both."""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from exafield.subsurface.checks import SiteError
from exafield.subsurface.mesh import Mesh
from exafield.subsurface.site import Site

Shape = Literal["quads", "triangles", "mixed"]


def rectangles(
    x: Float[np.ndarray, "column"], y: Float[np.ndarray, "row"]
) -> tuple[Float[np.ndarray, "vertex 2"], Int[np.ndarray, "cell 4"]]:
    """Vertices and corners of rectangles between lines at x and y [m]; cells row by row from below."""
    across, up = np.meshgrid(x, y)
    columns = len(x)
    first = (np.arange(len(y) - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    corners = np.stack([first, first + 1, first + 1 + columns, first + columns], axis=-1)
    return np.stack([across.ravel(), up.ravel()], axis=-1), corners


def random_log_transmissivity(
    points: Float[np.ndarray, "cell 2"],
    *,
    mean: float,
    variance: float,
    length: float,
    seed: int,
    waves: int = 1000,
) -> Float[np.ndarray, "cell"]:
    """A random field with the Matern-5/2 covariance, as a sum of waves (random Fourier features).

    Wave numbers are drawn from the covariance's spectral density, a bivariate Student t with 5 degrees of freedom
    (Rasmussen and Williams, Gaussian Processes for Machine Learning, section 4.2.1); near Gaussian for many waves.

    Args:
        points: [m].
        mean: of the natural logarithm of m2/d.
        variance: of the same.
        length: of correlation [m].
        seed: of the draw.
        waves: how many.
    """
    rng = np.random.default_rng(seed)
    stretch = np.sqrt(5 / rng.chisquare(5, size=(waves, 1)))
    waves_at = points @ (rng.standard_normal((waves, 2)) * stretch / length).T
    field = np.cos(waves_at + rng.uniform(0, 2 * np.pi, waves)).sum(axis=1)
    return np.asarray(mean + np.sqrt(2 * variance / waves) * field)


def box(
    columns: int = 32,
    rows: int = 24,
    *,
    width: float = 16_000.0,
    height: float = 12_000.0,
    shape: Shape = "quads",
    wells: int | None = None,
    seed: int = 0,
    logs: tuple[float, float, float] = (7.8, 2.6, 1_900.0),
) -> Site:
    """A rectangular site: a river in the east falls northwards, water enters from the west, nothing north and south.

    Its size, heads and inflows are of the order of the Hanford Site's, and so is the law of its field; our choice.

    Args:
        columns: of cells.
        rows: of cells.
        width: [m].
        height: [m].
        shape: quads; triangles, two in place of each quad; or mixed, triangles in the northern half. A cut quad's
            triangles are not orthogonal, so heads carry an error there, and a warning says so.
        wells: cells drawn at random as those with a well; every tenth if not given.
        seed: of field and wells.
        logs: mean, variance and correlation length [m] of log-transmissivity.
    """
    if columns < 2 or rows < 2 or not (width > 0 and height > 0):
        raise SiteError(f"a box needs two columns, two rows and a size, got {columns} x {rows}, {width} x {height} m")
    if shape not in get_args(Shape):
        raise SiteError(f"shape must be one of {', '.join(get_args(Shape))}, got {shape!r}")
    vertices, quads = rectangles(np.linspace(0, width, columns + 1), np.linspace(0, height, rows + 1))
    kept = {"quads": rows, "triangles": 0, "mixed": rows // 2}[shape] * columns
    halves = quads[kept:][:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3)
    corners = np.concatenate([quads[:kept], np.pad(halves, ((0, 0), (0, 1)), constant_values=-1)])
    mesh = Mesh.of(vertices, corners)
    wells = mesh.cells // 10 if wells is None else wells
    if not 0 <= wells <= mesh.cells:
        raise SiteError(f"{wells} wells do not fit into {mesh.cells} cells, one in each")
    east = np.flatnonzero(mesh.boundary_centres[:, 0] > width * (1 - 1e-9))
    west = np.flatnonzero(mesh.boundary_centres[:, 0] < width * 1e-9)
    mean, variance, length = logs
    values = random_log_transmissivity(mesh.centres, mean=mean, variance=variance, length=length, seed=seed)
    site = Site(
        mesh=mesh,
        fixed_faces=east,
        fixed_heads=112.0 - 8.0 * mesh.boundary_centres[east, 1] / height,
        inflow_faces=west,
        # Of 10,000 m3/d in all; the Hanford Site has 10,823.
        inflows=10_000.0 * mesh.boundary_lengths[west] / height,
        well_cells=np.sort(np.random.default_rng([seed, 1]).permutation(mesh.cells)[:wells]),
        log_transmissivity=values,
        name="box",
    )
    return site.solved()
