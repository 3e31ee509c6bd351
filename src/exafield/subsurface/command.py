"""The command `exafield subsurface`: parsing, printing and files. What is computed is elsewhere."""

from collections.abc import Mapping, Sequence

import numpy as np

from exafield.setting import RunError
from exafield.subcommand import Command, carry_out, check_folder, check_picture, parsed
from exafield.subsurface.flags import Describe, Measure, Show, WellTable

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
        RunError: something in the arguments is wrong.
        SiteError, WellError, MeshError: something about a site or its wells is wrong.
        DatasetError: a data set is not here.
        StoreError: something cannot be written.
        ImportError: a package is not installed.
    """
    commands: Mapping[str, Command] = {"describe": _describe, "show": _show, "measure": _measure}
    return carry_out("subsurface", _HELP, commands, argv)


def _describe(argv: list[str]) -> int:
    arguments = parsed(Describe, "subsurface describe", "which site?", argv)
    from exafield.subsurface.description import describe

    site = arguments.at.open()
    wells = None
    if arguments.wells is not None:
        wells = WellTable(arguments.wells, arguments.log_error, arguments.head_error).read(site)
    print("\n".join(describe(site, wells)))
    return 0


def _show(argv: list[str]) -> int:
    arguments = parsed(Show, "subsurface show", "which site?", argv)
    check_picture(arguments.out)
    check_folder(arguments.out)
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
    arguments = parsed(Measure, "subsurface measure", "which site?", argv)
    check_folder(arguments.out)
    from exafield.subsurface.checks import SiteError
    from exafield.subsurface.wells import measure, read_places, write_wells

    site = arguments.at.open()
    if site.head is None and site.log_transmissivity is not None:
        site = site.solved()
    places = None if arguments.heads_at is None else read_places(arguments.heads_at, site)
    try:
        wells = measure(
            site,
            log_transmissivities=arguments.log_transmissivities,
            heads=arguments.heads,
            log_error=arguments.log_error,
            head_error=arguments.head_error,
            seed=arguments.seed,
            heads_at=places,
        )
    except SiteError as error:
        raise RunError(str(error)) from error
    write_wells(arguments.out, site, wells)
    print(arguments.out)
    return 0
