"""The Hanford Site: mesh, boundary conditions, reference field, wells and realisations of the data set `subsurface`."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from exafield import datasets
from exafield.subsurface.readers import from_npz
from exafield.subsurface.site import Site

#: Metres in the data set's unit of length, inferred from a boundary list in metres (59,793 and 59,922 by its sides).
#: Heads do not depend on it, since lengths cancel from two-point fluxes in the plane.
SCALE = 60_000.0


def folder() -> Path:
    """Where the data set lies.

    Raises:
        exafield.datasets.DatasetError: it is not here; says how to get it.
    """
    return datasets.find("subsurface")


def hanford() -> Site:
    """The site with 1,475 cells, steady, its reference field and the heads solved for it."""
    return from_npz(folder() / "hanford_site_1x.npz", scale=SCALE, name="hanford")


def realisations(name: str) -> tuple[Float[np.ndarray, "row cell"], Float[np.ndarray, "row cell"]]:
    """Log-transmissivity and heads [m] of an ensemble: train, test, cond or smooth."""
    with np.load(folder() / "hanford_ensembles_1x.npz", allow_pickle=False) as archive:
        kinds = sorted(key[2:] for key in archive.files if key.startswith("y_") and "u_" + key[2:] in archive.files)
        if name not in kinds:
            raise ValueError(f"ensemble must be one of {', '.join(kinds)}, got {name!r}")
        return archive[f"y_{name}"], archive[f"u_{name}"]
