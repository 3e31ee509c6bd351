"""Several samples a task: how many follows from METG(95 %), and nothing but the number of tasks depends on it."""

import math
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from exafield.engine import EngineError, MapEngine
from exafield.engine.chunks import Chunks, Ran
from exafield.engine.local import ProcessEngine, SerialEngine
from exafield.engine.threads import ThreadEngine
from exafield.taskbench.metg import rule
from exafield.taskbench.tasksize import Point, TaskSizes, choose, curve

# ---- the choice ----


def modelled(sample: float, task: float, each: float = 0.0, largest: int = 32) -> list[Point]:
    """Tasks that cost `task`, and `each` for every sample [s]."""
    sizes = [1 << i for i in range(largest.bit_length())]
    walls = [task + size * (sample + each) for size in sizes]
    return [Point(size, wall, size * sample / wall) for size, wall in zip(sizes, walls, strict=True)]


def test_the_size_is_where_metg_says() -> None:
    points = modelled(sample=0.01, task=0.01)
    choice = choose(points)
    long_first = points[::-1]
    assert choice.metg == rule([p.granularity for p in long_first], [p.efficiency for p in long_first], 0.95)
    # 19 samples reach 95 % exactly; between 16 and 32 the rule draws a straight line below the true curve.
    assert 19 <= choice.size <= 21
    assert choice.size == math.ceil(choice.metg / 0.01 - 1 - 1e-6)
    assert 0 < choice.overhead <= 0.05
    assert (
        choice.text
        == f"METG(95 %) 219 ms, a sample takes 10 ms: 21 samples a task, {100 * choice.overhead:.1f} % overhead"
    )


def test_samples_longer_than_metg_are_tasks_of_their_own() -> None:
    choice = choose([Point(1, 0.310, 0.999)])
    assert (choice.size, choice.metg) == (1, pytest.approx(0.0062))
    said = "METG(95 %) about 6.2 ms, a sample takes 310 ms, longer than that: 1 sample a task, 0.1 % overhead"
    assert choice.text == said


def test_what_more_samples_do_not_help_stays_small() -> None:
    choice = choose(modelled(sample=0.008, task=0.001, each=0.002, largest=64))
    assert choice.metg is None
    assert choice.size == 2  # 0.762 of at most 0.8
    assert "METG(95 %) is not reached by tasks of up to 64 samples" in choice.text
    assert choice.overhead == pytest.approx(1 - 16 / 21)


def test_only_tasks_after_one_of_their_size_are_counted() -> None:
    # Two workers whose clocks have nothing in common; in the order in which results may come.
    runs = [
        Ran("b", 8, 2, 905.0, 909.0),
        Ran("a", 1, 1, 0.0, 9.0),  # the first: what was before is not known
        Ran("a", 2, 1, 10.0, 13.0),  # 1 s idle, 3 s busy
        Ran("b", 7, 2, 900.0, 903.0),
        Ran("a", 3, 2, 14.0, 20.0),  # of another size than before
        Ran("a", 5, 2, 30.0, 36.0),  # number 4 is missing
        Ran("a", 6, 2, 39.0, 44.0, away=2.0),  # 3 s idle, of which 2 s are not the engine's; 5 s busy
    ]
    assert curve(runs) == [Point(1, 4.0, 0.75), Point(2, (6 + 6) / 2, 9 / 12)]
    assert curve(runs, workers=2) == [Point(2, 6.0, 0.75)]


# ---- on engines ----


@dataclass
class Virtual:
    """A map engine with time of its own: each task costs its worker the same, and each item; workers take turns."""

    overhead: float
    workers: int = 1
    each: float = 0.0
    times: dict[int, float] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def clock(self) -> float:
        return self.times.get(threading.get_ident(), 0.0)

    def spend(self, seconds: float) -> None:
        self.times[threading.get_ident()] = self.clock() + seconds

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any], *, retry: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        with ExitStack() as stack:
            threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(self.workers)]
            for index, item in enumerate(items):
                if index in done:
                    continue
                assert item  # what is there only to be skipped is skipped
                self.sizes.append((index, len(item)))
                thread = threads[len(self.sizes) % self.workers]
                thread.submit(self.spend, self.overhead + self.each * len(item)).result()
                yield index, thread.submit(fn, item).result()

    def run(self, seconds: float, count: int, size: int | None = None) -> list[str]:
        """Runs items of that length; returns what is said."""
        said: list[str] = []

        def work(item: int) -> int:
            self.spend(seconds)
            return item * item

        engine = Chunks(self, TaskSizes(said.append, size), self.clock)
        assert isinstance(engine, MapEngine)
        results = list(engine.map(work, range(count)))
        assert results == [(i, i * i) for i in range(count)]
        return said


