"""AutoTuned: the number of groups, their cut and the cycle time, first by a model, then by trial."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from exafield.reduce.advice import Change, Costs, Memory, Observed, serial_end
from exafield.reduce.control import Control
from exafield.reduce.grouping import GraphAware, Groups, TensorInfo, balanced
from exafield.reduce.planning import Inventory

# Numbers of groups that are considered, and cycle times [s] that are tried: our choice.
_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_CYCLES = (0.0, 0.0005, 0.002)


@dataclass(frozen=True, slots=True)
class AutoTuned:
    """Tunes itself over the first steps, says what it chose and why, and remembers it in the run folder.

    After the first backward the time at which each gradient was ready is known, and reductions of two sizes have
    been timed. For each number of groups the best cut, and when its last reduction would end, follow from that (one
    group after the other, latency plus bytes). The best few are tried on real steps, in turns, and the one
    with the shortest median step stays; then cycle times, where the control plane has one.

    Args:
        candidates: plans that are tried.
        steps: a candidate is tried for at a time, after one that does not count.
        turns: that each candidate gets.
    """

    candidates: int = 4
    steps: int = 5
    turns: int = 2

    def __post_init__(self) -> None:
        for name in ("candidates", "steps", "turns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")

    @property
    def learns(self) -> bool:
        return True

    def plan(self, tensors: Sequence[TensorInfo]) -> Groups:
        return GraphAware().plan(tensors)

    def adviser(self, inventory: Inventory, control: Control, memory: Memory) -> "Tuner":
        """Tunes one reduction."""
        return Tuner(self, inventory.infos, lambda: inventory.backward, getattr(control, "cycle", None), memory)


@dataclass(slots=True)
class _Candidate:
    what: str
    groups: list[list[int]] | None = None
    cycle: float | None = None
    predicted: float | None = None  # [s] from the first gradient to the end of the last reduction
    steps: list[float] = field(default_factory=list)

    @property
    def measured(self) -> float:
        return median(self.steps)

    def change(self, why: str, final: bool) -> Change:
        return Change(self.what, why, groups=self.groups, cycle=self.cycle, final=final)


class Tuner:
    """The adviser of :class:`AutoTuned`: a state machine that is told how long steps take.

    Args:
        infos: gives the tensors and their indices, as they were learnt.
        backward: gives the time [s] from the first gradient to the last.
        cycle: of the control plane; None if it has none.
        memory: knows what was chosen before.
    """

    def __init__(
        self,
        choice: AutoTuned,
        infos: Callable[[], list[tuple[int, TensorInfo]]],
        backward: Callable[[], float],
        cycle: float | None,
        memory: Memory,
    ) -> None:
        self.done, self.costs = False, None
        self._choice, self._infos, self._backward, self._cycle = choice, infos, backward, cycle
        self._memory, self._known = memory, memory.load()
        self._queue: list[_Candidate] = []
        self._tried: list[_Candidate] = []
        self._now: _Candidate | None = None
        self._left = 1  # the first step teaches the order of gradients
        self._taken: list[float] = []
        self._stage = "start"

    costs: Costs | None

    def observe(self, step: Observed) -> list[float] | None:
        """See :class:`exafield.reduce.advice.Adviser`."""
        self._taken.append(step.step)
        self._left -= 1
        return None if self._left else self._taken

    def decide(self, agreed: list[float]) -> Change | None:
        """See :class:`exafield.reduce.advice.Adviser`."""
        assert self.costs is not None
        self._taken = []
        if self._now is not None:
            self._now.steps += agreed[1:]
        if self._stage == "start":
            if self._known is not None:
                self.done, self._left = True, 1
                known = self._known
                return Change(known["what"], "chosen in an earlier run", known["groups"], cycle=known["cycle"])
            self._begin("groups", self._predicted(self.costs))
        if not self._queue:
            best = min(self._tried, key=lambda c: c.measured)
            if self._stage == "groups" and self._cycle is not None:
                self._best = best
                cycles = sorted({*_CYCLES, self._cycle})
                self._begin("cycle", [_Candidate(f"{best.what}, cycle {c * 1e3:g} ms", best.groups, c) for c in cycles])
            else:
                return self._chosen(best)
        self._now = self._queue.pop(0)
        self._left = self._choice.steps + 1
        return self._now.change("on trial", final=False)

    def _begin(self, stage: str, candidates: list[_Candidate]) -> None:
        self._stage, self._tried = stage, candidates
        self._queue = candidates * self._choice.turns

    def _predicted(self, costs: Costs) -> list[_Candidate]:
        """The candidates whose last reduction would end first, by the model."""
        indices, infos = zip(*self._infos(), strict=True)
        backward = max(self._backward(), 1e-9)
        total = sum(t.nbytes for t in infos)
        found: dict[Groups, _Candidate] = {}
        for count in _COUNTS:
            plan = balanced(infos, count, costs.per_byte * total / backward)
            ready = [max(infos[i].ready for i in group) * backward for group in plan]
            durations = [costs.of(sum(infos[i].nbytes for i in group)) for group in plan]
            end = serial_end(range(len(plan)), ready, durations)
            what = f"{len(plan)} group{'s' if len(plan) > 1 else ''}"
            groups = [[indices[i] for i in group] for group in plan]
            found.setdefault(plan, _Candidate(what, groups, predicted=end))
        return sorted(found.values(), key=lambda c: c.predicted or 0.0)[: self._choice.candidates]

    def _chosen(self, best: _Candidate) -> Change:
        self.done = True
        entry: dict[str, Any] = {"what": best.what, "groups": best.groups, "cycle": best.cycle}
        self._memory.save(entry)
        others = ", ".join(f"{c.what} {c.measured * 1e3:.2f}" for c in self._tried if c is not best)
        why = f"{best.measured * 1e3:.2f} ms per step"
        if best.predicted is not None:
            why += f" (last reduction predicted to end {best.predicted * 1e3:.2f} ms after the first gradient)"
        return best.change(f"{why}; tried: {others or 'nothing else'} ms", final=True)
