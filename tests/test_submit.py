"""SLURM jobs: what the script says, and what it does where srun, sbatch and scontrol are played by small programs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exafield import runfile
from exafield.cli import USAGE, main
from exafield.run import RunError, laptop
from exafield.submit import Allocation, SubmitError, destination, script, submit
from small import write_cifs

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "OMPI_", "PMI_", "PALS_", "SLURM_", "EXAFIELD_S")

# Reads the script's head as sbatch does and runs it as slurmd would, in the foreground: sends the shell SIGUSR1 once
# the first run trains, and starts the script anew when scontrol has asked for it.
SBATCH = """
import os, pathlib, re, signal, subprocess, sys, time
script = sys.argv[-1]
text = pathlib.Path(script).read_text()
options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.MULTILINE))
assert "--parsable" in sys.argv and re.search(r"^#SBATCH --requeue$", text, re.MULTILINE)
assert options["signal"] == "B:USR1@60", options
here = pathlib.Path(__file__).parent
tasks = int(options["nodes"]) * int(options["ntasks-per-node"])
metrics = pathlib.Path(script).parent / "metrics.jsonl"
for restart in range(5):
    env = os.environ | {"SLURM_JOB_ID": "77", "SLURM_NTASKS": str(tasks)}
    if restart:
        env["SLURM_RESTART_COUNT"] = str(restart)
    with open(options["output"].replace("%j", "77"), "ab") as output:
        job = subprocess.Popen(["bash", script], env=env, stdout=output, stderr=subprocess.STDOUT)
    while not restart and job.poll() is None and not (metrics.exists() and '"train"' in metrics.read_text()):
        time.sleep(0.05)
    if not restart:
        job.send_signal(signal.SIGUSR1)
    code = job.wait()
    (here / "codes").open("a").write(f"{code}\\n")
    if not (here / "requeue").exists():
        break
    (here / "requeue").unlink()
print("77;cluster")
"""

# Starts the tasks of a step, passes signals on to them, and ends as badly as the worst of them.
SRUN = """
import os, signal, subprocess, sys
words = [word for word in sys.argv[1:]]
options = []
while words[0].startswith("-"):
    options.append(words.pop(0))
assert "--kill-on-bad-exit=1" in options
count = os.environ["SLURM_NTASKS"]
step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": count, "SLURM_STEP_TASKS_PER_NODE": count,
        "SLURM_STEP_NODELIST": "localhost", "SLURM_NODEID": "0"}
tasks = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, _: [task.send_signal(number) for task in tasks])
for rank in map(str, range(int(count))):
    tasks.append(subprocess.Popen(words, env=os.environ | step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}))
sys.exit(max(abs(task.wait()) for task in tasks))
"""

SCONTROL = """
import pathlib, sys
assert sys.argv[1:] == ["requeue", "77"], sys.argv
(pathlib.Path(__file__).parent / "requeue").touch()
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with SLURM's programs, and an environment without a launcher."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, code in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(f"#!{sys.executable}{code}")
        (folder / name).chmod(0o755)
    for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_job_stops_in_time_requeues_and_completes(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXAFIELD_CACHE", str(tmp_path / "cache"))
    crystals = write_cifs(tmp_path / "crystals")
    words = ["submit", "microscopy", "--ranks-per-node", "2", "--notice", "60", "--steps", "60", "--log-every", "1"]
    words += [
        "--batch-size",
        "2",
        "--network",
        "dense:growth=4",
        "--crystals",
        str(crystals),
        "--folder",
        str(tmp_path / "run"),
    ]
    assert main(words) == 0
    folder = tmp_path / "run"
    assert capsys.readouterr().out == f"job 77, run folder {folder}\n"
    said = (folder / "slurm-77.out").read_text()
    assert (slurm / "codes").read_text() == "0\n0\n", said
    assert said.count("stopped by SIGUSR1 at step") == 1, said
    assert said.count("not complete: back into the queue") == 1
    stopped = int(said.split("stopped by SIGUSR1 at step ")[1].split(";")[0])
    assert 0 < stopped < 60
    assert f"resumed at step {stopped}" in said
    result = json.loads((folder / "result.json").read_text())
    assert (result["steps"], result["ranks"]) == (60, 2)
    sessions = json.loads((folder / "provenance.json").read_text())["sessions"]
    assert [(s["outcome"], s["launcher"]) for s in sessions] == [("stopped by SIGUSR1", "srun"), ("complete", "srun")]
    assert said.count("report      ") == 2
    # The run is there: the same place is not taken twice, and it can be submitted to go further.
    assert main(words) == USAGE
    assert f"--resume {folder}" in capsys.readouterr().err


def test_the_script(tmp_path: Path) -> None:
    allocation = Allocation(
        nodes=4,
        ranks_per_node=6,
        time="2-12:00:00",
        partition="batch",
        account="abc123",
        cores_per_rank=7,
        gpus_per_node=6,
        setup="module load cuda",
        requeues=3,
    )
    text = script("microscopy", allocation, tmp_path / "run")
    head = text.split("\n\n")[0].splitlines()
    assert head[0] == "#!/bin/bash"
    assert set(head[1:-1]) == {
        "#SBATCH --job-name=exafield-microscopy",
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=6",
        "#SBATCH --cpus-per-task=7",
        "#SBATCH --gpus-per-node=6",
        "#SBATCH --time=2-12:00:00",
        "#SBATCH --partition=batch",
        "#SBATCH --account=abc123",
        "#SBATCH --signal=B:USR1@180",
        f"#SBATCH --output={tmp_path}/run/slurm-%j.out",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
    }
    assert "\nmodule load cuda\nexport OMP_NUM_THREADS=7\n" in text
    assert "srun --kill-on-bad-exit=1 --cpus-per-task=7 " in text
    assert '"${SLURM_RESTART_COUNT:-0}" -lt 3' in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    plain = script("microscopy", Allocation(), tmp_path)
    assert not any(word in plain for word in ("partition", "account", "gpus", "OMP_NUM_THREADS", "None"))


def shell(tmp_path: Path, slurm: Path, srun: str, send: str | None = None, **environ: str) -> tuple[int, bool, str]:
    """Runs the script with another srun; returns its exit code, whether it was requeued, and what it said."""
    (slurm / "srun").write_text(f"#!/bin/bash\n{srun}\n")
    text = script("microscopy", Allocation(requeues=2), tmp_path)
    if send is not None:
        text = text.replace("step=$!\n", f"step=$!\n(sleep 0.5; kill -s {send} $$) &\n")
    env = os.environ | {"SLURM_JOB_ID": "77"} | environ
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, env=env, check=False, timeout=30)
    return done.returncode, (slurm / "requeue").exists(), done.stdout + done.stderr


