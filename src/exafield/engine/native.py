"""Native tasks: a block of columns of one row in a single call, without Python's lock."""

import mmap
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine import EngineError
from exafield.engine.graph import Relation, TaskGraph, Work
from exafield.requirement import require


def address(array: NDArray[Any]) -> int:
    """Where an array's memory begins."""
    return int(array.__array_interface__["data"][0])


def compiled() -> ModuleType:
    """The machine code behind this module.

    Raises:
        ImportError: numba is not installed.
    """
    require("numba", extra="light")
    from exafield.engine import blocks

    return blocks


def memory(size: int) -> NDArray[np.uint8]:
    """Zeroed memory [bytes], of which only what is touched becomes resident."""
    # A mapping of its own: pages of a row that a rank never touches cost nothing.
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype=np.uint8)


class Arena:
    """The outputs of a graph's tasks in memory, and native code that runs tasks on them.

    Row t lies in slot `t % slots`. With two slots a row may run once the row before it is complete and nobody reads
    the one before that any more; with as many slots as rows nothing is ever written twice.

    Args:
        work: graph and body.
        slots: rows of outputs that are kept; None: all.
        outputs: memory for them, if it must be of a certain kind, [slots * width * row bytes].
        columns: whose scratch memory is made here; None: all.
    Raises:
        ImportError: numba is not installed.
    """

    def __init__(
        self,
        work: Work,
        slots: int | None = 2,
        *,
        outputs: NDArray[np.uint8] | None = None,
        columns: range | None = None,
    ) -> None:
        graph = work.graph
        self.graph = graph
        self.body = work.body.load()
        self.size = work.body.output_bytes
        self.slots = graph.steps if slots is None else min(slots, graph.steps)
        self.stride = stride(work)
        shape = (self.slots, graph.width, self.stride)
        self._outputs = memory(self.slots * graph.width * self.stride) if outputs is None else outputs
        self.outputs = self._outputs[: self.slots * graph.width * self.stride].reshape(shape)
        size = work.body.scratch_bytes
        self.scratch = memory(graph.width * size)[: graph.width * size].reshape(graph.width, size)
        if size:
            own = range(graph.width) if columns is None else columns
            self.body.prepare(self.scratch[own.start : own.stop])
        self._starts = np.array([address(r.starts) for r in graph.relations], dtype=np.int64)
        self._producers = np.array([address(r.producers) for r in graph.relations], dtype=np.int64)
        # The order is that of the constants in `blocks`.
        self.context = np.array(
            [
                self.body.address,
                self.body.parameters,
                graph.width,
                graph.steps,
                address(graph.offsets),
                address(graph.widths),
                address(graph.chosen),
                address(self._starts),
                address(self._producers),
                address(self._outputs),
                self.stride,
                self.slots,
                address(self.scratch) if size else 0,
                size,
            ],
            dtype=np.int64,
        )
        self.address = address(self.context)
        self._block = compiled().block

    def run(self, t: int, first: int, last: int) -> None:
        """Runs the tasks of row t in columns `first` to `last` - 1; those that the row does not have are left out.

        Raises:
            EngineError: a task failed.
        """
        if self._block(self.address, t, first, last):
            raise self.failure()

    def failure(self) -> EngineError:
        """What the body says went wrong."""
        return EngineError(f"a task failed: {self.body.explain()}")

    def output(self, t: int, column: int) -> NDArray[np.uint8]:
        """The output of task (t, column), [output_bytes]: a view of the memory."""
        return self.outputs[t % self.slots, column, : self.size]

    def last(self) -> NDArray[np.uint8]:
        """The outputs of the last row, [tasks, output_bytes]: a copy."""
        t = self.graph.steps - 1
        columns = self.graph.columns(t)
        return self.outputs[t % self.slots, columns.start : columns.stop, : self.size].copy()


def stride(work: Work) -> int:
    """Bytes from one output to the next in an arena: whole cache lines, since neighbours write at the same time."""
    return -(-work.body.output_bytes // 64) * 64


@cache
def _relation_bytes(relation: Relation) -> int:
    return int(relation.starts.nbytes + relation.producers.nbytes)


def footprint(work: Work, slots: int | None) -> int:
    """Memory that an arena takes [bytes], relations included."""
    graph: TaskGraph = work.graph
    rows = graph.steps if slots is None else min(slots, graph.steps)
    relations = sum(_relation_bytes(relation) for relation in graph.relations)
    return rows * graph.width * stride(work) + graph.width * work.body.scratch_bytes + relations
