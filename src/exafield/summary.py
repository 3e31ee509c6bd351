"""Summary: what a trace says in numbers: who waited for whom, and which communication hid behind what."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from exafield.trace import Span, Trace

# What a trainer does, in the order in which it is told. Messages of batch norms over all ranks interrupt forward and
# backward, and are told apart from these.
NORMS = "batch norms"
PHASES = ("forward", "backward", NORMS, "finish", "optimiser", "data wait", "evaluate", "checkpoint")
_REDUCE, _AGREE, _READY, _REDUCER = "reduce ", "agree ", "ready ", "reducer "


@dataclass(frozen=True, slots=True)
class Communication:
    """The reductions of one player, as means over ranks; or those of all batch norms that go over ranks.

    Args:
        player: whose gradients; `NORMS` for sums of batch norms.
        total: time per step with a reduction under way [s].
        exposed: part of it inside the trainer's `finish`, where nothing else is done, and all of it for batch norms;
            None if the trace does not hold what the trainer did.
        waited: mean time from a group's being ready to its being launched [s].
        groups, rounds, bytes: launched, negotiated and handed over per step.
    """

    player: str
    total: float
    exposed: float | None
    waited: float
    groups: float
    rounds: float
    bytes: float

    @property
    def hidden(self) -> float | None:
        """Share of the communication that is behind backward or other work; None if it cannot be told."""
        return None if self.exposed is None or not self.total else 1.0 - self.exposed / self.total

    @property
    def where(self) -> str:
        """Where it is exposed."""
        return "in forward and backward" if self.player == NORMS else "in finish()"


@dataclass(frozen=True, slots=True)
class Straggler:
    """The rank the others wait for.

    Args:
        rank: the one that comes last most often.
        share: of the steps in which it does.
        steps: looked at.
        lead: by how much the others come earlier than the last in a step, mean over them, median over steps [s].
    """

    rank: int
    share: float
    steps: int
    lead: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What a trace says.

    Args:
        ranks: with anything in it.
        duration: from the first to the last thing in it [s].
        dropped: spans that went before the trace was written; all figures are of what is left.
        steps: whole steps on the rank that has most of them.
        step_time: median over steps and ranks [s]; None without steps.
        phases: mean over ranks of the time the trainer spent in each [s]; forward and backward without the messages
            of batch norms.
        compute: share of the steps' time in forward and backward; None without steps.
        communication: of each player.
        straggler: None with fewer than two ranks or no step that two of them share.
        events: changes on the way, by the time since the first thing in the trace [s].
    """

    ranks: tuple[int, ...]
    duration: float
    dropped: int
    steps: int
    step_time: float | None
    phases: Mapping[str, float]
    compute: float | None
    communication: tuple[Communication, ...]
    straggler: Straggler | None
    events: tuple[tuple[float, str, str], ...]

    def lines(self) -> list[str]:
        """A table to print."""
        said = [f"ranks          {len(self.ranks)} ({_some(self.ranks)}), {_time(self.duration)} in all"]
        if self.dropped:
            said.append(f"dropped        the oldest {self.dropped} spans: the figures are of what is left")
        if self.step_time is not None:
            said.append(f"steps          {self.steps}, {_time(self.step_time)} each (median)")
        if self.phases:
            said += ["", "the trainer's time, mean over ranks"]
            said += [f"  {name:12s} {_time(t):>10s}  {_share(t, self.duration):>6s}" for name, t in self.phases.items()]
            rest = self.duration - sum(self.phases.values())
            said.append(f"  {'other':12s} {_time(rest):>10s}  {_share(rest, self.duration):>6s}")
        for c in self.communication:
            said += ["", f"{'sums' if c.player == NORMS else 'reductions'} of {c.player}, mean over ranks and steps"]
            said.append(f"  under way    {_time(c.total):>10s}")
            if c.exposed is not None and c.hidden is not None:
                said.append(
                    f"  hidden       {_time(c.total - c.exposed):>10s}  {100 * c.hidden:5.1f} %  behind other work"
                )
                said.append(f"  exposed      {_time(c.exposed):>10s}  {100 - 100 * c.hidden:5.1f} %  {c.where}")
            if c.player == NORMS:
                said.append(f"  messages     {c.groups:10.1f}")
            else:
                said.append(f"  groups       {c.groups:10.1f}  ready for {_time(c.waited)} before they left")
                said.append(f"  rounds       {c.rounds:10.1f}  of negotiation")
            said.append(f"  bytes        {size(c.bytes):>10s}")
        if self.straggler is not None:
            s = self.straggler
            said += ["", f"slowest        rank {s.rank} comes last in {100 * s.share:.0f} % of {s.steps} steps"]
            said.append(f"               in a step the others wait {_time(s.lead)} for the last one (median)")
        if self.events:
            said += ["", "changes"]
            said += [f"  {at:9.3f} s  {what}{f': {why}' if why else ''}" for at, what, why in self.events[-_EVENTS:]]
            if len(self.events) > _EVENTS:
                said.append(f"  and {len(self.events) - _EVENTS} before")
        return said


