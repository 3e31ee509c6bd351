"""Every engine runs every task once, with the right inputs, and hands out the right outputs."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from exafield.engine import EngineError, GraphEngine, Session, Work, engine
from exafield.engine.catalogue import SYSTEMS, System
from exafield.taskbench.conformance import Case, covering, every_case, fault
from exafield.taskbench.kernels import Kernel
from exafield.taskbench.patterns import PatternError, pattern

pytest.importorskip("numba", reason="pip install 'exafield[light]'")

# What `make test` installs brings these; the others run with --engines.
USUAL = (None, "light", "mpi", "dask")
GRAPHS = [name for name, system in SYSTEMS.items() if system.graphs]


def _marked(name: str) -> object:
    system: System = SYSTEMS[name]
    usual = system.extra in USUAL and not system.install and system.sample < 2
    return pytest.param(name, marks=[] if usual else [pytest.mark.engines])


@contextmanager
def _session(name: str) -> Iterator[Session]:
    """A session of the engine; the test is skipped where its system is not installed, and says how to have it."""
    made: GraphEngine = engine(name) if name == "serial" else engine(name, workers=2)
    with ExitStack() as stack:
        try:
            session = stack.enter_context(made.open())
        except ImportError as error:
            pytest.skip(str(error))
        yield session


def test_the_covering_selection_covers_every_pair_of_values() -> None:
    fields = ("type", "width", "graphs", "output", "scratch")
    chosen = covering()
    assert len(chosen) < len(every_case()) / 5
    for a, b in itertools.combinations(fields, 2):
        of = lambda cases, a=a, b=b: {(getattr(c, a), getattr(c, b)) for c in cases}  # noqa: E731
        assert of(chosen) == of(every_case())


@pytest.mark.parametrize("name", [_marked(name) for name in GRAPHS])
def test_an_engine_conforms(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = SYSTEMS[name].sample
    # The product takes the slowest systems up to half an hour each.
    product = request.config.getoption("--engines") and (sample <= 2 or request.config.getoption("--heavy"))
    cases = every_case() if product else covering()[::sample]
    monkeypatch.setenv("EXAFIELD_SCRATCH", "/nonexistent/folder")
    ran = 0
    # The last that a session is asked to run cannot succeed: the folder that it writes to is not there.
    bad = Work(pattern("stencil_1d", width=3, steps=4).graph(), Kernel("io_bound", iterations=1))
    with pytest.raises(EngineError, match="/nonexistent/folder"), _session(name) as session:  # noqa: PT012
        for case in cases:
            try:
                wrong = fault(session, case)
            except PatternError:
                continue  # refused before any engine is asked
            assert wrong is None, f"{name}, {case}: {wrong}"
            ran += 1
        assert ran > len(cases) / 3
        session.run([bad])


def test_the_check_finds_a_task_that_runs_twice_or_not_at_all() -> None:
    class Wrong:
        workers = 1

        def __init__(self, session: object, passes: int) -> None:
            self._session, self._passes = session, passes

        def run(self, works: object, passes: int = 1) -> object:
            outcome = self._session.run(works, self._passes)  # type: ignore[attr-defined]
            return replace(outcome, elapsed=outcome.elapsed[:1] * passes)

    case = Case("stencil_1d", 3, 1, 16, 0)
    with engine("serial").open() as session:
        assert fault(session, case) is None
        assert "ran 1 times in 2 passes, expected 2" in str(fault(Wrong(session, 1), case))
        assert "ran 3 times in 2 passes, expected 2" in str(fault(Wrong(session, 3), case))
