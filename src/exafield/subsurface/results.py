"""A posterior as a file: Zarr or NetCDF that xarray opens, with the mesh beside it as UGRID describes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from exafield import provenance
from exafield.requirement import require
from exafield.setting import RunError
from exafield.store import StoreError, whole
from exafield.subsurface.posterior import Posterior
from exafield.subsurface.site import Site
from exafield.subsurface.wells import Wells

ENDINGS = (".zarr", ".nc")
_ENGINES = {".zarr": "zarr", ".nc": "h5netcdf"}
_MADE_WITH = "exafield_made_with"
LEVELS = (0.05, 0.5, 0.95)
_ABOUT = {
    "log_transmissivity": ("natural logarithm of transmissivity in m2 d-1", "1"),
    "head": ("hydraulic head", "m"),
}


def beside(path: Path) -> tuple[Path, Path, Path]:
    """Maps, how well intervals hold what is known, and numbers, which go with a posterior."""
    stem = path.with_suffix("")
    maps, known, numbers = (stem.with_name(stem.name + end) for end in ("-maps.png", "-known.png", ".json"))
    return maps, known, numbers


def check_target(path: Path) -> None:
    """Refuses a name under which no posterior can be written: before anything is computed.

    Raises:
        RunError: it ends otherwise, or there is no folder for it.
        StoreError: something else is there.
        ImportError: what writes it is not installed.
    """
    if path.suffix not in ENDINGS:
        raise RunError(f"--out {path}: choose a name that ends in {' or '.join(ENDINGS)}")
    require("xarray", extra="subsurface")
    require(_ENGINES[path.suffix], extra="subsurface")
    if not path.absolute().parent.is_dir():
        raise RunError(f"--out {path}: there is no folder {path.parent}")
    if path.exists():
        others = [] if _made_with(path) else [path]
    else:
        others = [other for other in beside(path) if other.exists()]
    if others:
        raise StoreError(
            f"--out {path}: {others[0]} is there, and no result of ours under that name: choose another name, or "
            "remove it"
        )


def check_same(path: Path, made_with: Mapping[str, Any]) -> None:
    """Refuses to put a posterior in the place of another, which may have taken hours.

    Args:
        path: that :func:`check_target` has let pass.
        made_with: what the new one depends on, in plain values.
    Raises:
        StoreError: what is there was made otherwise; says in what they differ.
    """
    if not path.exists():
        return
    before = _made_with(path)
    differing = sorted(name for name in {*before, *made_with} if before.get(name) != made_with.get(name))
    if differing:
        raise StoreError(
            f"--out {path}: a posterior is there that was made otherwise ({', '.join(differing)}): choose another "
            "name, or remove it"
        )


def _made_with(path: Path) -> dict[str, Any]:
    """What the posterior there depends on; empty if it is none of ours."""
    try:
        opened = require("xarray", extra="subsurface").open_dataset(path, engine=_ENGINES[path.suffix])
        with opened as dataset:
            told = json.loads(dataset.attrs[_MADE_WITH])
    except (OSError, ValueError, KeyError):
        return {}
    return told if isinstance(told, dict) else {}


def write(
    path: Path,
    site: Site,
    posterior: Posterior,
    wells: Wells,
    attributes: Mapping[str, str] | None = None,
    made_with: Mapping[str, Any] | None = None,
) -> None:
    """Writes what is known of each cell: mean, standard deviation, quantiles and samples of ln T and heads.

    The file is there when it is complete, and then takes the place of one that was there before.

    Args:
        path: ends in .zarr or .nc.
        site: whose mesh it is.
        posterior: with samples.
        wells: what it was told.
        attributes: of the file, such as which run the law is from.
        made_with: what it depends on, in plain values, see :func:`check_same`.
    Raises:
        StoreError: it cannot be written.
        ImportError: xarray, zarr or h5netcdf is not installed.
    """
    told = {_MADE_WITH: json.dumps(dict(made_with or {}), sort_keys=True)}
    dataset = _dataset(site, posterior, wells, {**(attributes or {}), **told})
    with whole(path) as part:
        if path.suffix == ".zarr":
            dataset.to_zarr(part, mode="w", zarr_format=2, consolidated=True)
        else:
            dataset.to_netcdf(part, engine="h5netcdf")


def _dataset(site: Site, posterior: Posterior, wells: Wells, attributes: Mapping[str, str]) -> Any:
    xarray = require("xarray", extra="subsurface")
    variables = _mesh(site)
    for name, samples in (("log_transmissivity", posterior.log_transmissivity), ("head", posterior.head)):
        variables |= _told(name, samples)
    for name, known in (("log_transmissivity", wells.log_transmissivity), ("head", wells.head)):
        if known is not None:
            long, unit = _ABOUT[name]
            variables[f"{name}_read"] = (f"{name}_well", known.values, {"long_name": f"{long}, as read", "units": unit})
            variables[f"{name}_error"] = (
                f"{name}_well", known.errors, {"long_name": f"deviation of the error of {name}", "units": unit},
            )  # fmt: skip
            variables[f"{name}_cell"] = (f"{name}_well", known.cells, {"long_name": "cell of the well, from 0"})
    told = provenance.origin()
    return xarray.Dataset(
        variables,
        coords={"quantile": ("quantile", list(LEVELS), {"long_name": "probability of a smaller value"})},
        attrs={
            "Conventions": "CF-1.10 UGRID-1.0",
            "title": f"posterior of transmissivity and head, {site.name}",
            "history": f"{told['started']}: {told['command']} (exafield {told['exafield']})",
            "provenance": json.dumps(told),
            "misfit": posterior.misfit,
            "note": posterior.note,
            **attributes,
        },
    )


def _told(name: str, samples: Float[np.ndarray, "sample cell"]) -> dict[str, Any]:
    long, unit = _ABOUT[name]
    about = {"units": unit, "mesh": "mesh", "location": "face"}
    quantiles = np.quantile(samples, LEVELS, axis=0)
    return {
        f"{name}_mean": ("cell", samples.mean(axis=0), {"long_name": f"mean of {long}", **about}),
        f"{name}_std": ("cell", samples.std(axis=0), {"long_name": f"standard deviation of {long}", **about}),
        f"{name}_quantile": (("quantile", "cell"), quantiles, {"long_name": f"quantiles of {long}", **about}),
        f"{name}_sample": (
            ("sample", "cell"), samples.astype(np.float32), {"long_name": f"samples of {long}", **about},
        ),
    }  # fmt: skip


def _mesh(site: Site) -> dict[str, Any]:
    """UGRID's description of the mesh; where corners are not known, centres alone."""
    mesh = site.mesh
    variables: dict[str, Any] = {
        f"cell_{axis}": ("cell", mesh.centres[:, number], {"long_name": f"{axis} of the centre", "units": "m"})
        for number, axis in enumerate("xy")
    }
    variables["cell_area"] = ("cell", mesh.areas, {"long_name": "area of the cell", "units": "m2"})
    if mesh.corners is not None:
        variables["mesh"] = (
            (), 0,
            {"cf_role": "mesh_topology", "topology_dimension": 2, "node_coordinates": "node_x node_y",
             "face_node_connectivity": "cell_nodes", "face_coordinates": "cell_x cell_y", "face_dimension": "cell"},
        )  # fmt: skip
        for number, axis in enumerate("xy"):
            variables[f"node_{axis}"] = ("node", mesh.vertices[:, number], {"long_name": axis, "units": "m"})
        nodes = mesh.corners[:, : int((mesh.corners >= 0).sum(axis=1).max())].astype(np.int32)
        about: dict[str, Any] = {
            "cf_role": "face_node_connectivity",
            "long_name": "nodes of the cell",
            "start_index": 0,
        }
        if (nodes < 0).any():  # readers that mask make floats of it, and so it is stated only where it is needed
            about["_FillValue"] = np.int32(-1)
        variables["cell_nodes"] = ("cell", "corner"), nodes, about
    return variables
