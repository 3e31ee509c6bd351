"""The wheel, as a user gets it: built, installed into an empty environment, and used from there."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*words: str | Path, folder: Path, timeout: float = 600) -> str:
    done = subprocess.run(
        [str(w) for w in words], cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    constraints = ROOT / "constraints.txt"
    pip = (sys.executable, "-m", "pip")
    quiet = ("--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", *quiet, "--no-deps", "--build-constraint", constraints, "-w", tmp_path, ROOT, folder=tmp_path)
    (wheel,) = tmp_path.glob("exafield-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    data = {"climate/coastlines.txt", "microscopy/crystals.txt", "microscopy/scattering.json", "page/page.css"}
    data.add("machines/summit.yaml")
    assert {"exafield/py.typed", *(f"exafield/{name}" for name in data)} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert not any(name.startswith(("tests", "tools", "benchmarks")) for name in names)

    empty = tmp_path / "empty"
    run(sys.executable, "-m", "venv", "--without-pip", empty, folder=tmp_path)
    python = empty / "bin" / "python"
    # Byte code is made where it is needed, which is little.
    install = ("--python", python, "install", *quiet, "--no-compile", "--constraint", constraints)
    run(*pip, *install, wheel, folder=tmp_path)
    said = run(empty / "bin" / "exafield", "doctor", folder=tmp_path)
    assert str(empty) in said
    assert "reduction   right: 2 processes" in said
    assert "extra       microscopy: lacks ase, h5py, zarr: pip install 'exafield[microscopy]'" in said
