"""Subcommands: what `exafield climate`, `exafield microscopy` and `exafield subsurface` have in common."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from exafield.setting import RunError
from exafield.suggestion import unknown

USAGE = 2
"""Exit code of a command that cannot be carried out as it was given."""
PICTURES = (".png", ".pdf", ".svg", ".jpg")
"""How the names of pictures end."""

Command = Callable[[list[str]], int]
"""Takes its arguments, and gives the exit code."""

_Arguments = TypeVar("_Arguments")


def carry_out(name: str, text: str, commands: Mapping[str, Command], argv: Sequence[str]) -> int:
    """Runs the one of `commands` that is asked for; returns the exit code.

    Args:
        name: what they are commands of, such as "climate".
        text: that is printed as help.
        argv: what stands behind the name.
    Raises:
        RunError: there is no such command.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(text, end="")
        return 0 if argv else USAGE
    if argv[0] not in commands:
        raise RunError(unknown("command", f"{name} {argv[0]}", [f"{name} {command}" for command in commands]))
    return commands[argv[0]](list(argv[1:]))


def parsed(kind: type[_Arguments], command: str, question: str, argv: list[str]) -> _Arguments:
    """The arguments of a command, such as "climate describe".

    Raises:
        RunError: there are none; asks the question.
    """
    if not argv:
        raise RunError(f"exafield {command}: {question} --help says more")
    return tyro.cli(kind, prog=f"exafield {command}", args=argv, config=(tyro.conf.OmitArgPrefixes,))


def check_folder(path: Path, option: str = "--out") -> None:
    """Raises RunError if there is no folder for the file that an option names."""
    if not path.absolute().parent.is_dir():
        raise RunError(f"{option} {path}: there is no folder {path.parent}")


def check_picture(path: Path) -> None:
    """Raises RunError if a picture cannot be called that."""
    if path.is_dir():
        raise RunError(f"--out {path}: this is a folder: name a file")
    if path.suffix.lower() not in PICTURES:
        raise RunError(f"--out {path}: choose a name that ends in {', '.join(PICTURES)}")


def make_folder(path: Path) -> None:
    """Makes the folder of results, before what takes minutes.

    Raises:
        RunError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--out {path}: cannot be made ({error.strerror})") from error
