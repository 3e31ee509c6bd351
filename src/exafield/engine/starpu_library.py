"""StarPU's C library: the functions that :mod:`exafield.engine.starpu` uses."""

import ctypes
from collections.abc import Callable
from typing import Any

_WORD, _NAME, _INTEGER = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int


def _found() -> ctypes.CDLL:
    for name in ("libstarpu-1.3.so.9", "libstarpu-1.3.so"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ImportError("this needs the library libstarpu-1.3.so, which is not installed: apt install libstarpu-dev")


def version() -> str | None:
    """Its version; None if it is not installed."""
    try:
        library = _found()
    except ImportError:
        return None
    parts = [ctypes.c_int() for _ in range(3)]
    library.starpu_get_version(*map(ctypes.byref, parts))
    return ".".join(str(part.value) for part in parts)


class Library:
    """The library, loaded.

    Raises:
        ImportError: it is not installed.
    """

    def __init__(self) -> None:
        self._library = library = _found()
        self.start = self._function("starpu_init", _INTEGER, _WORD)
        self.shutdown = self._function("starpu_shutdown", None)
        self.wait = self._function("starpu_task_wait_for_all", _INTEGER)
        self.register = self._function("starpu_variable_data_register", None, _WORD, _INTEGER, _WORD, ctypes.c_size_t)
        self.unregister = self._function("starpu_data_unregister", None, _WORD)
        self.free = self._function("fstarpu_codelet_free", None, _WORD)
        #: Address of the function that submits a task.
        self.insert = ctypes.cast(library.fstarpu_task_insert, _WORD).value

    def _function(self, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        found = self._library[name]
        found.restype, found.argtypes = result, list(arguments)
        return found

    def modes(self) -> list[int]:
        """What stands for reading, writing and both."""
        constant = self._function("fstarpu_get_constant", _WORD, _NAME)
        return [constant(f"FSTARPU_{mode}".encode()) for mode in ("R", "W", "RW")]

    def codelet(self, function: int) -> int:
        """A codelet, of any number of data, that calls the function at this address."""
        made: int = self._function("fstarpu_codelet_allocate", _WORD)()
        self._function("fstarpu_codelet_set_name", None, _WORD, _NAME)(made, b"exafield")
        self._function("fstarpu_codelet_add_cpu_func", None, _WORD, _WORD)(made, function)
        self._function("fstarpu_codelet_set_variable_nbuffers", None, _WORD)(made)
        return made
