"""Processes that read files: HDF5 serves one thread of a process at a time, and a file system may never answer."""

import ctypes
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine.one_thread import OneThreadContext

# What a process may take to start [s], our choice: it imports the readers' libraries from a disk that may be slow.
_START = 120.0
# What a process that has been told to end may take [s], our choice; it is killed then.
_GRACE = 1.0
# What a process says when it has started, and when it begins a task.
_READY = "ready"
_BEGUN = "begun"

#: What a reader process does: takes a task and its memory, and returns something small.
Act = Callable[[Any, NDArray[np.uint8]], Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a task.

    Args:
        number: of the task, in the order given.
        value: what the act returned; None if it failed.
        memory: of the process that did it; valid until the next answer is asked for.
        error: None if all went well; tells what is wrong with which task.
        attempts: how often it was tried.
    """

    number: int
    value: Any
    memory: NDArray[np.uint8]
    error: str | None
    attempts: int


class _Seat:
    """A process, its memory, and the task it is at."""

    def __init__(self, memory: Any) -> None:
        self.shared = memory
        self.memory = np.frombuffer(memory, dtype=np.uint8)
        self.process: Any = None
        self.pipe: Connection | None = None
        self.task: tuple[int, int] | None = None  # number and attempt
        self.deadline = 0.0
        self.idle = False  # it has had time to be lost before it begins its task


class Readers:
    """Reader processes. They start when first needed, and a lost one is replaced when next needed.

    Their memory has no name in the file system: however this process or its readers end, nothing is left of it. No
    reader outlives this process. One thread at a time may use them.

    Args:
        act: what they do; must be picklable.
        count: how many.
        memory: bytes that each shares with this process.
        timeout: for one attempt at a task [s]; a process that takes longer is killed.
        retries: further attempts at a task that failed.
    """

    def __init__(self, act: Act, count: int, *, memory: int = 0, timeout: float = 300.0, retries: int = 0) -> None:
        if count < 1 or memory < 0 or retries < 0 or not timeout > 0:
            raise ValueError(
                "readers: count must be 1 or more, memory and retries 0 or more, timeout above 0; "
                f"got {count}, {memory}, {retries}, {timeout}"
            )
        self._act, self._timeout, self._retries, self._keeps = act, timeout, retries, memory > 0
        # Not forked: children would inherit locks of our threads, and HDF5 in the middle of something.
        self._context = OneThreadContext()
        # An anonymous file: its name is gone before anything is written to it.
        self._seats = [_Seat(self._context.RawArray(ctypes.c_uint8, max(memory, 1))) for _ in range(count)]

    @property
    def processes(self) -> list[int]:
        """Process ids of those that run."""
        return [seat.process.pid for seat in self._seats if seat.process is not None and seat.process.is_alive()]

    def run(self, tasks: Sequence[tuple[str, Any]]) -> Generator[Answer, None, None]:
        """Does tasks, in parallel; answers come as they are ready. Close it if not all are taken.

        Args:
            tasks: each with a name for messages.
        """
        waiting = deque((number, 1) for number in range(len(tasks)))
        try:
            while waiting or any(seat.task for seat in self._seats):
                for seat in self._seats:
                    self._next(seat, waiting, tasks)
                for seat, value, error in self._ended(tasks):
                    assert seat.task is not None
                    number, attempt = seat.task
                    seat.task = None
                    if seat.idle and error is not None:  # lost before it began, which is not the task's fault
                        waiting.appendleft((number, attempt))
                        continue
                    if error is not None and attempt <= self._retries:
                        waiting.append((number, attempt + 1))
                        continue
                    if not self._keeps:  # no memory that the receiver of the answer still needs
                        self._next(seat, waiting, tasks)
                    yield Answer(number, value, seat.memory, error, attempt)
        finally:
            for seat in self._seats:
                if seat.task:  # nobody will take its answer
                    self._end(seat, kill=True)
                    seat.task = None

    def _next(self, seat: _Seat, waiting: deque[tuple[int, int]], tasks: Sequence[tuple[str, Any]]) -> None:
        if seat.task is not None or not waiting:
            return
        seat.task = waiting.popleft()
        if seat.process is not None and not seat.process.is_alive():
            self._end(seat, kill=True)
        seat.idle = seat.process is not None
        if seat.process is None:
            self._start(seat)
        else:
            seat.deadline = time.monotonic() + self._timeout
        assert seat.pipe is not None
        with suppress(OSError):  # it has just died, which shows when its answer is waited for
            seat.pipe.send(tasks[seat.task[0]][1])

    def _start(self, seat: _Seat) -> None:
        seat.pipe, theirs = self._context.Pipe()
        seat.process = self._context.Process(
            target=_serve, args=(self._act, theirs, seat.shared), name="exafield reader", daemon=True
        )
        seat.process.start()
        theirs.close()
        seat.deadline = time.monotonic() + _START

    def _ended(self, tasks: Sequence[tuple[str, Any]]) -> list[tuple[_Seat, Any, str | None]]:
        """Seats whose attempt has come to an end, with its value and error; waits for one, or for a deadline."""
        busy = {seat.pipe: seat for seat in self._seats if seat.task}
        soonest = min(seat.deadline for seat in busy.values())
        found: list[tuple[_Seat, Any, str | None]] = []
        for pipe in wait([p for p in busy if p is not None], max(0.0, soonest - time.monotonic())):
            assert isinstance(pipe, Connection)
            seat = busy[pipe]
            assert seat.task is not None
            name = tasks[seat.task[0]][0]
            try:
                said = pipe.recv()
            except (EOFError, OSError):
                found.append((seat, None, f"{name}: {self._fate(seat)}"))
                continue
            if said in (_READY, _BEGUN):
                seat.deadline = time.monotonic() + self._timeout
                seat.idle = False
            else:
                value, error = said
                found.append((seat, value, None if error is None else f"{name}: {error}"))
        ended = {id(seat) for seat, _, _ in found}
        for seat in busy.values():
            assert seat.task is not None
            if id(seat) not in ended and time.monotonic() > seat.deadline and not (seat.pipe and seat.pipe.poll()):
                self._end(seat, kill=True)
                what = f"could not be read within {self._timeout:g} s: is its file system overloaded or gone?"
                found.append((seat, None, f"{tasks[seat.task[0]][0]}: {what}"))
        return found

    def _fate(self, seat: _Seat) -> str:
        pid = seat.process.pid
        seat.process.join(_GRACE)
        code = seat.process.exitcode
        self._end(seat, kill=True)
        how = "ended" if code is None else f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"the process that read it ({pid}) {how}: out of memory, or the file makes a library crash?"

    def _end(self, seat: _Seat, *, kill: bool) -> None:
        process, pipe = seat.process, seat.pipe
        seat.process = seat.pipe = None
        if pipe is not None:
            pipe.close()  # which tells the process to end
        if process is not None:
            if not kill:
                process.join(_GRACE)
            if process.is_alive():
                process.kill()
            process.join()
            process.close()

    def close(self) -> None:
        """Ends the processes. They would start again if needed."""
        for seat in self._seats:
            self._end(seat, kill=seat.task is not None)
            seat.task = None

    def __enter__(self) -> "Readers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(act: Act, pipe: Connection, shared: Any) -> None:
    """The life of a reader process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its readers
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        # Ends with the parent, also in the middle of a read that never returns.
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="follow parent", daemon=True).start()
    memory = np.frombuffer(shared, dtype=np.uint8)
    try:
        pipe.send(_READY)
        while True:
            task = pipe.recv()
            pipe.send(_BEGUN)
            try:
                reply: tuple[Any, str | None] = (act(task, memory), None)
            except Exception as error:
                reply = (None, str(error) or type(error).__name__)
            pipe.send(reply)
    except (EOFError, OSError):
        return
