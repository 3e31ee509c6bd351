"""Outcome: how a run ended, what it reached, and how it got there."""

import base64
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from exafield.page.contents import Contents
from exafield.page.curves import chart
from exafield.page.markup import Markup, element, join, missing, table
from exafield.page.quantity import digits, duration, number, plain, prefix
from exafield.page.speed import Speed
from exafield.suggestion import counted

_PNG = b"\x89PNG\r\n\x1a\n"
# A larger picture is left in the folder [bytes]; our choice.
_LARGEST = 10_000_000
# Metrics of an evaluation among the figures looked for first; our choice.
_FEW = 4


def outcome(contents: Contents) -> tuple[str, str]:
    """How the run ended, as a class of the style sheet ("good", "stopped", "bad") and in words."""
    if contents.complete:
        return "good", "complete"
    last = contents.last.get("outcome")
    steps = contents.steps
    at = "" if steps is None else f" at step {steps}"
    if not contents.sessions:
        return "stopped", f"not complete{at}: how it ended is not recorded"
    if last is None:
        return "stopped", f"not ended by itself: it is still running, or was killed{at and f' after step {steps}'}"
    if str(last) == "complete":
        return "good", "complete"
    return ("stopped", f"{last}{at}") if not str(last).startswith("ended with an error") else ("bad", str(last))


def training_time(contents: Contents) -> float:
    """Seconds of training as far as told, else between the first and the last record of metrics; NaN if neither is."""
    told = [number(contents.result.get("elapsed")), *(number(s.get("elapsed")) for s in reversed(contents.sessions))]
    times = [number(record.get("time")) for record in contents.records]
    told.append(times[-1] - times[0] if len(times) > 1 else math.nan)
    return next((value for value in told if math.isfinite(value)), math.nan)


def head(contents: Contents, speed: Speed | None) -> Markup:
    """Title, how it ended, and the figures looked for first."""
    kind, said = outcome(contents)
    gate = _gate(contents)
    figures: list[tuple[str, str]] = [("steps", "unknown" if contents.steps is None else f"{contents.steps:,}")]
    time = training_time(contents)
    if math.isfinite(time):
        told = any("elapsed" in s for s in (contents.result, *contents.sessions))
        figures.append(("training" if told else "between first and last record", duration(time)))
    if speed is not None:
        if math.isfinite(speed.samples):
            figures.append(("samples/s", digits(speed.samples)))
        if speed.ranks is not None:
            nodes = number(contents.last.get("nodes"))
            figures.append(("ranks", str(speed.ranks) + (f" on {nodes:.0f} nodes" if nodes > 1 else "")))
    if gate:
        figures.append(("gate", f"{sum(reached for reached, _ in gate)} of {len(gate)} reached"))
    losses = [(name, value) for name, value in _final(contents, "train").items() if name.startswith("loss")]
    figures += [(f"last {name}", plain(value)) for name, value in losses[:2]]
    figures += [(f"{name}, evaluation", plain(value)) for name, value in list(_final(contents).items())[:_FEW]]
    items = (element("div", element("dt", name), element("dd", value)) for name, value in figures)
    began = next((_day(s.get("started")) for s in contents.sessions), None)
    return element(
        "header",
        element("p", "exafield run", class_="kicker"),
        element("h1", contents.problem),
        element("p", contents.folder.resolve().name, f", begun {began}" if began else None, class_="name"),
        element("p", element("span", said, class_=f"outcome {kind}")),
        element("dl", *items, class_="figures"),
    )


def _day(text: object) -> str | None:
    try:
        return datetime.fromisoformat(str(text)).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return None


def _final(contents: Contents, kind: str = "evaluate") -> Mapping[str, Any]:
    """The last record of its kind."""
    records = contents.trained(kind)
    return _values(records[-1]) if records else {}


def _values(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in record.items() if name not in ("kind", "step", "time")}


def _gate(contents: Contents) -> Sequence[tuple[bool, str]]:
    lines = contents.result.get("gate")
    if not isinstance(lines, list):
        return []
    return [(line.get("reached") is True, str(line.get("line"))) for line in lines if isinstance(line, Mapping)]


