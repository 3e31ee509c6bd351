"""Apache Spark: each row is a shuffle to the tasks that take an output, and a map over them, as Task Bench does it."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from exafield.engine import EngineError, Outcome, Session, Share
from exafield.engine.attempt import attempt, result
from exafield.engine.cells import callers, needs, output, packed, run_cell, unpacked
from exafield.engine.graph import Work
from exafield.engine.spmd import cores, peak_memory
from exafield.requirement import require

# Rows until the lineage is cut, our choice: a job's plan grows with its rows, and a cut costs a job.
_ROWS = 25
# Items of a map in one job, for each worker (our choice).
_BATCH = 4
# How long the JVM may take to end [s], our choice.
_END = 20.0


def _part(total: int, parts: int, key: int) -> int:
    """Where a column lives: blocks of neighbours."""
    return key * parts // total


class _Keys:
    """Columns of all graphs, counted through."""

    def __init__(self, works: Sequence[Work]) -> None:
        self.works = works
        widths = [work.graph.width for work in works]
        self.starts = [sum(widths[:g]) for g in range(len(widths))]
        self.total = sum(widths)
        self._places = [(g, column) for g, width in enumerate(widths) for column in range(width)]

    def place(self, key: int) -> tuple[int, int]:
        """Graph and column."""
        return self._places[key]


@lru_cache(maxsize=4)
def _keys(blob: bytes) -> _Keys:
    return _Keys(unpacked(blob))


def _spread(blob: bytes, t: int, item: tuple[int, Any]) -> Iterator[tuple[int, tuple[int, Any]]]:
    """The output of a task of row t, to all that take it in the next; after the last row it stays."""
    key, cell = item
    keys = _keys(blob)
    g, column = keys.place(key)
    work = keys.works[g]
    if t >= work.graph.steps - 1:
        yield key, (key, cell)
        return
    takers = work.graph.consumers(t, column)
    if work.body.scratch_bytes and column in work.graph.columns(t + 1) and column not in takers:
        takers.append(column)
    for taker in takers:
        yield keys.starts[g] + taker, (key, cell)


def _row(
    blob: bytes, t: int, parts: int, part: int, pairs: Iterable[tuple[int, tuple[int, Any]]]
) -> Iterator[tuple[int, Any]]:
    """Runs the tasks of row t that live in one partition; not only those that something came for."""
    keys = _keys(blob)
    came: dict[int, dict[int, Any]] = {}
    for key, (source, cell) in pairs if t else ():
        came.setdefault(key, {})[source] = cell
    for key in range(keys.total):
        if _part(keys.total, parts, key) != part:
            continue
        g, column = keys.place(key)
        work, start = keys.works[g], keys.starts[g]
        if t >= work.graph.steps:
            yield from came.get(key, {}).items()
        elif column in work.graph.columns(t):
            cells = came.get(key, {})
            yield key, run_cell(blob, g, t, column, *(cells[start + q] for q in needs(work, t, column)))


def _warm(blob: bytes, _: int) -> int:
    for caller, work in zip(callers(blob), _keys(blob).works, strict=True):
        assert caller.graph.steps == work.graph.steps
    time.sleep(0.05)  # so that no worker takes the share of another
    return peak_memory()


class _Context:
    """A session."""

    def __init__(self, context: Any, workers: int) -> None:
        self.context, self.workers = context, workers

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """See :class:`exafield.engine.Session`."""
        blob = packed(works)
        keys = _Keys(works)
        with _explained():
            warm = self.context.parallelize(range(2 * self.workers), 2 * self.workers)
            memory = warm.map(partial(_warm, blob)).collect()
            elapsed, ends = [], {}
            for _ in range(passes):
                began = time.perf_counter()
                ends = dict(self._once(blob, keys))
                elapsed.append(time.perf_counter() - began)
        outputs = tuple(
            np.array([output(work, ends[start + c]) for c in work.graph.columns(work.graph.steps - 1)])
            for work, start in zip(works, keys.starts, strict=True)
        )
        tasks = sum(len(work.graph) for work in works)
        return Outcome(tuple(elapsed), outputs, (Share(f"{self.workers} workers", tasks, max(memory)),))

    def _once(self, blob: bytes, keys: _Keys) -> list[tuple[int, Any]]:
        from pyspark import StorageLevel

        parts = self.workers
        cut: list[Any] = []
        rows = self.context.parallelize(range(parts), parts).mapPartitionsWithIndex(partial(_row, blob, 0, parts))
        for t in range(1, max(work.graph.steps for work in keys.works)):
            taken = rows.flatMap(partial(_spread, blob, t - 1)).partitionBy(parts, partial(_part, keys.total, parts))
            rows = taken.mapPartitionsWithIndex(partial(_row, blob, t, parts))
            if t % _ROWS == 0:
                # Kept as well as cut: otherwise PySpark would join its function to the next, and run tasks twice.
                rows.persist(StorageLevel.MEMORY_AND_DISK)
                rows.localCheckpoint()
                rows.count()
                cut.append(rows)
        found: list[tuple[int, Any]] = rows.collect()
        for kept in cut:
            kept.unpersist()
        return found

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], retry: int, done: Collection[int]
    ) -> Iterator[tuple[int, Any]]:
        """As MapEngine.map: one job after the other, of some items for each worker."""
        todo = ((index, item) for index, item in enumerate(items) if index not in done)
        while batch := list(islice(todo, _BATCH * self.workers)):
            with _explained(f"item {batch[0][0]} or one of the {len(batch) - 1} after it failed: "):
                values = self.context.parallelize(batch, len(batch)).map(partial(_item, fn, retry)).collect()
            for (index, _), value in zip(batch, values, strict=True):
                yield index, result(value)


def _item(fn: Callable[[Any], Any], retry: int, item: tuple[int, Any]) -> Any:
    return attempt(fn, retry, *item)


@contextmanager
def _explained(what: str = "") -> Iterator[None]:
    """Errors of Spark, in our words."""
    from py4j.protocol import Py4JError, Py4JJavaError

    try:
        yield
    except Py4JJavaError as error:
        said = str(error.java_exception.getMessage())
        task = re.search(r"exafield\.engine\.EngineError: (.*?)\n\n", said, re.DOTALL)
        raise EngineError(what + (task.group(1) if task else f"Spark: {said}")) from error
    except (Py4JError, OSError, EOFError) as error:
        raise EngineError(f"{what}Spark: the JVM was lost: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class SparkEngine:
    """Spark, in a JVM of this process or on a cluster. Java 17 must be installed.

    Args:
        workers: how many tasks run at the same time; None: one for each core (of the cluster).
        address: of a running master, such as spark://host:7077; its nodes must be able to import exafield.
    """

    workers: int | None = None
    address: str | None = None

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        with _context(self.workers, self.address) as session:
            yield session

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`."""
        with _context(self.workers, self.address) as session:
            yield from session.map(fn, items, retry, done)