WAIT = "for i in {1..100}; do sleep 0.1; done; exit 1"


def test_the_job_ends_as_the_run_does(slurm: Path, tmp_path: Path) -> None:
    assert shell(tmp_path, slurm, "exit 5")[:2] == (5, False)
    assert shell(tmp_path, slurm, f"echo done > {tmp_path}/result.json")[:2] == (0, False)


def test_only_a_run_that_was_told_to_stop_is_requeued(slurm: Path, tmp_path: Path) -> None:
    stops = f"trap 'exit 0' USR1 TERM; {WAIT}"
    assert shell(tmp_path, slurm, stops, "TERM")[:2] == (0, False)
    code, requeued, said = shell(tmp_path, slurm, stops, "USR1", SLURM_RESTART_COUNT="2")
    assert (code, requeued) == (1, False)
    assert f"not complete after 2 requeues: go on with exafield submit microscopy --resume {tmp_path}" in said
    assert shell(tmp_path, slurm, stops, "USR1", SLURM_RESTART_COUNT="1")[:2] == (0, True)
    (slurm / "requeue").unlink()
    (tmp_path / "result.json").touch()  # it was complete by then
    assert shell(tmp_path, slurm, stops, "USR1")[:2] == (0, False)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("1:00:00", 3600),
        ("2-0", 172_800),
        ("1-6:30", 109_800),
        ("0-00:05:01", 301),
    ],
)
def test_time_limits(time: str, seconds: int) -> None:
    assert Allocation(time=time).seconds == seconds


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"nodes": 0}, "nodes must be 1 or more"),
        ({"gpus_per_node": 0}, "gpus_per_node must be 1 or more"),
        ({"time": "soon"}, "time must be minutes, HH:MM:SS or DAYS-HH:MM:SS, got 'soon'"),
        ({"time": "1:2:3:4"}, "time must be"),
        ({"time": "2", "notice": 120}, "notice must be above 0, below the time limit of 120 s"),
        ({"requeues": -1}, "requeues must be 0 or more"),
        ({"partition": "a\n#SBATCH --uid=0"}, "partition must be one word"),
        ({"account": "$(id)"}, "account must be one word"),
        ({"setup": "a\nb"}, "setup must be one line"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(RunError, match=says):
        Allocation(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a b", "100%", "it's", "a\nb"])
def test_folders_that_slurm_would_not_understand(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="blanks, quotes, %"):
        script("microscopy", Allocation(), tmp_path / name)


def test_without_slurm_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SubmitError, match="no sbatch on this machine"):
        submit(laptop(), Allocation(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_slurm_refuses_is_said(slurm: Path, tmp_path: Path) -> None:
    (slurm / "sbatch").write_text("#!/bin/bash\necho 'Invalid account' >&2; exit 1\n")
    with pytest.raises(SubmitError, match=r"sbatch refused .*submit\.sh: Invalid account"):
        submit(laptop(), Allocation(), tmp_path / "run")


def test_a_run_that_goes_on_is_submitted_with_changed_settings(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (slurm / "sbatch").write_text("#!/bin/bash\necho 78\n")
    folder = tmp_path / "run"
    assert main(["submit", "microscopy", "--resume", str(folder)]) == USAGE
    folder.mkdir()
    (folder / "run.yaml").write_text(runfile.write(laptop(), "0"))
    assert main(["submit", "microscopy", "--resume", str(folder), "--steps", "9", "--dry"]) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash")
    assert runfile.load(folder / "run.yaml").training.steps is None
    assert main(["submit", "microscopy", "--resume", str(folder), "--steps", "9"]) == 0
    assert capsys.readouterr().out == f"job 78, run folder {folder}\n"
    assert runfile.load(folder / "run.yaml").training.steps == 9
    assert destination(laptop(), None).parent == tmp_path / "runs"
