"""Reduction: from the gradients of each rank to their mean over all ranks.

A reducer is three independent choices: who says when a group of gradients may leave (`control`), which
gradients travel together (`grouping`), and how one group is summed (`collective`).
"""

from dataclasses import dataclass, field
from pathlib import Path

from exafield.reduce.agreement import AgreementError, Model
from exafield.reduce.auto import Auto
from exafield.reduce.collective import Collective
from exafield.reduce.control import Bitvector, Central, Control, Static, Tree
from exafield.reduce.flat import Flat
from exafield.reduce.grouping import Fused, GraphAware, Grouped, Grouping, Single
from exafield.reduce.hierarchical import Hierarchical
from exafield.reduce.reduction import Reduction, Stats
from exafield.reduce.stall import Patience
from exafield.reduce.tuning import AutoTuned
from exafield.trace import Trace
from exafield.world import World

__all__ = [
    "AgreementError",
    "Auto",
    "AutoTuned",
    "Bitvector",
    "Central",
    "Flat",
    "Fused",
    "GraphAware",
    "Grouped",
    "Hierarchical",
    "Patience",
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
        control: who says when a group may leave: Auto, Static, Central, Tree or Bitvector.
        grouping: which gradients travel together: AutoTuned, Single, Fused, Grouped or GraphAware.
        collective: how a group is summed: Flat or Hierarchical.
        lag: steps by which the gradients that are applied are late: 0, or 1 so that reduction overlaps the whole
            next step (Kurth et al., arXiv:1810.01993).
        patience: how long a rank waits for the others.
    """

    control: Control = field(default_factory=Auto)
    grouping: Grouping = field(default_factory=GraphAware)
    collective: Collective = field(default_factory=Flat)
    lag: int = 0
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        for name, method in (("control", "plane"), ("grouping", "plan"), ("collective", "connect")):
            value = getattr(self, name)
            if isinstance(value, type) or not hasattr(value, method):
                raise TypeError(f"{name}={value!r} is no {name}: give an object such as Bitvector() or Fused(mb=16)")

        if self.lag not in (0, 1):
            raise ValueError(f"lag must be 0 or 1 steps, got {self.lag!r}")

    def attach(
        self, model: Model, world: World, *, name: str = "model", trace: Trace | None = None, cache: Path | None = None
    ) -> Reduction:
        """Makes `model`'s gradients global: from now on `finish()` after backward averages them over `world`.

        Collective. Rank 0's parameters and buffers are copied to all ranks.

        Args:
            model: a module (names and scopes are then known), named parameters, or parameters.
            world: the ranks that share the model.
            name: of the model in traces.
            trace: takes spans of every group: on lane "ready NAME" while it waits, "reduce NAME" while it travels;
                of negotiations on lane "agree NAME"; changes of plan on lane "reducer NAME"; and, for the first steps,
                when each gradient came on lane "gradient NAME".
            cache: file in which an AutoTuned grouping keeps its choice.
        Raises:
            AgreementError: on every rank, if names, shapes, dtypes or order differ between ranks, or if something
                cannot be reduced (DTensors, sparse gradients, lazy parameters); names the parameter and the ranks.
        """
        return Reduction(
            self.control,
            self.grouping,
            self.collective,
            self.lag,
            self.patience,
            model,
            world,
            name,
            trace or Trace(world.rank, enabled=False),
            cache,
        )
