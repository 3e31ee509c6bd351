"""Picture: a simulated run as a trace, like that of a real one."""

from collections.abc import Sequence

from exafield.engine.virtual import Load, Step
from exafield.trace import Trace

# Ranks that are shown: our choice.
_SHOWN = 8


def traced(course: Sequence[Step], load: Load, name: str) -> Trace:
    """The trace of some ranks, with the lanes that a trainer and its reducer write.

    Where a few ranks stand for all, these are the slowest of their blocks.
    """
    traces = []
    for rank in range(min(_SHOWN, course[0].start.size)):
        trace = Trace(rank, offset=0.0)
        for number, (step, after) in enumerate(zip(course, [*course[1:], None], strict=True)):
            _step(trace, step, load, number, name, float(step.end[rank] if after is None else after.start[rank]))
        traces.append(trace)
    return Trace.merge(traces)


def _step(trace: Trace, step: Step, load: Load, number: int, name: str, end: float) -> None:
    rank = trace.rank
    start, begin, flushed = (float(times[rank]) for times in (step.start, step.begin, step.flushed))
    # A reduction under way slows both alike, so that what is seen of them is shared out.
    forward = begin + (flushed - begin) * load.forward / max(load.forward + load.backward, 1e-30)
    trace.add("trainer", "step", start, end, number=number)
    for what, since, until in (
        ("data wait", start, begin),
        ("forward", begin, forward),
        ("backward", forward, flushed),
        ("finish", flushed, float(step.end[rank])),
        ("optimiser", float(step.end[rank]), end),
    ):
        if until > since:
            trace.add("trainer", what, since, until)
    for group in step.order:
        launched = float(step.launched[group, rank])
        ready = flushed if load.lag else min(flushed, forward + load.ready[group] * (flushed - forward) / load.backward)
        trace.add(f"ready {name}", f"group {group}", min(ready, launched), launched)
        trace.add(f"reduce {name}", f"group {group}", launched, step.arrived[group])
