"""Stall: what to say when a reduction does not come to an end."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from exafield.world import World

# How often a waiting rank looks whether the run has ended elsewhere [s] (our choice).
_LOOK = 1.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a rank waits for the others in a reduction.

    Args:
        report: after so many seconds a report names the tensors that are waited for, and the ranks.
        limit: after so many the run ends with that report, on every rank.
    """

    report: float = 60.0
    limit: float = 600.0

    def __post_init__(self) -> None:
        if not 0 < self.report <= self.limit:
            raise ValueError(
                f"patience: report and limit are seconds with 0 < report <= limit, got {self.report} and {self.limit}"
            )

    def begin(self, world: World, key: str, describe: Callable[[], Mapping[str, Any]]) -> "Waiter":
        """Makes what waits; `describe` tells other ranks what this one is doing, under a `key` alike on all ranks."""
        world.answer(key, describe)
        return Waiter(self, world, key)


class Waiter:
    """Waits for reductions of one model."""

    def __init__(self, patience: Patience, world: World, key: str) -> None:
        self._patience, self._world, self._key = patience, world, key

    def wait(self, done: Callable[[float], bool]) -> None:
        """Waits until `done(seconds)`, which waits that long itself, says so.

        Raises:
            WorldAborted: another rank gave up or died, or the limit has passed.
        """
        if done(min(_LOOK, self._patience.report)):
            return
        began, reported = time.monotonic(), False
        while not done(_LOOK):
            self._world.check()
            waited = time.monotonic() - began + _LOOK
            if waited >= self._patience.limit:
                self._world.abort(self._report(waited))
                self._world.check()
            elif waited >= self._patience.report and not reported:
                reported = True
                text = self._report(waited)
                if self._first():
                    print(f"exafield: {text}", file=sys.stderr, flush=True)

    def _report(self, waited: float) -> str:
        self._answers = self._world.inquire(self._key)
        return report(self._key.partition(" ")[2], waited, self._answers)

    def _first(self) -> bool:
        """Whether this is the lowest of the waiting ranks: one of them speaks."""
        waiting = [rank for rank, said in self._answers.items() if said is not None and said["waits"]]
        return not waiting or min(waiting) == self._world.origin

    def end(self) -> None:
        """Takes the answers away."""
        self._world.answer(self._key, None)


def report(name: str, waited: float, answers: Mapping[int, Mapping[str, Any] | None]) -> str:
    """A stall in words.

    Args:
        name: of the model.
        waited: [s].
        answers: for each rank what it said of itself; None if it did not answer.
    """
    waiting = {rank: said for rank, said in answers.items() if said is not None and said["waits"]}
    busy = {rank: said for rank, said in answers.items() if said is not None and not said["waits"]}
    silent = [rank for rank, said in answers.items() if said is None]
    steps = sorted({said["step"] for said in waiting.values()})
    unlaunched = list(dict.fromkeys(group for said in waiting.values() for group in said["open"]))
    first = f"the gradients of {name!r} have been waited for since {waited:.0f} s by {_ranks(waiting)}"
    lines = [f"{first}, in step {', '.join(map(str, steps)) or '?'}"]
    under_way = list(dict.fromkeys(said["waits"] for said in waiting.values()))
    lines.append(f"under way: {'; '.join(under_way)}")
    if unlaunched:
        lines.append(f"not agreed on: {'; '.join(unlaunched)}")
    for rank, said in busy.items():
        missing = ", ".join(said["missing"]) or "no gradient"
        lines.append(f"rank {rank} has not finished step {said['step']}: it still lacks {missing}")
    if silent:
        lines.append(f"{_ranks(silent)} did not answer: killed, stopped, or held up outside Python")
    return "\n  ".join(lines)


def _ranks(ranks: Any) -> str:
    listed = sorted(ranks)
    return f"rank{'' if len(listed) == 1 else 's'} {', '.join(map(str, listed)) or '(none)'}"
