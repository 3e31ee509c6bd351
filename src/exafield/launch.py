"""Starts several ranks on this machine and sees to it that they end together."""

import ctypes
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

# Exit code of a rank that ended only because another one did: it is not the one to blame.
VICTIM = 70

# Our choices [s]: how often the ranks are looked at, how long one that should end may take before it is killed,
# and how long a culprit is waited for when only victims are seen. Together well within 30 s of the first death.
_POLL = 0.02
_GRACE = 10.0
_SETTLE = 3.0
_TAIL = 12
# How long ranks may take to write a checkpoint when they are asked to stop [s]; our choice: a disk's worst pause.
_STOP_GRACE = 120.0
# Signals that ask a run to stop at the next step.
_STOPS = (signal.SIGTERM, signal.SIGUSR1)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class RankFailed(RuntimeError):  # noqa: N818  (what happened, in the past tense)
    """A rank ended with an error; the message names it, how it ended and what it said last.

    Attributes:
        rank: which one.
        code: its exit code, or minus the number of the signal that killed it.
    """

    def __init__(self, rank: int, code: int, message: str) -> None:
        super().__init__(message)
        self.rank, self.code = rank, code


def check_ranks(ranks: int) -> None:
    """Refuses a number of ranks that makes no sense.

    Raises:
        ValueError: fewer than one.
    """
    if ranks < 1:
        raise ValueError(f"--ranks {ranks}: at least one process is needed; give --ranks 1 or more")


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0))


def bind_to_parent(environ: Mapping[str, str] = os.environ) -> None:
    """Called first in a spawned rank: from now on it dies with its launcher, even if that is killed.

    And what it prints appears at once, each line whole: ranks share a terminal.
    """
    parent = environ.get("EXAFIELD_SPAWNED", "")
    if not parent.isdigit():
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, write_through=False)
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before the line above
        os._exit(VICTIM)


