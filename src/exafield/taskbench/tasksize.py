"""How many samples of generated data a task has: as few as still run at 95 % efficiency, as METG(95 %) says.

It is measured while the work is done, on the engine that does it: tasks of 1, 2, 4, ... samples, until they are
efficient enough. Granularity is the wall time of a worker from the end of one task to the end of the next, which is
wall time x workers / tasks. Efficiency is the share of it that samples themselves take, that is, the rate over that of
workers that need no engine; what slows samples themselves, such as cores that are shared, is no overhead of a task.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from exafield.engine.chunks import Ran
from exafield.taskbench.metg import duration, rule

# All our choice. The efficiency that is asked for.
THRESHOLD = 0.95
_NAME = "METG(95 %)"
# Tasks of a size that are measured, times the number of workers.
_REPEATS = 3
# Four times the samples must raise efficiency by this factor, or more are of no use. Where only the number of tasks
# costs, they do until 95 % is reached: from just under 95 % twice the samples lead to 97.4 %, which is 1.026 as much.
_GAIN = 1.02
# Each worker can still have so many tasks of a size from the samples that are left, so that all end at about one time.
_SHARES = 2


@dataclass(frozen=True, slots=True)
class Point:
    """Tasks of one size.

    Args:
        size: samples a task.
        granularity: wall time x workers / tasks [s].
        efficiency: share of it that samples take.
    """

    size: int
    granularity: float
    efficiency: float


def curve(runs: Iterable[Ran], workers: int = 1, repeats: int = 1) -> list[Point]:
    """Points from small tasks to large ones.

    Counted are tasks whose worker had one of the same size just before, since only then is known what such a one costs.

    Args:
        repeats: tasks of a size that are needed, times `workers`.
    """
    spans: dict[int, list[tuple[float, float]]] = {}
    for before, ran in pairwise(sorted(runs, key=lambda ran: (ran.worker, ran.start))):
        if (before.worker, before.size, before.number + 1) == (ran.worker, ran.size, ran.number):
            busy = ran.end - ran.start
            spans.setdefault(ran.size, []).append((busy, max(busy, ran.end - before.end - ran.away)))
    points = []
    for size, pairs in sorted(spans.items()):
        busy, wall = (sum(column) for column in zip(*pairs, strict=True))
        if len(pairs) >= repeats * workers and busy > 0:
            points.append(Point(size, wall / len(pairs), busy / wall))
    return points


@dataclass(frozen=True, slots=True)
class Choice:
    """A size of task.

    Args:
        size: samples a task.
        overhead: share of a task that is not for its samples.
        metg: METG(95 %) [s]; None: not reached.
        text: all of it, to be printed.
    """

    size: int
    overhead: float
    metg: float | None
    text: str


def choose(points: Sequence[Point]) -> Choice:
    """The smallest size that reaches 95 % efficiency; if none does, the smallest that is near to the best.

    Args:
        points: one or more, from small tasks to large ones.
    """
    sizes, efficiencies = [float(p.size) for p in points], [p.efficiency for p in points]
    # The rule goes from long tasks to short ones, and holds for samples as it does for seconds.
    metg = rule([p.granularity for p in reversed(points)], efficiencies[::-1], THRESHOLD)
    samples = rule(sizes[::-1], efficiencies[::-1], THRESHOLD)
    if samples is None:
        samples = next(float(p.size) for p in points if p.efficiency >= THRESHOLD * max(efficiencies))
    size = math.ceil(samples - 1e-9)  # less what rounding may have added
    overhead = 1 - float(np.interp(size, sizes, efficiencies))
    near = min(points, key=lambda p: abs(p.size - size))
    takes = f"a sample takes {duration(near.granularity * near.efficiency / near.size)}"
    if metg is None:
        text = f"{_NAME} is not reached by tasks of up to {_samples(points[-1].size)}, {takes}"
    elif efficiencies[0] >= THRESHOLD:
        # Shorter tasks than the shortest there are: as if each cost the same.
        metg = points[0].granularity * (1 - efficiencies[0]) / (1 - THRESHOLD)
        text = f"{_NAME} about {duration(metg)}, {takes}, longer than that"
    else:
        text = f"{_NAME} {duration(metg)}, {takes}"
    return Choice(size, overhead, metg, f"{text}: {_tasks(size, overhead)}")


def _samples(count: int) -> str:
    return f"{count} sample{'' if count == 1 else 's'}"


def _tasks(size: int, overhead: float | None) -> str:
    return f"{_samples(size)} a task" + ("" if overhead is None else f", {100 * overhead:.1f} % overhead")


class TaskSizes:
    """Chooses the size of tasks while they run; see :class:`exafield.engine.chunks.Sizes`.

    Args:
        say: prints what is chosen, once.
        size: samples a task, if that is not to be chosen.
    """

    def __init__(self, say: Callable[[str], None], size: int | None = None) -> None:
        if size is not None and size < 1:
            raise ValueError(f"a task needs at least one sample, got a task size of {size}")
        self._say, self._given, self._trying = say, size, size or 1
        self._chosen: int | None = None
        self._workers: set[str] = set()
        self._points: list[Point] = []
        self._runs: list[Ran] = []

    def size(self, left: int) -> int:
        """Samples of the next task, when so many are not handed out yet."""
        room = max(1, left // (_SHARES * max(1, len(self._workers))))
        # One more than is counted, since the first of each worker is not.
        if self._chosen is None and len(self._runs) >= (_REPEATS + 1) * len(self._workers) > 0:
            self._consider(room)
        return self._given or min(self._chosen or self._trying, room)

    def ran(self, ran: Ran) -> None:
        """Takes note of a task."""
        self._workers.add(ran.worker)
        if self._chosen is None and ran.size == self._trying:
            self._runs.append(ran)

    def end(self) -> None:
        """Says what is known if there were too few samples to choose."""
        if self._chosen is None:
            points = [*self._points, *curve(self._runs)]
            tasks = _tasks(self._trying, 1 - points[-1].efficiency if points else None)
            few = f"too few samples to find {_NAME}: {'up to ' if self._trying > 1 else ''}{tasks}"
            self._say(f"{tasks}, as asked for" if self._given else few)

    def _consider(self, room: int) -> None:
        measured = curve(self._runs, len(self._workers), _REPEATS)
        if not measured:
            return
        self._points += measured
        efficiencies = [point.efficiency for point in self._points]
        gains = len(efficiencies) < 3 or max(efficiencies[-2:]) > _GAIN * max(efficiencies[:-2])
        if self._given:
            self._chosen = self._given
            self._say(f"{_tasks(self._given, 1 - efficiencies[0])}, as asked for")
        elif efficiencies[-1] >= THRESHOLD or not gains or 2 * self._trying > room:
            choice = choose(self._points)
            self._chosen = choice.size
            self._say(choice.text)
        else:
            self._trying *= 2
            self._runs.clear()
