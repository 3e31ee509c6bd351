"""Dask distributed: a cluster of our own on this machine, or a client of one that is up already."""

import logging
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from exafield.engine import EngineError
from exafield.engine.resources import Places, cores
from exafield.engine.signals import deferred
from exafield.requirement import require

# What workers may take to join [s], our choice.
_START = 120.0
# A worker that dies is an error at once; nothing samples what workers do, and no pages are served.
_SETTINGS = {
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.profile.enabled": False,
    "distributed.comm.timeouts.connect": "10s",
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.admin.large-graph-warning-threshold": "1GiB",
}


@contextmanager
def client(workers: int | None, address: str | None, threads: bool) -> Iterator[Any]:
    """A client whose workers are there. See :class:`exafield.engine.dask_graphs.DaskEngine`.

    Args:
        threads: of one worker process; otherwise processes of one thread.
    Raises:
        ImportError: Dask is not installed.
        EngineError: the cluster does not start, or cannot be reached.
    """
    require("distributed", extra="dask")
    from distributed import Client

    with ExitStack() as stack:
        # What is not given is taken from Dask's own settings, such as certificates.
        where: Any = address
        security, count = None, 1
        try:
            if address is None:
                where, security = _own(stack, workers or len(cores()), threads)
                count = len(where.workers)
            made = stack.enter_context(Client(where, security=security, set_as_default=False))
            made.wait_for_workers(count, timeout=_START)
        except (OSError, TimeoutError) as error:
            at = f" at {address}" if address is not None else ""
            raise EngineError(f"dask does not start{at}: {error}") from error
        except RuntimeError as error:  # of workers, which import the script that starts them
            raise EngineError(
                f"dask does not start: {error} (if a script starts it: is that under if __name__ == '__main__'?)"
            ) from error
        if address is None:
            _settle(made, threads)
        yield made


def _own(stack: ExitStack, slots: int, threads: bool) -> tuple[Any, Any]:
    """A cluster that lasts as long as the stack, and what admits to it."""
    require("cryptography", extra="dask")  # Security.temporary needs it
    import dask
    from distributed import LocalCluster
    from distributed.security import Security

    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="exafield-"))
    stack.enter_context(dask.config.set({**_SETTINGS, "temporary-directory": folder}))
    security = Security.temporary()
    with deferred():  # a worker that is about to start would outlive its cluster
        cluster = LocalCluster(
            n_workers=1 if threads else slots,
            threads_per_worker=slots if threads else 1,
            processes=True,
            host="127.0.0.1",
            # None would be a page on every network this machine is in.
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            memory_limit=0,
            security=security,
            local_directory=folder,
            silence_logs=logging.CRITICAL,
        )
        return stack.enter_context(cluster), security


def _settle(made: Any, threads: bool) -> None:
    """Settings of our own cluster that Dask has no options for.

    Args:
        threads: it is for graphs that run on threads. Then scheduler and workers tell each other at once what happened.
            They would do so every 5 and 2 ms, in batches: good for many tasks that are ready, but every row of a graph
            would wait for both. And the threads are kept on a core each, those of an executor without what Dask's own
            has for tasks that are clients themselves (`worker_client`): ours are not.
    """
    if threads:
        for stream in made.cluster.scheduler.stream_comms.values():
            stream.interval = 0.0
    made.run(_settled, threads)


def _settled(threads: bool, dask_worker: Any) -> None:
    # Ctrl-C reaches all processes of a terminal; this one is ended by who started it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if threads:
        dask_worker.batched_stream.interval = 0.0
        dask_worker.executors["default"].shutdown()
        count = dask_worker.state.nthreads
        dask_worker.executors["default"] = ThreadPoolExecutor(count, "exafield", initializer=Places(count))
