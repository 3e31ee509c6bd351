"""MPI with the rank's whole loop compiled: numba calls MPI by address, from handles that mpi4py gives."""

# mypy: disable-error-code="untyped-decorator,no-untyped-call,misc,no-any-return"

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.engine import EngineError
from exafield.engine.blocks import OUTPUTS, SLOTS, STRIDE, WIDTH, task
from exafield.engine.graph import Work
from exafield.engine.lowlevel import invoke_int, native, read
from exafield.engine.mpi import Part
from exafield.engine.native import address

# Columns of a part's description.
CONTEXT, STEPS, OFFSETS, WIDTHS, SIZE, KINDS, SENT_STARTS, SENT, TO = range(9)
RECEIVED_STARTS, RECEIVED, SOURCE, EXPORTED, ORDER, OWN, REQUESTS, TAG, OPEN = range(9, 18)
# Rows of the functions' addresses, and of what they are always given.
ISEND, IRECV, WAITALL, BARRIER, WORLD, BYTE, IGNORE, HANDLE = range(8)


@native
def _columns(part: Any, t: int, kind: int, first: int, last: int) -> int:
    """Runs some of the rank's columns of row t, in the order of the exchange that follows."""
    low = read(part[OFFSETS], t)
    high = low + read(part[WIDTHS], t)
    for k in range(kind * part[OWN] + first, kind * part[OWN] + last):
        column = read(part[ORDER], k)
        if low <= column < high:
            failed = task(part[CONTEXT], t, column)
            if failed:
                return failed
    return 0


@native
def _post(mpi: Any, part: Any, t: int, kind: int) -> None:
    """Starts what travels after row t: its outputs go out, and those of others come in."""
    context = part[CONTEXT]
    stride, width = read(context, STRIDE), read(context, WIDTH)
    row = read(context, OUTPUTS) + (t % read(context, SLOTS)) * width * stride
    requests, handle, size = part[REQUESTS], mpi[HANDLE], part[SIZE]
    for k in range(read(part[RECEIVED_STARTS], kind), read(part[RECEIVED_STARTS], kind + 1)):
        column, source = read(part[RECEIVED], k), read(part[SOURCE], k)
        invoke_int(mpi[IRECV], (row + column * stride, size, mpi[BYTE], source, part[TAG], mpi[WORLD], requests))
        requests += handle
    for k in range(read(part[SENT_STARTS], kind), read(part[SENT_STARTS], kind + 1)):
        column, to = read(part[SENT], k), read(part[TO], k)
        invoke_int(mpi[ISEND], (row + column * stride, size, mpi[BYTE], to, part[TAG], mpi[WORLD], requests))
        requests += handle


@native
def _pass(mpi: Any, parts: Any, rows: int) -> int:
    """All rows. Columns whose outputs travel run first, and those travel while the others run."""
    for t in range(rows):
        for g in range(parts.shape[0]):
            part = parts[g]
            if t >= part[STEPS]:
                continue
            if part[OPEN]:
                invoke_int(mpi[WAITALL], (part[OPEN], part[REQUESTS], mpi[IGNORE]))
            kind = read(part[KINDS], t + 1)
            exported = read(part[EXPORTED], kind)
            failed = _columns(part, t, kind, 0, exported)
            if failed:
                return failed
            _post(mpi, part, t, kind)
            part[OPEN] = (
                read(part[RECEIVED_STARTS], kind + 1) - read(part[RECEIVED_STARTS], kind)
                + read(part[SENT_STARTS], kind + 1) - read(part[SENT_STARTS], kind)
            )  # fmt: skip
            failed = _columns(part, t, kind, exported, part[OWN])
            if failed:
                return failed
    return 0


class Compiled:
    """A rank whose loop is compiled."""

    def __init__(self, rank: int, size: int, folder: str) -> None:
        from mpi4py import MPI

        self.rank, self.size, self._world, self._time = rank, size, MPI.COMM_WORLD, MPI.Wtime
        library = ctypes.CDLL(MPI.__file__)  # it is linked to MPI, so its functions are found through it
        names = ("MPI_Isend", "MPI_Irecv", "MPI_Waitall", "MPI_Barrier")
        functions = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in names]
        self._handle = MPI._sizeof(MPI.Request)
        # The address that means "no statuses, please" is 0 in Open MPI, 1 in MPICH and what descends from it.
        ignore = 0 if MPI.Get_library_version().startswith("Open MPI") else 1
        handles = [MPI._handleof(MPI.COMM_WORLD), MPI._handleof(MPI.BYTE)]
        self._mpi = np.array([*functions, *handles, ignore, self._handle], dtype=np.int64)
        self.parts: list[Part] = []
        self.tasks = 0

    def prepare(self, works: Sequence[Work]) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
        self.parts = [Part(work, self.rank, self.size) for work in works]
        self.tasks = sum(part.tasks for part in self.parts)
        self._tables = [part.plan.table() for part in self.parts]
        self._requests = [np.zeros(self._room(table), dtype=np.uint8) for table in self._tables]
        self._described = np.array(
            [
                [
                    part.arena.address, part.steps, address(part.arena.graph.offsets), address(part.arena.graph.widths),
                    part.arena.size, address(table.kinds), address(table.sent_starts), address(table.sent),
                    address(table.to), address(table.received_starts), address(table.received), address(table.source),
                    address(table.exported), address(table.order), len(part.columns), address(requests), tag, 0,
                ]
                for tag, (part, table, requests) in enumerate(
                    zip(self.parts, self._tables, self._requests, strict=True)
                )
            ],
            dtype=np.int64,
        )  # fmt: skip
        _pass(self._mpi, self._described[:0], 0)  # compiled, or read from disk, before the clock starts

    def _room(self, table: Any) -> int:
        most = np.diff(table.sent_starts) + np.diff(table.received_starts)
        return int(most.max(initial=0) + 1) * self._handle

    def run(self) -> float:
        """See :class:`exafield.engine.spmd.Program`."""
        rows = max(part.steps for part in self.parts)
        self._described[:, OPEN] = 0
        self._world.Barrier()
        began = self._time()
        failed = _pass(self._mpi, self._described, rows)
        if failed:
            said = [part.arena.body.explain() for part in self.parts]
            raise EngineError(f"a task failed: {'; '.join(text for text in said if text)}")
        self._world.Barrier()
        return float(self._time() - began)

    def outputs(self) -> list[dict[int, NDArray[np.uint8]]]:
        """See :class:`exafield.engine.spmd.Program`."""
        return [part.outputs() for part in self.parts]

    def close(self) -> None:
        """See :class:`exafield.engine.spmd.Program`."""
