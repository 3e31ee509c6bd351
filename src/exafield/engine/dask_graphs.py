"""Dask distributed: a graph of tasks that is sent to the scheduler once, and whose end is waited for."""

import logging
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from exafield.engine import EngineError, Session
from exafield.engine.dask_session import DaskSession, failed
from exafield.engine.spmd import cores
from exafield.requirement import require

# What workers may take to join [s], our choice.
_START = 120.0
# Items handed out per worker: one running, one waiting (our choice).
_AHEAD = 2
# A worker that dies is an error at once; nothing samples what workers do, and no pages are served.
_SETTINGS = {
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.profile.enabled": False,
    "distributed.comm.timeouts.connect": "10s",
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.admin.large-graph-warning-threshold": "1GiB",
}


@dataclass(frozen=True)
class DaskEngine:
    """Worker processes of one thread each under a Dask scheduler.

    Args:
        workers: how many are started; None: one for each core.
        address: of a running scheduler, which has its workers; None: all of it is started here, on loopback, with
            certificates of its own (TLS), since whoever reaches a scheduler can run code.
        plain: one `delayed` for each task, the way the Dask version of Task Bench is written; otherwise as many tasks
            for a row as there are workers.
    """

    workers: int | None = None
    address: str | None = None
    plain: bool = False

    @contextmanager
    def _client(self) -> Iterator[Any]:
        require("distributed", extra="dask")
        import dask
        from distributed import Client, LocalCluster
        from distributed.security import Security

        with ExitStack() as stack:
            if self.address is None:
                require("cryptography", extra="dask")  # Security.temporary needs it
                stack.enter_context(dask.config.set(_SETTINGS))
                count, security = self.workers or len(cores()), Security.temporary()
                where: Any = stack.enter_context(
                    LocalCluster(
                        n_workers=count,
                        threads_per_worker=1,
                        processes=True,
                        host="127.0.0.1",
                        # None would be a page on every network this machine is in.
                        dashboard_address="127.0.0.1:0",
                        worker_dashboard_address="127.0.0.1:0",
                        scheduler_kwargs={"dashboard": False},
                        memory_limit=0,
                        security=security,
                        local_directory=stack.enter_context(tempfile.TemporaryDirectory(prefix="exafield-")),
                        silence_logs=logging.CRITICAL,
                    )
                )
            else:
                where, count, security = self.address, 1, None
            try:
                client = stack.enter_context(Client(where, security=security, set_as_default=False))
                client.wait_for_workers(count, timeout=_START)
            except (OSError, TimeoutError) as error:
                raise EngineError(f"dask does not start: {error}") from error
            yield client

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        with self._client() as client:
            yield DaskSession(client, self.plain)

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`."""
        todo = ((index, item) for index, item in enumerate(items) if index not in done)
        with self._client() as client:
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
