"""MPI on the machines of a user's cluster: mpirun starts the ranks there; this process speaks with rank 0 through it.

Orders go by mpirun's input, which it hands to rank 0, and outcomes come by its output: so no port is opened. Each is
a line, since mpirun keeps what has no end of line.
"""

import base64
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from exafield.engine import EngineError, Outcome, Session, mpi_job, mpi_session
from exafield.engine.graph import Work

# What ranks may take to end by themselves when told to [s], our choice.
_END = 10.0
# Variables that ranks elsewhere are given if they are set here.
_PASSED = ("EXAFIELD_SCRATCH", "NUMBA_CACHE_DIR")


def _command(system: str, program: str, workers: int | None, address: str, threads: bool) -> list[str]:
    where = ["--hostfile" if Path(address).is_file() else "--host", address]
    count = [] if workers is None else ["-n", str(workers)]
    # What can be imported here can be there.
    variables = [
        f"PYTHONPATH={os.pathsep.join(path for path in sys.path if path)}",
        *(n for n in _PASSED if n in os.environ),
    ]
    passed = [word for variable in variables for word in ("-x", variable)]
    rank = [sys.executable, "-m", "exafield.engine.mpi_hosts", system, program, str(int(threads))]
    return ["mpirun", *where, *count, "--oversubscribe", "--bind-to", "none", *passed, *rank]


def _write(pipe: IO[bytes] | None, what: Any) -> None:
    assert pipe is not None
    pipe.write(base64.b64encode(pickle.dumps(what)) + b"\n")
    pipe.flush()


def _read(pipe: IO[bytes] | None) -> Any:
    assert pipe is not None
    line = pipe.readline()
    if not line:
        raise EOFError
    return pickle.loads(base64.b64decode(line))


class _Remote:
    """A session whose work is done elsewhere."""

    def __init__(self, system: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._system, self._process, self._log = system, process, log
        self.workers: int = self._heard()

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        try:
            _write(self._process.stdin, (tuple(works), passes))
        except OSError as error:
            raise self._gone() from error
        outcome: Outcome = self._heard()
        return outcome

    def _heard(self) -> Any:
        try:
            return _read(self._process.stdout)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            raise self._gone() from error

    def _gone(self) -> EngineError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END)
        said = self._log.read_text(errors="replace").strip()[:2000]
        return EngineError(f"{self._system}: mpirun ended all ranks ({self._process.returncode}): {said}")


@contextmanager
def session(
    system: str, program: str, workers: int | None, address: str, environment: dict[str, str], threads: bool = False
) -> Iterator[Session]:
    """Starts ranks on other machines; ends them on leaving.

    Args:
        system: as errors call it.
        program: "module:class" of a :class:`exafield.engine.spmd.Program`.
        workers: number of ranks; None: as many as there are slots.
        address: "host:slots,host:slots" or the path of a hostfile, both as mpirun takes them.
        environment: set for mpirun.
        threads: a rank runs one task on each of its cores at a time, not one in all.
    Raises:
        EngineError: they do not start.
    """
    command = _command(system, program, workers, address, threads)
    with tempfile.TemporaryDirectory(prefix="exafield-") as folder:
        log = Path(folder, "log")
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output
            )
        try:
            yield _Remote(system, process, log)
            with suppress(OSError, subprocess.TimeoutExpired):
                _write(process.stdin, None)
                process.wait(_END)
        finally:
            process.terminate()
            try:
                process.wait(_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _closed(process.stdin)
            _closed(process.stdout)


def _closed(pipe: IO[bytes] | None) -> None:
    with suppress(OSError):
        if pipe is not None:
            pipe.close()


def main() -> int:
    """A rank; its arguments are SYSTEM PROGRAM THREADS."""
    system, program, threads = sys.argv[1:4]

    def drive() -> int:
        # Whatever prints must not get in between.
        with os.fdopen(os.dup(1), "wb") as out:
            os.dup2(2, 1)
            with mpi_session.session(system, program, None, threads == "1") as here:
                said: Any = here.workers
                while True:
                    _write(out, said)
                    order = _read(sys.stdin.buffer)
                    if order is None:
                        return 0
                    said = here.run(*order)

    return mpi_job.together(drive)


if __name__ == "__main__":
    sys.exit(main())
