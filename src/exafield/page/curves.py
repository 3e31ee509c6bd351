"""Curves: small charts of metrics over steps, as SVG."""

import math
from collections.abc import Callable, Mapping, Sequence

from exafield.page.markup import Markup, element, join, missing

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 460, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 12, 34
# From this ratio of the greatest to the least value on, an axis is logarithmic; our choice.
_DECADES = 20.0
# More points than this cannot be told apart at this width; our choice.
_MOST = 800
# Beyond these, arithmetic on the differences of values fails.
_HUGE, _TINY = 1e300, 1e-290


def chart(title: str, series: Mapping[str, Points], *, zero: bool = False) -> Markup:
    """A chart of one or more curves over steps, with axes in common. Values that are not finite leave a gap.

    Args:
        title: written above, with the unit where there is one.
        series: points of each curve, by name, in order.
        zero: the vertical axis begins at zero; else it is logarithmic where values differ much.
    """
    shown = {name: _thinned([(x, y) for x, y in points if _drawn(x)]) for name, points in series.items()}
    finite = [(x, y) for points in shown.values() for x, y in points if _drawn(y)]
    if not finite:
        return element("figure", element("figcaption", title), missing("no finite values"))
    values = [y for _, y in finite]
    log = not zero and min(values) > 1 / _HUGE and max(values) / min(values) >= _DECADES
    left, right = _room(min(x for x, _ in finite), max(x for x, _ in finite))
    low, high = (math.log10(min(values)), math.log10(max(values))) if log else (min(values), max(values))
    low, high = _room(min(low, 0.0) if zero else low, high)
    low, high = low - (0.0 if zero and low == 0.0 else 0.05 * (high - low)), high + 0.05 * (high - low)

    def place(x: float, y: float) -> tuple[float, float]:
        height = math.log10(y) if log else y
        return (
            _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - (height - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    marks = [_grid_line(place(left, 10**t if log else t)[1], _label(t, log)) for t in ticks(low, high, log)]
    marks += [_foot(place(t, values[0])[0], _label(t, False)) for t in ticks(left, right, False)]
    drawn = [_curve(points, place, number) for number, points in enumerate(shown.values())]
    foot = element("text", "step", x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 4, text_anchor="middle")
    svg = element("svg", *marks, foot, *drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=title)
    return element("figure", element("figcaption", title, _legend(list(shown)) if len(shown) > 1 else None), svg)


def _thinned(points: Points) -> Points:
    """Every n-th point, and the last one."""
    stride = max(1, math.ceil(len(points) / _MOST))
    return [*points[:-1:stride], *points[-1:]]


def _drawn(value: float) -> bool:
    """Whether a value can be drawn: finite, and not so large that differences overflow."""
    return abs(value) < _HUGE


def _room(low: float, high: float) -> tuple[float, float]:
    """An interval that is not empty, and wide enough for its ticks to be told apart by six digits."""
    largest = max(abs(low), abs(high))
    if high - low > max(1e-4 * largest, _TINY):
        return low, high
    pad = 0.1 * largest if largest > _TINY else 0.1
    return low - pad, high + pad


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Round numbers between two; for a logarithmic axis, logarithms."""
    if log:
        whole = [float(n) for n in range(math.ceil(low), math.floor(high) + 1)]
        if len(whole) >= 3:
            stride = math.ceil(len(whole) / 6)
            return whole[::stride]
        fine = [n + math.log10(m) for n in range(math.floor(low), math.ceil(high)) for m in (1, 2, 5)]
        return [t for t in fine if low <= t <= high]
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _label(tick: float, log: bool) -> str:
    value = 10**tick if log else tick
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    return f"{value:.6g}"


def _grid_line(y: float, text: str) -> Markup:
    return join(
        element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"),
        element("text", text, x=_LEFT - 7, y=f"{y + 4:.1f}", text_anchor="end"),
    )


def _foot(x: float, text: str) -> Markup:
    return element("text", text, x=f"{x:.1f}", y=_HEIGHT - _BOTTOM + 16, text_anchor="middle")


def _curve(points: Points, place: Callable[[float, float], tuple[float, float]], number: int) -> Markup:
    path, pen = [], "M"
    for x, y in points:
        if not _drawn(y):
            pen = "M"
            continue
        px, py = place(x, y)
        path.append(f"{pen}{px:.1f} {py:.1f}")
        pen = "L"
    dots = [
        element("circle", cx=f"{px:.1f}", cy=f"{py:.1f}", r=2.6, class_=f"dot s{number % 6}")
        for px, py in (place(x, y) for x, y in points if _drawn(y))
    ]
    few = dots if len(dots) <= 25 else []
    return join(element("path", d=" ".join(path), class_=f"curve s{number % 6}"), *few)


def _legend(names: Sequence[str]) -> Markup:
    entries = (
        element("span", element("i", class_=f"key s{number % 6}"), name, class_="entry")
        for number, name in enumerate(names)
    )
    return element("span", *entries, class_="legend")
