"""Session: carries out what a control plane decides.

Events come from several threads: backward (a group is ready), the main thread (the step is complete), a receiver (a
control message), a clock (a time asked for has come). Whoever brings an event carries out the actions it calls for,
under the session's lock: groups are packed and launched right there. A plane that negotiates nothing thus runs
without any other thread; and on one node messages lie in shared memory, where backward and the main thread find them.
"""

import heapq
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from exafield.channel import Channel, Pending
from exafield.message import ControlPlane, Event, Launch, Ready, Received, Send, Woken, bits
from exafield.reduce.bucket import Bucket, Buffer
from exafield.reduce.collective import Links
from exafield.reduce.shared import Mailbox, Nap, SharedLinks
from exafield.trace import Trace

# Control words hold this many bits of a mask each, so that none reaches the sign bit of int64.
_BITS = 62
_GOODBYE = -1
# Words before the mask in a control message: their count, and up to two of them.
_HEADER = 3


class _OnStream:
    """A collective of a buffer that was packed on another stream, which some collectives do not wait for."""

    def __init__(self, pending: Pending, packed: Any) -> None:
        self._pending, self._packed = pending, packed

    def wait(self, timeout: float | None = None) -> bool:
        if not self._pending.wait(timeout):
            return False
        torch.cuda.current_stream().wait_event(self._packed)
        return True

    def on_done(self, callback: Callable[[BaseException | None], None]) -> None:
        self._pending.on_done(callback)


@dataclass(slots=True)
class Flight:
    """The groups of one step, on their way.

    Attributes:
        buckets: that were packed, in the order of the plan.
        factor: that gradients were multiplied by.
        status: what the last group carries.
        open: mask of the groups not launched yet.
        launched: set when all are, or when something went wrong.
        buffers: of the groups launched, by number.
        pending: their reductions, in the order of launching.
    """

    buckets: list[Bucket]
    factor: float | torch.Tensor = 1.0
    status: list[int] = field(default_factory=list)
    open: int = 0
    launched: threading.Event = field(default_factory=threading.Event)
    buffers: dict[int, Buffer] = field(default_factory=dict)
    pending: list[tuple[int, Pending]] = field(default_factory=list)


