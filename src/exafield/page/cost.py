"""Cost: what the run's operations, its ranks and their communication came to."""

import math

from exafield.page.markup import Markup, element, join, missing, table
from exafield.page.quantity import duration, rate, share
from exafield.page.speed import COMPUTING, Scaling, Speed, parts
from exafield.page.timeline import PHASES, key, timeline
from exafield.suggestion import counted
from exafield.summary import Communication, Summary, size
from exafield.trace import Trace


def operations(speed: Speed | None) -> Markup:
    """Floating-point operations per second, counted in two ways, beside the measured peak."""
    if speed is None or not math.isfinite(speed.exact + speed.published):
        return missing("There are no metrics of training, or of a version that did not count operations.")
    ranks = speed.ranks or 1
    rows = [
        (said, rate(value, "FLOP/s"), rate(value / ranks, "FLOP/s"), share(speed.of_peak(value)))
        for said, value in (("as published", speed.published), ("exact", speed.exact))
    ]
    if speed.peak is None:
        peak = "The peak was not measured in this run, so that no share of it can be told."
    else:
        rows.append(("measured peak", rate(speed.peak, "FLOP/s"), rate(speed.peak / ranks, "FLOP/s"), ""))
        peak = (
            f"The peak is the best rate of products of {speed.dtype} matrices, measured on "
            f"{'all ranks at the same time' if ranks > 1 else 'the rank'} at the end of training."
        )
    return join(
        table(("operations", "all ranks", "per rank", "share of peak"), rows),
        element(
            "p",
            "As published: three times the forward pass, with convolutions counted by the size of their input, as in "
            "publications on this scale. Exact: every matrix product and convolution that is executed, backward "
            "included. Both are medians over the records of metrics, counted on one step. ",
            peak,
            class_="note",
        ),
    )


def efficiency(summary: Summary | None, against: Scaling | None) -> Markup:
    """Where a step's time goes, and what of it the ranks compute."""
    told: list[Markup] = []
    if against is not None:
        told.append(
            element(
                "p",
                element("b", f"{share(against.efficiency)} against one rank. "),
                f"{against.here:.4g} samples/s per rank on {counted(against.ranks, 'rank')}, {against.alone:.4g} "
                "samples/s on one rank with as many samples per rank (weak scaling).",
            )
        )
    shares = parts(summary) if summary is not None else {}
    if not shares:
        return join(*told, missing("There is no trace that holds steps, so that their parts cannot be told."))
    computing = sum(shares[name] for name in COMPUTING)
    told.append(
        element(
            "p",
            element("b", f"{share(computing)} within the steps. "),
            "The share of a step's time in which a rank computes (forward, backward, optimiser), as a mean over ranks "
            "and steps; in the rest it waits for other ranks or for data. This is an upper limit: communication "
            "behind the computing may slow it down",
            "." if against is not None else ", which a run on one rank can show (exafield report RUN --baseline RUN).",
        )
    )
    bar = (
        element("i", class_=PHASES[name][0], style=f"width:{100 * value:.2f}%")
        for name, value in shares.items()
        if value >= 5e-4
    )
    keys = (key(PHASES[name][0], f"{PHASES[name][1]} {share(value)}") for name, value in shares.items())
    told.append(element("div", element("div", *bar, class_="bar"), element("p", *keys, class_="legend")))
    return join(*told)


def steps(trace: Trace | None) -> Markup:
    """The timeline."""
    drawn = timeline(trace) if trace is not None else None
    return drawn or missing("There is no trace that holds steps: trace.json is missing or cannot be read.")


def communication(summary: Summary | None) -> Markup:
    """Reductions hidden and exposed, the slowest rank, and what was changed on the way."""
    if summary is None or summary.step_time is None:
        return missing("There is no trace that holds steps: trace.json is missing or cannot be read.")
    told = [
        element(
            "p",
            f"{counted(summary.steps, 'step')} of {duration(summary.step_time)} each (median), on "
            f"{counted(len(summary.ranks), 'rank')}.",
            f" The oldest {summary.dropped:,} spans of the trace were dropped." if summary.dropped else None,
        )
    ]
    if any(c.groups for c in summary.communication):
        head = ("per step", *(c.player for c in summary.communication))
        told.append(table(head, _rows(summary.communication)))
    else:
        told.append(element("p", "One rank reduces nothing."))
    if summary.straggler is not None:
        s = summary.straggler
        told.append(
            element(
                "p",
                f"Rank {s.rank} comes last in {100 * s.share:.0f} % of {counted(s.steps, 'step')}; in a step the "
                f"others wait {duration(max(0.0, s.lead))} for the last one (median).",
            )
        )
    told.append(element("h3", "Decisions of the reducer"))
    if summary.events:
        rows: list[tuple[object, ...]] = [(f"{at:.2f} s", what, why) for at, what, why in summary.events]
        told.append(table(("after", "what", "why"), rows))
    else:
        told.append(element("p", "None are recorded in the trace."))
    return join(*told)


def _rows(players: tuple[Communication, ...]) -> list[tuple[object, ...]]:
    def part(c: Communication, hidden: bool) -> str:
        if c.exposed is None or c.hidden is None:
            return "unknown"
        time, of_it = (c.total - c.exposed, c.hidden) if hidden else (c.exposed, 1.0 - c.hidden)
        return f"{duration(max(0.0, time))} ({share(of_it)})"

    return [
        ("reduction under way", *(duration(c.total) for c in players)),
        ("hidden behind other work", *(part(c, True) for c in players)),
        ("exposed", *(part(c, False) for c in players)),
        ("groups", *(f"{c.groups:.1f}" for c in players)),
        ("ready before they left", *(duration(c.waited) for c in players)),
        ("rounds of negotiation", *(f"{c.rounds:.1f}" for c in players)),
        ("handed over", *(size(c.bytes) for c in players)),
    ]
