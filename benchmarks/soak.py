"""Soak: a small run on two ranks is struck again and again, resumed each time, and must end as if nothing had happened.

    python benchmarks/soak.py [--minutes 3] [--cycles N] [--seed 0] [--json FILE]

A cycle starts or resumes the run and, at a random moment, does one of these to a rank or to the launcher: SIGKILL,
SIGTERM, SIGUSR1, SIGINT, or SIGSTOP followed by SIGKILL. After each cycle no process may be left, no checkpoint may
have been lost, and every step on record must have seen the samples, and had the losses to the last bit, of a run that
was left alone; after a clean end there may be no partial file. A run that is complete must have that run's weights; the
next one then begins, every other one with gradient lag. The first deviation ends the soak with an error, and the run
folder stays.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RANKS, STEPS, EVERY = 2, 240, 7
MARK = "EXAFIELD_SOAK"


# ---- what a rank does ----


def train(folder: Path, ranks_log: Path, steps: int, **settings: Any) -> None:
    """The run: writes what each step saw to a file per rank, and a digest of the weights when it is complete.

    Args:
        settings: "every" (steps between checkpoints), "lag", "pace" (least time of a draw [s]), "patience" [s],
            "on_resize", "plain" (a network whose steps are the same on any number of ranks), "accident" (called in
            every loss with rank and step), and what else :class:`exafield.Trainer` takes.
    """
    from exafield.launch import bind_to_parent, stopping

    bind_to_parent()  # before what takes seconds to import: until then a rank may outlive its launcher
    import torch
    from torch import Tensor, nn

    from exafield.field import Field
    from exafield.optim import AdamW, Cosine
    from exafield.problem import Player
    from exafield.reduce import Reducer
    from exafield.report import Report
    from exafield.store import RunFolder
    from exafield.trainer import Trainer
    from exafield.world import World

    every, pace = settings.pop("every", EVERY), settings.pop("pace", 0.004)
    lag, patience = settings.pop("lag", 0), settings.pop("patience", 60.0)
    on_resize, plain = settings.pop("on_resize", "keep"), settings.pop("plain", False)
    accident = settings.pop("accident", None)

    class Points:
        """Values of a linear function, and the number of each."""

        fields: Mapping[str, Field] = {name: Field(name, ("n",), "1") for name in ("x", "y", "number")}

        def __len__(self) -> int:
            return 61  # no multiple of the batch: epochs end inside draws

        def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
            x = torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(i)) for i in indices])
            return {"x": x, "y": x.sum(1, keepdim=True), "number": torch.tensor([epoch * 61 + i for i in indices])}

    class Walk:
        """Dropout and running means make a step depend on everything a checkpoint has to keep."""

        name, source = "walk", Points()

        def players(self, world: World) -> list[Player]:
            noisy = (nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 1))
            self.net = nn.Linear(4, 1) if plain else nn.Sequential(*noisy)
            self.log = os.open(f"{ranks_log}.{world.rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            self.rank = world.rank
            schedule = Cosine(steps=1000, warmup=3)
            return [Player("net", self.net, self.loss, AdamW(0.02), schedule, begin=self.begin)]

        def begin(self, step: int) -> None:
            self.step = step

        def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
            time.sleep(pace)
            if accident is not None:
                accident(self.rank, self.step)
            loss = ((self.net(batch["x"]) - batch["y"]) ** 2).mean()
            line = json.dumps([self.step, float(loss.detach()).hex(), batch["number"].tolist()]) + "\n"
            os.write(self.log, line.encode())  # one call: whole or, at the end of a killed run, cut short
            return loss

        def evaluate(self, world: World) -> dict[str, float]:
            return {"nothing": 0.0}

        def picture(self, path: object) -> None:
            return

    with World.from_env("cpu", patience=patience) as world:
        problem, run = Walk(), RunFolder(folder)
        if world.rank == 0:
            run.tidy()
        report = Report(world.rank == 0, run.metrics)
        trainer = Trainer(
            problem, world, Reducer(lag=lag), folder=run, report=report, **{"batch_size": 6, "clip": 1.0} | settings
        )
        with stopping() as stop:
            trainer.resume(on_resize)
            trainer.fit(steps, checkpoint_every=every, stop=stop)
            if trainer.stopped:
                if world.rank == 0:
                    print(f"stopped by {trainer.stopped} at step {trainer.steps}", flush=True)
                return
        state = b"".join(value.numpy().tobytes() for value in problem.net.state_dict().values())
        digest = hashlib.sha256(state).hexdigest()
        (folder / f"digest.{world.rank}").write_text(digest)


def launch(folder: Path, log: Path, lag: int, token: str) -> "subprocess.Popen[bytes]":
    """Starts the launcher of a run, with its ranks."""
    words = [str(folder), str(log), str(lag)]
    code = f"from exafield.launch import spawn; spawn({words!r}, {RANKS}, module='soak', grace=5)"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path, MARK: token},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


# ---- looking at it ----


def alive(token: str) -> dict[int, str]:
    """Processes of this soak, and the rank of each ("" for a launcher)."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = dict(
                entry.split("=", 1)
                for entry in (path / "environ").read_text(errors="replace").split("\0")
                if "=" in entry
            )
            if variables.get(MARK) == token and (path / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found[int(path.name)] = variables.get("RANK", "")
    return found


def records(log: Path, ranks: int = RANKS) -> dict[tuple[int, int], set[str]]:
    """What was recorded for each rank and step; more than one entry where it was done again, differently."""
    found: dict[tuple[int, int], list[str]] = {}
    for rank in range(ranks):
        path = log.with_name(f"{log.name}.{rank}")
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):  # cut short by a kill
                step, *rest = json.loads(line)
                found.setdefault((rank, step), []).append(json.dumps(rest))
    return {key: set(entries) for key, entries in found.items()}


