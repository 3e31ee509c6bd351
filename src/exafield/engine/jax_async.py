"""JAX, asynchronous dispatch: an operation for each row and device, whose arguments are the outputs that it takes.

A device has a block of columns. XLA runs small operations in the thread that dispatches them, so each device has a
thread of its own, and what another device needs is handed to that thread. Outputs are JAX's arrays throughout.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine import EngineError, Session, Work, jax_ffi
from exafield.engine.child import alone, settle, xla
from exafield.engine.native import Arena
from exafield.engine.plan import Plan


class _Part:
    """What a device does of one graph: the arguments of its operation in each row, beside the outputs themselves."""

    def __init__(
        self, work: Work, arena: Arena, number: int, device: int, count: int, state: NDArray[np.int64]
    ) -> None:
        import jax

        graph, self.arena = work.graph, arena
        plans = [Plan(graph, d, count) for d in range(count)]
        self.columns = own = plans[device].columns
        made: dict[tuple[int, ...], Any] = {}
        #: Of each row: the table; the devices whose outputs of the row before come; those that get its own.
        self.rows: list[tuple[Any, list[int], list[int]]] = []
        for t in range(graph.steps):
            exchange = plans[device].exchange(t)
            sources = np.unique(exchange.source).tolist()
            columns = [*(own if t else ()), *(c for source in sources for c in plans[source].columns)]
            if tuple(columns) not in made:
                table = jax_ffi.table(arena, number, own, state, columns)
                made[tuple(columns)] = jax.device_put(table, jax.devices()[device])
            following = plans[device].exchange(t + 1).to if t + 1 < graph.steps else ()
            self.rows.append((made[tuple(columns)], sources, np.unique(following).astype(int).tolist()))
        shape = jax.ShapeDtypeStruct((len(own), arena.stride), np.uint8)
        self.call = jax.jit(jax.ffi.ffi_call(jax_ffi.TARGET, shape))
        self.block: Any = None


class Devices:
    """The process: a thread for each device."""

    def __init__(self, rank: int, size: int, folder: str) -> None:
        self._count = settle()
        self._pool = ThreadPoolExecutor(self._count)
        self._state = np.zeros(1, dtype=np.int64)

    def prepare(self, works: Sequence[Work]) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        import jax

        jax_ffi.register()
        self._works, self._devices = works, jax.devices()
        self._arenas = [Arena(work, slots=1) for work in works]
        self._parts = [
            [
                _Part(work, arena, g, d, self._count, self._state)
                for g, (work, arena) in enumerate(zip(works, self._arenas, strict=True))
            ]
            for d in range(self._count)
        ]
        self.tasks = sum(len(work.graph) for work in works)
        steps = max(work.graph.steps for work in works)
        self._rows = [[jax.device_put(np.array([t]), device) for t in range(steps)] for device in self._devices]
        # A pass in which no task runs has XLA compile every operation.
        self._state[0] = jax_ffi.RESTS
        self.run()
        self._state[0] = jax_ffi.RUNS

    def run(self) -> float:
        """See :class:`exafield.engine.spmd.Program`."""
        every = range(self._count)
        ways: list[list[SimpleQueue[Any]]] = [[SimpleQueue() for _ in every] for _ in every]
        began = time.perf_counter()
        futures = [self._pool.submit(self._device, device, ways) for device in every]
        failures = [error for error in (future.exception() for future in futures) if error]
        elapsed = time.perf_counter() - began
        if failures:
            raise min(failures, key=lambda error: isinstance(error, EngineError))  # rather not one that only follows
        jax_ffi.complain(self._state, self._arenas)
        return elapsed

    def _device(self, device: int, ways: list[list["SimpleQueue[Any]"]]) -> None:
        from jax import block_until_ready

        parts, steps = [part for part in self._parts[device] if part.columns], self._rows[device]
        try:
            for t, row in enumerate(steps):
                for part in parts:
                    if t >= len(part.rows):
                        continue
                    table, sources, receivers = part.rows[t]
                    blocks = [ways[source][device].get() for source in sources]
                    if any(block is None for block in blocks):
                        raise EngineError("another device failed")
                    part.block = part.call(row, table, *((part.block,) if t else ()), *blocks)
                    if receivers:
                        # A view of its memory, which the receiver's call takes to its device: three times as fast
                        # as device_put from device to device.
                        block = np.asarray(part.block)
                        for receiver in receivers:
                            ways[device][receiver].put(block)
            block_until_ready([part.block for part in parts])
        except BaseException:
            # Nobody shall wait for what will not come.
            for way in ways[device]:
                way.put(None)
            raise

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """See :class:`exafield.engine.spmd.Program`."""
        found: list[dict[int, NDArray[np.uint8]]] = []
        for g, work in enumerate(self._works):
            row: dict[int, NDArray[np.uint8]] = {}
            for part in (parts[g] for parts in self._parts if parts[g].columns):
                block = np.asarray(part.block)[:, : part.arena.size]
                last = work.graph.columns(work.graph.steps - 1)
                row |= {c: block[k].copy() for k, c in enumerate(part.columns) if c in last}
            found.append(row)
        return found

    def close(self) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self._pool.shutdown()


@dataclass(frozen=True, slots=True)
class JaxEngine:
    """One process with several devices of the CPU.

    Args:
        workers: number of devices; None: one for each core.
    """

    workers: int | None = None

    def open(self) -> AbstractContextManager[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        return alone("JAX", "jax", "jax", "exafield.engine.jax_async:Devices", self.workers, xla)
