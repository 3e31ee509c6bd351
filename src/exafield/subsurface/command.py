"""The command `exafield subsurface`: parsing, printing and files. What is computed is elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import tyro

from exafield.setting import RunError
from exafield.subsurface.flags import Describe, Measure, Show, WellTable
from exafield.suggestion import unknown

USAGE = 2
PICTURES = (".png", ".pdf", ".svg", ".jpg")

_HELP = """\
usage: exafield subsurface COMMAND [OPTIONS]

  describe SITE       what the reader finds: mesh, boundary, field, wells, and the law that their readings suggest
  show SITE           a map: ln T and heads where they are known, boundary and wells
  measure SITE        readings of a site's own field in some wells, to try things on

SITE is box (generated), hanford (a data set), or files of your own. exafield subsurface COMMAND --help says more.
The law is learnt by exafield train subsurface; exafield apply subsurface says what is between the wells.
"""


def main(argv: Sequence[str]) -> int:
    """Runs a command, given without `exafield subsurface`; returns the exit code.

    Raises:
        SiteError, WellError, MeshError: something about a site or its wells is wrong.
        DatasetError: a data set is not here.
        StoreError: something cannot be written.
        ImportError: a package is not installed.
    """
    commands: Mapping[str, Callable[[list[str]], int]] = {"describe": _describe, "show": _show, "measure": _measure}
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0 if argv else USAGE
    if argv[0] not in commands:
        raise RunError(unknown("command", f"subsurface {argv[0]}", [f"subsurface {name}" for name in commands]))
    return commands[argv[0]](list(argv[1:]))


_Arguments = TypeVar("_Arguments")


def _parsed(kind: type[_Arguments], command: str, argv: list[str]) -> _Arguments:
    if not argv:
        raise RunError(f"exafield subsurface {command}: which site? --help says more")
    return tyro.cli(kind, prog=f"exafield subsurface {command}", args=argv, config=(tyro.conf.OmitArgPrefixes,))


def check_picture(path: Path) -> None:
    """Raises RunError if a picture cannot be called that."""
    if path.suffix.lower() not in PICTURES:
        raise RunError(f"--out {path}: choose a name that ends in {', '.join(PICTURES)}")
    check_folder(path)


def check_folder(path: Path) -> None:
    """Raises RunError if there is no folder for a file."""
    if not path.absolute().parent.is_dir():
        raise RunError(f"--out {path}: there is no folder {path.parent}")


def _describe(argv: list[str]) -> int:
    arguments = _parsed(Describe, "describe", argv)
    from exafield.subsurface.description import describe

    site = arguments.at.open()
    wells = None
    if arguments.wells is not None:
        wells = WellTable(arguments.wells, arguments.log_error, arguments.head_error).read(site)
    print("\n".join(describe(site, wells)))
    return 0


def _show(argv: list[str]) -> int:
    arguments = _parsed(Show, "show", argv)
    check_picture(arguments.out)
    from exafield.subsurface.maps import COLOURS, Panel, draw

    site = arguments.at.open()
    panels = []
    if site.log_transmissivity is not None:
        y = site.log_transmissivity
        panels.append(Panel("log-transmissivity", y, "ln(T / (m²/d))", COLOURS["log_transmissivity"]))
        head = site.head if site.head is not None else site.solved().head
        assert head is not None
        panels.append(Panel("head", head, "head [m]", COLOURS["head"], None, site.well_cells, "well", True))
    else:
        size = np.sqrt(site.mesh.areas)
        panels.append(Panel("cells", size, "root of the area [m]", "Greys", None, site.well_cells, "well", True))
    draw(arguments.out, site, panels, title=site.name)
    print(arguments.out)
    return 0


def _measure(argv: list[str]) -> int:
    arguments = _parsed(Measure, "measure", argv)
    check_folder(arguments.out)
    from exafield.subsurface.wells import measure, write_wells

    site = arguments.at.open()
    if site.head is None and site.log_transmissivity is not None:
        site = site.solved()
    wells = measure(
        site,
        log_transmissivities=arguments.log_transmissivities,
        heads=arguments.heads,
        log_error=arguments.log_error,
        head_error=arguments.head_error,
        seed=arguments.seed,
    )
    write_wells(arguments.out, site, wells)
    print(arguments.out)
    return 0
