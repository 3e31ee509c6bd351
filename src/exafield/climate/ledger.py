"""Which files of a folder are whole copies of which sources, so that staging again brings only what is missing."""

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Read at a time, our choice.
_BLOCK = 1 << 20


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    sum_ = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            sum_ = zlib.crc32(block, sum_)
    return sum_


class Ledger:
    """Takes down what is stored, in a hidden file of this rank in the folder, and says what of all that is still good.

    Args:
        folder: of the copies; ranks may share it.
        rank: that stores.
        names: of the copies.
        origins: of each, what it was made of and how; empty where that cannot be told.
    """

    def __init__(self, folder: Path, rank: int, names: Sequence[str], origins: Sequence[str]) -> None:
        self._folder, self._names, self._origins = folder, names, origins
        self._path = folder / f".staged-{rank}.jsonl"

    def add(self, file: int, path: Path) -> None:
        """Takes down a copy, which is about to get its name."""
        told = [self._names[file], self._origins[file], path.stat().st_size, checksum(path)]
        with open(self._path, "a", encoding="utf-8") as out:
            out.write(json.dumps(told) + "\n")

    def whole(self, files: Iterable[int]) -> list[int]:
        """Those of the files of which a copy is there, of the same origin, and as it was when it was stored."""
        told: dict[str, list[list[Any]]] = {}
        for path in self._folder.glob(".staged-*.jsonl"):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    name, *about = json.loads(line)
                except (ValueError, TypeError):  # cut short by a kill
                    continue
                told.setdefault(name, []).append(about)
        return [file for file in files if self._good(file, told.get(self._names[file], []))]

    def _good(self, file: int, told: Sequence[list[Any]]) -> bool:
        origin, path = self._origins[file], self._folder / self._names[file]
        known = [about for about in told if origin and about[0] == origin]
        try:
            known = [about for about in known if about[1] == path.stat().st_size]
            return bool(known) and checksum(path) in [about[2] for about in known]
        except (OSError, LookupError):
            return False
