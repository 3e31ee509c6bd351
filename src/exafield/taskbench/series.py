"""Series of sweeps: engines one after the other, each on every graph of an experiment. What is done is kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from exafield.engine import GraphEngine, mpi_job
from exafield.run import RunError
from exafield.store import StoreError, atomic_write
from exafield.taskbench import metg_files, sweep
from exafield.taskbench.experiments import EXPERIMENTS
from exafield.taskbench.flags import GraphFlags
from exafield.taskbench.metg import Sweep

JSON = "metg.json"
_CSV, _THRESHOLDS = "metg.csv", "metg_thresholds.csv"
# All that a series leaves, pictures included.
_RESULTS = (
    JSON, _CSV, _THRESHOLDS, *(f"{name}.png" for name in ("efficiency", "rate", "compare", "thresholds", *EXPERIMENTS)),
    *(f"metg_{name}.png" for name in EXPERIMENTS),
)  # fmt: skip


class Kept:
    """Sweeps, and the files that hold them.

    Args:
        folder: of the files; it is there.
        planned: how many sweeps there are to be.
        say: is told what becomes of them.
    """

    def __init__(self, folder: Path, planned: int, say: Callable[[str], None]) -> None:
        self.sweeps: list[Sweep] = []
        self._folder, self._planned, self._say = folder, planned, say

    def add(self, found: Sweep) -> None:
        """Keeps one more, in the file as well: whatever ends this process, what was measured is there.

        What an earlier series left in the folder goes with the first one, so that nothing there is of another.
        """
        if not self.sweeps:
            for name in _RESULTS:
                with suppress(OSError):
                    (self._folder / name).unlink()
        self.sweeps.append(found)
        write(self._folder / JSON, metg_files.to_json(self.sweeps) + "\n")

    def tables(self) -> None:
        """Writes all files but pictures."""
        write(self._folder / JSON, metg_files.to_json(self.sweeps) + "\n")
        write(self._folder / _CSV, metg_files.to_csv(self.sweeps))
        write(self._folder / _THRESHOLDS, metg_files.thresholds_to_csv(self.sweeps))

    @contextmanager
    def saved(self) -> Iterator[None]:
        """Inside, what ends the series, such as Ctrl-C or an engine that fails, leaves tables of what there is."""
        try:
            yield
        except BaseException:
            if self.sweeps:
                with suppress(RunError):
                    self.tables()
                    self._say(
                        f"broken off: {len(self.sweeps)} of {self._planned} sweeps are in {self._folder}; "
                        f"exafield taskbench compare {self._folder / JSON} draws them"
                    )
            raise


def measure(
    engines: Mapping[str, GraphEngine],
    cases: Mapping[str, Sequence[GraphFlags]],
    kept: Kept,
    *,
    peaks: Mapping[int, float],
    cores: Mapping[str, int],
    budget: float,
    largest: int | None,
    reduce: bool,
    say: Callable[[str], None],
) -> int:
    """Sweeps every engine on every case, and says before each how long the rest may take.

    What cannot be measured is said, and the series goes on with what follows; but a system that fails in an MPI job
    ends it, as ranks may be anywhere then.

    Args:
        engines: by name.
        cases: graphs, by what was varied in them, such as "-radix 3"; "" where nothing was.
        kept: gets the sweeps.
        peaks: by number of cores, see :func:`exafield.taskbench.run.peak`.
        cores: on how many each engine runs; for the others see :func:`exafield.taskbench.sweep.sweep`.
        budget: time for one sweep [s].
    Returns:
        How many could not be measured.
    Raises:
        RunError: a file cannot be written.
        Exception: what ended the only sweep, or one in an MPI job but for RunError and ImportError.
    """
    missing, left = 0, len(engines) * len(cases)
    alone = left == 1
    for number, (name, made) in enumerate(engines.items(), 1):
        for point, (what, graphs) in enumerate(cases.items(), 1):
            say(_ahead(name, number, len(engines), what, point, len(cases), budget * left))
            left -= 1
            try:
                found = sweep.sweep(
                    made, graphs, name=name, peak=peaks[cores[name]], cores=cores[name], budget=budget,
                    largest=largest, reduce=reduce, say=say,
                )  # fmt: skip
            except Exception as error:
                if alone or (mpi_job.driving() and not isinstance(error, (RunError, ImportError))):
                    raise
                text = str(error) or type(error).__name__
                say(text if text.startswith(f"{name}:") else f"{name}: {text}")
                if not isinstance(error, ImportError):
                    missing += 1
                    continue
                missing += 1 + len(cases) - point  # nor can its other points
                left -= len(cases) - point
                break
            kept.add(found)
    return missing


def _ahead(name: str, number: int, engines: int, what: str, point: int, points: int, seconds: float) -> str:
    """What comes next, and how long it and all after it may take [s]; systems start on top of that."""
    place = f"engine {number} of {engines}" if engines > 1 else ""
    varied = f"{what} ({point} of {points})" if what else ""
    where = ", ".join(part for part in (place, varied) if part)
    return f"{name}: {where + ', ' if where else ''}at most about {_rough(seconds)} {'to go' if where else ''}".rstrip()


def _rough(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def write(path: Path, text: str) -> None:
    """Writes a file.

    Raises:
        RunError: it cannot be written.
    """
    try:
        atomic_write(path, text.encode())
    except StoreError as error:
        raise RunError(str(error)) from error
