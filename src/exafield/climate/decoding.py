"""Snapshots decoded into memory that may be shared between processes. Knows nothing of torch, which starts slowly."""

from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from exafield.climate.normalisation import Statistics
from exafield.climate.snapshot import Axes, Snapshot, SnapshotError

#: To mean 0 and deviation 1, or to 0..1.
Scaling = Literal["standard", "range"]


@runtime_checkable
class SnapshotSequence(Protocol):
    """What :func:`exafield.climate.reading.open_snapshots` gives, and `CompactSnapshots`."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Of each snapshot."""
        ...

    @property
    def axes(self) -> Axes:
        """Of all."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Snapshot: ...

    def locate(self, index: int) -> str:
        """File and time."""
        ...

    def close(self) -> None:
        """Closes files."""
        ...


class Decoder:
    """Reads a snapshot, scales it, and lays fields (float32) and labels (uint8) down one after the other.

    Args:
        snapshots: with labels.
        statistics: of their channels at least.
        scaling: of the fields.
    Raises:
        ValueError: statistics lack a channel, or cannot scale it.
    """

    def __init__(self, snapshots: SnapshotSequence, statistics: Statistics, scaling: Scaling) -> None:
        if scaling not in ("standard", "range"):
            raise ValueError(f"scaling must be 'standard' or 'range', got {scaling!r}")
        self._snapshots, self._scaling = snapshots, scaling
        self._statistics = statistics.select(snapshots.channels)
        rows, columns = snapshots.axes.grid.shape
        self._shape = (len(snapshots.channels), rows, columns)
        # What 0 in its unit becomes in each channel.
        self.zero = self._scaled(np.zeros((len(snapshots.channels), 1, 1), dtype=np.float32))[:, 0, 0]

    @property
    def nbytes(self) -> int:
        """Memory that a decoded snapshot takes."""
        channels, rows, columns = self._shape
        return (4 * channels + 1) * rows * columns

    def views(self, memory: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Fields and labels in a piece of memory."""
        end = 4 * int(np.prod(self._shape))
        fields = memory[:end].view(np.float32).reshape(self._shape)
        return fields, memory[end : self.nbytes].reshape(self._shape[1:])

    def __call__(self, index: int, memory: NDArray[np.uint8]) -> None:
        """Reads a snapshot into memory.

        Raises:
            SnapshotError: it cannot be read, or has no labels.
        """
        snapshot = self._snapshots[index]
        if snapshot.labels is None:
            raise SnapshotError(f"{snapshot.source}: has no labels, which training needs: make them, or leave it out")
        fields, labels = self.views(memory)
        self._scaled(snapshot.values, fields)
        labels[...] = snapshot.labels

    def _scaled(self, values: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        if self._scaling == "range":
            return self._statistics.to_unit_range(values, out)
        return self._statistics.standardised(values, out)
