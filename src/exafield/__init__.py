"""Scientific deep learning at scale.

The public names are loaded when first used: ``import exafield`` alone costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exafield.field import Field as Field
    from exafield.problem import Player as Player
    from exafield.problem import Problem as Problem
    from exafield.reduce import Reducer as Reducer
    from exafield.reduce import Reduction as Reduction
    from exafield.run import Run as Run
    from exafield.source import Source as Source
    from exafield.trace import Trace as Trace
    from exafield.trainer import Trainer as Trainer
    from exafield.world import World as World

__version__ = "0.1.0"

_HOMES = {
    "Field": "field",
    "Player": "problem",
    "Problem": "problem",
    "Reducer": "reduce",
    "Reduction": "reduce",
    "Run": "run",
    "Source": "source",
    "Trace": "trace",
    "Trainer": "trainer",
    "World": "world",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"exafield.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'exafield' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
