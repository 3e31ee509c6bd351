"""Starts Redis and Celery's workers, or finds those of the user, and leaves nothing behind."""

import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from exafield.engine import EngineError
from exafield.engine.celery_processes import Processes, end, start
from exafield.engine.signals import terminable
from exafield.engine.spmd import cores
from exafield.requirement import require

# How often workers elsewhere are asked whether they are there, and how long they may take to say so [s], our choice.
_LOOK, _ANSWER = 10.0, 5.0
# How much is shown of what a process said before it ended, our choice.
_LINES = 8


class System:
    """Redis and workers that are up.

    Args:
        module: the app of this broker.
        workers: how many tasks run at the same time.
        processes: those started here, by what they are.
        elsewhere: names of workers that were up before.
        folder: with what each process said, in a file of its name.
    """

    def __init__(
        self, module: Any, workers: int, processes: Processes, elsewhere: set[str], folder: Path | None = None
    ) -> None:
        self.module, self.workers = module, workers
        self._processes, self._elsewhere, self._asked = processes, elsewhere, time.monotonic()
        self._folder, self._lost = folder, False

    def alive(self) -> None:
        """Raises EngineError if a process started here, or Redis or a worker elsewhere, is gone."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                _forget(self.module.app.backend)
                raise EngineError(f"Celery: the {name} died ({process.returncode}){self._last_words(name)}")
        if self._elsewhere and time.monotonic() > self._asked + _LOOK:
            self._reach()
            answers = self.module.app.control.ping(sorted(self._elsewhere), timeout=_ANSWER)
            lost = self._elsewhere - {name for answer in answers for name in answer}
            if lost:
                raise EngineError(f"Celery: no answer any more from worker {', '.join(sorted(lost))}")
            self._asked = time.monotonic()

    def _last_words(self, name: str) -> str:
        if self._folder is None or self._processes[name].returncode == -signal.SIGKILL:  # it could not say why
            return ""
        lines = (self._folder / name).read_text(errors="replace").strip().splitlines()[-_LINES:]
        return "".join(f"\n{line}" for line in lines)

    def _reach(self) -> None:
        """Raises EngineError if Redis elsewhere is gone: whoever then tells workers anything tries again for ever."""
        try:
            if self._lost:
                raise ConnectionError("it was lost before")
            self.module.app.backend.client.ping()
        except Exception as error:
            self._lost = True
            _forget(self.module.app.backend)
            where = self.module.app.connection().as_uri()  # without its password
            raise EngineError(f"Celery: no answer any more from Redis at {where}: {error}") from error

    @contextmanager
    def explained(self, what: str = "") -> Iterator[None]:
        """Errors of Celery, in our words; `what` is put before those that are not about processes."""
        try:
            yield
        except EngineError:
            raise
        except Exception as error:
            self.alive()
            if self._elsewhere:
                self._reach()
            text = what or "Celery: a worker was lost, or could not run a task: "
            raise EngineError(f"{text}{type(error).__name__}: {error}") from error

    def take_back(self, sent: Any) -> None:
        """Workers elsewhere shall not go on with what nobody waits for."""
        if self._elsewhere:
            with suppress(Exception):
                self._reach()
                sent.revoke()
                sent.forget()


@contextmanager
def system(workers: int | None, address: str | None) -> Iterator[System]:
    """Celery on a private socket, or the workers at `address`.

    Raises:
        ImportError: Celery or Redis is not installed.
        EngineError: it does not start, or nobody answers.
    """
    require("celery", extra="light")
    require("redis", extra="light")
    if address is not None:
        with _elsewhere(workers, address) as up:
            yield up
        return
    if shutil.which("redis-server") is None:
        raise ImportError("Celery needs a Redis server, which is not installed: install redis-server, or give address")
    count = workers or len(cores())
    processes: Processes = {}
    with terminable(), tempfile.TemporaryDirectory(prefix="exafield-") as folder:
        try:
            with _app(f"redis+socket://{folder}/socket", secrets.token_hex(32)) as module:
                up = System(module, count, processes, set(), Path(folder))
                start(Path(folder), up.alive, module.app.control.ping, count, processes)
                yield up
        finally:
            end(processes)


@contextmanager
def _elsewhere(workers: int | None, address: str) -> Iterator[System]:
    key = os.environ.get("EXAFIELD_CELERY_KEY")
    if key is None:
        raise EngineError("Celery: set EXAFIELD_CELERY_KEY to the secret that its workers have")
    with terminable(), _app(address, key) as module:
        where = module.app.connection().as_uri()  # without its password
        try:
            found = module.app.control.inspect(timeout=_ANSWER).stats() or {}
        except Exception as error:
            raise EngineError(f"Celery: no Redis at {where}: {type(error).__name__}: {error}") from error
        if not found:
            raise EngineError(f"Celery: no worker answers at {where}: start some, see exafield.engine.celery_app")
        have = sum(int(one.get("pool", {}).get("max-concurrency", 1)) for one in found.values())
        yield System(module, workers or have, {}, set(found))


@contextmanager
def _app(address: str, key: str) -> Iterator[Any]:
    """The app of one broker: a module that is made anew for each."""
    backend: Any = None
    names = {"EXAFIELD_CELERY": address, "EXAFIELD_CELERY_KEY": key}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    sys.modules.pop("exafield.engine.celery_app", None)
    try:
        module = import_module("exafield.engine.celery_app")
        backend = module.app.backend
        _quiet(backend)
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


def _quiet(backend: Any) -> None:
    # What is dropped after the broker was lost, but before that was noticed, would say so from its destructor, with a
    # traceback that nobody can catch.
    remove = backend.remove_pending_result

    def removed(sent: Any) -> Any:
        with suppress(Exception):
            remove(sent)
        return sent

    backend.remove_pending_result = removed


def _forget(backend: Any) -> None:
    # Results that live on would tell the broker, once it is gone, that they are no longer waited for.
    backend.remove_pending_result = lambda sent: sent
