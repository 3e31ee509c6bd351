"""Celery: the tasks of a row are a group of messages in a queue; the next row is sent once all answers are there."""

import os
import pickle
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exafield.engine import EngineError, Outcome, Session, Share
from exafield.engine.attempt import result
from exafield.engine.cells import needs, output, packed
from exafield.engine.graph import Work
from exafield.engine.spmd import cores
from exafield.requirement import require

# Items handed out per worker: one running, one waiting (our choice).
_AHEAD = 2
# What the broker and the workers may take to start, and to end when told to [s], our choice.
_START, _END = 60.0, 10.0
# How often it is asked whether answers are there [s], our choice: Celery always waits once before it looks.
_ASK = 0.01


class _Queue:
    """A session."""

    def __init__(self, module: Any, workers: int, processes: dict[str, "subprocess.Popen[bytes]"]) -> None:
        self._module, self.workers, self._processes = module, workers, processes

    def alive(self) -> None:
        """Raises EngineError if a process started here is gone."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                _forget(self._module.app.backend)
                raise EngineError(f"Celery: the {name} died ({process.returncode})")

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        blob = packed(works)
        memory = self._group([self._module.warm.s(blob) for _ in range(2 * self.workers)])
        elapsed: list[float] = []
        ends: dict[tuple[int, int], Any] = {}
        for _ in range(passes):
            began = time.perf_counter()
            ends = self._once(blob, works)
            elapsed.append(time.perf_counter() - began)
        outputs = tuple(
            np.array([output(work, ends[g, c]) for c in work.graph.columns(work.graph.steps - 1)])
            for g, work in enumerate(works)
        )
        tasks = sum(len(work.graph) for work in works)
        return Outcome(tuple(elapsed), outputs, (Share(f"{self.workers} workers", tasks, max(memory)),))

    def _once(self, blob: bytes, works: Sequence[Work]) -> dict[tuple[int, int], Any]:
        run = self._module.run
        before: dict[tuple[int, int], Any] = {}
        ends: dict[tuple[int, int], Any] = {}
        for t in range(max(work.graph.steps for work in works)):
            keys = [(g, column) for g, work in enumerate(works) for column in work.graph.columns(t)]
            calls = [
                run.s(blob, g, t, column, [before[g, q] for q in needs(works[g], t, column)]) for g, column in keys
            ]
            before = dict(zip(keys, self._group(calls), strict=True))
            ends |= {key: cell for key, cell in before.items() if t == works[key[0]].graph.steps - 1}
        return ends

    def _group(self, calls: list[Any]) -> list[Any]:
        """The answers to calls that are made together."""
        from celery import group

        if not calls:
            return []
        with self._explained():
            sent = group(calls).apply_async()
            values = sent.join_native(interval=_ASK, on_interval=self.alive)
            sent.forget()  # else the broker keeps the answers
        return [result(value) for value in values]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except EngineError:
            raise
        except Exception as error:
            self.alive()
            text = f"{type(error).__name__}: {error}"
            raise EngineError(f"Celery: a worker was lost, or could not run a task: {text}") from error

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], retry: int, done: Collection[int]
    ) -> Iterator[tuple[int, Any]]:
        """As MapEngine.map."""
        function = pickle.dumps(fn)
        running: dict[int, Any] = {}

        def finished() -> Iterator[tuple[int, Any]]:
            while not (ready := [index for index, sent in running.items() if sent.ready()]):
                self.alive()
                time.sleep(_ASK)
            for index in ready:
                sent = running.pop(index)
                try:
                    value = sent.get()
                except Exception as error:
                    raise EngineError(f"item {index} failed: {type(error).__name__}: {error}") from error
                sent.forget()
                yield index, result(value)

        with self._explained():
            for index, item in enumerate(items):
                if index in done:
                    continue
                running[index] = self._module.item.delay(function, retry, index, item)
                if len(running) >= _AHEAD * self.workers:
                    yield from finished()
            while running:
                yield from finished()


@dataclass(frozen=True, slots=True)
class CeleryEngine:
    """Celery, with its own Redis on a private socket, or on a broker and with workers that are up already.

    Args:
        workers: number of worker processes; None: one for each core (of those that are up).
        address: of a Redis, redis://...; workers there and here need the same EXAFIELD_CELERY_KEY, see
            :mod:`exafield.engine.celery_app`.
    """

    workers: int | None = None
    address: str | None = None

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        with _queue(self.workers, self.address) as session:
            yield session

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`."""
        with _queue(self.workers, self.address) as session:
            yield from session.map(fn, items, retry, done)


