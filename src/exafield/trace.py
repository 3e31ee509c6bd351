"""Trace: what happened when, on which rank and lane; opens in Perfetto (ui.perfetto.dev) or chrome://tracing.

Real and modelled runs write the same thing, so their timelines can be laid side by side.
"""

import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

FORMAT = "exafield-trace"
VERSION = 1

# Spans kept in memory before the oldest are dropped: about 100 MB; our choice.
LIMIT = 500_000


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took from `start` to `end` [s] on a lane of a rank; an instant if both are equal."""

    rank: int
    lane: str
    name: str
    start: float
    end: float
    args: Mapping[str, object] = field(default_factory=dict)

    @property
    def duration(self) -> float:
        """end - start [s]."""
        return self.end - self.start


class _Open:
    """A span under way."""

    __slots__ = ("_args", "_lane", "_name", "_start", "_trace")

    def __init__(self, trace: "Trace", lane: str, name: str, args: dict[str, object]) -> None:
        self._trace, self._lane, self._name, self._args = trace, lane, name, args

    def __enter__(self) -> None:
        self._start = self._trace.clock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._trace.add(self._lane, self._name, self._start, self._trace.clock(), **self._args)


_NOTHING: AbstractContextManager[None] = nullcontext()


class Trace:
    """Spans of one rank, or of several after :meth:`merge`. Any thread may add; nothing is kept when disabled.

    Args:
        rank: of the spans added here.
        clock: gives the time [s]. Modelled runs pass their own.
        enabled: if not, adding costs next to nothing.
        offset: what :meth:`merge` adds to this rank's times [s] to bring all ranks on one clock. Default: the
            difference between the wall clock and `clock` for the default clock, else 0. Ranks of one node
            are thus aligned exactly, ranks of several nodes as well as their wall clocks are.
        limit: number of spans kept; the oldest go first.
    """

    def __init__(
        self,
        rank: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        enabled: bool = True,
        *,
        offset: float | None = None,
        limit: int = LIMIT,
    ) -> None:
        if limit < 1:
            raise ValueError(f"a trace must keep at least one span, got limit={limit}; pass enabled=False for none")
        self.rank, self.clock, self.enabled = rank, clock, enabled
        if offset is None:
            offset = time.time() - time.perf_counter() if clock is time.perf_counter else 0.0
        self.offset = offset
        self.dropped = 0
        self._spans: deque[Span] = deque(maxlen=limit)
        self._lock = threading.Lock()

    def span(self, lane: str, name: str, **args: object) -> AbstractContextManager[None]:
        """A context manager: records the time from entering to leaving it, also when left by an exception."""
        return _Open(self, lane, name, args) if self.enabled else _NOTHING

    def add(self, lane: str, name: str, start: float, end: float, **args: object) -> None:
        """Adds a span whose times [s] on this trace's clock are known; `args` is shown beside it."""
        if self.enabled:
            self._append(Span(self.rank, lane, name, start, end, args))

    def instant(self, lane: str, name: str, **args: object) -> None:
        """Adds a moment: now."""
        if self.enabled:
            now = self.clock()
            self._append(Span(self.rank, lane, name, now, now, args))

    def _append(self, span: Span) -> None:
        with self._lock:
            self.dropped += len(self._spans) == self._spans.maxlen
            self._spans.append(span)

    def clear(self) -> None:
        """Forgets all spans."""
        with self._lock:
            self._spans.clear()

    @property
    def spans(self) -> list[Span]:
        """The spans so far, in the order in which they were added."""
        with self._lock:
            return list(self._spans)

    @classmethod
    def merge(cls, traces: Iterable["Trace"]) -> "Trace":
        """One trace of several ranks' spans, all on one clock, by start time."""
        traces = list(traces)
        spans = [
            replace(span, start=span.start + trace.offset, end=span.end + trace.offset)
            for trace in traces
            for span in trace.spans
        ]
        merged = cls(min((t.rank for t in traces), default=0), offset=0.0, limit=max(LIMIT, len(spans)))
        merged.dropped = sum(trace.dropped for trace in traces)
        merged._spans.extend(sorted(spans, key=lambda span: (span.start, -span.end)))
        return merged

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes Chrome's trace-event JSON: a process per rank, a named thread per lane.

        Spans that overlap on a lane without one holding the other go to further threads of the same name,
        since a viewer could not draw them on one. The file appears complete or not at all.
        """
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            partial.write_text(json.dumps(self._document(), default=str, allow_nan=False))
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def _document(self) -> dict[str, object]:
        spans = self.spans
        origin = min((span.start for span in spans), default=0.0)
        events: list[dict[str, object]] = []
        for rank in sorted({span.rank for span in spans}):
            events.append({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}})
            events.append({"ph": "M", "name": "process_sort_index", "pid": rank, "args": {"sort_index": rank}})
        for (rank, lane), thread, members in _threads(spans):
            about = {"ph": "M", "pid": rank, "tid": thread}
            events.append({**about, "name": "thread_name", "args": {"name": lane}})
            events.append({**about, "name": "thread_sort_index", "args": {"sort_index": thread}})
            events.extend(_event(span, thread, origin) for span in members)
        return {
            "traceEvents": events,
            "displayTimeUnit": "ms",
            "otherData": {
                "format": FORMAT,
                "version": VERSION,
                "rank": self.rank,
                "origin": origin,
                "offset": self.offset,
                "dropped": self.dropped,
            },
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Trace":
        """Reads what :meth:`save` wrote; times to within 1 ns of the ones saved.

        Raises:
            ValueError: not such a file, or of a newer version.
        """
        try:
            document = json.loads(Path(path).read_text())
            about = document["otherData"]
            if about["format"] != FORMAT:
                raise KeyError("format")
            if about["version"] <= VERSION:
                return cls._from(document, about)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path} is not a trace written by exafield ({error!r})") from error
        raise ValueError(
            f"{path} has trace format {about['version']}, this exafield reads up to {VERSION}: update exafield"
        )

    @classmethod
    def _from(cls, document: Mapping[str, Any], about: Mapping[str, Any]) -> "Trace":
        events = [event for event in document["traceEvents"] if event["ph"] in "Xi"]
        trace = cls(int(about["rank"]), offset=float(about["offset"]), limit=max(LIMIT, len(events)))
        trace.dropped = int(about["dropped"])
        spans = [_span(event, about["origin"]) for event in events]
        trace._spans.extend(sorted(spans, key=lambda span: (span.start, -span.end)))
        return trace


def _event(span: Span, thread: int, origin: float) -> dict[str, object]:
    # Microseconds with three decimals: nanoseconds, finer than any clock here.
    event: dict[str, object] = {
        "name": span.name,
        "cat": span.lane,
        "pid": span.rank,
        "tid": thread,
        "ts": round((span.start - origin) * 1e6, 3),
        "args": {key: _plain(value) for key, value in span.args.items()},
    }
    if span.end == span.start:
        return {**event, "ph": "i", "s": "t"}
    return {**event, "ph": "X", "dur": round((span.end - span.start) * 1e6, 3)}


def _plain(value: object) -> object:
    # JSON has no NaN and no infinity, and viewers refuse a file that has.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _span(event: dict[str, Any], origin: float) -> Span:
    start = float(origin) + event["ts"] * 1e-6
    end = start + event["dur"] * 1e-6 if event["ph"] == "X" else start
    if not math.isfinite(start) or not math.isfinite(end):
        raise ValueError("a time that is not finite")
    return Span(int(event["pid"]), str(event["cat"]), str(event["name"]), start, end, dict(event["args"]))


def _threads(spans: list[Span]) -> Iterable[tuple[tuple[int, str], int, list[Span]]]:
    """Lays each lane's spans on as few threads as leave them nested; yields ((rank, lane), thread, spans)."""
    lanes: dict[tuple[int, str], list[Span]] = {}
    for span in spans:
        lanes.setdefault((span.rank, span.lane), []).append(span)
    counts: dict[int, int] = {}
    for (rank, lane), members in lanes.items():
        stacks: list[list[float]] = []  # for each thread of the lane: the ends of the spans open on it
        rows: list[list[Span]] = []
        for span in sorted(members, key=lambda s: (s.start, -s.end)):
            for stack, row in zip(stacks, rows, strict=True):
                while stack and stack[-1] <= span.start:
                    stack.pop()
                if not stack or span.end <= stack[-1]:
                    stack.append(span.end)
                    row.append(span)
                    break
            else:
                stacks.append([span.end])
                rows.append([span])
        for row in rows:
            counts[rank] = counts.get(rank, 0) + 1
            yield (rank, lane), counts[rank], row