class Session:
    """One reduction's plane, channels and flights.

    Args:
        number, name: for threads and traces.
        rank, size: of the ranks that negotiate; a fake world negotiates with nobody.
        control: channel for control messages.
        capacity: most groups any plan can have.
    """

    def __init__(
        self, number: int, name: str, rank: int, size: int, control: Channel, links: Links, trace: Trace, capacity: int
    ) -> None:
        self.number, self.name, self.rank, self.size = number, name, rank, size
        self.control, self.links, self.trace = control, links, trace
        self.messages = self.bytes = self.launches = 0
        self.error: BaseException | None = None
        self.plane: ControlPlane
        self.flight = Flight([])
        self._words = _HEADER + -(-capacity // _BITS)
        self._offered = 0
        self._marks: dict[int, Any] = {}
        self._ready: dict[int, float] = {}
        self._agreeing: float | None = None
        self._stream: Any = None
        self._receiver: threading.Thread | None = None
        self._sources: frozenset[int] = frozenset()
        self._mail: Mailbox | None = None
        if isinstance(links, SharedLinks):
            # A rank is a step ahead of another one at the most, and says each group a few times at the most.
            self._mail = links.mailbox(self._words, 4 * capacity + 64)
        # Whoever handles an event may cause another one: its own send may fail, for one.
        self._lock = threading.RLock()

    # ---- called between steps ----

    def listen(self, sources: frozenset[int]) -> None:
        """Takes control messages from these ranks from now on; all ranks listen to theirs."""
        self._sources = sources
        if sources and self._receiver is None and self._mail is None:
            name = f"exafield-receiver-{self.number}"
            self._receiver = threading.Thread(target=self._receive, name=name, daemon=True)
            self._receiver.start()

    def plan(self, buckets: list[Bucket], plane: ControlPlane) -> None:
        """Takes a new plan; only between steps."""
        self.links.plan([bucket.name for bucket in buckets])
        with self._lock:
            self.plane = plane
            self._begin(buckets)

    def _begin(self, buckets: list[Bucket]) -> None:
        self.flight = Flight(buckets, open=(1 << len(buckets)) - 1)
        self._offered = 0
        self._marks, self._ready = {}, {}

    def begin(self) -> Flight:
        """Starts the next step; returns the flight of the one before."""
        self.control.settle()
        with self._lock:
            before = self.flight
            self._begin(before.buckets)
            return before

    def close(self) -> None:
        """Ends the receiver of the next rank, with the previous rank's goodbye our own, and the channels."""
        if self._receiver is not None:
            self.control.send((self.rank + 1) % self.size, torch.full((self._words,), _GOODBYE))
            self._receiver.join()
        self.control.close()
        self.links.close()

    # ---- events ----

    def offer(self, group: int, factor: float | torch.Tensor) -> None:
        """All local gradients of `group` are there; they are to be multiplied by `factor`."""
        with self._lock:
            self.flight.factor = factor
            self._ready_now(1 << group, False)

    def flush(self, factor: float | torch.Tensor, status: list[int]) -> None:
        """The step is complete: what has no gradient counts as zero."""
        with self._lock:
            self.flight.factor, self.flight.status = factor, status
            self._ready_now((1 << len(self.flight.buckets)) - 1, True)

    def launched(self, timeout: float) -> bool:
        """Waits until all groups of the step are launched, or a time [s] is over.

        Raises:
            RuntimeError: a rank of this node has died.
        """
        if self._mail is None:
            return self.flight.launched.wait(timeout)
        nap = Nap(timeout)
        while not self.flight.launched.is_set():
            with self._lock:
                self._take_mail()
            if not self.flight.launched.is_set() and nap.over(self.links.check):  # type: ignore[attr-defined]
                return False
        return True

    def _ready_now(self, groups: int, complete: bool) -> None:
        new = groups & ~self._offered  # a group is offered once; what a flush repeats is no news to the plane
        self._offered |= groups
        if self.trace.enabled or self._on_cuda:
            mark = self._mark()
            for group in bits(new):
                self._marks[group], self._ready[group] = mark, time.perf_counter()
        self._handle(Ready(time.perf_counter(), self.rank, new, complete))
        self._take_mail()

    def _handle(self, event: Event) -> None:
        """What goes wrong here is raised where the main thread waits."""
        with self._lock:
            rounds = self.plane.rounds
            try:
                for action in self.plane.handle(event):
                    if isinstance(action, Launch):
                        for group in action.groups:
                            self._launch(self.flight, group)
                    elif isinstance(action, Send):
                        self.messages += 1
                        self._send(action.to, self._encode(action.words))
                    else:
                        clock().wake(self, action.time)
            except Exception as error:
                self._fail(error)
            if self.trace.enabled:
                self._note_rounds(rounds, event)

    def _note_rounds(self, before: int, event: Event) -> None:
        """A negotiation lasts from entering it to the first launch after, or to the next one."""
        now = time.perf_counter()
        if self._agreeing is not None and (self.plane.rounds > before or not self.flight.open):
            self.trace.add(f"agree {self.name}", f"round {before}", self._agreeing, now)
            self._agreeing = None
        if self.plane.rounds > before and self.flight.open:
            self._agreeing = event.now
        elif self.plane.rounds > before:
            self.trace.add(f"agree {self.name}", f"round {self.plane.rounds}", event.now, now)

    def _fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self.flight.launched.set()

    # ---- groups ----

    def again(self, flight: Flight, groups: int) -> None:
        """Reduces some groups of a flight once more; every rank does the same."""
        flight.pending.clear()
        flight.open = groups
        for group in bits(groups):
            flight.buffers[group].busy = False
            self._launch(flight, group)

    def _launch(self, flight: Flight, group: int) -> None:
        bucket = flight.buckets[group]
        status = flight.status if group == len(flight.buckets) - 1 else []
        launched = time.perf_counter()
        if self._on_cuda:
            buffer, pending = self._launch_cuda(bucket, status, flight.factor, self._marks.get(group))
        else:
            buffer = bucket.pack(status, flight.factor)
            pending = self.links.run(buffer.wire, self._gradients(buffer), bucket.name)
        flight.buffers[group] = buffer
        flight.pending.append((group, pending))
        flight.open &= ~(1 << group)
        self.launches += 1
        self.bytes += bucket.nbytes
        if self.trace.enabled:
            self._note(group, launched, pending, bucket.nbytes)
        if not flight.open:
            flight.launched.set()

    @staticmethod
    def _gradients(buffer: Buffer) -> int:
        """Elements of the wire that are gradients."""
        return buffer.gradients * (2 if buffer.flat.is_complex() else 1)

    def _note(self, group: int, launched: float, pending: Pending, nbytes: int) -> None:
        ready = self._ready.get(group, launched)
        self.trace.add(f"ready {self.name}", f"group {group}", ready, launched, bytes=nbytes)

        def done(_: BaseException | None) -> None:
            now = time.perf_counter()
            self.trace.add(f"reduce {self.name}", f"group {group}", launched, now, bytes=nbytes)

        pending.on_done(done)

    # ---- CUDA: packing and reduction run on a stream of their own, and nothing waits on the host ----

    @property
    def _on_cuda(self) -> bool:
        buckets = self.flight.buckets
        return bool(buckets) and buckets[0].parameters[0].is_cuda

    def _mark(self) -> Any:
        if not self._on_cuda:
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _launch_cuda(
        self, bucket: Bucket, status: list[int], factor: float | torch.Tensor, mark: Any
    ) -> tuple[Buffer, Pending]:
        if self._stream is None:
            self._stream = torch.cuda.Stream(bucket.parameters[0].device)
        with torch.cuda.stream(self._stream):
            if mark is not None:
                self._stream.wait_event(mark)
            else:
                self._stream.wait_stream(torch.cuda.default_stream(bucket.parameters[0].device))
            for parameter in bucket.parameters:
                if parameter.grad is not None:  # its memory may be given away before this stream has read it
                    parameter.grad.record_stream(self._stream)
            buffer = bucket.pack(status, factor)
            pending = self.links.run(buffer.wire, self._gradients(buffer), bucket.name)
            packed = torch.cuda.Event()
            packed.record()
        return buffer, _OnStream(pending, packed)

    # ---- the wire ----

    def _send(self, to: int, row: list[int]) -> None:
        if self._mail is not None:
            self._mail.send(to, row)
        else:
            self.control.send(to, torch.tensor(row))

    def _take_mail(self) -> None:
        if self._mail is not None and self._sources:
            for source, row in self._mail.poll(self._sources):
                self._received(source, row)

    def _encode(self, words: tuple[int, ...]) -> list[int]:
        *head, mask = words
        row = [len(head), *head] + [0] * (_HEADER - 1 - len(head))
        while len(row) < self._words:
            row.append(mask & ((1 << _BITS) - 1))
            mask >>= _BITS
        return row

    def _receive(self) -> None:
        buffer = torch.zeros(self._words, dtype=torch.int64)
        while True:
            try:
                source = self.control.receive(buffer)
            except RuntimeError as error:
                self._fail(error)
                return
            if int(buffer[0]) == _GOODBYE:
                return
            self._received(source, buffer.tolist())

    def _received(self, source: int, message: list[int]) -> None:
        count, *row = message
        mask = sum(word << (_BITS * i) for i, word in enumerate(row[_HEADER - 1 :]))
        self._handle(Received(time.perf_counter(), self.rank, source, (*row[:count], mask)))

    def wake(self) -> None:
        """A time asked for has come."""
        self._handle(Woken(time.perf_counter(), self.rank))


class _Clock:
    """A thread that wakes sessions at the times they asked for. One per process, started when first needed."""

    def __init__(self) -> None:
        self._times: list[tuple[float, int, Session]] = []
        self._serial = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="exafield-clock", daemon=True).start()

    def wake(self, session: Session, at: float) -> None:
        with self._changed:
            self._serial += 1
            heapq.heappush(self._times, (at, self._serial, session))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._times or self._times[0][0] > time.perf_counter():
                    wait = self._times[0][0] - time.perf_counter() if self._times else None
                    self._changed.wait(wait)
                session = heapq.heappop(self._times)[2]
            session.wake()


_clock: _Clock | None = None
_clock_lock = threading.Lock()


def clock() -> _Clock:
    """The process's clock."""
    global _clock
    with _clock_lock:
        _clock = _clock or _Clock()
        return _clock
