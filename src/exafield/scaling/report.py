"""Report: a study as lines, as JSON and as pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exafield.page.quantity import digits, duration, prefix, rate
from exafield.scaling import plots
from exafield.scaling.advice import Advised
from exafield.scaling.study import Curve, Point, Study, Target
from exafield.scaling.subject import Subject
from exafield.scaling.transfer import Transferred
from exafield.scaling.waterfall import CAUSES, greatest, waterfall
from exafield.store import atomic_write
from exafield.suggestion import counted

FORMAT, VERSION = "exafield-scaling", 1


def lines(made: Study, target: Target, advised: Advised | None) -> list[str]:
    """What is printed: the table, where the loss goes, and advice."""
    first = made.curves[0]
    said = [
        "",
        f"{made.step.name} on {made.machine.name}, {_how(made)}, {first.name}",
        *_table(first, target, made.machine.device.kind),
    ]
    if made.left_out:
        said.append(
            f"left out: {', '.join(f'{n:,}' for n in made.left_out)} nodes, where a rank would have less than one of "
            f"the {first.last.batch:,} samples of a step (--batch raises them)"
        )
    if len(made.curves) > 1:
        said += ["", f"compared on {first.last.ranks:,} ranks", *_compared(made)]
    said += ["", f"where the time of a step goes on {first.last.ranks:,} ranks", *_losses(first.last)]
    if advised is not None:
        said += ["", f"advice for {advised.ranks:,} ranks, in flags of exafield train", *_advice(advised)]
    return said


def _how(made: Study) -> str:
    if made.strong:
        return f"strong scaling, {made.curves[0].last.batch:,} samples a step"
    return f"weak scaling, {counted(made.step.samples, 'sample')} per rank and step"


def _table(curve: Curve, target: Target, kind: str) -> list[str]:
    hours = "GPU-hours" if kind == "gpu" else "rank-hours"
    head = ["nodes", "ranks", "step", "efficiency", "samples/s", "FLOP/s", f"to {target}", hours]
    rows = [
        [
            f"{p.nodes:,}",
            f"{p.ranks:,}",
            duration(p.seconds),
            f"{100 * p.efficiency:.1f} %",
            _short(p.samples_per_second),
            rate(p.flops, "") if p.flops else "unknown",
            duration(p.duration(target)),
            f"{p.hours(target):,.3g}" if p.hours(target) < 1000 else f"{p.hours(target):,.0f}",
        ]
        for p in curve.points
    ]
    if target.price is not None:
        head.append("cost")
        for row, p in zip(rows, curve.points, strict=True):
            row.append(f"{p.hours(target) * target.price:,.2f}")
    return _aligned([head, *rows])


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _short(value: float) -> str:
    name, size = prefix(value)
    return f"{digits(value / size)}{name}"


def _compared(made: Study) -> list[str]:
    base = made.curves[0].last
    rows = [["reducer", "step", "efficiency", "time against the first", "greatest loss"]]
    for curve in made.curves:
        p, worst = curve.last, greatest(curve.last.loss)
        ratio = f"{p.seconds / base.seconds:.3f}"
        rows.append([curve.name, duration(p.seconds), f"{100 * p.efficiency:.1f} %", ratio, worst.name])
    width = max(len(row[0]) for row in rows)
    return [f"{row[0].ljust(width)}  {rest}" for row, rest in zip(rows, _aligned([r[1:] for r in rows]), strict=True)]


def _losses(point: Point) -> list[str]:
    rows = [[part.name, duration(part.seconds) if part.seconds >= 0 else f"-{duration(-part.seconds)}",
             f"{100 * part.share:.1f} %"] for part in waterfall(point.loss)]  # fmt: skip
    width = max(len(row[0]) for row in rows)
    values = _aligned([row[1:] for row in rows])
    said = [f"  {row[0].ljust(width)}  {text}  {CAUSES[row[0]]}" for row, text in zip(rows, values, strict=True)]
    worst = greatest(point.loss)
    if worst.seconds > 0:
        said.append(f"most is lost to {worst.name}: {CAUSES[worst.name]}")
    return said


def _advice(advised: Advised) -> list[str]:
    said = []
    for one in advised.alone:
        if one.choice is None:
            said.append(f"  --{one.topic:10s} as it is: none of {counted(len(one.tried), 'choice')} gains")
        else:
            note = ", at the price of gradients that are one step late" if one.topic == "lag" else ""
            said.append(f"  --{one.topic:10s} {one.choice}: a step is {100 * one.gain:.1f} % shorter{note}")
    if advised.together:
        flags = " ".join(f"--{topic} {choice}" for topic, choice in advised.together.items())
        said.append(f"  together: {flags}: {duration(advised.seconds)} a step, {100 * advised.gain:.1f} % shorter")
    return said


# ---- files ----


def document(
    subject: Subject, moved: Transferred, made: Study, target: Target, advised: Advised | None
) -> dict[str, Any]:
    """The study in plain values; times in seconds."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "step": {"name": made.step.name, "source": subject.source, "samples": made.step.samples,
                 "precision": made.step.precision, "seconds": made.step.seconds, "bytes": made.step.nbytes},
        "said": list(moved.said),
        "machine": made.machine.name,
        "scaling": "strong" if made.strong else "weak",
        "data": made.data,
        "target": {"samples": target.samples, "steps": target.steps, "price": target.price},
        "curves": [{"reducer": c.name, "points": [_point(p, target) for p in c.points]} for c in made.curves],
        "left_out_nodes": list(made.left_out),
        "advice": None if advised is None else _advised(advised),
    }  # fmt: skip


def _point(p: Point, target: Target) -> dict[str, Any]:
    hours = p.hours(target)
    return {
        "nodes": p.nodes,
        "ranks": p.ranks,
        "batch": p.batch,
        "seconds": p.seconds,
        "efficiency": p.efficiency,
        "samples_per_second": p.samples_per_second,
        "flops": p.flops,
        "groups": p.groups,
        "loss": dict(p.loss),
        "target_seconds": p.duration(target),
        "device_hours": hours,
        "cost": None if target.price is None else hours * target.price,
    }


def _advised(advised: Advised) -> Mapping[str, Any]:
    alone = [{"topic": a.topic, "choice": a.choice, "gain": a.gain, "tried": dict(a.tried)} for a in advised.alone]
    return {
        "ranks": advised.ranks,
        "asked_seconds": advised.asked,
        "alone": alone,
        "together": dict(advised.together),
        "seconds": advised.seconds,
    }


def write(into: Path, made: Study, content: Mapping[str, Any]) -> list[Path]:
    """Writes JSON and pictures into a folder, and says which."""
    paths = [into / "scaling.json", into / "scaling.png", into / "losses.png"]
    atomic_write(paths[0], json.dumps(content, indent=1, allow_nan=False).encode())
    plots.scaling(paths[1], made)
    plots.losses(paths[2], made)
    return paths
