"""How many views one task of an engine simulates changes nothing but how fast it goes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exafield import cli, job
from exafield.engine import EngineError, MapEngine
from exafield.engine.chunks import Chunks
from exafield.engine.local import ProcessEngine, SerialEngine
from exafield.engine.threads import ThreadEngine
from exafield.microscopy.generate import Generation, generate
from exafield.microscopy.recipe import simulate
from exafield.microscopy.scans import load
from exafield.question import Microscopy, Simulation
from exafield.taskbench.tasksize import TaskSizes
from small import write_cifs


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Generation:
    """Views that take no time; what is tested here is not the physics."""
    folder = write_cifs(tmp_path_factory.mktemp("cif"), ("Na", "W", "CsCl", "MoS2"))
    return Generation(thickness=4.0, sampling=0.25, box=6.0, detector_pixels=4, crystals=str(folder))


def chunked(engine: MapEngine, size: int | None) -> tuple[Chunks, list[str]]:
    said: list[str] = []
    return Chunks(engine, TaskSizes(said.append, size)), said


@pytest.fixture(scope="module")
def plain(quick: Generation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was written without tasks of several views."""
    path = tmp_path_factory.mktemp("plain") / "views.h5"
    assert generate(path, quick, SerialEngine())[0] > 5
    return path


@pytest.mark.parametrize("size", [None, 1, 3, 100])
def test_the_same_bytes_are_written(quick: Generation, plain: Path, tmp_path: Path, size: int | None) -> None:
    engine, said = chunked(SerialEngine(), size)
    made, _ = generate(tmp_path / "views.h5", quick, engine)
    assert made == len(load(plain, quick))
    assert (tmp_path / "views.h5").read_bytes() == plain.read_bytes()
    (line,) = said
    assert f"{size} samples a task" in line or size in (None, 1)
    # All is there: nothing to do, and nothing to say.
    assert generate(tmp_path / "views.h5", quick, engine)[0] == 0


@pytest.mark.parametrize("engine", [ThreadEngine(workers=2), ProcessEngine(workers=2)], ids=["threads", "processes"])
def test_workers_give_the_same_numbers(quick: Generation, plain: Path, tmp_path: Path, engine: MapEngine) -> None:
    generate(tmp_path / "views.h5", quick, chunked(engine, 3)[0])
    one, two = load(plain, quick), load(tmp_path / "views.h5", quick)
    assert [scan.name for scan in one] == [scan.name for scan in two]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.patterns, b.patterns)
        np.testing.assert_array_equal(a.potential, b.potential)


def test_an_interruption_costs_a_task_at_most(
    quick: Generation, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "views.h5"
    calls: list[str] = []

    def counted(task: Any) -> Any:
        calls.append(task[0].name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return simulate(task)

    monkeypatch.setattr("exafield.microscopy.generate.simulate", counted)
    with pytest.raises(KeyboardInterrupt):
        generate(path, quick, chunked(SerialEngine(), 2)[0])
    assert len(load(path, quick)) == 2
    before = len(calls)
    generate(path, quick, chunked(SerialEngine(), 2)[0])
    assert calls[before:] == calls[2:4] + calls[before + 2 :]  # goes on with what was lost, and repeats nothing else
    assert len(calls) - before == len(load(plain, quick)) - 2


def test_a_view_that_fails_is_named_and_those_before_it_are_kept(
    quick: Generation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def worse(*task: Any, **settings: Any) -> Any:
        calls.append(task[0].name)
        if len(calls) == 5:
            raise ValueError("no slices")
        return slices(*task, **settings)

    from exafield.microscopy.recipe import projected_slices as slices

    monkeypatch.setattr("exafield.microscopy.recipe.projected_slices", worse)
    with pytest.raises(EngineError) as caught:
        generate(tmp_path / "views.h5", quick, chunked(SerialEngine(), 3)[0])
    assert str(caught.value).startswith("item 4 failed: ValueError: no slices")
    assert str(caught.value).endswith(f"This was view {calls[-1]!r}.")
    assert {scan.name for scan in load(tmp_path / "views.h5", quick)} == set(calls[:4])


def test_the_command_says_what_it_chose(
    quick: Generation, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "views.zarr"
    words = ["generate", "microscopy", "--engine", "serial", "--crystals", quick.crystals, "--store", str(path)]
    assert cli.main([*words, "--task-size", "2"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{path}\n"
    assert "exafield: engine serial: 2 samples a task, " in err
    assert err.count(" a task") == 1


def test_a_task_size_is_checked_before_anything_is_made(tmp_path: Path) -> None:
    question = Microscopy(data=Simulation(store=str(tmp_path / "no" / "x.zarr")))
    with pytest.raises(ValueError, match="task size of 0"):
        job.generate(question, SerialEngine(), print, task_size=0)
    assert not (tmp_path / "no").exists()
