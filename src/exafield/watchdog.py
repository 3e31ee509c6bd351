"""Tells a rank that another one has died, stopped or given up.

Each rank counts up a beat in the rendezvous store and listens to its right-hand neighbour's; anyone can write
an abort message there, and everyone reads it. This works beside the process groups, so that a rank that waits
for a peer inside a collective still learns that the peer is gone.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

# Seconds between beats; stretched with the number of ranks so that the store serves about a thousand requests
# a second at most (our choice).
_INTERVAL = 2.0
_RANKS_PER_INTERVAL = 1024
# What a rank that knows of an abort may still take to leave by itself before it is ended (our choice) [s].
_GRACE = 15.0

_LEFT = b"left"


class WorldAborted(RuntimeError):  # noqa: N818  (what happened, in the past tense)
    """Another rank gave up, died or stopped; the message says which and why."""


class Watchdog:
    """Beats for this rank, listens to the next, and passes abort messages on.

    Args:
        store: a store client of its own (its calls never wait behind another thread's).
        rank, size: of the whole world.
        patience: silence of the neighbour after which the run is ended [s].
    """

    def __init__(self, store: Any, rank: int, size: int, patience: float) -> None:
        self.store, self.rank, self.size, self.patience = store, rank, size, patience
        self.reason: str | None = None
        self.interval = _INTERVAL * max(1.0, size / _RANKS_PER_INTERVAL)
        self._stop = threading.Event()
        self._answers: dict[str, Callable[[], Mapping[str, Any]]] = {}
        self._asked, self._heard, self._lingered = 0, False, False
        self._thread = threading.Thread(target=self._watch, name="exafield-watchdog", daemon=True)
        self._thread.start()

    def abort(self, reason: str) -> None:
        """Tells every rank to stop. The first reason given stays."""
        if self.reason is None:
            self.reason = reason
            with suppress(RuntimeError):  # the store's host is gone: its other clients notice that by themselves
                if not self.store.check(["abort"]):
                    self.store.set("abort", reason)
                self._hear()
            self._linger()

    def check(self) -> None:
        """Raises WorldAborted if the run has ended anywhere."""
        if self.reason is not None:
            self._linger()
            raise WorldAborted(self.reason)

    def _hear(self) -> None:
        """This rank knows that the run ends."""
        if not self._heard:
            self._heard = True
            self.store.add("heard", 1)

    def _linger(self) -> None:
        """Rank 0 mostly hosts the store: it stays until the others have read why the run ends, or had the time to."""
        if self.rank != 0 or self._lingered:
            return
        self._lingered = True
        with suppress(RuntimeError):
            self._hear()
        deadline = time.monotonic() + 2 * self.interval + 0.5
        with suppress(RuntimeError):
            while time.monotonic() < deadline and int(self.store.add("heard", 0)) < self.size:
                time.sleep(0.05)

    def answer(self, key: str, describe: Callable[[], Mapping[str, Any]] | None) -> None:
        """Other ranks that inquire about `key` are told what `describe` gives (JSON); None ends that."""
        if describe is None:
            self._answers.pop(key, None)
        else:
            self._answers[key] = describe

    def inquire(self, key: str, ranks: Sequence[int]) -> dict[int, Mapping[str, Any] | None]:
        """What ranks say about `key`; None for one that does not answer within a few beats."""
        try:
            number = int(self.store.add("asked", 1))
            found: dict[int, Mapping[str, Any] | None] = dict.fromkeys(ranks)
            deadline = time.monotonic() + 3 * self.interval
            while time.monotonic() < deadline and any(said is None for said in found.values()):
                time.sleep(0.1)
                for rank in [rank for rank, said in found.items() if said is None]:
                    if self.store.check([f"answer/{rank}"]):
                        said = json.loads(self.store.get(f"answer/{rank}"))
                        if said["number"] >= number:
                            found[rank] = said["about"].get(key)
        except RuntimeError:  # the store's host is gone
            return dict.fromkeys(ranks)
        return found

    def _tell(self) -> None:
        """Answers whoever has asked since the last beat."""
        if not self.store.check(["asked"]):
            return
        asked = int(self.store.add("asked", 0))
        if asked > self._asked:
            self._asked = asked
            about = {}
            for key, describe in tuple(self._answers.items()):
                with suppress(Exception):  # one that cannot be told must not end this thread
                    about[key] = describe()
            self.store.set(f"answer/{self.rank}", json.dumps({"number": asked, "about": about}))

    def leave(self) -> None:
        """Says goodbye, so that nobody takes the silence for death. Idempotent."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        with suppress(RuntimeError):  # perhaps nobody is left to tell
            self.store.set(f"beat/{self.rank}", _LEFT)

    def _watch(self) -> None:
        beat, heard, since = 0, b"", time.monotonic()
        neighbour = (self.rank + 1) % self.size
        while not self._stop.wait(self.interval):
            try:
                beat += 1
                self.store.set(f"beat/{self.rank}", str(beat))
                self._tell()
                if self.store.check(["abort"]):
                    self.reason = self.reason or self.store.get("abort").decode()
                    self._hear()
                key = f"beat/{neighbour}"
                latest = self.store.get(key) if self.store.check([key]) else b""
            except RuntimeError as error:
                if not self._stop.is_set():
                    self.reason = self.reason or (
                        f"rank {self.rank} lost the rendezvous store, hosted by rank 0 or the launcher, "
                        f"which must have ended: {str(error).splitlines()[0]}"
                    )
            else:
                if latest != heard:
                    heard, since = latest, time.monotonic()
                if heard != _LEFT and time.monotonic() - since > self.patience:
                    self.abort(
                        f"rank {neighbour} has not been heard of for {self.patience:.0f} s: it was killed, is "
                        "stopped, or its machine or network is down"
                    )
            if self.reason is not None:
                self._end()
                return

    def _end(self) -> None:
        """Leaves the main thread some time to end with this reason, then ends the process."""
        if not self._stop.wait(_GRACE):
            print(f"exafield: rank {self.rank} ends: {self.reason}", file=sys.stderr, flush=True)
            os._exit(70)
