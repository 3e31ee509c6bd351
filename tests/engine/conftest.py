"""A run of Task Bench in processes of its own, which tests disturb: what works there, and what is left in the end."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

_MARK = "EXAFIELD_TEST_RUN"
# Until an engine that starts slowly, on a busy machine, has run its first task; and what it may take to end [s].
_WORKS, END = 180.0, 60.0
# Row 0 of the first graph writes to a folder, which shows that tasks run; the second lasts far longer than any test.
_FLAGS = [
    *("-steps", "1", "-width", "2", "-type", "trivial", "-kernel", "io_bound", "-iter", "1", "-and"),
    *("-steps", "500", "-width", "2", "-type", "stencil_1d", "-kernel", "compute_bound", "-iter", "100000000"),
]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, group, session ... ; none if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Disturbed:
    """`exafield taskbench run` of an engine, in a session of its own, with a temporary folder of its own.

    Args:
        engine: its name.
        launcher: what starts it, such as mpirun; nothing else is.
        options: other flags, before those of the graphs.
    """

    def __init__(self, engine: str, options: Sequence[str] = ("--workers", "2"), launcher: Sequence[str] = ()) -> None:
        self.mark = uuid.uuid4().hex
        # Short, as paths of sockets must be.
        self.folder = Path(tempfile.mkdtemp(prefix="faults-"))
        self.temporary, self.scratch = self.folder / "tmp", self.folder / "scratch"
        self.temporary.mkdir()
        self.scratch.mkdir()
        self._empty = self.scratch.stat().st_mtime_ns
        self._said = (self.folder / "said").open("w+")
        self._complained = (self.folder / "complained").open("w+")
        settings = {_MARK: self.mark, "TMPDIR": str(self.temporary), "EXAFIELD_SCRATCH": str(self.scratch)}
        self._seen: dict[int, str] = {}
        self.driver = subprocess.Popen(
            [*launcher, sys.executable, "-m", "exafield", "taskbench", "run", "--engine", engine, *options, *_FLAGS],
            stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._complained, start_new_session=True,
            env={**os.environ, **settings},
        )  # fmt: skip

    @property
    def said(self) -> str:
        """What it printed so far."""
        return (self.folder / "said").read_text()

    @property
    def complained(self) -> str:
        """What it said about errors so far."""
        return (self.folder / "complained").read_text()

    def others(self) -> list[int]:
        """The live processes of this run, except the one that was started here.

        Found by their session, their environment, or since they once were below another one of them: programs move
        to sessions of their own, and write over their environment.
        """
        parents = {}
        for path in Path("/proc").glob("[0-9]*"):
            pid, fields = int(path.name), _stat(int(path.name))
            if not fields or fields[0] in "ZX":
                continue
            parents[pid] = int(fields[1])
            environment = b""
            with suppress(OSError):
                environment = (path / "environ").read_bytes()
            if int(fields[3]) == self.driver.pid or self.mark.encode() in environment:
                self._seen[pid] = fields[19]
        new = {self.driver.pid, *self._seen}
        while new:
            new = {pid for pid, parent in parents.items() if parent in new} - set(self._seen)
            self._seen |= {pid: _stat(pid)[19] for pid in new if _stat(pid)}
        alive = [pid for pid, began in self._seen.items() if pid in parents and _stat(pid)[19:20] == [began]]
        return [pid for pid in alive if pid != self.driver.pid]

    def wait_until_it_works(self) -> None:
        """Until tasks have run."""
        deadline = time.monotonic() + _WORKS
        while self.scratch.stat().st_mtime_ns == self._empty:
            if self.driver.poll() is not None and "not installed" in self.complained:
                pytest.skip(self.complained)
            assert self.driver.poll() is None, f"it ended ({self.driver.poll()}): {self.said}{self.complained}"
            assert time.monotonic() < deadline, f"no task ran: {self.said}{self.complained}"
            time.sleep(0.1)
        time.sleep(1.0)  # now the long ones are under way
        self.others()

    def busiest(self) -> int:
        """Whichever of the other processes computes most."""
        before = {pid: self._ticks(pid) for pid in self.others()}
        time.sleep(0.5)
        return max(before, key=lambda pid: self._ticks(pid) - before[pid])

    @staticmethod
    def _ticks(pid: int) -> int:
        return sum(map(int, _stat(pid)[11:13]))

    def code(self) -> int:
        """Its exit code, once it has ended."""
        try:
            return self.driver.wait(END)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it has not ended: {self.complained}") from None

    def left(self) -> str:
        """What is left of it: processes and files, which may take a moment to go."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and (self.others() or any(self.temporary.iterdir())):
            time.sleep(0.2)
        lines = [
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:300]
            for pid in self.others()
        ]
        return "\n".join(lines + [str(path) for path in self.temporary.rglob("*")])

    def close(self) -> None:
        """Ends what a test that failed left."""
        for pid in [*self.others(), self.driver.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.driver.wait()
        self._said.close()
        self._complained.close()
        subprocess.run(["rm", "-rf", str(self.folder)], check=True)


@pytest.fixture
def disturbed() -> Iterator[Callable[..., Disturbed]]:
    """Starts runs; ends them after the test."""
    runs: list[Disturbed] = []

    def start(*arguments: object, **options: object) -> Disturbed:
        runs.append(Disturbed(*arguments, **options))  # type: ignore[arg-type]
        return runs[-1]

    yield start
    for run in runs:
        run.close()
