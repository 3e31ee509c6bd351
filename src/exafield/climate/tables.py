"""Tables that grow row by row, kept as columns, and written as CSV and as CF NetCDF."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.climate import clock, events
from exafield.climate.columns import Column, write_table
from exafield.store import whole

# Rows that are turned into columns together; our choice. A row as an object takes several times the memory.
_BLOCK = 4096


class Table:
    """Rows of one kind, whose columns are annotated as in `events`.

    Args:
        kind: of the rows.
    """

    def __init__(self, kind: type[Any]) -> None:
        self.kind = kind
        self._rows: list[Any] = []
        self._blocks: list[dict[str, NDArray[Any]]] = []
        self._count = 0

    def add(self, row: Any) -> None:
        """Adds a row."""
        self._rows.append(row)
        self._count += 1
        if len(self._rows) == _BLOCK:
            self._pack()

    def extend(self, rows: Sequence[Any]) -> "Table":
        """Adds rows; returns the table."""
        for row in rows:
            self.add(row)
        return self

    def _pack(self) -> None:
        if self._rows or not self._blocks:
            self._blocks.append(events.columns(self._rows, self.kind))
            self._rows = []

    def __len__(self) -> int:
        return self._count

    def columns(self, by: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        """All columns.

        Args:
            by: what to sort by, the most important first.
        """
        self._pack()
        whole = {name: np.concatenate([block[name] for block in self._blocks if len(block[name])] or [values])
                 for name, values in self._blocks[0].items()}  # fmt: skip
        if by and self._count:
            keys = [_sortable(whole[name]) for name in reversed(by)]
            order = np.lexsort(keys)
            whole = {name: values[order] for name, values in whole.items()}
        return whole

    def write(
        self, path: Path, attributes: Mapping[str, str], by: Sequence[str] = (), dimension: str = "row"
    ) -> list[Path]:
        """Writes both files, each whole or not at all; returns their paths.

        Args:
            path: without a suffix.
            attributes: of the NetCDF file.
            by: what to sort by.
            dimension: name of the rows in NetCDF.
        Raises:
            StoreError: they cannot be written.
        """
        columns = self.columns(by)
        as_csv, as_netcdf = path.with_suffix(".csv"), path.with_suffix(".nc")
        with whole(as_csv) as partial:
            events.write_csv(partial, self._again(columns), self.kind)
        told = events.describe(self.kind)
        typed = {name: Column(_typed(values), told[name][1], told[name][0] or None) for name, values in columns.items()}
        return [as_csv, write_table(as_netcdf, typed, attributes, dimension)]

    def _again(self, columns: Mapping[str, NDArray[Any]]) -> Iterator[Any]:
        names = [one.name for one in fields(self.kind)]
        for start in range(0, self._count, _BLOCK):
            block = [columns[name][start : start + _BLOCK].tolist() for name in names]
            yield from (self.kind(*row) for row in zip(*block, strict=True))


def _sortable(values: NDArray[Any]) -> NDArray[Any]:
    return np.array([clock.text(value) for value in values]) if values.dtype == object else values


def _typed(values: NDArray[Any]) -> NDArray[Any]:
    """Times that numpy knows as such: in rows they are objects."""
    if values.dtype == object and (not values.size or isinstance(values[0], np.datetime64)):
        return values.astype("datetime64[s]")
    return values
