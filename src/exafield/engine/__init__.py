"""Engines: programming systems that run work for us.

Two protocols: :class:`MapEngine` applies a Python function to many items, :class:`GraphEngine` runs task graphs with
native bodies. A system offers one or both; :func:`engine` finds it by name, and :mod:`exafield.engine.catalogue`
lists them all.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from exafield.engine.graph import NativeBody, Relation, TaskGraph, Work
from exafield.suggestion import unknown

__all__ = [
    "EngineError",
    "GraphEngine",
    "MapEngine",
    "NativeBody",
    "Outcome",
    "Relation",
    "Session",
    "Share",
    "TaskGraph",
    "Work",
    "engine",
    "engines",
    "map_engine",
]


class EngineError(RuntimeError):
    """A task failed, or the system that ran it; says which task and why."""


@runtime_checkable
class MapEngine(Protocol):
    """Applies a function to many items."""

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """Yields (index, result) as items finish, with a bounded number in flight.

        Args:
            fn: a function that workers can import.
            items: taken one by one as there is room.
            retry: further attempts for an item that raises.
            done: indices to skip, since their results exist.
        Raises:
            EngineError: an item failed; holds its index and the original traceback. Nothing is left running.
        """
        ...


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker did in one pass.

    Args:
        worker: what the system calls it; where it runs, if not here.
        tasks: how many tasks it ran.
        memory: the most memory its process has had resident [bytes].
    """

    worker: str
    tasks: int
    memory: int


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What came of running graphs.

    Args:
        elapsed: wall time of each pass [s], from handing the work to the system until it is known to be complete.
        outputs: of each graph, the outputs of its last row, [tasks of that row, output_bytes].
        shares: who ran what in the last pass.
    """

    elapsed: tuple[float, ...]
    outputs: tuple[NDArray[np.uint8], ...]
    shares: tuple[Share, ...]


@runtime_checkable
class Session(Protocol):
    """A system that is up and waits for work."""

    @property
    def workers(self) -> int:
        """How many tasks can run at the same time."""
        ...

    def run(self, works: Sequence[Work], passes: int = 1) -> Outcome:
        """Runs the graphs, together if the system can, `passes` times in a row.

        Raises:
            EngineError: a task failed, or the system did.
        """
        ...


@runtime_checkable
class GraphEngine(Protocol):
    """Runs task graphs with native bodies."""

    def open(self) -> AbstractContextManager[Session]:
        """Starts the system. On leaving, however that happens, nothing of it is left.

        Raises:
            ImportError: the system is not installed; names the extra.
            EngineError: it does not start.
        """
        ...


def engines() -> tuple[str, ...]:
    """The names of the engines."""
    from exafield.engine.catalogue import SYSTEMS

    return tuple(SYSTEMS)


def engine(name: str, **options: Any) -> Any:
    """The engine of that name.

    Args:
        options: `workers` and, for systems that can be elsewhere, `address`; see the engine.
    Raises:
        ValueError: there is none; suggests the nearest. Or an option it does not take.
    """
    from exafield.engine.catalogue import SYSTEMS

    if name not in SYSTEMS:
        raise ValueError(unknown("engine", name, SYSTEMS))
    for option in options:
        if not SYSTEMS[name].takes(option):
            raise ValueError(_not_taken(name, option, SYSTEMS))
    return SYSTEMS[name].make(**options)


def map_engine(name: str, address: str | None = None) -> MapEngine:
    """The engine of that name, which must be one that maps.

    Args:
        address: of a cluster of that system that is up already; None: it is started here.
    Raises:
        ValueError: there is none, it runs task graphs only, or it takes no address.
    """
    from exafield.engine.catalogue import SYSTEMS

    if name not in SYSTEMS:
        raise ValueError(unknown("engine", name, [known for known, system in SYSTEMS.items() if system.maps]))
    if address is not None and not SYSTEMS[name].takes("address"):
        raise ValueError(_not_taken(name, "address", {other: each for other, each in SYSTEMS.items() if each.maps}))
    made = engine(name, **({} if address is None else {"address": address}))
    if not isinstance(made, MapEngine):
        raise ValueError(f"engine {name!r} runs task graphs only: exafield taskbench engines tells which map")
    return made


def _not_taken(name: str, option: str, systems: Mapping[str, Any]) -> str:
    """What is said of an option that engine `name` does not take; `systems` are those that could take its place."""
    if option != "address":  # which nearly all others take
        return f"engine {name!r} takes no {option}: leave it out"
    others = ", ".join(other for other, system in systems.items() if system.address)
    return f"engine {name!r} takes no address; these do: {others}"
