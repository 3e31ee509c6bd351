"""The command `apply`: what a training has learnt, used on data that it never saw."""

from collections.abc import Callable, Sequence
from typing import Any

from exafield.question import Climate, Microscopy, Subsurface
from exafield.setting import RunError
from exafield.suggestion import unknown

HELP = """\
usage: exafield apply PROBLEM RUN ... [OPTIONS]

  exafield apply microscopy RUN SCAN --out RESULT            potential behind a 4D-STEM scan, its error, atom columns
  exafield apply climate RUN FILES... --out MASKS            masks of cyclones and rivers in files of snapshots
  exafield apply subsurface RUN --wells WELLS --out RESULT   transmissivity and heads between wells, with errors

exafield apply PROBLEM --help says more.
"""


def main(argv: Sequence[str], parsed: Callable[..., Any]) -> int:
    """Carries out the command.

    Args:
        argv: its arguments.
        parsed: parses them into a class.
    Raises:
        RunError: something in the arguments is wrong.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if argv else 2
    # Each brings the packages of its science.
    if argv[0] == Microscopy.name:
        from exafield.apply.microscopy import ApplyMicroscopy, see

        return see(parsed(ApplyMicroscopy, "apply microscopy", list(argv[1:])))
    if argv[0] == Climate.name:
        from exafield.apply.climate import ApplyClimate, mark

        return mark(parsed(ApplyClimate, "apply climate", list(argv[1:])))
    if argv[0] == Subsurface.name:
        from exafield.apply.subsurface import ApplySubsurface, infer

        return infer(parsed(ApplySubsurface, "apply subsurface", list(argv[1:])))
    raise RunError(unknown("problem to apply", argv[0], [Microscopy.name, Climate.name, Subsurface.name]))
