"""SPMD: a crew of ranks, one process each, that all run the same program on their own columns."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from exafield.engine import EngineError, Outcome, Share
from exafield.engine.graph import Work

# What ranks may take to start [s], our choice: imports from a busy shared file system.
_START = 120.0
# A rank does not run this module as a script, since its classes would then not be those that the crew knows.
_RANK = "from exafield.engine.spmd import main; main()"
# What ranks may take to end by themselves when told to [s], our choice.
_END = 10.0


@runtime_checkable
class Program(Protocol):
    """What a rank does. Made once in each process with (rank, size, folder); `folder` is one that all ranks share."""

    def prepare(self, works: Sequence[Work]) -> None:
        """Makes ready what is not timed: native code, memory, who sends what to whom. All ranks have done it before
        any runs."""
        ...

    def run(self) -> float:
        """One pass, together with the other ranks; returns its wall time [s], as long as the slowest rank took."""
        ...

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """Of each graph: the outputs of the last row's tasks that this rank ran, by column."""
        ...

    def close(self) -> None:
        """Gives back what the program holds."""
        ...


@dataclass(frozen=True)
class _Order:
    works: tuple[Work, ...]
    passes: int


@dataclass(frozen=True)
class _Report:
    elapsed: tuple[float, ...]
    outputs: list[dict[int, NDArray[np.uint8]]]
    share: Share


def cores() -> list[int]:
    """The cores this process may use."""
    return sorted(os.sched_getaffinity(0))


def peak_memory() -> int:
    """The most memory this process has had resident [bytes]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Crew:
    """Ranks that are up and wait for work."""

    def __init__(
        self, system: str, processes: Sequence["subprocess.Popen[bytes]"], links: Sequence[Connection]
    ) -> None:
        self._system, self._processes, self._links = system, processes, links
        self.workers = len(links)

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        for rank, link in enumerate(self._links):
            try:
                link.send(_Order(tuple(works), passes))
            except OSError as error:
                raise self._gone(rank) from error
        reports: dict[int, _Report] = {}
        while len(reports) < self.workers:
            for ready in wait([link for rank, link in enumerate(self._links) if rank not in reports]):
                rank = self._links.index(ready)
                try:
                    said = self._links[rank].recv()
                except (EOFError, OSError) as error:
                    raise self._gone(rank) from error
                if isinstance(said, str):
                    raise EngineError(f"{self._system}, rank {rank}: {said}")
                reports[rank] = said
        parts = [reports[rank] for rank in range(self.workers)]
        outputs = []
        for number, work in enumerate(works):
            rows = {column: row for part in parts for column, row in part.outputs[number].items()}
            outputs.append(np.array([rows[c] for c in work.graph.columns(work.graph.steps - 1)], dtype=np.uint8))
        elapsed = tuple(max(times) for times in zip(*(part.elapsed for part in parts), strict=True))
        return Outcome(elapsed, tuple(outputs), tuple(part.share for part in parts))

    def _gone(self, rank: int) -> EngineError:
        ended = " (its launcher ended all ranks)" if len(self._processes) != self.workers else ""
        with suppress(subprocess.TimeoutExpired):
            self._processes[min(rank, len(self._processes) - 1)].wait(2)
        code = self._processes[min(rank, len(self._processes) - 1)].poll()
        how = "was lost" if code is None else f"died of {signal.Signals(-code).name}" if code < 0 else f"ended ({code})"
        return EngineError(f"{self._system}: the process of rank {rank} {how} before its work was done{ended}")


@contextmanager
def crew(
    system: str,
    program: str,
    size: int,
    launcher: Callable[[list[str], int], list[list[str]]] | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[Crew]:
    """Starts ranks on this machine; ends them on leaving.

    Args:
        system: as errors call it.
        program: "module:class" of a :class:`Program`.
        size: number of ranks.
        launcher: turns the command of a rank and the size into the commands to start; None: one for each rank.
        environment: set for the ranks.
    Raises:
        EngineError: they do not start.
    """
    with tempfile.TemporaryDirectory(prefix="exafield-") as folder, Listener(f"{folder}/links", "AF_UNIX") as listener:
        command = [sys.executable, "-c", _RANK, folder, program, str(size)]
        commands = [[*command, str(rank)] for rank in range(size)] if launcher is None else launcher(command, size)
        # One thread for BLAS and the like: a rank has one core.
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **(environment or {})}
        log = Path(folder, "log")
        with open(log, "wb") as output:
            processes = [
                subprocess.Popen(c, env=settings, stdin=subprocess.PIPE, stdout=output, stderr=output) for c in commands
            ]
        links: dict[int, Connection] = {}
        try:
            listener._listener._socket.settimeout(0.2)  # type: ignore[attr-defined]
            deadline = time.monotonic() + _START
            while len(links) < size:
                try:
                    link = listener.accept()
                except TimeoutError:
                    dead = [p.returncode for p in processes if p.poll() is not None]
                    if dead or time.monotonic() > deadline:
                        said = log.read_text(errors="replace").strip()[-2000:]
                        raise EngineError(
                            f"{system} does not start: "
                            + (said or f"no answer from {size - len(links)} of {size} ranks")
                        ) from None
                    continue
                links[link.recv()] = link
            yield Crew(system, processes, [links[rank] for rank in range(size)])
            for link in links.values():
                with suppress(OSError):
                    link.send(None)
        except BaseException:
            for process in processes:
                process.terminate()
            raise
        finally:
            for link in links.values():
                link.close()
            deadline = time.monotonic() + _END
            for process in processes:
                try:
                    process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                if process.stdin is not None:
                    process.stdin.close()


# ---- in a rank ----


def bind(rank: int) -> None:
    """Keeps a rank on one core, so that its neighbours do not push it about."""
    own = cores()
    with suppress(OSError):
        os.sched_setaffinity(0, {own[rank % len(own)]})


def serve(link: Connection, made: Program, name: str, follow: Callable[[], None] | None = None) -> None:
    """Does what the crew is told, until it is told to stop or who tells it is gone."""
    try:
        while True:
            try:
                order = link.recv()
            except (EOFError, OSError):
                return
            if order is None:
                return
            try:
                made.prepare(order.works)
                elapsed = tuple(made.run() for _ in range(order.passes))
                outputs = made.outputs()
            except Exception as error:
                # The others wait for this rank: the crew ends them, and this one says why.
                link.send(f"{error}" if isinstance(error, EngineError) else f"{type(error).__name__}: {error}")
                continue
            tasks = sum(len(one) for one in outputs)
            link.send(_Report(elapsed, outputs, Share(name, getattr(made, "tasks", tasks), peak_memory())))
    finally:
        made.close()


def main() -> None:
    """A rank; its arguments are FOLDER MODULE:CLASS SIZE [RANK]. Without a rank, MPI tells it."""
    folder, program, size = sys.argv[1:4]
    module, _, name = program.partition(":")
    kind: Any = getattr(import_module(module), name)
    if len(sys.argv) > 4:
        rank = int(sys.argv[4])
    else:
        from mpi4py import MPI

        rank = MPI.COMM_WORLD.Get_rank()
    bind(rank)
    made = kind(rank, int(size), folder)
    with Client(f"{folder}/links", "AF_UNIX") as link:
        link.send(rank)  # from here on the crew counts on it
        serve(link, made, f"rank {rank}")
