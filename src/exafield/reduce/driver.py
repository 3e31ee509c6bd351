"""The driver: one thread per process that carries out what the control planes decide.

It owns clock and timers and moves all reductions of the process: events come in through one queue, from hooks
(a group is ready), from receivers (a control message), from process groups (a reduction is done). It never
blocks on one reduction, so reductions over overlapping sets of ranks cannot hold each other up. When several
reductions have groups to launch at the same time, they go in the order in which they were attached, which is the
same on every rank.
"""

import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from exafield.channel import Channel, LoopbackChannel
from exafield.message import ControlPlane, Launch, Ready, Received, Send, WakeAt, Woken, bits
from exafield.reduce.bucket import Bucket
from exafield.reduce.collective import Collective
from exafield.trace import Trace

T = TypeVar("T")

# Control words hold this many bits of a mask each, so that none reaches the sign bit of int64.
_BITS = 62
_GOODBYE = -1
# Words before the mask in a control message: their count, and up to two of them.
_HEADER = 3


class Session:
    """One reduction as the driver sees it.

    Args:
        number, name: order among the process's reductions.
        control, data: this reduction's own channels.
        listens: whether peers may send control messages.
        capacity: most groups any plan can have.
    """

    def __init__(
        self,
        number: int,
        name: str,
        control: Channel,
        data: Channel,
        collective: Collective,
        trace: Trace,
        *,
        listens: bool,
        capacity: int,
    ) -> None:
        self.number, self.name, self.control, self.data = number, name, control, data
        self.collective, self.trace = collective, trace
        self.messages = self.bytes = self.launches = 0
        self.error: BaseException | None = None
        self.done = threading.Event()
        self.buckets: list[Bucket] = []
        self.plane: ControlPlane
        self._words = _HEADER + -(-capacity // _BITS)
        self._offered = self._open = 0
        self._status: list[int] = []
        self._events: dict[int, Any] = {}
        self._times: dict[int, list[float]] = {}
        self.finished: list[Any] = []
        self._stream: Any = None
        if data.size > 1 and listens and not isinstance(control, LoopbackChannel):
            self.receiver: threading.Thread | None = threading.Thread(
                target=self._receive, name=f"exafield-receiver-{number}", daemon=True
            )
            self.receiver.start()
        else:
            self.receiver = None

    # ---- called by the main thread ----

    def plan(self, buckets: list[Bucket], plane: ControlPlane) -> None:
        """Takes a new plan; only between steps."""
        self.buckets, self.plane = buckets, plane
        self.begin()

    def begin(self) -> None:
        """Starts a step."""
        self.done.clear()
        self._offered = 0
        self._open = (1 << len(self.buckets)) - 1
        self._events, self._times, self.finished = {}, {}, []

    def offer(self, group: int) -> None:
        """All local gradients of `group` are there."""
        driver().post(self, Ready(0.0, self.data.rank, 1 << group), self._mark(group))

    def flush(self, status: list[int]) -> None:
        """The step is complete: what has no gradient counts as zero."""
        self._status = status
        driver().post(self, Ready(0.0, self.data.rank, (1 << len(self.buckets)) - 1, True), self._mark(0))

    def again(self, groups: int) -> None:
        """Reduces these groups once more; every rank asks for the same."""
        self.done.clear()
        self._open = groups
        driver().post(self, Launch(tuple(bits(groups))), self._mark(0))

    def _mark(self, group: int) -> Any:
        if self.buckets[group].parameters[0].device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def close(self) -> None:
        """Ends the receiver of the next rank, with the previous rank's goodbye our own, and the channels."""
        if self.receiver is not None:
            words = torch.full((self._words,), _GOODBYE)
            self.control.send((self.data.rank + 1) % self.data.size, words)
            self.receiver.join()
        self.control.close()
        self.data.close()

    # ---- called by the driver thread ----

    def handle(self, event: object, mark: Any, now: float) -> list[tuple["Session", int, Any]]:
        """Passes an event to the control plane, sends what it says, and returns the groups to launch."""
        if isinstance(event, _Reduced):
            self._reduced(event, now)
            return []
        if isinstance(event, Launch):
            return [(self, group, mark) for group in event.groups]
        if isinstance(event, Ready):
            for group in bits(event.groups & ~self._offered):
                self._events[group] = mark
                self._times[group] = [now]
            # A group is offered once; what a flush repeats is no news to the control plane.
            event = Ready(now, event.rank, event.groups & ~self._offered, event.complete)
            self._offered |= event.groups
        elif isinstance(event, Received):
            event = Received(now, event.rank, event.source, event.words)
        else:
            event = Woken(now, self.data.rank)
        launches = []
        for action in self.plane.handle(event):
            if isinstance(action, Send):
                self.messages += 1
                self.control.send(action.to, self._encode(action.words))
            elif isinstance(action, WakeAt):
                driver().wake(self, action.time)
            else:
                launches += [(self, group, self._events.get(group)) for group in action.groups]
        return launches

    def launch(self, group: int, mark: Any) -> None:
        """Packs a group and starts its reduction."""
        bucket = self.buckets[group]
        start = time.perf_counter()
        self._times.setdefault(group, [start]).append(start)
        self.launches += 1
        status = self._status if group == len(self.buckets) - 1 else []
        if mark is not None:
            self._launch_cuda(bucket, group, mark, status)
            return
        bucket.pack(status)
        self.bytes += bucket.nbytes
        pending = self.collective.run(self.data, bucket.wire)
        pending.on_done(lambda error: driver().post(self, _Reduced(group, error, pending), None))

    def _launch_cuda(self, bucket: Bucket, group: int, mark: Any, status: list[int]) -> None:
        if self._stream is None:
            self._stream = torch.cuda.Stream(bucket.parameters[0].device)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(mark)
            bucket.pack(status)
            self.bytes += bucket.nbytes
            self.collective.run(self.data, bucket.wire).wait()
            bucket.average(self.data.size)
            event = torch.cuda.Event()
            event.record()
        self.finished.append(event)
        self._close(group, time.perf_counter())

    def _reduced(self, event: "_Reduced", now: float) -> None:
        if event.error is not None:
            self.fail(event.error)
            return
        self.buckets[event.group].average(self.data.size)
        self._close(event.group, now)

    def _close(self, group: int, now: float) -> None:
        ready, launched = self._times[group][0], self._times[group][-1]
        size = self.buckets[group].nbytes
        self.trace.add(f"ready {self.name}", f"group {group}", ready, launched, bytes=size)
        self.trace.add(f"reduce {self.name}", f"group {group}", launched, now, bytes=size)
        self._open &= ~(1 << group)
        if not self._open:
            self.done.set()

    def fail(self, error: BaseException) -> None:
        """Ends the step with an error, which the main thread will raise."""
        self.error = self.error or error
        self.done.set()

    # ---- the wire ----

    def _encode(self, words: tuple[int, ...]) -> torch.Tensor:
        *head, mask = words
        row = [len(head), *head] + [0] * (_HEADER - 1 - len(head))
        while len(row) < self._words:
            row.append(mask & ((1 << _BITS) - 1))
            mask >>= _BITS
        return torch.tensor(row)

    def _receive(self) -> None:
        buffer = torch.zeros(self._words, dtype=torch.int64)
        while True:
            try:
                source = self.control.receive(buffer)
            except RuntimeError as error:
                self.fail(error)
                return
            count, *row = buffer.tolist()
            if count == _GOODBYE:
                return
            mask = sum(word << (_BITS * i) for i, word in enumerate(row[_HEADER - 1 :]))
            driver().post(self, Received(0.0, self.data.rank, source, (*row[:count], mask)), None)


class _Reduced:
    """A reduction has ended. Keeps the work alive until then."""

    __slots__ = ("error", "group", "work")

    def __init__(self, group: int, error: BaseException | None, work: object) -> None:
        self.group, self.error, self.work = group, error, work


class Driver:
    """The thread and its queue. There is one per process, made by :func:`driver`."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Session, object, Any]] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Session]] = []
        self._serial = itertools.count()
        threading.Thread(target=self._run, name="exafield-driver", daemon=True).start()

    def post(self, session: Session, event: object, mark: Any) -> None:
        """Hands an event to the driver thread."""
        self._queue.put((session, event, mark))

    def wake(self, session: Session, at: float) -> None:
        """Sends `session` a Woken at time `at`; driver thread only."""
        heapq.heappush(self._timers, (at, next(self._serial), session))

    def _run(self) -> None:
        while True:
            batch = self._next()
            now = time.perf_counter()
            while self._timers and self._timers[0][0] <= now:
                session = heapq.heappop(self._timers)[2]
                batch.append((session, Woken(now, session.data.rank), None))
            launches: list[tuple[Session, int, Any]] = []
            for session, event, mark in batch:
                launches += self._guarded(session, session.handle, event, mark, now) or []
            # The sort is stable: within a reduction the agreed order stays.
            for session, group, mark in sorted(launches, key=lambda item: item[0].number):
                self._guarded(session, session.launch, group, mark)

    def _next(self) -> list[tuple[Session, object, Any]]:
        wait = max(0.0, self._timers[0][0] - time.perf_counter()) if self._timers else None
        batch = []
        try:
            batch.append(self._queue.get(timeout=wait))
            while True:
                batch.append(self._queue.get_nowait())
        except queue.Empty:
            return batch

    @staticmethod
    def _guarded(session: Session, act: Callable[..., T], *args: Any) -> T | None:
        """What goes wrong in one reduction is raised in its finish(); the others go on."""
        try:
            return act(*args)
        except Exception as error:
            session.fail(error)
            return None


_driver: Driver | None = None
_lock = threading.Lock()


def driver() -> Driver:
    """The process's driver, started when first needed."""
    global _driver
    if _driver is None:
        with _lock:
            _driver = _driver or Driver()
    return _driver
