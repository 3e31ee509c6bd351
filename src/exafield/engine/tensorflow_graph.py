"""TensorFlow: one static graph of all tasks, whose outputs are tensors; traced in the first pass, run again later.

A task is a node that calls back into Python (tf.numpy_function). It is declared free of effects, since nodes that have
any run one after the other (automatic control dependencies of tf.function). Such nodes may be merged if they look
alike, or evaluated ahead if they depend on constants only: so each has a constant of its own, and takes the graph's
argument.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine import EngineError, Session, Work, cells
from exafield.engine.caller import Caller
from exafield.engine.child import alone, settle


class Graph:
    """The process: its threads run what is ready."""

    def __init__(self, rank: int, size: int, folder: str) -> None:
        self._count = settle()
        self._ready = False

    def prepare(self, works: Sequence[Work]) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        import tensorflow as tf

        if not self._ready:
            tf.config.threading.set_inter_op_parallelism_threads(self._count)
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.constant(0)  # starts its threads
            self._ready = True
        self._works = works
        self._failure: Exception | None = None
        self._callers = [Caller(work) for work in works]
        self._scratch = [
            {c: caller.fresh() for c in range(work.graph.width)} if work.body.scratch_bytes else {}
            for work, caller in zip(works, self._callers, strict=True)
        ]
        self.tasks = sum(len(work.graph) for work in works)
        self._function = tf.function(self._build, autograph=False, input_signature=[tf.TensorSpec([], tf.int64)])
        self._last: list[list[Any]] = []

    def _task(self, key: NDArray[np.int64], go: NDArray[np.int64], *needed: NDArray[np.uint8]) -> Any:
        g, t, column, count = key.tolist()
        try:
            return self._callers[g](t, column, needed[:count], self._scratch[g].get(column))
        except Exception as error:
            # TensorFlow only passes on a text with a trace of its own.
            self._failure = self._failure or error
            raise

    def _build(self, go: Any) -> list[list[Any]]:
        import tensorflow as tf

        last = []
        for g, work in enumerate(self._works):
            graph, before = work.graph, dict[int, Any]()
            unread = set(cells.unread(work))
            for t in range(graph.steps):
                row = {}
                for c in graph.columns(t):
                    key = tf.constant([g, t, c, len(graph.inputs(t, c))], tf.int64)
                    needed = [before[q] for q in cells.needs(work, t, c)]
                    row[c] = tf.numpy_function(self._task, [key, go, *needed], tf.uint8, stateful=False)
                ends = [row[c] for c in row if (t, c) in unread]
                if ends:
                    # Left out would be what nobody takes, control dependencies or not; so somebody does.
                    tf.numpy_function(_take, ends, [])
                before = row
            last.append(list(before.values()))
        return last

    def run(self) -> float:
        """See :class:`exafield.engine.spmd.Program`."""
        import tensorflow as tf

        go = tf.constant(0, tf.int64)
        began = time.perf_counter()
        try:
            self._last = self._function(go)
        except tf.errors.OpError as error:
            raise self._failure or EngineError(str(error)) from error
        return time.perf_counter() - began

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """See :class:`exafield.engine.spmd.Program`."""
        return [
            {c: output.numpy() for c, output in zip(work.graph.columns(work.graph.steps - 1), outputs, strict=True)}
            for work, outputs in zip(self._works, self._last, strict=True)
        ]

    def close(self) -> None:
        """See :class:`exafield.engine.spmd.Program`."""


def _take(*outputs: Any) -> None:
    """Has effects, as far as TensorFlow knows."""


def _environment(count: int) -> dict[str, str]:
    return {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "TF_ENABLE_ONEDNN_OPTS": "0"}


@dataclass(frozen=True, slots=True)
class TensorFlowEngine:
    """One process.

    Args:
        workers: number of threads that run nodes; None: one for each core.
    """

    workers: int | None = None

    def open(self) -> AbstractContextManager[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        program = "exafield.engine.tensorflow_graph:Graph"
        return alone("TensorFlow", "tensorflow", "tensorflow", program, self.workers, _environment)
