"""The benchmark of nodes: skipped where it cannot run, and leaves nothing behind where it can."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "nodes.py"


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout


def test_without_its_tools_it_says_so_and_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--json", str(tmp_path / "out.json")],
        check=True,
        env=os.environ | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("nodes: skipped: needs ")
    assert json.loads((tmp_path / "out.json").read_text())["skipped"].startswith("needs ")


@pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")), reason="needs root, and iproute2"
)
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_ended_half_way_it_removes_what_it_made(by: signal.Signals) -> None:
    # Its own group, as at a terminal: the interrupt also reaches the ranks.
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--quick", "--nodes", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    prefix = f"exafield-{process.pid}-"
    try:
        assert process.stdout is not None
        process.stdout.readline()
        while not _commands(prefix):
            if process.poll() == 0:
                pytest.skip("namespaces cannot be made here")
            assert process.poll() is None
            time.sleep(0.1)
        assert prefix in namespaces()
        os.killpg(process.pid, by) if by == signal.SIGINT else process.send_signal(by)
        process.wait(30)
        assert process.returncode == 128 + by
        assert prefix not in namespaces()
        assert not _commands(prefix)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _commands(prefix: str) -> str:
    """Commands of processes that belong to these nodes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"EXAFIELD_NODE={prefix}" in (folder / "environ").read_bytes().decode(errors="replace"):
                found.append((folder / "cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)
