"""SPMD: a crew of ranks, one process each, that all run the same program on their own columns."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path

from exafield.engine import EngineError, Outcome
from exafield.engine.graph import Work
from exafield.engine.reports import Order, Report, gathered
from exafield.engine.reports import Program as Program
from exafield.engine.resources import bind as bind
from exafield.engine.resources import cores as cores
from exafield.engine.resources import peak_memory as peak_memory

# What ranks may take to start [s], our choice: imports from a busy shared file system.
_START = 120.0
# A rank does not run this module as a script, since its classes would then not be those that the crew knows.
_RANK = "from exafield.engine.rank import main; main()"
# What ranks may take to end by themselves when told to [s], our choice.
_END = 10.0


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
                link.send(Order(tuple(works), passes))
            except OSError as error:
                raise self._gone(rank) from error
        reports: dict[int, Report] = {}
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
        return gathered(works, [reports[rank] for rank in range(self.workers)])

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
