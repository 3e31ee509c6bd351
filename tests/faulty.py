"""A rank of the soak's run to which an accident happens at a given step. Started by the launcher."""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from soak import train


def accident(kind: str, on: int, at: int, rank: int, step: int) -> None:
    """Does it to this rank, if it is the one and the time has come."""
    if (rank, step) != (on, at):
        return
    if kind == "raise":
        raise ValueError("the flux capacitor is empty")
    if kind == "limit":  # the kernel lets no file grow beyond this any more
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    elif kind.startswith("fill "):
        fill(Path(kind.removeprefix("fill ")))
    elif kind.startswith("slow "):
        sync, pause = os.fsync, float(kind.removeprefix("slow "))

        def slow(descriptor: int) -> None:
            time.sleep(pause)
            sync(descriptor)

        os.fsync = slow
    else:
        os.kill(os.getpid(), signal.Signals[kind])


def fill(path: Path) -> None:
    """Leaves no room on a file system."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError:
            return


if __name__ == "__main__":
    folder, log, steps, settings = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
    what = settings.pop("accident", None)
    if what is not None:
        settings["accident"] = lambda rank, step: accident(*what, rank, step)
    train(folder, log, steps, **settings)
