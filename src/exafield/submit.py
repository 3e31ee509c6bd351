"""Submit: a run as a SLURM job that stops in time, goes back into the queue, and goes on where it stopped.

The script is ours, and plain to read. submitit, the usual tool, would pickle a Python function and unpickle it on every
task, and its signal handler would requeue from a task; here nothing that is read executes code, all ranks end at one
step first, and the job's own shell, which outlives them, requeues.
"""

import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from exafield import __version__
from exafield.run import Run, RunError

FORMAT, VERSION = "exafield-submit", 1
# What SLURM takes as a time limit: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
_LIMIT = re.compile(r"(?:(?P<days>\d+)-(?P<hours>\d+)(?::(?P<m>\d+)(?::(?P<s>\d+))?)?|(?P<plain>\d+(?::\d+){0,2}))")
_WORD = re.compile(r"[\w.,:@+-]+")


class SubmitError(RuntimeError):
    """The job could not be submitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """What a SLURM job asks for.

    Args:
        nodes: number of nodes.
        ranks_per_node: processes on each; one per GPU, where there are any.
        time: limit, as SLURM takes it: minutes, HH:MM:SS or DAYS-HH:MM:SS.
        partition: None: the cluster's default.
        account: that pays. None: yours.
        cores_per_rank: processor cores, and threads, of each rank.
        gpus_per_node: None: none are asked for.
        notice: how long before the limit the run is told to stop [s]: what a step and a checkpoint may take.
        requeues: how often the job may go back into the queue.
        setup: a shell command before the run, such as "module load cuda".
    """

    nodes: int = 1
    ranks_per_node: int = 1
    time: str = "1:00:00"
    partition: str | None = None
    account: str | None = None
    cores_per_rank: int = 1
    gpus_per_node: int | None = None
    notice: int = 180
    requeues: int = 50
    setup: str | None = None

    def __post_init__(self) -> None:
        for name in ("nodes", "ranks_per_node", "cores_per_rank", "gpus_per_node"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RunError(f"{name} must be 1 or more, got {value}")
        if self.requeues < 0:
            raise RunError(f"requeues must be 0 or more, got {self.requeues}")
        for name in ("partition", "account"):
            value = getattr(self, name)
            if value is not None and not _WORD.fullmatch(value):
                raise RunError(f"{name} must be one word, got {value!r}")
        if self.setup is not None and not self.setup.isprintable():
            raise RunError(f"setup must be one line, got {self.setup!r}")
        # SLURM keeps 16 bits of the notice (sbatch's manual, --signal).
        if not 0 < self.notice < min(self.seconds, 65_536):
            raise RunError(
                f"notice must be above 0, below the time limit of {self.seconds} s and below 65536 s, got {self.notice}"
            )

    @property
    def seconds(self) -> int:
        """The time limit [s]."""
        match = _LIMIT.fullmatch(self.time)
        if match is None:
            raise RunError(f"time must be minutes, HH:MM:SS or DAYS-HH:MM:SS, got {self.time!r}")
        if match["plain"] is None:
            days, hours, m, s = (int(match[name] or 0) for name in ("days", "hours", "m", "s"))
            return ((days * 24 + hours) * 60 + m) * 60 + s
        numbers = [int(number) for number in match["plain"].split(":")]
        if len(numbers) == 1:
            return 60 * numbers[0]
        return sum(number * 60**power for power, number in enumerate(reversed(numbers)))

    def header(self, name: str, output: Path) -> list[str]:
        """The lines that sbatch reads."""
        options = {
            "job-name": f"exafield-{name}",
            "nodes": self.nodes,
            "ntasks-per-node": self.ranks_per_node,
            "cpus-per-task": self.cores_per_rank,
            "gpus-per-node": self.gpus_per_node,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "signal": f"B:USR1@{self.notice}",
            "output": output,
            "open-mode": "append",
        }
        return [f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None] + [
            "#SBATCH --requeue"
        ]


_SCRIPT = """\
#!/bin/bash
{header}
# {format} {version}, written by exafield {exafield}

# SLURM sends SIGUSR1 to this shell {notice} s before the limit. It goes on to every rank; all end at one step, with a
# checkpoint. The job then goes back into the queue, and when its turn comes, on from there.
folder={folder}
{setup}
if [ -e "$folder/run.yaml" ]; then
    run=(--resume "$folder")