@contextmanager
def stopping() -> Iterator[Callable[[], int]]:
    """Inside, SIGTERM and SIGUSR1 are noted instead of obeyed; gives what tells the first one's number, 0 before.

    Only a main thread may choose what signals do; in others nothing is changed.
    """
    noted = [0]
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def note(number: int, frame: FrameType | None) -> None:
        noted[0] = noted[0] or number

    before = {number: signal.signal(number, note) for number in _STOPS}
    try:
        yield lambda: noted[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def spawn(
    argv: Sequence[str],
    ranks: int,
    *,
    module: str = "exafield",
    grace: float = _GRACE,
    stop_grace: float = _STOP_GRACE,
) -> None:
    """Runs ``python -m MODULE ARGV`` as `ranks` processes of one world on this machine and waits for all.

    Rank 0 writes to this terminal; what the others print comes with their number in front. If a rank fails, or on
    Ctrl-C, the others are told to end, and are killed if they do not. SIGTERM and SIGUSR1 are passed on to every
    rank: those that train write a checkpoint and end well, and so does this call.

    Args:
        argv: the command line of every rank.
        ranks: how many.
        module: what is run; it must call :func:`bind_to_parent`.
        grace: how long a rank may take to end when another one failed, or on Ctrl-C [s].
        stop_grace: how long a rank may take to end after SIGTERM or SIGUSR1 [s].
    Raises:
        ValueError: `ranks` is below one.
        RankFailed: a rank ended with an error.
        KeyboardInterrupt: Ctrl-C, after all ranks have ended.
        SystemExit: SIGTERM or SIGUSR1 that ranks died of, or did not end after, once all have ended.
    """
    check_ranks(ranks)
    if ranks > cores():
        _say(f"{ranks} ranks on {cores()} cores: they take turns, so more ranks will not be faster here")
    started = time.monotonic()
    members: list[_Rank] = []
    with _signals_noted() as noted:
        try:
            port = _free_port()
            for rank in range(ranks):
                # One by one: should a start fail, the earlier ones are known and get ended.
                member = _Rank(rank, [sys.executable, "-m", module, *argv], _environment(rank, ranks, port))
                members.append(member)
            late = _watch(members, noted, stop_grace)
            culprit = None if late else _culprit(members, noted)
            if any(m.running for m in members):
                _end(members, noted, grace)
        finally:
            _sweep(members)
    if culprit is not None:
        raise RankFailed(culprit.rank, culprit.code, _verdict(culprit, members, time.monotonic() - started))
    if signal.SIGINT in noted:
        raise KeyboardInterrupt
    if noted and any(m.failed for m in members):
        raise SystemExit(128 + noted[0])


class _Rank:
    """One process, and threads that pass on what it prints."""

    def __init__(self, rank: int, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.rank = rank
        self.was_stopped = False
        self.tail: deque[str] = deque(maxlen=_TAIL)
        # A process group of its own: what the rank starts can be ended with it, and Ctrl-C reaches it once,
        # through us. Rank 0 keeps the terminal, so that it can draw a progress bar.
        self.process = subprocess.Popen(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        prefix = "" if rank == 0 else f"[rank {rank}] "
        pipes = ((self.process.stdout, sys.stdout, None), (self.process.stderr, sys.stderr, self.tail))
        self.threads = [
            threading.Thread(target=_pass_on, args=(pipe, target.write, target.flush, prefix, tail), daemon=True)
            for pipe, target, tail in pipes
            if pipe is not None
        ]
        for thread in self.threads:
            thread.start()

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def code(self) -> int:
        return self.process.poll() or 0

    @property
    def failed(self) -> bool:
        return self.code != 0

    def look(self) -> None:
        """Notes whether the process is stopped, as by SIGSTOP."""
        with suppress(OSError):
            state = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            self.was_stopped = state == "T"

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def group_lives(self) -> bool:
        """Whether something this rank started is still there."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


def _pass_on(
    pipe: IO[bytes],
    write: Callable[[str], object],
    flush: Callable[[], None],
    prefix: str,
    tail: deque[str] | None,
) -> None:
    with pipe:
        for line in pipe:
            text = line.decode(errors="replace")
            if tail is not None and text.strip():
                tail.append(text.rstrip())
            with suppress(OSError, ValueError):  # nobody reads us any more: go on, or the rank would block
                write(prefix + text)
                flush()


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """torchrun's variables and a mark. What the user has set for threads and network stays."""
    ours = {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "EXAFIELD_SPAWNED": str(os.getpid()),
    }
    return {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | os.environ | ours


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGUSR1 instead of acting on them. Only a main thread is sent any."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, *_STOPS)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(members: Sequence["_Rank"], noted: Sequence[int], stop_grace: float) -> bool:
    """Waits until all ranks have ended, one has failed, or they should be ended; passes stop signals on.

    Returns:
        whether ranks were asked to stop and have not done so in time.
    """
    passed, deadline = 0, float("inf")
    while any(m.running for m in members) and not any(m.failed for m in members) and signal.SIGINT not in noted:
        for number in noted[passed:]:
            if not passed:
                deadline = time.monotonic() + stop_grace
            passed += 1
            for member in members:
                member.process.send_signal(number)  # to the rank alone: what it has started is its own to end
        if time.monotonic() > deadline:
            _say(f"the ranks have not ended within {stop_grace:.0f} s of {signal.Signals(noted[0]).name}: ending them")
            return True
        time.sleep(_POLL)
    return False


def _end(members: Sequence[_Rank], noted: Sequence[int], grace: float) -> None:
    """Ends what still runs: first with SIGINT if we got that (or SIGTERM), after `grace` or one more for good."""
    for member in members:
        member.look()
        member.signal(signal.SIGINT if signal.SIGINT in noted else signal.SIGTERM)
    deadline, known = time.monotonic() + grace, noted.count(signal.SIGINT)
    while any(m.running for m in members) and time.monotonic() < deadline and noted.count(signal.SIGINT) == known:
        time.sleep(_POLL)


def _sweep(members: Sequence[_Rank]) -> None:
    """Leaves no process behind, nor anything one has started."""
    deadline = time.monotonic() + 2.0  # for what tidies up after its rank, such as multiprocessing's tracker
    while time.monotonic() < deadline and not any(m.running for m in members) and any(m.group_lives() for m in members):
        time.sleep(_POLL)
    for member in members:
        member.signal(signal.SIGKILL)
        member.process.wait()
        for thread in member.threads:
            thread.join(timeout=2.0)


def _culprit(members: Sequence[_Rank], noted: Sequence[int]) -> _Rank | None:
    """The rank that failed first. Of several seen at once: one killed by a signal, else one that is no victim.

    Nobody is to blame for dying of a signal that was passed on: such a rank had not begun to train.
    """
    deadline = time.monotonic() + _SETTLE
    while True:
        obeyed = [m for m in members if -m.code in noted]
        failed = [m for m in members if m.failed and m not in obeyed and not (obeyed and m.code == VICTIM)]
        first = min(failed, key=lambda m: (m.code == VICTIM, m.code > 0, m.rank), default=None)
        # A victim may end before the rank that told it to.
        if first is None or first.code != VICTIM or time.monotonic() > deadline:
            return first
        time.sleep(_POLL)


def _verdict(culprit: _Rank, members: Sequence[_Rank], seconds: float) -> str:
    if culprit.code < 0:
        name = signal.Signals(-culprit.code).name
        how = f"was killed by signal {-culprit.code} ({name})"
        if culprit.code == -signal.SIGKILL:
            how += "; if nobody did that, the machine ran out of memory"
    else:
        how = f"ended with exit code {culprit.code}"
    others = "" if len(members) == 1 else "; the other ranks have been ended"
    stopped = [str(m.rank) for m in members if m.was_stopped]
    if stopped:
        others += f"; rank {', '.join(stopped)} had been stopped (SIGSTOP)"
    said = "".join(f"\n  | {line}" for line in culprit.tail)
    last = f"\nwhat it wrote to stderr last:{said}" if said else ""
    return f"rank {culprit.rank} of {len(members)} {how} after {seconds:.1f} s{others}{last}"


def _say(text: str) -> None:
    print(f"exafield: {text}", file=sys.stderr, flush=True)
