"""Auto: no negotiation as long as none is needed."""

from dataclasses import dataclass, field

from exafield.message import ControlPlane
from exafield.reduce.advice import Change, Costs, Memory, Observed, serial_end
from exafield.reduce.control import Control, Static
from exafield.reduce.planning import Inventory

# Steps before the first look, and by how much longer each look waits than the one before: our choice.
_FIRST, _LONGER = 2, 8


@dataclass(frozen=True, slots=True)
class Auto:
    """Starts without negotiation, and moves to bit vectors when agreeing on the order pays.

    Groups leave in a fixed order, and `finish()` flushes the rest: exact and free of deadlock whatever order ranks
    produce. What that costs is watched: how long ready groups wait behind unready ones. If by the cost model (one
    group after the other, latency plus bytes) a step would get shorter by `gain` with one negotiation per group, all
    ranks move to :class:`Bitvector` at the same step. Looked at after 2, 16, 128, ... steps.

    Args:
        gain: least share of the step's time that must be won.
        window: steps looked at each time.
    """

    gain: float = 0.02
    window: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.gain < 1:
            raise ValueError(f"gain is a share of a step's time and must lie in 0 <= gain < 1, got {self.gain}")
        if self.window < 1:
            raise ValueError(f"window must be 1 step or more, got {self.window}")

    def plane(self, rank: int, size: int, groups: int) -> ControlPlane:
        return Static().plane(rank, size, groups)

    def peers(self, rank: int, size: int) -> frozenset[int]:
        return frozenset()

    def depth(self, size: int) -> int:
        return 0

    def adviser(self, inventory: Inventory, control: Control, memory: Memory) -> "Watch":
        """Watches one reduction."""
        return Watch(self)


@dataclass(slots=True)
class Watch:
    """The adviser of :class:`Auto`."""

    choice: Auto
    done: bool = False
    costs: Costs | None = None
    _step: int = 0
    _next: int = _FIRST
    _rows: list[Observed] = field(default_factory=list)

    def observe(self, step: Observed) -> list[float] | None:
        """See :class:`exafield.reduce.advice.Adviser`."""
        self._step += 1
        if self._step <= self._next:
            return None
        if self._rows and list(step.nbytes) != list(self._rows[0].nbytes):  # a new plan: begin again
            self._rows = []
        self._rows.append(step)
        if len(self._rows) < self.choice.window:
            return None
        return [x for row in self._rows for x in (*row.ready, row.step)]

    def decide(self, agreed: list[float]) -> Change | None:
        """See :class:`exafield.reduce.advice.Adviser`."""
        assert self.costs is not None
        nbytes, costs = self._rows[0].nbytes, self.costs
        width = len(nbytes) + 1
        durations = [costs.of(n) for n in nbytes]
        negotiated = [d + costs.latency for d in durations]
        won = length = 0.0
        for start in range(0, len(agreed), width):
            *ready, step = agreed[start : start + width]
            fixed = serial_end(range(len(ready)), ready, durations)
            agreeing = serial_end(sorted(range(len(ready)), key=ready.__getitem__), ready, negotiated)
            won, length = won + fixed - agreeing, length + step
        steps, self._rows = len(self._rows), []
        self._next = self._step * _LONGER
        if won <= self.choice.gain * length:
            return None
        self.done = True
        return Change(
            "control is bitvector from now on",
            f"after {self._step} steps: ready groups waited behind unready ones, and agreeing on the order should "
            f"save {won / steps * 1e3:.2f} of {length / steps * 1e3:.2f} ms per step",
            control={"kind": "Bitvector"},
        )