# Changes listed: the last ones say what was settled on; our choice.
_EVENTS = 12


def summarise(trace: Trace) -> Summary:
    """Adds up a merged trace, of one rank or many.

    Times of different ranks are compared by how long each was busy within a step, so clocks need not agree.
    """
    lanes = _by_lane(_whole(trace.spans) if trace.dropped else trace.spans)
    spans = [span for members in lanes.values() for span in members]
    if not spans:
        return Summary((), 0.0, trace.dropped, 0, None, {}, None, (), None, ())
    begin = min(span.start for span in spans)
    ranks = sorted({span.rank for span in spans})
    trainers = {rank: lanes[rank, "trainer"] for rank in ranks if (rank, "trainer") in lanes}
    steps = {rank: _steps(spans) for rank, spans in trainers.items()}
    times = [span.duration for members in steps.values() for span in members.values()]
    waits = {rank: lanes.get((rank, _REDUCE + NORMS), ()) for rank in ranks}
    spent = [_phases(members, waits[rank]) for rank, members in trainers.items()]
    phases = {name: mean(t.get(name, 0.0) for t in spent) for name in PHASES if any(name in t for t in spent)}
    computing = sum(t.get("forward", 0.0) + t.get("backward", 0.0) for t in spent)
    return Summary(
        tuple(ranks),
        max(span.end for span in spans) - begin,
        trace.dropped,
        max((len(numbers) for numbers in steps.values()), default=0),
        median(times) if times else None,
        phases,
        computing / sum(times) if sum(times) else None,
        tuple(_communication(player, lanes, steps) for player in _players(lanes)),
        _straggler(trainers, steps, waits),
        _events(lanes, begin),
    )


_Lanes = Mapping[tuple[int, str], Sequence[Span]]


def _by_lane(spans: Iterable[Span]) -> dict[tuple[int, str], list[Span]]:
    lanes: dict[tuple[int, str], list[Span]] = {}
    for span in spans:
        lanes.setdefault((span.rank, span.lane), []).append(span)
    return lanes


def _whole(spans: Sequence[Span]) -> list[Span]:
    """What is left of a trace without the step that the oldest spans, which were dropped, belonged to.

    Spans are dropped in the order of their ends, so what began before the oldest end may lack what was inside.
    """
    first: dict[int, float] = {}
    for span in spans:
        first[span.rank] = min(span.end, first.get(span.rank, span.end))
    kept = [span for span in spans if span.start >= first[span.rank]]
    begin: dict[int, float] = {}
    for span in kept:
        if span.name == "step":
            begin[span.rank] = min(span.start, begin.get(span.rank, span.start))
    return [span for span in kept if span.start >= begin.get(span.rank, span.start)]


def _phases(spans: Sequence[Span], norms: Iterable[Span]) -> dict[str, float]:
    found: dict[str, float] = {}
    for span in spans:
        if span.name in PHASES:
            found[span.name] = found.get(span.name, 0.0) + span.duration
    messages = _union(map(_interval, norms))
    for name in ("forward", "backward") if messages else ():
        inside = sum(_covered(messages, _union(_interval(s) for s in spans if s.name == name)))
        found[name] = found.get(name, 0.0) - inside
        found[NORMS] = found.get(NORMS, 0.0) + inside
    return found


def _steps(spans: Iterable[Span]) -> dict[str, Span]:
    return {str(span.args.get("number")): span for span in spans if span.name == "step"}


def _players(lanes: _Lanes) -> list[str]:
    prefixes = (_REDUCE, _READY, _AGREE)
    return sorted({lane.removeprefix(p) for _, lane in lanes for p in prefixes if lane.startswith(p)})


