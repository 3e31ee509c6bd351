"""Sources of samples, and how samples reach the ranks: a sampler that deals them out, a loader that reads ahead."""

import queue
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from exafield.field import Field
from exafield.trace import Trace


@runtime_checkable
class Source(Protocol):
    """A numbered set of samples; a sample is a set of named tensors.

    Promises: `batch` depends on nothing but its arguments and the source's own seed (one numpy SeedSequence per
    (seed, epoch, index) for what is drawn at random, never a global generator: it runs in a thread of its own).
    """

    @property
    def fields(self) -> Mapping[str, Field]:
        """What each named tensor means."""
        ...

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        """The samples `indices` of an epoch, on the CPU: for each name one tensor (batch, ...)."""
        ...


@runtime_checkable
class Located(Protocol):
    """A source that can say where a sample comes from, for error messages."""

    def locate(self, index: int) -> str:
        """Such as "views.zarr, crystal Si, view 001"."""
        ...


class SourceError(RuntimeError):
    """A source failed or gave unusable data; the message names the source and the sample."""


class Sampler:
    """Deals the samples of a source out to the ranks.

    All samples of epoch 0 in random order, then all of epoch 1 in another, and so on, form one endless sequence
    that depends on `seed` and `length` alone. Each draw takes the next `batch_size * size` entries, and rank r
    gets the r-th share of `batch_size`. Every sample thus comes exactly once per epoch on any number of ranks;
    what is left of an epoch after its last full draw is carried over into a draw that also holds the
    first samples of the next. The state is a position in the sequence, so a run can go on with other
    `batch_size` or `size` and neither lose nor repeat a sample.

    Args:
        length: number of samples in the source.
        batch_size: samples per draw and rank.
        rank, size: of the world.
        seed: of the order.
    Raises:
        ValueError: there are fewer samples than ranks, or an argument is out of range.
    """

    FORMAT = 1

    def __init__(self, length: int, batch_size: int, rank: int = 0, size: int = 1, seed: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more samples per rank, got {batch_size}")
        if not 0 <= rank < size:
            raise ValueError(f"rank must lie in 0..{size - 1}, got {rank}")
        if seed < 0:
            raise ValueError(f"seed must be 0 or above, got {seed}")
        if length < size:
            raise ValueError(
                f"{length} samples cannot be shared by {size} ranks: give the source at least one sample per rank, "
                f"or run on {max(length, 1)} rank{'s' if length > 1 else ''} or fewer"
            )
        self.length, self.batch_size, self.rank, self.size, self.seed = length, batch_size, rank, size, seed
        self.position = 0
        self._orders: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = {}

    def _order(self, epoch: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
        if epoch not in self._orders:
            generator = np.random.default_rng(np.random.SeedSequence((self.seed, epoch)))
            while len(self._orders) > 1:  # one draw rarely spans more than two epochs
                self._orders.pop(min(self._orders))
            self._orders[epoch] = generator.permutation(self.length)
        return self._orders[epoch]

    @property
    def epoch(self) -> int:
        """Epoch of the next sample to be dealt."""
        return self.position // self.length

    def draw(self) -> list[tuple[int, list[int]]]:
        """This rank's share of the next draw: (epoch, sample indices) once, or several times at the end of an epoch."""
        at = self.position + self.rank * self.batch_size
        end = at + self.batch_size
        self.position += self.batch_size * self.size
        parts = []
        while at < end:
            epoch, first = divmod(at, self.length)
            count = min(end - at, self.length - first)
            parts.append((epoch, self._order(epoch)[first : first + count].tolist()))
            at += count
        return parts

    def state_dict(self) -> dict[str, int]:
        """Where the sequence stands."""
        return {"format": self.FORMAT, "length": self.length, "seed": self.seed, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from a saved state.

        Raises:
            ValueError: it belongs to another sequence.
        """
        if state.get("format") != self.FORMAT:
            raise ValueError(f"sampler state has format {state.get('format')!r}, and this version reads {self.FORMAT}")
        for name in ("length", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"sampler state belongs to a run with {name} {state[name]}, this one has {getattr(self, name)}: "
                    "resume with the same data and seed, or start anew"
                )
        self.position = state["position"]


class _Failure:
    """What the reading thread hands over instead of a batch."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Loader:
    """Reads batches of a source ahead of time, in one thread. What it yields does not depend on `prefetch`.

    Args:
        source: of the samples.
        sampler: deals them out; its state is the loader's to move from now on.
        device: batches are delivered there.
        prefetch: batches read ahead; 0 reads when asked, without a thread.
        check: every how many batches the values are checked to be finite; 0 for never.
        trace: takes a span for every batch on lane "loader".
    """

    def __init__(
        self,
        source: Source,
        sampler: Sampler,
        *,
        device: torch.device | str = "cpu",
        prefetch: int = 2,
        check: int = 1,
        trace: Trace | None = None,
    ) -> None:
        if prefetch < 0 or check < 0:
            raise ValueError(f"prefetch and check must be 0 or above, got {prefetch} and {check}")
        self.source, self.sampler, self.device, self.check = source, sampler, torch.device(device), check
        self._trace = trace or Trace(enabled=False)
        self._prefetch = prefetch
        self._count = 0
        self._state = sampler.state_dict()
        self._ready: queue.Queue[tuple[dict[str, Tensor], dict[str, int]] | _Failure] = queue.Queue(max(prefetch, 1))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def next(self) -> dict[str, Tensor]:
        """This rank's next batch: for each name a tensor (batch, ...) on the device.

        Raises:
            SourceError: the source failed or gave a value that is not finite; names source and sample.
        """
        if not self._prefetch:
            batch, self._state = self._read()
        else:
            if self._thread is None:
                self._thread = threading.Thread(target=self._read_ahead, name="exafield loader", daemon=True)
                self._thread.start()
            item = self._ready.get()
            if isinstance(item, _Failure):
                self.pause()
                raise item.error
            batch, self._state = item
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _read(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        with self._span():
            parts = [(self._part(epoch, indices), indices) for epoch, indices in self.sampler.draw()]
            if self.check and self._count % self.check == 0:
                for tensors, indices in parts:
                    self._check_finite(tensors, indices)
            self._count += 1
            first = parts[0][0]
            batch = first if len(parts) == 1 else {k: torch.cat([p[k] for p, _ in parts]) for k in first}
            if self.device.type == "cuda":
                batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        return batch, self.sampler.state_dict()

    def _span(self) -> AbstractContextManager[None]:
        return self._trace.span("loader", "read") if self._trace.enabled else nullcontext()

    def _part(self, epoch: int, indices: list[int]) -> dict[str, Tensor]:
        try:
            return self.source.batch(indices, epoch)
        except Exception as error:
            culprit = self._culprit(epoch, indices)
            what = f"{type(error).__name__}: {error}"
            raise SourceError(f"{self._name(culprit)} in epoch {epoch} could not be read: {what}") from error

    def _culprit(self, epoch: int, indices: list[int]) -> list[int]:
        """The first sample that fails on its own, or all if none does."""
        for index in indices:
            try:
                self.source.batch([index], epoch)
            except Exception:
                return [index]
        return indices

    def _check_finite(self, tensors: Mapping[str, Tensor], indices: list[int]) -> None:
        for name, tensor in tensors.items():
            # A sum is finite unless a value is not, or the sum overflows: then a closer look decides.
            if not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor.sum())):
                continue
            finite = torch.isfinite(tensor).flatten(1).all(1) if tensor.dim() > 1 else torch.isfinite(tensor)
            if not bool(finite.all()):
                index = indices[int((~finite).nonzero()[0])]
                raise SourceError(
                    f"{self._name([index])} holds NaN or infinity in {name!r}: mend or leave out this sample"
                )

    def _name(self, indices: list[int]) -> str:
        which = f"sample {indices[0]}" if len(indices) == 1 else f"samples {indices}"
        place = f" ({self.source.locate(indices[0])})" if isinstance(self.source, Located) else ""
        return f"{type(self.source).__name__}: {which}{place}"

    def _read_ahead(self) -> None:
        while not self._stop.is_set():
            try:
                item: Any = self._read()
            except BaseException as error:
                item = _Failure(error)
            while not self._stop.is_set():
                try:
                    self._ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(item, _Failure):
                return

    def state_dict(self) -> dict[str, int]:
        """The state from which the batch after the last delivered one comes next."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from a saved state; what was read ahead is thrown away."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.sampler.load_state_dict(state)
        self._state = self.sampler.state_dict()
        self._ready = queue.Queue(max(self._prefetch, 1))
        self._stop.clear()

    def pause(self) -> None:
        """Ends the reading thread, after the batch it is at; the next batch asked for starts it again."""
        self.load_state_dict(self._state)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pause()
