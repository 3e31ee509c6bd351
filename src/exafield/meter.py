"""Meter: mean losses and speed of a run, and the time that all its ranks go by."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from exafield.flops import Operations
from exafield.seat import Seats
from exafield.world import World

# How often the ranks agree on the time and on ending [s]: seldom enough to cost nothing; our choice.
TICK = 0.25
# And at least every so many steps, should these become slow; our choice.
_MOST_CALLS = 64.0


#: What is to be said where metrics are printed.
METRICS = (
    "per second, of all ranks: FLOP/s as executed, published FLOP/s as publications count them; data wait: share of "
    "the time (docs/running.md)"
)


class NonFiniteLossError(ArithmeticError):
    """A loss became NaN or infinite; raised on all ranks alike."""


def _uncompiled() -> AbstractContextManager[object]:
    """Compiled modules run plainly inside; otherwise the counting would keep them from ever being compiled."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class Meter:
    """Collects what :meth:`read` turns into metrics.

    Attributes:
        samples: drawn per step by all ranks together.
        flops, published: floating-point operations of a step on this rank, counted in two ways, see
            :class:`exafield.flops.Operations`; 0 before the first step.
    """

    def __init__(self, seats: Seats, world: World) -> None:
        self._seats, self._world, self.samples = seats, world, 0
        self.steps = 0
        self.flops = self.published = 0
        self._waited = 0.0
        self.begin()

    def begin(self) -> None:
        """Time counts from here on."""
        self._since = time.perf_counter()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Around what is no training: its time does not count."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step. Counts the floating-point operations of the first, which stands for all."""
        if self.published:
            yield
        else:
            with _uncompiled(), Operations() as counted:
                yield
            self.flops, self.published = counted.exact, counted.published
        self.steps += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """Means over ranks and steps since the last call. Collective.

        Returns:
            "loss" ("loss/NAME" where there are several players), "samples/s", "FLOP/s" (exact) and "published FLOP/s"
            of the whole world, and "data wait", the share of the time spent waiting for data; "skipped", where there
            are any, the number of steps skipped because a gradient was not finite (mean over ranks).
        Raises:
            NonFiniteLossError: on all ranks, naming the step, the players and the ranks.
        """
        sums = [seat.sums() if seat is not None else (0.0, 0, None, 0) for _, seat in self._seats]
        steps, took = self.steps, max(time.perf_counter() - self._since, 1e-9)
        numbers = [float(x) for total, count, *_ in sums for x in (total, count)]
        skipped = float(max(missed for *_, missed in sums))
        operations = [float(self.flops * steps), float(self.published * steps)]
        summed = torch.tensor([*numbers, *operations, self._waited / took, skipped], dtype=torch.float64)
        self._world.all_reduce(summed)
        *pairs, flops, published, waited, skipped = summed.tolist()
        self.steps, self._waited = 0, 0.0
        self.begin()
        players = self._seats.players
        if not all(map(math.isfinite, pairs)):
            bad = {p.name: step for p, (_, _, step, _) in zip(players, sums, strict=True) if step is not None}
            raise NonFiniteLossError(
                f"{_first(self._world.all_gather_objects(bad))}: lower the learning rate, clip gradients or look at "
                "the data; checkpoints written before are sound"
            )
        losses = {
            f"loss/{player.name}" if len(players) > 1 else "loss": total / max(count, 1.0)
            for player, total, count in zip(players, pairs[::2], pairs[1::2], strict=True)
        }
        rates = {
            "samples/s": steps * self.samples / took,
            "FLOP/s": flops / took,
            "published FLOP/s": published / took,
        }
        more = {"skipped": skipped / self._world.size} if skipped else {}
        return losses | rates | {"data wait": waited / self._world.size} | more


def _first(found: list[Mapping[str, int]]) -> str:
    """Where losses first stopped being finite, given for each rank its players' first such steps."""
    step = min((s for one in found for s in one.values()), default=None)
    if step is None:
        return "the sum of the losses is not finite"
    places = [
        f"player {name!r} on rank {rank}" for rank, one in enumerate(found) for name, s in one.items() if s == step
    ]
    return f"the loss or gradient of {', '.join(places)} is NaN or infinite at step {step}"


class Clock:
    """Seconds of training, and whether it should end. Several ranks go by rank 0's time, and by all ranks' stops.

    They agree about every TICK, at the same call on all; in between the clock stands still, and a call costs a
    comparison. One rank alone needs no agreement: its clock is always right.

    Args:
        elapsed: what it starts at [s].
        stop: says whether training should end: 0 if not, else why.
    """

    def __init__(self, world: World, elapsed: float, stop: Callable[[], int]) -> None:
        self._world, self._stop, self._elapsed = world, stop, elapsed
        self._origin = time.perf_counter() - elapsed
        self._calls = self._next = self._last = self._stopped = 0

    def read(self) -> tuple[float, int]:
        """Seconds of training so far, and the greatest `stop` of all ranks. Collective."""
        now = time.perf_counter() - self._origin
        if self._world.kind != "real":
            return now, self._stop()
        self._calls += 1
        if self._calls >= self._next:
            per_call = max((now - self._elapsed) / max(1, self._calls - self._last), 1e-9)
            calls = min(max(1.0, TICK // per_call), _MOST_CALLS) if self._last else 1.0  # nothing is known before
            word = torch.tensor([self._stop(), now, calls], dtype=torch.float64)
            if self._world.rank:
                word[1:] = 0.0
            self._world.all_reduce(word, "max")
            self._stopped = int(word[0])
            self._elapsed, self._last, self._next = float(word[1]), self._calls, self._calls + int(word[2])
        return self._elapsed, self._stopped
