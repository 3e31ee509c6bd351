"""What the README and the documentation show is what happens."""

import re
import shlex
from pathlib import Path

import pytest

from exafield import cli, runfile
from exafield.apply.climate import ApplyClimate
from exafield.apply.microscopy import ApplyMicroscopy
from exafield.apply.subsurface import ApplySubsurface
from exafield.arguments import ReportOn, Submit, TraceOf, Train
from exafield.climate.flags import Describe, EventsOf, Label, Show, Simulate
from exafield.given import starting_run
from exafield.launch import spawn
from exafield.microscopy.flags import Describe as DescribeScan
from exafield.microscopy.flags import Detectors
from exafield.microscopy.flags import Simulate as SimulateScan
from exafield.run import Reduction
from exafield.scaling.flags import Calibrate, Machines, Scale, reduction, several
from exafield.scaling.flags import Graph as GraphOf
from exafield.scaling.flags import Show as ShowMachine
from exafield.scaling.study import parse_nodes
from exafield.subsurface.flags import Describe as DescribeSite
from exafield.subsurface.flags import Measure
from exafield.subsurface.flags import Show as ShowSite
from exafield.taskbench.flags import parse, separate

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def test_the_own_loop_trains_alike_on_two_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (example,) = blocks(ROOT / "README.md", "python")
    says = "print('weights', repr(sum(float(p.double().sum()) for p in model.parameters())), 'loss', float(loss))\n"
    (tmp_path / "own_loop.py").write_text(example + says)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    spawn([], 2, module="own_loop")
    said = dict(re.findall(r"^(\[rank 1\] )?weights (\S+)", capfd.readouterr().out, re.MULTILINE))
    assert len(said) == 2
    assert said[""] == said["[rank 1] "]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_that_are_shown_are_understood(page: Path) -> None:
    for block in blocks(page, "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if "exafield" not in words:
                continue
            command, *rest = words[words.index("exafield") + 1 :]
            if command == "train":
                rest = [word for pair in _without_resume(rest) for word in pair]
                arguments = cli._parsed(Train, "train", rest, Train(problem="", run=starting_run(rest)))
                assert arguments.problem == arguments.run.problem.name == rest[0]
            elif command == "submit":
                rest = [word for pair in _without_resume(rest) for word in pair]
                job = cli._parsed(Submit, "submit", rest, Submit(problem="", run=starting_run(rest))).job
                assert f"--nodes={job.nodes}" in "\n".join(job.header("microscopy", page))
            elif command == "report":
                assert str(cli._parsed(ReportOn, "report", rest).run).startswith("runs/")
            elif command == "trace":
                assert str(cli._parsed(TraceOf, "trace", rest).run).startswith("runs/")
            elif command == "taskbench":
                name, *own = rest
                assert name in ("run", "metg", "compare", "engines", "check")
                if name == "run":
                    if "--graph" in own:  # a file that does not exist here
                        at = own.index("--graph")
                        own = own[:at] + own[at + 2 :]
                    parse(separate(own, ("--engine",))[0])
            elif command == "scale":
                others = {"calibrate": Calibrate, "machines": Machines, "show": ShowMachine, "graph": GraphOf}
                kind = others.get(rest[0], Scale)
                asked = cli._parsed(kind, "scale", rest[1:] if rest[0] in others else rest)
                if isinstance(asked, Scale):
                    assert all(reduction(text, Reduction()) for text in several(asked.compare or "static"))
                    parse_nodes(asked.nodes or "1")
            elif command == "apply":
                kind = {"climate": ApplyClimate, "microscopy": ApplyMicroscopy, "subsurface": ApplySubsurface}[rest[0]]
                assert cli._parsed(kind, f"apply {rest[0]}", rest[1:]).run
            elif command == "microscopy":
                scans = {"simulate": SimulateScan, "describe": DescribeScan, "detectors": Detectors}
                cli._parsed(scans[rest[0]], "microscopy", rest[1:])
            elif command == "climate":
                kinds = {"describe": Describe, "show": Show, "simulate": Simulate, "label": Label, "events": EventsOf}
                cli._parsed(kinds[rest[0]], "climate", rest[1:])
            elif command == "subsurface":
                sites = {"describe": DescribeSite, "show": ShowSite, "measure": Measure}
                cli._parsed(sites[rest[0]], "subsurface", rest[1:])
            else:
                assert command in ("generate", "doctor", "cite", "data")


def _without_resume(words: list[str]) -> list[tuple[str, ...]]:
    """The run folders that are shown do not exist here."""
    if "--resume" in words:
        at = words.index("--resume")
        words = words[:at] + words[at + 2 :]
    return [(word,) for word in words]


def test_the_run_file_that_is_shown_is_one() -> None:
    (text,) = blocks(ROOT / "docs" / "running.md", "yaml")
    assert runfile.read(text).problem.dose == 300.0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_map_of_the_architecture_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for name in re.findall(r"`((?:\w+/)?\w+\.py)`", text):
        assert (ROOT / "src" / "exafield" / name).exists() or (ROOT / name).exists(), name
