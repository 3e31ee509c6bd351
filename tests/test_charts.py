"""Markup, quantities, charts and timelines: what is escaped, rounded, drawn, and left out."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exafield.page.curves import chart, ticks
from exafield.page.markup import Markup, element, join, table
from exafield.page.quantity import duration, number, plain, rate, share
from exafield.page.timeline import timeline
from exafield.trace import Trace


def points(svg: str, which: str = "circle") -> list[tuple[float, float]]:
    if which == "circle":
        return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([-\d.]+)" cy="([-\d.]+)"', svg)]
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", svg)]


def labels(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


# ---- markup and quantities ----


def test_text_is_escaped_and_markup_is_not() -> None:
    made = element("p", "<b>", element("i", "a & b"), None, 3, class_="x\"y'", data_name=None, aria_label="<")
    assert made == '<p class="x&quot;y&#x27;" aria-label="&lt;">&lt;b&gt;<i>a &amp; b</i>3</p>'
    assert join("<", Markup("<br>")) == "&lt;<br>"
    assert element("img", src="a") == '<img src="a">'
    # Added to text, markup is text again, so that nothing slips through by a plus.
    assert element("p", element("b") + "<") == "<p>&lt;b&gt;&lt;/b&gt;&lt;</p>"
    assert '<th scope="row">&lt;</th><td class="short">&gt;</td>' in table(("a", "b"), [("<", ">")])
    assert "class" not in table((), [("a", "b" * 31)]).partition("<td")[2]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (rate(21.38e9, "FLOP/s"), "21.4 GFLOP/s"),
        (rate(999.6, "B/s"), "1000 B/s"),
        (rate(5.0, "B/s"), "5.00 B/s"),
        (rate(math.nan, "B/s"), "unknown"),
        (duration(3900.0), "1 h 05 min"),
        (duration(3599.9), "1 h 00 min"),
        (duration(127.2), "2 min 07 s"),
        (duration(12.34), "12.3 s"),
        (duration(0.00456), "4.56 ms"),
        (duration(0.0), "0 s"),
        (share(0.1234), "12.3 %"),
        (plain(0.3), "0.3000"),
        (plain(1234.5), "1234"),
        (plain(math.inf), "not finite"),
        (plain(None), "none"),
        (plain(True), "True"),
        (plain(10**400), "nan"),
    ],
)
def test_quantities(said: str, expected: str) -> None:
    assert said == expected


def test_what_is_no_number_is_nan() -> None:
    assert number(3) == 3.0
    for value in (None, True, "3", [], 10**400):
        assert math.isnan(number(value))


# ---- charts ----


def test_a_curve_goes_through_its_points() -> None:
    svg = chart("loss", {"a": [(0, 1.0), (10, 3.0), (20, 2.0)]})
    (x0, y0), (x1, y1), (x2, y2) = points(svg)
    assert x0 < x1 < x2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y2 == pytest.approx(y2 - y1, abs=0.2)  # downwards, as SVG has it
    assert points(svg, "path") == points(svg)
    assert "legend" not in svg


def test_values_that_differ_much_are_on_a_logarithmic_axis() -> None:
    svg = chart("loss", {"a": [(0, 1.0), (1, 0.01), (2, 0.0001)]})
    (_, y0), (_, y1), (_, y2) = points(svg)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert {"1", "0.1", "0.01", "0.001"} <= set(labels(svg))
    rates = points(chart("samples/s", {"a": [(0, 1000.0), (1, 500.0), (2, 1.0)]}, zero=True))
    assert rates[1][1] - rates[0][1] == pytest.approx(rates[2][1] - rates[1][1], abs=0.4)


def test_rates_begin_at_zero() -> None:
    assert "0" in labels(chart("samples/s", {"a": [(10, 95.0), (20, 100.0)]}, zero=True))
    assert "0" not in labels(chart("R2", {"a": [(10, 95.0), (20, 100.0)]}))


def test_values_that_are_not_finite_leave_a_gap() -> None:
    svg = chart("loss", {"a": [(0, 1.0), (1, 2.0), (2, math.nan), (3, math.inf), (4, 1.5), (5, 1.0)]})
    assert re.search(r'd="M\S+ \S+ L\S+ \S+ M\S+ \S+ L\S+ \S+"', svg)
    assert len(points(svg)) == 4
    assert "nan" not in svg
    assert "no finite values" in chart("loss", {"a": [(0, math.nan)]})
    assert "no finite values" in chart("loss", {"a": []})


def test_one_point_and_constant_values_are_drawn() -> None:
    for series in ([(7.0, 0.25)], [(0.0, 0.0), (1.0, 0.0)], [(5.0, 1.0), (5.0, 2.0)]):
        drawn = points(chart("x", {"a": series}))
        assert len(drawn) == len(series)
        assert all(62 <= x <= 448 and 12 <= y <= 196 for x, y in drawn)


def test_long_series_are_thinned_and_keep_their_last_point() -> None:
    svg = chart("loss", {"a": [(n, float(n)) for n in range(100_001)]})
    assert len(svg) < 40_000
    assert points(svg, "path")[-1][0] == pytest.approx(448.0)


def test_several_curves_have_a_legend_with_their_names_escaped() -> None:
    svg = chart("loss", {"a<b": [(0, 1.0), (1, 2.0)], "c": [(0, 2.0), (1, 3.0)]})
    assert "a&lt;b" in svg
    assert svg.count("<path") == 2


@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=6), st.booleans())
def test_any_numbers_can_be_drawn(series: list[tuple[float, float]], zero: bool) -> None:
    svg = chart("x", {"a": series}, zero=zero)
    for x, y in points(svg) + points(svg, "path"):
        assert 61 <= x <= 449
        assert 11 <= y <= 197


@given(st.floats(-1e12, 1e12), st.floats(1e-4, 1e6))
def test_ticks_are_few_and_inside(low: float, relative: float) -> None:
    width = relative * max(abs(low), 1e-12)
    found = ticks(low, low + width, False)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-6 * width <= t <= low + width + 1e-6 * width for t in found)


# ---- timelines ----


def traced(ranks: int, times: list[float]) -> Trace:
    trace = Trace(0, clock=lambda: 0.0)
    parts = []
    for rank in range(ranks):
        part, at = Trace(rank, clock=lambda: 0.0), 0.0
        for n, took in enumerate(times):
            part.add("trainer", "forward", at, at + took / 2, player="net")
            part.add("trainer", "finish", at + took / 2, at + took, player="net")
            part.add("reduce net", "group 0", at, at + took, bytes=1)
            part.add("reduce net", "group 1", at + took / 4, at + took, bytes=1)
            part.add("trainer", "step", at, at + took, number=n)
            at += took
        parts.append(part)
    return Trace.merge(parts) if parts else trace


def test_typical_steps_are_shown_with_what_the_ranks_did() -> None:
    drawn = timeline(traced(2, [9.0, 1.0, 1.0, 5.0, 0.1]))
    assert drawn is not None
    assert "steps 1 and 2" in drawn
    assert {"rank 0", "rank 1"} <= set(labels(drawn))
    assert drawn.count('class="p-forward"') == drawn.count('class="p-finish"') == 4
    assert drawn.count('class="p-group"') == 8
    (width,) = set(re.findall(r'width="([\d.]+)"[^>]*class="p-forward"', drawn))
    assert float(width) == pytest.approx((960 - 74 - 8) / 4, abs=0.1)
    assert "forward: 500 ms" in drawn
    assert "2000 ms" in labels(drawn)


def test_groups_under_way_at_once_do_not_cover_each_other() -> None:
    drawn = timeline(traced(1, [1.0]))
    assert drawn is not None
    assert len(set(re.findall(r'y="([\d.]+)"[^>]*class="p-group"', drawn))) == 2


def test_many_ranks_are_cut_and_traces_without_steps_have_no_timeline() -> None:
    drawn = timeline(traced(12, [1.0, 1.0]))
    assert drawn is not None
    assert "the first 8 of 12 ranks" in drawn
    assert "rank 8" not in labels(drawn)
    assert timeline(Trace(0)) is None
    assert timeline(traced(1, [0.0])) is None
