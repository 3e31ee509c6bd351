"""Snapshots as batches for training: read, scaled and augmented."""

import queue
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exafield.climate.augment import Augmentation, check_augmentation
from exafield.climate.decoding import Decoder, Scaling, SnapshotSequence
from exafield.climate.normalisation import Statistics
from exafield.climate.readers import Readers
from exafield.climate.snapshot import SnapshotError
from exafield.field import Field


class ClimateSource:
    """A :class:`exafield.source.Source` of snapshots with labels.

    A batch holds "fields", [batch, channel, lat, lon], scaled, and "labels", [batch, lat, lon], class numbers in uint8
    as the losses take them. It does not depend on the number of workers. A context manager; workers end with it.

    Args:
        snapshots: with labels.
        statistics: of the training set, of all channels at least.
        scaling: "standard" to mean 0 and deviation 1, or "range" to 0..1 as the published runs had it.
        augmentation: what is done to samples at random; None: nothing.
        seed: of that.
        workers: processes that read, each for a batch of its own; 0 reads in this one. HDF5 is the reason for them: its
            threads wait for each other.
        cache: bytes of memory for scaled snapshots, which then are kept in fp16 after their first reading, provided
            that all fit. Else none is kept.
        dtype: of the fields, float32 or bfloat16.
        timeout: for reading one snapshot by a worker [s].
    Raises:
        ValueError: the grid does not allow the augmentation, or statistics lack a channel.
    """

    def __init__(
        self,
        snapshots: SnapshotSequence,
        statistics: Statistics,
        *,
        scaling: Scaling = "standard",
        augmentation: Augmentation | None = None,
        seed: int = 0,
        workers: int = 0,
        cache: int = 0,
        dtype: torch.dtype = torch.float32,
        timeout: float = 300.0,
    ) -> None:
        if augmentation is not None:
            check_augmentation(augmentation, snapshots.axes.grid)
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
        if workers < 0 or cache < 0 or seed < 0:
            raise ValueError(f"workers, cache and seed must be 0 or more, got {workers}, {cache} and {seed}")
        self.snapshots, self.augmentation, self.seed, self.dtype = snapshots, augmentation, seed, dtype
        self._decoder = Decoder(snapshots, statistics, scaling)
        self._zero = torch.from_numpy(self._decoder.zero)
        # One for each batch that is made at a time; the one that was busy last is taken first, so that few start.
        self._readers = [
            Readers(self._decoder, 1, memory=self._decoder.nbytes, timeout=timeout) for _ in range(workers)
        ]
        self._idle: queue.LifoQueue[Readers] = queue.LifoQueue()
        for readers in self._readers:
            self._idle.put(readers)
        rows, columns = snapshots.axes.grid.shape
        self._shape = (len(snapshots.channels), rows, columns)
        self.cached = 0 < len(snapshots) * (2 * len(snapshots.channels) + 1) * rows * columns <= cache
        self._kept: dict[int, tuple[NDArray[np.float16], NDArray[np.uint8]]] = {}
        self._lock = threading.Lock()  # of the files, where this process reads them itself

    @property
    def fields(self) -> Mapping[str, Field]:
        """Of a batch. Offset and scale differ between channels, so what restores values is `statistics`."""
        return {
            "fields": Field("fields", ("channel", "lat", "lon"), "1"),
            "labels": Field("labels", ("lat", "lon"), "1"),
        }

    @property
    def processes(self) -> list[int]:
        """Process ids of the workers that run."""
        return [pid for readers in self._readers for pid in readers.processes]

    @property
    def parallel(self) -> int:
        """See :class:`exafield.source.Parallel`."""
        return max(1, len(self._readers))

    def __len__(self) -> int:
        return len(self.snapshots)

    def locate(self, index: int) -> str:
        """File and time of a sample."""
        return self.snapshots.locate(index)

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        """See :class:`exafield.source.Source`.

        Raises:
            SnapshotError: a snapshot cannot be read, has no labels, or its reader process was lost; names the file.
        """
        fields = torch.empty(len(indices), *self._shape, dtype=self.dtype)
        labels = torch.empty(len(indices), *self._shape[1:], dtype=torch.uint8)
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            places.setdefault(index, []).append(place)
        lacking = [index for index in places if index not in self._kept]
        for index in places.keys() - lacking:
            self._place(index, *self._kept[index], places[index], epoch, fields, labels)
        if lacking:
            self._read(lacking, places, epoch, fields, labels)
        return {"fields": fields, "labels": labels}

    def _read(
        self, indices: Sequence[int], places: Mapping[int, list[int]], epoch: int, fields: Tensor, labels: Tensor
    ) -> None:
        if not self._readers:
            memory = np.empty(self._decoder.nbytes, dtype=np.uint8)
            for index in indices:
                with self._lock:
                    self._decoder(index, memory)
                self._take(index, memory, places[index], epoch, fields, labels)
            return
        readers = self._idle.get()
        try:
            # Closed at once if something is wrong: no worker goes on with this batch while the next is asked for.
            with closing(readers.run([(self.locate(index), index) for index in indices])) as answers:
                for answer in answers:
                    if answer.error is not None:
                        raise SnapshotError(answer.error)
                    index = indices[answer.number]
                    self._take(index, answer.memory, places[index], epoch, fields, labels)
        finally:
            self._idle.put(readers)

    def _take(
        self, index: int, memory: NDArray[np.uint8], places: list[int], epoch: int, fields: Tensor, labels: Tensor
    ) -> None:
        values, classes = self._decoder.views(memory)
        if self.cached:
            # Also what is read for the first time passes through fp16: all epochs see the same.
            self._kept[index] = (values.astype(np.float16), classes.copy())
            self._place(index, *self._kept[index], places, epoch, fields, labels)
        else:
            self._place(index, values, classes, places, epoch, fields, labels)

    def _place(
        self,
        index: int,
        values: NDArray[Any],
        classes: NDArray[np.uint8],
        places: list[int],
        epoch: int,
        fields: Tensor,
        labels: Tensor,
    ) -> None:
        """Augments a sample into its places in the batch."""
        sample, mask = torch.from_numpy(values).float(), torch.from_numpy(classes)
        if self.augmentation is not None:
            sample, mask = self.augmentation(
                sample, mask, self.snapshots.channels, seed=self.seed, epoch=epoch, sample=index, zero=self._zero
            )
        for place in places:
            fields[place].copy_(sample)
            labels[place].copy_(mask)

    def close(self) -> None:
        """Ends the workers and closes the files; they would start and open again if needed."""
        for readers in self._readers:
            readers.close()
        self.snapshots.close()

    def __enter__(self) -> "ClimateSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