@pytest.mark.parametrize("workers", [1, 2])
def test_short_samples_share_tasks(workers: int) -> None:
    # In powers of two, so that no sum is rounded.
    engine = Virtual(overhead=10 / 1024, workers=workers)
    said = engine.run(1 / 1024, 10_000)
    # 190 samples reach 95 %; 128 and 256 were tried.
    largest = max(size for _, size in engine.sizes[: -len(engine.sizes) // 3])
    (line,) = said
    found = re.fullmatch(r"METG\(95 %\) 215 ms, a sample takes 977 µs: (\d+) samples a task, 5\.0 % overhead", line)
    assert found, line
    chosen = int(found[1])
    assert 190 <= chosen <= 215
    assert largest == 256
    assert sum(size == chosen for _, size in engine.sizes) > 5
    # At the end every worker still has something to do: never more than half of its share of what is left.
    for index, size in engine.sizes[4:]:
        assert size == 1 or size <= (10_000 - index) / workers / 2
    assert engine.sizes[-1][1] == 1


def test_long_samples_are_tasks_of_their_own() -> None:
    engine = Virtual(overhead=0.001, workers=2)
    said = engine.run(0.999, 40)
    assert {size for _, size in engine.sizes} == {1}
    (line,) = said
    assert line.startswith("METG(95 %) about 20 ms, a sample takes 999 ms, longer than that: 1 sample a task, 0.1 % ")


def test_sizes_do_not_grow_where_that_does_not_help() -> None:
    engine = Virtual(overhead=0.1, each=0.25)
    (line,) = engine.run(1.0, 1000)
    assert line.startswith(
        "METG(95 %) is not reached by tasks of up to 16 samples, a sample takes 1 s: 2 samples a task, "
    )
    assert max(size for _, size in engine.sizes) == 16
    assert engine.sizes[-20][1] == 2


def test_too_few_samples_say_so() -> None:
    assert Virtual(overhead=1.0).run(1.0, 3) == ["too few samples to find METG(95 %): 1 sample a task, 50.0 % overhead"]
    assert Virtual(overhead=1.0).run(1.0, 1) == ["too few samples to find METG(95 %): 1 sample a task"]
    # They end before tasks are long enough.
    engine = Virtual(overhead=1.0)
    (line,) = engine.run(1.0, 30)
    assert line == "too few samples to find METG(95 %): up to 4 samples a task, 20.0 % overhead"
    assert max(size for _, size in engine.sizes) == 4


def test_a_size_that_is_given_is_kept() -> None:
    engine = Virtual(overhead=1.0)
    assert engine.run(1.0, 23, size=3) == ["3 samples a task, 25.0 % overhead, as asked for"]
    assert engine.sizes == [*((i, 3) for i in range(0, 21, 3)), (21, 2)]
    with pytest.raises(ValueError, match="at least one sample, got a task size of 0"):
        TaskSizes(print, 0)


def test_time_that_results_take_is_no_overhead_of_an_engine_in_the_same_thread() -> None:
    engine = Virtual(overhead=0.0)
    said: list[str] = []
    chunks = Chunks(SerialEngine(), TaskSizes(said.append), engine.clock)
    for _ in chunks.map(lambda item: engine.spend(1.0), range(20)):
        engine.spend(7.0)
    assert said == ["METG(95 %) about 0 ns, a sample takes 1 s, longer than that: 1 sample a task, 0.0 % overhead"]


ENGINES = [SerialEngine(), ThreadEngine(workers=2), ProcessEngine(workers=2)]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: type(engine).__name__)
def test_items_are_what_they_are_without_tasks(engine: MapEngine) -> None:
    said: list[str] = []
    for size in (None, 7):
        results = dict(Chunks(engine, TaskSizes(said.append, size)).map(math.sqrt, range(50), done={0, 5, 6, 49}))
        assert results == {i: math.sqrt(i) for i in range(50) if i not in (0, 5, 6, 49)}
    assert len(said) == 2
    # The third of its task: those before it are kept, and it is named, not its task.
    results = Chunks(engine, TaskSizes(said.append, 4)).map(math.sqrt, [0, 1, 4, 9, 16, 25, -1, 49])
    kept: list[int] = []
    with pytest.raises(EngineError, match=r"(?s)^item 6 failed: ValueError: .*math domain error"):
        kept.extend(index for index, _ in results)
    assert {4, 5} <= set(kept)
    assert not {6, 7} & set(kept)


def test_an_item_is_tried_again_and_no_other() -> None:
    calls: list[int] = []

    def unsteady(item: int) -> int:
        calls.append(item)
        if item == 4 and calls.count(4) < 3:
            raise OSError("not now")
        return item

    chunks = Chunks(SerialEngine(), TaskSizes(lambda text: None, 3))
    assert list(chunks.map(unsteady, range(7), retry=2)) == [(i, i) for i in range(7)]
    assert calls == [0, 1, 2, 3, 4, 4, 4, 5, 6]


def test_a_worker_that_dies_takes_a_task_with_it_whose_items_are_named() -> None:
    chunks = Chunks(ProcessEngine(workers=1), TaskSizes(lambda text: None, 5))
    with pytest.raises(EngineError, match=r"(?s)died while item [05] was under way.*tasks had up to 5 items"):
        list(chunks.map(os._exit, [1] * 9))


def test_nothing_runs_on_when_nobody_wants_more() -> None:
    ended: list[str] = []

    class Watched(SerialEngine):
        def map(self, fn: Any, items: Any, **options: Any) -> Iterator[tuple[int, Any]]:
            try:
                yield from super().map(fn, items, **options)
            finally:
                ended.append("ended")

    results = Chunks(Watched(), TaskSizes(lambda text: None, 2)).map(math.sqrt, range(9))
    next(results)
    assert not ended
    results.close()
    assert ended == ["ended"]
