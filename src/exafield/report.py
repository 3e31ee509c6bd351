"""Reports: what a run says while it goes on, and what it leaves behind to be plotted."""

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Protocol, runtime_checkable

FORMAT = "exafield-metrics"
VERSION = 1
_HEADER = {"format": FORMAT, "version": VERSION}

# Least time between two lines where there is no terminal [s], so that batch logs stay short; our choice.
QUIET = 5.0


@runtime_checkable
class Stream(Protocol):
    """What progress is written to, such as sys.stdout."""

    def write(self, text: str, /) -> int:
        """Takes text."""
        ...

    def flush(self) -> None:
        """Passes it on."""
        ...

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        ...


@runtime_checkable
class Logger(Protocol):
    """Takes what a run records while it goes on, on rank 0: the hook for trackers of experiments."""

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Metrics after a step. `kind` is "train" or "evaluate", or "resume": the run goes on from this step, and
        what was recorded of later ones no longer counts.
        """
        ...

    def picture(self, step: int, path: Path) -> None:
        """A picture was drawn."""
        ...

    def close(self) -> None:
        """Nothing more comes for now."""
        ...


class MetricsLog:
    """Appends records to a file, one JSON object per line; each is on its way to the disk when `write` returns.

    A line cut short by a kill is removed when the file is opened again.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._mend()
        self._file: IO[str] | None = self.path.open("a", encoding="utf-8")
        if self._file.tell() == 0:
            self.write(_HEADER)

    def _mend(self) -> None:
        if self.path.exists():
            with self.path.open("rb+") as file:
                data = file.read()
                if not data.endswith(b"\n"):
                    file.truncate(data.rfind(b"\n") + 1)

    def write(self, record: Mapping[str, object]) -> None:
        """Appends one record. A full disk costs the metrics but not the run: it is warned of once."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({k: _plain(v) for k, v in record.items()}) + "\n")
            self._file.flush()
        except OSError as error:
            warnings.warn(f"{self.path}: metrics are no longer written ({error})", stacklevel=2)
            self.close()

    def close(self) -> None:
        """Closes the file."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                return  # what could not be flushed has been warned of


def _plain(value: object) -> object:
    # JSON has no NaN and no infinity.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a metrics file, in order, without what a resumed run did again.

    Each record has a "kind" ("train" or "evaluate") and a "step". An incomplete last line, left by a kill, is
    passed over.

    Raises:
        ValueError: not such a file, of a newer version, or damaged before its last line.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    complete, rest = lines[:-1], lines[-1]
    if not complete and not json.dumps(_HEADER).startswith(rest):
        complete = [rest]
    records: list[dict[str, Any]] = []
    for number, line in enumerate(complete, start=1):
        try:
            record = json.loads(line)
            if number == 1 and record["format"] != FORMAT:
                raise KeyError("format")
            if not isinstance(record["version" if number == 1 else "step"], int | float):
                raise TypeError(line[:40])
            kind = None if number == 1 else record["kind"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = "is not a metrics file written by exafield" if number == 1 else "is damaged"
            raise ValueError(f"{path}, line {number}: {what} ({error!r})") from error
        if number == 1:
            if record["version"] > VERSION:
                raise ValueError(
                    f"{path} has metrics format {record['version']}, this exafield reads up to {VERSION}: "
                    "update exafield"
                )
        elif kind == "resume":
            records = [r for r in records if r["step"] <= record["step"]]
        else:
            records.append(record)
    return records


def describe(values: Mapping[str, float]) -> str:
    """Metrics on one line: losses and scores with four digits, rates with a prefix."""
    return "  ".join(f"{name} {_number(name, value)}" for name, value in values.items())


def _number(name: str, value: float) -> str:
    if name.endswith("/s"):
        for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e4)):
            if value >= size:
                return f"{value / (1e3 if prefix == 'k' else size):.3g}{prefix}"
    return f"{value:.4g}"


class Report:
    """Progress on a terminal (a bar) or elsewhere (plain lines), and the metrics file. Silent unless `show`.

    Args:
        show: usually whether this is rank 0; the others neither print nor write.
        metrics: path of the metrics file, None for none.
        stream: where progress goes; default: standard output.
        loggers: take the metrics too; one that raises an exception is warned of and left alone from then on.
    """

    def __init__(
        self,
        show: bool = True,
        metrics: str | os.PathLike[str] | None = None,
        stream: Stream | None = None,
        loggers: Sequence[Logger] = (),
    ) -> None:
        self._show = show
        self._stream: Any = stream or sys.stdout
        self._log = MetricsLog(metrics) if show and metrics is not None else None
        self._loggers = list(loggers) if show else []
        self._bar: Any = None
        self._said = -math.inf
        self._total, self._unit, self._began = 0.0, "", 0.0
        self._first = self._done = 0.0

    def begin(self, title: str, done: float, total: float, unit: str) -> None:
        """Training starts at `done` of `total` [unit: "steps" or "s"]."""
        self._total, self._unit, self._began, self._first = total, unit, time.monotonic(), done
        self._done = done
        if self._show and self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TimeElapsedColumn(),
                TextColumn("<"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[said]}"),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task(title, total=total, completed=done, said="")
            self._bar.start()

    def advance(self, done: float) -> None:
        """Training has come to `done` of the total given to :meth:`begin`."""
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=min(done, self._total))

    def train(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of the last steps."""
        self._record("train", step, values)
        if self._bar is not None:
            self._bar.update(self._task, said=f"step {step}  {describe(values)}")
        elif time.monotonic() - self._said >= QUIET:
            self._said = time.monotonic()
            self.say(f"step {step:>6}  {describe(values)}{self._left()}")

    def _left(self) -> str:
        if self._done <= self._first:
            return ""
        rate = (time.monotonic() - self._began) / (self._done - self._first)
        left = max(0.0, self._total - self._done) * (1.0 if self._unit == "s" else rate)
        return f"  left {int(left) // 60}:{int(left) % 60:02d}"

    def evaluate(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics on held-back data."""
        self._record("evaluate", step, values)
        self.say(f"step {step:>6}  evaluation: {describe(values)}")

    def resume(self, step: int, change: str = "", values: Mapping[str, float] = MappingProxyType({})) -> None:
        """The run goes on from a checkpoint: what was recorded after `step` no longer counts.

        Args:
            change: what is different from now on, in words.
            values: to be recorded.
        """
        self._record("resume", step, values)
        self.say(f"resumed at step {step}{change and f', {change}'}")

    def _record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        if self._log is not None:
            self._log.write({"kind": kind, "step": step, "time": round(time.time(), 3), **values})
        self._tell(lambda logger: logger.record(kind, step, values))

    def picture(self, step: int, path: Path) -> None:
        """A picture was drawn of what is learnt after `step`."""
        self._tell(lambda logger: logger.picture(step, path))

    def _tell(self, act: Callable[[Logger], None]) -> None:
        for logger in list(self._loggers):
            try:
                act(logger)
            except Exception as error:  # a run is not lost for what watches it
                warnings.warn(f"{type(logger).__name__} is no longer told: {error!r}", stacklevel=3)
                self._loggers.remove(logger)

    def say(self, text: str) -> None:
        """Prints a line."""
        if not self._show:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def end(self) -> None:
        """Training is over, for now: takes the bar away."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()

    def close(self) -> None:
        """Ends progress, and closes the metrics file and the loggers."""
        self.end()
        self._tell(lambda logger: logger.close())
        if self._log is not None:
            self._log.close()
