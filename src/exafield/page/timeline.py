"""Timeline: what every rank did in a typical step, as SVG."""

from collections.abc import Sequence
from statistics import median

from exafield.page.curves import ticks
from exafield.page.markup import Markup, element, join
from exafield.summary import NORMS
from exafield.trace import Span, Trace

_WIDTH, _LEFT, _ROW, _GAP = 960, 74, 17, 12
# Ranks shown, and rows for the groups of a rank that are under way at once; our choice.
_RANKS, _LANES = 8, 6
# What a trainer does in a step: class in the style sheet, and in words.
PHASES = {
    "forward": ("p-forward", "forward"),
    "backward": ("p-backward", "backward"),
    "optimiser": ("p-optimiser", "optimiser"),
    "finish": ("p-finish", "waiting in finish()"),
    NORMS: ("p-norms", "waiting for batch norms"),
    "data wait": ("p-data", "waiting for data"),
    "other": ("p-other", "other"),
}
_GROUP = ("p-group", "group of gradients, or sums of batch norms, launched to done")
_REDUCE = "reduce "


def timeline(trace: Trace) -> Markup | None:
    """Two typical steps on the first ranks; None if the trace holds no step.

    Below what the trainer does stand the groups of gradients, each from launched to done.
    """
    numbers = _typical(trace.spans)
    if not numbers:
        return None
    steps = [s for s in trace.spans if s.name == "step" and s.lane == "trainer" and s.args.get("number") in numbers]
    ranks = sorted({s.rank for s in steps})
    begin, end = min(s.start for s in steps), max(s.end for s in steps)
    if not begin < end:
        return None
    rows: list[Markup] = []
    y = 8.0
    for rank in ranks[:_RANKS]:
        inside = [s for s in trace.spans if s.rank == rank and s.end > begin and s.start < end]
        phases = [s for s in inside if s.lane == "trainer" and s.name in PHASES]
        groups = _stacked([s for s in inside if s.lane.startswith(_REDUCE)])
        rows.append(element("text", f"rank {rank}", x=_LEFT - 10, y=f"{y + 12:.1f}", text_anchor="end"))
        rows += [_bar(s, y, begin, end, PHASES[s.name][0]) for s in phases]
        y += _ROW
        for lane in groups[:_LANES]:
            rows += [_bar(s, y, begin, end, _GROUP[0], 0.6) for s in lane]
            y += _ROW * 0.7
        y += _GAP
    rows.append(_axis(y, end - begin))
    svg = element("svg", *rows, viewBox=f"0 0 {_WIDTH} {y + 22:.0f}", role="img", aria_label="timeline of two steps")
    keys = (
        key(css, said)
        for css, said in (*(pair for name, pair in PHASES.items() if name not in ("other", NORMS)), _GROUP)
    )
    said = f"steps {' and '.join(map(str, numbers))}"
    if len(ranks) > _RANKS:
        said += f", the first {_RANKS} of {len(ranks)} ranks"
    return element(
        "figure",
        element("figcaption", said, element("span", *keys, class_="legend")),
        element("div", svg, class_="scroll wide"),
    )


def key(css: str, said: str) -> Markup:
    """An entry of a legend."""
    return element("span", element("i", class_=f"key {css}"), said, class_="entry")


def _typical(spans: Sequence[Span]) -> list[int]:
    """The numbers of two steps in a row, of those that most ranks have, that are nearest to the median duration."""
    found: dict[int, list[float]] = {}
    for span in spans:
        number = span.args.get("number")
        if span.name == "step" and span.lane == "trainer" and isinstance(number, int):
            found.setdefault(number, []).append(span.duration)
    most = max((len(times) for times in found.values()), default=0)
    longest = {number: max(times) for number, times in found.items() if len(times) == most}
    if not longest:
        return []
    middle = median(longest.values())
    off = {number: abs(time - middle) for number, time in longest.items()}
    pairs = [number for number in off if number + 1 in off]
    if not pairs:
        return [min(off, key=lambda number: (off[number], number))]
    first = min(pairs, key=lambda number: (off[number] + off[number + 1], number))
    return [first, first + 1]


def _stacked(spans: Sequence[Span]) -> list[list[Span]]:
    """In as few rows as they need so that none covers another."""
    rows: list[list[Span]] = []
    for span in sorted(spans, key=lambda s: s.start):
        row = next((row for row in rows if row[-1].end <= span.start), None)
        if row is None:
            rows.append([span])
        else:
            row.append(span)
    return rows


def _bar(span: Span, y: float, begin: float, end: float, css: str, height: float = 1.0) -> Markup:
    scale = (_WIDTH - _LEFT - 8) / (end - begin)
    start, stop = max(span.start, begin), min(span.end, end)
    title = element("title", f"{span.name}: {1e3 * span.duration:.3g} ms")
    return element(
        "rect",
        title,
        x=f"{_LEFT + (start - begin) * scale:.2f}",
        y=f"{y:.1f}",
        width=f"{max((stop - start) * scale, 0.4):.2f}",
        height=f"{(_ROW - 2) * height:.1f}",
        class_=css,
    )


def _axis(y: float, duration: float) -> Markup:
    """The time since the steps began [ms]."""
    scale = (_WIDTH - _LEFT - 8) / (1e3 * duration)
    at = ticks(0.0, 1e3 * duration, False)
    texts = (
        element(
            "text",
            f"{tick:.6g}{' ms' if tick == at[-1] else ''}",
            x=f"{_LEFT + tick * scale:.1f}",
            y=f"{y + 15:.1f}",
            text_anchor="middle" if tick * scale < _WIDTH - _LEFT - 40 else "end",
        )
        for tick in at
    )
    line = element("line", x1=_LEFT, x2=_WIDTH - 8, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid")
    return join(line, *texts)
