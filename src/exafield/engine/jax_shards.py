"""JAX, SPMD: one compiled loop over rows, sharded over devices, that exchange outputs by collectives between rows.

A device has a block of columns. What it takes from others comes by `ppermute`, a run of columns for each distance
between devices, or by `all_gather` where nearly everything is needed (jax.shard_map, "manual parallelism").
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine import Session, Work, jax_ffi
from exafield.engine.child import alone, settle, xla
from exafield.engine.jax_exchange import Exchange, exchange
from exafield.engine.native import Arena


class Shards:
    """The process: all devices run one program."""

    def __init__(self, rank: int, size: int, folder: str) -> None:
        self._count = settle()
        self._state = np.zeros(1, dtype=np.int64)

    def prepare(self, works: Sequence[Work]) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        import jax
        from jax.sharding import Mesh, NamedSharding, PartitionSpec

        jax_ffi.register()
        self._works, count = works, self._count
        self._arenas = [Arena(work, slots=1) for work in works]
        self._blocks = [-(-work.graph.width // count) for work in works]
        self.tasks = sum(len(work.graph) for work in works)
        tables: list[list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = []
        rows: list[Callable[..., Any]] = []
        for g, (work, arena, block) in enumerate(zip(works, self._arenas, self._blocks, strict=True)):
            width, kinds = work.graph.width, [exchange(r, block, count) for r in work.graph.relations]
            own = [range(min(d * block, width), min((d + 1) * block, width)) for d in range(count)]
            tables.append(
                [
                    (
                        np.stack(
                            [jax_ffi.table(arena, g, own[d], self._state, kind.given[d].tolist()) for d in range(count)]
                        ),
                        kind.starts,
                    )
                    for kind in kinds
                ]
            )
            rows.append(_row(work, kinds, (block, arena.stride)))
        steps = [work.graph.steps for work in works]

        def loop(tables: Any, outputs: list[Any]) -> list[Any]:
            # Graphs that end sooner are left out of the rest.
            for begin, end in pairwise(sorted({0, *steps})):

                def row(t: Any, outputs: list[Any], end: int = end) -> list[Any]:
                    return [
                        rows[g](t, tables[g], output) if steps[g] >= end else output for g, output in enumerate(outputs)
                    ]

                # Two rows in turn: the outputs of one become the inputs of the next without a copy.
                outputs = jax.lax.fori_loop(begin, end, row, outputs, unroll=2)
            return outputs

        mesh = Mesh(np.array(jax.devices()), ("d",))
        spec = PartitionSpec("d")
        place = NamedSharding(mesh, spec)
        outputs = [np.zeros((b * count, a.stride), np.uint8) for b, a in zip(self._blocks, self._arenas, strict=True)]
        self._given = jax.device_put((tables, outputs), place)
        mapped = jax.shard_map(loop, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        # A pass in which no task runs has XLA compile the loop.
        self._loop = jax.jit(mapped)
        self._state[0] = jax_ffi.RESTS
        self.run()
        self._state[0] = jax_ffi.RUNS

    def run(self) -> float:
        """See :class:`exafield.engine.spmd.Program`."""
        import jax

        began = time.perf_counter()
        self._outputs = jax.block_until_ready(self._loop(*self._given))
        elapsed = time.perf_counter() - began
        jax_ffi.complain(self._state, self._arenas)
        return elapsed

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """See :class:`exafield.engine.spmd.Program`."""
        found = []
        for work, arena, array in zip(self._works, self._arenas, self._outputs, strict=True):
            rows = np.asarray(array)[:, : arena.size]
            found.append({c: rows[c].copy() for c in work.graph.columns(work.graph.steps - 1)})
        return found

    def close(self) -> None:
        """See :class:`exafield.engine.spmd.Program`."""


def _row(work: Work, kinds: list[Exchange], shape: tuple[int, int]) -> Callable[..., Any]:
    """The function that advances a graph by a row, on one device."""
    import jax

    # It has an effect: the outputs of all rows but the last are of no use to anybody if no task takes them.
    call = jax.ffi.ffi_call(jax_ffi.TARGET, jax.ShapeDtypeStruct(shape, np.uint8), has_side_effect=True)

    def branch(kind: Exchange, number: int) -> Callable[..., Any]:
        def advance(t: Any, tables: Any, own: Any) -> Any:
            table, starts = tables[number]
            if kind.shifts is None:
                return call(t[None], table, own, jax.lax.all_gather(own, "d", tiled=True))
            came = []
            for index, (_, pairs, columns) in enumerate(kind.shifts):
                sent = jax.lax.dynamic_slice_in_dim(own, starts[0, index], columns)
                came.append(jax.lax.ppermute(sent, "d", pairs))
            return call(t[None], table, own, *came)

        return advance

    branches = [branch(kind, number) for number, kind in enumerate(kinds)]
    if len(branches) == 1:
        return branches[0]
    chosen = np.array(work.graph.chosen)
    return lambda t, tables, own: jax.lax.switch(jax.numpy.asarray(chosen)[t], branches, t, tables, own)


@dataclass(frozen=True, slots=True)
class ShardsEngine:
    """One process with several devices of the CPU, all in one compiled program.

    Args:
        workers: number of devices; None: one for each core.
    """

    workers: int | None = None

    def open(self) -> AbstractContextManager[Session]:
        """See :class:`exafield.engine.GraphEngine`."""
        return alone("JAX shards", "jax", "jax", "exafield.engine.jax_shards:Shards", self.workers, xla)
