"""What a network learns from, is watched on, and is judged by: three folders of snapshots, and their statistics."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exafield.climate.generate import PARTS, Part
from exafield.climate.loss import class_frequencies
from exafield.climate.normalisation import Statistics
from exafield.climate.reading import Snapshots, open_snapshots
from exafield.climate.snapshot import SnapshotError
from exafield.store import atomic_write, cache_folder, locked


class Parts:
    """Snapshots with labels in the folders train, validation and test.

    What is gathered over all of the training part is kept: in the folder where it was generated, else in the user's
    cache. Several processes may ask for it at once; one gathers.

    Args:
        folder: that holds the three.
        channels: names, in the order wanted.
        names: channel to the variable that it is, see :func:`exafield.climate.reading.open_snapshots`.
        units: channel to its unit, see there.
    """

    def __init__(
        self,
        folder: str | Path,
        channels: Sequence[str],
        names: Mapping[str, str] | None = None,
        units: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.channels = Path(folder), tuple(channels)
        self.names, self.units = dict(names or {}), dict(units or {})

    def open(self, part: Part, more: Sequence[str] = ()) -> Snapshots:
        """The snapshots of a part.

        Args:
            more: channels that are read behind those of this object.
        Raises:
            SnapshotError: they are not there, not of one grid, or a channel is missing.
        """
        if not (self.folder / part).is_dir():
            raise SnapshotError(
                f"{self.folder} has no folder {part!r}: put snapshots with labels into {', '.join(PARTS)} there"
            )
        return open_snapshots(self.folder / part, channels=(*self.channels, *more), names=self.names, units=self.units)

    @cached_property
    def train(self) -> Snapshots:
        """The part to learn from."""
        return self.open("train")

    @cached_property
    def statistics(self) -> Statistics:
        """Of the channels, over the training part.

        Raises:
            SnapshotError: a snapshot cannot be read, or statistics.json in the folder is damaged.
            ValueError: statistics.json in the folder lacks a channel.
        """
        path = self.folder / "statistics.json"
        if path.exists():
            return Statistics.load(path).select(self.channels)
        path = self._kept("statistics")
        with locked(path):
            if not path.exists():
                Statistics.gather(self.train).save(path)
        return Statistics.load(path)

    @cached_property
    def frequencies(self) -> tuple[float, ...]:
        """Shares of the classes in the training part.

        Raises:
            ValueError: a class does not occur.
        """
        path = self._kept("frequencies")
        with locked(path):
            if not path.exists():
                atomic_write(path, json.dumps(class_frequencies(self._labels())).encode())
        return tuple(json.loads(path.read_text(encoding="utf-8")))

    def _labels(self) -> Iterator[NDArray[np.uint8]]:
        for snapshot in self.train:
            if snapshot.labels is None:
                raise SnapshotError(f"{snapshot.source}: has no labels, which training needs: make them first")
            yield snapshot.labels

    def _kept(self, what: str) -> Path:
        """Where something gathered is kept: by the files that it was gathered from."""
        files = sorted((self.folder / "train").rglob("*"))
        told = [(str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
        text = json.dumps([told, self.channels, self.names, self.units])
        return cache_folder() / f"climate-{what}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
