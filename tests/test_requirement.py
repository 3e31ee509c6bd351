"""Optional packages and mistyped names."""

import json
import sys
from pathlib import Path

import pytest

from exafield.requirement import require
from exafield.suggestion import unknown


def test_what_is_installed_is_imported() -> None:
    assert require("json", extra="none") is json


def test_what_is_missing_is_named_with_the_command_that_brings_it() -> None:
    with pytest.raises(ImportError, match=r"'no_such_package'.*pip install 'exafield\[microscopy\]'"):
        require("no_such_package", extra="microscopy")


def test_a_package_that_is_broken_inside_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_there.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        require("half_there", extra="microscopy")
    assert "half_there" not in sys.modules


def test_the_nearest_name_is_suggested() -> None:
    assert unknown("preset", "labtop", ["laptop", "full"]) == "unknown preset 'labtop': did you mean 'laptop'?"


def test_far_from_everything_all_names_are_listed() -> None:
    assert unknown("preset", "zzz", ["laptop", "full"]) == "unknown preset 'zzz': choose one of full, laptop"
