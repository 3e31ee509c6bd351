"""What every test needs: one thread, gloo on the loopback interface, and marks that skip by default."""

import importlib
import os

import hypothesis
import pytest
import torch

# No test is judged by the clock: machines are busy at times.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
torch.set_num_threads(1)


# Files that take longest begin first, so that processes side by side end at about the same time.
_LONGEST = ("test_wheel.py", "test_faults.py", "test_cli.py", "test_submit.py", "test_subsurface_hierarchy_law.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--heavy", action="store_true", help="also run tests that take minutes")
    parser.addoption("--engines", action="store_true", help="also run tests of all programming systems")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Imports what warnings are of, where processes side by side report to.

    There a thread for each process imports the module of every warning it is told of, and two that import the same
    package at once lock each other out.
    """
    if session.config.getoption("numprocesses", None):
        for part in ("climate", "microscopy", "subsurface.methods", "subsurface.snapshots"):
            importlib.import_module(f"exafield.{part}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST))
    for item in items:
        if "heavy" in item.keywords and not config.getoption("--heavy"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --heavy"))
        if "engines" in item.keywords and not config.getoption("--engines"):
            item.add_marker(pytest.mark.skip(reason="needs more programming systems: make test-engines"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