else
    run=(--config "$folder/submit.yaml" --folder "$folder")
fi
srun --kill-on-bad-exit=1 --cpus-per-task={cores} {python} -m exafield train {problem} "${{run[@]}}" &
step=$!

stopped='' interrupted='' code=1
pass_on() {{
    interrupted=1
    kill -s "$1" "$step" 2>/dev/null
}}
trap 'stopped=1; pass_on USR1' USR1
trap 'pass_on TERM' TERM
while :; do
    interrupted=''
    wait "$step"
    now=$?
    [ "$now" -eq 127 ] || code=$now # 127: it had ended in the wait before
    [ -n "$interrupted" ] || break  # otherwise a signal has ended the wait, not the step
done

if [ -n "$stopped" ] && [ ! -e "$folder/result.json" ]; then
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ]; then
        echo "not complete: back into the queue"
        scontrol requeue "$SLURM_JOB_ID"
    else
        echo "not complete after {requeues} requeues: go on with exafield submit {problem} --resume $folder"
        code=1
    fi
fi
exit "$code"
"""


def script(problem: str, allocation: Allocation, folder: Path) -> str:
    """The batch script of a run.

    Args:
        problem: name of the question.
        allocation: what is asked for.
        folder: of the run, on a file system all nodes share.
    Raises:
        RunError: the folder's path cannot stand in a batch script.
    """
    # sbatch reads to the next blank, knows patterns such as %j, and no quotes that would help with both.
    if not str(folder).isprintable() or re.search(r"[\s%\"'\\]", str(folder)):
        raise RunError(f"the run folder {str(folder)!r} holds blanks, quotes, % or \\: SLURM needs one without")
    threads = [f"export OMP_NUM_THREADS={allocation.cores_per_rank}"] if allocation.cores_per_rank > 1 else []
    return _SCRIPT.format(
        header="\n".join(allocation.header(problem, folder / "slurm-%j.out")),
        format=FORMAT,
        version=VERSION,
        exafield=__version__,
        notice=allocation.notice,
        folder=shlex.quote(str(folder)),
        setup="\n".join([*([allocation.setup] if allocation.setup else []), *threads]),
        cores=allocation.cores_per_rank,
        python=shlex.quote(sys.executable),
        problem=problem,
        requeues=allocation.requeues,
    )


def destination(run: Run, resume: Path | None) -> Path:
    """Folder of a run that is submitted; not made yet.

    Raises:
        RunError: another run is there already, or none to go on with.
    """
    if resume is not None:
        if not (resume / "run.yaml").exists():
            raise RunError(f"{resume} holds no run to go on with")
        return resume.absolute()
    folder = Path(run.record.folder or Path("runs", f"{run.problem.name}-{time.strftime('%Y%m%d-%H%M%S')}")).absolute()
    if (folder / "run.yaml").exists() or (folder / "submit.sh").exists():
        raise RunError(f"{folder} holds a run already: go on with it (--resume {folder}), or choose another folder")
    return folder


def submit(run: Run, allocation: Allocation, folder: Path) -> str:
    """Writes settings and script into the run folder, and hands the script to SLURM; returns the job's number.

    Raises:
        SubmitError: there is no SLURM here, or it refused.
        RunError: see :func:`script`.
        StoreError: the folder cannot be written.
    """
    from exafield import runfile
    from exafield.store import atomic_write  # late: the command line starts without numpy

    text = script(run.problem.name, allocation, folder)
    if shutil.which("sbatch") is None:
        raise SubmitError(
            "there is no sbatch on this machine: submit where SLURM is, or print the script with --dry and adapt it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    run = replace(run, record=replace(run.record, folder=None))  # the script says where
    # A run that goes on takes its settings from run.yaml, with what has been changed in them.
    settings = "run.yaml" if (folder / "run.yaml").exists() else "submit.yaml"
    atomic_write(folder / settings, runfile.write(run, __version__).encode())
    path = folder / "submit.sh"
    atomic_write(path, text.encode())
    done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SubmitError(f"sbatch refused {path}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.split(";")[0].strip()
