"""The mask of one snapshot, on a worker of any engine. Knows nothing of torch, which starts slowly."""

import atexit
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exafield.climate.reading import Snapshots
from exafield.climate.snapshot import Snapshot, SnapshotError

#: Gives the mask [latitude, longitude] of a snapshot; must be picklable. A ValueError says that it can do so for none.
Maker = Callable[[Snapshot], NDArray[np.uint8]]

# How long a worker that gets no more work keeps its file open [s], our choice: longer than any mask takes, and short
# enough that a worker of a cluster that goes on does not hinder who wants to write the file.
_IDLE = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What a worker returns.

    Args:
        labels: [latitude, longitude]; None if there are none.
        unread: why the snapshot cannot be read.
        refused: why the maker cannot make masks of such snapshots.
        filled: missing values that were filled in.
    """

    labels: NDArray[np.uint8] | None = None
    unread: str | None = None
    refused: str | None = None
    filled: int = 0


class _Kept:
    """The file that each thread of this process read last, left open: the next snapshot is often in it, too.

    Opening a file of a year takes much longer than reading one time of it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[int, tuple[str, Snapshots, float]] = {}
        self._watch: threading.Timer | None = None

    def open(self, run: str, one: Snapshots) -> None:
        """Gives a sequence the file that is open already, if it is the same, in the same run; else that is closed."""
        with self._lock:
            kept = self._last.pop(threading.get_ident(), None)
        if kept is None:
            return
        if kept[0] == run:
            one.take_over(kept[1])
        else:  # since then, it may have become another file
            kept[1].close()

    def keep(self, run: str, one: Snapshots) -> None:
        """Leaves the file of a sequence open until this thread opens another, or nothing comes for a while."""
        with self._lock:
            self._last[threading.get_ident()] = run, one, time.monotonic()
            if self._watch is None:
                self._look_later(_IDLE)

    def _look_later(self, seconds: float) -> None:
        self._watch = threading.Timer(seconds, self._close_idle)
        self._watch.daemon = True
        self._watch.start()

    def _close_idle(self) -> None:
        with self._lock:
            now = time.monotonic()
            idle = [thread for thread, (_, _, since) in self._last.items() if now - since >= _IDLE]
            closing = [self._last.pop(thread)[1] for thread in idle]
            self._watch = None
            if self._last:
                self._look_later(_IDLE)
        for one in closing:
            one.close()

    def close(self, run: str | None = None) -> None:
        """Closes those of a run, or all."""
        with self._lock:
            closing = [thread for thread, kept in self._last.items() if run in (None, kept[0])]
            sequences = [self._last.pop(thread)[1] for thread in closing]
            if not self._last and self._watch is not None:
                self._watch.cancel()
                self._watch = None
        for one in sequences:
            one.close()


_kept = _Kept()
#: Closes the files that this process has left open for a run, or for all.
close = _kept.close
atexit.register(close)


def mask(make: Maker, run: str, one: Snapshots) -> Made:
    """Reads a snapshot and makes its mask; a plain function of its arguments, for any engine.

    What is wrong with a file comes back as a value, since engines wrap exceptions in tracebacks of their own.

    Args:
        make: that makes it.
        run: what tells this run from others: in it, files stay what they are. One stays open, see :func:`close`.
        one: a sequence of that snapshot alone.
    """
    _kept.open(run, one)
    try:
        snapshot = one[0]
    except SnapshotError as error:
        one.close()
        return Made(unread=str(error))
    _kept.keep(run, one)
    try:
        return Made(make(snapshot), filled=snapshot.filled)
    except ValueError as error:
        return Made(refused=str(error))
