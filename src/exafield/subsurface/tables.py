"""CSV tables whose column heads state the unit, as in "head [m]"; messages name file and row."""

import csv
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from exafield.subsurface.checks import SiteError, unit_factor


class Table:
    """A CSV file with a head line; messages name its lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                lines = list(csv.reader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise SiteError(f"{path} cannot be read as a CSV table: {error}") from error
        lines = [[field.strip() for field in line] for line in lines if any(field.strip() for field in line)]
        if len(lines) < 2:
            raise SiteError(f"{path} has no rows under its head line")
        if len(lines[0]) == 1 and any(mark in lines[0][0] for mark in ";\t"):
            raise SiteError(
                f"{path}: fields are divided by semicolons or tabs, and must be by commas, with points in numbers: "
                f"the head line is {lines[0][0]!r}"
            )
        self.units: dict[str, str] = {}
        self.columns: dict[str, list[str]] = {}
        for number, line in enumerate(lines[1:], 2):
            if len(line) != len(lines[0]):
                raise SiteError(f"{path}, row {number} has {len(line)} fields, the head line has {len(lines[0])}")
        for head, *column in zip(*lines, strict=True):
            name, _, unit = head.partition("[")
            if name.strip().lower() in self.columns:
                raise SiteError(f"{path} has two columns {name.strip()!r}")
            self.columns[name.strip().lower()] = column
            if unit:
                self.units[name.strip().lower()] = unit.strip().removesuffix("]").strip()

    def allow(self, *names: str) -> None:
        """Raises SiteError if there are other columns: what they hold would be lost without a word."""
        others = [name for name in self.columns if name not in names]
        if others:
            raise SiteError(
                f"{self.path}: column {others[0]!r} is not known, and what it holds would be lost: known are "
                f"{', '.join(names)}; rename it or leave it out"
            )

    @property
    def rows(self) -> int:
        """Under the head line."""
        return len(next(iter(self.columns.values())))

    def has(self, name: str) -> bool:
        """Whether there is such a column."""
        return name in self.columns

    def filled(self, name: str) -> Bool[np.ndarray, "row"]:
        """In which rows there is something; nowhere if there is no such column."""
        return np.array([bool(text) for text in self.columns.get(name, [""] * self.rows)])

    def plain(self, name: str, chosen: Bool[np.ndarray, "row"] | None = None) -> Float[np.ndarray, "some"]:
        """Finite numbers of all or some rows, whatever their unit."""
        if name not in self.columns:
            raise SiteError(f"{self.path} has no column {name!r}, only {', '.join(self.columns)}")
        column = self.columns[name]
        values = []
        for number in range(len(column)) if chosen is None else np.flatnonzero(chosen):
            try:
                values.append(float(column[number]))
            except ValueError:
                values.append(np.nan)
            if not np.isfinite(values[-1]):
                raise SiteError(
                    f"{self.path}, row {number + 2}: {name} is {column[number]!r}, which is no finite number"
                )
        return np.array(values)

    def whole(self, name: str) -> Int[np.ndarray, "row"]:
        """Whole numbers of all rows."""
        values = self.plain(name)
        broken = np.flatnonzero(values != np.round(values))
        if broken.size:
            raise SiteError(f"{self.path}, row {broken[0] + 2}: {name} is {values[broken[0]]}, no whole number")
        return values.astype(np.int64)

    def numbers(
        self, name: str, length: int, time: int, chosen: Bool[np.ndarray, "row"] | None = None
    ) -> Float[np.ndarray, "some"]:
        """Numbers in metres and days; the column's head must state their unit."""
        values = self.plain(name, chosen)
        try:
            return values * unit_factor(self.units.get(name), length, time)
        except SiteError as error:
            raise SiteError(f"{self.path}, column {name!r}: {error}") from error