def _communication(player: str, lanes: _Lanes, steps: Mapping[int, Mapping[str, Span]]) -> Communication:
    ranks = sorted({rank for rank, lane in lanes if lane == _REDUCE + player})
    totals, exposed, told = [], [], True
    waits = [s.duration for (_, lane), members in lanes.items() if lane == _READY + player for s in members]
    groups, rounds, handed = [], [], []
    for rank in ranks:
        reduced = lanes[rank, _REDUCE + player]
        finishes = [
            _interval(s)
            for s in lanes.get((rank, "trainer"), ())
            if s.name == "finish" and s.args.get("player") == player
        ]
        count = len(steps.get(rank, ())) or len(finishes) or 1
        under_way = _union(map(_interval, reduced))
        if player == NORMS:
            finishes = under_way
        totals.append(sum(end - start for start, end in under_way) / count)
        told = told and bool(finishes)
        exposed.append(sum(_covered(under_way, _union(finishes))) / count)
        groups.append(len(reduced) / count)
        rounds.append(len(lanes.get((rank, _AGREE + player), ())) / count)
        handed.append(sum(_bytes(s) for s in reduced) / count)
    if not ranks:
        return Communication(player, 0.0, None, _mean(waits), 0.0, 0.0, 0.0)
    return Communication(
        player, mean(totals), mean(exposed) if told else None, _mean(waits), mean(groups), mean(rounds), mean(handed)
    )


def _bytes(span: Span) -> float:
    value = span.args.get("bytes")
    return float(value) if isinstance(value, int | float) else 0.0


def _mean(values: Sequence[float]) -> float:
    return mean(values) if values else 0.0


_Interval = tuple[float, float]


def _interval(span: Span) -> _Interval:
    return span.start, span.end


def _union(intervals: Iterable[_Interval]) -> list[_Interval]:
    """The same points as disjoint intervals, in order."""
    merged: list[_Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _straggler(
    trainers: Mapping[int, Sequence[Span]],
    steps: Mapping[int, Mapping[str, Span]],
    norms: Mapping[int, Iterable[Span]],
) -> Straggler | None:
    """Compares how long ranks were busy in each step: all of it less their waiting in finish() and for batch norms."""
    busy: dict[str, dict[int, float]] = {}
    for rank, members in trainers.items():
        finishes = _union(map(_interval, [*(s for s in members if s.name == "finish"), *norms[rank]]))
        ordered = sorted(steps[rank].items(), key=lambda item: item[1].start)
        waited = _covered(finishes, [_interval(s) for _, s in ordered])
        for (number, step), wait in zip(ordered, waited, strict=True):
            busy.setdefault(number, {})[rank] = step.duration - wait
    shared = [times for times in busy.values() if len(times) > 1]
    if not shared:
        return None
    last = Counter(max(times, key=times.__getitem__) for times in shared)
    rank, count = last.most_common(1)[0]
    leads = [max(times.values()) - (sum(times.values()) - max(times.values())) / (len(times) - 1) for times in shared]
    return Straggler(rank, count / len(shared), len(shared), median(leads))


def _covered(parts: Sequence[_Interval], wholes: Sequence[_Interval]) -> list[float]:
    """How much of each of `wholes` is covered by `parts`; both are disjoint and in order."""
    found, first = [], 0
    for start, end in wholes:
        while first < len(parts) and parts[first][1] <= start:
            first += 1
        covered, i = 0.0, first
        while i < len(parts) and parts[i][0] < end:
            covered += min(end, parts[i][1]) - max(start, parts[i][0])
            i += 1
        found.append(covered)
    return found


def _events(lanes: _Lanes, begin: float) -> tuple[tuple[float, str, str], ...]:
    """Instants of the reducers. All ranks of a player change alike, so those of its first rank tell them."""
    found = []
    for lane in sorted({lane for _, lane in lanes if lane.startswith(_REDUCER)}):
        rank = min(rank for rank, other in lanes if other == lane)
        player = lane.removeprefix(_REDUCER)
        found += [(s.start - begin, f"{player}, {s.name}", str(s.args.get("why", ""))) for s in lanes[rank, lane]]
    return tuple(sorted(found))


# ---- in words ----


def _some(numbers: Sequence[int]) -> str:
    if len(numbers) <= 8:
        return ", ".join(map(str, numbers))
    return f"{numbers[0]} to {numbers[-1]}"


def _time(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if abs(seconds) * factor >= 1.0:
            return f"{seconds * factor:.4g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def size(number: float) -> str:
    """Bytes with a decimal prefix."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.4g} {unit}"
    return f"{number:.0f} B"