def _settings(folder: str, workers: int, address: str | None) -> dict[str, str]:
    log = Path(folder, "log4j2.properties")
    log.write_text(
        "rootLogger.level = warn\nrootLogger.appenderRef.n.ref = n\nappender.n.type = Null\nappender.n.name = n\n"
    )
    # Without performance data the JVM leaves no folder for them.
    java = f"-XX:-UsePerfData -Djava.io.tmpdir={folder} -Dlog4j2.configurationFile={log}"
    here = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.authenticate": "true"}
    return {
        "spark.master": address or f"local[{workers}]", "spark.app.name": "exafield", "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false", "spark.local.dir": folder, "spark.task.maxFailures": "1",
        "spark.driver.extraJavaOptions": java, **(here if address is None else {}),
    }  # fmt: skip


@contextmanager
def _context(workers: int | None, address: str | None) -> Iterator[_Context]:
    require("pyspark", extra="spark")
    home = os.environ.get("JAVA_HOME")
    if shutil.which("java", path=f"{home}/bin" if home else None) is None:
        raise ImportError("Spark needs Java 17, which is not installed: install it, and set JAVA_HOME or PATH")
    from pyspark import SparkConf, SparkContext

    changed = {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
    if address is None:
        changed |= {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LAUNCHER_OPTS": "-XX:-UsePerfData"}
    before = {name: os.environ.get(name) for name in changed}
    context = None
    with tempfile.TemporaryDirectory(prefix="exafield-", ignore_cleanup_errors=True) as folder:
        try:
            os.environ.update(changed)
            try:
                settings = _settings(folder, workers or len(cores()), address)
                context = SparkContext(conf=SparkConf().setAll(list(settings.items())))
            except Exception as error:
                raise EngineError(f"Spark does not start: {type(error).__name__}: {error}") from error
            yield _Context(context, workers or context.defaultParallelism)
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            _end(SparkContext, context)


def _end(kind: Any, context: Any) -> None:
    """Stops Spark, and its JVM, which would otherwise live as long as this process."""
    gateway = kind._gateway
    with suppress(Exception):
        if context is not None:
            context.stop()
    kind._active_spark_context = None
    if gateway is None:
        return
    with suppress(Exception):
        gateway.shutdown()
    process = gateway.proc
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # Allows for another one in this process.
    kind._gateway = kind._jvm = None
