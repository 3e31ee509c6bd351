"""The command line, as a user types it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exafield import __version__, runfile
from exafield.cite import WORKS
from exafield.cli import INTERRUPTED, MISSED, USAGE, main
from exafield.store import whole
from small import TEST, TRAIN, VALIDATION, write_cifs

# Variables by which a launcher would be detected.
LAUNCHERS = ("RANK", "WORLD_SIZE", "OMPI_", "PMI_", "PALS_", "SLURM_")


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}


def exafield(*words: str, folder: Path, timeout: float = 120, **environ: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "exafield", *words]
    return subprocess.run(
        command, cwd=folder, env=clean() | environ, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="session")
def crystals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a few crystals, whose patterns are simulated by the first test that trains."""
    return write_cifs(tmp_path_factory.mktemp("crystals"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def trained(crystals: Path, cache: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two ranks, and what it printed."""
    folder = tmp_path_factory.mktemp("work")
    words = ("train", "microscopy", "--ranks", "2", "--steps", "6", "--crystals", str(crystals), "--folder", "first")
    done = exafield(*words, folder=folder, EXAFIELD_CACHE=cache)
    assert done.returncode == 0, done.stderr
    return folder / "first", done.stdout


# ---- without training ----


def test_help_is_fast_because_it_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys; from exafield.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "usage: exafield COMMAND" in done.stdout
    assert not loaded & {"torch", "numpy", "scipy", "matplotlib"}


def test_parsing_a_training_imports_nothing_heavy() -> None:
    code = (
        "import sys; from exafield.cli import main; main(['train', 'microscopy', '--ranks', '0']);"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean(), check=True)
    assert "--ranks 0: at least one process" in done.stderr


@pytest.mark.parametrize("command", ["apply", "microscopy", "climate", "subsurface"])
def test_a_command_that_is_terminated_leaves_no_half_of_a_file(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def carry_out(*_: object) -> int:
        with whole(tmp_path / "result.h5") as part:
            part.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return 0

    module = "exafield.apply" if command == "apply" else f"exafield.{command}.command"
    monkeypatch.setattr(f"{module}.main", carry_out)
    with pytest.raises(SystemExit) as end:
        main([command, "anything"])
    assert end.value.code == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"exafield {__version__}\n"


@pytest.mark.parametrize("command", ["train", "generate", "data", "trace", "report", "doctor", "cite"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: exafield {command}" in capsys.readouterr().out


def test_help_shows_the_defaults_of_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--preset", "full", "--help"])
    assert "20000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian", "unknown command 'trian': did you mean 'train'?"),
        ("train microskopy", "unknown problem 'microskopy': did you mean 'microscopy'?"),
        ("train microscopy --ranks 0", "--ranks 0: at least one process is needed"),
        ("train microscopy --ranks -2", "--ranks -2: at least one process is needed"),
        ("train microscopy --preset full --config r.yaml", "--preset and --config each bring all settings"),
        ("train microscopy --config nowhere.yaml", "nowhere.yaml: cannot be read as a run file"),
        ("train microscopy --resume nowhere", "nowhere/run.yaml: cannot be read as a run file"),
        ("train microscopy --steps 3 --crystals nowhere", "there is no folder or .cif file 'nowhere'"),
        ("generate microscopy --engine process", "unknown engine 'process': did you mean 'processes'?"),
        ("generate microscopy --task-size 0", "--task-size 0: a task needs at least one sample"),
        ("data where", "which data set?"),
    ],
)
def test_mistakes_are_explained(
    words: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == USAGE
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train microscopy --stepps 3", "--steps"),
        ("train microscopy --batch-siz 3", "--batch-size"),
        ("train microscopy --contol tree", "--control"),
        ("train microscopy --control trea", "did you mean 'tree'?"),
        ("train microscopy --steps 0", "steps must be 1 or more, got 0"),
        ("train microscopy --steps 3 --seconds 4", "not both"),
        ("train microscopy --steps many", "invalid literal"),
        ("cite --bibtx", "--bibtex"),
    ],
)
def test_flags_that_do_not_exist_name_the_nearest(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == USAGE
    text = re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().err)
    assert said in " ".join(text.split())


def test_an_unknown_data_set_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "where", "cristals"]) == 1
    assert "did you mean 'crystals'" in capsys.readouterr().err


def test_data_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    assert "206 inorganic crystal structures" in capsys.readouterr().out


def test_ranks_under_a_launcher_must_agree(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "microscopy", "--ranks", "4"]) == USAGE
    assert "--ranks 4, but torchrun has started 1: leave out --ranks there" in capsys.readouterr().err


def test_a_half_set_launcher_environment_is_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert main(["train", "microscopy"]) == USAGE
    assert "RANK is set, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not" in capsys.readouterr().err


def test_cite(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite"]) == 0
    plain = capsys.readouterr().out
    for number in ("arXiv:1909.11150", "arXiv:1910.13444", "arXiv:1908.05790", "arXiv:1810.01993"):
        assert number in plain
    assert "{" not in plain
    assert main(["cite", "--bibtex"]) == 0
    entries = capsys.readouterr().out
    assert len(re.findall(r"^@\w+\{\w+,$", entries, re.MULTILINE)) == len(WORKS)
    assert entries.count("{") == entries.count("}")
    assert entries.isascii()


def test_a_reader_that_stops_early_is_no_failure_to_shout_about() -> None:
    command = f"{sys.executable} -m exafield cite | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=clean(), check=True)
    assert "Laanait" in done.stdout
    assert done.stderr == ""


# ---- training ----


def test_a_training_leaves_a_run_folder(trained: tuple[Path, str]) -> None:
    folder, said = trained
    assert {path.name for path in folder.iterdir()} == {
        "run.yaml",
        "metrics.jsonl",
        "trace.json",
        "checkpoints",
        "microscopy.png",
        "result.json",
        "provenance.json",
        "report.html",
    }
    run = runfile.load(folder / "run.yaml")
    assert run.training.steps == 6
    assert "warmup=0" in run.training.schedule
    result = json.loads((folder / "result.json").read_text())
    assert (result["format"], result["version"], result["ranks"], result["steps"]) == ("exafield-result", 1, 2, 6)
    assert len(result["gate"]) == 4
    assert result["report"]["network"]["relative_l2"] > 0
    assert f"run folder  {folder}" in said
    assert f"picture     {folder / 'microscopy.png'}" in said
    assert f"report      {folder / 'report.html'}" in said
    written = (folder / "report.html").read_text()
    assert "exafield train microscopy --ranks 2 --steps 6" in written
    assert "measured on all ranks at the same time" in written
    assert "cannot be" not in written
    (session,) = json.loads((folder / "provenance.json").read_text())["sessions"]
    assert (session["outcome"], session["ranks"], session["launcher"], session["steps"]) == (
        "complete",
        2,
        "exafield",
        6,
    )
    assert "missed   " in said
    assert "simulated" in said
    assert re.search(r"engine processes: .*METG\(95 %\).* a task", said)  # on the rank that simulates


def test_a_training_goes_on_from_its_folder(trained: tuple[Path, str], cache: str) -> None:
    folder, _ = trained
    words = ("train", "microscopy", "--ranks", "2", "--resume", str(folder), "--steps", "8", "--gate")
    done = exafield(*words, folder=folder, EXAFIELD_CACHE=cache)
    assert done.returncode == MISSED, done.stderr
    assert "resumed at step 6" in done.stdout
    assert json.loads((folder / "result.json").read_text())["steps"] == 8
    assert done.stderr == ""  # a missed gate is no accident to report
    kept = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    done = exafield(*words[:6], "--network", "dense:growth=8", folder=folder, EXAFIELD_CACHE=cache)
    assert done.returncode == USAGE
    assert "network is now dense:growth=8,first=48,layers=3, and what was learnt there is for" in done.stderr
    assert "leave out --network" in done.stderr
    assert kept == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_folder_is_not_overwritten(trained: tuple[Path, str], cache: str, crystals: Path) -> None:
    folder, _ = trained
    before = (folder / "run.yaml").read_bytes()
    done = exafield(
        *("train", "microscopy", "--steps", "3", "--crystals", str(crystals), "--folder", str(folder)),
        folder=folder,
        EXAFIELD_CACHE=cache,
    )
    assert done.returncode == USAGE
    assert f"--resume {folder}" in done.stderr
    assert (folder / "run.yaml").read_bytes() == before


def test_more_ranks_than_samples_is_refused_once(tmp_path: Path) -> None:
    few = write_cifs(tmp_path / "few", (TRAIN[0], VALIDATION[0], TEST[0]))
    words = ("train", "microscopy", "--ranks", "2", "--steps", "3", "--per-scan", "1", "--crystals", str(few))
    done = exafield(*words, folder=tmp_path, EXAFIELD_CACHE=str(tmp_path / "cache"))
    assert done.returncode == USAGE
    assert "sample" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "runs").exists(), "a training that was refused left its run folder"
    # One that was there before is the user's, with what is in it.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "submit.yaml").touch()
    done = exafield(*words, "--folder", "mine", folder=tmp_path, EXAFIELD_CACHE=str(tmp_path / "cache"))
    assert done.returncode == USAGE
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["submit.yaml"]


def children(pid: int) -> list[int]:
    return [int(c) for path in Path(f"/proc/{pid}/task").glob("*/children") for c in path.read_text().split()]


def rank_of(pid: int) -> str:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((e.partition(b"=")[2].decode() for e in entries if e.startswith(b"RANK=")), "")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_training_ends_as_one(sent: signal.Signals, tmp_path: Path, cache: str, crystals: Path) -> None:
    """kill -9 of a rank while it trains, and Ctrl-C."""
    command = [sys.executable, "-m", "exafield", "train", "microscopy", "--ranks", "2", "--seconds", "300"]
    command += ["--crystals", str(crystals), "--folder", "run", "--log-every", "1"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=clean() | {"EXAFIELD_CACHE": cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (metrics.exists() and '"train"' in metrics.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ranks = {rank_of(pid): pid for pid in children(process.pid)}
    os.kill(ranks["1"] if sent == signal.SIGKILL else process.pid, sent)
    _, said = process.communicate(timeout=30)
    outcome = json.loads((tmp_path / "run" / "provenance.json").read_text())["sessions"][0]["outcome"]
    assert str(outcome).startswith("ended with an error" if sent == signal.SIGKILL else "interrupted")
    if sent == signal.SIGKILL:
        assert process.returncode == 1
        assert "rank 1 of 2 was killed by signal 9 (SIGKILL)" in said
    else:
        assert process.returncode == INTERRUPTED
        assert "with no checkpoint to go on from" in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
