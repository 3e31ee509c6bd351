"""Reduction: from the gradients of each rank to their mean over all ranks.

A reducer is three independent choices: who says when a group of gradients may leave (`control`), which
gradients travel together (`grouping`), and how one group is summed (`collective`).
"""

from dataclasses import dataclass, field

from exafield.reduce.agreement import AgreementError, Model
from exafield.reduce.collective import Collective, Flat
from exafield.reduce.control import Bitvector, Central, Control, Static, Tree
from exafield.reduce.grouping import Fused, GraphAware, Grouped, Grouping, Single
from exafield.reduce.reduction import Reduction, Stats
from exafield.trace import Trace
from exafield.world import World

__all__ = [
    "AgreementError",
    "Bitvector",
    "Central",
    "Flat",
    "Fused",
    "GraphAware",
    "Grouped",
    "Reducer",
    "Reduction",
    "Single",
    "Static",
    "Stats",
    "Tree",
]


@dataclass(frozen=True, slots=True)
class Reducer:
    """How gradients are reduced: a description that can be attached to any number of models.

    Args:
        control: who says when a group may leave: Static, Central, Tree or Bitvector.
        grouping: which gradients travel together: Single, Fused, Grouped or GraphAware.
        collective: how a group is summed: Flat.
    """

    control: Control = field(default_factory=Static)
    grouping: Grouping = field(default_factory=GraphAware)
    collective: Collective = field(default_factory=Flat)

    def __post_init__(self) -> None:
        for name, method in (("control", "plane"), ("grouping", "plan"), ("collective", "schedule")):
            value = getattr(self, name)
            if isinstance(value, type) or not hasattr(value, method):
                raise TypeError(f"{name}={value!r} is no {name}: give an object such as Bitvector() or Fused(mb=16)")

    def attach(self, model: Model, world: World, *, name: str = "model", trace: Trace | None = None) -> Reduction:
        """Makes `model`'s gradients global: from now on `finish()` after backward averages them over `world`.

        Collective. Rank 0's parameters and buffers are copied to all ranks.

        Args:
            model: a module (names and scopes are then known), named parameters, or parameters.
            world: the ranks that share the model.
            name: of the model in traces.
            trace: takes spans of every group: on lane "ready NAME" while it waits, "reduce NAME" while it travels.
        Raises:
            AgreementError: on every rank, if names, shapes, dtypes or order differ between ranks, or if something
                cannot be reduced (DTensors, sparse gradients, lazy parameters); names the parameter and the ranks.
        """
        return Reduction(
            self.control,
            self.grouping,
            self.collective,
            model,
            world,
            name,
            trace or Trace(world.rank, enabled=False),
        )
