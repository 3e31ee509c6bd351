"""The doctor's report, and that its check would notice a wrong reduction."""

import importlib.metadata as metadata
import os
import re
import subprocess
import sys

import pytest

from exafield import doctor
from exafield.environment import Place
from exafield.world import World
from ranks import run_ranks


def test_the_report_names_what_there_is() -> None:
    text = "\n".join(doctor.examine(Place("alone", hint="a hint")))
    assert re.search(rf"^torch +{re.escape(metadata.version('torch'))}$", text, re.MULTILINE)
    assert "gloo yes" in text
    assert re.search(r"^cores +\d+ of \d+$", text, re.MULTILINE)
    assert re.search(r"^memory +\d+\.\d GiB free of \d+\.\d GiB$", text, re.MULTILINE)
    assert "launcher    alone: rank 0 of 1\n            a hint" in text
    assert "extra       microscopy: complete" in text


def test_a_missing_extra_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda name: name != "zarr")
    text = "\n".join(doctor.examine(Place("alone")))
    assert "extra       microscopy: lacks zarr: pip install 'exafield[microscopy]'" in text


def test_two_processes_reduce() -> None:
    environ = {
        n: v for n, v in os.environ.items() if not n.startswith(("RANK", "WORLD_SIZE", "SLURM_", "OMPI_", "PMI_"))
    }
    command = [sys.executable, "-m", "exafield", "doctor"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^reduction   right: 2 processes on 1 node, \w+, relative error \d", done.stdout, re.MULTILINE)


def corrupted(world: World) -> None:
    """One rank's part is lost: the sum over ranks is that of the others."""
    from exafield.channel import ProcessGroupChannel

    honest = ProcessGroupChannel.all_reduce

    def forgetful(self, tensor, *rest):  # type: ignore[no-untyped-def]
        if tensor.is_floating_point() and tensor.numel() > 10 and world.rank == 1:
            tensor.zero_()
        return honest(self, tensor, *rest)

    ProcessGroupChannel.all_reduce = forgetful  # type: ignore[method-assign]
    print("right" if doctor.reduce_together(world) else "wrong")


def test_the_check_notices_a_reduction_that_is_wrong() -> None:
    said = run_ranks(2, corrupted)
    assert "reduction   WRONG" in said[0]
    assert all(text.splitlines()[-1] == "wrong" for text in said)
