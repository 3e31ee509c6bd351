"""Apache Spark: each row of a graph is a shuffle, and a map over what came, as Task Bench does it."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from exafield.engine import Session
from exafield.engine.attempt import attempt, result
from exafield.engine.spark_context import explained, spark
from exafield.engine.spark_rows import SparkSession, settle

# Items of a map in one job, for each worker (our choice).
_BATCH = 4


@dataclass(frozen=True, slots=True)
class SparkEngine:
    """Spark, in a JVM of this process or on a cluster. Java 17 must be installed.

    A cluster is joined as one application more, which ends with the session. Its nodes need exafield and numba in the
    Python that drivers have, at the same path::

        spark-class org.apache.spark.deploy.master.Master --host HOST            # on one node
        spark-class org.apache.spark.deploy.worker.Worker spark://HOST:7077      # on each
        exafield taskbench run --engine spark --address spark://HOST:7077 -steps 100 -width 8 -type stencil_1d

    Settings of the cluster, such as `spark.authenticate`, are read from `SPARK_CONF_DIR`/spark-defaults.conf.

    Args:
        workers: how many tasks run at the same time; None: one for each core (of the cluster).
        address: of a running master, such as spark://host:7077.
    """

    workers: int | None = None
    address: str | None = None

    @contextmanager
    def open(self) -> Iterator[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        with spark(self.workers, self.address) as (context, workers):
            yield SparkSession(context, workers)

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """See :class:`exafield.engine.MapEngine`. One job after the other, of some items for each worker."""
        todo = ((index, item) for index, item in enumerate(items) if index not in done)
        with spark(self.workers, self.address) as (context, workers):
            while batch := list(islice(todo, _BATCH * workers)):
                with explained(f"item {batch[0][0]} or one of the {len(batch) - 1} after it failed: "):
                    values = context.parallelize(batch, len(batch)).map(partial(_item, fn, retry)).collect()
                for (index, _), value in zip(batch, values, strict=True):
                    yield index, result(value)


def _item(fn: Callable[[Any], Any], retry: int, item: tuple[int, Any]) -> Any:
    value = attempt(fn, retry, *item)
    settle()
    return value
