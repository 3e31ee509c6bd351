"""Trace: who did what when, for a training run, a task graph or a modelled machine alike.

Saved as Chrome trace events, which Perfetto (ui.perfetto.dev) and chrome://tracing open.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Span:
    """Something that lasted from `start` to `end` [s]; a moment if both are equal.

    Args:
        rank: who.
        lane: which of its activities, such as "compute" or "reduce"; one line in the picture.
        name: what.
        args: further figures, such as bytes.
    """

    rank: int
    lane: str
    name: str
    start: float
    end: float
    args: Mapping[str, object] = field(default_factory=dict)


class Trace:
    """Collects spans of one rank (or, after :meth:`merge`, of several). Safe to use from any thread.

    Args:
        rank: whose spans these are.
        clock: seconds from an arbitrary start.
        enabled: a trace that is off costs a call and keeps nothing.
    """

    def __init__(self, rank: int = 0, clock: Callable[[], float] = time.perf_counter, enabled: bool = True) -> None:
        self.rank, self.clock, self.enabled = rank, clock, enabled
        self._spans: list[Span] = []
        self._lock = threading.Lock()
        # What the clock read when the wall clock read `epoch`: lets ranks be laid over each other.
        self.epoch, self._zero = time.time(), clock()

    @contextmanager
    def span(self, lane: str, name: str, **args: object) -> Iterator[None]:
        """Records the time spent inside, also when it ends by an exception."""
        if not self.enabled:
            yield
            return
        start = self.clock()
        try:
            yield
        finally:
            self.add(lane, name, start, self.clock(), **args)

    def add(self, lane: str, name: str, start: float, end: float, **args: object) -> None:
        """Records a span by its times on this trace's clock [s]."""
        if self.enabled:
            span = Span(self.rank, lane, name, start, end, args)
            with self._lock:
                self._spans.append(span)

    @property
    def spans(self) -> list[Span]:
        """The spans so far, in the order in which they ended."""
        with self._lock:
            return list(self._spans)

    @classmethod
    def merge(cls, traces: Iterable["Trace"]) -> "Trace":
        """One trace of several ranks, on the first one's clock; ranks on different machines are as far apart as
        their wall clocks."""
        first, *others = traces
        merged = cls(first.rank, first.clock)
        merged.epoch, merged._zero = first.epoch, first._zero
        merged._spans = first.spans
        for other in others:
            shift = (other.epoch - other._zero) - (first.epoch - first._zero)
            merged._spans += [Span(s.rank, s.lane, s.name, s.start + shift, s.end + shift, s.args) for s in other.spans]
        return merged

    def save(self, path: str | Path) -> None:
        """Writes Chrome trace events: one process per rank, one named thread per lane, times in microseconds."""
        spans = self.spans
        lanes = {key: number for number, key in enumerate(dict.fromkeys((s.rank, s.lane) for s in spans))}
        events: list[dict[str, object]] = [
            {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": f"rank {rank}"}}
            for rank in dict.fromkeys(s.rank for s in spans)
        ]
        events += [
            {"ph": "M", "name": "thread_name", "pid": rank, "tid": number, "args": {"name": lane}}
            for (rank, lane), number in lanes.items()
        ]
        for s in spans:
            event = {
                "name": s.name,
                "pid": s.rank,
                "tid": lanes[s.rank, s.lane],
                "ts": (s.start - self._zero) * 1e6,
                "args": dict(s.args),
            }
            event |= {"ph": "X", "dur": (s.end - s.start) * 1e6} if s.end > s.start else {"ph": "i", "s": "t"}
            events.append(event)
        document = {
            "traceEvents": events,
            "displayTimeUnit": "ms",
            "otherData": {"exafield_trace": _FORMAT, "rank": self.rank, "epoch": self.epoch},
        }
        Path(path).write_text(json.dumps(document))

    @classmethod
    def load(cls, path: str | Path) -> "Trace":
        """Reads what :meth:`save` wrote; the times count from the trace's own start.

        Raises:
            ValueError: not a trace of this format.
        """
        try:
            document = json.loads(Path(path).read_text())
            about = document["otherData"]
            version = about["exafield_trace"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a trace written by exafield") from error
        if version != _FORMAT:
            raise ValueError(f"{path} is a trace of format {version}; this version reads {_FORMAT}")
        trace = cls(about["rank"])
        trace.epoch, trace._zero = about["epoch"], 0.0
        names = {
            (e["pid"], e["tid"]): e["args"]["name"]
            for e in document["traceEvents"]
            if e["ph"] == "M" and e["name"] == "thread_name"
        }
        for e in document["traceEvents"]:
            if e["ph"] != "M":
                start = e["ts"] / 1e6
                end = start + e.get("dur", 0.0) / 1e6
                trace._spans.append(Span(e["pid"], names[e["pid"], e["tid"]], e["name"], start, end, e["args"]))
        return trace