def partial(folder: Path) -> list[str]:
    """Files that are being written."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))


def checkpoints(folder: Path) -> list[int]:
    """Steps of the checkpoints there are."""
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


# ---- cycles ----

DEEDS = ("KILL", "TERM", "USR1", "INT", "STOP+KILL")


class Soak:
    """Runs, one after the other, in cycles."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random, self.token = folder, random.Random(seed), f"{os.getpid()}-{time.time_ns()}"
        self.counts: Counter[str] = Counter()
        self.redone = self.complete = self.number = 0
        self.references: dict[int, tuple[dict[tuple[int, int], set[str]], list[str]]] = {}
        self.begin()

    def begin(self) -> None:
        self.run, self.lag = self.folder / f"run{self.number}", self.number % 2
        self.log = self.folder / f"log{self.number}"
        self.number += 1
        self.newest = 0
        if self.lag not in self.references:
            folder, log = self.folder / f"whole{self.lag}", self.folder / f"whole-log{self.lag}"
            process = launch(folder, log, self.lag, self.token)
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said.decode()
            found = records(log)
            assert len(found) == RANKS * STEPS
            assert all(len(entries) == 1 for entries in found.values())
            self.references[self.lag] = found, self.digests(folder)

    def digests(self, folder: Path) -> list[str]:
        return [(folder / f"digest.{rank}").read_text() for rank in range(RANKS)]

    def cycle(self) -> None:
        before = records(self.log)
        process = launch(self.run, self.log, self.lag, self.token)
        early = self.random.random() < 0.15
        deadline = time.monotonic() + 120
        if not early:
            size = self.size()
            while self.size() == size and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
        time.sleep(self.random.uniform(0, 2.5 if early else 0.7))
        deed = self.strike(process)
        try:
            _, said = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the run did not end within 90 s of {deed}: {alive(self.token)}") from None
        self.check(process.returncode, deed, early, said.decode())
        after = records(self.log)
        self.redone += len(before.keys() & after.keys()) and max(0, max(s for _, s in before) + 1 - self.newest)
        self.newest = max(checkpoints(self.run), default=0)
        if (self.run / "digest.0").exists():
            self.complete += 1
            shutil.rmtree(self.run)
            self.begin()

    def size(self) -> int:
        path = self.log.with_name(f"{self.log.name}.0")
        return path.stat().st_size if path.exists() else 0

    def strike(self, process: "subprocess.Popen[bytes]") -> str:
        """Does something bad to a random member of the run; returns what."""
        members = alive(self.token)
        deed = self.random.choice(DEEDS)
        wanted = "" if deed == "INT" else self.random.choice(["", *map(str, range(RANKS))])
        victims = [pid for pid, rank in members.items() if rank == wanted]
        if not victims or (wanted == "" and deed == "STOP+KILL"):
            victims, wanted = [process.pid], ""
        name = f"{deed} {f'rank {wanted}' if wanted else 'launcher'}"
        for number, word in enumerate(deed.split("+")):
            if number:
                time.sleep(self.random.uniform(0, 1.0))
            with contextlib.suppress(ProcessLookupError):
                os.kill(victims[0], getattr(signal, f"SIG{word}"))
        self.counts[name] += 1
        return name

    def check(self, code: int, deed: str, early: bool, said: str) -> None:
        deadline = time.monotonic() + 3
        while alive(self.token) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not alive(self.token), f"{deed} left processes behind: {alive(self.token)}"
        clean = code == 0
        complete = all((self.run / f"digest.{rank}").exists() for rank in range(RANKS))
        # Before training begins and when it is over, a signal ends a process as it ends any other.
        if deed.startswith(("TERM", "USR1")) and not early and not complete:
            assert clean, f"{deed} should end the run well, got exit code {code}:\n{said}"
        found, (expected, digests) = records(self.log), self.references[self.lag]
        wrong = [key for key, entries in found.items() if entries != expected[key]]
        assert not wrong, f"after {deed}: (rank, step) {wrong[:3]} differ from a run left alone"
        kept = checkpoints(self.run)
        assert max(kept, default=0) >= self.newest, f"after {deed}: checkpoint {self.newest} is lost, there are {kept}"
        assert "damaged" not in said, said
        if clean:
            assert not partial(self.run), f"after {deed}: partial files {partial(self.run)}"
        if complete:
            assert found.keys() == expected.keys(), f"steps are missing: {expected.keys() - found.keys()}"
            assert self.digests(self.run) == digests, "the weights differ from those of a run left alone"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0, help="no cycle begins after this long")
    parser.add_argument("--cycles", type=int, help="at most so many; default: as many as there is time for")
    parser.add_argument("--seed", type=int, default=0, help="of what happens when")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="exafield-soak-"))
    shared = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    began, took = time.monotonic(), []
    soak = Soak(folder, arguments.seed)
    cycles = arguments.cycles if arguments.cycles is not None else sys.maxsize
    while len(took) < cycles and time.monotonic() - began < 60 * arguments.minutes:
        at = time.monotonic()
        try:
            soak.cycle()
        except AssertionError as error:
            sys.exit(f"cycle {len(took) + 1} (seed {arguments.seed}): {error}\nthe run is in {soak.run}")
        took.append(time.monotonic() - at)
        if len(took) % 10 == 0:
            print(f"{len(took)} cycles, {soak.complete} runs complete, {time.monotonic() - began:.0f} s", flush=True)
    if not took:
        sys.exit("there was no time for a single cycle: give more --minutes")
    left = set(os.listdir("/dev/shm")) - shared if shared else set()
    ordered = sorted(took)
    figures = {
        "benchmark": "soak",
        "format": 1,
        "cycles": len(took),
        "lost": 0,
        "runs complete": soak.complete,
        "steps done again": soak.redone,
        "cycle [s]": {"min": ordered[0], "median": ordered[len(took) // 2], "max": ordered[-1]},
        "deeds": dict(sorted(soak.counts.items())),
        "files in /dev/shm more than before": sorted(left),
    }
    for name, value in figures.items():
        print(f"{name:36s} {value}")
    shutil.rmtree(folder)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    if "RANK" in os.environ and MARK in os.environ:
        train(Path(sys.argv[1]), Path(sys.argv[2]), STEPS, lag=int(sys.argv[3]))
    else:
        main()
