"""MODFLOW 6's text files: blocks of lines, options, arrays."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from exafield.subsurface.checks import SiteError

_COMMENT = ("#", "!", "//")


@dataclass(frozen=True, slots=True)
class Blocks:
    """Rows of words of each block of a file; stress periods are blocks called PERIOD 1 and so on."""

    path: Path
    blocks: dict[str, list[list[str]]]

    def has(self, block: str) -> bool:
        return block in self.blocks

    def names(self, start: str) -> list[str]:
        """Blocks whose names start so."""
        return [name for name in self.blocks if name.split()[0] == start]

    def rows(self, block: str) -> list[list[str]]:
        return self.blocks.get(block, [])

    def has_option(self, name: str) -> bool:
        return any(row[0].upper() == name for row in self.rows("OPTIONS"))

    def option(self, name: str) -> str | None:
        for row in self.rows("OPTIONS"):
            if row[0].upper() == name:
                return row[1] if len(row) > 1 else ""
        return None

    def dimension(self, name: str) -> int:
        for row in self.rows("DIMENSIONS"):
            if row[0].upper() == name and len(row) > 1 and row[1].isdigit():
                return int(row[1])
        raise SiteError(f"{self.path} states no {name} among its DIMENSIONS")

    def number(self, word: str, count: int, what: str) -> int:
        """A number counted from 1, as one counted from 0."""
        if not word.isdigit() or not 1 <= int(word) <= count:
            raise SiteError(f"{self.path}: there is no {what} {word!r}, they are numbered 1..{count}")
        return int(word) - 1

    def needed(self, block: str, name: str, count: int) -> Float[np.ndarray, "count"]:
        """An array that must be there."""
        values = self.array(block, name, count)
        if values is None:
            raise SiteError(f"{self.path} has no array {name} in its block {block}")
        return values

    def array(self, block: str, name: str, count: int) -> Float[np.ndarray, "count"] | None:
        """An array by its name: constant, inside the file or in another one; None if it is not there."""
        rows = self.rows(block)
        for number, row in enumerate(rows):
            if row[0].upper() == name:
                return self._array(name, rows[number + 1 :], count)
        return None

    def _array(self, name: str, rows: list[list[str]], count: int) -> Float[np.ndarray, "count"]:
        line = rows[0] if rows else [""]
        control = [word.upper() for word in line]
        if control[0] == "CONSTANT" and len(line) > 1:
            return np.full(count, self._float(name, line[1]))
        factor = self._float(name, line[control.index("FACTOR") + 1]) if "FACTOR" in control[:-1] else 1.0
        if control[0] == "OPEN/CLOSE":
            if "(BINARY)" in control:
                raise SiteError(f"{self.path}: {name} is in a binary file, and text is read here")
            words = [word for line in _lines(self.path.parent / line[1]) for word in line]
        elif control[0] == "INTERNAL":
            words = []
            for row in rows[1:]:
                if len(words) >= count:
                    break
                words.extend(row)
        else:
            raise SiteError(f"{self.path}: {name} is followed by {control[0]!r}, not CONSTANT, INTERNAL or OPEN/CLOSE")
        if len(words) < count:
            raise SiteError(f"{self.path}: {name} has {len(words)} values, and {count} are needed")
        return np.array([self._float(name, word) for word in words[:count]]) * factor

    def _float(self, name: str, word: str) -> float:
        try:
            return float(word.upper().replace("D", "E"))  # Fortran writes exponents with D too
        except ValueError:
            raise SiteError(f"{self.path}: {name} has {word!r} where a number is needed") from None


def _lines(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise SiteError(f"there is no file {path}")
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.replace(",", " ").replace("'", " ").split()
        if words and not words[0].startswith(_COMMENT):
            found.append(words)
    return found


def read_blocks(path: Path) -> Blocks:
    """The blocks of a file.

    Raises:
        SiteError: there is no such file, or a block does not end.
    """
    blocks: dict[str, list[list[str]]] = {}
    current: str | None = None
    for words in _lines(path):
        first = words[0].upper()
        if first == "BEGIN" and len(words) > 1:
            current = " ".join(words[1:]).upper()
            blocks[current] = []
        elif first == "END":
            current = None
        elif current is not None:
            blocks[current].append(words)
    if current is not None:
        raise SiteError(f"{path}: block {current} does not end")
    return Blocks(path, blocks)
