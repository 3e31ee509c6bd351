"""Engines that are disturbed while they work: an error that names the system, no hang, and nothing is left."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from exafield.engine.catalogue import SYSTEMS

pytest.importorskip("numba", reason="pip install 'exafield[light]'")

GRAPHS = [name for name, system in SYSTEMS.items() if system.graphs]
# Without --engines: one of each kind, so that `make test` stays short.
QUICK = ("serial", "threads", "processes", "shared", "mpi-compiled", "asyncio", "gloo")
# All in the driver, so there is nobody else to kill.
ALONE = ("serial", "threads", "prange", "asyncio", "trio", "starpu", "dask-threads", "parsl-threads")
# How errors call systems, where it is not the first word of the engine's name.
CALLED = {"shared": "shared memory"}
# Options, where the engine does not take workers.
_OPTIONS = {"serial": ((),)}


def _marked(names: list[str]) -> list[object]:
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.engines]) for name in names]


def _complaint(text: str) -> str:
    """The line in which the command says what went wrong."""
    return "\n".join(line for line in text.splitlines() if line.startswith("exafield: ")).lower()


@pytest.mark.parametrize("name", _marked([n for n in GRAPHS if n not in ALONE]))
def test_a_killed_worker_ends_the_run_with_the_name_of_the_system(name: str, disturbed: Callable[..., Any]) -> None:
    run = disturbed(name, *_OPTIONS.get(name, ()))
    run.wait_until_it_works()
    os.kill(run.busiest(), signal.SIGKILL)
    assert run.code() > 0, run.complained
    assert CALLED.get(name, name.partition("-")[0]) in _complaint(run.complained), run.complained
    assert not run.left()


@pytest.mark.parametrize("name", _marked(GRAPHS))
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "term"])
def test_a_run_that_is_broken_off_leaves_nothing(
    name: str, number: signal.Signals, disturbed: Callable[..., Any]
) -> None:
    run = disturbed(name, *_OPTIONS.get(name, ()))
    run.wait_until_it_works()
    if number == signal.SIGINT:  # as a terminal does, to all that run in front
        os.killpg(run.driver.pid, number)
    else:
        run.driver.send_signal(number)
    assert run.code() != 0, run.complained
    assert not run.left(), run.complained
