"""A block of tasks as one operation of XLA: a typed foreign function compiled by numba."""

import ctypes
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exafield.engine import EngineError
from exafield.engine.graph import Integers, integers
from exafield.engine.native import Arena, address

#: Of the foreign function interface.
MAJOR, MINOR = 0, 3
#: What the state holds: tasks run; a rehearsal, none does; XLA is not as known, none does; from here on: a task of this
#: graph failed, none runs any more.
RUNS, RESTS, CHANGED, FAILED = range(4)
#: Name of the operation.
TARGET = "exafield_block"
#: Words of a table before the columns.
HEADER = 5


@cache
def register() -> None:
    """Makes the operation known to XLA, once.

    Its arguments are the row [1], a table (:func:`table`) and arrays of outputs [columns, stride], which the table
    names; its result the outputs of the table's columns [columns, stride].

    Raises:
        EngineError: the interface of this jaxlib is another one.
    """
    import jax

    from exafield.engine.jax_handler import handler

    text = Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h").read_text()
    found = [int(number) for number in re.findall(r"define XLA_FFI_API_(?:MAJOR|MINOR) (\d+)", text)]
    if len(found) != 2 or found[0] != MAJOR or found[1] < MINOR:
        raise EngineError(
            f"JAX {jax.__version__}: its foreign function interface is version {'.'.join(map(str, found))}, "
            f"this adapter is for {MAJOR}.{MINOR} and later minor versions"
        )
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    jax.ffi.register_ffi_target(TARGET, capsule(handler.address, None, None), platform="cpu", api_version=1)


def table(arena: Arena, number: int, columns: range, state: NDArray[np.int64], given: Sequence[int]) -> Integers:
    """What the operation must know beside arrays.

    Args:
        arena: whose body and scratch memory are used; its outputs are not.
        number: of the graph.
        columns: that the operation runs.
        state: one of the constants above; read and written at every call.
        given: the column of each row of the arrays of outputs, -1 for none.
    """
    return integers([arena.address, columns.start, columns.stop, address(state), number, *given])


def complain(state: NDArray[np.int64], arenas: Sequence[Arena]) -> None:
    """Raises what went wrong, if anything did.

    Raises:
        EngineError: a task failed.
    """
    if state[0] == CHANGED:
        raise EngineError("XLA calls foreign functions in a way that this adapter does not know")
    if state[0] >= FAILED:
        raise arenas[int(state[0]) - FAILED].failure()
