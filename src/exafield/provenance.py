"""Provenance: on what, by which command and with which versions each session of a run was computed."""

import importlib.metadata as metadata
import json
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from exafield.store import StoreError, atomic_write

NAME = "provenance.json"
_HEADER = {"format": "exafield-provenance", "version": 1}
_PACKAGES = ("torch", "numpy", "scipy", "safetensors")


def session(launcher: str, ranks: int, nodes: int, device: torch.device) -> dict[str, Any]:
    """What can be told when a session of a run begins, in plain values.

    Names no user, no environment variables and no home folder.
    """
    return {
        "started": _now(),
        "ended": None,
        "outcome": None,
        "command": command(sys.argv, launcher),
        "exafield": _version("exafield"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "host": platform.node(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "launcher": launcher,
        "ranks": ranks,
        "nodes": nodes,
    }


def origin() -> dict[str, Any]:
    """The same for a file that this process writes by itself: without how it ends, which is not known yet."""
    told = session("exafield", 1, 1, torch.device("cpu"))
    return {name: value for name, value in told.items() if name not in ("ended", "outcome")}


def command(argv: Sequence[str], launcher: str) -> str:
    """What was typed, as a shell takes it, without the launcher before it; the home folder is written ~."""
    program = Path(argv[0]).name
    if program == "__main__.py":
        program = "exafield" if launcher == "exafield" else "python -m exafield"
    return without_home(f"{program} {shlex.join(argv[1:])}".strip())


def without_home(text: str) -> str:
    """The text with the home folder written ~: its name is often a person's."""
    home = os.path.expanduser("~").rstrip("/")
    return text.replace(f"{home}/", "~/") if home.startswith("/") else text


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def processor() -> str:
    """The name of the processor, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def sessions(path: Path) -> list[dict[str, Any]]:
    """The sessions recorded so far, oldest first; none if there is no such file.

    Raises:
        ValueError: the file is damaged or of a newer version; says what to do.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        if read["format"] != _HEADER["format"] or not all(isinstance(s, dict) for s in read["sessions"]):
            raise ValueError("it is not written by exafield")
        version = int(read["version"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); remove it if it is damaged") from error
    if version > 1:
        raise ValueError(f"{path} has provenance format {version}, this exafield reads up to 1: update exafield")
    found: list[dict[str, Any]] = read["sessions"]
    return found


class Provenance:
    """Records one session in a run's file: when it begins, and with what came of it when it ends.

    Used by `with`: an error that ends the session is its outcome. A run is never lost for its provenance: what cannot
    be read or written is warned of.

    Args:
        path: of the file.
        begun: what :func:`session` told.
    """

    def __init__(self, path: Path, begun: dict[str, Any]) -> None:
        self._path, self._session = path, begun
        try:
            self._before = sessions(path)
        except ValueError as error:
            warnings.warn(f"{error}: sessions before this one are no longer told", stacklevel=2)
            self._before = []
        self._write()

    def __enter__(self) -> "Provenance":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.end("interrupted")
        elif error is not None:
            self.end(without_home(f"ended with an error: {type(error).__name__}: {error}"))

    def end(self, outcome: str, **more: object) -> None:
        """The session is over.

        Args:
            outcome: in words.
            more: to be recorded; plain values.
        """
        self._session |= {"ended": _now(), "outcome": outcome, **more}
        self._write()

    def _write(self) -> None:
        text = json.dumps({**_HEADER, "sessions": [*self._before, self._session]}, indent=1)
        try:
            atomic_write(self._path, text.encode())
        except StoreError as error:
            warnings.warn(f"provenance is not recorded: {error}", stacklevel=3)
