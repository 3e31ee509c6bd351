"""Batch: how many samples go into one step, and what becomes of that on another number of ranks."""

from dataclasses import dataclass
from typing import Any, Literal

from exafield.suggestion import counted

OnResize = Literal["keep", "scale"]


class BatchError(ValueError):
    """A global batch that this number of ranks cannot share; the same on all ranks."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one move of a player.

    Args:
        size: per rank and draw.
        accumulate: draws per move.
        ranks: that draw.
    """

    size: int
    accumulate: int
    ranks: int

    def __post_init__(self) -> None:
        for name in ("size", "accumulate", "ranks"):
            if getattr(self, name) < 1:
                raise ValueError(f"a batch needs a {name} of 1 or more, got {getattr(self, name)}")

    @property
    def whole(self) -> int:
        """Samples per move of all ranks together: the global batch."""
        return self.size * self.accumulate * self.ranks

    def shared(self, whole: int) -> "Batch":
        """A global batch of `whole` samples on these ranks: per draw the most that are not more than `size`.

        Half the ranks thus accumulate twice as many draws; twice the ranks half as many, or else draw fewer samples.

        Raises:
            BatchError: the ranks cannot share it; names the numbers of ranks that can.
        """
        share, rest = divmod(whole, self.ranks)
        if rest:
            fit = [str(n) for n in range(1, whole + 1) if whole % n == 0]
            few = fit if len(fit) <= 12 else [*fit[:11], "...", fit[-1]]
            raise BatchError(
                f"its global batch of {whole} samples cannot be shared by {self.ranks} ranks: resume on "
                f"{', '.join(few)} ranks, or let the batch change with them (--on-resize scale)"
            )
        size = next(n for n in range(min(self.size, share), 0, -1) if share % n == 0)
        return Batch(size, share // size, self.ranks)

    def resumed(self, saved: dict[str, Any] | None, ranks: int, policy: OnResize) -> "Batch":
        """What a run goes on with, whose settings are these.

        Args:
            saved: :meth:`as_saved` of the run before, None from an older version.
            ranks: it was on.
            policy: "keep" the global batch, or "scale" it with the ranks.

        Raises:
            BatchError: see :meth:`shared`.
        """
        before = saved or {"given": [self.size, self.accumulate], "whole": self.size * self.accumulate * ranks}
        changed = before["given"] != [self.size, self.accumulate]  # the user has decided
        return self if changed or (policy == "scale" and ranks != self.ranks) else self.shared(before["whole"])

    def as_saved(self, given: "Batch") -> dict[str, Any]:
        """What a checkpoint keeps: the settings as given, and the global batch they led to."""
        return {"given": [given.size, given.accumulate], "whole": self.whole}

    def change(self, saved: dict[str, Any] | None, ranks: int) -> str:
        """What is different from the run before, in words; empty if nothing is. Arguments as in :meth:`resumed`."""
        before = self.whole if saved is None else saved["whole"]
        if ranks == self.ranks and before == self.whole:
            return ""
        moved = f"on {counted(self.ranks, 'rank')} instead of {ranks}: " if ranks != self.ranks else ""
        draws = "" if self.accumulate == 1 else f" x {self.accumulate} draws"
        shares = f"{counted(self.ranks, 'rank')} x {counted(self.size, 'sample')}{draws}"
        if before == self.whole:
            return f"{moved}global batch of {before} kept = {shares}, learning rate as scheduled"
        return (
            f"{moved}global batch {self.whole} = {shares} instead of {before}, learning rate as scheduled all the same"
        )
