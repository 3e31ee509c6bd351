"""What reader processes of tests do. They import this module, which is why it is one."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exafield.climate.conversion import Copy
from exafield.climate.reading import Snapshots
from exafield.climate.snapshot import Axes, Snapshot


@dataclass(frozen=True)
class Logged:
    """Copies, and notes each file that it opened; some files are special."""

    log: str

    def name(self, source: str) -> str:
        return Copy().name(source)

    def __call__(self, source: str, target: str) -> None:
        name = Path(source).name
        with open(self.log, "a") as file:
            file.write(f"{name}\n")
        once = Path(self.log).with_name(f"{name}.seen")
        first = not once.exists()
        once.touch()
        if name.startswith("hangs-once") and first:
            time.sleep(600)
        if name.startswith("dies") and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if name.startswith("kills-rank"):
            os.kill(os.getppid(), signal.SIGKILL)
        if name.startswith("bad"):
            raise OSError("the disk is made of cheese")
        Copy()(source, target)


def stamp(task: int, memory: np.ndarray) -> None:
    """Fills its memory with the task's number."""
    memory[:] = task


class Fragile:
    """Snapshots, one of which ends the process that reads it (by a signal, or never); the first is read slowly."""

    def __init__(self, plain: Snapshots, index: int, how: str) -> None:
        self.plain, self.index, self.how, self.reader = plain, index, how, os.getpid()

    @property
    def channels(self) -> tuple[str, ...]:
        return self.plain.channels

    @property
    def axes(self) -> Axes:
        return self.plain.axes

    def __len__(self) -> int:
        return len(self.plain)

    def locate(self, index: int) -> str:
        return self.plain.locate(index)

    def close(self) -> None:
        self.plain.close()

    def __getitem__(self, index: int) -> Snapshot:
        if index == self.index and os.getpid() != self.reader:
            if self.how == "hangs":
                time.sleep(600)
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 0 and self.how == "dies":
            time.sleep(1)
        return self.plain[index]
