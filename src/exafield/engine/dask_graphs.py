"""Dask distributed: a graph of tasks that is sent to the scheduler once, and whose end is waited for."""

import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from exafield.engine import Session
from exafield.engine.dask_cluster import client as cluster
from exafield.engine.dask_session import DaskSession, failed

# Items handed out per worker: one running, one waiting (our choice).
_AHEAD = 2


@dataclass(frozen=True)
class DaskEngine:
    """Dask workers under a scheduler.

    Graphs run on the threads of one worker process, since native code lets go of Python's lock and values then need not
    be sent; plain ones and maps run on processes of one thread each.

    A cluster elsewhere, whose machines can import exafield::

        dask scheduler --host NODE --port 8786      # and on each machine: dask worker tcp://NODE:8786
        exafield taskbench run --engine dask --address tcp://NODE:8786 ...

    With certificates, the address begins with tls:// and all of them have DASK_DISTRIBUTED__COMM__TLS__CA_FILE,
    DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT and ..._KEY (scheduler, worker in place of client) in their environment.

    Args:
        workers: how many tasks at a time, if it is started here; None: one for each core.
        address: of a running scheduler, which has its workers; None: all of it is started here, on loopback, with
            certificates of its own (TLS), since whoever reaches a scheduler can run code.
        plain: one `delayed` for each task, the way the Dask version of Task Bench is written; otherwise as many tasks
            for a row as can run at a time.
    """

    workers: int | None = None
    address: str | None = None
    plain: bool = False

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        with cluster(self.workers, self.address, threads=not self.plain) as client:
            yield DaskSession(client, self.plain)

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`."""
        todo = ((index, item) for index, item in enumerate(items) if index not in done)
        with cluster(self.workers, self.address, threads=False) as client:
            yield from _mapped(client, fn, todo, retry)


def _mapped(client: Any, fn: Callable[[Any], Any], todo: Iterator[tuple[int, Any]], retry: int) -> Iterator[Any]:
    from distributed import as_completed

    # Dask's own way to keep a bounded number of futures in flight: add to those that are waited for.
    running: dict[str, int] = {}
    flight = as_completed(loop=client.loop)

    def start() -> None:
        for index, item in todo:
            future = client.submit(fn, item, pure=False, retries=retry, key=f"exafield-map-{uuid.uuid4()}")
            running[future.key] = index
            flight.add(future)
            return

    for _ in range(_AHEAD * sum(client.nthreads().values())):
        start()
    for future in flight:
        index = running.pop(future.key)
        if future.status != "finished":
            raise failed(f"item {index}", future)
        result = future.result()
        start()
        yield index, result
