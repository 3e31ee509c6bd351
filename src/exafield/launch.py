"""Starting several ranks on this machine, and ending them all when one dies."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

# How long the other ranks may take to end by themselves after one has died, so that they can say why; and how
# long after being told to (our choice; together well below half a minute) [s].
_GRACE, _TERM = 3.0, 7.0
_POLL = 0.05
_LAST_LINES = 12
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    readers: list[threading.Thread]
    last: deque[str]


def spawn(command: Sequence[str], ranks: int, say: Callable[[str], None] | None = None) -> int:
    """Runs `command` as `ranks` processes that find each other, and waits for them.

    Rank 0's output is passed on as it is, the others' with their number in front. When a rank dies, the others
    are ended within half a minute and a message names it. Ctrl-C and SIGTERM are passed on. No process is left
    behind, whatever happens to this one.

    Args:
        command: program and arguments.
        ranks: how many; at least 1.
        say: prints our own messages; default: to stderr.
    Returns:
        exit code: 0 if all ranks ended well.
    Raises:
        ValueError: `ranks` is below 1.
    """
    if ranks < 1:
        raise ValueError(f"--ranks must be at least 1, got {ranks}: leave it out to run as one process")
    say = say or (lambda text: print(f"exafield: {text}", file=sys.stderr, flush=True))
    cores = len(os.sched_getaffinity(0))
    if ranks > cores:
        say(f"{ranks} ranks share {cores} cores: each will be slower than alone")
    port = _free_port()
    caught: list[int] = []
    running: list[_Rank] = []
    previous = {s: signal.signal(s, lambda number, _: caught.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        running = [_start(command, rank, ranks, port) for rank in range(ranks)]
        return _watch(running, caught, say)
    finally:
        _end(running)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(command: Sequence[str], rank: int, ranks: int, port: int) -> _Rank:
    env = dict(os.environ)
    env |= {
        "EXAFIELD_SPAWNED": "1",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # All ranks are here, so the loopback interface will do, also where host names do not resolve.
    env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    env.setdefault("OMP_NUM_THREADS", "1")
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=None if rank == 0 else subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=_die_with_parent,
        # Ctrl-C reaches this process alone, which passes it on once.
        process_group=0,
    )
    last: deque[str] = deque(maxlen=_LAST_LINES)
    prefix = "" if rank == 0 else f"[rank {rank}] "
    streams = [(process.stderr, sys.stderr, last), (process.stdout, sys.stdout, deque[str](maxlen=1))]
    readers = [
        threading.Thread(target=_pass_on, args=(source, sink, prefix, kept), daemon=True)
        for source, sink, kept in streams
        if source is not None
    ]
    for reader in readers:
        reader.start()
    return _Rank(rank, process, readers, last)


def _die_with_parent() -> None:
    """In the child: ends it when this process ends, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _pass_on(source: IO[bytes], sink: IO[str], prefix: str, kept: deque[str]) -> None:
    for raw in source:
        line = raw.decode(errors="replace")
        kept.append(line.rstrip("\n"))
        sink.write(prefix + line)
        sink.flush()
    source.close()


def _watch(running: list[_Rank], caught: list[int], say: Callable[[str], None]) -> int:
    """Waits for the end, which may come early."""
    while True:
        if caught:
            number = caught[0]
            say(f"{signal.Signals(number).name}: ending {len(running)} ranks")
            _signal(running, number)
            _wait(running, _TERM)
            return 128 + number
        codes = [rank.process.poll() for rank in running]
        if any(codes):
            break
        if all(code == 0 for code in codes):
            for rank in running:
                _join(rank)
            return 0
        time.sleep(_POLL)
    # The others often die of the first one's death; those that a signal killed are its likely cause.
    first = next(rank for rank, code in zip(running, codes, strict=True) if code)
    _wait(running, _GRACE)
    killed = [rank for rank in running if (rank.process.poll() or 0) < 0]
    culprit = killed[0] if killed else first
    left = [rank for rank in running if rank.process.poll() is None]
    if left:
        say(f"ending rank{'s' if len(left) > 1 else ''} {', '.join(str(r.number) for r in left)}")
        _signal(left, signal.SIGTERM)
        _wait(left, _TERM)
    code = culprit.process.returncode
    _join(culprit)
    if code < 0:
        name = signal.Signals(-code).name
        why = f"was killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    else:
        why = f"ended with exit code {code}"
    say(f"rank {culprit.number} {why}; the run is over")
    if culprit.number != 0 or code < 0:
        for line in culprit.last:
            say(f"  rank {culprit.number} said: {line}")
    return 128 - code if code < 0 else code


def _signal(ranks: Sequence[_Rank], number: int) -> None:
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.send_signal(number)


def _wait(ranks: Sequence[_Rank], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(rank.process.poll() is None for rank in ranks):
        time.sleep(_POLL)


def _join(rank: _Rank) -> None:
    for reader in rank.readers:
        reader.join(timeout=1.0)


def _end(ranks: Sequence[_Rank]) -> None:
    """Nothing is left, whatever it takes."""
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.kill()
        rank.process.wait()
        _join(rank)
