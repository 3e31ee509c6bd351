"""A four-dimensional scan in a file, whatever its kind: a part at a time, so that it may be larger than memory.

Axes are called x, y (the scan) and kx, ky (the detector). Unless said otherwise the first scan axis of a file is x.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from exafield.microscopy.calibration import Axis, Calibration, ScanError, both, from_axes, from_facts

AXES = ("x", "y", "kx", "ky")
# Bytes of patterns that are read at a time, our choice: large enough for the disk, small against memory.
BLOCK = 2**25


@runtime_checkable
class Stack(Protocol):
    """An array in a file: four axes, or three of which the first counts patterns."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its length along each axis."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its elements."""
        ...

    def __getitem__(self, place: tuple[slice, ...]) -> Any:
        """A part of it, as an array."""
        ...


@dataclass
class Opened:
    """What a reader finds.

    Args:
        stack: the patterns.
        axes: what the file states of each axis, in the file's order.
        facts: scalars of the file, by name.
        truth: the potential that the scan was simulated from, where the file holds it.
        owner: what is closed at the end.
        said: what a user should know.
        scan_shape: rows and columns that a file beside it states, where it only counts patterns itself.
    """

    stack: Stack
    axes: Sequence[Axis | None] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    truth: "Truth | None" = None
    owner: Any = None
    said: list[str] = field(default_factory=list)
    scan_shape: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Truth:
    """A known potential.

    Args:
        potential: (x, y) [V A], not blurred.
        x, y: of its pixels, from the first probe [A]; equally spaced.
    """

    potential: NDArray[np.float32]
    x: NDArray[np.float64]
    y: NDArray[np.float64]


class ScanFile:
    """A scan that is read a part at a time.

    Args:
        path: of the file, for messages.
        opened: what its reader found.
        axes: names of the axes in the file's order, such as ("y", "x", "ky", "kx"); None: by the file's units, else
            x, y, kx, ky.
        scan_shape: positions along the scan axes, in the file's order, where the file only counts patterns.
    Raises:
        ScanError: the array has another number of axes or of patterns.
    """

    def __init__(
        self,
        path: Path,
        opened: Opened,
        axes: Sequence[str] | None = None,
        scan_shape: tuple[int, int] | None = None,
    ) -> None:
        self.path, self.truth, self.said, self._owner = path, opened.truth, list(opened.said), opened.owner
        stack, stated = opened.stack, list(opened.axes)
        if len(stack.shape) == 3:
            stack = _Folded(path, stack, scan_shape or opened.scan_shape, "--shape" if scan_shape else "its .hdr file")
            self.said += stack.said
            stated = [None, *stated] if len(stated) == 3 else []
        elif len(stack.shape) != 4:
            raise ScanError(
                f"{path}: the array has the shape {_by(stack.shape)}; a scan has four axes (two of the scan, two of "
                "the detector), or three of which the first counts patterns"
            )
        self._stack = stack
        self._order = self._ordered(axes, stated)
        if len(opened.stack.shape) == 4 and scan_shape is not None and _scan_part(stack.shape, axes) != scan_shape:
            raise ScanError(
                f"{path}: --shape {scan_shape[0]} {scan_shape[1]}, but the file states {_by(stack.shape)}: leave it out"
            )
        self.shape: tuple[int, int, int, int] = tuple(stack.shape[at] for at in self._order)  # type: ignore[assignment]
        if min(self.shape) < 2:
            raise ScanError(f"{path}: a scan of {_by(self.shape)} (x, y, kx, ky) has an axis with less than 2 points")
        self.dtype = np.dtype(stack.dtype)
        if self.dtype.kind not in "buif":
            raise ScanError(f"{path}: patterns have the type {self.dtype}, which is no real number")
        along = [stated[at] for at in self._order] if len(stated) == 4 else [None] * 4
        self.told: Calibration = both(from_facts(opened.facts, self.said), from_axes(along, self.said))

    def _ordered(self, axes: Sequence[str] | None, stated: Sequence[Axis | None]) -> tuple[int, ...]:
        """Where x, y, kx, ky are among the axes of the file."""
        if axes is not None:
            if sorted(axes) != sorted(AXES):
                raise ScanError(
                    f"--axes {','.join(axes)}: it must name each of {', '.join(AXES)} once, in the file's order"
                )
            return tuple(list(axes).index(name) for name in AXES)
        kinds = [None if axis is None else axis.kind for axis in stated]
        if kinds == ["detector", "detector", "scan", "scan"]:
            self.said.append("by the units of its axes the file holds kx, ky, x, y: they are taken in this order")
            return (2, 3, 0, 1)
        return (0, 1, 2, 3)

    def swapped(self) -> str:
        """The file's axes, as `--axes` takes them, if those of scan and detector were mistaken for each other."""
        names = [""] * 4
        for at, name in zip(self._order, (*AXES[2:], *AXES[:2]), strict=True):
            names[at] = name
        return ",".join(names)

    def read(self, x: slice, y: slice) -> NDArray[Any]:
        """Patterns (x, y, kx, ky) of a range of positions, in the type of the file.

        Raises:
            ScanError: they cannot be read.
        """
        place = [slice(None)] * 4
        place[self._order[0]], place[self._order[1]] = x, y
        try:
            part = np.asarray(self._stack[tuple(place)])
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            if isinstance(error, ScanError):
                raise
            raise ScanError(
                f"{self.path}: patterns of row {x.start} cannot be read ({error}): is the file whole?"
            ) from error
        return part.transpose(self._order)

    def parts(self, rows: slice, columns: slice | None = None) -> list[tuple[slice, slice]]:
        """Ranges of positions that make up some rows (and columns), of about 32 MiB each."""
        columns = columns or slice(0, self.shape[1])
        at_once = max(1, BLOCK // (self.shape[2] * self.shape[3] * 4))
        chunks = getattr(self._stack, "chunks", None)
        # A compressed chunk is decoded whole: all its rows are taken at once, as memory allows.
        height = min(chunks[self._order[0]], at_once) if chunks else 1
        width = max(1, min(at_once // height, columns.stop - columns.start))
        height = max(height, at_once // width)
        return [
            (slice(x, min(x + height, rows.stop)), slice(y, min(y + width, columns.stop)))
            for x in range(rows.start, rows.stop, height)
            for y in range(columns.start, columns.stop, width)
        ]

    def close(self) -> None:
        """Closes the file."""
        if self._owner is not None:
            self._owner.close()

    def __enter__(self) -> "ScanFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Folded:
    """Patterns that a file only counts, as rows of a scan."""

    def __init__(self, path: Path, stack: Stack, shape: tuple[int, int] | None, said: str) -> None:
        count = stack.shape[0]
        self.said: list[str] = []
        if shape is None:
            side = math.isqrt(count)
            if side * side != count or side < 2:
                raise ScanError(
                    f"{path} holds {count} patterns and does not say how many are in a row of the scan: give --shape "
                    "ROWS COLUMNS"
                )
            shape = (side, side)
            self.said.append(f"{count} patterns are taken as {side} rows of {side}; if that is wrong give --shape")
        if shape[0] * shape[1] > count:
            raise ScanError(
                f"{path} holds {count} patterns, and {shape[0]} x {shape[1]} positions ({said}) need "
                f"{shape[0] * shape[1]}: is the file whole? If so, --shape says how many there are"
            )
        if shape[0] * shape[1] < count:
            self.said.append(f"of {count} patterns the first {shape[0] * shape[1]} are taken, by {said}")
        self._stack, self.shape, self.dtype = stack, (*shape, *stack.shape[1:]), stack.dtype

    def __getitem__(self, place: tuple[slice, ...]) -> NDArray[Any]:
        (top, bottom, _), (left, right, _) = (s.indices(n) for s, n in zip(place[:2], self.shape, strict=False))
        width = self.shape[1]
        if (left, right) == (0, width):
            part = np.asarray(self._stack[(slice(top * width, bottom * width), *place[2:])])
            return part.reshape(bottom - top, width, *part.shape[1:])
        rows = [
            np.asarray(self._stack[(slice(row * width + left, row * width + right), *place[2:])])
            for row in range(top, bottom)
        ]
        return np.stack(rows)


def _scan_part(shape: Sequence[int], axes: Sequence[str] | None) -> tuple[int, int]:
    """Lengths of the scan axes in the file's order."""
    names = axes if axes is not None else AXES
    first, second = (n for name, n in zip(names, shape, strict=False) if name in ("x", "y"))
    return first, second


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