@contextmanager
def _queue(workers: int | None, address: str | None) -> Iterator[_Queue]:
    require("celery", extra="celery")
    require("redis", extra="celery")
    count = workers or len(cores())
    with tempfile.TemporaryDirectory(prefix="exafield-") as folder:
        if address is not None:
            if "EXAFIELD_CELERY_KEY" not in os.environ:
                raise EngineError("Celery: set EXAFIELD_CELERY_KEY to the secret that its workers have")
            with _app(address, os.environ["EXAFIELD_CELERY_KEY"]) as module:
                found = module.app.control.inspect(timeout=5).stats() or {}
                if not found:
                    raise EngineError(f"Celery: no worker answers at {address}")
                have = sum(int(one.get("pool", {}).get("max-concurrency", 1)) for one in found.values())
                yield _Queue(module, workers or have, {})
            return
        if shutil.which("redis-server") is None:
            raise ImportError(
                "Celery needs a Redis server, which is not installed: install redis-server, or give address"
            )
        processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            with _app(f"redis+socket://{folder}/socket", secrets.token_hex(32)) as module:
                _start(folder, count, processes)
                session = _Queue(module, count, processes)
                _wait(session, module, Path(folder))
                yield session
        finally:
            for process in reversed(processes.values()):  # workers first: they say goodbye to the broker
                process.terminate()
                try:
                    process.wait(_END)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@contextmanager
def _app(address: str, key: str) -> Iterator[Any]:
    """The app of one broker: a module that is made anew for each."""
    backend: Any = None
    names = {"EXAFIELD_CELERY": address, "EXAFIELD_CELERY_KEY": key}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    sys.modules.pop("exafield.engine.celery_app", None)
    try:
        from importlib import import_module

        module = import_module("exafield.engine.celery_app")
        backend = module.app.backend
        yield module
    finally:
        with suppress(Exception):
            _forget(backend)
            backend.result_consumer.stop()
            module.app.close()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _forget(backend: Any) -> None:
    # Results that live on would tell the broker, once it is gone, that they are no longer waited for.
    backend.remove_pending_result = lambda sent: sent


def _start(folder: str, count: int, processes: dict[str, "subprocess.Popen[bytes]"]) -> None:
    """Redis without a port, and workers; what they say goes into files of the folder."""
    redis = ["redis-server", "--port", "0", "--unixsocket", f"{folder}/socket", "--unixsocketperm", "700"]
    redis += ["--save", "", "--appendonly", "no", "--dir", folder]
    worker = [sys.executable, "-m", "celery", "-A", "exafield.engine.celery_app", "worker", "-P", "prefork"]
    worker += ["-c", str(count), "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "C_FORCE_ROOT": "1"}
    for name, command in (("broker", redis), ("worker", worker)):
        with open(f"{folder}/{name}", "wb") as log:
            processes[name] = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START
        while name == "broker" and not Path(folder, "socket").exists():
            if processes[name].poll() is not None or time.monotonic() > deadline:
                raise EngineError("Celery: redis-server does not start: " + Path(folder, name).read_text()[-2000:])
            time.sleep(0.01)


def _wait(session: _Queue, module: Any, folder: Path) -> None:
    deadline = time.monotonic() + _START
    while not module.app.control.ping(timeout=0.5):
        said = (folder / "worker").read_text(errors="replace").strip()[-2000:]
        try:
            session.alive()
        except EngineError as error:
            raise EngineError(f"{error}: {said}") from error
        if time.monotonic() > deadline:
            raise EngineError(f"Celery: no worker answers: {said}")
