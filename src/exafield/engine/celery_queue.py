"""Celery: the tasks of a row are a group of messages in a queue; the next row is sent once all answers are there."""

import pickle
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from exafield.engine import Outcome, Session, Share
from exafield.engine.attempt import result
from exafield.engine.celery_system import System, system
from exafield.engine.cells import packed
from exafield.engine.graph import Work
from exafield.engine.rowblocks import Block, gathered, interleaved

# Items handed out per worker: one running, one waiting (our choice).
_AHEAD = 2
# How often it is asked whether answers are there [s], our choice: Celery always waits once before it looks.
_ASK = 0.01

# Who ran a block, how many tasks it has, and the peak memory of who ran it [bytes].
_Note = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class CeleryEngine:
    """Celery, with its own Redis on a private socket, or on a Redis and with workers that are up already.

    Workers that are up, and who uses them, share a secret, which signs all messages::

        export EXAFIELD_CELERY=redis://:PASSWORD@HOST:6379/0 EXAFIELD_CELERY_KEY=$(openssl rand -hex 32)
        celery -A exafield.engine.celery_app worker       # on each machine, with the same two variables
        exafield taskbench run --engine celery --address $EXAFIELD_CELERY -steps 100 -width 8 -type stencil_1d

    Args:
        workers: number of worker processes; None: one for each core (of those that are up).
        address: of a Redis, redis://...
    """

    workers: int | None = None
    address: str | None = None

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        with system(self.workers, self.address) as up:
            yield _Queue(up)

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`."""
        function = pickle.dumps(fn)
        running: dict[int, Any] = {}
        with system(self.workers, self.address) as up:
            try:
                for index, item in enumerate(items):
                    if index in done:
                        continue
                    with up.explained():
                        running[index] = up.module.item.delay(function, retry, index, item)
                    if len(running) >= _AHEAD * up.workers:
                        yield from _finished(up, running)
                while running:
                    yield from _finished(up, running)
            finally:
                for sent in running.values():
                    up.take_back(sent)


def _finished(up: System, running: dict[int, Any]) -> Iterator[tuple[int, Any]]:
    with up.explained():
        while not (ready := [index for index, sent in running.items() if sent.ready()]):
            up.alive()
            time.sleep(_ASK)
    for index in ready:
        with up.explained(f"item {index} failed: "):
            sent = running.pop(index)
            value = sent.get()
            sent.forget()
        yield index, result(value)


class _Queue:
    """A session."""

    def __init__(self, up: System) -> None:
        self._up, self.workers = up, up.workers

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        blob = packed(works)
        rows = [
            [block for row in rows for block in row]
            for _, rows in groupby(filter(None, interleaved(works, self.workers)), key=lambda row: row[0].t)
        ]
        self._group([self._up.module.warm.s(blob) for _ in range(2 * self.workers)])
        elapsed, ends, notes = list[float](), list[list[Any]](), list[_Note]()
        for _ in range(passes):
            began = time.perf_counter()
            ends, notes = self._once(blob, rows, len(works))
            elapsed.append(time.perf_counter() - began)
        shares = [
            Share(who, sum(n for w, n, _ in notes if w == who), max(m for w, _, m in notes if w == who))
            for who in sorted({who for who, _, _ in notes})
        ]
        outputs = tuple(gathered(work, end) for work, end in zip(works, ends, strict=True))
        return Outcome(tuple(elapsed), outputs, tuple(shares))

    def _once(self, blob: bytes, rows: list[list[Block]], graphs: int) -> tuple[list[list[Any]], list[_Note]]:
        run = self._up.module.run
        newest: list[list[Any]] = [[] for _ in range(graphs)]
        notes: list[_Note] = []
        for row in rows:
            calls = []
            for b in row:
                before = [newest[b.number][place] for place in b.before]
                calls.append(run.s(blob, b.number, b.t, b.first, b.last, b.read, before))
            answers = self._group(calls)
            for number in {b.number for b in row}:
                newest[number] = [value for b, (_, value) in zip(row, answers, strict=True) if b.number == number]
            notes += [note for note, _ in answers]
        return newest, notes

    def _group(self, calls: list[Any]) -> list[Any]:
        """The answers to calls that are made together."""
        from celery import group

        with self._up.explained():
            sent = group(calls).apply_async()
            try:
                values = sent.join_native(interval=_ASK, on_interval=self._up.alive)
            except BaseException:
                self._up.take_back(sent)
                raise
            sent.forget()  # else the broker keeps the answers
        return [result(value) for value in values]
