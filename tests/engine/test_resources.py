"""What a process has of the machine."""

import os
import threading
from itertools import count

import pytest

from exafield.engine import Work, engine
from exafield.engine.native import Arena
from exafield.engine.resources import Places, cores
from exafield.taskbench.kernels import Kernel
from exafield.taskbench.patterns import pattern

OWN = cores()


def test_threads_of_a_pool_have_a_core_each_whoever_starts_them() -> None:
    keep, found = Places(len(OWN)), list[set[int]]()

    def first() -> None:
        second()
        other = threading.Thread(target=second)
        other.start()
        other.join()

    def second() -> None:
        keep()
        found.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=first)
    thread.start()
    thread.join()
    assert found == [{OWN[0]}, {OWN[1 % len(OWN)]}]
    assert cores() == OWN


@pytest.mark.skipif(len(OWN) < 2, reason="has one core")
def test_fewer_threads_than_cores_are_not_kept() -> None:
    keep = Places(len(OWN) - 1)
    keep()
    assert cores() == OWN


@pytest.mark.parametrize("name", ["threads", "dask-threads"])
def test_threads_run_their_tasks_on_a_core_each(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="pip install 'exafield[light]'")
    pytest.importorskip("dask", reason="pip install 'exafield[dask]'")
    seen: dict[int, set[int]] = {}
    run = Arena.run

    def noted(self: Arena, *where: int) -> None:
        seen[threading.get_ident()] = os.sched_getaffinity(0)
        run(self, *where)

    monkeypatch.setattr(Arena, "run", noted)
    work = Work(pattern("stencil_1d", width=8, steps=50).graph(), Kernel("compute_bound", iterations=1000))
    with engine(name, workers=len(OWN)).open() as session:
        session.run([work])
    assert seen
    assert all(len(each) == 1 for each in seen.values())
    assert len({*map(frozenset, seen.values())}) == len(seen)
    assert cores() == OWN


def test_threads_of_dask_have_a_core_each() -> None:
    pytest.importorskip("distributed", reason="pip install 'exafield[dask]'")
    with engine("dask", workers=len(OWN)).open() as session:
        client = session._client
        futures = [client.submit(os.sched_getaffinity, 0, pure=False) for _ in range(20)]
        assert all(len(each) == 1 for each in client.gather(futures))


def test_threads_stop_when_their_caller_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="pip install 'exafield[light]'")

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    ran, run = count(), Arena.run

    def counted(self: Arena, *where: int) -> None:
        next(ran)
        run(self, *where)

    monkeypatch.setattr("exafield.engine.threads.Event", Interrupted)
    monkeypatch.setattr(Arena, "run", counted)
    # Two chains of tasks, none of which waits for anybody.
    work = Work(pattern("no_comm", width=2, steps=3000).graph(), Kernel("compute_bound", iterations=10_000))
    with pytest.raises(KeyboardInterrupt), engine("threads", workers=2).open() as session:
        session.run([work])
    assert next(ran) < 6000


def test_threads_have_nothing_to_do() -> None:
    pytest.importorskip("numba", reason="pip install 'exafield[light]'")
    with engine("threads", workers=2).open() as session:
        assert session.run([]).outputs == ()
