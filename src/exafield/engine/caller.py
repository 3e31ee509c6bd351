"""Native tasks one by one, on outputs that lie anywhere."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine import EngineError
from exafield.engine.graph import Work
from exafield.engine.native import address, compiled


class Caller:
    """Runs single tasks of a body on outputs that lie anywhere: for systems that hand them from task to task."""

    def __init__(self, work: Work) -> None:
        self.graph = work.graph
        self.body = work.body.load()
        self.size = work.body.output_bytes
        self.scratch_size = work.body.scratch_bytes
        self._call = compiled().call
        self._known: dict[tuple[int, range, int], NDArray[np.int64]] = {}

    def fresh(self) -> NDArray[np.uint8]:
        """The scratch memory of a column, as it is before its first task."""
        scratch = np.zeros(self.scratch_size, dtype=np.uint8)
        self.body.prepare(scratch)
        return scratch

    def _producers(self, t: int, column: int) -> NDArray[np.int64]:
        """The inputs of a task; rows of one kind share them."""
        key = (int(self.graph.chosen[t]), self.graph.columns(t - 1), column)
        if key not in self._known:
            self._known[key] = np.array(self.graph.inputs(t, column), dtype=np.int64)
        return self._known[key]

    def __call__(
        self, t: int, column: int, inputs: Sequence[Any], scratch: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """The output of task (t, column), [output_bytes].

        Args:
            inputs: the outputs it takes, in order, as anything that offers its memory.
            scratch: of the column; written to.
        Raises:
            EngineError: the task failed, or an input is not of the right size.
        """
        output = np.empty(self.size, dtype=np.uint8)
        producers = self._producers(t, column)
        count = len(inputs)
        if producers.size != count:
            raise EngineError(f"timestep {t}, point {column}: expected {producers.size} inputs, got {count}")
        arrays = [x if isinstance(x, np.ndarray) else np.frombuffer(x, dtype=np.uint8) for x in inputs]
        for number, array in enumerate(arrays):
            if array.nbytes != self.size:
                raise EngineError(
                    f"timestep {t}, point {column}, input {number}: expected {self.size} bytes, got {array.nbytes}"
                )
        where = np.array([address(array) for array in arrays], dtype=np.int64)
        body = self.body
        store = 0 if scratch is None or not scratch.size else address(scratch)
        if self._call(body.address, body.parameters, t, column, output, where, producers, count, store):
            raise EngineError(f"a task failed: {body.explain()}")
        return output
