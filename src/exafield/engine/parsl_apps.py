"""Parsl: apps that take futures of others as arguments, on threads or on its high-throughput executor (HTEX)."""

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from exafield.engine import EngineError, Session
from exafield.engine.attempt import attempt, result, todo
from exafield.engine.parsl_kernel import Kernel, cause, config
from exafield.engine.parsl_session import ParslSession
from exafield.engine.signals import deferred
from exafield.engine.spmd import cores
from exafield.requirement import require

# Items handed out per worker: one running, one waiting (our choice).
_AHEAD = 2


@dataclass(frozen=True)
class ParslEngine:
    """A Parsl kernel of our own, apart from the one that `parsl.load` makes.

    Args:
        workers: how many; None: one for each core.
        threads: threads of this process; otherwise processes of HTEX on loopback, whose sockets are encrypted and
            admit only who has the keys.
        address: "module:name" of a function that makes a `parsl.config.Config`, for other machines. What it names is
            started and ended with the session; the module's folder is on PYTHONPATH::

                PYTHONPATH=. exafield taskbench run --engine parsl --address site:config --workers 8 ...

            where site.py has the function config().
    """

    workers: int | None = None
    threads: bool = False
    address: str | None = None

    def __post_init__(self) -> None:
        if self.threads and self.address is not None:
            raise ValueError("parsl-threads takes no address: its workers are threads of this process; parsl takes one")

    @contextmanager
    def _kernel(self) -> Iterator[Kernel]:
        require("parsl", extra="parsl")
        from parsl.dataflow.dflow import DataFlowKernel

        count = self.workers or len(cores())
        with ExitStack() as stack:
            if self.address is None:
                folder = stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="exafield-", ignore_cleanup_errors=True)
                )
                settings = config(count, folder, self.threads)
            else:
                settings = _named(self.address)
            with deferred():  # what has been started without its kernel would be left
                try:
                    kernel = Kernel(DataFlowKernel(settings), count)
                except Exception as error:
                    raise EngineError(f"parsl does not start: {error}") from error
                stack.callback(kernel.end)
            yield kernel

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        with self._kernel() as kernel:
            yield ParslSession(kernel, self.threads)

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`."""
        with self._kernel() as kernel:
            app = kernel.app(attempt)
            running: dict[Future[Any], int] = {}
            for index, item in todo(items, done):
                running[app(fn, retry, index, item)] = index
                if len(running) >= _AHEAD * kernel.workers:
                    yield from _finished(kernel, running)
            while running:
                yield from _finished(kernel, running)


def _finished(kernel: Kernel, running: "dict[Future[Any], int]") -> Iterator[tuple[int, Any]]:
    """Waits for at least one item."""
    kernel.wait_any(running)
    for future in [future for future in running if future.done()]:
        index = running.pop(future)
        if (error := future.exception()) is not None:
            raise cause(error)
        yield index, result(future.result())


def _named(address: str) -> Any:
    """The configuration that a module has."""
    module, _, name = address.partition(":")
    try:
        settings = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise EngineError(
            f"parsl: address {address!r} is to be MODULE:NAME of a function that makes a Config, its folder on "
            f"PYTHONPATH: {error}"
        ) from error
    return settings() if callable(settings) else settings
