"""What the commands on sites take."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from exafield.subsurface.opening import open_site
from exafield.subsurface.site import Site
from exafield.subsurface.wells import Wells, read_wells


@dataclass(frozen=True)
class WellTable:
    """A table of wells.

    Args:
        wells: CSV: x [m] and y [m] (or cell), transmissivity [m2/d], log_error, head [m], head_error [m]; empty where
            nothing was measured. Units stand in the heads of the columns.
        log_error: standard deviation of ln T, where the table has no column log_error.
        head_error: standard deviation of heads [m], where the table has no column head_error.
    """

    wells: Path
    log_error: float | None = None
    head_error: float | None = None

    def digest(self) -> str:
        """Of all that the readings depend on beside the site; the table must have been read."""
        told = repr((self.log_error, self.head_error)).encode() + self.wells.read_bytes()
        return hashlib.sha256(told).hexdigest()

    def read(self, site: Site) -> Wells:
        """The readings."""
        return read_wells(self.wells, site, log_error=self.log_error, head_error=self.head_error)


@dataclass(frozen=True)
class SiteAt:
    """A site.

    Args:
        site: box (generated), hanford (a data set), an npz archive, a MODFLOW 6 simulation, or a folder with mesh.*
            and boundary.csv.
        length: unit of length, where its files state none: m or ft.
        time: unit of time, where MODFLOW states none: d, s, ...
    """

    site: tyro.conf.Positional[str]
    length: str | None = None
    time: str | None = None

    def open(self) -> Site:
        """The site."""
        return open_site(self.site, length=self.length, time=self.time)


@dataclass(frozen=True)
class Describe:
    """Tells what the reader finds: mesh, boundary, field, and with wells the law that their readings suggest.

    Args:
        at: which site.
        wells: table of wells.
        log_error: standard deviation of ln T, where the table has no column log_error.
        head_error: standard deviation of heads [m], where the table has no column head_error.
    """

    at: Annotated[SiteAt, tyro.conf.arg(name="")]
    wells: Path | None = None
    log_error: float | None = None
    head_error: float | None = None


@dataclass(frozen=True)
class Show:
    """Draws a map of a site: ln T and heads where they are known, boundary and wells.

    Args:
        at: which site.
        out: the picture: .png, .pdf or .svg.
    """

    at: Annotated[SiteAt, tyro.conf.arg(name="")]
    out: Path


@dataclass(frozen=True)
class Measure:
    """Reads a site's own field at some wells, with errors: an inverse problem whose answer is known.

    Args:
        at: which site; its field must be known.
        out: the table of wells.
        log_transmissivities: cells where ln T is read.
        heads: wells where heads are read.
        log_error: standard deviation of ln T.
        head_error: standard deviation of heads [m].
        seed: of places and errors.
    """

    at: Annotated[SiteAt, tyro.conf.arg(name="")]
    out: Path
    log_transmissivities: int = 100
    heads: int = 70
    log_error: float = 0.02
    head_error: float = 0.1
    seed: int = 0
