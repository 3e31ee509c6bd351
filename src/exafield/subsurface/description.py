"""What is known of a site before anything is computed: mesh, boundary, field, wells, and the law they suggest."""

import math
import warnings

import numpy as np
import torch

from exafield.subsurface import darcy
from exafield.subsurface.checks import SiteError
from exafield.subsurface.kriging import Readings
from exafield.subsurface.likelihood import fit
from exafield.subsurface.site import Site
from exafield.subsurface.wells import Wells


def describe(site: Site, wells: Wells | None = None) -> list[str]:
    """Lines to print.

    Args:
        site: to look at.
        wells: readings, if there are any.
    """
    lines = [f"{site.name}", *_geometry(site), *_boundary(site), *_field(site)]
    return lines + (_readings(site, wells) if wells is not None else [])


def _geometry(site: Site) -> list[str]:
    mesh = site.mesh
    sides = np.sqrt(mesh.areas)
    lines = [
        (
            f"  cells          {mesh.cells}, of {mesh.areas.sum() / 1e6:.4g} km2; a cell is {np.median(sides):.4g} m "
            f"wide, {sides.min():.4g} to {sides.max():.4g} m"
        )
    ]
    if np.isfinite(mesh.centres).all():
        points = mesh.vertices if len(mesh.vertices) else mesh.centres
        (x, y), (right, top) = points.min(axis=0), points.max(axis=0)
        lines.append(f"  extent         x {x:.6g} to {right:.6g} m, y {y:.6g} to {top:.6g} m")
    angle = mesh.nonorthogonality
    verdict = "heads are second order" if angle < 0.1 else "two-point fluxes keep an error there"
    return [*lines, f"  faces          {len(mesh.neighbours)} inside, {angle:.2g} degrees off on average: {verdict}"]


def _boundary(site: Site) -> list[str]:
    lines, count = [], len(site.mesh.boundary_cells)
    closed = count - len(site.fixed_faces) - len(site.inflow_faces)
    for name, heads in (
        ("faces", site.fixed_heads),
        ("cells", site.fixed_cell_heads),
        ("leaks to", site.leak_heads),
    ):
        if len(heads):
            lines.append(f"  heads given    {len(heads)} {name}, {heads.min():.6g} to {heads.max():.6g} m")
    if len(site.inflows):
        lines.append(f"  inflow         {len(site.inflows)} faces, {site.inflows.sum():.6g} m3/d in all")
    lines.append(f"  no flow        {closed} of {count} boundary faces")
    assert site.source is not None
    if (pumped := np.count_nonzero(site.source)) > 0:
        lines.append(f"  sources        {pumped} cells, {site.source.sum():.6g} m3/d in all (below zero is pumped)")
    return [*lines, f"  wells          in {len(site.well_cells)} cells"]


def _field(site: Site) -> list[str]:
    y = site.log_transmissivity
    if y is None:
        return ["  ln T           not known"]
    lines = [f"  ln T (m2/d)    mean {y.mean():.4g}, deviation {y.std():.4g}, {y.min():.4g} to {y.max():.4g}"]
    fields = torch.from_numpy(np.array(y))
    head = darcy.solve(site, fields)
    off = float(darcy.imbalance(site, fields, head))
    lines.append(
        f"  heads          {float(head.min()):.6g} to {float(head.max()):.6g} m; water is balanced to {off:.1g} of "
        "what enters"
    )
    return lines


def _readings(site: Site, wells: Wells) -> list[str]:
    lines = []
    for name, unit, known in (("ln T", "", wells.log_transmissivity), ("head", " m", wells.head)):
        if known is not None:
            low, high = known.values.min(), known.values.max()
            error = float(np.sqrt(np.mean(known.errors**2)))
            lines.append(
                f"  {name} read      in {len(known)} cells, {low:.5g} to {high:.5g}{unit}, error {error:.3g}{unit}"
            )
    known = wells.log_transmissivity
    if known is not None and np.isfinite(site.mesh.centres).all():
        lines += _law(site, known)
    return lines


def _law(site: Site, known: Readings) -> list[str]:
    """Fitted to the readings; what is open is said in words, not only as a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            law = fit(site.mesh.centres[known.cells], known.values, nugget=float(np.mean(known.errors**2)))
        except (ValueError, SiteError) as error:
            return [f"  law            cannot be fitted: {error}"]
    low, high = law.intervals["length"]
    upper = f"{high:.4g}" if math.isfinite(high) else "any length"
    lines = [
        (
            f"  law suggested  mean {law.mean:.4g}, variance {law.variance:.4g} ({law.intervals['variance'][0]:.3g} to "
            f"{law.intervals['variance'][1]:.3g}), correlation length {law.length:.4g} m ({low:.4g} to {upper} m), 90 %"
        )
    ]
    return lines + [f"  warning        {entry.message}" for entry in caught]
