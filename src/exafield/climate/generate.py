"""Generation: times of a synthetic atmosphere -> files of snapshots with masks -> statistics of the training part."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from exafield.climate.atmosphere import Atmosphere
from exafield.climate.fields import CHANNELS
from exafield.climate.grid import Grid
from exafield.climate.normalisation import Statistics
from exafield.climate.published import file_name, write_snapshot
from exafield.climate.reading import open_snapshots
from exafield.climate.snapshot import on_grid, whole_globe
from exafield.engine import MapEngine
from exafield.engine.local import ProcessEngine
from exafield.store import StoreError, atomic_write, cache_folder, locked

# Raised whenever the same parameters give other fields than before: data made earlier is then made again.
_PHYSICS = 1

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
# Years of the parts, far enough apart that no storm lives in two of them; our choice.
_YEARS: Mapping[Part, tuple[int, int]] = {"train": (1996, 2007), "validation": (2008, 2009), "test": (2010, 2012)}


@dataclass(frozen=True, slots=True)
class Generation:
    """What is generated. The defaults are those of the laptop preset; our choice.

    Args:
        latitudes, longitudes: of the global grid, poles included; 768 and 1152 in the published set.
        train, validation, test: how many snapshots, at random times of years that the parts do not share.
        seed: of the atmosphere and of the times.
    """

    latitudes: int = 144
    longitudes: int = 216
    train: int = 320
    validation: int = 24
    test: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        if self.latitudes < 16 or self.longitudes < 16:
            raise ValueError(
                f"generation: a grid needs 16 x 16 points or more, got {self.latitudes} x {self.longitudes}"
            )
        for part in PARTS:
            if getattr(self, part) < 1:
                raise ValueError(f"generation: {part} must be 1 snapshot or more, got {getattr(self, part)}")
        if self.seed < 0:
            raise ValueError(f"generation: seed must be 0 or more, got {self.seed}")

    def attributes(self) -> dict[str, Any]:
        """What a folder made with these parameters says of itself."""
        return {"format": "exafield-climate", "version": 1, "physics": _PHYSICS, **asdict(self)}

    def times(self, part: Part) -> list[np.datetime64]:
        """Of the snapshots of a part, rising; multiples of three hours, as in the published set."""
        first, last = _YEARS[part]
        start = np.datetime64(f"{first}-01-01T00", "h")
        steps = int((np.datetime64(f"{last + 1}-01-01T00", "h") - start) / np.timedelta64(3, "h"))
        chosen = np.random.default_rng((self.seed, PARTS.index(part))).choice(
            steps, min(getattr(self, part), steps), replace=False
        )
        return [start + np.timedelta64(3 * int(step), "h") for step in np.sort(chosen)]


def default_path(generation: Generation) -> Path:
    """Where the snapshots of these parameters are kept unless another place is named."""
    text = json.dumps(generation.attributes(), sort_keys=True)
    return cache_folder() / f"climate-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@lru_cache(maxsize=1)
def _atmosphere(latitudes: int, longitudes: int, seed: int) -> Atmosphere:
    # One for each process: what it knows of its grid takes longer to make than a snapshot.
    return Atmosphere(whole_globe(latitudes, longitudes).grid, seed)


def make(task: tuple[str, str, Generation]) -> str:
    """Writes the snapshot of one time; a plain function of its argument, for any engine.

    Args:
        task: path of the file, time, and what is generated.
    """
    path, time, g = task
    moment = np.datetime64(time)
    values, labels = _atmosphere(g.latitudes, g.longitudes, g.seed).snapshot(moment)
    grid: Grid = _atmosphere(g.latitudes, g.longitudes, g.seed).grid
    write_snapshot(path, on_grid(values, tuple(CHANNELS), grid, moment, labels), "gordon-bell")
    return path


def generate(path: str | Path, generation: Generation, engine: MapEngine | None = None) -> int:
    """Makes all snapshots that are not there yet; returns how many it made.

    Each is a file in the layout of the published set, in a folder for its part. Workers write them: the folder must be
    one that they see. A stopped run is gone on with.

    Args:
        path: of the folder.
        engine: that maps; None: processes on this machine.
    Raises:
        StoreError: the folder was made with other parameters, or cannot be written.
        EngineError: a snapshot could not be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror}") from error
    with locked(folder):
        _claim(folder, generation)
        tasks = [
            (str(folder.absolute() / part / file_name(time)), str(time), generation)
            for part in PARTS
            for time in generation.times(part)
        ]
        for part in PARTS:
            (folder / part).mkdir(exist_ok=True)
        done = {index for index, task in enumerate(tasks) if Path(task[0]).exists()}
        for _ in (engine or ProcessEngine()).map(make, tasks, done=done):
            pass
        statistics = folder / "statistics.json"
        if not statistics.exists():
            Statistics.gather(open_snapshots(folder / "train", labels=None)).save(statistics)
    return len(tasks) - len(done)


def series(
    folder: str | Path,
    start: np.datetime64,
    count: int,
    *,
    hours: int = 3,
    latitudes: int = 144,
    longitudes: int = 216,
    seed: int = 0,
    engine: MapEngine | None = None,
) -> int:
    """Makes the weather of some days, one file for each time, to follow storms in; returns how many it made.

    Args:
        folder: made if it is not there; files that are there are kept.
        start: first time, UTC.
        count: of times.
        hours: between them.
        latitudes, longitudes: of the global grid.
        seed: of the atmosphere.
        engine: that maps; None: processes on this machine.
    Raises:
        StoreError: the folder cannot be made, or was made with other parameters.
        ValueError: a number is out of range.
        EngineError: a snapshot could not be made.
    """
    if count < 1 or hours < 1:
        raise ValueError(f"a series needs 1 time or more, 1 hour or more apart, got {count} and {hours}")
    # Parts of a data set are of no meaning here; what a snapshot depends on is.
    weather = Generation(latitudes=latitudes, longitudes=longitudes, train=1, validation=1, test=1, seed=seed)
    folder = Path(folder)
    times = [start.astype("datetime64[h]") + np.timedelta64(hours * step, "h") for step in range(count)]
    tasks = [(str(folder.absolute() / file_name(time)), str(time), weather) for time in times]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror}") from error
    with locked(folder):
        _claim(folder, weather)
        done = {index for index, task in enumerate(tasks) if Path(task[0]).exists()}
        for _ in (engine or ProcessEngine()).map(make, tasks, done=done):
            pass
    return len(tasks) - len(done)


def _claim(folder: Path, generation: Generation) -> None:
    """Checks that the folder is of this generation; says so in it if it is new."""
    told = folder / "generation.json"
    wanted = generation.attributes()
    if told.exists():
        try:
            have = json.loads(told.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StoreError(f"{told} is damaged: remove the folder to make it anew") from error
        if have != wanted:
            differing = [key for key in sorted({*have, *wanted}) if have.get(key) != wanted.get(key)]
            raise StoreError(f"{folder} was made with other parameters ({', '.join(differing)}): choose another folder")
    else:
        atomic_write(told, json.dumps(wanted, indent=1).encode())