def results(contents: Contents) -> Markup:
    """The gate, the last evaluation, and what the problem reports."""
    gate, final, report = _gate(contents), _final(contents), contents.result.get("report")
    if not gate and len(final) <= _FEW and not isinstance(report, Mapping):
        return missing("There are no scores: they are computed when a run is complete.")
    told: list[Markup] = []
    if gate:
        lines = (
            element("li", element("b", "reached" if good else "missed"), line, class_="good" if good else "bad")
            for good, line in gate
        )
        told.append(element("ul", *lines, class_="gate"))
    if isinstance(report, Mapping):
        told += _scores(report)
    if len(final) > _FEW:  # else they stand above
        told.append(element("h3", "Last evaluation"))
        told.append(table(("metric", "value"), [(name, plain(value)) for name, value in final.items()]))
    return join(*told)


def _scores(report: Mapping[str, Any]) -> list[Markup]:
    """A problem's report: what has figures of its own as the rows of a table, the rest below."""
    rows = {name: value for name, value in report.items() if isinstance(value, Mapping) and value}
    alike: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for name, value in rows.items():
        alike.setdefault(tuple(map(str, value)), {})[_spaced(name)] = value
    told = [
        table(("", *map(_spaced, names)), [(name, *map(plain, value.values())) for name, value in members.items()])
        for names, members in alike.items()
    ]
    single = [(_spaced(name), _listed(value)) for name, value in report.items() if name not in rows]
    return [*told, *([table((), single)] if single else [])]


def _listed(value: object) -> str:
    return ", ".join(map(plain, value)) if isinstance(value, list) else plain(value)


def _spaced(name: str) -> str:
    return str(name).replace("_", " ")


def curves(contents: Contents) -> Markup:
    """Losses, metrics and speed over the steps."""
    if not contents.records:
        return missing("There are no metrics: metrics.jsonl is missing, empty or cannot be read.")
    train, evaluated = _series(contents.trained()), _series(contents.trained("evaluate"))
    losses = {name: points for name, points in train.items() if name.partition("/")[0] == "loss"}
    shared = {f"{name}, evaluation": points for name, points in evaluated.items() if name in losses}
    told = [chart("loss", losses | shared)] if losses else []
    alone = {name: points for name, points in evaluated.items() if name not in losses and len(points) > 1}
    told += [chart(f"{name}, evaluation", {name: points}) for name, points in alone.items()]
    operations = {"exact": "FLOP/s", "as published": "published FLOP/s"}
    rates = {said: train[name] for said, name in operations.items() if name in train}
    others = {name: points for name, points in train.items() if name not in losses}
    for name, points in others.items():
        if name == "FLOP/s":
            told.append(_scaled(rates))
        elif name == "data wait":
            told.append(chart("waiting for data, share of the time", {name: points}, zero=True))
        elif name not in operations.values():
            told.append(chart(name, {name: points}, zero=name.endswith("/s") or name == "skipped"))
    return element("div", *told, class_="charts")


def _scaled(rates: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    """A chart of operations per second, in the unit that fits the largest."""
    values = [y for points in rates.values() for _, y in points if math.isfinite(y)]
    name, size = prefix(max(values, default=0.0))
    scaled = {said: [(x, y / size) for x, y in points] for said, points in rates.items()}
    return chart(f"{name}FLOP/s", scaled, zero=True)


def _series(records: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Points (step, value) by metric; what is no number is NaN."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for name, value in _values(record).items():
            found.setdefault(name, []).append((number(record["step"]), number(value)))
    return found


def pictures(contents: Contents) -> Markup:
    """The run's pictures."""
    if not contents.pictures:
        return missing("There is no picture: it is drawn when a run is complete.")
    told = []
    for path in contents.pictures:
        size = path.stat().st_size
        if size > _LARGEST:
            told.append(missing(f"{path.name} has {size / 1e6:.0f} MB and is left in the folder."))
            continue
        data = path.read_bytes()
        if not data.startswith(_PNG):
            told.append(missing(f"{path.name} is no PNG picture: it is damaged or something else."))
            continue
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        older = ", drawn before the last session" if path.stat().st_mtime < contents.began else None
        caption = element("figcaption", element("span", path.name, older))
        told.append(element("figure", element("img", src=source, alt=path.stem), caption))
    return join(*told)


def notes(contents: Contents) -> Markup | None:
    """What of the folder cannot be read; None if nothing."""
    if not contents.unreadable:
        return None
    lines = (element("li", why) for why in contents.unreadable.values())
    title = f"{counted(len(contents.unreadable), 'file')} of this run cannot be read"
    what = (
        "Nothing else is affected. Restore what is damaged, or remove it, and make this page anew: exafield report RUN."
    )
    return element("aside", element("p", element("b", title)), element("ul", *lines), element("p", what))
