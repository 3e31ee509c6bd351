"""Contents: what a run folder holds, as far as it is there and can be read."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from exafield import provenance, runfile
from exafield.page.quantity import number
from exafield.report import read_metrics
from exafield.run import Run
from exafield.trace import Trace
from exafield.tracefile import load_trace

# A page is made at the end of a run only from a trace that is read in a few seconds [bytes]; our choice.
_QUICK = 50_000_000
_T = TypeVar("_T")


class PageError(RuntimeError):
    """There is no run to report on, or two that cannot be compared; says what to do."""


@dataclass(frozen=True)
class Contents:
    """What is left of a run.

    Args:
        folder: of the run.
        run, settings: of the run, and the text they were read from; None if they cannot be read.
        records: of metrics, see :func:`exafield.report.read_metrics`.
        result: of a run that is complete; empty if it is not.
        sessions: see :func:`exafield.provenance.sessions`.
        trace: of all ranks, None if there is none.
        pictures: files.
        unreadable: for each part that cannot be read why, by its file's name.
    """

    folder: Path
    run: Run | None
    settings: str | None
    records: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any]
    sessions: Sequence[Mapping[str, Any]]
    trace: Trace | None
    pictures: Sequence[Path]
    unreadable: Mapping[str, str]

    @property
    def problem(self) -> str:
        """The question's name, or the folder's if that is not known."""
        return self.run.problem.name if self.run is not None else self.folder.resolve().name

    @property
    def complete(self) -> bool:
        """Whether the run came to its end."""
        last = self.sessions[-1].get("outcome") if self.sessions else None
        return bool(self.result) and last in (None, "complete")

    @property
    def steps(self) -> int | None:
        """Steps of training."""
        told = [self.result.get("steps"), *(s.get("steps") for s in reversed(self.sessions))]
        told += [record["step"] for record in self.records[-1:]]
        return next((int(n) for n in map(number, told) if math.isfinite(n)), None)

    @property
    def last(self) -> Mapping[str, Any]:
        """The last session; empty if none is recorded."""
        return self.sessions[-1] if self.sessions else {}

    @property
    def began(self) -> float:
        """When the last session began [s since 1970]; NaN if that is not known."""
        return _moment(self.last.get("started"))

    def trained(self, kind: str = "train") -> Sequence[Mapping[str, Any]]:
        """The records of one kind, in order."""
        return [record for record in self.records if record["kind"] == kind]

    def during(self, session: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """The records of training in a session."""
        begin, end = _moment(session.get("started")), _moment(session.get("ended"))
        until = end + 1.0 if math.isfinite(end) else math.inf  # moments are whole seconds
        return [record for record in self.trained() if begin <= number(record.get("time")) <= until]


def _moment(text: object) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError):
        return math.nan


def read(folder: Path, *, quick: bool = False) -> Contents:
    """Reads a run folder. What is damaged is left out, and told in `unreadable`.

    Args:
        quick: leave out a trace that takes long to read.
    Raises:
        PageError: there is no such folder, or it is no run folder.
    """
    if not folder.is_dir():
        raise PageError(f"{folder}: there is no such run folder")
    settings, metrics = folder / "run.yaml", folder / "metrics.jsonl"
    if not settings.exists() and not metrics.exists():
        raise PageError(f"{folder} is no run folder: it holds neither run.yaml nor metrics.jsonl")
    unreadable: dict[str, str] = {}

    def attempt(name: str, act: Callable[[Path], _T], default: _T) -> _T:
        path = folder / name
        try:
            return act(path)
        except FileNotFoundError:
            return default
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            unreadable[name] = str(error) if str(path) in str(error) else f"{path}: cannot be read ({error!r})"
            return default

    return Contents(
        folder,
        attempt("run.yaml", _run, None),
        attempt("run.yaml", lambda path: path.read_text(encoding="utf-8", errors="replace"), None),
        attempt("metrics.jsonl", read_metrics, []),
        attempt("result.json", _result, {}),
        attempt(provenance.NAME, provenance.sessions, []),
        attempt("trace.json", lambda path: _trace(path, quick), None),
        sorted(folder.glob("*.png")),
        unreadable,
    )


def _run(path: Path) -> Run | None:
    return runfile.load(path) if path.exists() else None


def _result(path: Path) -> dict[str, Any]:
    read = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(read, dict) or read.get("format") != "exafield-result":
        raise ValueError(f"{path} is no result written by exafield; remove it if it is damaged")
    if number(read.get("version")) > 1:
        raise ValueError(f"{path} has result format {read['version']}, this exafield reads up to 1: update exafield")
    return read


def _trace(path: Path, quick: bool) -> Trace | None:
    files = [part for part in (path, *path.parent.glob("trace.rank*.json")) if part.exists()]
    size = sum(file.stat().st_size for file in files)
    if quick and size > _QUICK:
        raise ValueError(
            f"{path} has {size / 1e6:.0f} MB and was left out at the end of the run: exafield report {path.parent} "
            "reads it"
        )
    return load_trace(path.parent) if files else None
