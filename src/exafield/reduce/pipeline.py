"""Pipeline: the stages of a reduction, so that one buffer's overlap with those of the buffers before and after it."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch

from exafield.channel import Pending

T = TypeVar("T")

# How often a stage that waits looks whether the pipeline is being closed [s] (our choice).
_LOOK = 0.2


class Journey:
    """One item on its way through the stages: a :class:`exafield.channel.Pending`."""

    def __init__(self, item: Any) -> None:
        self.item = item
        self.under_way: Sequence[Pending] = ()
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[BaseException | None], None]] = []

    def wait(self, timeout: float | None = None) -> bool:
        if not self._ended.wait(timeout):
            return False
        if self._error is not None:
            raise self._error
        return True

    def on_done(self, callback: Callable[[BaseException | None], None]) -> None:
        with self._lock:
            if not self._ended.is_set():
                self._callbacks.append(callback)
                return
        callback(self._error)

    def end(self, error: BaseException | None) -> None:
        """The last stage is over, or one went wrong."""
        with self._lock:
            self._error = error
            self._ended.set()
        for callback in self._callbacks:
            callback(error)


class _Journeys:
    """Several items on their way: done when all are."""

    def __init__(self, parts: Sequence[Pending]) -> None:
        self._parts = parts

    def wait(self, timeout: float | None = None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        return all(p.wait(None if deadline is None else max(0.0, deadline - time.monotonic())) for p in self._parts)

    def on_done(self, callback: Callable[[BaseException | None], None]) -> None:
        # Items pass the stages in order, so the last one ends last; if one goes wrong, so do those behind it.
        self._parts[-1].on_done(callback)


class _Issued:
    """Everything is in the queue of a CUDA stream (without CUDA: done)."""

    def __init__(self) -> None:
        self._event: Any = None
        if torch.cuda.is_initialized():
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self, timeout: float | None = None) -> bool:
        if self._event is not None:
            torch.cuda.current_stream().wait_event(self._event)
        return True

    def on_done(self, callback: Callable[[BaseException | None], None]) -> None:
        callback(None)


class Pipeline(Generic[T]):
    """Stages that every item passes in turn.

    A stage starts collectives and returns them; the next stage is called when they are done. Each stage sees the
    items in the order of the calls of `run`, in one thread of its own (the first: the caller's), so that every channel
    is driven by one thread, and in the same order on all ranks.

    Args:
        name: of the threads.
        stages: the last one starts no collectives.
        threaded: otherwise everything happens in the caller: on CUDA, where it only goes into a stream's queue.
    """

    def __init__(self, name: str, stages: Sequence[Callable[[T], Sequence[Pending]]], *, threaded: bool) -> None:
        self._stages = tuple(stages)
        self._queues: list[queue.SimpleQueue[Journey | None]] = []
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._error: BaseException | None = None
        self._last: Journey | None = None
        for number in range(1, len(self._stages) if threaded else 1):
            self._queues.append(queue.SimpleQueue())
            thread = threading.Thread(target=self._work, args=(number,), name=f"{name}-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def run(self, items: Sequence[T]) -> Pending:
        """Sends items off; the result is there when all have arrived."""
        if not self._threads:
            for item in items:
                for stage in self._stages:
                    for pending in stage(item):
                        pending.wait()
            return _Issued()
        journeys = [Journey(item) for item in items]
        self._last = journeys[-1]
        for journey in journeys:
            self._advance(0, journey)
        return _Journeys(journeys)

    def settle(self) -> None:
        """Returns when nothing is under way."""
        if self._last is not None:
            self._last.wait()

    def close(self) -> None:
        """Ends the threads; what is still under way then ends with an error. Idempotent."""
        self._closing = True
        for waiting in self._queues:
            waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _advance(self, number: int, journey: Journey) -> None:
        try:
            if self._error is not None:
                raise self._error
            journey.under_way = self._stages[number](journey.item)
        except Exception as error:
            self._fail(journey, error)
            return
        if number == len(self._queues):
            journey.end(None)
        else:
            self._queues[number].put(journey)

    def _work(self, number: int) -> None:
        while (journey := self._queues[number - 1].get()) is not None:
            try:
                self._arrive(journey)
            except Exception as error:
                self._fail(journey, error)
            else:
                self._advance(number, journey)

    def _fail(self, journey: Journey, error: BaseException) -> None:
        """After one error nothing goes on: ranks would no longer be at the same item."""
        self._error = self._error or error
        journey.end(error)

    def _arrive(self, journey: Journey) -> None:
        for pending in journey.under_way:
            while not pending.wait(_LOOK):
                if self._closing:
                    raise RuntimeError("the reduction was closed while gradients were under way")
