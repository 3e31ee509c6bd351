"""Loader: batches of a source, read ahead of time."""

import threading
from collections.abc import Mapping
from contextlib import nullcontext
from types import TracebackType

import torch
from torch import Tensor

from exafield.source import Located, Parallel, Sampler, Source, SourceError
from exafield.trace import Trace


class _Failure:
    """What a reading thread hands over instead of a batch."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_Batch = dict[str, Tensor]
_State = dict[str, int]


class Loader:
    """Reads batches of a source ahead of time, in a thread, or in as many as a `Parallel` source can make use of.

    What it yields, and in which order, depends neither on `prefetch` nor on the number of threads.

    Args:
        source: of the samples.
        sampler: deals them out; its state is the loader's to move from now on.
        device: batches are delivered there.
        prefetch: batches read ahead, or one for each thread if these are more; 0 reads when asked, without a thread.
        check: every how many batches the values are checked to be finite; 0 for never.
        trace: takes a span for every batch on lane "loader", and on one more for each further thread.
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
        parallel = source.parallel if isinstance(source, Parallel) else 1
        self._count = max(1, parallel) if prefetch else 0
        self._state = sampler.state_dict()
        self._threads: list[threading.Thread] = []
        # Guards what follows: batches by their number, how many were drawn and delivered, and whether to go on.
        self._change = threading.Condition()
        self._items: dict[int, tuple[_Batch, _State] | _Failure] = {}
        self._drawn = self._delivered = 0
        self._over = False

    def next(self) -> dict[str, Tensor]:
        """This rank's next batch: for each name a tensor (batch, ...) on the device.

        Raises:
            SourceError: the source failed or gave a value that is not finite; names source and sample.
        """
        if not self._count:
            number, parts, state = self._draw()
            batch = self._read(number, parts, "loader")
        else:
            self._start()
            with self._change:
                self._change.wait_for(lambda: self._delivered in self._items)
                item = self._items.pop(self._delivered)
                self._delivered += 1
                self._change.notify_all()
            if isinstance(item, _Failure):
                self.pause()
                raise item.error
            batch, state = item
        self._state = state
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _start(self) -> None:
        if not self._threads:
            lanes = ["loader", *(f"loader {number}" for number in range(2, self._count + 1))]
            self._threads = [
                threading.Thread(target=self._read_ahead, args=(lane,), name=f"exafield {lane}", daemon=True)
                for lane in lanes
            ]
            for thread in self._threads:
                thread.start()

    def _draw(self) -> tuple[int, list[tuple[int, list[int]]], _State]:
        """The next draw: its number, epochs and samples, and where the sequence stands after it."""
        number, self._drawn = self._drawn, self._drawn + 1
        return number, self.sampler.draw(), self.sampler.state_dict()

    def _read(self, number: int, draw: list[tuple[int, list[int]]], lane: str) -> _Batch:
        with self._trace.span(lane, "read") if self._trace.enabled else nullcontext():
            parts = [(self._part(epoch, indices), indices) for epoch, indices in draw]
            if self.check and number % self.check == 0:
                for tensors, indices in parts:
                    self._check_finite(tensors, indices)
            first = parts[0][0]
            batch = first if len(parts) == 1 else {k: torch.cat([p[k] for p, _ in parts]) for k in first}
            if self.device.type == "cuda":
                batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        return batch

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

    def _read_ahead(self, lane: str) -> None:
        most = max(self._prefetch, self._count)
        while True:
            with self._change:
                self._change.wait_for(lambda: self._over or self._drawn - self._delivered < most)
                if self._over:
                    return
                number, draw, state = self._draw()
            item: tuple[_Batch, _State] | _Failure
            try:
                item = self._read(number, draw, lane), state
            except BaseException as error:
                item = _Failure(error)
            with self._change:
                self._items[number] = item
                if isinstance(item, _Failure):  # what comes behind it will not be asked for
                    self._over = True
                self._change.notify_all()

    def state_dict(self) -> dict[str, int]:
        """The state from which the batch after the last delivered one comes next."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from a saved state; what was read ahead is thrown away."""
        with self._change:
            self._over = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._items.clear()
        self._drawn = self._delivered = 0
        self._over = False
        self.sampler.load_state_dict(state)
        self._state = self.sampler.state_dict()

    def pause(self) -> None:
        """Ends the reading thread, after the batch it is at; the next batch asked for starts it again."""
        self.load_state_dict(self._state)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pause()
