"""Engines: programming systems that run work for us.

Two protocols: :class:`GraphEngine` runs a task graph, :class:`MapEngine` a plain fan-out. A system offers one
or both; :func:`engine` finds it by name.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from exafield.engine.graph import TaskGraph
from exafield.suggestion import unknown

__all__ = ["EngineError", "GraphEngine", "MapEngine", "TaskGraph", "engine", "engines"]


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


@runtime_checkable
class GraphEngine(Protocol):
    """Runs tasks that depend on each other."""

    def run(self, graph: TaskGraph, body: Callable[[int, list[Any]], Any]) -> list[Any]:
        """Calls `body(task, results of its dependencies)` for every task and returns the results by task.

        Raises:
            EngineError: a task failed; nothing is left running.
        """
        ...


def engines() -> dict[str, Callable[..., Any]]:
    """The engines by name."""
    from exafield.engine.local import ProcessEngine, SerialEngine

    return {"serial": SerialEngine, "processes": ProcessEngine}


def engine(name: str, **options: Any) -> Any:
    """The engine of that name.

    Raises:
        ValueError: there is none; suggests the nearest.
    """
    known = engines()
    if name not in known:
        raise ValueError(unknown("engine", name, known))
    return known[name](**options)
