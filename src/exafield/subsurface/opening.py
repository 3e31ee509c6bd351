"""A site by what a user calls it: a name, or a file of one of the kinds that are read."""

from pathlib import Path

from exafield.subsurface.checks import SiteError, length_unit
from exafield.subsurface.modflow import from_modflow
from exafield.subsurface.readers import from_npz, from_tables
from exafield.subsurface.site import Site

NAMES = ("box", "hanford")


def open_site(name: str, *, length: str | None = None, time: str | None = None) -> Site:
    """The site that a text means.

    Args:
        name: box (generated), hanford (a data set), or a path: an npz archive, a MODFLOW 6 simulation (its folder or
            mfsim.nam), or a folder with a mesh that meshio reads (mesh.*) or a plain grid (mesh.csv), boundary.csv, and
            optionally cells.csv and wells.csv; see :mod:`exafield.subsurface.readers`.
        length: unit of length, where the files state none: m or ft; None: metres in an npz, else it must be stated.
        time: unit of time, where MODFLOW states none.
    Raises:
        SiteError: there is no such site, or it cannot be used.
        exafield.datasets.DatasetError: the data set is not here; says how to get it.
    """
    if name in NAMES:
        return Site.load(name)
    path = Path(name)
    if not path.exists():
        raise SiteError(
            f"there is no site {name!r}: it is neither {' nor '.join(NAMES)}, nor a file or folder that is there"
        )
    if path.suffix == ".npz":
        return from_npz(path, scale=length_unit(length or "m"))
    if path.suffix == ".nam" or (path / "mfsim.nam").is_file():
        return from_modflow(path, length=length, time=time)
    if path.is_dir():
        meshes = sorted(path.glob("mesh.*"))
        if len(meshes) != 1:
            found = ", ".join(mesh.name for mesh in meshes) or "none"
            raise SiteError(
                f"{path} must hold one mesh.* (mesh.csv is a plain grid; or mfsim.nam, of MODFLOW 6), and there is "
                f"{found}"
            )
        if not (path / "boundary.csv").is_file():
            raise SiteError(
                f"{path} holds {meshes[0].name} but no boundary.csv, of where heads are given and water enters: "
                "x [m],y [m],head [m],inflow [m3/d]; see docs/subsurface.md"
            )
        cells, wells = ((path / f"{kind}.csv") for kind in ("cells", "wells"))
        return from_tables(
            meshes[0],
            path / "boundary.csv",
            length=length,
            cells=cells if cells.is_file() else None,
            wells=wells if wells.is_file() else None,
        )
    raise SiteError(
        f"{path} is no site: give an .npz, a MODFLOW 6 simulation, or a folder with mesh.* and boundary.csv"
    )
