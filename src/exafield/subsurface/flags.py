"""What the commands on sites take."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from exafield.setting import RunError
from exafield.subsurface.checks import SiteError, length_unit, time_unit
from exafield.subsurface.opening import NAMES, open_site
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
        """The readings.

        Raises:
            RunError: an error is not above 0.
            SiteError, WellError: see :func:`exafield.subsurface.wells.read_wells`.
        """
        for name, error in (("log", self.log_error), ("head", self.head_error)):
            if error is not None and not error > 0:
                raise RunError(f"--{name}-error {error:g}: it must be above 0, since nothing is known exactly")
        return read_wells(self.wells, site, log_error=self.log_error, head_error=self.head_error)


@dataclass(frozen=True)
class SiteAt:
    """A site.

    Args:
        site: box (generated), hanford (a data set), an npz archive, a MODFLOW 6 simulation, or a folder with mesh.*
            (mesh.csv: a plain grid) and boundary.csv.
        length: unit of length, where its files state none: m or ft.
        time: unit of time, where MODFLOW states none: d, s, ...
    """

    site: tyro.conf.Positional[str]
    length: str | None = None
    time: str | None = None

    def open(self) -> Site:
        """The site.

        Raises:
            RunError: there is none of that name, or a unit is not known.
            SiteError: its files cannot be used.
        """
        if self.site not in NAMES and not Path(self.site).exists():
            raise RunError(
                f"there is no site {self.site!r}: it is neither {' nor '.join(NAMES)}, nor a file or folder that is "
                "there"
            )
        try:
            if self.length is not None:
                length_unit(self.length)
            if self.time is not None:
                time_unit(self.time)
        except SiteError as error:
            raise RunError(str(error)) from error
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
        heads: wells where heads are read, of those that the site knows, such as those that pump in MODFLOW; of all
            cells where it knows none.
        heads_at: CSV of places where heads are read instead, in all of them: x [m] and y [m], or cell; optionally well.
        log_error: standard deviation of ln T.
        head_error: standard deviation of heads [m].
        seed: of places and errors.
    """

    at: Annotated[SiteAt, tyro.conf.arg(name="")]
    out: Path
    log_transmissivities: int = 100
    heads: int = 70
    heads_at: Path | None = None
    log_error: float = 0.02
    head_error: float = 0.1
    seed: int = 0
