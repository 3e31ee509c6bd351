"""Systems that apply Python functions: results with their index, what is done left out, failures named."""

import itertools
import math

import pytest

from exafield.engine import EngineError, MapEngine, engine
from exafield.engine.catalogue import SYSTEMS

# Those of Python's library are tested in full in tests/test_engine.py.
OTHERS = [name for name, system in SYSTEMS.items() if system.maps and system.distribution is not None]


def _marked(name: str) -> object:
    system = SYSTEMS[name]
    usual = system.extra in ("light", "mpi", "dask") and not system.install and system.sample < 2
    return pytest.param(name, marks=[] if usual else [pytest.mark.engines])


@pytest.mark.parametrize("name", [_marked(name) for name in OTHERS])
def test_a_function_is_applied_to_every_item(name: str) -> None:
    made = engine(name, workers=2)
    assert isinstance(made, MapEngine)
    try:
        results = dict(made.map(math.sqrt, (float(i * i) for i in range(20)), done={3, 4}))
    except ImportError as error:
        pytest.skip(str(error))
    assert results == {i: float(i) for i in range(20) if i not in (3, 4)}
    with pytest.raises(EngineError, match=r"(?s)item 2 failed: ValueError: .*math domain error"):
        list(made.map(math.sqrt, [1.0, 4.0, -1.0, 9.0]))


@pytest.mark.parametrize("name", [_marked(name) for name in OTHERS])
def test_items_are_taken_as_there_is_room(name: str) -> None:
    results = engine(name, workers=2).map(math.sqrt, (float(i) for i in itertools.count()))
    try:
        assert {next(results)[0] for _ in range(10)} <= set(range(60))
    except ImportError as error:
        pytest.skip(str(error))
    finally:
        results.close()
