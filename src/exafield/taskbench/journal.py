"""The journal: a file in which every task notes that it ran, and where, whatever its engine says about itself.

Every process that runs tasks maps it, so it tells about processes of this machine only.
"""

import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine import EngineError, Session, Work
from exafield.engine.graph import TaskGraph
from exafield.run import RunError
from exafield.taskbench.kernels import JOURNAL_WORDS, Kernel

# Bytes of journals beyond which they are not worth their time and space: 89 million tasks (our choice).
LARGEST = 1 << 30


@dataclass(frozen=True, eq=False)
class Entries:
    """What the journal of one graph holds.

    Args:
        counts: [steps, width] how often each task ran.
        processes: [steps, width] number of the process in which it ran last.
        threads: [steps, width] number of the thread.
    """

    counts: NDArray[np.int32]
    processes: NDArray[np.int32]
    threads: NDArray[np.int32]

    def fault(self, graph: TaskGraph, passes: int) -> str | None:
        """Which task did not run once in each pass, or ran though there is none; None: all are right."""
        columns = np.arange(graph.width)
        there = (columns >= graph.offsets[:, None]) & (columns < (graph.offsets + graph.widths)[:, None])
        wrong = np.argwhere(self.counts != there * passes)
        if not wrong.size:
            return None
        t, column = wrong[0]
        return (
            f"task ({t}, {column}) ran {self.counts[t, column]} times in {passes} passes, "
            f"expected {passes if there[t, column] else 0}"
        )


def size(works: Sequence[Work]) -> int:
    """Of the journals of these graphs [bytes]."""
    return sum(4 * JOURNAL_WORDS * work.graph.steps * work.graph.width for work in works)


@contextmanager
def journals(works: Sequence[Work]) -> Iterator[tuple[list[Work], list[Path]]]:
    """The works, each with a journal, and where these are. They are removed on leaving.

    Raises:
        RunError: there is no room for them.
    """
    with tempfile.TemporaryDirectory(prefix="exafield-") as folder:
        noted, paths = [], []
        for index, work in enumerate(works):
            path = Path(folder, f"{index}")
            try:
                with open(path, "wb") as file:
                    # All of it now: a page for which the disk had no room later would kill who writes to it.
                    os.posix_fallocate(file.fileno(), 0, size([work]))
            except OSError as error:
                raise RunError(
                    f"no room for a journal of {size([work])} bytes in {folder}: {error.strerror}"
                ) from error
            assert isinstance(work.body, Kernel)
            kernel = replace(work.body, journal=str(path), journal_width=work.graph.width)
            noted.append(Work(work.graph, kernel))
            paths.append(path)
        yield noted, paths


def read(path: Path, graph: TaskGraph) -> Entries:
    """What a journal holds."""
    words = np.fromfile(path, dtype=np.int32).reshape(graph.steps, graph.width, JOURNAL_WORDS)
    return Entries(words[..., 0], words[..., 1], words[..., 2])


@dataclass(frozen=True, slots=True)
class Worker:
    """A thread that ran tasks.

    Args:
        host: its machine.
        process: its number.
        thread: its number.
        tasks: how many it ran.
        memory: the most memory its process has had resident [bytes]; None: the process has ended.
    """

    host: str
    process: int
    thread: int
    tasks: int
    memory: int | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Who ran what in one pass.

    Args:
        workers: all that ran tasks.
        tasks: of each graph, blocks of rows that were run in the same way: `steps` rows from `first_step` on, whose
            tasks, from column `offset` on, were run by `runs`, pairs of a worker's index and a number of columns.
    """

    workers: tuple[Worker, ...]
    tasks: tuple[tuple[dict[str, Any], ...], ...]


def evidence(session: Session, works: Sequence[Work]) -> Evidence:
    """Runs graphs once more, each task of which notes who ran it.

    Raises:
        EngineError: the system failed, or a task did not run exactly once.
        RunError: there is no room for the journals.
    """
    with journals(works) as (noted, paths):
        session.run(noted, 1)
        found = [read(path, work.graph) for path, work in zip(paths, works, strict=True)]
    for index, (entries, work) in enumerate(zip(found, works, strict=True)):
        if wrong := entries.fault(work.graph, 1):
            raise EngineError(f"graph {index}: {wrong}")
    # A thread as one number: processes count far below 2^31.
    keys = [entries.processes.astype(np.int64) << 32 | entries.threads.view(np.uint32) for entries in found]
    ran = [key[entries.counts > 0] for key, entries in zip(keys, found, strict=True)]
    threads, counts = np.unique(np.concatenate(ran), return_counts=True)
    host = platform.node()
    memory = {process: peak_of(process) for process in {int(thread) >> 32 for thread in threads}}
    workers = tuple(
        Worker(host, int(thread) >> 32, int(thread) & 0xFFFFFFFF, int(count), memory[int(thread) >> 32])
        for thread, count in zip(threads, counts, strict=True)
    )
    tasks = tuple(
        tuple(_blocks(work.graph, np.searchsorted(threads, key))) for work, key in zip(works, keys, strict=True)
    )
    return Evidence(workers, tasks)


def _blocks(graph: TaskGraph, workers: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    """Rows as runs of columns with the same worker; rows that are alike together."""
    block: dict[str, Any] = {}
    for t in range(graph.steps):
        columns = graph.columns(t)
        row = workers[t, columns.start : columns.stop]
        starts = np.flatnonzero(np.concatenate(([True], row[1:] != row[:-1]))) if row.size else np.empty(0, np.int64)
        lengths = np.diff(np.concatenate((starts, [row.size])))
        runs = [[int(row[start]), int(length)] for start, length in zip(starts, lengths, strict=True)]
        if block and (block["offset"], block["runs"]) == (columns.start, runs):
            block["steps"] += 1
            continue
        if block:
            yield block
        block = {"first_step": t, "steps": 1, "offset": columns.start, "runs": runs}
    yield block


def peak_of(process: int) -> int | None:
    """The most memory that a process of this machine has had resident [bytes]; None: there is none of that number."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else None
